"""Performed steps (MPPS): what needs a person, what is short of images, and the page where it is put right."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import URLPattern
from django.utils.html import format_html

from common import audit
from common.desk import DefaultFilter, DeskAdmin, chip
from common.names import same_person_name
from common.templatetags.orderly import age, dicom_date, moment, pn
from pacs.models import Study
from ris import selectors
from ris.admin import story
from ris.deeds import carry_out
from ris.models import ImagingServiceRequest, PerformedProcedureStep, ScheduledProcedureStep, StudyMatch
from ris.models.schedule import StepStatus
from ris.services import images, performed

NEAR = timedelta(hours=4)
"""How far from a performed step's beginning a scheduled one is still offered unasked."""


class AboutFilter(DefaultFilter):
    """What needs a person, unless asked otherwise."""

    title = "about"
    parameter_name = "about"
    default = "open"

    def options(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        return [("open", "To look at"), ("short", "Short of images"), ("solved", "Solved")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        match self.value():
            case "open":
                return queryset.exclude(problem="").filter(solved_at__isnull=True)
            case "short":
                return queryset.filter(images_missing__gt=0, images_accepted="")
            case "solved":
                return queryset.filter(solved_at__isnull=False)
        return queryset


def images_chip(row: PerformedProcedureStep) -> str:
    """How many of its images are here, as a chip; empty while it goes on or when it names none."""
    if not row.images_expected:
        return ""
    if not row.images_missing:
        return chip("ready", f"all {row.images_expected} images")
    held = row.images_expected - row.images_missing
    if row.images_accepted:
        return chip("skipped", f"{held} of {row.images_expected}, accepted")
    return chip("parked", f"{row.images_missing} of {row.images_expected} missing")


@admin.register(PerformedProcedureStep)
class PerformedAdmin(DeskAdmin):
    """What scanners reported (MPPS)."""

    called = ("performed step", "performed steps")
    patient_data = "performed step"
    detail_template = "admin/ris/performed.html"
    list_display = ("began", "patient_name", "scanner", "status_chip", "why", "images", "waits")
    list_display_links = ("began", "patient_name")
    list_filter = (AboutFilter, "trouble", "status", "modality", "performed_station_ae_title")
    search_fields = ("performed_procedure_step_id", "sop_instance_uid", "performed_station_ae_title")
    search_help_text = "Patient, accession, step ID, SOP Instance UID or AE title"
    ordering = ("-created_at",)
    list_select_related = ("patient",)
    empty_hint = (
        "Nothing here. What scanners report (MPPS) against its order, or short of images, waits here."
    )

    def find(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        if not term:
            return queryset
        orders = PerformedProcedureStep.objects.filter(
            selectors.order_matches(term, "steps__procedure__request__")
        ).values("pk")
        own = Q(performed_procedure_step_id__istartswith=term) | Q(sop_instance_uid=term)
        own |= Q(performed_station_ae_title__iexact=term) | Q(told__accession_numbers__contains=[term])
        own |= Q(told__patient_ids__contains=[term]) | Q(told__patient_name__icontains=term)
        return queryset.filter(own | Q(pk__in=orders))

    def patients_of(self, rows: Iterable[Any]) -> list[Any]:
        return [row.patient_id for row in rows]

    @admin.display(description="Began", ordering="started_at")
    def began(self, row: PerformedProcedureStep) -> str:
        return moment(row.started_at or row.created_at)

    @admin.display(description="Patient, as the scanner says")
    def patient_name(self, row: PerformedProcedureStep) -> str:
        return pn(row.told.get("patient_name") or (row.patient.patient_name if row.patient else ""))

    @admin.display(description="Scanner", ordering="performed_station_ae_title")
    def scanner(self, row: PerformedProcedureStep) -> str:
        return " · ".join(part for part in (row.performed_station_ae_title, row.modality) if part)

    @admin.display(description="Status", ordering="status")
    def status_chip(self, row: PerformedProcedureStep) -> str:
        return chip(row.status, row.get_status_display())

    @admin.display(description="Problem", ordering="trouble")
    def why(self, row: PerformedProcedureStep) -> str:
        if not row.problem:
            return ""
        if row.solved_at:
            return chip("solved", "solved")
        return chip("parked", row.get_trouble_display() if row.trouble else "to look at")

    @admin.display(description="Images", ordering="images_missing")
    def images(self, row: PerformedProcedureStep) -> str:
        return images_chip(row)

    @admin.display(description="Waits", ordering="updated_at")
    def waits(self, row: PerformedProcedureStep) -> str:
        since = row.updated_at if row.needs_a_person else row.images_since if row.is_short else None
        return format_html("<span class='o-nowrap'>{}</span>", age(since)) if since else ""

    # -- the page of one

    def detail(self, request: HttpRequest, row: PerformedProcedureStep) -> dict[str, Any]:
        steps = list(
            row.steps.select_related("procedure__request__patient").order_by("scheduled_procedure_step_id")
        )
        order = steps[0].procedure.request if steps else named_order(row)
        offered = [] if steps and not row.needs_a_person else near(row)
        self._record(request, offered)
        if order is not None and row.patient_id != order.patient_id:
            audit.record_request(request, "read", "order", patients=[order.patient_id], objects=[order.pk])
        studies = Study.objects.filter(study_instance_uid__in=row.study_instance_uids, hidden=False)
        return {
            "title": "Performed step",
            "steps": steps,
            "order": order,
            "lines": compare(row, order, steps),
            "series": images.by_series(row),
            "studies": studies,
            "linked": StudyMatch.objects.filter(study__in=studies, undone_at__isnull=True).count(),
            "offered": offered,
            "images_chip": images_chip(row),
            "solved_by": story.explain(row.solved_cause)[0] if row.solved_cause else "",
            "accepted_by": story.explain(row.images_accepted)[0] if row.images_accepted else "",
            "corrected_by": story.explain(row.correction["cause"])[0] if row.correction else "",
        }

    def _record(self, request: HttpRequest, offered: list[ScheduledProcedureStep]) -> None:
        if offered:
            patients = dict.fromkeys(s.procedure.request.patient_id for s in offered)
            audit.record_request(request, "read", "step", patients=patients, objects=[s.pk for s in offered])

    def own_urls(self) -> list[URLPattern]:
        return [
            self.door("<uuid:pk>/assign/<uuid:step>/", self.assign, "assign", post=True),
            self.door("<uuid:pk>/undo/", self.undo, "undo", post=True),
            self.door("<uuid:pk>/solve/", self.solve, "solve", post=True),
            self.door("<uuid:pk>/reopen/", self.reopen, "reopen", post=True),
            self.door("<uuid:pk>/images/", self.look_again, "images", post=True),
            self.door("<uuid:pk>/accept/", self.accept, "accept", post=True),
            self.door("<uuid:pk>/orders/", self.find_orders, "orders", post=True),
        ]

    def assign(self, request: HttpRequest, pk: UUID, step: UUID) -> HttpResponse:
        """It was done for this scheduled step."""
        row = self._row(pk)
        target = get_object_or_404(
            ScheduledProcedureStep.objects.select_related("procedure__request"), pk=step
        )
        carry_out(
            request,
            lambda unit: performed.assign(pk, [step], request.user, unit),
            what="performed step",
            action="assign",
            patients=[p for p in (row.patient_id, target.procedure.request.patient_id) if p],
            objects=[pk, step],
            done="Assigned. The step and its images belong to this order now.",
        )
        return redirect(self.url_of(row))

    def undo(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """Take the assignment back."""
        row = self._row(pk)
        carry_out(
            request,
            lambda unit: performed.undo(pk, request.user, unit),
            what="performed step",
            action="undo",
            patients=[row.patient_id] if row.patient_id else [],
            objects=[pk],
            done="Undone: it belongs where the scanner had put it.",
        )
        return redirect(self.url_of(row))

    def solve(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """The problem needs nothing more."""
        how = request.POST.get("how", "")
        return self._do(
            request, pk, "solve", lambda unit: performed.solve(pk, how, unit), "It is off the list."
        )

    def reopen(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """Put it back on the list."""
        return self._do(
            request, pk, "reopen", lambda unit: performed.reopen(pk, unit), "It is on the list again."
        )

    def look_again(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """Count its images now."""
        return self._do(request, pk, "count", lambda unit: images.look_again(pk, unit), "Counted again.")

    def accept(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """No more images will come."""
        return self._do(
            request, pk, "accept", lambda unit: images.accept(pk, unit), "Noted: no more images will come."
        )

    def _do(self, request: HttpRequest, pk: UUID, action: str, deed: Any, done: str) -> HttpResponse:
        row = self._row(pk)
        carry_out(
            request,
            deed,
            what="performed step",
            action=action,
            patients=[row.patient_id] if row.patient_id else [],
            objects=[pk],
            done=done,
        )
        return redirect(self.url_of(row))

    def find_orders(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """Scheduled steps that a search finds (htmx)."""
        row = self._row(pk)
        term = request.POST.get("term", "").strip()
        found: list[ScheduledProcedureStep] = []
        if term:
            rows = _steps().filter(selectors.order_matches(term, "procedure__request__"))
            found = list(rows.order_by("-created_at")[:12])
            self._record(request, found)
        frame = {"row": row, "offered": found, "term": term, "may_act": True}
        return render(request, "admin/ris/performed_steps.html", frame)

    def _row(self, pk: UUID) -> PerformedProcedureStep:
        return get_object_or_404(PerformedProcedureStep, pk=pk)


def named_order(row: PerformedProcedureStep) -> ImagingServiceRequest | None:
    """The order that the scanner's numbers mean, where it was not taken for it."""
    numbers = [number for number in row.told.get("accession_numbers", ()) if number]
    named = Q(procedures__study_instance_uid__in=row.study_instance_uids) | Q(accession_number__in=numbers)
    return ImagingServiceRequest.objects.select_related("patient").filter(named).order_by("pk").first()


@dataclass(frozen=True)
class Line:
    """What scanner and order say about one thing; `differs` when they contradict."""

    about: str
    scanner: str
    order: str
    differs: bool = False


def compare(
    row: PerformedProcedureStep, order: ImagingServiceRequest | None, steps: list[ScheduledProcedureStep]
) -> list[Line]:
    """Scanner and order side by side."""
    told = row.told
    ids, numbers = told.get("patient_ids", []), told.get("accession_numbers", [])
    if order is None:
        return [
            Line("Patient", pn(told.get("patient_name")), "–"),
            Line("Patient ID", ", ".join(ids) or "–", "–"),
            Line("Born", dicom_date(told.get("patient_birth_date")), "–"),
            Line("Accession number", ", ".join(numbers) or "–", "–"),
        ]
    patient = order.patient
    known = set(patient.identifiers.values_list("value", flat=True))
    same_name = same_person_name(told.get("patient_name", ""), patient.patient_name)
    born, ordered_born = told.get("patient_birth_date", ""), patient.patient_birth_date
    wanted = [step.scheduled_procedure_step_id for step in steps]
    step_ids = told.get("step_ids", [])
    return [
        Line("Patient", pn(told.get("patient_name")), str(patient), same_name is False),
        Line(
            "Patient ID",
            ", ".join(ids) or "–",
            selectors.shown_identifier(patient) or "–",
            bool(ids) and not known & set(ids),
        ),
        Line(
            "Born",
            dicom_date(born),
            dicom_date(ordered_born),
            bool(born and ordered_born) and born != ordered_born,
        ),
        Line(
            "Accession number",
            ", ".join(numbers) or "–",
            order.accession_number or "–",
            bool(numbers) and order.accession_number not in numbers,
        ),
        Line(
            "Step",
            ", ".join(step_ids) or "–",
            ", ".join(wanted) or "none",
            bool(step_ids and wanted) and not set(step_ids) & set(wanted),
        ),
    ]


def _steps() -> QuerySet[ScheduledProcedureStep]:
    return ScheduledProcedureStep.objects.select_related("procedure__request__patient").prefetch_related(
        "procedure__request__patient__identifiers"
    )


def near(row: PerformedProcedureStep) -> list[ScheduledProcedureStep]:
    """Scheduled steps that it may have been meant for: the scanner's patient's, else this modality's at that time."""
    begun = row.started_at or row.created_at
    taken = row.steps.values("pk")
    ended = (StepStatus.CANCELED, StepStatus.DISCONTINUED)
    people = Q(procedure__request__patient__identifiers__value__in=row.told.get("patient_ids") or [""])
    rows = _steps().exclude(pk__in=taken).exclude(status__in=ended)
    theirs = list(rows.filter(people, modality=row.modality).distinct().order_by("start")[:8])
    at_the_time = rows.filter(
        start__range=(begun - NEAR, begun + NEAR),
        modality=row.modality,
        status__in=(StepStatus.SCHEDULED, StepStatus.ARRIVED, StepStatus.READY),
    )
    known = {step.pk for step in theirs}
    return theirs + [s for s in at_the_time.order_by("start")[:8] if s.pk not in known]
