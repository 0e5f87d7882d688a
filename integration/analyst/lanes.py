"""What waits, since when, and behind what: lanes of messages that came in, and of those that go out."""

from dataclasses import dataclass, field
from datetime import datetime

from django.db import connection
from django.db.models import Count, Min, Q

from common.clock import now
from common.templatetags.orderly import span
from integration.models import Destination, Message, MessageDeed, OutboxItem, Source
from integration.sources import ProfileError, compile_profile

MOST = 100  # lanes shown, the longest waiting first
_BEHIND = 5  # messages shown behind a head


@dataclass
class InLane:
    """A lane in which stored messages wait: its head, and those behind it."""

    name: str
    count: int
    since: datetime
    head: Message
    behind: list[Message] = field(default_factory=list)
    parked: MessageDeed | None = None
    """Who parked the head, when, and why, if a person did."""

    @property
    def held(self) -> bool:
        """Whether a person must solve the head before the rest goes on."""
        return self.head.state == Message.State.PARKED

    @property
    def why(self) -> str:
        """Why the head waits."""
        if not self.held:
            return "Its turn comes with the next sweep."
        texts = [str(e.get("text", "")) for e in self.head.errors if isinstance(e, dict)]
        by_hand = f"Parked by hand: {self.parked.reason}" if self.parked else "Parked."
        return "; ".join(t for t in texts if t) or by_hand

    @property
    def more(self) -> int:
        """How many wait beyond those shown."""
        return max(self.count - 1 - len(self.behind), 0)


@dataclass(frozen=True)
class Refusing:
    """A source's messages that were not applied and hold nothing: its sender must repair them."""

    source: Source | None
    name: str
    policy: str
    count: int
    oldest: datetime


@dataclass(frozen=True)
class OutLane:
    """A lane to one destination: its head, how many wait with it, and why it is not on its way."""

    destination: Destination
    name: str
    count: int
    since: datetime
    head: OutboxItem
    why: str
    tone: str


@dataclass(frozen=True)
class Waiting:
    """Everything that waits."""

    incoming: list[InLane]
    incoming_total: int
    apart: list[Message]
    """Stored messages that name no patient: they wait for nobody."""
    refusing: list[Refusing]
    at_a_lock: int
    """Messages that wait for a lane at this moment, within a transaction."""
    outgoing: list[OutLane]
    outgoing_total: int
    parked: list[tuple[Destination, int, datetime]]


_STORED = Q(state__in=("waiting", "parked"), solved_at__isnull=True)

_LANES = """
SELECT lane, count(*), min(m.id), min(m.received_at), (array_agg(m.id ORDER BY m.id))[2:%(behind)s]
FROM integration_message m, unnest(m.lanes) AS lane
WHERE m.state IN ('waiting', 'parked') AND m.solved_at IS NULL
GROUP BY lane ORDER BY min(m.id) LIMIT %(most)s
"""


def look() -> Waiting:
    """What waits now."""
    incoming, apart = _incoming()
    return Waiting(
        incoming=incoming,
        incoming_total=Message.objects.filter(_STORED).order_by()[:10_000].count(),
        apart=apart,
        refusing=_refusing(),
        at_a_lock=_at_a_lock(),
        outgoing=_outgoing(),
        outgoing_total=OutboxItem.objects.filter(state="queued").order_by()[:10_000].count(),
        parked=_parked(),
    )


def ahead_of(row: Message) -> list[Message]:
    """The open messages that a stored message waits for, oldest first."""
    if row.state not in ("waiting", "parked") or row.solved_at is not None:
        return []
    rows = Message.objects.filter(_STORED, id__lt=row.pk, lanes__overlap=row.lanes)
    return list(rows.order_by("id").defer("raw", "ack")[:20])


def _incoming() -> tuple[list[InLane], list[Message]]:
    with connection.cursor() as cursor:
        cursor.execute(_LANES, {"most": MOST, "behind": _BEHIND + 1})
        found = cursor.fetchall()
    ids = {pk for _, _, head, _, behind in found for pk in (head, *(behind or ()))}
    rows = Message.objects.select_related("source").defer("raw", "ack").in_bulk(ids)
    lanes = [
        InLane(name, count, since, rows[head], [rows[pk] for pk in behind or () if pk in rows])
        for name, count, head, since, behind in found
        if head in rows
    ]
    deeds = MessageDeed.objects.filter(message__in=[x.head.pk for x in lanes if x.held], what="parked")
    by_message = {deed.message_id: deed for deed in deeds.order_by("id")}
    for lane in lanes:
        lane.parked = by_message.get(lane.head.pk) if lane.held else None
    apart = Message.objects.filter(_STORED, lanes=[]).select_related("source").defer("raw", "ack")
    return lanes, list(apart.order_by("id")[:MOST])


def _refusing() -> list[Refusing]:
    unsolved = Message.objects.filter(state__in=("refused", "rejected", "fault"), solved_at__isnull=True)
    counted = unsolved.order_by().values("source").annotate(n=Count("pk"), oldest=Min("received_at"))
    sources = Source.objects.in_bulk([one["source"] for one in counted if one["source"]])
    found = []
    for one in counted:
        source = sources.get(one["source"])
        name = source.name if source else "Nobody we know"
        found.append(Refusing(source, name, _policy(source), one["n"], one["oldest"]))
    return sorted(found, key=lambda r: r.oldest)


def _policy(source: Source | None) -> str:
    if source is None:
        return ""
    try:
        return str(compile_profile(source.profile)["policy"])
    except ProfileError:
        return "unusable"


def _at_a_lock() -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(DISTINCT pid) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        return int(cursor.fetchone()[0])


_OUT = """
SELECT destination_id, lane, count(*), min(id), min(created_at)
FROM integration_outboxitem WHERE state = 'queued'
GROUP BY destination_id, lane ORDER BY min(created_at) LIMIT %s
"""


def _outgoing() -> list[OutLane]:
    with connection.cursor() as cursor:
        cursor.execute(_OUT, [MOST])
        found = cursor.fetchall()
    heads = OutboxItem.objects.select_related("destination").defer("payload", "answer", "facts")
    rows = heads.in_bulk([head for _, _, _, head, _ in found])
    lanes = []
    for _, name, count, head, since in found:
        if head in rows:
            item = rows[head]
            why, tone = why_waits(item)
            lanes.append(OutLane(item.destination, name, count, since, item, why, tone))
    return lanes


def why_waits(item: OutboxItem) -> tuple[str, str]:
    """Why the head of an outgoing lane is not delivered yet, and the tone in which to say it."""
    destination, moment = item.destination, now()
    if not destination.enabled:
        return "The destination is switched off.", "off"
    if item.lease_until and item.lease_until > moment:
        return "Being sent now.", "info"
    if destination.circuit_open_until and destination.circuit_open_until > moment:
        again = span((destination.circuit_open_until - moment).total_seconds())
        return (
            f"The destination does not answer ({destination.failures} times in a row). Tried again in {again}.",
            "bad",
        )
    if item.due_at > moment:
        again = span((item.due_at - moment).total_seconds())
        tried = (
            f"Tried {item.attempts} time{'s' if item.attempts != 1 else ''}"
            if item.attempts
            else "Not tried yet"
        )
        return f"{tried}; again in {again}. {item.last_error}".strip(), "wait"
    return "Due now.", "wait"


def _parked() -> list[tuple[Destination, int, datetime]]:
    counted = (
        OutboxItem.objects.filter(state="parked")
        .order_by()
        .values("destination")
        .annotate(n=Count("pk"), oldest=Min("created_at"))
    )
    rows = Destination.objects.in_bulk([one["destination"] for one in counted])
    return [(rows[one["destination"]], one["n"], one["oldest"]) for one in counted]
