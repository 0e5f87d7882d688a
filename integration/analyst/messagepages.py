"""Pages about messages: the list and its search, one message, replay, edit, lanes, traffic, retention."""

import contextlib
import json
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from django.apps import apps
from django.contrib import messages as notices
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404, redirect
from django.urls import URLPattern, path, reverse
from django.views.decorators.http import require_POST

from common import cause, searches
from common.clock import site_zone, to_site
from common.counting import counted
from common.desk import DeskAdmin, desk_url
from common.roles import Role, has_role, require
from integration import retention, search, solving, sources
from integration.analyst import lanes, preview, traffic
from integration.analyst.sandbox import NOUNS
from integration.describe import describe, title_of
from integration.models import LegalHold, Message, Source
from integration.search import Wanted
from ris.admin import story
from ris.models import Change, ImagingServiceRequest, Patient

WIRES = (Role.ANALYST, Role.ADMINISTRATOR)
_CHANGES = 200  # changes of one message that are shown
_BYTES = 2048  # bytes of one message that are shown as bytes

# Which page shows a changed row.
_PAGES = {
    "patient": "ris.patient",
    "imagingservicerequest": "ris.imagingservicerequest",
    "scheduledprocedurestep": "ris.scheduledprocedurestep",
    "report": "ris.report",
}


def by(request: HttpRequest) -> str:
    """The person at the page, as a cause."""
    return cause.user(request.user.pk or 0)


class MessagePages(DeskAdmin):
    """What the desk shows of messages, beside what the model's admin says."""

    patient_data = "message"
    detail_template = "integration/message.html"

    def own_urls(self) -> list[URLPattern]:
        return [
            self.door("<int:pk>/again/", self.again, "again", post=True),
            self.door("<int:pk>/skip/", self.skip, "skip", post=True),
            self.door("lanes/", self.lanes, "lanes", action="view"),
            self.door("traffic/", self.traffic, "traffic", action="view"),
            self.wire("<int:pk>/edit/", self.edit, "edit"),
            self.wire("<int:pk>/raw/", self.raw, "raw"),
            self.wire("<int:pk>/do/<slug:what>/", self.do, "do", post=True),
            self.wire("replay/", self.replay, "replay", post=True),
            self.wire("replay/do/", self.replay_now, "replay_now", post=True),
            self.wire("retention/", self.retention, "retention"),
            self.wire("retention/lift/<int:pk>/", self.lift, "lift", post=True),
        ]

    def wire(
        self, route: str, view: Callable[..., HttpResponse], name: str, *, post: bool = False
    ) -> URLPattern:
        """A page for those who look after interfaces."""
        guarded = require(*WIRES)(require_POST(view) if post else view)
        return path(route, self.admin_site.admin_view(guarded), name=f"integration_message_{name}")

    def page(self, request: HttpRequest, template: str, **context: Any) -> HttpResponse:
        return super().page(request, template, wires=has_role(request.user, *WIRES), **context)

    # -- the list

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The list of messages; a search comes by POST and leaves no name in the address."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        if request.method == "POST":
            return self._remembered(request)
        wanted, lost = wanted_of(request)
        if lost:
            notices.warning(request, "This search is no longer known; type it again.")
        try:
            found = search.find(wanted)
        except search.NeedsWindow as needs:
            found = search.Found(note=str(needs))
        first_page = not wanted.narrowed and wanted.before is None and wanted.after is None
        standing = search.find(Wanted(state="open"), 10) if first_page else search.Found()
        shown = [*standing.rows, *(r for r in found.rows if r.pk not in {s.pk for s in standing.rows})]
        self.record(
            request, "search" if wanted.secret else "list", shown, count=found.count, note=bool(found.note)
        )
        found_rows, found.rows = found.rows, shown
        return self.page(
            request, "integration/messages.html", title="Messages in", found=found, wanted=wanted,
            standing=len(standing.rows), standing_count=counted(Message.objects.filter(search.OPEN)),
            rows=[self._line(row) for row in shown], tabs=self._tabs(request, wanted),
            sources=Source.objects.order_by("name"), states=Message.State.choices, query=self._kept(request),
            newest=found_rows[0].pk if found_rows else None, oldest=found_rows[-1].pk if found_rows else None,
        )  # fmt: skip

    def patients_of(self, rows: Iterable[Any]) -> list[Any]:
        return [str(pk) for row in rows for pk in row.patient_ids]

    def _remembered(self, request: HttpRequest) -> HttpResponse:
        said = request.POST
        query = {k: said[k] for k in ("kind", "source", "state", "since", "until") if said.get(k, "").strip()}
        if "state" not in said and "state" in request.GET:
            query["state"] = request.GET["state"]
        secret = Wanted(
            term=said.get("_search", "").strip()[:200], patient=said.get("patient", "").strip()[:200],
            accession=said.get("accession", "").strip()[:64], control_id=said.get("control_id", "").strip()[:199],
            raw=said.get("raw", "")[:200],
        ).secret  # fmt: skip
        if secret:
            query["q"] = searches.keep(request, json.dumps(secret))
        return HttpResponseRedirect(f"{request.path}{_query(query)}")

    def _kept(self, request: HttpRequest) -> str:
        """The filters of the address, for links to other pages of the list."""
        return _query({k: v for k, v in request.GET.items() if k in _FILTERS and v}, "&")

    def _tabs(self, request: HttpRequest, wanted: Wanted) -> list[dict[str, Any]]:
        rest = {k: str(v) for k, v in request.GET.items() if k in _FILTERS and k != "state" and v}
        short = {
            "kept": "Kept",
            "waiting": "Waiting",
            "parked": "Parked",
            "skipped": "Skipped",
            "fault": "Not HL7",
        }
        tabs = [("", "All"), ("open", "Need a person")]
        tabs += [
            (value, short.get(value, label.partition(" (")[0])) for value, label in Message.State.choices
        ]
        return [
            {
                "url": _query({**rest, **({"state": value} if value else {})}) or "?",
                "label": label,
                "here": wanted.state == value,
            }
            for value, label in tabs
        ]

    def _line(self, row: Message) -> dict[str, Any]:
        return {
            "row": row,
            "url": self.url_of(row),
            "about": title_of(row.message_type, row.trigger_event),
            "open": row.state in search.NEEDING and row.solved_at is None,
            "trouble": "; ".join(str(e.get("text", "")) for e in row.errors if isinstance(e, dict))[:140],
        }

    # -- one message

    def detail(self, request: HttpRequest, row: Message) -> dict[str, Any]:
        raw = bytes(row.raw)
        errors = [e for e in row.errors if isinstance(e, dict)]
        wrong = tuple(e.get("place", "") for e in errors if e.get("place"))
        segments = describe(raw, wrong, sources.profile_of(row.source_id))
        open_ = row.state in Message.OPEN_STATES and row.solved_at is None
        return {
            "title": "Message",
            "segments": segments,
            "readable": any(s.fields for s in segments),
            "dump": list(hex_dump(raw[:_BYTES])),
            "cut": len(raw) > _BYTES,
            "errors": errors,
            "about": title_of(row.message_type, row.trigger_event),
            "ack_segments": describe(bytes(row.ack)) if row.ack else [],
            "open": open_,
            "patients": Patient.objects.filter(pk__in=row.patient_ids),
            "orders": ImagingServiceRequest.objects.filter(pk__in=row.request_ids),
            "changes": changes_of(row),
            "settled_by": story.explain(row.solved_by)[0] if row.solved_by else "",
            "deeds": [(d, story.explain(d.by)[0]) for d in row.deeds.all()[:50]],
            "copies": list(row.edited.defer("raw", "ack").order_by("id")),
            "ahead": lanes.ahead_of(row),
            "waited_ms": _milliseconds(row.received_at, row.applied_at),
        }

    def raw(self, request: HttpRequest, pk: int) -> HttpResponse:
        """The bytes as they came."""
        row = get_object_or_404(Message, pk=pk)
        self.record(request, "download", [row])
        answer = HttpResponse(bytes(row.raw), content_type="application/octet-stream")
        answer["Content-Disposition"] = f'attachment; filename="message-{row.pk}.hl7"'
        return answer

    # -- what one does with a message

    def again(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Apply a message that was refused or parked, by its source's present profile."""
        row = get_object_or_404(Message, pk=pk)
        try:
            solving.apply_again(pk, by(request), request.POST.get("reason", ""))
        except solving.Refused as refused:
            notices.error(request, f"Still refused: {refused.problem.text}")
        except solving.NotOpen as settled:
            notices.error(request, str(settled))
        else:
            self.record(request, "apply", [row])
            notices.success(request, "The message is applied.")
        return redirect(self.url_of(row))

    def skip(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Leave a message for good, with a reason."""
        row = get_object_or_404(Message, pk=pk)
        return self._with_reason(
            request, row, solving.skip, "skip", "Say why it is skipped; the next person will ask.",
            "The message is skipped; its lane goes on.",
        )  # fmt: skip

    def do(self, request: HttpRequest, pk: int, what: str) -> HttpResponse:
        """Park or release a message, with a reason."""
        row = get_object_or_404(Message, pk=pk)
        if what == "park":
            return self._with_reason(
                request,
                row,
                solving.park,
                what,
                "Say why it is parked and who is asked.",
                "The message is parked.",
            )
        if what == "release":
            done = "The message is released: it is applied when its turn comes."
            return self._with_reason(request, row, solving.release, what, "Say why it may go on.", done)
        return redirect(self.url_of(row))

    def _with_reason(
        self,
        request: HttpRequest,
        row: Message,
        deed: Callable[[int, str, str], None],
        name: str,
        ask: str,
        done: str,
    ) -> HttpResponse:
        reason = request.POST.get("reason", "").strip()
        if not reason:
            notices.error(request, ask)
            return redirect(self.url_of(row))
        try:
            deed(row.pk, by(request), reason)
        except solving.NotOpen as settled:
            notices.error(request, str(settled))
        else:
            self.record(request, name, [row])
            notices.success(request, done)
        return redirect(self.url_of(row))

    def edit(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Edit a copy of a message, try it, and apply it; the original stays as it came."""
        row = get_object_or_404(Message, pk=pk)
        text, codec = solving.text_of(row)
        tried = problem = None
        if request.method == "POST":
            text = request.POST.get("text", "")
            try:
                if "use" in request.POST:
                    reason = request.POST.get("reason", "").strip()
                    if reason:
                        return self._resubmitted(request, row, text, reason)
                    notices.error(request, "Say why it is changed; the next person will ask.")
                tried = preview.edited(row, solving.bytes_of(row, text)).tried
            except solving.Refused as refused:
                problem = refused.problem
            except solving.NotOpen as settled:
                notices.error(request, str(settled))
        self.record(request, "read", [row])
        return self.page(
            request, "integration/edit.html", title="Edit a message", row=row, text=text, codec=codec,
            tried=tried, problem=problem, reason=request.POST.get("reason", ""), lines=text.count("\n") + 2,
        )  # fmt: skip

    def _resubmitted(self, request: HttpRequest, row: Message, text: str, reason: str) -> HttpResponse:
        copy = solving.resubmit(row.pk, text, by(request), reason)
        self.record(request, "edit", [row, copy])
        notices.success(request, "The edited copy is applied. The message that came is kept as it was.")
        return redirect(self.url_of(copy))

    # -- several

    def replay(self, request: HttpRequest) -> HttpResponse:
        """What replaying the chosen messages would do, tried on copies."""
        rows = self._chosen(request)
        if not rows:
            notices.warning(request, "Choose one message or more first.")
            return redirect(self.list_url())
        seen = preview.preview(rows)
        self.record(request, "preview", rows, count=len(rows))
        return self.page(
            request, "integration/replay.html", title="Replay", seen=seen, count=len(rows),
            refused=sum(1 for p in seen if p.refused), untried=sum(1 for p in seen if p.tried is None),
            ids=",".join(str(r.pk) for r in rows),
        )  # fmt: skip

    def replay_now(self, request: HttpRequest) -> HttpResponse:
        """Replay them, in their order."""
        rows = self._chosen(request)
        reason = request.POST.get("reason", "").strip()
        if not rows or not reason:
            notices.error(request, "Say why they are replayed; the next person will ask.")
            return redirect(self.list_url())
        done = solving.replay([r.pk for r in rows], by(request), reason, go_on="go_on" in request.POST)
        self.record(request, "replay", rows, count=len(done))
        by_id = {r.pk: r for r in rows}
        return self.page(
            request, "integration/replayed.html", title="Replayed", done=[(by_id[d.message_id], d) for d in done],
            left=len(rows) - len(done), refused=sum(1 for d in done if d.problem),
        )  # fmt: skip

    def _chosen(self, request: HttpRequest) -> list[Message]:
        said = request.POST.getlist("id") + request.POST.get("ids", "").split(",")
        ids = {int(one) for one in said if one.strip().isdigit() and len(one) < 19}
        return list(Message.objects.filter(pk__in=sorted(ids)[: solving.MOST]).order_by("id").defer("ack"))

    def list_url(self) -> str:
        """The list of messages."""
        return desk_url("integration.message")

    # -- all of them

    def lanes(self, request: HttpRequest) -> HttpResponse:
        """What waits, since when, behind what."""
        seen = lanes.look()
        heads = [lane.head for lane in seen.incoming]
        self.record(request, "list", heads, count=seen.incoming_total)
        return self.page(request, "integration/lanes.html", title="Lanes", seen=seen)

    def traffic(self, request: HttpRequest) -> HttpResponse:
        """How each source and destination does; htmx asks for the inner part every half minute."""
        seen = traffic.look(request.GET.get("window", "day"))
        windows = [(name, title) for name, (title, _, _) in traffic.WINDOWS.items()]
        inner = bool(getattr(request, "htmx", False))
        template = "integration/traffic_inner.html" if inner else "integration/traffic.html"
        return self.page(
            request, template, title="Traffic", seen=seen, windows=windows,
            chart={"width": traffic.WIDTH, "height": traffic.HEIGHT},
        )  # fmt: skip

    def retention(self, request: HttpRequest) -> HttpResponse:
        """How long messages are kept, and what is held."""
        if request.method == "POST":
            self._keep_or_hold(request)
            return redirect(reverse("admin:integration_message_retention"))
        seen = retention.state()
        holds = [(hold, self._about(hold), story.explain(hold.placed_by)[0]) for hold in seen.holds]
        return self.page(
            request, "integration/retention.html", title="Retention", seen=seen, holds=holds,
            least=retention.LEAST_DAYS, abouts=LegalHold.About.choices,
            may_set=has_role(request.user, Role.ADMINISTRATOR),
        )  # fmt: skip

    def _keep_or_hold(self, request: HttpRequest) -> None:
        said = request.POST
        try:
            if "about" in said:
                hold = retention.place_hold(
                    said["about"], said.get("value", ""), said.get("reason", ""), by(request)
                )
                self.record(request, "hold", [], hold=hold.pk)
                notices.success(request, "The hold is placed.")
            elif has_role(request.user, Role.ADMINISTRATOR):
                days = [int(said.get(k) or 0) for k in ("messages", "deliveries")]
                retention.keep_for(*days)
                self.record(
                    request, "configure", [], keep_messages_days=days[0], keep_deliveries_days=days[1]
                )
                notices.success(request, "Kept as you said from now on.")
            else:
                raise PermissionDenied("An administrator sets how long messages are kept.")
        except ValueError as trouble:
            known = isinstance(trouble, retention.NotAllowed)
            notices.error(request, str(trouble) if known else "Days are whole numbers.")

    def _about(self, hold: LegalHold) -> tuple[str, str]:
        """What a hold is about, in words, and its page."""
        if hold.about == LegalHold.About.PATIENT:
            return "the patient", desk_url("ris.patient", hold.value)
        if hold.about == LegalHold.About.SOURCE:
            source = Source.objects.filter(pk=int(hold.value)).first()
            return f"all from {source or 'a source that is gone'}", ""
        return (f"accession number {hold.value}", "") if hold.value else ("everything", "")

    def lift(self, request: HttpRequest, pk: int) -> HttpResponse:
        """End a hold."""
        get_object_or_404(LegalHold, pk=pk)
        retention.lift_hold(pk, by(request))
        self.record(request, "lift hold", [], hold=pk)
        notices.success(request, "The hold is lifted.")
        return redirect(reverse("admin:integration_message_retention"))


# ------------------------------------------------------------------------------------------- small things

_FILTERS = ("kind", "source", "state", "since", "until", "q")


def _query(pairs: dict[str, str], lead: str = "?") -> str:
    return f"{lead}{urlencode(pairs)}" if pairs else ""


def wanted_of(request: HttpRequest) -> tuple[Wanted, bool]:
    """What the address asks for, its terms taken from the session; whether they are no longer known there."""
    said = request.GET
    token = said.get("q", "")
    kept = searches.term_of(request, token) if token else None
    secret: dict[str, str] = {}
    if kept is not None:
        try:
            loaded = json.loads(kept)
            secret = loaded if isinstance(loaded, dict) else {"term": kept}
        except ValueError:
            secret = {"term": kept}
    state = said.get("state", "")
    known = {"open", *Message.State.values}
    source = said.get("source", "")
    wanted = Wanted(
        **{
            k: str(v) for k, v in secret.items() if k in ("term", "patient", "accession", "control_id", "raw")
        },
        kind=said.get("kind", "").strip()[:7],
        source=int(source) if source.isdigit() and len(source) < 19 else None,
        state=state if state in known else "",
        since=_moment(said.get("since", "")),
        until=_moment(said.get("until", "")),
        before=_number(said.get("before", "")),
        after=_number(said.get("after", "")),
    )
    if patient := said.get("patient", ""):  # a row id, as the patient's page links it
        wanted = Wanted(**{**vars(wanted), "patient": patient[:36]})
    return wanted, bool(token) and kept is None


def _moment(text: str) -> datetime | None:
    """`2026-11-22T10:15` or a date, on the site's clock."""
    try:
        return datetime.fromisoformat(text).replace(tzinfo=site_zone()) if text else None
    except (ValueError, OverflowError):
        return None


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() and len(text) < 19 else None


def local_input(moment: datetime | None) -> str:
    """A moment in the form of a datetime-local input, on the site's clock."""
    return f"{to_site(moment):%Y-%m-%dT%H:%M}" if moment else ""


def _milliseconds(first: datetime, then: datetime | None) -> float | None:
    return max((then - first).total_seconds() * 1000, 0.0) if then else None


def changes_of(row: Message) -> list[dict[str, Any]]:
    """What a message changed of patients, orders, procedures and steps, row by row in the order it was done."""
    found: dict[Any, dict[str, Any]] = {}
    changes = list(Change.objects.filter(cause=cause.hl7(row.pk)).order_by("id")[:_CHANGES])
    called = _called(changes)
    for change in changes:
        one = found.setdefault(
            change.object_id,
            {
                "noun": NOUNS.get(change.what, change.what.capitalize()),
                "called": called.get(change.object_id, ""),
                "url": desk_url(_PAGES[change.what], change.object_id) if change.what in _PAGES else "",
                "created": False,
                "lines": [],
                "at": change.at,
            },
        )
        if change.values.get("created"):
            one["created"] = True
            continue
        for name, pair in change.values.items():
            if isinstance(pair, list) and len(pair) == 2 and name not in ("made", "details"):
                one["lines"].append((name, pair[0], pair[1]))
    return list(found.values())


def _called(changes: Iterable[Change]) -> dict[Any, str]:
    """What the changed rows are called now, of those that are still there."""
    by_model: dict[str, set[Any]] = {}
    for change in changes:
        by_model.setdefault(change.what, set()).add(change.object_id)
    found: dict[Any, str] = {}
    for name, ids in by_model.items():
        with contextlib.suppress(LookupError):
            found |= {pk: str(row) for pk, row in apps.get_model("ris", name).objects.in_bulk(ids).items()}
    return found


def hex_dump(raw: bytes) -> Iterable[tuple[str, str, str]]:
    """Bytes as lines of (offset, hexadecimal, text); control characters are shown as their symbols."""
    for offset in range(0, len(raw), 16):
        piece = raw[offset : offset + 16]
        text = "".join(chr(0x2400 + b) if b < 32 else chr(b) if b < 127 else "·" for b in piece)
        yield f"{offset:05x}", piece.hex(" "), text
