"""The attribute table of the Modality Worklist: what may be asked, how it is matched, and where its value comes from.

PS3.4 Table K.6-1, and the type 3 attributes that scanners really ask for. Every attribute with a column is a
matching key; the rest are return keys only, and a key given for one of those is answered with 0xFF01.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword

from pacs.matching import Matching
from ris.models import (
    ImagingServiceRequest,
    Patient,
    PatientIdentifier,
    RequestedProcedure,
    ScheduledProcedureStep,
    Visit,
)

SCHEDULED_PROCEDURE_STEP_SEQUENCE = 0x00400100
SPECIFIC_CHARACTER_SET = 0x00080005
TIMEZONE_OFFSET_FROM_UTC = 0x00080201


@dataclass(frozen=True, slots=True)
class Facts:
    """The rows that one worklist item is made of."""

    step: ScheduledProcedureStep
    procedure: RequestedProcedure
    request: ImagingServiceRequest
    patient: Patient
    identifiers: tuple[PatientIdentifier, ...]
    visit: Visit | None

    def detail(self, name: str) -> Any:
        """An attribute without a column of its own in `ris`, from the innermost row that has it; "" if none."""
        return self.details().get(name, "")

    def details(self) -> dict[str, Any]:
        """All attributes without a column of their own that have a value; those of the innermost row count."""
        found: dict[str, Any] = {}
        for row in (self.patient, self.request, self.procedure):
            for name, value in row.details.items():
                if value not in (None, "", [], {}):
                    found[name] = value
        return found


Source = Callable[[Facts], Any]


@dataclass(frozen=True, slots=True, eq=False)  # each is one row of the table below, and itself a key
class Entry:
    """One attribute; those of INNER stand in the item of the Scheduled Procedure Step Sequence."""

    keyword: str
    tag: int
    vr: str
    source: Source
    """Facts -> text, a list of texts (several values), or a list of {snake_case keyword: text} (SQ)."""
    kind: Matching = Matching.NONE
    columns: tuple[str, ...] = ()
    """Columns of WorklistItem that are compared; for NAME one a component group."""
    array: bool = False
    """The column is an array: a key matches when any of its values does."""
    identifier: bool = False
    """Never shortened: one that does not fit its VR is left out."""
    needed: bool = False
    """A scanner cannot work without it: an item whose own does not fit its VR is withheld, with the reason."""
    items: tuple[Entry, ...] = ()
    name: str = ""
    """The keyword as we spell attributes: snake_case."""
    detail: bool = False
    """Its value stands among the details of procedure, order or patient."""


def snake_case(keyword: str) -> str:
    """`IssuerOfPatientID` -> `issuer_of_patient_id`."""
    plain = keyword.replace("IDs", "Ids").replace("UIDs", "Uids")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", plain).lower()


def _entry(
    keyword: str,
    source: str | Source = "",
    kind: Matching = Matching.NONE,
    *,
    columns: Iterable[str] = (),
    array: bool = False,
    identifier: bool = False,
    needed: bool = False,
    items: Iterable[Entry] = (),
) -> Entry:
    """A row of the table; without a source the value is a detail, without columns the column is the keyword's."""
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    name = snake_case(keyword)
    own = () if kind in (Matching.NONE, Matching.SEQUENCE) else (name,)
    return Entry(
        keyword,
        tag,
        dictionary_VR(tag),
        source if callable(source) else _path(source) if source else (lambda facts: facts.detail(name)),
        kind,
        tuple(columns) or own,
        array,
        identifier or needed,
        needed,
        tuple(items),
        name,
        not source,
    )


def _path(path: str) -> Source:
    row, _, attribute = path.partition(".")

    def read(facts: Facts) -> Any:
        found = getattr(facts, row)
        return getattr(found, attribute) if found is not None else ""

    return read


def _first(*paths: str) -> Source:
    """The first source with a value: `row.attribute`, or a name among the details."""
    sources = [_path(p) if "." in p else (lambda facts, p=p: facts.detail(p)) for p in paths]
    return lambda facts: next((value for read in sources if (value := read(facts))), "")


def _authority(identifier: PatientIdentifier) -> Any:
    from ris.services import authorities

    if PatientIdentifier.authority.is_cached(identifier):
        return identifier.authority
    return authorities.by_id(identifier.authority_id)


def _patient_id(facts: Facts) -> str:
    return facts.identifiers[0].value if facts.identifiers else ""


def _issuer(facts: Facts) -> str:
    authority = _authority(facts.identifiers[0]) if facts.identifiers else None
    return (authority.namespace or authority.universal_id) if authority else ""


def _issuer_qualifiers(facts: Facts) -> list[dict[str, str]]:
    authority = _authority(facts.identifiers[0]) if facts.identifiers else None
    if authority is None or not authority.universal_id:
        return []
    return [
        {
            "universal_entity_id": authority.universal_id,
            "universal_entity_id_type": authority.universal_id_type or "ISO",
        }
    ]


def _other_ids(facts: Facts) -> list[dict[str, str]]:
    others = []
    for identifier in facts.identifiers[1:]:
        authority = _authority(identifier)
        issuer = (authority.namespace or authority.universal_id) if authority else ""
        others.append(
            {"patient_id": identifier.value, "issuer_of_patient_id": issuer, "type_of_patient_id": "TEXT"}
        )
    return others


def _namespace(path: str) -> Source:
    read = _path(path)
    return lambda facts: [{"local_namespace_entity_id": value}] if (value := read(facts)) else []


def _procedure_code(facts: Facts) -> list[dict[str, str]]:
    procedure = facts.procedure
    if not procedure.code_value:
        return []
    return [
        {
            "code_value": procedure.code_value,
            "coding_scheme_designator": procedure.coding_scheme_designator or "L",
            "code_meaning": procedure.code_meaning or procedure.requested_procedure_description,
        }
    ]


def _protocol_codes(facts: Facts) -> list[dict[str, str]]:
    return [
        {**code, "coding_scheme_designator": code.get("coding_scheme_designator") or "L"}
        for code in facts.step.protocol_codes
        if code.get("code_value")
    ]


def _reason_code(facts: Facts) -> list[dict[str, str]]:
    code = facts.procedure.reason_code
    return [code] if code.get("code_value") else []


def _step_description(facts: Facts) -> str:
    """Type 1C: this or the protocol codes; the procedure says it when the step does not."""
    step, procedure = facts.step, facts.procedure
    return (
        step.scheduled_procedure_step_description
        or next((c["code_meaning"] for c in step.protocol_codes if c.get("code_meaning")), "")
        or procedure.requested_procedure_description
        or procedure.code_meaning
    )


def _nothing(facts: Facts) -> str:
    return ""


_TEXT = Matching.WILDCARD


def _name_columns(name: str) -> tuple[str, str, str]:
    return f"{name}_search", f"{name}_ideographic_search", f"{name}_phonetic_search"


def _code_items(value: str = "", scheme: str = "", array: bool = False) -> tuple[Entry, ...]:
    """The item of a code sequence (PS3.3 section 8); code and scheme are keys when they have columns."""
    return (
        _entry(
            "CodeValue",
            _nothing,
            _TEXT if value else Matching.NONE,
            columns=[value] * bool(value),
            array=array,
        ),
        _entry(
            "CodingSchemeDesignator",
            _nothing,
            _TEXT if scheme else Matching.NONE,
            columns=[scheme] * bool(scheme),
            array=array,
        ),
        _entry("CodingSchemeVersion", _nothing),
        _entry("CodeMeaning", _nothing),
    )


def _issuer_items(column: str = "") -> tuple[Entry, ...]:
    kind = _TEXT if column else Matching.NONE
    return (
        _entry("LocalNamespaceEntityID", _nothing, kind, columns=[column] * bool(column)),
        _entry("UniversalEntityID", _nothing),
        _entry("UniversalEntityIDType", _nothing),
    )


OUTER: tuple[Entry, ...] = (
    _entry("AccessionNumber", "request.accession_number", _TEXT, needed=True),
    _entry(
        "IssuerOfAccessionNumberSequence",
        _namespace("request.issuer_of_accession_number"),
        Matching.SEQUENCE,
        items=_issuer_items("issuer_of_accession_number"),
    ),
    _entry("InstitutionName", "request.institution_name", _TEXT),
    _entry("InstitutionAddress"),
    _entry("InstitutionCodeSequence", items=_code_items()),
    _entry(
        "InstitutionalDepartmentName", _first("institutional_department_name", "request.requesting_service")
    ),
    _entry(
        "ReferringPhysicianName",
        _first("request.referring_physician_name", "visit.referring_physician_name"),
        Matching.NAME,
        columns=["referring_physician_name_search"],
    ),
    _entry("AdmittingDiagnosesDescription"),
    _entry("ReferencedStudySequence", _nothing),
    _entry("ReferencedPatientSequence", _nothing),
    # -- patient
    _entry("PatientName", "patient.patient_name", Matching.NAME, columns=_name_columns("patient_name")),
    _entry("PatientID", _patient_id, Matching.SINGLE, columns=["patient_id"], needed=True),
    _entry("IssuerOfPatientID", _issuer, _TEXT, identifier=True),
    _entry("TypeOfPatientID", lambda facts: "TEXT" if facts.identifiers else ""),
    _entry(
        "IssuerOfPatientIDQualifiersSequence",
        _issuer_qualifiers,
        items=(_entry("UniversalEntityID", _nothing), _entry("UniversalEntityIDType", _nothing)),
    ),
    _entry("PatientBirthDate", "patient.patient_birth_date", Matching.DATE_TEXT),
    _entry("PatientBirthTime"),
    _entry("PatientSex", "patient.patient_sex", Matching.CODE),
    _entry("OtherPatientIDs", lambda facts: [i.value for i in facts.identifiers[1:]], identifier=True),
    _entry("OtherPatientNames"),
    _entry(
        "OtherPatientIDsSequence",
        _other_ids,
        items=(
            _entry("PatientID", _nothing),
            _entry("IssuerOfPatientID", _nothing),
            _entry("TypeOfPatientID", _nothing),
        ),
    ),
    _entry("PatientAge"),
    _entry("PatientSize"),
    _entry("PatientWeight", kind=_TEXT),
    _entry("PatientAddress"),
    _entry("PatientMotherBirthName"),
    _entry("MedicalAlerts", kind=_TEXT),
    _entry("Allergies", kind=_TEXT),
    _entry("CountryOfResidence"),
    _entry("RegionOfResidence"),
    _entry("PatientTelephoneNumbers"),
    _entry("EthnicGroup"),
    _entry("Occupation"),
    _entry("SmokingStatus"),
    _entry("AdditionalPatientHistory"),
    _entry("PregnancyStatus", kind=Matching.NUMBER),
    _entry("LastMenstrualDate"),
    _entry("PatientReligiousPreference"),
    _entry("PatientSpeciesDescription"),
    _entry("PatientSexNeutered"),
    _entry("PatientBreedDescription"),
    _entry("ResponsiblePerson"),
    _entry("ResponsiblePersonRole"),
    _entry("PatientComments"),
    # -- procedure, order, visit
    _entry("StudyInstanceUID", "procedure.study_instance_uid", Matching.UID, needed=True),
    _entry(
        "RequestingPhysician",
        "request.requesting_physician",
        Matching.NAME,
        columns=["requesting_physician_search"],
    ),
    _entry("RequestingService", "request.requesting_service"),
    _entry(
        "RequestedProcedureDescription",
        _first("procedure.requested_procedure_description", "procedure.code_meaning"),
        _TEXT,
    ),
    _entry(
        "RequestedProcedureCodeSequence",
        _procedure_code,
        Matching.SEQUENCE,
        items=_code_items("requested_procedure_code_value", "requested_procedure_coding_scheme"),
    ),
    _entry("AdmissionID", "visit.admission_id", _TEXT, identifier=True),
    _entry(
        "IssuerOfAdmissionIDSequence",
        _namespace("visit.issuer_of_admission_id"),
        items=_issuer_items(),
    ),
    _entry("RouteOfAdmissions"),
    _entry("SpecialNeeds", kind=_TEXT),
    _entry(
        "CurrentPatientLocation", _first("visit.current_patient_location", "current_patient_location"), _TEXT
    ),
    _entry("PatientInstitutionResidence"),
    _entry("PatientState", kind=_TEXT),
    _entry("VisitComments"),
    _entry("RequestedProcedureID", "procedure.requested_procedure_id", _TEXT, needed=True),
    _entry("ReasonForTheRequestedProcedure", "procedure.reason_for_the_requested_procedure"),
    _entry("RequestedProcedurePriority", "procedure.requested_procedure_priority", Matching.CODE),
    _entry("PatientTransportArrangements", "procedure.patient_transport_arrangements", _TEXT),
    _entry("RequestedProcedureLocation"),
    _entry("ConfidentialityCode"),
    _entry("ReportingPriority"),
    _entry("ReasonForRequestedProcedureCodeSequence", _reason_code, items=_code_items()),
    _entry("NamesOfIntendedRecipientsOfResults"),
    _entry("RequestedProcedureComments", "procedure.requested_procedure_comments"),
    _entry("ReasonForTheImagingServiceRequest"),
    _entry("IssueDateOfImagingServiceRequest"),
    _entry("IssueTimeOfImagingServiceRequest"),
    _entry("OrderEnteredBy"),
    _entry("OrderEntererLocation"),
    _entry("OrderCallbackPhoneNumber"),
    _entry(
        "PlacerOrderNumberImagingServiceRequest",
        _first("procedure.placer_order_number", "request.placer_order_number"),
        _TEXT,
        columns=["placer_order_number"],
        identifier=True,
    ),
    _entry(
        "FillerOrderNumberImagingServiceRequest",
        _first("procedure.filler_order_number", "request.filler_order_number"),
        _TEXT,
        columns=["filler_order_number"],
        identifier=True,
    ),
    _entry("ImagingServiceRequestComments", "request.imaging_service_request_comments"),
    _entry(
        "ConfidentialityConstraintOnPatientDataDescription",
        kind=_TEXT,
        columns=["confidentiality_constraint"],
    ),
    _entry("WorklistLabel", kind=_TEXT),
)

# The start's two attributes are written by answers.py from the step's instant, in the zone of the answer.
INNER: tuple[Entry, ...] = (
    _entry("Modality", "step.modality", Matching.CODE),
    _entry("RequestedContrastAgent", "step.requested_contrast_agent", _TEXT),
    _entry(
        "ScheduledStationAETitle",
        "step.scheduled_station_ae_titles",
        Matching.SINGLE,
        columns=["scheduled_station_ae_titles"],
        array=True,
        needed=True,
    ),
    _entry("ScheduledProcedureStepStartDate", _nothing, Matching.DATE, columns=["start_date"]),
    _entry("ScheduledProcedureStepStartTime", _nothing, Matching.TIME, columns=["start_time"]),
    _entry(
        "ScheduledPerformingPhysicianName",
        "step.scheduled_performing_physician_name",
        Matching.NAME,
        columns=_name_columns("performing_physician"),
    ),
    _entry("ScheduledProcedureStepDescription", _step_description, _TEXT),
    _entry(
        "ScheduledProtocolCodeSequence",
        _protocol_codes,
        Matching.SEQUENCE,
        items=_code_items("protocol_code_values", "protocol_coding_schemes", array=True),
    ),
    _entry("ScheduledProcedureStepID", "step.scheduled_procedure_step_id", _TEXT, needed=True),
    _entry(
        "ScheduledStationName",
        "step.scheduled_station_names",
        _TEXT,
        columns=["scheduled_station_names"],
        array=True,
    ),
    _entry("ScheduledProcedureStepLocation", "step.scheduled_procedure_step_location", _TEXT),
    _entry("PreMedication", "step.pre_medication", _TEXT),
    _entry("ScheduledProcedureStepStatus", "step.status", Matching.CODE, columns=["status"]),
    _entry("CommentsOnTheScheduledProcedureStep", "step.comments", _TEXT, columns=["comments"]),
)

OUTER_BY_TAG: Mapping[int, Entry] = {e.tag: e for e in sorted(OUTER, key=lambda e: e.tag)}
INNER_BY_TAG: Mapping[int, Entry] = {e.tag: e for e in sorted(INNER, key=lambda e: e.tag)}
IN_ROWS: tuple[Entry, ...] = tuple(e for e in (*OUTER, *INNER) if not e.detail)
IN_DETAILS: Mapping[str, Entry] = {e.name: e for e in OUTER if e.detail}
ALL: tuple[Entry, ...] = (*OUTER_BY_TAG.values(), *INNER_BY_TAG.values())
