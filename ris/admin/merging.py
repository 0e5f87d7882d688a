"""Merging two patients by hand: find the other record, compare, see what moves, do it; and undo it likewise."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import URLPattern

from common import audit
from common.desk import DeskAdmin, desk_url
from common.templatetags.orderly import dicom_date, sex
from ris import selectors
from ris.deeds import carry_out
from ris.models import Patient, PatientIdentifier, PatientMerge
from ris.services import merging

_SUGGESTED_MOST = 10


@dataclass(frozen=True)
class Fact:
    """One line of the comparison of two records."""

    name: str
    survivor: str
    retired: str

    @property
    def state(self) -> str:
        """`same`, `differs`, or `open` where one of the two says nothing; numbers of two records always differ."""
        if not self.survivor or not self.retired or self.name == "Patient IDs":
            return "open"
        return "same" if self.survivor.casefold() == self.retired.casefold() else "differs"


class MergePages(DeskAdmin):
    """The pages of a patient that lead to a merge, and to its undoing."""

    def merge_urls(self) -> list[URLPattern]:
        """Their addresses; they name patients by row id alone."""
        return [
            self.door("<uuid:pk>/merge/", self.merge_find, "merge"),
            self.door("<uuid:pk>/merge/others/", self.merge_others, "merge_others", post=True),
            self.door("<uuid:pk>/merge/<uuid:other>/", self.merge, "merge_with"),
            self.door("merge/<uuid:pk>/undo/", self.undo_merge, "undo_merge"),
        ]

    def merge_find(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """First: which is the other record? Those that look like this patient are there at once."""
        patient = get_object_or_404(Patient, pk=pk)
        found = list(suggested(patient))
        self.record(request, "read", [patient, *found])
        return self.page(
            request,
            "admin/ris/merge_find.html",
            title="Merge patients",
            patient=patient,
            identifier=selectors.shown_identifier(patient),
            found=found,
        )

    def merge_others(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """The patients that a search finds (htmx)."""
        patient = get_object_or_404(Patient, pk=pk)
        term = request.POST.get("term", "").strip()
        found = [p for p in selectors.find_patients(term) if p.pk != pk] if term else list(suggested(patient))
        audit.record_request(
            request, "search", "patient", patients=[p.pk for p in found], detail={"count": len(found)}
        )
        return render(
            request, "admin/ris/merge_others.html", {"patient": patient, "found": found, "term": term}
        )

    def merge(self, request: HttpRequest, pk: UUID, other: UUID) -> HttpResponse:
        """Second: compare the two and see what would move (GET), then merge `other` into `pk` (POST)."""
        survivor, retired = get_object_or_404(Patient, pk=pk), get_object_or_404(Patient, pk=other)
        facts = compared(survivor, retired)
        doubtful = [f for f in facts if f.state == "differs" and f.name in ("Born", "Sex")]
        if request.method == "POST":
            if doubtful and not request.POST.get("sure"):
                messages.error(request, "The records contradict each other; say that it is one person.")
            elif self._merge(request, survivor, retired) is not None:
                return redirect(self.url_of(survivor))
        self.record(request, "read", [survivor, retired])
        return self.page(
            request,
            "admin/ris/merge.html",
            title="Merge patients",
            survivor=survivor,
            survivor_identifier=selectors.shown_identifier(survivor),
            retired=retired,
            retired_identifier=selectors.shown_identifier(retired),
            facts=facts,
            doubtful=doubtful,
            plan=merging.preview(survivor, retired),
        )

    def _merge(self, request: HttpRequest, survivor: Patient, retired: Patient) -> PatientMerge | None:
        return carry_out(
            request,
            lambda unit: merging.merge_by_hand(survivor.pk, retired.pk, unit),
            what="patient",
            action="merge",
            patients=[survivor.pk, retired.pk],
            done="Merged. Orders, studies, reports and the worklist show this patient now.",
        )

    def undo_merge(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """See what goes back and what stays (GET), then undo the merge or move (POST)."""
        row = get_object_or_404(PatientMerge.objects.select_related("survivor", "retired"), pk=pk)
        if request.method == "POST":
            undone = carry_out(
                request,
                lambda unit: merging.unmerge(row.pk, unit),
                what="patient",
                action="unmerge",
                patients=[row.survivor_id, row.retired_id],
                objects=[row.pk],
                done="Undone: what it had changed is as it was, what came since is kept.",
            )
            if undone is not None or row.undone_at is not None:
                return redirect(desk_url("ris.patient", row.survivor_id))
        self.record(request, "read", [row.survivor, row.retired])
        return self.page(
            request,
            "admin/ris/merge_undo.html",
            title="Undo a merge",
            merge=row,
            plan=merging.preview_undo(row),
        )


def suggested(patient: Patient) -> QuerySet[Patient]:
    """Records that look like the same person: same name, or same birth date and the same beginning of the name."""
    name = patient.patient_name_search
    same = Q(patient_name_search=name) if name else Q(pk__in=[])
    if patient.patient_birth_date and name:
        same |= Q(patient_birth_date=patient.patient_birth_date, patient_name_search__startswith=name[:3])
    found = Patient.objects.filter(same, merged_into=None).exclude(pk=patient.pk).order_by("-updated_at")
    return selectors.with_identifiers(found)[:_SUGGESTED_MOST]


def compared(survivor: Patient, retired: Patient) -> list[Fact]:
    """The two records, line by line."""

    def of(patient: Patient) -> list[tuple[str, str]]:
        current = PatientIdentifier.Status.CURRENT
        identifiers = patient.identifiers.filter(status=current).select_related("authority")
        return [
            ("Name", str(patient) if patient.patient_name else ""),
            ("Born", dicom_date(patient.patient_birth_date) if patient.patient_birth_date else ""),
            ("Sex", sex(patient.patient_sex)),
            ("Patient IDs", ", ".join(str(i) for i in identifiers.order_by("position", "id"))),
            ("Address", str(patient.details.get("patient_address", ""))),
            ("Telephone", str(patient.details.get("patient_telephone_numbers", ""))),
            ("Known by", "" if not patient.provisional else "images only"),
        ]

    lines = zip(of(survivor), of(retired), strict=True)
    return [Fact(name, ours, theirs) for (name, ours), (_, theirs) in lines if ours or theirs]


def merges_of(patient: Patient) -> QuerySet[PatientMerge]:
    """Merges into this patient, and moves to and from it, newest first."""
    moves = Q(retired=patient, kind=PatientMerge.Kind.MOVE)
    return PatientMerge.objects.filter(Q(survivor=patient) | moves).select_related("survivor", "retired")


def told(row: PatientMerge, patient: Patient) -> dict[str, Any]:
    """A merge or move as the patient's page tells it: the other patient, and in which words."""
    if row.kind == PatientMerge.Kind.MERGE:
        return {"row": row, "other": row.retired, "words": "merged in"}
    if row.survivor_id == row.retired_id:
        return {"row": row, "other": row.survivor, "words": "visit or account moved"}
    got = row.survivor_id == patient.pk
    return {
        "row": row,
        "other": row.retired if got else row.survivor,
        "words": "moved from there" if got else "moved to there",
    }
