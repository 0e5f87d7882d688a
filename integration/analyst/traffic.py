"""How each source and destination does: messages over time, how long they took, what failed, how old the oldest is."""

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import connection
from django.db.models import Count, Min, Q

from common.clock import now, to_site
from common.templatetags.orderly import span
from integration.models import Destination, Message, OutboxItem, Source

# Name → (title, how long, how many bars).
WINDOWS: dict[str, tuple[str, timedelta, int]] = {
    "hour": ("Last hour", timedelta(hours=1), 30),
    "day": ("Last 24 hours", timedelta(hours=24), 48),
    "week": ("Last 7 days", timedelta(days=7), 56),
}
_LATEST = 2000  # messages of a source from which its latency is told
WIDTH, HEIGHT = 340, 56


@dataclass(frozen=True)
class Bar:
    """One bar of a chart, as places in an SVG of WIDTH × HEIGHT; `label` says what it counts."""

    x: float
    width: float
    good_y: float
    good_height: float
    bad_y: float
    bad_height: float
    label: str


@dataclass
class Peer:
    """One source or destination within the window."""

    name: str
    pk: int | None
    kind: str
    count: int = 0
    failed: int = 0
    median_ms: float | None = None
    p95_ms: float | None = None
    last: datetime | None = None
    waiting: int = 0
    needing: int = 0
    """How many of those that wait need a person."""
    oldest: datetime | None = None
    note: str = ""
    tone: str = "ok"
    bars: list[Bar] = field(default_factory=list)
    most: int = 0
    """Messages in the fullest bar."""
    enabled: bool = True
    minutes: float = 1.0
    """How long the window is."""

    @property
    def rate(self) -> str:
        """How many messages a minute, or an hour where that is a fraction."""
        return _rate(self.count, self.minutes)

    @property
    def share(self) -> float:
        """Of its messages, the percentage that failed."""
        return 100 * self.failed / self.count if self.count else 0.0


@dataclass
class Traffic:
    """The whole page."""

    window: str
    title: str
    since: datetime
    seconds: int
    """What one bar stands for."""
    sources: list[Peer]
    destinations: list[Peer]
    total: int = 0
    failed: int = 0
    delivered: int = 0

    @property
    def rate(self) -> str:
        """How many messages a minute, or an hour where that is a fraction."""
        return _rate(self.total, WINDOWS[self.window][1].total_seconds() / 60)

    @property
    def step(self) -> str:
        """What one bar stands for, in words."""
        return span(self.seconds)


def _rate(count: int, minutes: float) -> str:
    a_minute = count / minutes
    if a_minute >= 1:
        return f"{a_minute:.1f} a minute"
    return f"{a_minute * 60:.1f} an hour" if a_minute * 60 >= 1 else f"{a_minute * 1440:.1f} a day"


def look(window: str = "day") -> Traffic:
    """The numbers of a window that ends now."""
    window = window if window in WINDOWS else "day"
    title, length, count = WINDOWS[window]
    step = int(length.total_seconds() / count)
    end = datetime.fromtimestamp((int(now().timestamp()) // step + 1) * step, tz=now().tzinfo)
    since = end - length
    seen = Traffic(
        window, title, since, step, _sources(since, step, count), _destinations(since, step, count)
    )
    seen.total = sum(p.count for p in seen.sources)
    seen.failed = sum(p.failed for p in seen.sources)
    seen.delivered = sum(p.count - p.failed for p in seen.destinations)
    return seen


# ------------------------------------------------------------------------------------------------ sources

_CAME = """
SELECT source_id, floor(date_part('epoch', received_at - %(since)s) / %(step)s)::int,
    count(*), count(*) FILTER (WHERE state IN ('refused', 'rejected', 'fault', 'parked'))
FROM integration_message WHERE received_at >= %(since)s GROUP BY 1, 2
"""

# Each source by itself, from the end of its index: how many there are elsewhere does not matter.
_TOOK = """
SELECT s.id, t.ms, t.last FROM integration_source s, LATERAL (
    SELECT percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY l.duration_ms) AS ms, max(l.received_at) AS last
    FROM (SELECT m.duration_ms, m.received_at FROM integration_message m
          WHERE m.source_id = s.id ORDER BY m.id DESC LIMIT %(latest)s) l
) t
"""


def _sources(since: datetime, step: int, count: int) -> list[Peer]:
    series: dict[int | None, dict[int, tuple[int, int]]] = defaultdict(dict)
    with connection.cursor() as cursor:
        cursor.execute(_CAME, {"since": since, "step": step})
        for source, bucket, n, bad in cursor.fetchall():
            series[source][bucket] = (n, bad)
        cursor.execute(_TOOK, {"latest": _LATEST})
        took = {pk: (ms, last) for pk, ms, last in cursor.fetchall()}
    unsolved = Message.objects.filter(Q(state__in=Message.OPEN_STATES), solved_at__isnull=True)
    needing = Count("pk", filter=~Q(state="waiting"))
    opened: dict[int | None, tuple[int, datetime, int]] = {
        one["source"]: (one["n"], one["oldest"], one["needing"])
        for one in unsolved.order_by()
        .values("source")
        .annotate(n=Count("pk"), oldest=Min("received_at"), needing=needing)
    }
    peers = []
    for source in Source.objects.all():
        peer = Peer(source.name, source.pk, "source", enabled=source.enabled)
        ms, peer.last = took.get(source.pk, (None, None))
        peer.median_ms, peer.p95_ms = ms or (None, None)
        peers.append(_filled(peer, series.get(source.pk, {}), opened.get(source.pk), since, step, count))
    if None in series or None in opened:
        stranger = Peer("Nobody we know", None, "source")
        peers.append(_filled(stranger, series.get(None, {}), opened.get(None), since, step, count))
    return peers


def _filled(
    peer: Peer,
    series: dict[int, tuple[int, int]],
    opened: tuple[int, datetime, int] | None,
    since: datetime,
    step: int,
    count: int,
) -> Peer:
    peer.minutes = step * count / 60
    peer.count = sum(n for n, _ in series.values())
    peer.failed = sum(bad for _, bad in series.values())
    peer.waiting, peer.oldest, peer.needing = opened or (0, None, 0)
    peer.bars, peer.most = _bars(series, since, step, count)
    if peer.needing:
        peer.tone = "wait"
        peer.note = f"{peer.needing} need a person" if peer.needing > 1 else "1 needs a person"
    elif not peer.enabled:
        peer.tone, peer.note = "off", "switched off"
    elif peer.last is None and peer.kind == "source":
        peer.tone, peer.note = "off", "never heard of"
    return peer


def _bars(
    series: dict[int, tuple[int, int]], since: datetime, step: int, count: int
) -> tuple[list[Bar], int]:
    most = max([n for n, _ in series.values()] + [1])
    slot, room = WIDTH / count, HEIGHT - 4
    bars = []
    for index in range(count):
        total, bad = series.get(index, (0, 0))
        if not total:
            continue
        good_height, bad_height = room * (total - bad) / most, room * bad / most
        at = to_site(since + timedelta(seconds=index * step))
        label = f"{at:%a %H:%M}: {total} message{'' if total == 1 else 's'}" + (
            f", {bad} not applied" if bad else ""
        )
        bars.append(
            Bar(
                round(index * slot + slot * 0.12, 1),
                round(slot * 0.76, 1),
                round(HEIGHT - good_height, 1),
                round(good_height, 1),
                round(HEIGHT - good_height - bad_height, 1),
                round(bad_height, 1),
                label,
            )  # fmt: skip
        )
    return bars, max([n for n, _ in series.values()] + [0])


# ------------------------------------------------------------------------------------------- destinations

_WENT = """
SELECT d.id, t.* FROM integration_destination d, LATERAL (
    SELECT floor(date_part('epoch', o.created_at - %(since)s) / %(step)s)::int AS bucket, count(*),
        count(*) FILTER (WHERE o.state = 'parked'), max(o.delivered_at)
    FROM integration_outboxitem o WHERE o.destination_id = d.id AND o.created_at >= %(since)s GROUP BY 1
) t
"""

_NEEDED = """
SELECT d.id, t.ms FROM integration_destination d, LATERAL (
    SELECT percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (
        ORDER BY date_part('epoch', l.delivered_at - l.created_at) * 1000) AS ms
    FROM (SELECT o.delivered_at, o.created_at FROM integration_outboxitem o
          WHERE o.destination_id = d.id AND o.state = 'delivered' AND o.created_at >= %(since)s
          ORDER BY o.created_at DESC LIMIT %(latest)s) l
) t
"""

_FAILED = """
SELECT o.destination_id, count(*) FROM integration_deliveryattempt a JOIN integration_outboxitem o ON o.id = a.item_id
WHERE a.at >= %(since)s AND a.outcome NOT IN ('delivered', 'unchanged') GROUP BY 1
"""


def _destinations(since: datetime, step: int, count: int) -> list[Peer]:
    series: dict[int, dict[int, tuple[int, int]]] = defaultdict(dict)
    last: dict[int, datetime] = {}
    with connection.cursor() as cursor:
        cursor.execute(_WENT, {"since": since, "step": step})
        for pk, bucket, n, bad, at in cursor.fetchall():
            series[pk][bucket] = (n, bad)
            if at:
                last[pk] = max(at, last.get(pk, at))
        cursor.execute(_NEEDED, {"latest": _LATEST, "since": since})
        needed: dict[int, Any] = dict(cursor.fetchall())
        cursor.execute(_FAILED, {"since": since})
        failed: dict[int, int] = dict(cursor.fetchall())
    unsent = OutboxItem.objects.filter(state__in=("queued", "parked")).order_by().values("destination")
    waiting = {
        one["destination"]: (one["n"], one["oldest"], 0)
        for one in unsent.annotate(n=Count("pk"), oldest=Min("created_at"))
    }
    peers = []
    for row in Destination.objects.all():
        peer = Peer(row.name, row.pk, "destination", enabled=row.enabled, last=last.get(row.pk))
        peer.median_ms, peer.p95_ms = needed.get(row.pk) or (None, None)
        _filled(peer, series.get(row.pk, {}), waiting.get(row.pk), since, step, count)
        attempts = failed.get(row.pk, 0)
        peer.tone, peer.note = _standing(row, peer, attempts)
        peers.append(peer)
    return peers


def _standing(row: Destination, peer: Peer, attempts: int) -> tuple[str, str]:
    if not row.enabled:
        return "off", "switched off"
    if row.circuit_open_until and row.circuit_open_until > now():
        return "bad", f"does not answer: {row.failures} failures in a row"
    if peer.failed:
        return "bad", f"{peer.failed} parked"
    if attempts:
        return "wait", f"{attempts} attempt{'s' if attempts != 1 else ''} failed"
    if peer.waiting:
        return "wait", f"{peer.waiting} on their way" if peer.waiting > 1 else "1 on its way"
    return "ok", ""
