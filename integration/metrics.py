"""What the doors count, and what waits to be applied or sent."""

from collections.abc import Iterable

from django.db.models import Count, Min

from common.metrics import Labelled, Waiting, gauge, queue
from integration import search
from integration.models import Message, OutboxItem


@gauge("orderly_messages", "Messages that came in, by state", labels=("state",))
def messages() -> Iterable[Labelled]:
    found = Message.objects.order_by().values_list("state").annotate(n=Count("pk"))
    return [((state,), n) for state, n in found]


@gauge("orderly_outbox", "Messages to others, by destination and state", labels=("destination", "state"))
def outbox_items() -> Iterable[Labelled]:
    found = OutboxItem.objects.order_by().values_list("destination__name", "state").annotate(n=Count("pk"))
    return [((name, state), n) for name, state, n in found]


@gauge("orderly_messages_unindexed", "Messages whose words cannot be searched for yet")
def unindexed() -> float:
    return search.waiting()


@queue("inbox", "Messages that are not applied", late_after=900)
def inbox() -> Iterable[Waiting]:
    unsolved = Message.objects.filter(state__in=Message.OPEN_STATES, solved_at__isnull=True)
    found = unsolved.order_by().values("state").annotate(count=Count("pk"), oldest=Min("received_at"))
    return [Waiting(one["state"], one["count"], one["oldest"]) for one in found]


@queue("outbox", "Messages that are not delivered", late_after=900)
def outbox() -> Iterable[Waiting]:
    unsent = OutboxItem.objects.filter(state__in=(OutboxItem.State.QUEUED, OutboxItem.State.PARKED))
    found = (
        unsent.order_by().values("destination__name").annotate(count=Count("pk"), oldest=Min("created_at"))
    )
    return [Waiting(one["destination__name"], one["count"], one["oldest"]) for one in found]
