"""The desk for the worklist: items as scanners are told of them, what scanners asked, and why not."""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern

from common.desk import DefaultFilter, DeskAdmin, chip
from common.templatetags.orderly import moment
from pacs.dimse import status
from pacs.matching import name_key
from ris.models import ImagingServiceRequest, ScheduledProcedureStep, Station
from worklist import explain
from worklist.answers import SEPARATOR, parse
from worklist.attributes import ALL
from worklist.models import QueryLog, WorklistItem

_NAMES = {entry.tag: entry.keyword for entry in ALL}


class ShownFilter(DefaultFilter):
    """Whether scanners are told of it."""

    title = "shown"
    parameter_name = "shown"
    default = "yes"

    def options(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        return [("yes", "To scanners"), ("withheld", "Withheld"), ("adapted", "Shortened")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        match self.value():
            case "yes":
                return queryset.filter(waiting=True)
            case "withheld":
                return queryset.exclude(withheld="")
            case "adapted":
                return queryset.exclude(adapted=[])
        return queryset


@admin.register(WorklistItem)
class WorklistItemAdmin(DeskAdmin):
    """Scheduled steps as a scanner sees them."""

    patient_data = "worklist"
    detail_template = "admin/worklist/item.html"
    list_display = ("begin", "name", "number", "accession_number", "modality", "stations", "state")
    list_display_links = ("begin", "name")
    list_filter = (ShownFilter, "modality")
    search_fields = ("accession_number",)
    search_help_text = "Name, patient ID, accession, procedure or step ID, AE title"
    ordering = ("start",)
    empty_hint = "Orders with a time appear here the moment their message is acknowledged."

    def own_urls(self) -> list[URLPattern]:
        return [self.door("why/", self.why, "why", action="view")]

    def find(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        if not term:
            return queryset
        found = queryset.filter(patient_name_search__startswith=name_key(term))
        for column in (
            "patient_id",
            "accession_number",
            "requested_procedure_id",
            "scheduled_procedure_step_id",
        ):
            found |= queryset.filter(**{column: term})
        return found | queryset.filter(scheduled_station_ae_titles__contains=[term])

    def patients_of(self, rows: Iterable[Any]) -> list[Any]:
        return [row.patient_row for row in rows]

    @admin.display(description="Start", ordering="start")
    def begin(self, row: WorklistItem) -> str:
        return moment(row.start) if row.start else "no time yet"

    @admin.display(description="Patient", ordering="patient_name_search")
    def name(self, row: WorklistItem) -> str:
        return row.patient_name_search.replace("^", ", ", 1).replace("^", " ").title() or "–"

    @admin.display(description="Patient ID", ordering="patient_id")
    def number(self, row: WorklistItem) -> str:
        return row.patient_id

    @admin.display(description="Station")
    def stations(self, row: WorklistItem) -> str:
        return ", ".join(row.scheduled_station_ae_titles) or "any"

    @admin.display(description="State", ordering="status")
    def state(self, row: WorklistItem) -> str:
        return chip("parked", "withheld") if row.withheld else chip(row.status)

    def detail(self, request: HttpRequest, row: WorklistItem) -> dict[str, Any]:
        elements = [
            (_NAMES.get(tag, f"{tag:08X}"), vr, _words(vr, value))
            for part in sorted(bytes(row.answer).split(SEPARATOR), key=_place)
            if part
            for tag, vr, value in parse(part)
        ]
        return {"title": "Worklist item", "elements": elements}

    def why(self, request: HttpRequest) -> HttpResponse:
        """Why an order is not on a scanner. Asked by POST, for an accession number is no part of an address; or by a
        link that names the order's row and the scanner.
        """
        accession = request.POST.get("accession", "").strip()[:200] or _accession_of(
            request.GET.get("order", "")
        )
        ae_title = (request.POST.get("ae") or request.GET.get("ae", "")).strip()[:16]
        said = None
        if accession and ae_title:
            said = explain.explain(accession, ae_title)
            items = [story.item for story in said.steps if story.item is not None]
            self.record(request, "read", items, question="why")
        asked = QueryLog.objects.order_by("ae_title").values_list("ae_title", flat=True).distinct()
        stations = Station.objects.exclude(ae_title="").values_list("ae_title", flat=True)
        titles = sorted({*asked[:200], *stations})
        return self.page(
            request,
            "admin/worklist/why.html",
            title="Why not on my scanner?",
            accession=accession,
            ae=ae_title,
            titles=titles,
            said=said,
        )


def _place(part: bytes) -> tuple[bytes, bytes]:
    """Group and number of an element, as they are ordered."""
    return part[1::-1], part[3:1:-1]


def _accession_of(order_id: str) -> str:
    """The number to ask about, for a link from an order's page."""
    try:
        order = ImagingServiceRequest.objects.filter(pk=UUID(order_id)).first()
    except ValueError:
        return ""
    return (order.accession_number or order.placer_order_number or order.filler_order_number) if order else ""


def _words(vr: str, value: bytes) -> str:
    if vr == "SQ":
        items = []
        at = 0
        while at < len(value):
            length = int.from_bytes(value[at + 4 : at + 8], "little")
            inner = parse(value[at + 8 : at + 8 + length])
            items.append(" ".join(_words(inner_vr, text) for _, inner_vr, text in inner))
            at += 8 + length
        return "; ".join(items)
    if vr == "US":
        return str(int.from_bytes(value, "little"))
    return value.decode("utf-8").strip("\0 ")


@admin.register(QueryLog)
class QueryLogAdmin(DeskAdmin):
    """What scanners asked, and what they were answered."""

    patient_data = "worklist query"
    detail_template = "admin/worklist/query.html"
    list_display = ("last", "scanner", "asked", "answers", "times", "took", "state")
    list_display_links = ("last", "scanner")
    list_filter = ("ae_title",)
    search_fields = ("ae_title",)
    search_help_text = "AE title"
    ordering = ("-last_at",)
    empty_hint = "Let a scanner query its worklist: each different query appears here with its answers."

    def patients_of(self, rows: Iterable[Any]) -> list[Any]:
        ids = {pk for row in rows for pk in row.item_ids}
        return list(
            WorklistItem.objects.filter(pk__in=ids).values_list("patient_row", flat=True).distinct()[:100]
        )

    @admin.display(description="Last asked", ordering="last_at")
    def last(self, row: QueryLog) -> str:
        return moment(row.last_at)

    @admin.display(description="Scanner", ordering="ae_title")
    def scanner(self, row: QueryLog) -> str:
        return row.ae_title

    @admin.display(description="Answers", ordering="count")
    def answers(self, row: QueryLog) -> int:
        return row.count

    @admin.display(description="Keys")
    def asked(self, row: QueryLog) -> str:
        names = [name.rpartition(" > ")[2] for name, _ in row.keys]
        return ", ".join(names) or "everything"

    @admin.display(description="Took")
    def took(self, row: QueryLog) -> str:
        return f"{row.duration_ms:.0f} ms"

    @admin.display(description="Ended", ordering="status")
    def state(self, row: QueryLog) -> str:
        if row.status == status.SUCCESS:
            return chip("applied", "answered")
        if row.status == status.CANCELLED:
            return chip("skipped", "cancelled")
        return chip("refused", f"{row.status:04X}")

    def detail(self, request: HttpRequest, row: QueryLog) -> dict[str, Any]:
        steps = ScheduledProcedureStep.objects.filter(pk__in=row.item_ids).select_related(
            "procedure__request"
        )
        return {"title": "Worklist query", "steps": steps[:200]}
