"""DiagnosticReport (R4): the report of a procedure as its newest signed version says it."""

import base64
import hashlib
from collections.abc import Sequence
from datetime import tzinfo
from html import escape

from common.names import parse_pn
from integration.fhir.resources.elements import (
    LOINC,
    V2_0074,
    Resource,
    Systems,
    accession,
    coded,
    concept,
    dicom_time,
    identifier,
    instant,
    person,
    reference,
    without_empty,
)
from integration.fhir.resources.service_request import code_of
from pacs.models import Study
from ris.models import Report, ReportVersion, RequestedProcedure

# Status of a version → http://hl7.org/fhir/diagnostic-report-status.
STATUS = {
    "PRELIMINARY": "preliminary",
    "FINAL": "final",
    "ADDENDED": "appended",
    "CORRECTED": "corrected",
    "RETRACTED": "entered-in-error",
}


def build(
    report: Report,
    versions: Sequence[ReportVersion],
    procedure: RequestedProcedure,
    studies: Sequence[Study],
    systems: Systems,
    *,
    site: str = "",
    zone: tzinfo | None = None,
) -> Resource:
    """The report. `versions` are all signed ones, by number; `procedure` comes with `.request`.

    A retracted report keeps its place and loses its text.
    """
    version, request = versions[-1], procedure.request
    retracted = version.status == "RETRACTED"
    html = _html(versions)
    code = code_of(procedure, systems)
    if not code:
        code = concept([coded(LOINC, "18748-4", "Diagnostic imaging study")])
    started = next((s for study in studies if (s := _started(study, zone))), "") or instant(version.signed_at)
    return without_empty(
        {
            "resourceType": "DiagnosticReport",
            "id": str(report.id),
            "text": None if retracted else {"status": "generated", "div": html},
            "identifier": _identifiers(procedure, systems),
            "basedOn": [reference("ServiceRequest", procedure.id)],
            "status": STATUS[version.status],
            "category": [
                concept([coded(V2_0074, "RAD", "Radiology"), coded(LOINC, "LP29684-5", "Radiology")])
            ],
            "code": code,
            "subject": reference("Patient", request.patient_id),
            "effectiveDateTime": started,
            "issued": instant(version.signed_at),
            "performer": [{"type": "Organization", "display": site}] if site else [],
            "resultsInterpreter": [p for p in (person(version.signer_name, version.signer_id),) if p],
            "imagingStudy": [
                reference("ImagingStudy", study.id) for study in sorted(studies, key=lambda s: s.id)
            ],
            "conclusion": "" if retracted else version.impression.strip(),
            "presentedForm": [] if retracted else [_attachment(html, version)],
        }
    )


def _identifiers(procedure: RequestedProcedure, systems: Systems) -> list[Resource]:
    request = procedure.request
    filler = procedure if procedure.filler_order_number else request
    found = []
    if filler.filler_order_number:
        system = systems.authority(filler.filler_issuer)
        found.append(identifier(filler.filler_order_number, system, "FILL", assigner=filler.filler_issuer))
    if request.accession_number:
        found.append(accession(request.accession_number, request.issuer_of_accession_number, systems))
    return found


def _started(study: Study, zone: tzinfo | None) -> str:
    return dicom_time(study.study_date, study.study_time, study.timezone_offset_from_utc, zone)


def _html(versions: Sequence[ReportVersion]) -> str:
    """The whole report as an XHTML div; every text escaped."""
    version = versions[-1]
    parts = [("Findings", version.findings), ("Impression", version.impression)]
    parts += [(f"Addendum of {v.signed_at:%Y-%m-%d}", v.addendum) for v in versions if v.addendum]
    body = "".join(f"<h3>{escape(title)}</h3>{_paragraphs(text)}" for title, text in parts if text.strip())
    signed = f"Signed by {escape(parse_pn(version.signer_name).display())}, {instant(version.signed_at)}"
    return f'<div xmlns="http://www.w3.org/1999/xhtml">{body}<p>{signed}</p></div>'


def _paragraphs(text: str) -> str:
    kept = "".join(c for c in text if c in "\t\n" or ord(c) >= 32)
    return "".join(f"<p>{escape(line)}</p>" for line in kept.splitlines() if line.strip())


def _attachment(html: str, version: ReportVersion) -> Resource:
    """The rendered report. `hash` is the SHA-1 that R4 asks for, no protection."""
    raw = html.encode()
    return {
        "contentType": "text/html",
        "data": base64.b64encode(raw).decode(),
        "size": len(raw),
        "hash": base64.b64encode(hashlib.sha1(raw, usedforsecurity=False).digest()).decode(),
        "title": f"Report, version {version.number}",
        "creation": instant(version.signed_at),
    }
