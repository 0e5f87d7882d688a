"""Patients: search, the page of one patient, registering and correcting by hand, undoing a merge."""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import Count, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.urls import URLPattern

from common.desk import DeskAdmin, chip, desk_url
from common.templatetags.orderly import dicom_date, sex, years
from ris import selectors
from ris.admin.forms import PatientForm
from ris.admin.merging import MergePages, merges_of, told
from ris.deeds import carry_out
from ris.models import Patient, PatientMerge
from ris.services import patients


@admin.register(Patient)
class PatientAdmin(MergePages):
    """The patients of this department."""

    patient_data = "patient"
    detail_template = "admin/ris/patient.html"
    list_display = ("name", "identifier", "born", "sex_word", "orders", "marks", "updated_at")
    list_display_links = ("name",)
    list_filter = ("provisional", "patient_sex")
    search_fields = ("patient_name_search",)
    search_help_text = "Name or patient ID"
    ordering = ("-updated_at",)
    empty_hint = "Patients come with the first ADT or order message. You can also register one by hand."

    def has_add_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("ris.add_patient"))

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return selectors.with_identifiers(super().get_queryset(request)).annotate(count=Count("requests"))

    def find(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        return queryset.filter(selectors.patient_matches(term)) if term else queryset

    def patients_of(self, rows: Iterable[Any]) -> list[Any]:
        return [row.pk for row in rows]

    @admin.display(description="Name", ordering="patient_name_search")
    def name(self, row: Patient) -> str:
        return str(row)

    @admin.display(description="Patient ID")
    def identifier(self, row: Patient) -> str:
        return selectors.shown_identifier(row) or "–"

    @admin.display(description="Born", ordering="patient_birth_date")
    def born(self, row: Patient) -> str:
        return f"{dicom_date(row.patient_birth_date)} {years(row.patient_birth_date)}"

    @admin.display(description="Sex", ordering="patient_sex")
    def sex_word(self, row: Patient) -> str:
        return sex(row.patient_sex) or "–"

    @admin.display(description="Orders")
    def orders(self, row: Any) -> int:
        return int(row.count)

    @admin.display(description="")
    def marks(self, row: Patient) -> str:
        if row.merged_into_id:
            return chip("off", "merged")
        return chip("waiting", "from images only") if row.provisional else ""

    # -- the page of one patient

    def detail(self, request: HttpRequest, row: Patient) -> dict[str, Any]:
        identifiers = row.identifiers.select_related("authority").order_by("position", "id")
        requests = row.requests.prefetch_related("procedures__steps", "procedures__report").order_by(
            "-created_at"
        )
        return {
            "title": "Patient",
            "identifiers": identifiers,
            "visits": row.visits.order_by("-admitted_at", "-facts_at")[:20],
            "orders": requests[:50],
            "details": {k: v for k, v in row.details.items() if k != patients.EMPTIED},
            "merges": [told(merge, row) for merge in merges_of(row)],
            "may_order": row.merged_into_id is None
            and request.user.has_perm("ris.add_imagingservicerequest"),
        }

    # -- by hand

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        """Register a patient."""
        if not self.has_add_permission(request):
            raise PermissionDenied("Your role does not register patients.")
        form = PatientForm(request.POST or None)
        if request.method == "POST" and form.is_valid():
            applied = carry_out(
                request,
                lambda unit: patients.register(form.command(unit.at), unit),
                what="patient",
                action="create",
                done="The patient is registered.",
            )
            if applied is not None and applied.patient_ids:
                return redirect(desk_url("ris.patient", applied.patient_ids[0]))
        return self._form_page(request, form, "Register patient", desk_url("ris.patient"))

    def own_urls(self) -> list[URLPattern]:
        return [
            self.door("<uuid:pk>/correct/", self.correct, "correct"),
            *self.merge_urls(),
        ]

    def correct(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """Correct a patient's name, birth date and sex."""
        patient = get_object_or_404(Patient, pk=pk)
        form = PatientForm(request.POST or None, patient=patient, initial=PatientForm.filled(patient))
        if request.method == "POST" and form.is_valid():
            done = carry_out(
                request,
                lambda unit: patients.register(form.command(unit.at), unit),
                what="patient",
                patients=[pk],
                done="The patient is corrected; open orders and the worklist follow.",
            )
            if done is not None:
                return redirect(self.url_of(patient))
        self.record(request, "read", [patient])
        return self._form_page(request, form, "Correct patient", self.url_of(patient))

    def _form_page(self, request: HttpRequest, form: Any, title: str, back: str) -> HttpResponse:
        return self.page(request, "admin/ris/form.html", form=form, title=title, back=back, button=title)


@admin.register(PatientMerge)
class PatientMergeAdmin(DeskAdmin):
    """Merges and moves as they happened; undone from the surviving patient's page."""

    called = ("merge", "merges")
    patient_data = "patient"
    list_display = ("at", "kind", "survivor", "retired", "cause", "undone_at")
    list_filter = ("kind",)
    list_select_related = ("survivor", "retired")
    empty_hint = (
        "When the HIS or a clerk merges two patients, or something is moved from one to another, it is listed here "
        "with what it moved, and can be undone."
    )

    def patients_of(self, rows: Iterable[Any]) -> list[Any]:
        return [pk for row in rows for pk in (row.survivor_id, row.retired_id)]

    def goes_to(self, request: HttpRequest, row: PatientMerge) -> str:
        return desk_url("ris.patient", row.survivor_id)
