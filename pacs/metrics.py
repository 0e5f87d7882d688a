"""What the archive counts, and what waits in it."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from django.db.models import Count, Min, QuerySet, Sum

from common.clock import now
from common.metrics import Waiting, counter, gauge, queue
from pacs.models import Forwarding, Instance, SetAside, Study
from pacs.storage import spool


@gauge("orderly_studies", "Studies in the archive")
def studies() -> float:
    return Study.objects.filter(hidden=False).count()


@counter("orderly_instances", "Objects stored and indexed")
def instances() -> float:
    return Instance.objects.count()


@gauge("orderly_archive_bytes", "Bytes of all stored files")
def archive_bytes() -> float:
    return Study.objects.aggregate(size=Sum("size"))["size"] or 0


@queue("unsettled", "Studies that still grow or were not told upward", late_after=1800)
def unsettled() -> Iterable[Waiting]:
    # A growing study is no backlog: only one that has been quiet for a while should have been settled.
    quiet = Study.objects.filter(settled_at__isnull=True, last_instance_at__lt=now() - timedelta(minutes=5))
    found = quiet.aggregate(count=Count("pk"), oldest=Min("last_instance_at"))
    yield Waiting("studies", found["count"], found["oldest"])


@queue("spool", "Received objects that are not indexed", late_after=60)
def spooled() -> Iterable[Waiting]:
    count, oldest = spool.oldest()
    yield Waiting("files", count, datetime.fromtimestamp(oldest, UTC) if oldest else None)


@queue("routing", "Studies to send on to other nodes", late_after=3600)
def routing() -> Iterable[Waiting]:
    on_their_way = (Forwarding.State.WAITING, Forwarding.State.PARKED)
    yield from _by_destination(Forwarding.objects.filter(state__in=on_their_way, rule__enabled=True))


@queue("routing_held", "Studies to send on once they are linked to their orders", late_after=86_400)
def routing_held() -> Iterable[Waiting]:
    yield from _by_destination(Forwarding.objects.filter(state=Forwarding.State.HELD, rule__enabled=True))


def _by_destination(waiting: QuerySet[Forwarding]) -> Iterable[Waiting]:
    found = waiting.values("rule__destination__title").annotate(count=Count("pk"), oldest=Min("created_at"))
    for one in found.order_by("rule__destination__title"):
        yield Waiting(one["rule__destination__title"], one["count"], one["oldest"])


@queue("set_aside", "Objects set aside for a person", late_after=86_400)
def set_aside() -> Iterable[Waiting]:
    found = SetAside.objects.filter(state=SetAside.State.OPEN).aggregate(
        count=Count("pk"), oldest=Min("received_at")
    )
    yield Waiting("objects", found["count"], found["oldest"])
