"""The schedule: steps by day and station, giving them a time, moving them along."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.urls import URLPattern
from django.utils.http import url_has_allowed_host_and_scheme

from common.clock import now, to_site
from common.desk import DefaultFilter, DeskAdmin, chip
from common.templatetags.orderly import age, moment
from ris import selectors
from ris.admin.forms import ScheduleForm
from ris.deeds import carry_out
from ris.models import PerformedProcedureStep, ScheduledProcedureStep, Station
from ris.models.schedule import StepStatus
from ris.services import schedule, steps

# What a person usually does next; every other move stays possible on the step's own page.
NEXT = {
    StepStatus.SCHEDULED: (StepStatus.ARRIVED,),
    StepStatus.ARRIVED: (StepStatus.READY, StepStatus.STARTED),
    StepStatus.READY: (StepStatus.STARTED,),
    StepStatus.STARTED: (StepStatus.COMPLETED,),
    StepStatus.DEPARTED: (StepStatus.COMPLETED,),
    StepStatus.HELD: (StepStatus.SCHEDULED,),
}


class TimeFilter(DefaultFilter):
    """By when a step is due."""

    title = "time"
    parameter_name = "time"
    default = "all"

    def options(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        return [
            ("none", "Unscheduled"),
            ("today", "Today"),
            ("tomorrow", "Tomorrow"),
            ("week", "Next 7 days"),
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        midnight = to_site(now()).replace(hour=0, minute=0, second=0, microsecond=0)
        if self.value() == "none":
            return queryset.filter(pk__in=selectors.unscheduled_steps().values("pk"))
        first, days = {"today": (0, 1), "tomorrow": (1, 1), "week": (0, 7)}.get(self.value(), (0, 0))
        if not days:
            return queryset
        begin = midnight + timedelta(days=first)
        return queryset.filter(start__gte=begin, start__lt=begin + timedelta(days=days))


class StationFilter(DefaultFilter):
    """By the station that a step is planned on."""

    title = "station"
    parameter_name = "station"

    def options(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        return [(name, name) for name in Station.objects.values_list("name", flat=True)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() == "all":
            return queryset
        return queryset.filter(scheduled_station_names__contains=[self.value()])


@admin.register(ScheduledProcedureStep)
class StepAdmin(DeskAdmin):
    """Scheduled procedure steps."""

    called = ("step", "schedule")
    patient_data = "step"
    detail_template = "admin/ris/step.html"
    list_display = ("when", "patient_name", "exam", "modality", "station", "status_chip", "waits")
    list_display_links = ("when",)
    list_filter = (TimeFilter, "status", "modality", StationFilter)
    search_fields = ("scheduled_procedure_step_id",)
    search_help_text = "Patient, accession or step ID"
    ordering = ("start", "created_at")
    list_select_related = ("procedure__request__patient",)
    empty_hint = "Nothing here. Steps come with orders; look at another day or clear the filters."

    def find(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        if not term:
            return queryset
        own = queryset.model.objects.filter(scheduled_procedure_step_id__istartswith=term).values("pk")
        fitting = selectors.order_matches(term, "procedure__request__")
        return queryset.filter(fitting) | queryset.filter(pk__in=own)

    def patients_of(self, rows: Iterable[Any]) -> list[Any]:
        return [row.procedure.request.patient_id for row in rows]

    @admin.display(description="When", ordering="start")
    def when(self, row: ScheduledProcedureStep) -> str:
        return moment(row.start) if row.start else "not scheduled"

    @admin.display(description="Patient", ordering="procedure__request__patient__patient_name_search")
    def patient_name(self, row: ScheduledProcedureStep) -> str:
        return str(row.procedure.request.patient)

    @admin.display(description="Step")
    def exam(self, row: ScheduledProcedureStep) -> str:
        return row.scheduled_procedure_step_description or str(row.procedure)

    @admin.display(description="Station")
    def station(self, row: ScheduledProcedureStep) -> str:
        return ", ".join(row.scheduled_station_names or row.scheduled_station_ae_titles) or "any"

    @admin.display(description="Status", ordering="status")
    def status_chip(self, row: ScheduledProcedureStep) -> str:
        return chip(row.status, row.get_status_display())

    @admin.display(description="Waits", ordering="created_at")
    def waits(self, row: ScheduledProcedureStep) -> str:
        return age(row.created_at) if row.start is None and row.status == StepStatus.SCHEDULED else ""

    # -- the page of one step

    def detail(self, request: HttpRequest, row: ScheduledProcedureStep) -> dict[str, Any]:
        order = row.procedure.request
        form = ScheduleForm(initial={"start": row.start, "minutes": row.minutes})
        likely = NEXT.get(StepStatus(row.status), ())
        return {
            "title": "Scheduled step",
            "order": order,
            "patient": order.patient,
            "identifier": selectors.shown_identifier(order.patient),
            "form": form,
            "next": [(s.value, s.label) for s in likely],
            "others": [(s.value, s.label) for s in StepStatus if s != row.status and s not in likely],
            "ended": row.status in (StepStatus.COMPLETED, StepStatus.CANCELED, StepStatus.DISCONTINUED),
            "performed": PerformedProcedureStep.objects.filter(steps=row),
        }

    def own_urls(self) -> list[URLPattern]:
        return [
            self.door("<uuid:pk>/schedule/", self.schedule, "schedule", post=True),
            self.door("<uuid:pk>/move/", self.move, "move", post=True),
        ]

    def schedule(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """Give the step a time, a station and a length."""
        step = self._step(pk)
        form = ScheduleForm(request.POST)
        if form.is_valid():
            data = form.cleaned_data
            carry_out(
                request,
                lambda unit: schedule.place(
                    pk,
                    data["start"],
                    unit,
                    station_id=data["station"].pk if data["station"] else None,
                    minutes=data["minutes"],
                ),
                what="step",
                action="schedule",
                patients=[step.procedure.request.patient_id],
                objects=[pk],
                done="The step is scheduled." if data["start"] else "The step waits for a time.",
            )
        else:
            self.message_user(request, "Give a date with a time, such as 2026-03-01 08:30.", "ERROR")
        return self._back(request, step)

    def move(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """Move the step to another status."""
        step = self._step(pk)
        status = request.POST.get("status", "")
        if status in StepStatus.values:
            carry_out(
                request,
                lambda unit: steps.move(pk, status, "clerk", unit),
                what="step",
                action="move",
                patients=[step.procedure.request.patient_id],
                objects=[pk],
                done=f"The step is {StepStatus(status).label.lower()}.",
            )
        return self._back(request, step)

    def _step(self, pk: UUID) -> ScheduledProcedureStep:
        return get_object_or_404(ScheduledProcedureStep.objects.select_related("procedure__request"), pk=pk)

    def _back(self, request: HttpRequest, step: ScheduledProcedureStep) -> HttpResponse:
        """To the page that asked, if it is one of ours."""
        wanted = request.POST.get("back", "")
        if url_has_allowed_host_and_scheme(wanted, allowed_hosts={request.get_host()}):
            return redirect(wanted)
        return redirect(self.url_of(step))
