"""What the department counts, and what waits for a person."""

from collections.abc import Iterable

from django.db.models import Count, Min

from common.metrics import Labelled, Waiting, gauge, queue
from ris.models import ImagingServiceRequest, ReconciliationCase, ScheduledProcedureStep


@gauge("orderly_orders", "Orders by status", labels=("status",))
def orders() -> Iterable[Labelled]:
    found = ImagingServiceRequest.objects.order_by().values_list("status").annotate(n=Count("pk"))
    return [((status,), n) for status, n in found]


@gauge("orderly_steps", "Scheduled procedure steps by status", labels=("status",))
def steps() -> Iterable[Labelled]:
    found = ScheduledProcedureStep.objects.order_by().values_list("status").annotate(n=Count("pk"))
    return [((status,), n) for status, n in found]


@queue("unmatched", "Studies without a sure match, for a clerk", late_after=3600)
def unmatched() -> Iterable[Waiting]:
    cases = ReconciliationCase.objects.filter(state=ReconciliationCase.State.OPEN)
    found = cases.aggregate(count=Count("pk"), oldest=Min("opened_at"))
    yield Waiting("studies", found["count"], found["oldest"])
