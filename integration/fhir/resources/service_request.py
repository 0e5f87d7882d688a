"""ServiceRequest (R4): one for each requested procedure; those of one order share accession and group number."""

from collections.abc import Iterable
from typing import Any

from integration.fhir.resources.elements import (
    SNOMED,
    Resource,
    Systems,
    accession,
    coded,
    concept,
    identifier,
    instant,
    person,
    reference,
    study_uid,
    without_empty,
)
from ris.models import ImagingServiceRequest, RequestedProcedure, ScheduledProcedureStep
from ris.models.schedule import StepStatus

# Requested Procedure Priority (0040,1003) → http://hl7.org/fhir/request-priority.
_PRIORITY = {"STAT": "stat", "HIGH": "asap", "MEDIUM": "urgent", "ROUTINE": "routine", "LOW": "routine"}


def build(
    procedure: RequestedProcedure,
    request: ImagingServiceRequest,
    steps: Iterable[ScheduledProcedureStep],
    systems: Systems,
) -> Resource:
    """The request for one procedure."""
    starts = [s.start for s in steps if s.start]
    placer = procedure if procedure.placer_order_number else request
    filler = procedure if procedure.filler_order_number else request
    group = request.placer_group_number
    return without_empty(
        {
            "resourceType": "ServiceRequest",
            "id": str(procedure.id),
            "identifier": [
                i
                for i in (
                    _number(placer.placer_order_number, placer.placer_issuer, "PLAC", systems),
                    _number(filler.filler_order_number, filler.filler_issuer, "FILL", systems),
                    _accession(request, systems),
                    {"type": {"text": "Requested Procedure ID"}, "value": procedure.requested_procedure_id},
                    study_uid(procedure.study_instance_uid),
                )
                if i
            ],
            "requisition": identifier(group, systems.authority(request.placer_issuer), "PGN")
            if group
            else None,
            "status": status(request.status, [s.status for s in steps]),
            "intent": "order",
            "category": [concept([coded(SNOMED, "363679005", "Imaging")])],
            "priority": _PRIORITY.get(procedure.requested_procedure_priority, ""),
            "code": code_of(procedure, systems),
            "subject": reference("Patient", request.patient_id),
            "occurrenceDateTime": instant(min(starts)) if starts else "",
            "authoredOn": instant(request.placed_at) if request.placed_at else "",
            "requester": person(request.requesting_physician, request.requesting_physician_id),
            "reasonCode": _reasons(procedure, systems),
            "note": [
                {"text": text} for text in (_comments(request.imaging_service_request_comments),) if text
            ],
        }
    )


def status(request: str, steps: list[str]) -> str:
    """The status (http://hl7.org/fhir/request-status) of an order and its procedure's steps.

    What the order as a whole says comes first; an active order's procedure is over when its steps are.
    """
    whole = {"CANCELED": "revoked", "DISCONTINUED": "revoked", "HELD": "on-hold", "COMPLETED": "completed"}
    if request in whole:
        return whole[request]
    if steps and all(s == StepStatus.HELD for s in steps):
        return "on-hold"
    if steps and all(
        s in (StepStatus.COMPLETED, StepStatus.CANCELED, StepStatus.DISCONTINUED) for s in steps
    ):
        return "completed" if StepStatus.COMPLETED in steps else "revoked"
    return "active"


def code_of(procedure: RequestedProcedure, systems: Systems) -> Resource:
    """The procedure as a CodeableConcept."""
    text = procedure.requested_procedure_description or procedure.code_meaning
    coding = systems.coding(procedure.code_value, procedure.coding_scheme_designator, procedure.code_meaning)
    return concept([coding] if procedure.code_value else [], text or procedure.code_value)


def _number(value: str, issuer: str, type_code: str, systems: Systems) -> Resource:
    return identifier(value, systems.authority(issuer), type_code, assigner=issuer) if value else {}


def _accession(request: ImagingServiceRequest, systems: Systems) -> Resource:
    if not request.accession_number:
        return {}
    return accession(request.accession_number, request.issuer_of_accession_number, systems)


def _reasons(procedure: RequestedProcedure, systems: Systems) -> list[Resource]:
    said: dict[str, Any] = procedure.reason_code or {}
    value, meaning = str(said.get("code_value", "")), str(said.get("code_meaning", ""))
    coding = [systems.coding(value, str(said.get("coding_scheme_designator", "")), meaning)] if value else []
    reason = concept(coding, procedure.reason_for_the_requested_procedure or meaning)
    return [reason] if reason else []


def _comments(text: str) -> str:
    return text.strip()
