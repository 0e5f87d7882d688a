"""Endpoint (R4): where the images of our studies are fetched by DICOMweb."""

from uuid import NAMESPACE_URL, uuid5

from integration.fhir.resources.elements import DCM, Resource, coded, concept, without_empty

_CONNECTION = "http://terminology.hl7.org/CodeSystem/endpoint-connection-type"


def endpoint_id(address: str) -> str:
    """The id of the endpoint at this address: the same wherever it is computed."""
    return str(uuid5(NAMESPACE_URL, address))


def build(address: str, name: str) -> Resource:
    """The WADO-RS endpoint. `address` is the service's base, without `/studies` and without a slash at its end."""
    return without_empty(
        {
            "resourceType": "Endpoint",
            "id": endpoint_id(address),
            "status": "active",
            "connectionType": coded(_CONNECTION, "dicom-wado-rs", "DICOM WADO-RS"),
            "name": f"{name} DICOMweb".strip(),
            "managingOrganization": {"display": name} if name else None,
            "payloadType": [concept([coded(DCM, "113014", "Study")], "DICOM study")],
            "payloadMimeType": ["application/dicom"],
            "address": address,
        }
    )
