"""What pages ask of `ris`: lists and what surrounds one thing. Reads only; services change."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import Case, Exists, IntegerField, Min, OuterRef, Prefetch, Q, QuerySet, Value, When

from common.clock import now
from common.names import search_form
from pacs.models import Study
from ris.models import (
    ImagingServiceRequest,
    Patient,
    PatientIdentifier,
    PerformedProcedureStep,
    Practitioner,
    ReportVersion,
    RequestedProcedure,
    ScheduledProcedureStep,
    StudyMatch,
)
from ris.models.procedures import Priority
from ris.models.reports import ReportStatus
from ris.models.schedule import StepStatus

# How soon after its images a study should be read; a site's own promise comes with its catalogue.
PROMISE = {
    Priority.STAT: timedelta(hours=1),
    Priority.HIGH: timedelta(hours=4),
    Priority.ROUTINE: timedelta(hours=24),
    Priority.MEDIUM: timedelta(hours=24),
    Priority.LOW: timedelta(hours=72),
}
_URGENCY = (Priority.STAT, Priority.HIGH, Priority.ROUTINE, Priority.MEDIUM, Priority.LOW)
_WORKING = (ReportStatus.DRAFT, ReportStatus.PRELIMINARY)


@dataclass(frozen=True)
class Reading:
    """A line of the reading list."""

    procedure: RequestedProcedure
    patient: Patient
    identifier: str
    modalities: list[str]
    images: int
    arrived_at: datetime
    due_at: datetime

    @property
    def late(self) -> bool:
        """Whether the promised time is over."""
        return now() > self.due_at


# -- patients


def with_identifiers(patients: QuerySet[Patient]) -> QuerySet[Patient]:
    """The patients with their identifiers read along, the one to show first."""
    return patients.prefetch_related(
        Prefetch(
            "identifiers", PatientIdentifier.objects.select_related("authority").order_by("position", "id")
        )
    )


def shown_identifier(patient: Patient) -> str:
    """The identifier that pages show: the first current one; empty when there is none."""
    current = [i for i in patient.identifiers.all() if i.status == PatientIdentifier.Status.CURRENT]
    return current[0].value if current else ""


def patient_matches(term: str, prefix: str = "") -> Q:
    """The condition that a patient fits a search: each word begins a part of the name or is in it, or an identifier.

    `prefix` is the path to the patient, such as `request__patient__`.
    """
    condition = Q()
    for word in search_form(term).split():
        condition &= Q(**{f"{prefix}patient_name_search__contains": word})
    identifiers = PatientIdentifier.objects.filter(value__istartswith=term.strip()).values("patient_id")
    return condition | Q(**{f"{prefix}id__in": identifiers})


def find_patients(term: str, limit: int = 20) -> list[Patient]:
    """Patients for a picker, merged ones left out."""
    if not term.strip():
        return []
    found = Patient.objects.filter(merged_into__isnull=True).filter(patient_matches(term))
    return list(with_identifiers(found)[:limit])


# -- orders


def order_matches(term: str, prefix: str = "") -> Q:
    """The condition that an order fits a search: one of its numbers, or its patient."""
    numbers = Q()
    for name in ("accession_number", "placer_order_number", "filler_order_number"):
        numbers |= Q(**{f"{prefix}{name}__istartswith": term.strip()})
    return numbers | patient_matches(term, f"{prefix}patient__")


def unscheduled_steps() -> QuerySet[ScheduledProcedureStep]:
    """Steps that wait for a time."""
    waiting = (StepStatus.SCHEDULED, StepStatus.ARRIVED, StepStatus.READY)
    return ScheduledProcedureStep.objects.filter(start__isnull=True, status__in=waiting)


def whole_order(request_id: Any) -> ImagingServiceRequest | None:
    """An order with everything its page shows."""
    procedures = RequestedProcedure.objects.select_related("report").prefetch_related(
        Prefetch("steps", ScheduledProcedureStep.objects.order_by("start", "scheduled_procedure_step_id")),
        Prefetch(
            "matches",
            StudyMatch.objects.filter(undone_at__isnull=True).select_related("study"),
            to_attr="live_matches",
        ),
    )
    return (
        ImagingServiceRequest.objects.select_related("patient", "visit")
        .prefetch_related(
            Prefetch("procedures", procedures.order_by("requested_procedure_id")),
            Prefetch(
                "patient__identifiers",
                PatientIdentifier.objects.select_related("authority").order_by("position"),
            ),
        )
        .filter(pk=request_id)
        .first()
    )


def performed_for(steps: list[ScheduledProcedureStep]) -> list[PerformedProcedureStep]:
    """What scanners reported for these steps."""
    return list(PerformedProcedureStep.objects.filter(steps__in=steps).distinct().order_by("created_at"))


# -- reading


def unread() -> QuerySet[RequestedProcedure]:
    """Procedures whose images have arrived and whose report is not final; `arrived_at` is when the first came."""
    live = StudyMatch.objects.filter(procedure=OuterRef("pk"), undone_at__isnull=True, study__hidden=False)
    return (
        RequestedProcedure.objects.filter(Exists(live))
        .filter(Q(report__isnull=True) | Q(report__status__in=_WORKING))
        .annotate(
            arrived_at=Min(
                "matches__study__received_at",
                filter=Q(matches__undone_at__isnull=True, matches__study__hidden=False),
            )
        )
    )


def reading_list(term: str = "", modality: str = "", limit: int = 200) -> list[Reading]:
    """What waits to be read: urgent first, then by promise; at most `limit` lines."""
    waiting = unread()
    if term.strip():
        waiting = waiting.filter(
            order_matches(term, "request__") | Q(requested_procedure_description__icontains=term.strip())
        )
    if modality:
        waiting = waiting.filter(
            matches__undone_at__isnull=True, matches__study__modalities_in_study__contains=[modality]
        )
    urgency = Case(
        *(When(requested_procedure_priority=p, then=Value(rank)) for rank, p in enumerate(_URGENCY)),
        default=Value(2),
        output_field=IntegerField(),
    )
    rows = (
        waiting.annotate(urgency=urgency)
        .order_by("urgency", "arrived_at", "pk")
        .select_related("request__patient", "report__reader")
        .prefetch_related(
            Prefetch("request__patient__identifiers", PatientIdentifier.objects.order_by("position")),
            Prefetch(
                "matches",
                StudyMatch.objects.filter(undone_at__isnull=True).select_related("study"),
                to_attr="live_matches",
            ),
        )
    )
    return [_reading(procedure) for procedure in rows[:limit]]


def _reading(procedure: Any) -> Reading:
    studies = [m.study for m in procedure.live_matches if not m.study.hidden]
    promise = PROMISE.get(procedure.requested_procedure_priority, PROMISE[Priority.ROUTINE])
    return Reading(
        procedure=procedure,
        patient=procedure.request.patient,
        identifier=shown_identifier(procedure.request.patient),
        modalities=sorted({m for s in studies for m in s.modalities_in_study}),
        images=sum(s.number_of_study_related_instances for s in studies),
        arrived_at=procedure.arrived_at,
        due_at=procedure.arrived_at + promise,
    )


def modalities_to_read() -> list[str]:
    """The modalities that the reading list holds now, for its filter."""
    lists = Study.objects.filter(
        hidden=False, matches__undone_at__isnull=True, matches__procedure__in=unread().values("pk")
    ).values_list("modalities_in_study", flat=True)
    return sorted({m for one in lists for m in one})


def studies_of(procedure: RequestedProcedure) -> list[Study]:
    """The studies linked to a procedure, oldest first."""
    return list(
        Study.objects.filter(
            matches__procedure=procedure, matches__undone_at__isnull=True, hidden=False
        ).order_by("received_at")
    )


def prior_reports(patient_id: UUID, without: UUID) -> list[ReportVersion]:
    """The newest signed version of each other report of a patient, newest first; each report's own order inside."""
    newest = (
        ReportVersion.objects.filter(report__procedure__request__patient_id=patient_id)
        .exclude(report__procedure_id=without)
        .order_by("report_id", "-number")
        .distinct("report_id")
    )
    versions = ReportVersion.objects.filter(pk__in=newest.values("pk")).select_related(
        "report__procedure__request"
    )
    return list(versions.order_by("-signed_at"))


# -- referrers


def requests_of(practitioner: Practitioner | None) -> QuerySet[ImagingServiceRequest]:
    """The orders that a practitioner placed or is named in as referring physician; none without an identifier."""
    if practitioner is None or not practitioner.identifier:
        return ImagingServiceRequest.objects.none()
    number = practitioner.identifier
    return ImagingServiceRequest.objects.filter(
        Q(requesting_physician_id=number) | Q(referring_physician_id=number)
    )
