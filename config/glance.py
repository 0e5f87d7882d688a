"""The morning at a glance: what came in, what waits, what failed, who is there. Numbers only, no patient's data."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django.db.models import Count, Max, Min, OuterRef, Q, Subquery
from django.db.models.functions import TruncHour
from django.http import HttpRequest
from django.urls import reverse

from common.clock import now, site_zone, to_site
from common.metrics import Waiting, queues
from common.roles import Role, has_role
from config.health import readiness
from integration.models import Destination, Message, OutboxItem, Source
from pacs.models import Instance, Study
from ris.models import ImagingServiceRequest, ReportVersion

HOURS = 12


@dataclass(frozen=True)
class Line:
    """One queue on the page: its name, how many, since when, where it is listed (empty: nowhere for this person)."""

    label: str
    hint: str
    count: int
    oldest: datetime | None
    late: bool
    url: str


@dataclass(frozen=True)
class Kind:
    """How a queue's part is shown. `model` and `query` make its link; `url_name` stands in for both."""

    label: str
    hint: str
    failed: bool = False
    model: str = ""
    query: dict[str, str] = field(default_factory=dict)
    url_name: str = ""
    roles: tuple[Role, ...] = ()


_MESSAGES = "integration.message"
# (queue, part) → how it is shown; part `*` stands for all parts together. The order is the page's.
KINDS: dict[tuple[str, str], Kind] = {
    ("unmatched", "*"): Kind(
        "Unmatched studies", "images without a sure order", model="ris.reconciliationcase"
    ),
    ("unscheduled", "*"): Kind(
        "Unscheduled steps",
        "orders that need a time",
        model="ris.scheduledprocedurestep",
        query={"time": "none"},
    ),
    ("performed", "*"): Kind(
        "Scanner reports to look at", "MPPS that contradicts its order", model="ris.performedprocedurestep"
    ),
    ("short_of_images", "*"): Kind(
        "Short of images",
        "the scanner has made more than is here",
        model="ris.performedprocedurestep",
        query={"about": "short"},
    ),
    ("unread", "*"): Kind(
        "Unread studies",
        "images are here, the report is not",
        url_name="reading:list",
        roles=(Role.RADIOLOGIST,),
    ),
    ("inbox", "waiting"): Kind(
        "Messages to apply", "stored, waiting for their lane", model=_MESSAGES, query={"state": "waiting"}
    ),
    ("outbox", "queued"): Kind(
        "Outbox", "reports and status on their way", model="integration.outboxitem", query={"state": "queued"}
    ),
    ("spool", "*"): Kind("Spool", "received, not yet in the index"),
    ("unsettled", "*"): Kind("Growing studies", "quiet, but not yet told onward", model="pacs.study"),
    ("inbox", "refused"): Kind(
        "Refused messages", "the sender has to repair them", True, _MESSAGES, {"state": "refused"}
    ),
    ("inbox", "rejected"): Kind(
        "Rejected messages", "an unknown sender or version", True, _MESSAGES, {"state": "rejected"}
    ),
    ("inbox", "fault"): Kind(
        "No HL7 at all", "bytes that are no message", True, _MESSAGES, {"state": "fault"}
    ),
    ("inbox", "parked"): Kind("Parked messages", "a person must look", True, _MESSAGES, {"state": "parked"}),
    ("outbox", "parked"): Kind(
        "Parked deliveries", "could not be made or sent", True, "integration.outboxitem", {"state": "parked"}
    ),
    ("routing", "*"): Kind(
        "Studies to send on", "not yet at the node that a rule names", model="pacs.forwarding"
    ),
    ("set_aside", "*"): Kind("Objects set aside", "kept, but not in the index", True, "pacs.setaside"),
}


@dataclass
class Glance:
    """Everything the page shows."""

    hours: list[dict[str, Any]]
    came: list[dict[str, Any]]
    waits: list[Line]
    failed: list[Line]
    oldest: Line | None
    processes: list[tuple[str, str]]
    ready: bool
    peers: list[dict[str, Any]]


def look(request: HttpRequest) -> Glance:
    """The state of the house at this moment, with the links this person may follow."""
    lines = [(kind, _line(request, kind, states, late)) for kind, states, late in _states()]
    waits = [line for kind, line in lines if not kind.failed]
    failed = [line for kind, line in lines if kind.failed]
    standing = [line for line in waits + failed if line.oldest]
    state = readiness()
    return Glance(
        hours=messages_per_hour(),
        came=came_today(request),
        waits=waits,
        failed=failed,
        oldest=min(standing, key=lambda line: line.oldest or now(), default=None),
        processes=sorted(state["processes"].items()) + [("database", state["database"])],
        ready=state["ready"],
        peers=peers(),
    )


def _states() -> Iterable[tuple[Kind, list[Waiting], float]]:
    """Every queue of every room, in the order of KINDS; one that is not named there comes last, without a link."""
    found: dict[str, list[Waiting]] = {}
    late: dict[str, float] = {}
    titles: dict[str, str] = {}
    for queue in queues():
        found[queue.name], late[queue.name], titles[queue.name] = (
            list(queue.states()),
            queue.late_after,
            queue.title,
        )
    found["outbox"] = _outbox()
    for (name, part), kind in KINDS.items():
        if name in found:
            states = [s for s in found[name] if part in ("*", s.part)]
            yield kind, states, late.get(name, 900)
    for name in found.keys() - {name for name, _ in KINDS} - {"processes"}:  # those have a card of their own
        yield Kind(titles[name], ""), found[name], late[name]


def _outbox() -> list[Waiting]:
    unsent = OutboxItem.objects.filter(state__in=(OutboxItem.State.QUEUED, OutboxItem.State.PARKED))
    by_state = unsent.order_by().values("state").annotate(count=Count("pk"), oldest=Min("created_at"))
    return [Waiting(one["state"], one["count"], one["oldest"]) for one in by_state]


def _line(request: HttpRequest, kind: Kind, states: list[Waiting], late_after: float) -> Line:
    oldest = min((s.oldest for s in states if s.oldest and s.count), default=None)
    late = oldest is not None and (now() - oldest).total_seconds() > late_after
    return Line(kind.label, kind.hint, sum(s.count for s in states), oldest, late, _link(request, kind))


def _link(request: HttpRequest, kind: Kind) -> str:
    if kind.url_name:
        return reverse(kind.url_name) if has_role(request.user, *kind.roles) else ""
    if not kind.model:
        return ""
    app, name = kind.model.split(".")
    user = request.user
    if not (user.has_perm(f"{app}.view_{name}") or user.has_perm(f"{app}.change_{name}")):
        return ""
    url = reverse(f"admin:{app}_{name}_changelist")
    return f"{url}?{urlencode(kind.query)}" if kind.query else url


def messages_per_hour() -> list[dict[str, Any]]:
    """Messages of the last twelve hours, one entry an hour of the site's clock: `at`, `good`, `bad`."""
    this_hour = to_site(now()).replace(minute=0, second=0, microsecond=0)
    since = this_hour - timedelta(hours=HOURS - 1)
    counted = (
        Message.objects.filter(received_at__gte=since)
        .order_by()
        .annotate(hour=TruncHour("received_at", tzinfo=site_zone()))
        .values("hour")
        .annotate(total=Count("pk"), bad=Count("pk", filter=Q(state__in=Message.OPEN_STATES)))
    )
    by_hour = {one["hour"].timestamp(): one for one in counted}
    hours = []
    for step in range(HOURS):
        at = since + timedelta(hours=step)
        one = by_hour.get(at.timestamp(), {"total": 0, "bad": 0})
        hours.append({"at": at, "good": one["total"] - one["bad"], "bad": one["bad"]})
    return hours


def came_today(request: HttpRequest) -> list[dict[str, Any]]:
    """What came in since midnight at the site, each with its list."""
    midnight = to_site(now()).replace(hour=0, minute=0, second=0, microsecond=0)
    counts = (
        ("messages", Message.objects.filter(received_at__gte=midnight), Kind("", "", model=_MESSAGES)),
        (
            "orders",
            ImagingServiceRequest.objects.filter(created_at__gte=midnight),
            Kind("", "", model="ris.imagingservicerequest"),
        ),
        ("studies", Study.objects.filter(received_at__gte=midnight), Kind("", "", model="pacs.study")),
        ("images", Instance.objects.filter(received_at__gte=midnight), Kind("", "", model="pacs.study")),
        (
            "reports signed",
            ReportVersion.objects.filter(signed_at__gte=midnight),
            Kind("", "", model="ris.report"),
        ),
    )
    return [
        {"label": label, "count": rows.count(), "url": _link(request, kind)} for label, rows, kind in counts
    ]


def peers() -> list[dict[str, Any]]:
    """Systems around us and when each was last heard of: sources, destinations, and who sent images this week."""
    week = now() - timedelta(days=7)
    newest = Message.objects.filter(source=OuterRef("pk"), received_at__gte=week).order_by("-id")
    heard = dict(Source.objects.values_list("pk", Subquery(newest.values("received_at")[:1])))
    latest = OutboxItem.objects.filter(destination=OuterRef("pk"), created_at__gte=week, state="delivered")
    delivered = latest.order_by("-created_at").values("delivered_at")[:1]
    told = dict(Destination.objects.values_list("pk", Subquery(delivered)))
    found = [
        {"name": source.name, "kind": "sends HL7", "last": heard.get(source.pk), "tone": "ok", "note": ""}
        for source in Source.objects.filter(enabled=True)
    ]
    for destination in Destination.objects.filter(enabled=True):
        away = destination.circuit_open_until is not None and destination.circuit_open_until > now()
        found.append(
            {
                "name": destination.name,
                "kind": f"receives {destination.get_kind_display()}",
                "last": told.get(destination.pk),
                "tone": "bad" if away else "wait" if destination.failures else "ok",
                "note": f"{destination.failures} failures in a row" if destination.failures else "",
            }
        )
    senders = (
        Study.objects.filter(received_at__gte=week)
        .exclude(calling_ae="")
        .order_by("calling_ae")
        .values_list("calling_ae")
        .annotate(last=Max("last_instance_at"))
    )
    found += [
        {"name": title, "kind": "sends images", "last": last, "tone": "ok", "note": ""}
        for title, last in senders
    ]
    for peer in found:
        if peer["last"] is None and peer["tone"] == "ok":
            peer["tone"], peer["note"] = "off", "not heard of this week"
    return found
