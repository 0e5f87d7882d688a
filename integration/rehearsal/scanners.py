"""Scanners: each asks for its worklist by its AE title, makes phantom images of what it was told, reports the step
(MPPS) and stores the images; and the technologist at its console, who now and then picks or types the wrong thing.

Queries and MPPS go by pynetdicom, images by our own sender. Whatever breaks off is tried again, as real devices
do: with the same UIDs, until it is answered or the patience ends.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from typing import TypeVar

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, build_context
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made at import from its tables
    ModalityPerformedProcedureStep,
    ModalityWorklistInformationFind,
)

from common.clock import now, to_site
from common.uids import new_uid
from integration.rehearsal import phantoms
from integration.rehearsal.catalogue import Station
from integration.rehearsal.doors import Doors, GaveUp
from integration.rehearsal.people import Person
from integration.rehearsal.phantoms import Lesion, Protocol
from integration.rehearsal.script import Exam, Visit
from integration.rehearsal.trouble import Trouble
from pacs.dimse import datasets, sender
from pacs.dimse.errors import AssociationRefused, Ended
from pacs.storage.part10 import Origin

T = TypeVar("T")

SUCCESS = 0x0000
PENDING = (0xFF00, 0xFF01)
DUPLICATE_SOP_INSTANCE = 0x0111
PROCESSING_FAILURE = 0x0110


@dataclass(slots=True)
class Query:
    """One worklist query in a scanner's log."""

    at: datetime
    seconds: float
    answers: int


@dataclass(slots=True)
class Stored:
    """One image in a scanner's log. `sha256` is of its data set as it went over the wire."""

    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    sha256: str
    attempts: int = 0
    seconds: float = 0.0
    stored_at: datetime | None = None
    status: int | None = None


@dataclass(slots=True)
class Scan:
    """What one visit's exam became at the scanner."""

    visit: Visit
    study_uid: str
    images: list[Stored] = field(default_factory=list)
    lesion: Lesion | None = None
    mpps_uid: str = ""
    in_progress_at: datetime | None = None
    completed_at: datetime | None = None
    sent_at: datetime | None = None


@dataclass(slots=True)
class ScannerLog:
    """What a scanner remembers of the morning. `complaints` are answers that contradict the script."""

    queries: list[Query] = field(default_factory=list)
    scans: list[Scan] = field(default_factory=list)
    found: int = 0
    absent: int = 0
    complaints: list[str] = field(default_factory=list)


class Scanner:
    """One scanner. Used by one thread."""

    def __init__(self, doors: Doors, station: Station, called_ae: str, protocol: Protocol) -> None:
        self.doors, self.station, self.called_ae, self.protocol = doors, station, called_ae, protocol
        self.log = ScannerLog()
        self.ae = AE(ae_title=station.ae_title)
        self.ae.acse_timeout, self.ae.dimse_timeout, self.ae.network_timeout = 10, 20, 20
        self.ae.connection_timeout = 5

    def examine(self, visit: Visit) -> Scan:
        """All of one exam: worklist, MPPS, images. Raises GaveUp."""
        answer, identity = self._pick(visit)
        started = to_site(now())
        study = phantoms.scan(
            _at_the_console(answer, visit, identity),
            at=started.replace(tzinfo=None),
            seed=visit.seed,
            lesion=visit.lesion,
            protocol=self.protocol,
        )
        scan = Scan(visit, str(study.images[0].StudyInstanceUID), lesion=study.lesion, mpps_uid=new_uid())
        self.log.scans.append(scan)
        self._perform(scan, study.images[0], answer if _is_scheduled(visit) else None, started)
        self._store(scan, study.images)
        self._complete(scan, study.images)
        return scan

    # -- worklist

    def sees(self, exam: Exam) -> Dataset | None:
        """The worklist's answer for an order, or None; the answer is compared with what the HIS ordered."""
        for item in self.worklist(exam.start):
            if str(item.get("PatientID", "")) == exam.person.number:
                self._compare(item, exam)
                return item
        return None

    def worklist(self, day: datetime) -> list[Dataset]:
        """Everything scheduled for this scanner on this day."""
        query = _worklist_query(self.station, day)
        began = time.perf_counter()
        items = self._over("worklist", ModalityWorklistInformationFind, lambda assoc: _found(assoc, query))
        self.log.queries.append(Query(now(), time.perf_counter() - began, len(items)))
        return items

    def _pick(self, visit: Visit) -> tuple[Dataset, Person | None]:
        """The worklist entry that the technologist works with, and whose identity is typed over it (None: nobody's)."""
        exam = visit.neighbour or visit.exam
        if exam is None:
            return _by_hand(visit.person, self.station, ""), None
        item = self.sees(exam)
        if item is None:
            self.log.complaints.append(
                f"{self.station.ae_title} did not find order {exam.placer} in the first query after its ACK"
            )
            item = self.doors.wait_for(lambda: self.sees(exam), f"order {exam.placer} on the worklist")
        self.log.found += 1
        if visit.trouble is Trouble.ACCESSION:
            return _by_hand(visit.person, self.station, visit.typed_accession), None
        return item, visit.person if visit.neighbour else None

    def is_gone(self, exam: Exam) -> None:
        """Note whether a cancelled order has left the worklist."""
        if self.sees(exam) is None:
            self.log.absent += 1
        else:
            self.log.complaints.append(
                f"{self.station.ae_title} still finds order {exam.placer} after its cancellation was acknowledged"
            )

    def _compare(self, item: Dataset, exam: Exam) -> None:
        step = item.ScheduledProcedureStepSequence[0]
        expected = {
            "PatientName": (str(item.PatientName), str(exam.person.name)),
            "PatientBirthDate": (item.get("PatientBirthDate"), exam.person.birth_date),
            "PatientSex": (item.get("PatientSex"), exam.person.sex),
            "AccessionNumber": (item.get("AccessionNumber"), exam.accession),
            "StudyInstanceUID": (item.get("StudyInstanceUID"), exam.study_uid),
            "RequestedProcedureID": (item.get("RequestedProcedureID"), exam.procedure_id),
            "ScheduledProcedureStepID": (step.get("ScheduledProcedureStepID"), exam.step_id),
            "Modality": (step.get("Modality"), exam.station.modality),
            # An order without a title is for every scanner of its modality: the site's own stand beside ours.
            "ScheduledStationAETitle": (_among(step, exam.station.ae_title), exam.station.ae_title),
        }
        for keyword, (told, ordered) in expected.items():
            if ordered and str(told or "").rstrip("=^") != ordered:
                complaint = f"the worklist's {keyword} of order {exam.placer} is not what the HIS ordered"
                if complaint not in self.log.complaints:
                    self.log.complaints.append(complaint)

    # -- MPPS

    def _perform(self, scan: Scan, image: Dataset, item: Dataset | None, started: datetime) -> None:
        ds = _in_progress(scan, image, item, self.station, started)
        uid = scan.mpps_uid

        def create(assoc: Association) -> bool:
            status, _ = assoc.send_n_create(ds, ModalityPerformedProcedureStep, uid)
            # The first try may have been taken although its answer never came: then it is there already.
            return _code(status) in (SUCCESS, DUPLICATE_SOP_INSTANCE) or _refused("N-CREATE", status)

        self._over("MPPS in progress", ModalityPerformedProcedureStep, create)
        scan.in_progress_at = now()

    def _complete(self, scan: Scan, images: list[Dataset]) -> None:
        ds = _completed(images, to_site(now()))

        def complete(assoc: Association) -> bool:
            status, _ = assoc.send_n_set(ds, ModalityPerformedProcedureStep, scan.mpps_uid)
            done = _code(status) == PROCESSING_FAILURE and "no longer" in str(status.get("ErrorComment", ""))
            return _code(status) == SUCCESS or done or _refused("N-SET", status)

        self._over("MPPS completed", ModalityPerformedProcedureStep, complete)
        scan.completed_at = now()

    # -- images

    def _store(self, scan: Scan, images: list[Dataset]) -> None:
        """Send every image until each was answered with Success; one association at a time."""
        encoded = []
        for image in images:
            data = datasets.encode(image, ExplicitVRLittleEndian)
            origin = Origin(str(image.SOPClassUID), str(image.SOPInstanceUID), ExplicitVRLittleEndian)
            record = Stored(
                origin.sop_instance_uid,
                str(image.SeriesInstanceUID),
                scan.study_uid,
                hashlib.sha256(data).hexdigest(),
            )
            scan.images.append(record)
            encoded.append((origin, data, record))
        deadline = time.monotonic() + self.doors.patience
        while left := [one for one in encoded if one[2].stored_at is None]:
            if time.monotonic() > deadline:
                statuses = {f"0x{one[2].status or 0:04X}" for one in left}
                raise GaveUp(
                    f"{len(left)} images of visit {scan.visit.number} were not taken ({', '.join(statuses)})"
                )
            try:
                self._store_some(left)
            except (Ended, AssociationRefused, OSError):
                self.doors.pause()
        scan.sent_at = now()

    def _store_some(self, left: list[tuple[Origin, bytes, Stored]]) -> None:
        to = sender.Destination(
            self.doors.host, self.doors.port("dicom"), self.called_ae, self.station.ae_title
        )
        with sender.associate(to, sender.contexts_of(origin for origin, _, _ in left)) as assoc:
            for origin, data, record in left:
                began = time.perf_counter()
                record.attempts += 1
                record.status = assoc.store(origin, data)
                record.seconds = time.perf_counter() - began
                if record.status == SUCCESS:
                    record.stored_at = now()
                else:
                    self.doors.pause()  # out of resources, perhaps: give it a moment

    # -- associations

    def _over(self, what: str, sop_class: str, ask: Callable[[Association], T | None]) -> T:
        """What `ask` gets over an association of its own; tried again when it breaks (ask gives None or False)."""

        def attempt() -> tuple[T] | None:
            port, contexts = self.doors.port("dicom"), [build_context(sop_class)]
            assoc = self.ae.associate(self.doors.host, port, contexts=contexts, ae_title=self.called_ae)
            if not assoc.is_established:
                return None
            try:
                found = ask(assoc)
            except RuntimeError:  # pynetdicom's word for an association that broke meanwhile
                return None
            finally:
                if assoc.is_established:
                    assoc.release()
            return (found,) if found is not None and found is not False else None

        return self.doors.wait_for(attempt, f"{what} of {self.station.ae_title}")[0]


def _code(status: Dataset) -> int | None:
    """The status, or None when the association broke before it came."""
    return int(status.Status) if "Status" in status else None


def _refused(what: str, status: Dataset) -> bool:
    """False when nothing was answered (try again). Raises GaveUp for a clear no."""
    code = _code(status)
    if code is None or code in (0x0213, 0x0122, 0xA700):  # away, or short of something: worth another try
        return False
    raise GaveUp(f"{what} was refused: 0x{code:04X} {status.get('ErrorComment', '')}".rstrip())


def _found(assoc: Association, query: Dataset) -> list[Dataset] | None:
    """All answers of a C-FIND, or None when it did not end well."""
    items = []
    for status, item in assoc.send_c_find(query, ModalityWorklistInformationFind):
        code = _code(status)
        if code in PENDING and item is not None:
            items.append(item)
        elif code != SUCCESS:
            return None
    return items


def _worklist_query(station: Station, day: datetime) -> Dataset:
    """The keys of a usual scanner: its AE title, its modality, one day; everything else to be returned."""
    ds = Dataset()
    for keyword in (
        "AccessionNumber", "ReferringPhysicianName", "PatientName", "PatientID", "IssuerOfPatientID",
        "PatientBirthDate", "PatientSex", "PatientWeight", "MedicalAlerts", "Allergies", "StudyInstanceUID",
        "RequestingPhysician", "RequestedProcedureDescription", "AdmissionID", "RequestedProcedureID",
        "RequestedProcedurePriority", "PlacerOrderNumberImagingServiceRequest",
    ):  # fmt: skip
        setattr(ds, keyword, "")
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.RequestedProcedureCodeSequence = []
    ds.ReferencedStudySequence = []
    step = Dataset()
    step.ScheduledStationAETitle = station.ae_title
    step.ScheduledProcedureStepStartDate = day.strftime("%Y%m%d")
    step.Modality = station.modality
    for keyword in (
        "ScheduledProcedureStepStartTime", "ScheduledPerformingPhysicianName", "ScheduledProcedureStepDescription",
        "ScheduledStationName", "ScheduledProcedureStepLocation", "ScheduledProcedureStepID",
    ):  # fmt: skip
        setattr(step, keyword, "")
    step.ScheduledProtocolCodeSequence = []
    ds.ScheduledProcedureStepSequence = [step]
    return ds


# -- at the console


def _is_scheduled(visit: Visit) -> bool:
    """Whether the scanner works with a worklist entry, so that its MPPS can name one."""
    return visit.trouble not in (Trouble.ACCESSION, Trouble.STRANGER)


def _by_hand(person: Person, station: Station, accession: str) -> Dataset:
    """What a technologist types when no worklist entry is used: the patient and perhaps a number; the UID is new."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.StudyInstanceUID = new_uid()
    ds.AccessionNumber = accession
    _identify(ds, person)
    step = Dataset()
    step.Modality = station.modality
    ds.ScheduledProcedureStepSequence = [step]
    return ds


def _identify(ds: Dataset, person: Person) -> None:
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PatientID = person.number
    ds.PatientName = str(person.name)
    ds.PatientBirthDate = person.birth_date
    ds.PatientSex = person.sex


def _at_the_console(answer: Dataset, visit: Visit, identity: Person | None) -> Dataset:
    """The answer as the images will carry it: with another identity typed over it, where there is one."""
    ds = deepcopy(answer)
    if identity is not None:
        _identify(ds, identity)
        for keyword in ("IssuerOfPatientID", "AdmissionID"):
            if keyword in ds:
                del ds[keyword]
    return ds


# -- MPPS data sets (PS3.4 table F.7.2-1)


def _among(step: Dataset, title: str) -> str:
    """The title, if the step is for this station; else what it is for."""
    titles = step.get("ScheduledStationAETitle") or ""
    told = [titles] if isinstance(titles, str) else list(titles)
    return title if title in told else "\\".join(told)


def _in_progress(
    scan: Scan, image: Dataset, item: Dataset | None, station: Station, started: datetime
) -> Dataset:
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    scheduled = Dataset()
    scheduled.StudyInstanceUID = scan.study_uid
    scheduled.ReferencedStudySequence = []
    scheduled.AccessionNumber = str(image.get("AccessionNumber") or "")
    step = item.ScheduledProcedureStepSequence[0] if item is not None else Dataset()
    scheduled.RequestedProcedureID = str(item.get("RequestedProcedureID") or "") if item is not None else ""
    described = str(item.get("RequestedProcedureDescription") or "") if item is not None else ""
    scheduled.RequestedProcedureDescription = described
    scheduled.ScheduledProcedureStepID = str(step.get("ScheduledProcedureStepID") or "")
    scheduled.ScheduledProcedureStepDescription = str(step.get("ScheduledProcedureStepDescription") or "")
    scheduled.ScheduledProtocolCodeSequence = deepcopy(step.get("ScheduledProtocolCodeSequence") or [])
    ds.ScheduledStepAttributesSequence = [scheduled]
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex"):
        setattr(ds, keyword, image.get(keyword) or "")
    ds.ReferencedPatientSequence = []
    ds.PerformedProcedureStepID = (
        str(step.get("ScheduledProcedureStepID") or "") or f"M{scan.visit.seed:09d}"[:16]
    )
    ds.PerformedStationAETitle = station.ae_title
    ds.PerformedStationName = station.name[:16]
    ds.PerformedLocation = station.room[:16]
    ds.PerformedProcedureStepStartDate = started.strftime("%Y%m%d")
    ds.PerformedProcedureStepStartTime = started.strftime("%H%M%S")
    ds.PerformedProcedureStepStatus = "IN PROGRESS"
    ds.PerformedProcedureStepDescription = described
    ds.PerformedProcedureTypeDescription = ""
    ds.ProcedureCodeSequence = deepcopy(image.get("ProcedureCodeSequence") or [])
    ds.PerformedProcedureStepEndDate = ""
    ds.PerformedProcedureStepEndTime = ""
    ds.Modality = station.modality
    ds.StudyID = str(image.get("StudyID") or "")
    ds.PerformedProtocolCodeSequence = []
    ds.PerformedSeriesSequence = []
    return ds


def _completed(images: list[Dataset], ended: datetime) -> Dataset:
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PerformedProcedureStepStatus = "COMPLETED"
    ds.PerformedProcedureStepEndDate = ended.strftime("%Y%m%d")
    ds.PerformedProcedureStepEndTime = ended.strftime("%H%M%S")
    series: dict[str, Dataset] = {}
    for image in images:
        uid = str(image.SeriesInstanceUID)
        if uid not in series:
            one = series[uid] = Dataset()
            one.PerformingPhysicianName = image.get("PerformingPhysicianName") or ""
            one.ProtocolName = str(image.get("SeriesDescription") or "Standard")
            one.OperatorsName = image.get("OperatorsName") or ""
            one.SeriesInstanceUID = uid
            one.SeriesDescription = str(image.get("SeriesDescription") or "")
            one.RetrieveAETitle = ""
            one.ReferencedImageSequence = []
            one.ReferencedNonImageCompositeSOPInstanceSequence = []
        reference = Dataset()
        reference.ReferencedSOPClassUID = image.SOPClassUID
        reference.ReferencedSOPInstanceUID = image.SOPInstanceUID
        series[uid].ReferencedImageSequence.append(reference)
    ds.PerformedSeriesSequence = list(series.values())
    return ds


def pick_station(visit: Visit, stations: tuple[Station, ...]) -> Station:
    """Where a visit is examined: at its order's scanner, a stranger at one that works without orders."""
    if visit.exam is not None:
        return visit.exam.station
    loose = [s for s in stations if s.modality in ("CR", "DX", "US")]
    return Random(visit.seed).choice(loose)
