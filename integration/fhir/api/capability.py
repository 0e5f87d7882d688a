"""CapabilityStatement: made of the table that drives the search."""

from django.conf import settings

from common.clock import now
from integration.fhir.loading import Surroundings
from integration.fhir.resources.elements import Resource
from integration.fhir.search import TYPES, ResourceType


def statement(base: str, fhir_version: str, around: Surroundings) -> Resource:
    """What this server can do, at `base`."""
    return {
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": now().date().isoformat(),
        "kind": "instance",
        "software": {"name": "Orderly", "version": getattr(settings, "ORDERLY_VERSION", "0.1.0")},
        "implementation": {"description": f"Orderly at {around.name or 'this site'}", "url": base},
        "fhirVersion": fhir_version,
        "format": ["application/fhir+json", "json"],
        "rest": [
            {
                "mode": "server",
                "security": {
                    "cors": False,
                    "description": "A bearer token (manage.py token create), or a session.",
                },
                "resource": [_resource(one) for one in TYPES.values()],
            }
        ],
    }


def _resource(one: ResourceType) -> Resource:
    parameters = []
    for name, parameter in one.parameters.items():
        said = {"name": name, "type": parameter.kind}
        if parameter.note:
            said["documentation"] = parameter.note
        parameters.append(said)
    return {
        "type": one.name,
        "interaction": [{"code": "read"}, {"code": "search-type"}],
        "versioning": "no-version",
        "searchParam": parameters,
    }
