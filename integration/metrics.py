"""What the doors count, and what waits to be applied or sent."""

from collections.abc import Iterable
from itertools import product

from django.db.models import Count, Min

from common.counting import about
from common.metrics import Labelled, Waiting, gauge, queue
from integration import search
from integration.models import Destination, Message, OutboxItem


@gauge("orderly_messages", "Messages that came in, by state; large numbers are estimates", labels=("state",))
def messages() -> Iterable[Labelled]:
    # The index by state leaves out those that are applied, nearly all of them: they are what remains.
    others = {state: about(Message.objects.filter(state=state)) for state in _OTHERS}
    applied = max(about(Message.objects.all()) - sum(others.values()), 0)
    return [
        ((state,), number) for state, number in {**others, Message.State.APPLIED: applied}.items() if number
    ]


_OTHERS = [state for state in Message.State.values if state != Message.State.APPLIED]


@gauge(
    "orderly_outbox",
    "Messages to others, by destination and state; large numbers are estimates",
    labels=("destination", "state"),
)
def outbox_items() -> Iterable[Labelled]:
    every = product(Destination.objects.values_list("pk", "name"), OutboxItem.State.values)
    found = (
        ((name, state), about(OutboxItem.objects.filter(destination=pk, state=state)))
        for (pk, name), state in every
    )
    return [(labels, number) for labels, number in found if number]


@gauge("orderly_messages_unindexed", "Messages whose words cannot be searched for yet")
def unindexed() -> float:
    return search.waiting()


@queue("inbox", "Messages that are not applied", late_after=900)
def inbox() -> Iterable[Waiting]:
    unsolved = Message.objects.filter(state__in=Message.OPEN_STATES, solved_at__isnull=True)
    found = unsolved.order_by().values("state").annotate(count=Count("pk"), oldest=Min("received_at"))
    return [
        Waiting(
            one["state"], one["count"], one["oldest"], f"/admin/integration/message/?state={one['state']}"
        )
        for one in found
    ]


@queue("outbox", "Messages that are not delivered", late_after=900)
def outbox() -> Iterable[Waiting]:
    unsent = OutboxItem.objects.filter(state__in=(OutboxItem.State.QUEUED, OutboxItem.State.PARKED))
    found = (
        unsent.order_by()
        .values("destination", "destination__name")
        .annotate(count=Count("pk"), oldest=Min("created_at"))
    )
    return [
        Waiting(
            one["destination__name"],
            one["count"],
            one["oldest"],
            f"/admin/integration/outboxitem/?destination__id__exact={one['destination']}",
        )
        for one in found
    ]
