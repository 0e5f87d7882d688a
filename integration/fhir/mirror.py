"""The mirror: what is true now, PUT under our own ids to a FHIR server, in the order in which it refers to itself.

An item of the outbox names one resource. Each attempt builds that resource and what it refers to anew, so that an
older state never overwrites a newer one, and sends only what differs from what the server was last told
(MirrorState). A resource is marked as in doubt before it is sent and told after; when anything was sent, the
state is built once more, and sent again if it changed meanwhile.
"""

import hashlib
import http.client
import logging
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import orjson

from common.clock import now
from integration.delivery import Outcome
from integration.destinations import setting, tls_context
from integration.fhir import checking, loading
from integration.fhir.loading import Surroundings
from integration.fhir.resources.elements import Resource
from integration.hl7v2.outgoing import ComposeError
from integration.models import Destination, MirrorState, OutboxItem
from pacs.models import Study
from ris.models import Patient, Report, ReportVersion, RequestedProcedure, StudyMatch

logger = logging.getLogger(__name__)

_LARGEST_ANSWER = 1 << 20
# How often an item is built again because its facts changed while it was being sent; then it waits its turn.
_ROUNDS_MOST = 3


@dataclass(frozen=True)
class Answer:
    """A response: status, body (at most 1 MB), and the headers that matter."""

    status: int
    body: bytes
    etag: str
    retry_after: float | None


class FhirServer:
    """The way to one FHIR server: one connection, kept while a worker drains it."""

    def __init__(self, destination: Destination) -> None:
        self.destination = destination
        parts = urlsplit(destination.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"The url of {destination.name} must read http(s)://host[:port]/base.")
        self._base = parts.path.rstrip("/")
        seconds = float(setting(destination, "ack_seconds"))
        context: ssl.SSLContext | None = tls_context(destination) if parts.scheme == "https" else None
        self._connection: http.client.HTTPConnection = (
            http.client.HTTPSConnection(parts.hostname, parts.port, timeout=seconds, context=context)
            if context
            else http.client.HTTPConnection(parts.hostname, parts.port, timeout=seconds)
        )

    def prepare(self, item: OutboxItem) -> bytes | None:
        """Nothing is kept before the first attempt: a mirror shows what is true when it is sent."""
        return None

    def deliver(self, item: OutboxItem) -> Outcome:
        """Bring the server to what is true now. Raises ComposeError when a resource would be wrong."""
        sent = 0
        for _ in range(_ROUNDS_MOST):
            resources = self._known_links(plan(item.subject))
            changed = [r for r in resources if not self._was_told(r)]
            if not changed:
                return Outcome(
                    "delivered" if sent else "unchanged", f"{sent} resource(s) sent" if sent else ""
                )
            for resource in changed:
                failed = self._send(resource)
                if failed is not None:
                    return failed
                sent += 1
        return Outcome("transport", "the resources changed again and again while they were sent", again=True)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def put(self, resource: Resource) -> Answer:
        """PUT one resource under its id. Raises OSError or http.client.HTTPException."""
        headers = {"Content-Type": "application/fhir+json", "Accept": "application/fhir+json"}
        if token := _token(self.destination):
            headers["Authorization"] = f"Bearer {token}"
        path = f"{self._base}/{resource['resourceType']}/{resource['id']}"
        body = canonical(resource)
        for attempt in (1, 2):
            try:
                self._connection.request("PUT", path, body, headers)
                response = self._connection.getresponse()
                break
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                self._connection.close()  # an idle connection that the peer has closed: once more on a new one
                if attempt == 2:
                    raise
        answer = response.read(_LARGEST_ANSWER)
        if not response.isclosed():  # more than we want to read: the connection cannot be used again
            self._connection.close()
        return Answer(
            response.status,
            answer,
            response.headers.get("ETag", ""),
            _seconds(response.headers.get("Retry-After")),
        )

    def _send(self, resource: Resource) -> Outcome | None:
        """Send one resource; an outcome only when it was not taken."""
        name, sha256 = _name(resource), digest(resource)
        self._note(name, "", "")
        try:
            answer = self.put(resource)
        except TimeoutError:
            self._connection.close()
            return Outcome("timeout", f"PUT {name}: no answer in time", again=True, down=True)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return Outcome("transport", f"PUT {name}: {type(error).__name__}", again=True, down=True)
        if 200 <= answer.status < 300:
            self._note(name, sha256, answer.etag)
            return None
        return _failure(name, answer)

    def _was_told(self, resource: Resource) -> bool:
        told = MirrorState.objects.filter(destination=self.destination, resource=_name(resource)).first()
        return told is not None and told.sha256 == digest(resource)

    def _note(self, name: str, sha256: str, etag: str) -> None:
        """What the server was told; without a digest: being told just now, so in doubt."""
        MirrorState.objects.update_or_create(
            destination=self.destination,
            resource=name,
            defaults={"sha256": sha256, "etag": etag[:64], "told_at": now()},
        )

    def _known_links(self, resources: list[Resource]) -> list[Resource]:
        """The resources without links to patients that this server does not have by then: it could not resolve them.

        Once it has, the next round adds the link.
        """
        named = {link["other"]["reference"] for r in resources for link in r.get("link", [])}
        told = MirrorState.objects.filter(destination=self.destination, resource__in=named).exclude(sha256="")
        known = set(told.values_list("resource", flat=True))
        for resource in resources:
            kept = [link for link in resource.pop("link", []) if link["other"]["reference"] in known]
            if kept:
                resource["link"] = kept
            known.add(_name(resource))
        return resources


# -------------------------------------------------------------------------------------------------- plans


def plan(subject: str, around: Surroundings | None = None) -> list[Resource]:
    """The resource `Type/id` after everything it refers to, as they are now; empty when it is gone.

    Raises ComposeError when one of them is no right R4 resource.
    """
    kind, _, pk = subject.partition("/")
    around = around or loading.surroundings()
    resources = _PLANS[kind](UUID(pk), around)
    for resource in resources:
        found = checking.problems(resource)
        if found:
            raise ComposeError(f"{_name(resource)} is no right R4 resource: {'; '.join(found[:3])}")
    return resources


def _plan_patient(pk: UUID, around: Surroundings) -> list[Resource]:
    rows = []
    patient = Patient.objects.filter(pk=pk).first()
    while patient is not None:
        rows.append(patient)
        patient = patient.merged_into
    return loading.build_patients(reversed(rows), around)


def _plan_service_request(pk: UUID, around: Surroundings) -> list[Resource]:
    procedure = RequestedProcedure.objects.select_related("request").filter(pk=pk).first()
    if procedure is None:
        return []
    patient = _plan_patient(procedure.request.patient_id, around)
    return [*patient, *loading.build_service_requests([procedure], around)]


def _plan_imaging_study(pk: UUID, around: Surroundings) -> list[Resource]:
    study = Study.objects.filter(pk=pk).first()
    if study is None:
        return []
    match = StudyMatch.objects.filter(study=study, undone_at=None).first()
    order = _plan_service_request(match.procedure_id, around) if match else []
    patients, requests = _parted(order)
    return [
        *patients,
        *loading.build_endpoints(around),
        *requests,
        *loading.build_imaging_studies([study], around),
    ]


def _plan_diagnostic_report(pk: UUID, around: Surroundings) -> list[Resource]:
    report = Report.objects.select_related("procedure__request").filter(pk=pk).first()
    if report is None or not ReportVersion.objects.filter(report=report).exists():
        return []
    patients, requests = _parted(_plan_service_request(report.procedure_id, around))
    matches = StudyMatch.objects.filter(procedure_id=report.procedure_id, undone_at=None, study__hidden=False)
    studies = Study.objects.filter(pk__in=matches.values("study")).order_by("pk")
    return [
        *patients,
        *(loading.build_endpoints(around) if studies else []),
        *requests,
        *loading.build_imaging_studies(studies, around),
        *loading.build_diagnostic_reports([report], around),
    ]


_PLANS: dict[str, Callable[[UUID, Surroundings], list[Resource]]] = {
    "Patient": _plan_patient,
    "ServiceRequest": _plan_service_request,
    "ImagingStudy": _plan_imaging_study,
    "DiagnosticReport": _plan_diagnostic_report,
}


def _parted(resources: list[Resource]) -> tuple[list[Resource], list[Resource]]:
    patients = [r for r in resources if r["resourceType"] == "Patient"]
    return patients, [r for r in resources if r["resourceType"] != "Patient"]


# ----------------------------------------------------------------------------------------------- answers


def _failure(name: str, answer: Answer) -> Outcome:
    """What an answer that is no success means.

    401 and 403 speak of our token, 5xx of the server: it waits, with an alert, and nothing is parked for it. 409
    and 412 may pass; any other 4xx (and a redirect) says that this resource is not wanted as it is.
    """
    said = f"PUT {name}: {answer.status}"
    if answer.status in (401, 403):
        return Outcome("transport", f"{said}; check the token", answer.body, again=True, down=True)
    if answer.status == 429:
        return Outcome("transport", said, answer.body, again=True, pause=answer.retry_after)
    if answer.status >= 500:
        return Outcome("transport", said, answer.body, again=True, down=True, pause=answer.retry_after)
    if answer.status in (408, 409, 412):
        return Outcome("rejected", said, answer.body, again=True)
    return Outcome("refused", said, answer.body)


def _seconds(text: str | None) -> float | None:
    """Retry-After: seconds or an HTTP date; at most an hour."""
    if not text:
        return None
    try:
        wanted = (
            float(text) if text.strip().isdigit() else (parsedate_to_datetime(text) - now()).total_seconds()
        )
    except (TypeError, ValueError):
        return None
    return min(max(wanted, 0.0), 3600.0)


def _token(destination: Destination) -> str:
    variable = str(setting(destination, "token_env"))
    return os.environ.get(variable, "") if variable else str(setting(destination, "token"))


def _name(resource: Resource) -> str:
    return f"{resource['resourceType']}/{resource['id']}"


def canonical(resource: dict[str, Any]) -> bytes:
    """One form for one content: keys sorted, no white space, UTF-8."""
    return orjson.dumps(resource, option=orjson.OPT_SORT_KEYS)


def digest(resource: dict[str, Any]) -> str:
    """SHA-256 of the canonical form."""
    return hashlib.sha256(canonical(resource)).hexdigest()
