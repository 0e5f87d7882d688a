"""Search: one table of parameters that drives both the queries and the CapabilityStatement."""

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote
from uuid import UUID

from django.db.models import Exists, OuterRef, Q, QuerySet, Subquery

from common.names import search_form
from integration.fhir import loading
from integration.fhir.loading import Surroundings
from integration.fhir.resources import diagnostic_report
from integration.fhir.resources.elements import DICOM_UID, Resource
from ris.models import (
    AssigningAuthority,
    PatientIdentifier,
    Report,
    ReportVersion,
    ScheduledProcedureStep,
    StudyMatch,
)
from ris.models.schedule import StepStatus

_NOTHING = Q(pk__in=[])


class BadSearch(ValueError):
    """A search that cannot be carried out; the text names the parameter."""


@dataclass(frozen=True)
class Parameter:
    """One search parameter: its FHIR type, and the condition for one of its (comma-separated) values."""

    kind: str
    condition: Callable[[str, Surroundings], Q]
    note: str = ""


@dataclass(frozen=True)
class ResourceType:
    """A type we serve: its rows for a reader, the builder of many, and its parameters."""

    name: str
    rows: Callable[[Any], QuerySet[Any]] | None
    """None for what we have no rows of: then `build` gives all there is."""
    build: Callable[..., list[Resource]]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    patient_of: Callable[[Resource], str] = lambda resource: ""
    """The id of the patient a resource is about, for the audit trail."""


# ------------------------------------------------------------------------------------------------- values


def split(value: str) -> list[str]:
    """The alternatives of a value: parted by commas that are not escaped (search.html, "escaping")."""
    return [re.sub(r"\\([,|$\\])", r"\1", part) for part in re.split(r"(?<!\\),", value) if part]


def token(value: str) -> tuple[str | None, str]:
    """`system|code` as (system, code); system None where none is named, empty for `|code`."""
    system, bar, code = value.rpartition("|")
    return (system if bar else None), code


def ids(value: str) -> list[UUID]:
    """The value as a row id, or nothing: an id of another form is of no row."""
    try:
        return [UUID(value)]
    except ValueError:
        return []


def referenced(value: str, kind: str) -> list[UUID]:
    """The id in `id`, `Type/id` or an absolute address; nothing when it names another type."""
    parts = value.rstrip("/").split("/")
    if len(parts) > 1 and parts[-2] != kind:
        return []
    return ids(parts[-1])


def bare_uid(value: str) -> str:
    """A UID with or without `urn:oid:`."""
    return value.removeprefix("urn:oid:")


# --------------------------------------------------------------------------------------------- conditions


def _by_id(value: str, around: Surroundings) -> Q:
    return Q(pk__in=ids(value))


def _numbered(number: str, issuer: str, system: str | None, around: Surroundings, value: str) -> Q:
    """A number and its issuer in two columns, such as accession_number and its issuer."""
    condition = Q(**{number: value}) & ~Q(**{number: ""})
    if system is None:
        return condition
    return condition & Q(**{f"{issuer}__in": namespaces(system, around)})


def namespaces(system: str, around: Surroundings) -> list[str]:
    """The namespaces that a system stands for: the inverse of Systems.authority."""
    known = [n for n, uri in around.systems.names.items() if uri == system]
    if system == "":
        return ["", *known]
    if system.startswith("urn:id:"):
        return [*known, unquote(system.removeprefix("urn:id:"))]
    if system.startswith("urn:oid:"):
        return [*known, system.removeprefix("urn:oid:")]
    return known or [system]


def _authorities(system: str, around: Surroundings) -> list[UUID]:
    """The authorities whose identifiers carry this system; there are few of them."""
    return [
        a.id
        for a in AssigningAuthority.objects.all()
        if around.systems.authority(a.namespace, a.universal_id, a.universal_id_type) == system
    ]


def _patient_identifier(value: str, around: Surroundings) -> Q:
    system, code = token(value)
    rows = PatientIdentifier.objects.filter(patient=OuterRef("pk"))
    if code:
        rows = rows.filter(value=code)
    if system is not None:
        rows = rows.filter(authority__in=_authorities(system, around))
    return Q(Exists(rows))


def _request_identifier(value: str, around: Surroundings) -> Q:
    system, code = token(value)
    if not code:
        return _NOTHING
    if system == DICOM_UID:
        return Q(study_instance_uid=bare_uid(code))
    pairs = (
        ("placer_order_number", "placer_issuer"),
        ("filler_order_number", "filler_issuer"),
        ("request__placer_order_number", "request__placer_issuer"),
        ("request__filler_order_number", "request__filler_issuer"),
        ("request__accession_number", "request__issuer_of_accession_number"),
    )
    condition = Q(requested_procedure_id=code) if not system else _NOTHING
    for number, issuer in pairs:
        condition |= _numbered(number, issuer, system, around, code)
    if system is None:
        condition |= Q(study_instance_uid=bare_uid(code))
    return condition


def _study_identifier(value: str, around: Surroundings) -> Q:
    system, code = token(value)
    if not code:
        return _NOTHING
    by_uid = Q(study_instance_uid=bare_uid(code))
    if system == DICOM_UID:
        return by_uid
    by_number = _numbered("accession_number", "issuer_of_accession_number", system, around, code)
    if system:
        return by_number
    return by_number | Q(study_id=code) | (by_uid if system is None else _NOTHING)


def _report_identifier(value: str, around: Surroundings) -> Q:
    system, code = token(value)
    if not code:
        return _NOTHING
    condition = _numbered(
        "procedure__request__accession_number",
        "procedure__request__issuer_of_accession_number",
        system,
        around,
        code,
    )
    for path in ("procedure__", "procedure__request__"):
        condition |= _numbered(f"{path}filler_order_number", f"{path}filler_issuer", system, around, code)
    return condition


def _study_patient(value: str, around: Surroundings) -> Q:
    return _matched(procedure__request__patient__in=referenced(value, "Patient"))


def _matched(**condition: Any) -> Q:
    return Q(Exists(StudyMatch.objects.filter(study=OuterRef("pk"), undone_at=None, **condition)))


def _study_status(value: str, around: Surroundings) -> Q:
    _, code = token(value)
    return {"available": Q(settled_at__isnull=False), "registered": Q(settled_at=None)}.get(code, _NOTHING)


def _report_status(value: str, around: Surroundings) -> Q:
    _, code = token(value)
    ours = [status for status, theirs in diagnostic_report.STATUS.items() if theirs == code]
    last = ReportVersion.objects.filter(report=OuterRef("pk")).order_by("-number").values("status")[:1]
    return Q(pk__in=Report.objects.annotate(last=Subquery(last)).filter(last__in=ours).values("pk"))


def _request_status(value: str, around: Surroundings) -> Q:
    """The same judgement as resources/service_request.py `status`, in SQL."""
    _, code = token(value)
    steps = ScheduledProcedureStep.objects.filter(procedure=OuterRef("pk"))
    some = Q(Exists(steps))
    ends = (StepStatus.COMPLETED, StepStatus.CANCELED, StepStatus.DISCONTINUED)
    all_ended = some & ~Q(Exists(steps.exclude(status__in=ends)))
    all_held = some & ~Q(Exists(steps.exclude(status=StepStatus.HELD)))
    one_done = Q(Exists(steps.filter(status=StepStatus.COMPLETED)))
    active = Q(request__status="ACTIVE")
    return {
        "revoked": Q(request__status__in=("CANCELED", "DISCONTINUED")) | active & all_ended & ~one_done,
        "on-hold": Q(request__status="HELD") | active & all_held,
        "completed": Q(request__status="COMPLETED") | active & all_ended & one_done,
        "active": active & ~all_ended & ~all_held,
    }.get(code, _NOTHING)


def _patient_name(value: str, around: Surroundings) -> Q:
    condition = Q()
    for word in search_form(value).split():
        condition &= Q(patient_name_search__contains=word)
    return condition


def _patient_active(value: str, around: Surroundings) -> Q:
    return {"true": Q(merged_into=None), "false": Q(merged_into__isnull=False)}.get(token(value)[1], _NOTHING)


# -------------------------------------------------------------------------------------------------- table


def _subject(resource: Resource) -> str:
    return str(resource.get("subject", {}).get("reference", "")).removeprefix("Patient/")


def _reference(path: str, kind: str) -> Callable[[str, Surroundings], Q]:
    return lambda value, around: Q(**{f"{path}__in": referenced(value, kind)})


_ID = Parameter("token", _by_id)

TYPES: dict[str, ResourceType] = {
    "Patient": ResourceType(
        "Patient",
        loading.patients,
        loading.build_patients,
        {
            "_id": _ID,
            "identifier": Parameter("token", _patient_identifier),
            "name": Parameter("string", _patient_name),
            "birthdate": Parameter("date", lambda v, a: Q(patient_birth_date=v.replace("-", ""))),
            "active": Parameter("token", _patient_active),
        },
        lambda resource: str(resource["id"]),
    ),
    "ServiceRequest": ResourceType(
        "ServiceRequest",
        loading.service_requests,
        loading.build_service_requests,
        {
            "_id": _ID,
            "identifier": Parameter(
                "token", _request_identifier, "accession, placer, filler number, study UID"
            ),
            "patient": Parameter("reference", _reference("request__patient", "Patient")),
            "subject": Parameter("reference", _reference("request__patient", "Patient")),
            "status": Parameter("token", _request_status),
        },
        _subject,
    ),
    "ImagingStudy": ResourceType(
        "ImagingStudy",
        loading.imaging_studies,
        loading.build_imaging_studies,
        {
            "_id": _ID,
            "identifier": Parameter(
                "token", _study_identifier, "study UID with or without urn:oid:, accession"
            ),
            "patient": Parameter("reference", _study_patient),
            "subject": Parameter("reference", _study_patient),
            "basedon": Parameter(
                "reference", lambda v, a: _matched(procedure__in=referenced(v, "ServiceRequest"))
            ),
            "modality": Parameter("token", lambda v, a: Q(modalities_in_study__contains=[token(v)[1]])),
            "status": Parameter("token", _study_status),
        },
        _subject,
    ),
    "DiagnosticReport": ResourceType(
        "DiagnosticReport",
        loading.diagnostic_reports,
        loading.build_diagnostic_reports,
        {
            "_id": _ID,
            "identifier": Parameter("token", _report_identifier, "accession, filler number"),
            "patient": Parameter("reference", _reference("procedure__request__patient", "Patient")),
            "subject": Parameter("reference", _reference("procedure__request__patient", "Patient")),
            "based-on": Parameter("reference", _reference("procedure", "ServiceRequest")),
            "status": Parameter("token", _report_status),
        },
        _subject,
    ),
    "Endpoint": ResourceType(
        "Endpoint",
        None,
        lambda rows, around: loading.build_endpoints(around),
        {"_id": _ID},
    ),
}

# Parameters that say how results are shown, not which.
CONTROLS = frozenset({"_count", "_cursor", "_summary", "_total", "_format"})

# Other spellings (R5, IHE) of the same parameters.
ALIASES = {"based-on": "basedon", "basedOn": "based-on", "basedon": "based-on"}


def parameter_of(resource_type: ResourceType, name: str) -> Parameter | None:
    """The parameter of this name or of another spelling of it."""
    return resource_type.parameters.get(name) or resource_type.parameters.get(ALIASES.get(name, ""))


def condition_of(
    resource_type: ResourceType, query: Iterable[tuple[str, str]], around: Surroundings
) -> tuple[Q, list[str]]:
    """The condition of a search, and the names of parameters we do not know.

    A parameter that is repeated must hold each time; commas mean "or". Raises BadSearch.
    """
    condition, unknown = Q(), []
    for name, value in query:
        if name in CONTROLS:
            continue
        bare, _, modifier = name.partition(":")
        parameter = parameter_of(resource_type, bare)
        if parameter is None:
            unknown.append(name)
            continue
        if modifier and not (parameter.kind == "reference" and modifier in ("Patient", "ServiceRequest")):
            raise BadSearch(f"The modifier of parameter {name} is not supported.")
        if not value:
            continue
        alternatives = Q()
        for one in split(value):
            alternatives |= parameter.condition(one, around)
        condition &= alternatives
    return condition, unknown


# ------------------------------------------------------------------------------------------------- paging


def write_cursor(last: UUID) -> str:
    """An opaque cursor: the rows after this one."""
    return base64.urlsafe_b64encode(last.bytes).decode().rstrip("=")


def read_cursor(text: str) -> UUID:
    """The row a cursor stands for. Raises BadSearch."""
    try:
        return UUID(bytes=base64.urlsafe_b64decode(text + "=="))
    except (ValueError, binascii.Error):
        raise BadSearch("_cursor is no cursor of ours; follow the links of a result.") from None
