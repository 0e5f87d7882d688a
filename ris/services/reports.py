"""Reports: drafting, signing, and addenda. Signed text never changes; each signature makes a version."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from common.store import Unit
from ris import context, history
from ris.errors import Missing, NotAllowed, Stale, UnknownKey
from ris.events import ReportSigned
from ris.models import Practitioner, Report, ReportVersion, RequestedProcedure, StudyMatch
from ris.models.reports import ReportStatus
from ris.models.schedule import StepStatus
from ris.services import lanes, steps

SIGNED = frozenset({ReportStatus.FINAL, ReportStatus.ADDENDED, ReportStatus.CORRECTED})


def open_draft(procedure_id: UUID, user: Any, unit: Unit) -> Report:
    """The report of a procedure, made as an empty draft at the first opening. Raises UnknownKey."""
    procedure = RequestedProcedure.objects.select_for_update().filter(pk=procedure_id).first()
    if procedure is None:
        raise UnknownKey("This procedure does not exist (any more).", attribute="requested_procedure_id")
    report = Report.objects.filter(procedure_id=procedure_id).first()
    if report is None:
        report = Report(
            procedure=procedure, reader=user, created_at=unit.at, updated_at=unit.at, cause=unit.cause
        )
        unit.save(report)
    return report


def save_draft(
    report_id: UUID, draft_version: int, findings: str, impression: str, user: Any, unit: Unit
) -> Report:
    """Keep the draft's text. Raises Stale when somebody saved after `draft_version`, NotAllowed once signed."""
    report = _locked(report_id)
    if report.status in SIGNED or report.status == ReportStatus.RETRACTED:
        raise NotAllowed("A signed report is changed by an addendum only.", attribute="status")
    if report.draft_version != draft_version:
        raise Stale("Somebody else saved this draft meanwhile; open it again and compare.")
    report.findings, report.impression = findings, impression
    report.draft_version += 1
    report.reader = user
    report.updated_at, report.cause = unit.at, unit.cause
    unit.save(report)
    return report


def sign(report_id: UUID, user: Any, unit: Unit, status: str = ReportStatus.FINAL) -> ReportVersion:
    """Sign the draft as PRELIMINARY or FINAL: a version that never changes, and the news for its receivers.

    Raises Missing for an empty report, NotAllowed when a final version exists (write an addendum).
    """
    report = _locked(report_id)
    if report.status in SIGNED:
        raise NotAllowed("This report is signed already; write an addendum.", attribute="status")
    if status not in (ReportStatus.PRELIMINARY, ReportStatus.FINAL):
        raise NotAllowed(f"A draft cannot be signed as {status}.", attribute="status")
    if not (report.findings.strip() or report.impression.strip()):
        raise Missing(
            "An empty report cannot be signed; write findings or an impression.", attribute="impression"
        )
    return _version(report, user, unit, status, report.findings, report.impression, "")


def addend(report_id: UUID, text: str, user: Any, unit: Unit) -> ReportVersion:
    """Add to a signed report: a new version with the old text and the addendum. Raises Missing, NotAllowed."""
    report = _locked(report_id)
    if report.status not in SIGNED:
        raise NotAllowed(
            "Only a signed report takes an addendum; edit the draft instead.", attribute="status"
        )
    if not text.strip():
        raise Missing("An addendum needs text.", attribute="addendum")
    return _version(report, user, unit, ReportStatus.ADDENDED, report.findings, report.impression, text)


def retract(report_id: UUID, reason: str, user: Any, unit: Unit) -> ReportVersion:
    """Take a signed report back (wrong patient, wrong study); it is sent as retracted. Raises Missing, NotAllowed."""
    report = _locked(report_id)
    if report.status not in SIGNED and report.status != ReportStatus.PRELIMINARY:
        raise NotAllowed("Only a signed report can be retracted.", attribute="status")
    if not reason.strip():
        raise Missing("Say why the report is retracted.", attribute="addendum")
    return _version(report, user, unit, ReportStatus.RETRACTED, report.findings, report.impression, reason)


def _locked(report_id: UUID) -> Report:
    report = Report.objects.filter(pk=report_id).select_related("procedure__request").first()
    if report is None:
        raise UnknownKey("This report does not exist (any more).", attribute="report")
    lanes.lock_patients([report.procedure.request.patient_id])
    return Report.objects.select_for_update().get(pk=report_id)


def add_version(
    report: Report,
    unit: Unit,
    *,
    status: str,
    findings: str,
    impression: str,
    addendum: str,
    signer_name: str,
    signer_id: str,
    signed_at: datetime,
) -> ReportVersion:
    """A version that somebody outside signed (ris/services/outside_reports.py decides whether). Lanes are held."""
    signature = _Signature(None, signer_name, signer_id, signed_at)
    return _version(report, None, unit, status, findings, impression, addendum, signature)


@dataclass(frozen=True, slots=True)
class _Signature:
    user: Any
    name: str
    identifier: str
    at: datetime


def _version(
    report: Report,
    user: Any,
    unit: Unit,
    status: str,
    findings: str,
    impression: str,
    addendum: str,
    signature: _Signature | None = None,
) -> ReportVersion:
    previous = list(report.versions.order_by("number"))
    signature = signature or _Signature(user, *signer(user), unit.at)
    version = ReportVersion(
        report=report,
        number=len(previous) + 1,
        status=status,
        findings=findings,
        impression=impression,
        addendum=addendum,
        signed_by=signature.user,
        signer_name=signature.name[:324],
        signer_id=signature.identifier[:199],
        signed_at=signature.at,
        cause=unit.cause,
    )
    version.sha256 = digest(version)
    report.status, report.reader = status, user
    report.updated_at, report.cause = unit.at, unit.cause
    unit.save(report)
    unit.save(version)
    _tell(report, version, previous, unit)
    return version


def digest(version: ReportVersion) -> str:
    """SHA-256 over everything a signature stands for, to prove later that nothing was changed."""
    parts = (
        version.status,
        version.findings,
        version.impression,
        version.addendum,
        version.signer_name,
        version.signed_at.isoformat(),
    )
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def signer(user: Any) -> tuple[str, str]:
    """A user's name (PN) and number for reports: of the practitioner, else of the account."""
    practitioner = Practitioner.objects.filter(user=user).first()
    if practitioner is not None:
        return practitioner.person_name, practitioner.identifier
    family, given = user.last_name or user.get_username(), user.first_name
    return f"{family}^{given}".rstrip("^"), ""


def _tell(report: Report, version: ReportVersion, previous: list[ReportVersion], unit: Unit) -> None:
    procedure_id = report.procedure_id
    ctx = context.load(procedures=[procedure_id])
    request = next(iter(ctx.requests.values()))
    procedure = next(p for p in ctx.procedures[request.id] if p.id == procedure_id)
    procedure.request = request
    patient = ctx.patient_of(request)
    history.note(
        report, unit, patient.id, {"status": [previous[-1].status if previous else "", version.status]}
    )
    matches = StudyMatch.objects.filter(procedure_id=procedure_id, undone_at__isnull=True).select_related(
        "study"
    )
    unit.publish(
        ReportSigned(
            report=report,
            version=version,
            procedure=procedure,
            request=request,
            patient=patient,
            identifiers=ctx.identifiers_of(patient),
            visit=ctx.visit_of(request),
            studies=tuple(m.study for m in matches),
            previous=tuple(previous),
        )
    )
    if version.status == ReportStatus.FINAL:
        still_open = (StepStatus.STARTED, StepStatus.DEPARTED)
        targets = {s.id: StepStatus.COMPLETED for s in ctx.steps[procedure_id] if s.status in still_open}
        steps.move_all(ctx, targets, "report", unit)
