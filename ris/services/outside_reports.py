"""Reports that other systems wrote: filed as versions of our procedures' reports, older never over newer."""

import hashlib
import re

from common.store import Unit
from ris import context
from ris.commands import Applied, ApplyOrders, Document, FileReport, OrderAction, OrderGroup
from ris.context import Context
from ris.errors import DuplicateKey, Missing, NotAllowed, UnknownKey
from ris.models import ImagingServiceRequest, Report, ReportDocument, ReportVersion, RequestedProcedure
from ris.models.reports import ReportStatus
from ris.services import orders, reports

_MEDIA_TYPE = re.compile(r"[a-z]{1,20}/[a-z0-9][a-z0-9.+_-]{0,40}\Z")
# A version never follows one of a higher rank: a preliminary text after the final one came late.
_RANK = {
    ReportStatus.PRELIMINARY: 1,
    ReportStatus.FINAL: 2,
    ReportStatus.ADDENDED: 3,
    ReportStatus.CORRECTED: 3,
    ReportStatus.RETRACTED: 4,
}


def file(command: FileReport, unit: Unit) -> Applied:
    """File one report. A repeat changes nothing; what is older or lower than what is known is only noted.

    Raises UnknownKey for an order nobody knows (policy `refuse`), DuplicateKey for another patient's or when the
    keys name no single procedure, NotAllowed when somebody here has signed, Missing for a report without text.
    """
    applied = _find_order(command, unit)
    if not applied.request_ids:
        return applied
    unit.flush()  # what follows reads what the order's patient and procedure have become
    ctx = context.load(requests=applied.request_ids)
    procedure = _procedure(command, ctx)
    report = Report.objects.select_for_update().filter(procedure_id=procedure.id).first()
    versions = list(report.versions.order_by("number")) if report else []
    refusal = _why_not(command, versions)
    if refusal:
        applied.warnings.append(refusal)
        return applied
    if report is None:
        report = Report(procedure=procedure, created_at=unit.at, updated_at=unit.at, cause=unit.cause)
        unit.save(report)
        unit.flush()
    _add(command, report, versions, unit)
    return applied


def _find_order(command: FileReport, unit: Unit) -> Applied:
    """The order of the report; made when it is not known and the policy says so (a result may come first)."""
    note = OrderGroup(action=OrderAction.NOTE, keys=command.keys)
    base = ApplyOrders(patient=command.patient, groups=(note,), source=command.source, policy=command.policy)
    applied = orders.apply(base, unit)
    if applied.request_ids or command.policy.unknown_order == "ignore":
        return applied
    if command.policy.unknown_order == "refuse":
        raise UnknownKey("No order here has this number.", attribute="accession_number", group=0)
    unit.flush()
    made = OrderGroup(
        action=OrderAction.NEW, keys=command.keys, status="COMPLETED", procedure=command.procedure
    )
    created = orders.apply(
        ApplyOrders(patient=command.patient, groups=(made,), source=command.source, policy=command.policy),
        unit,
    )
    created.warnings.append("The order was not known and has been created by its report.")
    return created


def _procedure(command: FileReport, ctx: Context) -> RequestedProcedure:
    """The procedure that the keys mean: by its study, its id, its code, or because it is the only one."""
    keys, code = command.keys, command.procedure.get("code_value")
    every = [p for request in ctx.requests.values() for p in _of(request, ctx)]
    for found in (
        [p for p in every if keys.study_instance_uid and p.study_instance_uid == keys.study_instance_uid],
        [
            p
            for p in every
            if keys.requested_procedure_id and p.requested_procedure_id == keys.requested_procedure_id
        ],
        [p for p in every if code and p.code_value == code],
        every,
    ):
        if len(found) == 1:
            return found[0]
    raise DuplicateKey(
        "The order has several procedures; name one.", attribute="requested_procedure_id", group=0
    )


def _of(request: ImagingServiceRequest, ctx: Context) -> list[RequestedProcedure]:
    for procedure in ctx.procedures[request.id]:
        procedure.request = request
    return ctx.procedures[request.id]


def _why_not(command: FileReport, versions: list[ReportVersion]) -> str:
    """Why a report is not filed: a repeat, or older than what is known. Raises NotAllowed, Missing."""
    retracting = command.status == ReportStatus.RETRACTED
    texts = (command.findings, command.impression, command.addendum)
    if not (any(text.strip() for text in texts) or command.documents or retracting):
        raise Missing("The report holds no text.", attribute="report")
    if not versions:
        if retracting:
            return "There is no report here to be retracted."
        return ""
    last = versions[-1]
    if last.signed_by_id is not None:
        raise NotAllowed(
            "The report was signed here; a report from outside cannot replace it.", attribute="report"
        )
    if command.reported_at and command.reported_at < last.signed_at:
        return "Older than the report that is known; it was not filed."
    if _RANK[ReportStatus(command.status)] < _RANK[ReportStatus(last.status)]:
        return f"The report is {last.status} already; {command.status} does not follow."
    same_text = (command.findings, command.impression) == (last.findings, last.impression)
    same = same_text and _digests(command) == sorted(last.documents.values_list("sha256", flat=True))
    if same and not command.addendum and command.status == last.status:
        return "This report was filed before; nothing changed."
    return ""


def _digests(command: FileReport) -> list[str]:
    return sorted(hashlib.sha256(d.content).hexdigest() for d in command.documents)


# The first bytes of a file → its media type; what a sender says may be anything.
_MAGIC = (
    (b"%PDF-", "application/pdf"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"{\\rtf", "application/rtf"),
    (b"PK\x03\x04", "application/zip"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
)


def media_type_of(document: Document) -> str:
    """The media type of a document by its first bytes, else as the sender says; never one that could be another's."""
    found = next((kind for magic, kind in _MAGIC if document.content.lstrip()[:16].startswith(magic)), "")
    said = document.media_type.strip().lower()
    if not found and said in {kind for _, kind in _MAGIC}:
        return "application/octet-stream"  # it says that it is a PDF, and is none
    return found or (said if _MEDIA_TYPE.match(said) else "application/octet-stream")


def _attach(command: FileReport, version: ReportVersion, unit: Unit) -> None:
    for number, document in enumerate(command.documents, 1):
        unit.save(
            ReportDocument(
                version_id=version.id,
                number=number,
                title=document.title[:200],
                media_type=media_type_of(document),
                size=len(document.content),
                sha256=hashlib.sha256(document.content).hexdigest(),
                content=document.content,
            )
        )


def _add(command: FileReport, report: Report, versions: list[ReportVersion], unit: Unit) -> None:
    last = versions[-1] if versions else None
    status, findings, impression = ReportStatus(command.status), command.findings, command.impression
    if last and status is ReportStatus.FINAL and last.status != ReportStatus.PRELIMINARY:
        status = ReportStatus.CORRECTED  # another final text: the sender does not say C
    if last and status in (ReportStatus.ADDENDED, ReportStatus.RETRACTED):
        findings, impression = findings or last.findings, impression or last.impression
    report.findings, report.impression = findings, impression
    version = reports.add_version(
        report,
        unit,
        status=status,
        findings=findings,
        impression=impression,
        addendum=command.addendum,
        signer_name=command.signer_name,
        signer_id=command.signer_id,
        signed_at=command.reported_at or unit.at,
    )
    _attach(command, version, unit)
