"""What every DICOMweb view shares: who may come in, what it may see, the audit trail, the shape of answers."""

from __future__ import annotations

import gzip
import threading
import time
from collections import OrderedDict
from typing import Any

import orjson
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from rest_framework.authentication import SessionAuthentication
from rest_framework.exceptions import APIException, PermissionDenied
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.views import APIView

from common.audit import actor_of, record_request
from common.roles import BearerAuthentication, Role, RolePermission
from pacs import access
from pacs.dicomweb.negotiation import DICOM_JSON, MediaRange, media_ranges
from pacs.models import Instance, Study

READ_ROLES = access.READERS | {Role.REFERRER}
"""Who may knock; what each of them sees is the access policy's answer (a plain archive shows a referrer nothing)."""

SAME_ACCESS_SECONDS = 600
"""Frames and pictures of one study, fetched by one actor within this time, are one access in the audit trail."""


class SameOriginSession(SessionAuthentication):
    """The session cookie of our own pages. Writing needs no CSRF token but a request from this very origin.

    A viewer posts data sets without a token; browsers say where a request comes from and pages cannot forge it.
    """

    def enforce_csrf(self, request: HttpRequest) -> None:
        """Refuse a request of another site (Fetch Metadata, else the Origin header)."""
        if request.method in ("GET", "HEAD", "OPTIONS"):
            return
        site = request.headers.get("Sec-Fetch-Site")
        origin = request.headers.get("Origin", "")
        own = f"{request.scheme}://{request.get_host()}"
        if (site == "same-origin" and origin in ("", own)) or (site is None and origin == own):
            return
        raise PermissionDenied("A page of another site cannot write here; use a bearer token.")


class TakesAnything(BaseContentNegotiation):
    """Accept is read by the views: its forms in DICOMweb are beyond DRF's negotiation."""

    def select_parser(self, request: Request, parsers: Any) -> Any:
        """Bodies are read as streams by the views."""
        return parsers[0]

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:
        """Only error answers are rendered by DRF."""
        return renderers[0], renderers[0].media_type


class NotAcceptable(APIException):
    """406: nothing of what the client takes can be made of the object."""

    status_code = 406
    default_detail = "None of the media types of the Accept header can be made of this object."


class DicomwebView(APIView):
    """A resource. `roles` opens the door; `sources` and `studies` see only the caller's scope."""

    authentication_classes = (BearerAuthentication, SameOriginSession)
    permission_classes = (RolePermission,)
    content_negotiation_class = TakesAnything
    renderer_classes = (JSONRenderer,)
    roles = frozenset(READ_ROLES)

    def finalize_response(self, request: Any, response: Any, *args: Any, **kwargs: Any) -> Any:
        """Nothing that comes from here is guessed at by a browser or kept by a shared cache."""
        response = super().finalize_response(request, response, *args, **kwargs)
        response["X-Content-Type-Options"] = "nosniff"
        response.setdefault("Cache-Control", "private, no-cache")
        return response

    def ranges(self, request: Request) -> list[MediaRange]:
        """What the client takes; the query parameter `accept` goes before the header (PS3.18 8.3.3.1)."""
        asked = request.query_params.get("accept")
        return media_ranges(asked or request.headers.get("Accept", ""))

    def study(self, request: Request, study: str) -> Study:
        """The study of this UID, if the caller may see it; else 404, whether it exists or not."""
        found = access.scope(request.user).filter(study_instance_uid=study).first()
        if found is None:
            raise Http404
        return found

    def instances(
        self, request: Request, study: str, series: str | None = None, instance: str | None = None
    ) -> QuerySet[Instance]:
        """The objects below a path that the caller may see, with their series, study and overlay."""
        studies = access.scope(request.user).filter(study_instance_uid=study)
        rows = Instance.objects.filter(series__study__in=studies, hidden=False)
        if series is not None:
            rows = rows.filter(series__series_instance_uid=series)
        if instance is not None:
            rows = rows.filter(sop_instance_uid=instance)
        return rows.select_related("series__study__overlay").order_by(
            "series__series_number", "series_id", "instance_number", "id"
        )

    def instance(self, request: Request, study: str, series: str, instance: str) -> Instance:
        """One object, or 404."""
        row = self.instances(request, study, series, instance).first()
        if row is None:
            raise Http404
        return row

    def audit(self, request: Request, action: str, studies: list[Any], **detail: Any) -> None:
        """Write down an access, before the answer leaves."""
        record_request(request, action, "study", objects=studies, detail={"route": _route(request), **detail})

    def audit_once(self, request: Request, study_id: Any) -> None:
        """As `audit`, for resources that a viewer fetches by the hundred."""
        note_access(request, study_id)


def note_access(request: HttpRequest | Request, study_id: Any) -> None:
    """Write down that this actor looks at this study, unless that was written within the last minutes."""
    if _accesses.is_new((actor_of(request.user), str(study_id))):
        record_request(request, "read", "study", objects=[study_id], detail={"route": _route(request)})


def _route(request: HttpRequest | Request) -> str:
    return request.resolver_match.route if request.resolver_match else ""


class _Accesses:
    """Who looked at what within the last minutes; forgotten oldest first."""

    def __init__(self, limit: int = 10_000) -> None:
        self._seen: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._limit = limit
        self._lock = threading.Lock()

    def is_new(self, key: tuple[str, str]) -> bool:
        now = time.monotonic()
        with self._lock:
            since = self._seen.get(key)
            if since is not None and now - since < SAME_ACCESS_SECONDS:
                return False
            self._seen[key] = now
            self._seen.move_to_end(key)
            while len(self._seen) > self._limit:
                self._seen.popitem(last=False)
        return True

    def forget(self) -> None:
        """For tests: the next access is a new one."""
        with self._lock:
            self._seen.clear()


_accesses = _Accesses()


def json_response(request: HttpRequest | Request, document: Any) -> HttpResponse:
    """DICOM JSON, compressed when the client takes that: metadata shrinks to a tenth."""
    body = orjson.dumps(document)
    response = HttpResponse(content_type=DICOM_JSON)
    if len(body) > 1024 and "gzip" in request.headers.get("Accept-Encoding", ""):
        body = gzip.compress(body, 4)
        response["Content-Encoding"] = "gzip"
    response["Vary"] = "Accept, Accept-Encoding"
    response.content = body
    return response
