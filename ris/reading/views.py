"""The reading list and the report page. The text is saved as it is typed; a signature freezes it."""

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from common import audit
from common.roles import Role, require
from common.store import Unit
from ris import selectors
from ris.deeds import audited, carry_out
from ris.errors import Refusal, Stale
from ris.models import Report, ReportVersion, RequestedProcedure
from ris.models.reports import ReportStatus
from ris.services import reports


@require(Role.RADIOLOGIST)
@require_http_methods(["GET", "POST"])
def reading_list(request: HttpRequest) -> HttpResponse:
    """What waits to be read. A search comes by POST, so that no name is part of an address."""
    term, modality = request.POST.get("term", ""), request.POST.get("modality", "")
    rows = selectors.reading_list(term, modality)
    audit.record_request(
        request,
        "search" if term else "list",
        "reading list",
        patients=dict.fromkeys(row.patient.pk for row in rows),
        objects=[row.procedure.pk for row in rows],
        detail={"count": len(rows)},
    )
    context = {
        "rows": rows,
        "term": term,
        "modality": modality,
        "modalities": selectors.modalities_to_read(),
        "late": sum(row.late for row in rows),
    }
    part = getattr(request, "htmx", False)
    return render(request, "reading/rows.html" if part else "reading/list.html", context)


@require(Role.RADIOLOGIST)
@require_GET
def report(request: HttpRequest, procedure_id: UUID) -> HttpResponse:
    """Images on one side, the report on the other. Opening changes nothing; the first save makes the draft."""
    procedure = _procedure(procedure_id)
    _note_reading(request, procedure)
    return render(request, "reading/report.html", _page(procedure))


def _note_reading(request: HttpRequest, procedure: RequestedProcedure) -> None:
    audit.record_request(
        request, "read", "report", patients=[procedure.request.patient_id], objects=[procedure.pk]
    )


def _procedure(procedure_id: UUID) -> RequestedProcedure:
    found = (
        RequestedProcedure.objects.select_related("request__patient", "request__visit")
        .prefetch_related("request__patient__identifiers", "steps")
        .filter(pk=procedure_id)
        .first()
    )
    if found is None:
        raise Http404("There is no such procedure.")
    return found


def _page(procedure: RequestedProcedure, **more: Any) -> dict[str, Any]:
    """What the report page shows; `more` overrides, for a draft that was not saved."""
    request = procedure.request
    existing = Report.objects.select_related("reader").filter(procedure=procedure).first()
    versions = list(ReportVersion.objects.filter(report=existing).order_by("-number")) if existing else []
    signed = existing is not None and existing.status in reports.SIGNED
    return {
        "procedure": procedure,
        "order": request,
        "patient": request.patient,
        "identifier": selectors.shown_identifier(request.patient),
        "studies": selectors.studies_of(procedure),
        "report": existing,
        "signed": signed or (existing is not None and existing.status == ReportStatus.RETRACTED),
        "retracted": existing is not None and existing.status == ReportStatus.RETRACTED,
        "versions": versions,
        "priors": selectors.prior_reports(request.patient_id, procedure.pk),
        "findings": existing.findings if existing else "",
        "impression": existing.impression if existing else "",
        "draft_version": existing.draft_version if existing else 0,
        **more,
    }


@require(Role.RADIOLOGIST)
@require_POST
def save(request: HttpRequest, procedure_id: UUID) -> HttpResponse:
    """Keep the draft (htmx). Refused when somebody saved meanwhile: then both texts are shown, none is lost."""
    procedure = _procedure(procedure_id)
    try:
        saved = audited(
            request,
            lambda unit: _save(request, procedure, unit),
            what="report",
            action="draft",
            patients=[procedure.request.patient_id],
            objects=[procedure_id],
        )
    except Stale:
        return render(
            request, "reading/conflict.html", {"procedure": procedure, "theirs": _theirs(procedure)}
        )
    except Refusal as refusal:
        return render(request, "reading/refused.html", {"text": refusal.text})
    return render(request, "reading/saved.html", {"report": saved})


def _save(request: HttpRequest, procedure: RequestedProcedure, unit: Unit) -> Report:
    draft = reports.open_draft(procedure.pk, request.user, unit)
    unit.flush()
    sent = request.POST.get("draft_version", "")
    return reports.save_draft(
        draft.pk,
        int(sent) if sent.isdigit() else -1,
        request.POST.get("findings", "").replace("\r\n", "\n"),
        request.POST.get("impression", "").replace("\r\n", "\n"),
        request.user,
        unit,
    )


def _theirs(procedure: RequestedProcedure) -> Report:
    return Report.objects.select_related("reader").get(procedure=procedure)


@require(Role.RADIOLOGIST)
@require_POST
def sign(request: HttpRequest, procedure_id: UUID) -> HttpResponse:
    """Save what is on the page and sign it, in one transaction; what cannot be signed stays on the page."""
    procedure = _procedure(procedure_id)
    wanted = request.POST.get("status", "")
    status = wanted if wanted in (ReportStatus.FINAL, ReportStatus.PRELIMINARY) else ReportStatus.FINAL

    def deed(unit: Unit) -> ReportVersion:
        draft = _save(request, procedure, unit)
        unit.flush()
        return reports.sign(draft.pk, request.user, unit, status)

    try:
        audited(
            request,
            deed,
            what="report",
            action="sign",
            patients=[procedure.request.patient_id],
            objects=[procedure_id],
        )
    except Stale:
        _note_reading(request, procedure)
        kept = {
            "findings": request.POST.get("findings", ""),
            "impression": request.POST.get("impression", ""),
        }
        return render(
            request, "reading/report.html", _page(procedure, theirs=_theirs(procedure), **kept), status=409
        )
    except Refusal as refusal:
        messages.error(request, refusal.text)
        return redirect("reading:report", procedure_id=procedure_id)
    messages.success(request, "Signed. It is on its way to everyone who gets it.")
    return redirect("reading:report", procedure_id=procedure_id)


@require(Role.RADIOLOGIST)
@require_POST
def addend(request: HttpRequest, procedure_id: UUID) -> HttpResponse:
    """Add to a signed report: a new version, the signed text stays."""
    procedure, existing = _signed(procedure_id)
    carry_out(
        request,
        lambda unit: reports.addend(existing.pk, request.POST.get("text", ""), request.user, unit),
        what="report",
        action="addend",
        done="The addendum is signed and on its way.",
        patients=[procedure.request.patient_id],
        objects=[procedure_id],
    )
    return redirect("reading:report", procedure_id=procedure_id)


@require(Role.RADIOLOGIST)
@require_POST
def retract(request: HttpRequest, procedure_id: UUID) -> HttpResponse:
    """Take a signed report back, with a reason; receivers are told."""
    procedure, existing = _signed(procedure_id)
    carry_out(
        request,
        lambda unit: reports.retract(existing.pk, request.POST.get("text", ""), request.user, unit),
        what="report",
        action="retract",
        done="The report is retracted; its receivers are told.",
        patients=[procedure.request.patient_id],
        objects=[procedure_id],
    )
    return redirect("reading:report", procedure_id=procedure_id)


def _signed(procedure_id: UUID) -> tuple[RequestedProcedure, Report]:
    procedure = _procedure(procedure_id)
    existing = Report.objects.filter(procedure=procedure).first()
    if existing is None:
        raise Http404("There is no report yet.")
    return procedure, existing
