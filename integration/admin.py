"""The desk for messages: what came in with its fields named, what goes out with its attempts, sources, destinations."""

from collections.abc import Iterable
from typing import Any, cast
from uuid import UUID

from django.contrib import admin, messages
from django.core.paginator import Page, Paginator
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.urls import URLPattern

from common import audit
from common.desk import DefaultFilter, DeskAdmin, chip, desk_url
from common.templatetags.orderly import age, moment
from integration import delivery
from integration.analyst.messagepages import MessagePages
from integration.analyst.sourcepages import SourcePages
from integration.describe import describe, title_of
from integration.models import DeliveryAttempt, Destination, Message, OutboxItem, Source, outbox_rank
from ris.admin import story

SUBJECTS = (
    "procedure:",
    "step:",
    "performed:",
    "report_version:",
    "ServiceRequest/",
    "DiagnosticReport/",
    "ImagingStudy/",
)
"""What stands before the id in an outbox item's subject."""
_KINDS_OF = 2000  # items whose kinds are offered as a filter


@admin.register(Message)
class MessageAdmin(MessagePages):
    """Messages that came in; what needs a person stands first. Its pages are those of integration/analyst."""

    search_fields = ("control_id",)
    empty_hint = "Point a system at our MLLP port; every frame it sends is kept and listed here."

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("source", "original")


class OutboxFilter(DefaultFilter):
    """Outbox items of one state."""

    title = "state"
    parameter_name = "state"

    def options(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        return [(state.value, state.value.capitalize()) for state in OutboxItem.State]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset if self.value() == "all" else queryset.filter(state=self.value())


class KindFilter(admin.SimpleListFilter):
    """Outbox items of one kind, of those that the latest ones and the open ones are."""

    title = "kind"
    parameter_name = "kind"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        latest = OutboxItem.objects.order_by("-id").values_list("kind", flat=True)[:_KINDS_OF]
        still = OutboxItem.objects.filter(state__in=("parked", "queued")).order_by()
        kinds = {*latest, *still.values_list("kind", flat=True)[:_KINDS_OF]}
        if asked := self.used_parameters.get(self.parameter_name) or request.GET.get(self.parameter_name):
            kinds.add(str(asked))
        return [(kind, kind) for kind in sorted(kinds)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(kind=self.value()) if self.value() else queryset


class ByIds(Paginator):
    """Pages whose ids are looked up first, in an index alone, from its nearer end."""

    def page(self, number: Any) -> Page:
        number, rows = self.validate_number(number), cast("QuerySet[Any]", self.object_list)
        first = (number - 1) * self.per_page
        last = min(first + self.per_page, self.count)
        keys = rows.values_list("pk", flat=True)
        if first > self.count // 2:
            keys, first, last = keys.reverse(), self.count - last, self.count - first
        return Page(rows.filter(pk__in=list(keys[first:last])), number, self)


@admin.register(OutboxItem)
class OutboxAdmin(DeskAdmin):
    """What we tell others; what failed stands first."""

    called = ("delivery", "outbox")
    patient_data = "delivery"
    detail_template = "admin/integration/outbox_item.html"
    list_display = (
        "made",
        "kind",
        "destination",
        "control_id",
        "state_chip",
        "attempts",
        "due",
        "last_error",
    )
    list_display_links = ("made", "kind")
    list_filter = (OutboxFilter, KindFilter, "destination")
    paginator = ByIds
    search_fields = ("control_id",)
    search_help_text = "Control ID, subject, or its id"
    list_select_related = ("destination",)
    empty_hint = "Signing a report or moving a step puts a message here for every destination that wants it."

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).defer("payload", "answer", "facts")

    def get_ordering(self, request: HttpRequest) -> Any:
        return (outbox_rank(), "-id")

    def find(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        if not term:
            return queryset
        subjects = [term, *(f"{kind}{term}" for kind in SUBJECTS)]
        return queryset.filter(Q(control_id=term) | Q(subject__in=subjects))

    def patients_of(self, rows: Iterable[Any]) -> list[Any]:
        return [row.patient_id for row in rows]

    @admin.display(description="Made", ordering="id")
    def made(self, row: OutboxItem) -> str:
        return moment(row.created_at)

    @admin.display(description="State", ordering="state")
    def state_chip(self, row: OutboxItem) -> str:
        return chip(row.state, OutboxItem.State(row.state).label.partition(":")[0])

    @admin.display(description="Waits")
    def due(self, row: OutboxItem) -> str:
        return age(row.created_at) if row.state in ("queued", "parked") else ""

    # -- the page of one item

    def detail(self, request: HttpRequest, row: OutboxItem) -> dict[str, Any]:
        payload = bytes(row.payload or b"")
        is_hl7 = row.destination.kind == Destination.Kind.HL7
        return {
            "title": "Delivery",
            "segments": describe(payload) if payload and is_hl7 else [],
            "text": "" if is_hl7 else payload.decode("utf-8", "replace")[:60_000],
            "answer": bytes(row.answer or b"").decode("utf-8", "replace")[:8000].replace("\r", "\n").strip(),
            "tries": DeliveryAttempt.objects.filter(item=row).order_by("-id")[:50],
            "why": story.explain(row.cause),
            "patient_url": desk_url("ris.patient", row.patient_id) if row.patient_id else "",
            "circuit_open": row.destination.circuit_open_until,
        }

    def own_urls(self) -> list[URLPattern]:
        return [self.door("<int:pk>/do/<slug:what>/", self.act, "act", post=True)]

    def act(self, request: HttpRequest, pk: int, what: str) -> HttpResponse:
        """Send an item again, compose it anew, or skip it."""
        row = get_object_or_404(OutboxItem.objects.select_related("destination"), pk=pk)
        deeds = {
            "again": (delivery.send_again, "It is queued again."),
            "compose": (delivery.compose_again, "It will be composed anew and sent."),
            "skip": (delivery.skip, "It is skipped and will not be sent."),
        }
        if what in deeds:
            deed, done = deeds[what]
            deed(row)
            self.record(request, f"send {what}", [row])
            messages.success(request, done)
        return redirect(self.url_of(row))


@admin.register(Source)
class SourceAdmin(SourcePages):
    """Systems that send us HL7 v2, each with its profile as data. Its pages are those of integration/analyst."""

    writable = True
    list_display = ("name", "application", "facility", "address", "enabled", "version", "heard")
    list_filter = ("enabled",)
    search_fields = ("name", "application", "facility")
    list_before_template = "integration/sources_before.html"
    empty_hint = (
        "A message from a sender that is not listed here is answered AR. Add the HIS, look at samples of what it "
        "sends, or load site.toml."
    )

    @admin.display(description="Last heard of")
    def heard(self, row: Source) -> str:
        newest = Message.objects.filter(source=row).order_by("-id").values_list("received_at", flat=True)
        return moment(newest.first())


@admin.register(Destination)
class DestinationAdmin(DeskAdmin):
    """Systems we send to."""

    writable = True
    list_display = ("name", "kind", "where", "wants", "enabled", "health")
    list_filter = ("kind", "enabled")
    search_fields = ("name", "host", "url")
    exclude = ("temporary", "circuit_open_until", "failures")
    empty_hint = "Add who should get reports and order status; or load them with site.toml."

    @admin.display(description="Where")
    def where(self, row: Destination) -> str:
        return row.url or f"{row.host}:{row.port}"

    @admin.display(description="Gets")
    def wants(self, row: Destination) -> str:
        return ", ".join(row.messages)

    @admin.display(description="Health")
    def health(self, row: Destination) -> str:
        if not row.failures:
            return chip("ready", "well")
        return chip("parked", f"{row.failures} failures in a row")

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        audit.record_request(request, "configure", "destination", objects=[obj.pk])


# -- this room's part of an order's story


def _message(number: str) -> tuple[str, str] | None:
    row = (
        Message.objects.only("message_type", "trigger_event").filter(pk=int(number)).first()
        if number.isdigit()
        else None
    )
    if row is None:
        return None
    return f"by {row.message_type}^{row.trigger_event}", desk_url("integration.message", row.pk)


story.explains("hl7", _message)


@story.tells
def messages_of(subject: story.Subject) -> Iterable[story.Entry]:
    """The messages that made the order, and what was sent about it."""
    for row in Message.objects.filter(request_ids__contains=[subject.request.pk]).defer("raw", "ack"):
        yield story.Entry(
            row.received_at,
            f"Message {row.message_type}^{row.trigger_event} came",
            f"{title_of(row.message_type, row.trigger_event)}, {row.get_state_display().partition(':')[0].lower()}",
            tone="" if row.state in ("applied", "kept") else "bad",
            url=desk_url("integration.message", row.pk),
            by=f"from {row.source.name}" if row.source else "",
        )
    for item in _items_of(subject):
        url = desk_url("integration.outboxitem", item.pk)
        to = f"to {item.destination.name}"
        if item.delivered_at:
            yield story.Entry(
                item.delivered_at, f"{item.kind} delivered", "acknowledged", tone="ok", url=url, by=to
            )
        else:
            words = item.get_state_display().partition(":")[0].lower()
            yield story.Entry(
                item.created_at, f"{item.kind} {words}", item.last_error, tone="wait", url=url, by=to
            )


def _items_of(subject: story.Subject) -> QuerySet[OutboxItem]:
    ids: list[UUID] = [
        subject.request.pk,
        *(p.pk for p in subject.procedures),
        *(s.pk for s in subject.steps),
        *(v.pk for v in subject.versions),
        *{v.report_id for v in subject.versions},
        *(m.study_id for m in subject.matches),
        *(p.pk for p in subject.performed),
    ]
    subjects = [f"{kind}{pk}" for pk in ids for kind in SUBJECTS]
    found = OutboxItem.objects.filter(subject__in=subjects).select_related("destination")
    return found.defer("payload", "answer", "facts")
