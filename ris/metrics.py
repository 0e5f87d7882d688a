"""What the department counts, and what waits for a person."""

from collections.abc import Iterable

from django.db.models import Count, Min

from common.metrics import Labelled, Waiting, gauge, queue
from ris import selectors
from ris.models import (
    ImagingServiceRequest,
    PerformedProcedureStep,
    ReconciliationCase,
    ScheduledProcedureStep,
)


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


@queue("unscheduled", "Steps that wait for a time", late_after=24 * 3600)
def unscheduled() -> Iterable[Waiting]:
    found = selectors.unscheduled_steps().aggregate(count=Count("pk"), oldest=Min("created_at"))
    yield Waiting("steps", found["count"], found["oldest"])


@queue("performed", "Performed steps (MPPS) with a problem, for a clerk", late_after=60)
def performed() -> Iterable[Waiting]:
    troubled = PerformedProcedureStep.objects.exclude(problem="").filter(solved_at__isnull=True)
    found = troubled.aggregate(count=Count("pk"), oldest=Min("updated_at"))
    yield Waiting("steps", found["count"], found["oldest"])


@queue("short_of_images", "Examinations short of images that the scanner has made", late_after=1800)
def short_of_images() -> Iterable[Waiting]:
    short = PerformedProcedureStep.objects.filter(images_missing__gt=0, images_accepted="")
    found = short.aggregate(count=Count("pk"), oldest=Min("images_since"))
    yield Waiting("examinations", found["count"], found["oldest"])


@queue("unread", "Procedures whose images are here and whose report is not", late_after=24 * 3600)
def unread() -> Iterable[Waiting]:
    found = selectors.unread().aggregate(count=Count("pk", distinct=True), oldest=Min("arrived_at"))
    yield Waiting("procedures", found["count"], found["oldest"])
