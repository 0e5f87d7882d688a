"""Whether a resource is right: fhir.resources (R4B, which has R4's shapes) and what it does not look at.

Texts name elements and rules, never values, for values are health data.
"""

import base64
import binascii
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from integration.fhir.resources.elements import Resource

_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}\Z")

# Required bindings of what we emit: path → codes (R4 value sets of the same names).
_CODES: dict[str, frozenset[str]] = {
    "Patient.gender": frozenset({"male", "female", "other", "unknown"}),
    "Patient.link.type": frozenset({"replaced-by", "replaces", "refer", "seealso"}),
    "Patient.name.use": frozenset({"usual", "official", "temp", "nickname", "anonymous", "old", "maiden"}),
    "*.identifier.use": frozenset({"usual", "official", "temp", "secondary", "old"}),
    "ServiceRequest.status": frozenset(
        {"draft", "active", "on-hold", "revoked", "completed", "entered-in-error", "unknown"}
    ),
    "ServiceRequest.intent": frozenset(
        {
            "proposal",
            "plan",
            "directive",
            "order",
            "original-order",
            "reflex-order",
            "filler-order",
            "instance-order",
            "option",
        }
    ),
    "ServiceRequest.priority": frozenset({"routine", "urgent", "asap", "stat"}),
    "ImagingStudy.status": frozenset({"registered", "available", "cancelled", "entered-in-error", "unknown"}),
    "DiagnosticReport.status": frozenset(
        {
            "registered",
            "partial",
            "preliminary",
            "final",
            "amended",
            "corrected",
            "appended",
            "cancelled",
            "entered-in-error",
            "unknown",
        }
    ),
    "Endpoint.status": frozenset({"active", "suspended", "error", "off", "entered-in-error", "test"}),
}

# Which types a reference may name (R4; R4B lets DiagnosticReport.subject name more).
_TARGETS: dict[str, frozenset[str]] = {
    "Patient.link.other": frozenset({"Patient", "RelatedPerson"}),
    "ServiceRequest.subject": frozenset({"Patient", "Group", "Location", "Device"}),
    "ImagingStudy.subject": frozenset({"Patient", "Device", "Group"}),
    "ImagingStudy.basedOn": frozenset(
        {"CarePlan", "ServiceRequest", "Appointment", "AppointmentResponse", "Task"}
    ),
    "ImagingStudy.endpoint": frozenset({"Endpoint"}),
    "DiagnosticReport.subject": frozenset({"Patient", "Group", "Device", "Location"}),
    "DiagnosticReport.basedOn": frozenset(
        {"CarePlan", "ImmunizationRecommendation", "MedicationRequest", "NutritionOrder", "ServiceRequest"}
    ),
    "DiagnosticReport.imagingStudy": frozenset({"ImagingStudy"}),
}


def problems(resource: Resource) -> list[str]:
    """What is wrong with a resource, as `path: rule`; empty when nothing is."""
    kind = str(resource.get("resourceType", ""))
    found = list(_own(resource, kind))
    try:
        model = getattr(import_module(f"fhir.resources.R4B.{kind.lower()}"), kind)
    except (ImportError, AttributeError):
        return [f"{kind or 'resource'}: no resource of R4"]
    try:
        model.model_validate(resource)
    except Exception as error:
        found += _said(error, kind)
    return found


def _said(error: Exception, kind: str) -> list[str]:
    """The places of a pydantic error without the values it quotes."""
    errors = getattr(error, "errors", None)
    if errors is None:
        return [f"{kind}: {type(error).__name__}"]
    return [
        f"{kind}.{'.'.join(str(p) for p in one['loc'])}: {one['type']}" for one in errors(include_input=False)
    ]


def _own(resource: Resource, kind: str) -> Iterator[str]:
    if not _ID.match(str(resource.get("id", "x"))):
        yield f"{kind}.id: 1 to 64 letters, digits, dots and dashes"
    for path, value in _walk(resource, kind):
        yield from _empty(path, value)
        allowed = _CODES.get(path) or _CODES.get("*" + path[path.find(".") :])
        if allowed and isinstance(value, str) and value not in allowed:
            yield f"{path}: no code of its value set"
        if path.endswith(".uid") and isinstance(value, str) and not _ID.match(value):
            yield f"{path}: 1 to 64 letters, digits, dots and dashes"
        if path.endswith(".data") and isinstance(value, str) and not _is_base64(value):
            yield f"{path}: no base64"
        targets = _TARGETS.get(path)
        if targets and isinstance(value, dict) and "reference" in value:
            named = str(value["reference"]).split("/")[-2:][0]
            if named not in targets:
                yield f"{path}: may not name a {named}"


def _empty(path: str, value: Any) -> Iterator[str]:
    """null, "", [] and {} are no values (R4 json.html)."""
    if value is None or value in ("", [], {}):
        yield f"{path}: empty"
    elif isinstance(value, str) and not value.strip():
        yield f"{path}: only white space"


def _walk(element: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every element below, with its path; items of a list share the list's path."""
    if not isinstance(element, dict):
        return
    for name, value in element.items():
        here = f"{path}.{name}"
        if isinstance(value, list) and value:
            for one in value:
                yield here, one
                yield from _walk(one, here)
        else:
            yield here, value
            yield from _walk(value, here)


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True
