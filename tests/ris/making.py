"""Commands for tests, short to write."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

from common.store import unit_of_work
from common.uids import new_uid
from pacs.models import Series, Study
from ris.commands import (
    Applied,
    ApplyOrders,
    Identifier,
    OrderAction,
    OrderGroup,
    OrderKeys,
    OrderNumber,
    OrderPolicy,
    RegisterPatient,
)
from ris.services import orders, patients

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)


def who(
    number: str = "4711",
    *more: Identifier,
    name: str = "Sommer^Clara",
    birth: str = "19600512",
    **kwargs: Any,
) -> RegisterPatient:
    """A patient with this number at HOSP."""
    values = {
        "patient_name": name,
        "patient_birth_date": birth,
        "patient_sex": "F",
        **kwargs.pop("values", {}),
    }
    return RegisterPatient(
        identifiers=(Identifier(number, "HOSP", type_code="MR"), *more), values=values, **kwargs
    )


def group(
    action: OrderAction = OrderAction.NEW,
    *,
    accession: str = "",
    placer: str = "",
    filler: str = "",
    rp: str = "",
    uid: str = "",
    sps: str = "",
    code: str = "CTHEAD",
    status: str = "",
    detail: bool = True,
    **step: Any,
) -> OrderGroup:
    """One order group: a CT of the head at NOW."""
    keys = OrderKeys(
        accession_number=accession,
        placer=OrderNumber(placer, "EHR" if placer else ""),
        filler=OrderNumber(filler, "RIS" if filler else ""),
        requested_procedure_id=rp,
        study_instance_uid=uid,
        scheduled_procedure_step_id=sps,
    )
    procedure = {"code_value": code, "code_meaning": f"{code} exam"} if detail else {}
    values = {"modality": "CT", "start": NOW, **step} if detail else {}
    return OrderGroup(action, keys, status=status, procedure=procedure, step=values, has_detail=detail)


def place(
    *groups: OrderGroup,
    patient: RegisterPatient | None = None,
    at: datetime = NOW,
    policy: OrderPolicy | None = None,
    cause: str = "hl7:1",
) -> Applied:
    """Apply an order message in a transaction of its own."""
    with unit_of_work(cause) as unit:
        return orders.apply(
            ApplyOrders(
                patient=patient or who(authoritative=False),
                groups=tuple(groups),
                facts_at=at,
                source="his",
                policy=policy or OrderPolicy(),
            ),
            unit,
        )


def register(command: RegisterPatient, cause: str = "hl7:1") -> Applied:
    """Register a patient in a transaction of its own."""
    with unit_of_work(cause) as unit:
        return patients.register(command, unit)


def make_study(
    *,
    uid: str = "",
    accession: str = "",
    patient_id: str = "4711",
    issuer: str = "HOSP",
    name: str = "SOMMER^CLARA",
    birth: str = "19600512",
    modalities: Sequence[str] = ("CT",),
    day: date | None = None,
    sps: str = "",
    rp: str = "",
) -> Study:
    """A study as the index would have written it."""
    at = NOW + timedelta(minutes=30)
    study = Study.objects.create(
        study_instance_uid=uid or new_uid(),
        accession_number=accession,
        patient_id=patient_id,
        issuer_of_patient_id=issuer,
        patient_name=name,
        patient_birth_date=birth,
        patient_sex="F",
        modalities_in_study=list(modalities),
        study_date=day or NOW.date(),
        study_time=at.time(),
        received_at=at,
        last_instance_at=at,
        number_of_study_related_series=1,
        number_of_study_related_instances=1,
        calling_ae="CT01",
    )
    Series.objects.create(
        study=study,
        series_instance_uid=new_uid(),
        modality=modalities[0],
        scheduled_procedure_step_id=sps,
        requested_procedure_id=rp,
        received_at=at,
    )
    return study
