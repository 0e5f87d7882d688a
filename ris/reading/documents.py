"""Documents that came with a report from outside: handed out as they came, to those who may read the report."""

from uuid import UUID

from django.http import Http404, HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from common import audit
from common.roles import Role, has_role, require
from ris.models import ReportDocument
from ris.portal.views import own_procedures

# What a browser shows by itself, without running anything of it.
_SHOWN = frozenset({"application/pdf", "image/jpeg", "image/png"})
_ENDINGS = {"application/pdf": "pdf", "image/jpeg": "jpg", "image/png": "png", "application/rtf": "rtf",
            "image/tiff": "tif", "application/zip": "zip"}  # fmt: skip


@require(Role.RADIOLOGIST, Role.CLERK, Role.ADMINISTRATOR, Role.REFERRER)
@require_GET
def document(request: HttpRequest, pk: UUID) -> HttpResponse:
    """The bytes of a document; for a referrer those of own orders only (else 404)."""
    found = ReportDocument.objects.select_related("version__report__procedure__request").filter(pk=pk).first()
    staff = has_role(request.user, Role.RADIOLOGIST, Role.CLERK, Role.ADMINISTRATOR)
    if found is not None and not staff:
        mine = own_procedures(request).filter(pk=found.version.report.procedure_id)
        found = found if mine.exists() else None
    if found is None:
        raise Http404("There is no such document.")
    order = found.version.report.procedure.request
    audit.record_request(request, "read", "report document", patients=[order.patient_id], objects=[pk])
    shown = found.media_type in _SHOWN
    response = HttpResponse(
        bytes(found.content), content_type=found.media_type if shown else "application/octet-stream"
    )
    ending = _ENDINGS.get(found.media_type, "bin")
    disposition = "inline" if shown else "attachment"
    response["Content-Disposition"] = f'{disposition}; filename="report-{found.number}.{ending}"'
    response["X-Content-Type-Options"] = "nosniff"
    response["Cache-Control"] = "private, no-store"
    return response
