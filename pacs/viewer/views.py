"""The page of the viewer and, for it, what a study consists of."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import reverse

from common.names import parse_pn
from common.roles import require
from pacs import access
from pacs.dicomweb.base import READ_ROLES, note_access
from pacs.dicomweb.negotiation import VIDEO_TYPES
from pacs.dicomweb.rendered import DOCUMENTS
from pacs.models import Instance, Study

MAX_STUDIES = 8


@require(*READ_ROLES)
def viewer(request: HttpRequest) -> HttpResponse:
    """`?study=<id>` shows a study, several of them one above the other; `embed=1` leaves our frame away.

    The ids are our own row ids: an address holds nothing of a patient.
    """
    wanted = [_id(text) for text in request.GET.getlist("study")[:MAX_STUDIES]]
    found = {study.pk: study for study in access.scope(request.user).filter(pk__in=wanted)}
    studies = [found[one] for one in dict.fromkeys(wanted) if one in found]
    if wanted and not studies:
        raise Http404
    for study in studies:
        note_access(request, study.pk)
    context = {"studies": studies, "embed": request.GET.get("embed") == "1"}
    return render(request, "pacs/viewer_page.html", context)


@require(*READ_ROLES)
def contents(request: HttpRequest, study: UUID) -> HttpResponse:
    """The series of a study and the addresses of their pictures, as JSON for viewer.js."""
    row = access.scope(request.user).filter(pk=study).first()
    if row is None:
        raise Http404
    note_access(request, row.pk)
    response = JsonResponse(describe(row))
    response["Cache-Control"] = "private, no-store"
    return response


def _id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise Http404 from None


def describe(study: Study) -> dict[str, Any]:
    """Labels and series of a study in their order; a series lists its objects as {url, frames, rows, columns}."""
    root = f"{reverse('dicomweb-studies')}/{study.study_instance_uid}"
    series: dict[Any, dict[str, Any]] = {}
    rows = (
        Instance.objects.filter(series__study=study, hidden=False)
        .select_related("series")
        .order_by("series__series_number", "series_id", "instance_number", "id")
    )
    for row in rows:
        one = series.get(row.series_id)
        if one is None:
            path = f"{root}/series/{row.series.series_instance_uid}"
            one = series[row.series_id] = {
                "id": str(row.series_id),
                "number": row.series.series_number,
                "description": row.series.series_description,
                "modality": row.series.modality,
                "thumbnail": f"{path}/thumbnail?viewport=128,128",
                "kind": _kind(row),
                "images": [],
            }
            one["_path"] = path
        one["images"].append(
            {
                "url": f"{one['_path']}/instances/{row.sop_instance_uid}",
                "frames": row.number_of_frames or 1,
                "rows": row.rows or 0,
                "columns": row.columns or 0,
            }
        )
    for one in series.values():
        del one["_path"]
    born = study.patient_birth_date
    return {
        "patient": parse_pn(study.patient_name).display() or "No name",
        "patient_id": study.patient_id,
        "born": f"{born[:4]}-{born[4:6]}-{born[6:]}" if len(born) == 8 else born,
        "description": study.study_description,
        "date": study.study_date.isoformat() if study.study_date else "",
        "series": list(series.values()),
    }


def _kind(row: Instance) -> str:
    """What a series is shown as: `image`, `document`, `video` or `other`."""
    if row.sop_class_uid in DOCUMENTS:
        return "document"
    if row.transfer_syntax_uid in VIDEO_TYPES:
        return "video"
    return "image" if row.rows and row.columns else "other"
