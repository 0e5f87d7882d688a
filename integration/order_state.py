"""The state of an order in the words of HL7 table 0038 (ORC-5), for those who ask for it (ORC-1 SS)."""

from collections.abc import Iterable
from uuid import UUID

from ris.models import ImagingServiceRequest
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
    found: dict[str, str] = {}
    for request in ImagingServiceRequest.objects.filter(pk__in=list(requests)).prefetch_related(
        "procedures__steps"
    ):
        procedures = list(request.procedures.all())
        whole = state_of(s.status for p in procedures for s in p.steps.all())
        for number in (request.placer_order_number, request.filler_order_number, request.accession_number):
            if number:
                found[number] = whole
        for procedure in procedures:
            own = state_of(s.status for s in procedure.steps.all())
            shared = {request.placer_order_number, request.filler_order_number}
            for number in (procedure.placer_order_number, procedure.filler_order_number):
                if number and (number not in shared or len(procedures) == 1):
                    found[number] = own
    return found
