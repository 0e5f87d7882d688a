"""The referring physician's pages: own orders with where they are, and their signed reports."""

from uuid import UUID

from django.db.models import Prefetch, QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET, require_http_methods

from common import audit
from common.roles import Role, require
from ris import selectors
from ris.models import ReportVersion, RequestedProcedure
from ris.portal.access import practitioner_of


def own_procedures(request: HttpRequest) -> QuerySet[RequestedProcedure]:
    """The procedures of the orders of the physician who asks."""
    mine = selectors.requests_of(practitioner_of(request.user))
    return RequestedProcedure.objects.filter(request__in=mine)


@require(Role.REFERRER)
@require_http_methods(["GET", "POST"])
def orders(request: HttpRequest) -> HttpResponse:
    """The procedures of this physician's orders, newest first; a search comes by POST."""
    term = request.POST.get("term", "")
    found = own_procedures(request)
    if term.strip():
        found = found.filter(selectors.order_matches(term, "request__"))
    rows = list(
        found.select_related("request__patient", "report")
        .prefetch_related("request__patient__identifiers", "steps", Prefetch("report__versions"))
        .order_by("-created_at")[:100]
    )
    audit.record_request(
        request,
        "search" if term else "list",
        "own orders",
        patients=dict.fromkeys(row.request.patient_id for row in rows),
        objects=[row.pk for row in rows],
        detail={"count": len(rows)},
    )
    context = {"rows": rows, "term": term, "known": practitioner_of(request.user) is not None}
    return render(
        request, "portal/rows.html" if getattr(request, "htmx", False) else "portal/list.html", context
    )


@require(Role.REFERRER)
@require_GET
def report(request: HttpRequest, procedure_id: UUID) -> HttpResponse:
    """The signed versions of one report, with its images. An order of somebody else is not there (404)."""
    procedure = (
        own_procedures(request)
        .select_related("request__patient")
        .prefetch_related("request__patient__identifiers")
        .filter(pk=procedure_id)
        .first()
    )
    if procedure is None:
        raise Http404("This is none of your orders.")
    patient = procedure.request.patient
    audit.record_request(request, "read", "report", patients=[patient.pk], objects=[procedure.pk])
    context = {
        "procedure": procedure,
        "order": procedure.request,
        "patient": patient,
        "identifier": selectors.shown_identifier(patient),
        "versions": list(ReportVersion.objects.filter(report__procedure=procedure).order_by("-number")),
        "studies": selectors.studies_of(procedure),
    }
    return render(request, "portal/report.html", context)
