"""ImagingStudy (R4): from pacs rows, with the patient and order that `ris` gave the study."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import tzinfo
from typing import Any
from uuid import UUID

from integration.fhir.resources.elements import (
    DCM,
    SNOMED,
    Resource,
    Systems,
    accession,
    coded,
    dicom_time,
    identifier,
    person,
    reference,
    study_uid,
    unsigned,
    without_empty,
)
from integration.fhir.resources.service_request import code_of
from pacs.models import Instance, Series, Study
from ris.models import RequestedProcedure

# Laterality (0020,0060) → SNOMED CT (CID 244). U, unpaired, is left out.
_LATERALITY = {"L": ("7771000", "Left"), "R": ("24028007", "Right"), "B": ("51440002", "Bilateral")}

# Body Part Examined (0018,0015) → SNOMED CT (PS3.16 Annex L), the parts that make up nearly all studies.
_BODY_PARTS = {
    "ABDOMEN": ("818981001", "Abdomen"),
    "ANKLE": ("70258002", "Ankle joint"),
    "BRAIN": ("12738006", "Brain"),
    "BREAST": ("76752008", "Breast"),
    "CHEST": ("816094009", "Chest"),
    "CSPINE": ("122494005", "Cervical spine"),
    "ELBOW": ("16953009", "Elbow joint"),
    "FOOT": ("56459004", "Foot"),
    "HAND": ("85562004", "Hand"),
    "HEAD": ("69536005", "Head"),
    "HEART": ("80891009", "Heart"),
    "HIP": ("24136001", "Hip joint"),
    "KIDNEY": ("64033007", "Kidney"),
    "KNEE": ("72696002", "Knee"),
    "LIVER": ("10200004", "Liver"),
    "LSPINE": ("122496007", "Lumbar spine"),
    "NECK": ("45048000", "Neck"),
    "PELVIS": ("816092008", "Pelvis"),
    "SHOULDER": ("16982005", "Shoulder"),
    "SKULL": ("89546000", "Skull"),
    "TSPINE": ("122495006", "Thoracic spine"),
    "WRIST": ("74670003", "Wrist joint"),
}


def build(
    study: Study,
    series: Sequence[Series],
    instances: Mapping[UUID, Iterable[Instance]],
    systems: Systems,
    *,
    patient_id: UUID | None = None,
    procedure: RequestedProcedure | None = None,
    endpoint_id: str = "",
    zone: tzinfo | None = None,
) -> Resource:
    """The study. `instances` are by series id, empty where a list of series is enough.

    `patient_id` and `procedure` (with `.request`) are what the study was matched with. Without them its subject
    is what the images say, as a logical reference: no patient of ours is named by a guess. `zone` is the
    facility's, for studies that carry no offset.
    """
    order = [r for r in (_based_on(procedure, systems),) if r]
    return without_empty(
        {
            "resourceType": "ImagingStudy",
            "id": str(study.id),
            "identifier": _identifiers(study, systems),
            "status": status(study),
            "modality": [coded(DCM, m) for m in sorted(set(study.modalities_in_study))],
            "subject": reference("Patient", patient_id) if patient_id else _said_subject(study, systems),
            "started": _started(study, zone),
            "basedOn": order,
            "referrer": person(study.referring_physician_name),
            "endpoint": [reference("Endpoint", endpoint_id)] if endpoint_id else [],
            "numberOfSeries": study.number_of_study_related_series,
            "numberOfInstances": study.number_of_study_related_instances,
            "procedureCode": [c for c in (code_of(procedure, systems) if procedure else {},) if c],
            "description": study.study_description.strip(),
            "series": [_series(one, instances.get(one.id, ()), zone, study) for one in _sorted(series)],
        }
    )


def status(study: Study) -> str:
    """http://hl7.org/fhir/imagingstudy-status: of the resource, not of the order."""
    if study.hidden:
        return "entered-in-error"
    return "registered" if study.settled_at is None else "available"


def _identifiers(study: Study, systems: Systems) -> list[Resource]:
    found = [study_uid(study.study_instance_uid)]
    if study.accession_number:
        found.append(accession(study.accession_number, study.issuer_of_accession_number, systems))
    if study.study_id.strip():
        found.append(identifier(study.study_id, use="secondary"))
    return found


def _said_subject(study: Study, systems: Systems) -> Resource:
    said = (
        identifier(study.patient_id, systems.authority(study.issuer_of_patient_id))
        if study.patient_id
        else {}
    )
    name = person(study.patient_name) or {}
    return without_empty(
        {"type": "Patient", "identifier": said, "display": name.get("display", "") or "Unknown patient"}
    )


def _based_on(procedure: RequestedProcedure | None, systems: Systems) -> Resource | None:
    if procedure is None:
        return None
    request = procedure.request
    result = reference("ServiceRequest", procedure.id)
    if request.accession_number:
        result["identifier"] = accession(
            request.accession_number, request.issuer_of_accession_number, systems
        )
    return result


def _started(study: Study, zone: tzinfo | None) -> str:
    return dicom_time(study.study_date, study.study_time, study.timezone_offset_from_utc, zone)


def _sorted(series: Iterable[Series]) -> list[Series]:
    return sorted(
        series, key=lambda s: (s.series_number is None, s.series_number or 0, s.series_instance_uid)
    )


def _series(series: Series, instances: Iterable[Instance], zone: tzinfo | None, study: Study) -> Resource:
    offset = study.timezone_offset_from_utc
    return without_empty(
        {
            "uid": series.series_instance_uid,
            "number": unsigned(series.series_number),
            "modality": coded(DCM, series.modality or "OT"),
            "description": series.series_description.strip(),
            "numberOfInstances": series.number_of_series_related_instances,
            "bodySite": _body_site(series.body_part_examined.strip().upper()),
            "laterality": _laterality(series.laterality.strip().upper()),
            "started": dicom_time(series.series_date, series.series_time, offset, zone),
            "performer": [{"actor": p} for p in (person(series.performing_physician_name),) if p],
            "instance": [_instance(i) for i in instances],
        }
    )


def _instance(instance: Instance) -> Resource:
    return without_empty(
        {
            "uid": instance.sop_instance_uid,
            "sopClass": coded("urn:ietf:rfc:3986", f"urn:oid:{instance.sop_class_uid}"),
            "number": unsigned(instance.instance_number),
            "title": _image_type(instance.attributes),
        }
    )


def _image_type(attributes: Mapping[str, Any]) -> str:
    """Image Type (0008,0008) from DICOM JSON."""
    values = attributes.get("00080008", {}).get("Value", []) if isinstance(attributes, dict) else []
    return "\\".join(str(v) for v in values)


def _body_site(part: str) -> Resource | None:
    if not part:
        return None
    known = _BODY_PARTS.get(part)
    return coded(SNOMED, *known) if known else {"display": part}


def _laterality(code: str) -> Resource | None:
    known = _LATERALITY.get(code)
    return coded(SNOMED, *known) if known else None
