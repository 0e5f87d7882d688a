"""Orders: search, the page of one order with its story, ordering by hand, canceling and holding."""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import Exists, OuterRef, Prefetch, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import URLPattern
from django.utils.html import format_html_join

from common import audit
from common.desk import DefaultFilter, DeskAdmin, chip, desk_url
from ris import selectors
from ris.admin import story
from ris.admin.forms import OrderForm, end_order
from ris.admin.performed import images_chip
from ris.commands import OrderAction
from ris.deeds import carry_out
from ris.models import (
    ImagingServiceRequest,
    Patient,
    PerformedProcedureStep,
    ReportVersion,
    RequestedProcedure,
    StudyMatch,
)
from ris.models.reports import ReportStatus
from ris.services import orders
from ris.transitions import ON_WORKLIST

_ENDINGS = {
    "cancel": (OrderAction.CANCEL, "The order is canceled; scanners no longer see it."),
    "hold": (OrderAction.HOLD, "The order is on hold; scanners no longer see it."),
    "release": (OrderAction.RELEASE, "The order is released; scanners see it again."),
}
_ENDED = ("CANCELED", "DISCONTINUED", "COMPLETED")


class ImagesFilter(DefaultFilter):
    """Whether all images that scanners say they made are here."""

    title = "images"
    parameter_name = "images"
    default = "all"

    def options(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        return [("short", "Short of images"), ("complete", "Complete")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        theirs = PerformedProcedureStep.objects.filter(steps__procedure__request=OuterRef("pk"))
        short = theirs.filter(images_missing__gt=0, images_accepted="")
        if self.value() == "short":
            return queryset.filter(Exists(short))
        if self.value() == "complete":
            running = theirs.filter(images_expected__isnull=True)
            return queryset.filter(
                Exists(theirs.filter(images_expected__gt=0)), ~Exists(short), ~Exists(running)
            )
        return queryset


@admin.register(ImagingServiceRequest)
class OrderAdmin(DeskAdmin):
    """Imaging service requests."""

    called = ("order", "orders")
    patient_data = "order"
    detail_template = "admin/ris/order.html"
    list_display = ("number", "patient_name", "exam", "status_chip", "report_chip", "source", "created_at")
    list_display_links = ("number",)
    list_filter = (ImagesFilter, "status", "source", "procedures__requested_procedure_priority")
    search_fields = ("accession_number",)
    search_help_text = "Accession or order number, patient name or ID"
    ordering = ("-created_at",)
    list_select_related = ("patient",)
    empty_hint = "Orders come by HL7 (ORM, OMG, OMI). You can also write one by hand."

    def has_add_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("ris.add_imagingservicerequest"))

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        procedures = RequestedProcedure.objects.select_related("report").order_by("requested_procedure_id")
        return super().get_queryset(request).prefetch_related(Prefetch("procedures", procedures))

    def find(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        return queryset.filter(selectors.order_matches(term)) if term else queryset

    def patients_of(self, rows: Iterable[Any]) -> list[Any]:
        return [row.patient_id for row in rows]

    @admin.display(description="Accession", ordering="accession_number")
    def number(self, row: ImagingServiceRequest) -> str:
        return str(row)

    @admin.display(description="Patient", ordering="patient__patient_name_search")
    def patient_name(self, row: ImagingServiceRequest) -> str:
        return str(row.patient)

    @admin.display(description="Exam")
    def exam(self, row: ImagingServiceRequest) -> str:
        return ", ".join(str(p) for p in row.procedures.all()) or "–"

    @admin.display(description="Status", ordering="status")
    def status_chip(self, row: ImagingServiceRequest) -> str:
        return chip(row.status, row.get_status_display())

    @admin.display(description="Report")
    def report_chip(self, row: ImagingServiceRequest) -> str:
        reports = [p.report for p in row.procedures.all() if hasattr(p, "report")]
        return format_html_join(" ", "{}", ((chip(r.status, r.get_status_display()),) for r in reports))

    # -- the page of one order

    def detail(self, request: HttpRequest, row: ImagingServiceRequest) -> dict[str, Any]:
        order = selectors.whole_order(row.pk)
        if order is None:
            return {}
        procedures = list(order.procedures.all())
        steps = [step for procedure in procedures for step in procedure.steps.all()]
        subject = story.Subject(
            request=order,
            procedures=procedures,
            steps=steps,
            matches=list(StudyMatch.objects.filter(procedure__in=procedures).select_related("study")),
            versions=list(ReportVersion.objects.filter(report__procedure__in=procedures)),
            performed=selectors.performed_for(steps),
        )
        entries = story.tell(subject)
        return {
            "title": "Order",
            "order": order,
            "patient": order.patient,
            "identifier": selectors.shown_identifier(order.patient),
            "procedures": procedures,
            "performed": _by_procedure(procedures, subject.performed),
            "story": entries,
            "ended": order.status in _ENDED,
            "waiting": [status.value for status in ON_WORKLIST] + ["HELD"],
            "may_read": request.user.has_perm("ris.view_report"),
            "reported": ReportStatus.DRAFT,
        }

    # -- by hand

    def own_urls(self) -> list[URLPattern]:
        return [
            self.door("patients/", self.pick_patient, "pick_patient", action="add", post=True),
            self.door("<uuid:pk>/end/<slug:how>/", self.end, "end", post=True),
        ]

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        """Write an order: for the patient that the address names by its row id, or first find one."""
        if not self.has_add_permission(request):
            raise PermissionDenied("Your role does not write orders.")
        patient = _patient_asked(request)
        if patient is None:
            return self.page(request, "admin/ris/pick_patient.html", title="New order")
        form = OrderForm(request.POST or None)
        if request.method == "POST" and form.is_valid():
            applied = carry_out(
                request,
                lambda unit: orders.apply(form.command(patient), unit),
                what="order",
                action="create",
                patients=[patient.pk],
                done="The order is written.",
            )
            if applied is not None and applied.request_ids:
                return redirect(desk_url("ris.imagingservicerequest", applied.request_ids[0]))
        self.record_patient(request, patient)
        return self.page(
            request,
            "admin/ris/form.html",
            form=form,
            title="New order",
            back=desk_url("ris.patient", patient.pk),
            button="Write order",
            patient=patient,
            identifier=selectors.shown_identifier(patient),
        )

    def record_patient(self, request: HttpRequest, patient: Patient) -> None:
        """An audit row for showing who the order is for."""
        audit.record_request(request, "read", "patient", patients=[patient.pk], objects=[patient.pk])

    def pick_patient(self, request: HttpRequest) -> HttpResponse:
        """The patients that a search finds, for the first page of a new order (htmx)."""
        term = request.POST.get("term", "")
        found = selectors.find_patients(term)
        audit.record_request(
            request, "search", "patient", patients=[p.pk for p in found], detail={"count": len(found)}
        )
        return render(request, "admin/ris/picked.html", {"found": found, "term": term})

    def end(self, request: HttpRequest, pk: UUID, how: str) -> HttpResponse:
        """Cancel, hold or release an order."""
        order = get_object_or_404(ImagingServiceRequest.objects.select_related("patient"), pk=pk)
        if how in _ENDINGS:
            action, done = _ENDINGS[how]
            carry_out(
                request,
                lambda unit: orders.apply(end_order(order, action), unit),
                what="order",
                action=how,
                patients=[order.patient_id],
                objects=[pk],
                done=done,
            )
        return redirect(self.url_of(order))


def _by_procedure(
    procedures: list[RequestedProcedure], performed: list[PerformedProcedureStep]
) -> dict[UUID, list[tuple[PerformedProcedureStep, str]]]:
    """What scanners reported, by procedure; each with the chip about its images."""
    theirs = {p.pk: {step.pk for step in p.steps.all()} for p in procedures}
    steps = {row.pk: set(row.steps.values_list("pk", flat=True)) for row in performed}
    return {
        pk: [(row, images_chip(row)) for row in performed if steps[row.pk] & own]
        for pk, own in theirs.items()
    }


def _patient_asked(request: HttpRequest) -> Patient | None:
    try:
        asked = UUID(request.GET.get("patient", ""))
    except ValueError:
        return None
    return Patient.objects.filter(pk=asked, merged_into__isnull=True).first()
