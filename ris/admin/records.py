"""What was recorded and is only looked at: reports, changes."""

from collections.abc import Iterable
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse

from common.desk import DeskAdmin, chip, desk_url
from common.roles import Role, has_role
from ris import selectors
from ris.admin import story
from ris.models import Change, Report


@admin.register(Report)
class ReportAdmin(DeskAdmin):
    """Reports, opened on the reading page or, for others than radiologists, on the order's."""

    patient_data = "report"
    list_display = ("exam", "accession", "status_chip", "reader", "updated_at")
    list_display_links = ("exam",)
    list_filter = ("status", ("reader", admin.RelatedOnlyFieldListFilter))
    search_fields = ("procedure__request__accession_number",)
    search_help_text = "Accession number or patient"
    ordering = ("-updated_at",)
    list_select_related = ("procedure__request", "reader")
    empty_hint = "A report begins on the reading list."

    def find(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        return queryset.filter(selectors.order_matches(term, "procedure__request__")) if term else queryset

    def patients_of(self, rows: Iterable[Any]) -> list[Any]:
        return [row.procedure.request.patient_id for row in rows]

    @admin.display(description="Exam")
    def exam(self, row: Report) -> str:
        return str(row.procedure)

    @admin.display(description="Accession")
    def accession(self, row: Report) -> str:
        return str(row.procedure.request)

    @admin.display(description="Status", ordering="status")
    def status_chip(self, row: Report) -> str:
        return chip(row.status, row.get_status_display())

    def goes_to(self, request: HttpRequest, row: Report) -> str:
        if has_role(request.user, Role.RADIOLOGIST):
            return reverse("reading:report", args=[row.procedure_id])
        return desk_url("ris.imagingservicerequest", row.procedure.request_id)


@admin.register(Change)
class ChangeAdmin(DeskAdmin):
    """Each change of each row, with its cause."""

    patient_data = "change"
    list_display = ("at", "what", "attributes", "why")
    list_filter = ("what",)
    search_fields = ("cause",)
    search_help_text = "Cause, such as hl7:812 or user:17"
    empty_hint = "Every change of a patient, order or step is noted here with its cause."

    def patients_of(self, rows: Iterable[Any]) -> list[Any]:
        return [row.patient_id for row in rows]

    @admin.display(description="Attributes")
    def attributes(self, row: Change) -> str:
        return ", ".join(row.values)[:120]

    @admin.display(description="Cause")
    def why(self, row: Change) -> str:
        return story.explain(row.cause)[0]
