"""Makers of a department's everyday things for tests; people and work through services, images as the index stores."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth.models import Group, User

from common.clock import now
from common.store import unit_of_work
from common.uids import new_uid
from integration import inbox
from integration.models import Destination, Source
from pacs.events import StudySettled
from pacs.matching import name_keys
from pacs.models import Instance, Series, Study
from ris.commands import (
    ApplyOrders,
    Identifier,
    OrderAction,
    OrderGroup,
    OrderKeys,
    OrderPolicy,
    RegisterPatient,
)
from ris.models import (
    ImagingServiceRequest,
    Patient,
    Practitioner,
    ProcedureDefinition,
    RequestedProcedure,
    Station,
)
from ris.services import catalogue, orders, patients, reports
from ris.services import steps as step_service

PASSWORD = "a long enough pass phrase"  # of accounts that live as long as a test


def user(name: str, *roles: str, **values: Any) -> User:
    """An account with these roles."""
    made = User.objects.create_user(name, password=PASSWORD, **values)
    made.groups.set(Group.objects.filter(name__in=roles))
    return made


def practitioner(name: str, number: str, account: User | None = None) -> Practitioner:
    """A physician, perhaps with an account."""
    return Practitioner.objects.create(person_name=name, identifier=number, user=account)


def department() -> None:
    """Two scanners and a small catalogue."""
    for name, title, modality, room in (
        ("CT 1", "CT01", "CT", "Room 2"),
        ("MR 1", "MR01", "MR", "Room 4"),
        ("X-ray 1", "DX01", "DX", "Room 1"),
    ):
        Station.objects.create(name=name, ae_title=title, modality=modality, room=room)
    for code, name, modality, minutes in (
        ("CTHEAD", "CT of the head", "CT", 15),
        ("CTCHEST", "CT of the chest with contrast", "CT", 25),
        ("MRKNEE", "MR of the left knee", "MR", 30),
        ("MRHEAD", "MR of the head", "MR", 35),
        ("DXCHEST", "Chest X-ray, two views", "DX", 10),
    ):
        ProcedureDefinition.objects.create(code=code, name=name, modality=modality, minutes=minutes)
    catalogue.forget()


def source(name: str = "HIS", **values: Any) -> Source:
    """A system that may send us messages."""
    from integration import sources

    made = Source.objects.create(name=name, **{"application": "HIS", **values})
    sources.forget()
    return made


def destination(name: str = "HIS", **values: Any) -> Destination:
    """A system that gets reports and order status."""
    given = {"host": "127.0.0.1", "port": 9, "messages": ["ORU", "ORM"], **values}
    return Destination.objects.create(name=name, **given)


def patient(number: str, name: str, birth: str = "", sex: str = "", issuer: str = "HOSP") -> Patient:
    """A registered patient."""
    command = RegisterPatient(
        identifiers=(Identifier(number, issuer, type_code="MR"),),
        values={"patient_name": name, "patient_birth_date": birth, "patient_sex": sex},
    )
    with unit_of_work("system:tests") as unit:
        applied = patients.register(command, unit)
    return Patient.objects.get(pk=applied.patient_ids[0])


def order(
    whom: Patient,
    code: str = "CTHEAD",
    *,
    accession: str = "",
    start: datetime | None = None,
    priority: str = "ROUTINE",
    physician: Practitioner | None = None,
    reason: str = "",
    station: str = "",
) -> ImagingServiceRequest:
    """An order of one procedure; without a start it waits to be scheduled."""
    listed = ProcedureDefinition.objects.filter(code=code).first()
    name = listed.name if listed else code
    step: dict[str, Any] = {"modality": listed.modality if listed else "CT"}
    if start:
        step |= {"start": start, "start_has_time": True}
    if station:
        step["scheduled_station_names"] = [station]
    by = {}
    if physician:
        by = {
            "requesting_physician": physician.person_name,
            "requesting_physician_id": physician.identifier,
            "referring_physician_name": physician.person_name,
        }
    group = OrderGroup(
        action=OrderAction.NEW,
        keys=OrderKeys(accession_number=accession),
        request=by,
        procedure={
            "code_value": code,
            "code_meaning": name,
            "requested_procedure_description": name,
            "requested_procedure_priority": priority,
            "reason_for_the_requested_procedure": reason,
        },
        step=step,
    )
    identifiers = tuple(
        Identifier(i.value, i.authority.namespace) for i in whom.identifiers.select_related("authority")
    )
    command = ApplyOrders(
        patient=RegisterPatient(identifiers=identifiers, authoritative=False),
        groups=(group,),
        source="HIS",
        policy=OrderPolicy(accession_number="make"),
    )
    with unit_of_work("system:tests") as unit:
        applied = orders.apply(command, unit)
    return ImagingServiceRequest.objects.get(pk=applied.request_ids[0])


def procedure(request: ImagingServiceRequest) -> RequestedProcedure:
    """The first procedure of an order."""
    return request.procedures.order_by("requested_procedure_id")[0]


@dataclass
class Images:
    """What a scanner wrote into a study; by default exactly what the order says."""

    description: str = ""
    series: Sequence[tuple[str, int]] = (("Localizer", 3), ("Axial", 96))
    station: str = "CT01"
    received_at: datetime | None = None
    values: dict[str, Any] = field(default_factory=dict)


def study(request: ImagingServiceRequest | None = None, images: Images | None = None) -> Study:
    """A study in the index (without files), settled and told upward: it is matched, or opens a case."""
    images = images or Images()
    at = images.received_at or now()
    values: dict[str, Any] = {"study_instance_uid": new_uid(), "modalities_in_study": ["CT"]}
    if request is not None:
        asked = procedure(request)
        first = request.patient.identifiers.order_by("position")[0]
        values = {
            "study_instance_uid": asked.study_instance_uid,
            "accession_number": request.accession_number,
            "patient_id": first.value,
            "issuer_of_patient_id": first.authority.namespace,
            "patient_name": request.patient.patient_name,
            "patient_birth_date": request.patient.patient_birth_date,
            "patient_sex": request.patient.patient_sex,
            "modalities_in_study": [asked.steps.all()[0].modality],
            "study_description": str(asked),
        }
    values |= images.values
    made = Study(
        received_at=at,
        last_instance_at=at + timedelta(seconds=40),
        study_date=at.date(),
        study_time=at.time().replace(microsecond=0),
        calling_ae=images.station,
        number_of_study_related_series=len(images.series),
        number_of_study_related_instances=sum(count for _, count in images.series),
        size=sum(count for _, count in images.series) * 525_312,
        **values,
    )
    made.patient_name_search = name_keys(made.patient_name)[0] if made.patient_name else ""
    made.save()
    for number, (description, count) in enumerate(images.series, 1):
        series = Series.objects.create(
            study=made,
            series_instance_uid=new_uid(),
            modality=made.modalities_in_study[0],
            series_number=number,
            series_description=description,
            number_of_series_related_instances=count,
            received_at=at,
        )
        _instance(series, at)
    made.settled_at = at + timedelta(minutes=1)
    made.save()
    with unit_of_work(f"study:{made.pk}") as unit:
        unit.publish(StudySettled(study=made, grown=False))
    return Study.objects.get(pk=made.pk)


def _instance(series: Series, at: datetime) -> Instance:
    return Instance.objects.create(
        series=series,
        sop_instance_uid=new_uid(),
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        instance_number=1,
        path=f"{series.pk}/1",
        size=525_312,
        data_set_offset=0,
        sha256="0" * 64,
        received_at=at,
    )


def report(asked: RequestedProcedure, by: User, findings: str, impression: str, *, sign: bool = True) -> None:
    """A report of a procedure: a draft, or signed as final."""
    with unit_of_work(f"user:{by.pk}") as unit:
        draft = reports.open_draft(asked.pk, by, unit)
        unit.flush()
        reports.save_draft(draft.pk, 0, findings, impression, by, unit)
        unit.flush()
        if sign:
            reports.sign(draft.pk, by, unit)


def move(request: ImagingServiceRequest, status: str) -> None:
    """Move every step of an order as a clerk does."""
    for step in procedure(request).steps.all():
        with unit_of_work("system:tests") as unit:
            step_service.move(step.pk, status, "clerk", unit)


def message(*segments: str) -> inbox.Reply:
    """A message taken in as the MLLP door does."""
    return inbox.receive("\r".join(segments).encode() + b"\r", inbox.Peer("127.0.0.1", 40123))
