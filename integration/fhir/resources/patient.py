"""Patient (R4): from ris.models.Patient and its identifiers."""

from collections.abc import Iterable
from uuid import UUID

from integration.fhir.resources.elements import (
    Resource,
    Systems,
    birth_date,
    human_names,
    identifier,
    without_empty,
)
from ris.models import Patient, PatientIdentifier

# Patient's Sex (0010,0040) → http://hl7.org/fhir/ValueSet/administrative-gender.
_GENDER = {"M": "male", "F": "female", "O": "other"}


def build(
    patient: Patient,
    identifiers: Iterable[PatientIdentifier],
    systems: Systems,
    *,
    replaces: Iterable[UUID] = (),
) -> Resource:
    """The patient. `identifiers` come with `.authority` loaded; `replaces` are the patients merged into this one.

    A retired patient stays readable: inactive, with a link to the one that replaced it.
    """
    links = [
        {"other": {"reference": f"Patient/{pk}"}, "type": "replaces"} for pk in sorted(replaces, key=str)
    ]
    if patient.merged_into_id:
        links.append({"other": {"reference": f"Patient/{patient.merged_into_id}"}, "type": "replaced-by"})
    ordered = sorted(
        identifiers, key=lambda i: (i.status != PatientIdentifier.Status.CURRENT, i.position, str(i.id))
    )
    return without_empty(
        {
            "resourceType": "Patient",
            "id": str(patient.id),
            "identifier": [_identifier(i, systems) for i in ordered],
            "active": patient.merged_into_id is None,
            "name": human_names(patient.patient_name),
            "gender": _GENDER.get(patient.patient_sex, ""),
            "birthDate": birth_date(patient.patient_birth_date),
            "link": links,
        }
    )


def _identifier(row: PatientIdentifier, systems: Systems) -> Resource:
    authority = row.authority
    return identifier(
        row.value,
        systems.authority(authority.namespace, authority.universal_id, authority.universal_id_type),
        row.type_code,
        use="old" if row.status == PatientIdentifier.Status.ALIAS else "",
        assigner=authority.namespace,
    )
