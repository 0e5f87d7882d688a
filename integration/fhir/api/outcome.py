"""OperationOutcome: what every refusal of the FHIR door looks like, DRF's own and ours."""

import logging
from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import Http404
from rest_framework import exceptions
from rest_framework.response import Response

from integration.fhir.resources.elements import Resource

logger = logging.getLogger(__name__)

# HTTP status → http://hl7.org/fhir/issue-type.
_CODES = {
    400: "invalid",
    401: "login",
    403: "forbidden",
    404: "not-found",
    405: "not-supported",
    406: "not-supported",
    409: "conflict",
    410: "deleted",
    415: "not-supported",
    429: "throttled",
}


class Invalid(exceptions.APIException):
    """A request that cannot be carried out as it is (400)."""

    status_code = 400
    default_detail = "The request cannot be carried out."


class NotAcceptable(exceptions.APIException):
    """An answer was asked for in a form that we do not have (406)."""

    status_code = 406
    default_detail = "Answers are application/fhir+json of FHIR 4.0."


def outcome(status: int, text: str, severity: str = "error") -> Resource:
    """An OperationOutcome with one issue."""
    code = _CODES.get(status, "exception" if status >= 500 else "processing")
    return {
        "resourceType": "OperationOutcome",
        "issue": [{"severity": severity, "code": code, "diagnostics": text}],
    }


def handle(error: Exception, context: dict[str, Any]) -> Response:
    """DRF's exception handler for this door: nothing leaves it but an OperationOutcome."""
    if isinstance(error, Http404):
        error = exceptions.NotFound("There is no such resource.")
    elif isinstance(error, PermissionDenied):
        error = exceptions.PermissionDenied("Your role does not open this resource.")
    if not isinstance(error, exceptions.APIException):
        logger.exception("a FHIR request failed")
        return Response(outcome(500, "Orderly could not carry this out; the fault is ours."), status=500)
    headers = {}
    if challenge := getattr(error, "auth_header", None):
        headers["WWW-Authenticate"] = challenge
    if wait := getattr(error, "wait", None):
        headers["Retry-After"] = str(int(wait))
    return Response(
        outcome(error.status_code, _text(error.detail)), status=error.status_code, headers=headers
    )


def _text(detail: Any) -> str:
    if isinstance(detail, list):
        return " ".join(_text(one) for one in detail)
    if isinstance(detail, dict):
        return " ".join(_text(one) for one in detail.values())
    return str(detail)
