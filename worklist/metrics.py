"""What the worklist counts, and what of it waits for a person."""

from collections.abc import Iterable

from django.db.models import Count, Max, Min

from common.clock import now
from common.metrics import Labelled, Waiting, gauge, queue
from ris.transitions import ON_WORKLIST
from worklist.models import QueryLog, WorklistItem


@gauge("orderly_worklist_items", "Steps that scanners are told of")
def items() -> float:
    return float(WorklistItem.objects.filter(waiting=True).count())


@gauge("orderly_worklist_query_age_seconds", "Since a scanner asked last", labels=("ae",))
def query_age() -> Iterable[Labelled]:
    found = QueryLog.objects.order_by().values_list("ae_title").annotate(last=Max("last_at"))
    return [((ae_title,), (now() - last).total_seconds()) for ae_title, last in found]


@queue("withheld", "Scheduled steps that no scanner can be told of", late_after=3600)
def withheld() -> Iterable[Waiting]:
    # One without a start waits in the queue `unscheduled` already.
    found = (
        WorklistItem.objects.filter(status__in=ON_WORKLIST, start__isnull=False)
        .exclude(withheld="")
        .aggregate(count=Count("pk"), oldest=Min("updated_at"))
    )
    yield Waiting("steps", found["count"], found["oldest"])
