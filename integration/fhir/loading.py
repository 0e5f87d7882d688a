"""Rows behind resources: what a reader may see, and many resources built with few queries."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db.models import Exists, OuterRef, QuerySet

from common.models import Site
from common.process import read_run_file
from common.roles import has_role
from integration.fhir.resources import diagnostic_report, endpoint, imaging_study, patient, service_request
from integration.fhir.resources.elements import Resource, Systems
from pacs import access
from pacs.models import Instance, Series, Study
from ris.models import (
    Patient,
    PatientIdentifier,
    Report,
    ReportVersion,
    RequestedProcedure,
    ScheduledProcedureStep,
    StudyMatch,
)


@dataclass
class Surroundings:
    """What builders need besides rows: the site's name and zone, its systems, and where images are fetched."""

    address: str
    site: Site | None = field(default_factory=lambda: Site.objects.filter(pk=1).first())

    @property
    def name(self) -> str:
        """The site's name."""
        return self.site.name if self.site else ""

    @cached_property
    def systems(self) -> Systems:
        """The site's own names of authorities and code systems (`fhir_systems`)."""
        return Systems(self.site.settings.get("fhir_systems") if self.site else None)

    @cached_property
    def zone(self) -> ZoneInfo | None:
        """The facility's zone, for studies that carry no offset; None where nobody has said one."""
        return ZoneInfo(self.site.timezone) if self.site else None

    @property
    def endpoint_id(self) -> str:
        """The id of the one Endpoint we have."""
        return endpoint.endpoint_id(self.address)


def surroundings() -> Surroundings:
    """The surroundings as they are now."""
    return Surroundings(f"{public_url()}/dicomweb")


def public_url() -> str:
    """How others reach our web process, without a slash at the end."""
    if settings.ORDERLY_PUBLIC_URL:
        return str(settings.ORDERLY_PUBLIC_URL)
    run = read_run_file(settings.DATA_DIR)
    port = run["ports"].get("http", settings.ORDERLY_HTTP_PORT) if run else settings.ORDERLY_HTTP_PORT
    return f"http://{settings.ORDERLY_BIND}:{port}"


# ------------------------------------------------------------------------------------------ who sees what


def patients(user: Any) -> QuerySet[Patient]:
    """The patients a reader may see: all for staff, else those of studies in the reader's scope."""
    if _sees_all(user):
        return Patient.objects.all()
    return Patient.objects.filter(requests__procedures__in=_procedures_in_scope(user)).distinct()


def service_requests(user: Any) -> QuerySet[RequestedProcedure]:
    """The procedures a reader may see, with their orders."""
    found = RequestedProcedure.objects.select_related("request")
    return found if _sees_all(user) else found.filter(pk__in=_procedures_in_scope(user))


def imaging_studies(user: Any) -> QuerySet[Study]:
    """The studies a reader may see."""
    return access.scope(user)


def diagnostic_reports(user: Any) -> QuerySet[Report]:
    """Reports of which a version was signed; a draft is nobody's business but its author's."""
    signed = ReportVersion.objects.filter(report=OuterRef("pk"))
    found = Report.objects.filter(Exists(signed)).select_related("procedure__request")
    return found if _sees_all(user) else found.filter(procedure__in=_procedures_in_scope(user))


def _sees_all(user: Any) -> bool:
    return has_role(user, *access.READERS)


def _procedures_in_scope(user: Any) -> QuerySet[RequestedProcedure]:
    matches = StudyMatch.objects.filter(undone_at=None, study__in=access.scope(user))
    return RequestedProcedure.objects.filter(pk__in=matches.values("procedure"))


# ------------------------------------------------------------------------------------------- many at once


def build_patients(rows: Iterable[Patient], around: Surroundings) -> list[Resource]:
    """Patients with their identifiers and links."""
    found = list(rows)
    ids = [p.id for p in found]
    identifiers = _by(
        PatientIdentifier.objects.filter(patient_id__in=ids).select_related("authority"),
        lambda i: i.patient_id,
    )
    retired = _by(Patient.objects.filter(merged_into_id__in=ids).only("id", "merged_into_id"), _merged_into)
    return [
        patient.build(p, identifiers[p.id], around.systems, replaces=[r.id for r in retired[p.id]])
        for p in found
    ]


def build_service_requests(rows: Iterable[RequestedProcedure], around: Surroundings) -> list[Resource]:
    """Procedures (with `.request`) and their steps."""
    found = list(rows)
    steps = _by(
        ScheduledProcedureStep.objects.filter(procedure_id__in=[p.id for p in found]),
        lambda s: s.procedure_id,
    )
    return [service_request.build(p, p.request, steps[p.id], around.systems) for p in found]


def build_imaging_studies(
    rows: Iterable[Study], around: Surroundings, *, instances: bool = True
) -> list[Resource]:
    """Studies with their series, and their instances where they are wanted."""
    found = list(rows)
    ids = [s.id for s in found]
    series = _by(Series.objects.filter(study_id__in=ids), lambda s: s.study_id)
    listed: dict[UUID, list[Instance]] = defaultdict(list)
    if instances:
        wanted = Instance.objects.filter(series__study_id__in=ids, hidden=False).order_by(
            "instance_number", "id"
        )
        listed = _by(
            wanted.only("series_id", "sop_instance_uid", "sop_class_uid", "instance_number", "attributes"),
            lambda i: i.series_id,
        )
    matches = {
        m.study_id: m
        for m in StudyMatch.objects.filter(study_id__in=ids, undone_at=None).select_related(
            "procedure__request"
        )
    }
    return [
        imaging_study.build(
            study,
            series[study.id],
            listed,
            around.systems,
            patient_id=match.procedure.request.patient_id if (match := matches.get(study.id)) else None,
            procedure=match.procedure if match else None,
            endpoint_id=around.endpoint_id,
            zone=around.zone,
        )
        for study in found
    ]


def build_diagnostic_reports(rows: Iterable[Report], around: Surroundings) -> list[Resource]:
    """Reports (with `.procedure.request`), their versions and the studies they are about."""
    found = list(rows)
    versions = _by(
        ReportVersion.objects.filter(report_id__in=[r.id for r in found]).order_by("number"),
        lambda v: v.report_id,
    )
    matches = _by(
        StudyMatch.objects.filter(
            procedure_id__in=[r.procedure_id for r in found], undone_at=None, study__hidden=False
        ).select_related("study"),
        lambda m: m.procedure_id,
    )
    return [
        diagnostic_report.build(
            report,
            versions[report.id],
            report.procedure,
            [m.study for m in matches[report.procedure_id]],
            around.systems,
            site=around.name,
            zone=around.zone,
        )
        for report in found
    ]


def build_endpoints(around: Surroundings) -> list[Resource]:
    """The one endpoint."""
    return [endpoint.build(around.address, around.name)]


def _by(rows: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    found: dict[Any, list[Any]] = defaultdict(list)
    for row in rows:
        found[key(row)].append(row)
    return found


def _merged_into(row: Patient) -> UUID | None:
    return row.merged_into_id
