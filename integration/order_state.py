"""What we know of orders, in the words of their answers: ORC-5 (table 0038) for ORC-1 SS, and the fields of an IPC."""

from collections.abc import Iterable, Iterator
from uuid import UUID

from integration.hl7v2.composing import Field
from ris.models import ImagingServiceRequest, RequestedProcedure
from ris.models.schedule import StepStatus
from ris.transitions import TERMINAL

_BEGUN = frozenset({StepStatus.STARTED, StepStatus.DEPARTED, StepStatus.COMPLETED})


def state_of(steps: Iterable[str]) -> str:
    """ORC-5 of steps with these statuses: IP with the first, CM with the last; HD, CA, DC when all of them are."""
    found = set(steps)
    if found <= TERMINAL and found:
        if StepStatus.COMPLETED in found:
            return "CM"
        return "CA" if found == {StepStatus.CANCELED} else "DC"
    if found & _BEGUN:
        return "IP"
    return "HD" if found - TERMINAL == {StepStatus.HELD} else "SC"


def states_of(requests: Iterable[UUID]) -> dict[str, str]:
    """The states of orders by every number they are known by; a procedure's own number means its steps alone."""
    return {
        number: state_of(step.status for procedure in procedures for step in procedure.steps.all())
        for number, _, procedures in _by_number(requests)
    }


def imaging_of(requests: Iterable[UUID]) -> dict[str, dict[int, Field]]:
    """What we know for the IPC of an order, by every number it is known by: IPC-1 to IPC-5 by number of the field.

    Fields that several procedures or steps of the order fill differently are left out.
    """
    return {number: _imaging(request, found) for number, request, found in _by_number(requests)}


def _imaging(request: ImagingServiceRequest, procedures: list[RequestedProcedure]) -> dict[int, Field]:
    known: dict[int, Field] = {1: (request.accession_number, request.issuer_of_accession_number)}
    if len(procedures) == 1:
        procedure = procedures[0]
        known |= {2: procedure.requested_procedure_id, 3: procedure.study_instance_uid}
        steps = list(procedure.steps.all())
        if len(steps) == 1:
            known |= {4: steps[0].scheduled_procedure_step_id, 5: steps[0].modality}
    return known


def _by_number(
    requests: Iterable[UUID],
) -> Iterator[tuple[str, ImagingServiceRequest, list[RequestedProcedure]]]:
    """Each number of these orders, with the procedures that it means: all of the order, or the one whose own it is."""
    for request in ImagingServiceRequest.objects.filter(pk__in=list(requests)).prefetch_related(
        "procedures__steps"
    ):
        procedures = list(request.procedures.all())
        for number in (request.placer_order_number, request.filler_order_number, request.accession_number):
            if number:
                yield number, request, procedures
        shared = {request.placer_order_number, request.filler_order_number}
        for procedure in procedures:
            for number in (procedure.placer_order_number, procedure.filler_order_number):
                if number and (number not in shared or len(procedures) == 1):
                    yield number, request, [procedure]
