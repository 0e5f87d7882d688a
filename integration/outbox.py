"""What others are told: rows queued in the same transaction as the fact, with facts and control id frozen.

Handlers of the wiring page (`event, unit`). HL7 items carry everything their message will say, as it was at the
fact. FHIR items only name a resource: the mirror shows what is true when it is sent, so that an older state can
never overwrite a newer one.

Order: within a lane, items are sent by id. Ids are taken when the unit is flushed, by writers who hold the
patient's lane until they commit (ris/services/lanes.py), hence in the order of their commits.
"""

import os
import time
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

from django.db.models import Q
from django.db.models.signals import post_delete, post_save

from common.store import Unit
from integration.destinations import setting
from integration.hl7v2.demographics import event_of
from integration.models import Destination, MirrorState, OutboxItem
from pacs.events import StudyOverlaid
from pacs.models import Study
from ris.events import (
    OrderChanged,
    PatientChanged,
    PatientsMerged,
    ReportSigned,
    StepMoved,
    StudyGrew,
    StudyMatched,
)
from ris.models import (
    ImagingServiceRequest,
    Patient,
    PatientIdentifier,
    Report,
    ReportVersion,
    RequestedProcedure,
    ScheduledProcedureStep,
    StudyMatch,
    Visit,
)
from ris.models.schedule import StepStatus
from ris.services import authorities
from ris.transitions import TERMINAL

# ------------------------------------------------------------------------------------------------ results


def on_report_signed(event: ReportSigned, unit: Unit) -> None:
    """The report to each destination that takes ORU or MDM; report, study and order to each FHIR server."""
    destinations = subscribed()
    wanted = [(d, kind) for d in destinations for kind in ("ORU", "MDM") if takes(d, kind)]
    if wanted:
        facts = _order_facts(event.request, event.procedure, event.patient, event.identifiers, event.visit)
        facts |= _report_facts(event)
    for destination, kind in wanted:
        queue(
            unit,
            destination,
            kind=kind,
            subject=f"report_version:{event.version.id}",
            lane=f"order:{event.request.id}",
            patient_id=event.patient.id,
            facts=facts,
        )
    for destination in destinations:
        if takes(destination, "FHIR"):
            _queue_mirror(unit, destination, f"DiagnosticReport/{event.report.id}", event.patient.id)


def _report_facts(event: ReportSigned) -> dict[str, Any]:
    steps = _steps(event.procedure.id)
    modalities = [m for study in event.studies for m in study.modalities_in_study]
    imaging = [m for m in modalities if m not in ("SR", "PR", "KO", "SEG", "DOC")]
    return {
        "report": _version(event.version),
        "previous": [_version(v) for v in sorted(event.previous, key=lambda v: v.number)],
        "studies": [study.study_instance_uid for study in event.studies],
        "study_instance_uids": [study.study_instance_uid for study in event.studies]
        or [event.procedure.study_instance_uid],
        "started": next((started for study in event.studies if (started := started_of(study))), ""),
        "modality": next(iter(imaging), "") or next((s.modality for s in steps if s.modality), ""),
        "step_id": steps[0].scheduled_procedure_step_id if steps else "",
        "companions": [_procedure(p) for p in _without_report(event)],
    }


def _without_report(event: ReportSigned) -> list[RequestedProcedure]:
    """The other procedures of the order that nobody reports by themselves."""
    others = RequestedProcedure.objects.filter(request_id=event.request.id).exclude(pk=event.procedure.id)
    return list(others.filter(report=None).order_by("requested_procedure_id", "id"))


def _version(version: ReportVersion) -> dict[str, Any]:
    return {
        "id": str(version.id),
        "number": version.number,
        "status": str(version.status),
        "findings": version.findings,
        "impression": version.impression,
        "addendum": version.addendum,
        "signer_name": version.signer_name,
        "signer_id": version.signer_id,
        "signed_at": version.signed_at.isoformat(),
    }


def started_of(study: Study) -> str:
    """When a study began, ISO 8601: with its own offset if it has one, else without; a date alone without a time."""
    if study.study_date is None:
        return ""
    if study.study_time is None:
        return study.study_date.isoformat()
    moment = datetime.combine(study.study_date, study.study_time)
    offset = study.timezone_offset_from_utc.strip()
    if len(offset) == 5 and offset[0] in "+-" and offset[1:].isdigit() and int(offset[1:3]) <= 14:
        distance = timedelta(hours=int(offset[1:3]), minutes=int(offset[3:5]))
        moment = moment.replace(tzinfo=timezone(-distance if offset[0] == "-" else distance))
    return moment.isoformat()


# -------------------------------------------------------------------------------------------- order status


def on_step_moved(event: StepMoved, unit: Unit) -> None:
    """The order's status to each that takes ORM, OMG or OMI, unless the HIS itself asked for the change."""
    if event.actor != "order":
        code = _order_status(event, unit)
        for destination in subscribed() if code else ():
            for kind in ("ORM", "OMG", "OMI"):
                if takes(destination, kind):
                    _queue_status(event, unit, destination, kind, code)
    if event.before:
        _mirror_again(unit, event.patient.id, [f"ServiceRequest/{event.procedure.id}"])


def _queue_status(event: StepMoved, unit: Unit, destination: Destination, kind: str, code: str) -> None:
    if setting(destination, "order_status").get(code, code) == "":
        return
    subject = f"procedure:{event.procedure.id}"
    for waiting in unit.pending(OutboxItem):
        same = (waiting.destination_id, waiting.kind, waiting.subject) == (destination.id, kind, subject)
        if same and waiting.facts.get("status") == code:
            return
    identifiers = _current_identifiers(event.patient.id)
    visit = Visit.objects.filter(pk=event.request.visit_id).first() if event.request.visit_id else None
    queue(
        unit,
        destination,
        kind=kind,
        subject=subject,
        lane=f"order:{event.request.id}",
        patient_id=event.patient.id,
        facts=_order_facts(event.request, event.procedure, event.patient, identifiers, visit)
        | {
            "status": code,
            "step_id": event.step.scheduled_procedure_step_id,
            "modality": event.step.modality,
        },
    )


def _order_status(event: StepMoved, unit: Unit) -> str:
    """ORC-5 (table 0038) of the procedure after this move; empty when nothing new can be said of it.

    A procedure is in progress with its first step and completed with its last.
    """
    status = event.step.status
    if status == StepStatus.STARTED:
        begun = {StepStatus.STARTED, StepStatus.DEPARTED, StepStatus.COMPLETED}
        before = [s for s in _steps(event.procedure.id) if s.id != event.step.id]
        return "" if any(s.status in begun for s in before) else "IP"
    if status in TERMINAL:
        ends = {status, *(s.status for s in _steps(event.procedure.id, unit) if s.id != event.step.id)}
        if not ends <= TERMINAL:
            return ""
        if StepStatus.COMPLETED in ends:
            return "CM"
        return "CA" if ends == {StepStatus.CANCELED} else "DC"
    if status == StepStatus.HELD:
        return "HD"
    back = event.before in TERMINAL or event.before in (StepStatus.HELD, StepStatus.STARTED)
    return "SC" if status == StepStatus.SCHEDULED and back else ""


def _steps(procedure_id: UUID, unit: Unit | None = None) -> list[ScheduledProcedureStep]:
    """The procedure's steps as they will be after the unit's flush."""
    steps = {s.id: s for s in ScheduledProcedureStep.objects.filter(procedure_id=procedure_id)}
    for step in unit.pending(ScheduledProcedureStep) if unit else ():
        if step.procedure_id == procedure_id:
            steps[step.id] = step
    return sorted(steps.values(), key=lambda s: s.id)


def _current_identifiers(patient_id: UUID) -> list[PatientIdentifier]:
    current = PatientIdentifier.Status.CURRENT
    return list(PatientIdentifier.objects.filter(patient_id=patient_id, status=current))


# ----------------------------------------------------------------------------------------------- patients


def _queue_adt(
    unit: Unit,
    happened: str,
    patient: Patient,
    identifiers: Iterable[PatientIdentifier],
    visit: Visit | None = None,
    **more: Any,
) -> None:
    """ADT to each destination that wants to know; a change says nothing new beside a merge of the same unit."""
    if not _listens("adt"):
        return
    subject = f"patient:{patient.id}"
    for destination in subscribed():
        if not takes(destination, "ADT") or not event_of(destination, happened):
            continue
        if setting(destination, "adt_from") == "people" and unit.cause.startswith("hl7:"):
            continue
        if happened == "changed" and any(
            (waiting.destination_id, waiting.kind, waiting.subject) == (destination.id, "ADT", subject)
            for waiting in unit.pending(OutboxItem)
        ):
            continue
        queue(
            unit,
            destination,
            kind="ADT",
            subject=subject,
            lane=f"patient:{patient.id}",
            patient_id=patient.id,
            facts={
                "happened": happened,
                "patient": _patient(patient, identifiers),
                "visit": _visit(visit),
                **more,
            },
        )


def _tell_merge(event: PatientsMerged, unit: Unit) -> None:
    """A40, behind everything that waits about either patient where a destination keeps the order of patients."""
    ours, theirs = f"patient:{event.survivor.id}", f"patient:{event.retired.id}"
    OutboxItem.objects.filter(
        lane=theirs, state=OutboxItem.State.QUEUED, destination__kind=Destination.Kind.HL7
    ).update(lane=ours)
    retired = [i for i in unit.pending(PatientIdentifier) if i.patient_id == event.retired.id]
    _queue_adt(
        unit,
        "merged",
        event.survivor,
        _current_identifiers(event.survivor.id),
        retired=_patient(event.retired, retired or _current_identifiers(event.retired.id)),
    )


# ---------------------------------------------------------------------------------------- the FHIR mirror


def on_study_matched(event: StudyMatched, unit: Unit) -> None:
    """The study to each FHIR server; an undone match corrects what they were told."""
    resource = f"ImagingStudy/{event.study.id}"
    if event.match.undone_at is not None:
        _mirror_again(unit, event.patient.id, [resource, *_reports_of(event.procedure.id)])
        return
    for destination in subscribed():
        if takes(destination, "FHIR"):
            _queue_mirror(unit, destination, resource, event.patient.id)
            for report in _reports_of(event.procedure.id):
                _queue_mirror(unit, destination, report, event.patient.id)


def on_study_grew(event: StudyGrew, unit: Unit) -> None:
    """The study has more objects: tell the FHIR servers again."""
    if event.match is None or not _listens("fhir"):
        return
    patient_id = _patient_of_procedure(event.match.procedure_id)
    for destination in subscribed():
        if takes(destination, "FHIR"):
            _queue_mirror(unit, destination, f"ImagingStudy/{event.study.id}", patient_id)


def on_study_overlaid(event: StudyOverlaid, unit: Unit) -> None:
    """What we answer about the study has changed."""
    if not _listens("fhir"):
        return
    match = StudyMatch.objects.filter(study_id=event.study.id, undone_at=None).first()
    if match is not None:
        _mirror_again(unit, _patient_of_procedure(match.procedure_id), [f"ImagingStudy/{event.study.id}"])


def on_order_changed(event: OrderChanged, unit: Unit) -> None:
    """What FHIR servers were told of the order is told again; a new order is told with its study."""
    if not event.created:
        _mirror_again(unit, event.patient.id, [f"ServiceRequest/{p.id}" for p in event.procedures])


def on_patient_changed(event: PatientChanged, unit: Unit) -> None:
    """ADT to those who want it; what FHIR servers were told of the patient is told again."""
    happened = "created" if event.created else "changed"
    _queue_adt(unit, happened, event.patient, event.identifiers, event.visit)
    if not event.created:
        _mirror_again(unit, event.patient.id, [f"Patient/{event.patient.id}"])


def on_patients_merged(event: PatientsMerged, unit: Unit) -> None:
    """ADT of a merge; both patients, and everything that changed its owner, to the FHIR servers that know them.

    HL7 has no message for a merge undone: the change of the retired patient that follows registers it again. A
    move is told by the changes of both patients.
    """
    if not event.undone and not event.moves:
        _tell_merge(event, unit)
    if not _listens("fhir"):
        return
    requests = event.moved.get("imagingservicerequest", [])
    procedures = RequestedProcedure.objects.filter(request_id__in=requests)
    reports = Report.objects.filter(procedure__in=procedures)
    matches = StudyMatch.objects.filter(procedure__in=procedures, undone_at=None)
    resources = [f"Patient/{event.survivor.id}", f"Patient/{event.retired.id}"]
    resources += [f"ServiceRequest/{pk}" for pk in procedures.values_list("pk", flat=True)]
    resources += [f"ImagingStudy/{pk}" for pk in matches.values_list("study_id", flat=True)]
    resources += [f"DiagnosticReport/{pk}" for pk in reports.values_list("pk", flat=True)]
    _mirror_again(unit, event.survivor.id, resources, also_waiting_for=event.retired.id)


def _mirror_again(
    unit: Unit, patient_id: UUID, resources: Iterable[str], also_waiting_for: UUID | None = None
) -> None:
    """Queue the resources for those servers that were told of them, or are about to be."""
    resources = list(resources)
    if not resources or not _listens("fhir"):
        return
    known = set(MirrorState.objects.filter(resource__in=resources).values_list("destination_id", "resource"))
    about = (
        Q(patient_id=patient_id) | Q(patient_id=also_waiting_for)
        if also_waiting_for
        else Q(patient_id=patient_id)
    )
    waiting = set(
        OutboxItem.objects.filter(about, state=OutboxItem.State.QUEUED, kind__startswith="FHIR:").values_list(
            "destination_id", flat=True
        )
    )
    for destination in subscribed() if known or waiting else ():
        for resource in resources if takes(destination, "FHIR") else ():
            if destination.id in waiting or (destination.id, resource) in known:
                _queue_mirror(unit, destination, resource, patient_id)


def _queue_mirror(unit: Unit, destination: Destination, resource: str, patient_id: UUID) -> None:
    """One item for a resource, in the lane of its patient; a second one of the same unit says nothing new."""
    for waiting in unit.pending(OutboxItem):
        if waiting.destination_id == destination.id and waiting.subject == resource:
            return
    queue(
        unit,
        destination,
        kind="FHIR:" + resource.partition("/")[0],
        subject=resource,
        lane=f"patient:{patient_id}",
        patient_id=patient_id,
        facts={},
    )


def _reports_of(procedure_id: UUID) -> list[str]:
    """References of the procedure's report, if a version of it was signed."""
    signed = Report.objects.filter(procedure_id=procedure_id, versions__isnull=False).distinct()
    return [f"DiagnosticReport/{pk}" for pk in signed.values_list("pk", flat=True)]


def _patient_of_procedure(procedure_id: UUID) -> UUID:
    return RequestedProcedure.objects.values_list("request__patient_id", flat=True).get(pk=procedure_id)


# --------------------------------------------------------------------------------------------- the queue


def queue(
    unit: Unit,
    destination: Destination,
    *,
    kind: str,
    subject: str,
    lane: str,
    patient_id: UUID | None,
    facts: Mapping[str, Any],
) -> OutboxItem:
    """Add one item to the unit, and ring for the worker after COMMIT."""
    chosen = setting(destination, "lane")
    if chosen == "destination":
        lane = "all"
    elif chosen == "patient" and patient_id:
        lane = f"patient:{patient_id}"
    item = OutboxItem(
        destination=destination,
        lane=lane,
        kind=kind,
        subject=subject,
        patient_id=patient_id,
        facts={"at": unit.at.isoformat(), **facts},
        control_id=new_control_id(),
        due_at=unit.at,
        created_at=unit.at,
        cause=unit.cause,
    )
    unit.save(item)
    unit.ring(doorbell(destination.id))
    return item


def subscribed() -> list[Destination]:
    """Every destination that is switched on. Few rows; read each time, for one may have come just now."""
    return list(Destination.objects.filter(enabled=True))


def takes(destination: Destination, kind: str) -> bool:
    """Whether the destination wants this kind: ORU, MDM, ORM, OMG, OMI, ADT over HL7; FHIR for a FHIR server."""
    if kind == "FHIR":
        return destination.kind == Destination.Kind.FHIR
    return destination.kind == Destination.Kind.HL7 and kind in destination.messages


_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def new_control_id() -> str:
    """A new MSH-10 of 20 characters, the standard's limit: 48 bits of Unix milliseconds, 52 random bits."""
    number = (time.time_ns() // 1_000_000) << 52 | int.from_bytes(os.urandom(7), "big") >> 4
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(95, -1, -5))


_bells: dict[int, Any] = {}


def doorbell(destination_id: int) -> Any:
    """The nudge for a destination: the same object each time, so that a unit rings once."""
    if destination_id not in _bells:

        def ring() -> None:
            from integration import tasks

            tasks.ring(destination_id)

        _bells[destination_id] = ring
    return _bells[destination_id]


# ------------------------------------------------------------------------------------------------- facts


def _order_facts(
    request: ImagingServiceRequest,
    procedure: RequestedProcedure,
    patient: Patient,
    identifiers: Iterable[PatientIdentifier],
    visit: Visit | None,
) -> dict[str, Any]:
    """What every message about an order says, as plain values."""
    placer = procedure if procedure.placer_order_number else request
    filler = procedure if procedure.filler_order_number else request
    return {
        "patient": _patient(patient, identifiers),
        "visit": _visit(visit),
        "order": {
            "placer": placer.placer_order_number,
            "placer_issuer": placer.placer_issuer,
            "filler": filler.filler_order_number,
            "filler_issuer": filler.filler_issuer,
            "accession": request.accession_number,
            "accession_issuer": request.issuer_of_accession_number,
            "requested_by": request.requesting_physician,
            "requested_by_id": request.requesting_physician_id,
            "referring": request.referring_physician_name,
            "referring_id": request.referring_physician_id,
        },
        "procedure": _procedure(procedure),
    }


def _procedure(procedure: RequestedProcedure) -> dict[str, str]:
    return {
        "requested_procedure_id": procedure.requested_procedure_id,
        "study_instance_uid": procedure.study_instance_uid,
        "code_value": procedure.code_value,
        "scheme": procedure.coding_scheme_designator,
        "meaning": procedure.code_meaning,
        "description": procedure.requested_procedure_description,
        "reason": procedure.reason_for_the_requested_procedure,
    }


def _patient(patient: Patient, identifiers: Iterable[PatientIdentifier]) -> dict[str, Any]:
    return {
        "name": patient.patient_name,
        "birth_date": patient.patient_birth_date,
        "sex": patient.patient_sex,
        "identifiers": [_identifier(i) for i in sorted(identifiers, key=lambda i: (i.position, i.id))],
    }


def _visit(visit: Visit | None) -> dict[str, str] | None:
    if visit is None:
        return None
    return {
        "admission_id": visit.admission_id,
        "issuer": visit.issuer_of_admission_id,
        "patient_class": visit.patient_class,
        "location": visit.current_patient_location,
    }


def _identifier(identifier: PatientIdentifier) -> dict[str, str]:
    loaded = identifier._state.fields_cache.get("authority")
    authority = loaded or authorities.by_id(identifier.authority_id)
    return {
        "value": identifier.value,
        "namespace": authority.namespace if authority else "",
        "universal_id": authority.universal_id if authority else "",
        "universal_id_type": authority.universal_id_type if authority else "",
        "type_code": identifier.type_code,
    }


# ------------------------------------------------------------------------------------ does anybody listen?

# Orders and patients change by the thousand; where nobody is told, that must cost nothing. These seconds cannot
# lose a change for a FHIR server, which has been told of nothing yet when it was just added; ADT begins with them.
_REMEMBERED_SECONDS = 2.0
_remembered: tuple[float, frozenset[str]] = (0.0, frozenset())


def _listens(who: str) -> bool:
    """Whether a destination for `fhir` or `adt` is switched on, as of the last two seconds."""
    global _remembered
    at, found = _remembered
    if time.monotonic() - at > _REMEMBERED_SECONDS or at == 0.0:
        found = frozenset(
            word
            for destination in subscribed()
            for kind, word in (("FHIR", "fhir"), ("ADT", "adt"))
            if takes(destination, kind)
        )
        _remembered = (time.monotonic(), found)
    return who in found


def _forget(**_: Any) -> None:
    global _remembered
    _remembered = (0.0, frozenset())


post_save.connect(_forget, sender=Destination, dispatch_uid="outbox-forget-saved")
post_delete.connect(_forget, sender=Destination, dispatch_uid="outbox-forget-deleted")
