"""Unmatched studies: the list, the page with candidates side by side, one click to link and one to undo."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import URLPattern
from django.utils.html import format_html

from common import audit
from common.clock import to_site
from common.desk import DefaultFilter, DeskAdmin, chip
from common.templatetags.orderly import age, attribute, dicom_date, moment, pn, sex
from ris import context, selectors
from ris.admin import story
from ris.deeds import carry_out
from ris.models import ReconciliationCase, RequestedProcedure, StudyMatch
from ris.reconciliation import cases
from ris.reconciliation.evidence import ProcedureFacts, StudyFacts, Weighed, weigh

State = ReconciliationCase.State


@dataclass(frozen=True)
class Comparison:
    """One line of the table: what the images say, what the order says, and the verdict."""

    about: str
    images: str
    order: str
    verdict: str
    reason: str


@dataclass(frozen=True)
class Candidate:
    """A procedure that may be the study's, compared with it."""

    procedure: RequestedProcedure
    score: float
    lines: list[Comparison]
    open: bool

    @property
    def against(self) -> int:
        """How many comparisons contradict."""
        return sum(line.verdict == "contradicts" for line in self.lines)


class StateFilter(DefaultFilter):
    """Open cases unless asked otherwise."""

    title = "state"
    parameter_name = "state"
    default = State.OPEN

    def options(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        return State.choices

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset if self.value() == "all" else queryset.filter(state=self.value())


@admin.register(ReconciliationCase)
class CaseAdmin(DeskAdmin):
    """Studies without a sure match."""

    called = ("unmatched study", "unmatched studies")
    patient_data = "study"
    detail_template = "admin/ris/case.html"
    list_display = (
        "arrived",
        "patient_name",
        "patient_id",
        "what",
        "reason",
        "candidate_count",
        "state_chip",
        "waits",
    )
    list_display_links = ("arrived", "patient_name")
    list_filter = (StateFilter,)
    search_fields = ("study__patient_id",)
    search_help_text = "Name, ID or accession in the images"
    ordering = ("opened_at",)
    list_select_related = ("study",)
    empty_hint = "Every study has found its order. Studies that do not match surely wait here for a person."

    def find(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        if not term:
            return queryset
        found = queryset.none()
        for name in ("patient_name__icontains", "patient_id__istartswith", "accession_number__istartswith"):
            found = found | queryset.filter(**{f"study__{name}": term})
        return found

    def patients_of(self, rows: Iterable[Any]) -> list[Any]:
        live = StudyMatch.objects.filter(study__in=[row.study_id for row in rows], undone_at__isnull=True)
        return list(live.values_list("procedure__request__patient_id", flat=True))

    @admin.display(description="Arrived", ordering="study__received_at")
    def arrived(self, row: ReconciliationCase) -> str:
        return moment(row.study.received_at)

    @admin.display(description="Name in the images")
    def patient_name(self, row: ReconciliationCase) -> str:
        return pn(row.study.patient_name)

    @admin.display(description="ID in the images")
    def patient_id(self, row: ReconciliationCase) -> str:
        return row.study.patient_id or "–"

    @admin.display(description="Study")
    def what(self, row: ReconciliationCase) -> str:
        study = row.study
        name = study.study_description or "/".join(study.modalities_in_study)
        return f"{name}, {study.number_of_study_related_instances} images"

    @admin.display(description="Candidates")
    def candidate_count(self, row: ReconciliationCase) -> int:
        return len(row.candidates)

    @admin.display(description="State", ordering="state")
    def state_chip(self, row: ReconciliationCase) -> str:
        return chip(row.state, State(row.state).label.partition(":")[0])

    @admin.display(description="Waits", ordering="opened_at")
    def waits(self, row: ReconciliationCase) -> str:
        return (
            format_html("<span class='o-nowrap'>{}</span>", age(row.opened_at))
            if row.state == State.OPEN
            else ""
        )

    # -- the page of one case

    def detail(self, request: HttpRequest, row: ReconciliationCase) -> dict[str, Any]:
        match = (
            StudyMatch.objects.filter(study=row.study, undone_at__isnull=True)
            .select_related("procedure__request__patient")
            .first()
        )
        facts = cases.study_facts(row.study)
        shown = [] if match else compare(facts, [UUID(c["procedure_id"]) for c in row.candidates])
        if not match:
            self._record_candidates(request, shown)
        return {
            "title": "Unmatched study",
            "study": row.study,
            "facts": facts,
            "series": row.study.series.all(),
            "match": match,
            "evidence": [e for e in match.evidence if e["verdict"] != "silent"] if match else [],
            "linked_by": _linked_by(match) if match else "",
            "identifier": selectors.shown_identifier(match.procedure.request.patient) if match else "",
            "candidates": shown,
            "before": StudyMatch.objects.filter(study=row.study, undone_at__isnull=False).select_related(
                "procedure__request"
            ),
        }

    def _record_candidates(self, request: HttpRequest, shown: list[Candidate]) -> None:
        patients = [c.procedure.request.patient_id for c in shown]
        objects = [c.procedure.request_id for c in shown]
        if shown:
            audit.record_request(request, "read", "order", patients=dict.fromkeys(patients), objects=objects)

    def own_urls(self) -> list[URLPattern]:
        return [
            self.door("<uuid:pk>/link/<uuid:procedure>/", self.link, "link", post=True),
            self.door("<uuid:pk>/undo/", self.undo, "undo", post=True),
            self.door("<uuid:pk>/dismiss/", self.dismiss, "dismiss", post=True),
            self.door("<uuid:pk>/reopen/", self.reopen, "reopen", post=True),
            self.door("<uuid:pk>/orders/", self.find_orders, "orders", post=True),
        ]

    def link(self, request: HttpRequest, pk: UUID, procedure: UUID) -> HttpResponse:
        """Link the study to a procedure."""
        case = self._case(pk)
        patient = RequestedProcedure.objects.filter(pk=procedure).values_list(
            "request__patient_id", flat=True
        )
        carry_out(
            request,
            lambda unit: cases.link(case.study_id, procedure, request.user, unit),
            what="study",
            action="link",
            patients=list(patient),
            objects=[case.study_id, procedure],
            done="Linked. Every answer about these images now carries the order's patient.",
        )
        return redirect(self.url_of(case))

    def undo(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """Take the link back."""
        case = self._case(pk)
        carry_out(
            request,
            lambda unit: cases.unlink(case.study_id, request.user, unit),
            what="study",
            action="unlink",
            objects=[case.study_id],
            done="The link is undone; the images carry what the scanner wrote again.",
        )
        return redirect(self.url_of(case))

    def dismiss(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """Let the study stay without an order."""
        case = self._case(pk)
        carry_out(
            request,
            lambda unit: cases.dismiss(case.study_id, request.user, unit),
            what="study",
            action="dismiss",
            objects=[case.study_id],
            done="The study stays in the archive without an order.",
        )
        return redirect(self.url_of(case))

    def reopen(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """Look at it again, with the orders as they are now."""
        case = self._case(pk)
        carry_out(
            request,
            lambda unit: cases.reopen(case.study_id, unit),
            what="study",
            action="reopen",
            objects=[case.study_id],
            done="Compared again with the orders as they are now.",
        )
        return redirect(self.url_of(case))

    def find_orders(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """Other procedures that a search finds, compared in the same way (htmx)."""
        case = self._case(pk)
        term = request.POST.get("term", "").strip()
        found: list[Candidate] = []
        if term:
            rows = RequestedProcedure.objects.filter(selectors.order_matches(term, "request__"))
            ids = rows.order_by("-created_at").values_list("pk", flat=True)[:12]
            found = compare(cases.study_facts(case.study), list(ids))
            self._record_candidates(request, found)
        frame = {"row": case, "candidates": found, "term": term, "may_act": True}
        return render(request, "admin/ris/candidates.html", frame)

    def _case(self, pk: UUID) -> ReconciliationCase:
        return get_object_or_404(ReconciliationCase.objects.select_related("study"), pk=pk)


def _linked_by(match: StudyMatch) -> str:
    if match.method == StudyMatch.Method.CLERK:
        return story.explain(match.cause)[0]
    return f"by {match.get_method_display()}"


def compare(facts: StudyFacts, procedure_ids: list[UUID]) -> list[Candidate]:
    """These procedures beside what the images say, as both are now; best first."""
    ctx = context.load(procedures=procedure_ids)
    rows = {
        p.pk: p
        for p in RequestedProcedure.objects.filter(pk__in=procedure_ids)
        .select_related("request__patient")
        .prefetch_related("request__patient__identifiers", "steps")
    }
    weighed = [
        weigh(facts, cases.procedure_facts(p, ctx))
        for procedures in ctx.procedures.values()
        for p in procedures
        if p.pk in rows
    ]
    return [
        _candidate(facts, one, rows[UUID(one.procedure.procedure_id)])
        for one in sorted(weighed, key=_worst_last)
    ]


def _worst_last(one: Weighed) -> float:
    return -one.score


def _candidate(facts: StudyFacts, one: Weighed, procedure: RequestedProcedure) -> Candidate:
    lines = [
        Comparison(
            "date and time" if e.about == "time" else attribute(e.about),
            *_both_sides(e.about, facts, one.procedure, procedure),
            verdict=e.verdict.value,
            reason=e.reason,
        )
        for e in one.evidence
    ]
    return Candidate(procedure, one.score, lines, one.procedure.is_open)


def _both_sides(
    about: str, facts: StudyFacts, asked: ProcedureFacts, procedure: RequestedProcedure
) -> tuple[str, str]:
    """What images and order say about one point, as a person reads it."""
    if about == "patient_id":
        return _with_issuer(facts), selectors.shown_identifier(procedure.request.patient) or "–"
    if about == "modality":
        return _several(facts.modalities), _several(asked.modalities)
    if about == "station":
        return _several(facts.stations), _several(asked.stations)
    if about == "time":
        starts = ", ".join(f"{to_site(start):%Y-%m-%d %H:%M}" for start in asked.starts)
        acquired = f"{to_site(facts.acquired_at):%Y-%m-%d %H:%M}" if facts.acquired_at else "–"
        return acquired, starts or "not scheduled"
    if about in ("requested_procedure_id", "scheduled_procedure_step_id"):
        plural = f"{about}s"
        ordered = getattr(asked, plural, None)
        return _several(getattr(facts, plural)), _several(
            ordered if ordered is not None else [getattr(asked, about)]
        )
    form = {"patient_name": pn, "patient_birth_date": dicom_date, "patient_sex": sex}.get(about, str)
    return form(getattr(facts, about)) or "–", form(getattr(asked, about)) or "–"


def _with_issuer(facts: StudyFacts) -> str:
    if not facts.patient_id:
        return "–"
    return (
        f"{facts.patient_id} ({facts.issuer_of_patient_id})"
        if facts.issuer_of_patient_id
        else facts.patient_id
    )


def _several(values: Iterable[str]) -> str:
    return ", ".join(sorted(v for v in values if v)) or "–"
