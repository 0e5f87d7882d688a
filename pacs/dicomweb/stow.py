"""STOW-RS: objects stored over HTTP (PS3.18 10.5), by the same spool and checks as C-STORE."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
from django.http import HttpResponse
from rest_framework.exceptions import APIException, ParseError
from rest_framework.parsers import BaseParser
from rest_framework.request import Request

from common.roles import has_role
from common.uids import is_loose_uid
from pacs import access, header
from pacs.dicomweb import multipart
from pacs.dicomweb.base import DicomwebView
from pacs.dicomweb.negotiation import DICOM, MediaRange, media_ranges
from pacs.dicomweb.qido import SearchStudies, retrieve_url
from pacs.dicomweb.wado import Retrieve
from pacs.dimse import status
from pacs.dimse.registry import Refused
from pacs.header import HeaderError
from pacs.services.store import SOP_CLASS_UID, SOP_INSTANCE_UID, check, storage_classes
from pacs.storage import spool
from pacs.storage.part10 import MAX_META_BYTES, NotPart10, Origin, origin_of, read_prefix

MAX_FAILED = 1_000
_STUDY, _SERIES = 0x0020000D, 0x0020000E


class UnsupportedMediaType(APIException):
    """415: the body is of another kind than we take."""

    status_code = 415
    default_detail = 'Objects are taken as multipart/related; type="application/dicom".'


class AnyBody(BaseParser):
    """The body stays a stream: objects are larger than memory should hold."""

    media_type = "*/*"

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> Any:
        """Nothing is read here."""
        return {}


class Stow(DicomwebView):
    """POST /studies and /studies/{study}. Success means durable and hashed; the index follows within moments."""

    parser_classes = (AnyBody,)

    def post(self, request: Request, study: str | None = None) -> HttpResponse:
        """200 when all parts were kept, 202 when some were, 409 when none was."""
        if not has_role(request.user, *access.WRITERS):
            self.permission_denied(request, "Your role does not store images.")
        stored: list[dict[str, Any]] = []
        failed: list[dict[str, Any]] = []
        try:
            for part in multipart.read(request._request.read, _boundary(request)):
                if media_ranges(part.headers.get("content-type", DICOM))[0].type != DICOM:
                    failed.append(_failure(Origin("", "", ""), status.CANNOT_UNDERSTAND))
                    continue
                self._keep(request, part.content, study, stored, failed)
                if len(failed) > MAX_FAILED:
                    raise ParseError(f"More than {MAX_FAILED} parts could not be kept.")
        except multipart.BadMultipart as error:
            if not stored:
                raise ParseError(str(error)) from None
            failed.append(_failure(Origin("", "", ""), status.CANNOT_UNDERSTAND))
        self.audit(request, "store", [], stored=len(stored), failed=len(failed))
        document: dict[str, Any] = {}
        if study:
            document["00081190"] = retrieve_url(request, f"/dicomweb/studies/{study}")
        if stored:
            document["00081199"] = {"vr": "SQ", "Value": stored}
        if failed:
            document["00081198"] = {"vr": "SQ", "Value": failed}
        response = _answer(document)
        response.status_code = 200 if not failed else 202 if stored else 409
        return response

    def _keep(
        self,
        request: Request,
        content: Iterator[bytes],
        study: str | None,
        stored: list[dict[str, Any]],
        failed: list[dict[str, Any]],
    ) -> None:
        origin = Origin("", "", "")
        try:
            head, origin, offset = _begin(content)
            uids = _spool(origin, head[offset:], content, study)
        except Refused as error:
            failed.append(_failure(origin, error.status))
            return
        except (NotPart10, HeaderError):
            failed.append(_failure(origin, status.CANNOT_UNDERSTAND))
            return
        except OSError:
            failed.append(_failure(origin, status.OUT_OF_RESOURCES))
            return
        path = f"/dicomweb/studies/{uids[0]}/series/{uids[1]}/instances/{origin.sop_instance_uid}"
        stored.append({**_reference(origin), "00081190": retrieve_url(request, path)})


def _boundary(request: Request) -> str:
    kinds = media_ranges(request.headers.get("Content-Type", ""))
    kind = kinds[0] if kinds else MediaRange("")
    if kind.type != "multipart/related" or kind.inner not in ("", DICOM) or "boundary" not in kind.params:
        raise UnsupportedMediaType
    return kind.params["boundary"]


def _begin(content: Iterator[bytes]) -> tuple[bytes, Origin, int]:
    """The first bytes of an object, whose it says it is, and where its data set begins. Raises NotPart10."""
    head = bytearray()
    for piece in content:
        head += piece
        if len(head) >= MAX_META_BYTES:
            break
    if head[:2] == b"\2\0" and head[128:132] != b"DICM":
        head[:0] = bytes(128) + b"DICM"  # clients leave the preamble out
    meta, offset = read_prefix(bytes(head))
    named = origin_of(meta)
    # What the data set says of itself counts: files with another UID in their meta group exist.
    said = _identity(bytes(head[offset:]), named.transfer_syntax_uid)
    origin = Origin(
        said.text(SOP_CLASS_UID) or named.sop_class_uid,
        said.text(SOP_INSTANCE_UID) or named.sop_instance_uid,
        named.transfer_syntax_uid,
        "STOW-RS",
    )
    if not is_loose_uid(origin.sop_instance_uid) or not is_loose_uid(origin.transfer_syntax_uid):
        raise NotPart10("a UID is none")
    if origin.sop_class_uid not in storage_classes():
        raise Refused(status.CLASS_NOT_SUPPORTED, "no storage SOP class")
    return bytes(head), origin, offset


def _identity(head: bytes, syntax: str) -> header.Header:
    """The UIDs in the first bytes of a data set."""
    if syntax in header.DEFLATED_SYNTAXES:
        head = header.inflate_head([head], 1 << 16)
    wanted = frozenset((SOP_CLASS_UID, SOP_INSTANCE_UID))
    return header.walk(head, syntax, wanted, size=header.MAX_INFLATED)


def _spool(origin: Origin, first: bytes, rest: Iterator[bytes], study: str | None) -> tuple[str, str]:
    """Keep an object; gives its study and series UID. Raises Refused, HeaderError or OSError; then nothing is kept."""
    incoming = spool.mine().begin(origin)
    try:
        incoming.write(first)
        for piece in rest:
            incoming.write(piece)
        check(incoming)
        with incoming.received() as received:
            syntax = origin.transfer_syntax_uid
            whole: bytes | memoryview = received
            if syntax in header.DEFLATED_SYNTAXES:
                whole = header.inflate_head([bytes(received)], 1 << 20)
            found = header.walk(whole, syntax, frozenset((_STUDY, _SERIES)), size=len(whole))
        uids = found.text(_STUDY), found.text(_SERIES)
        if not all(is_loose_uid(uid) for uid in uids) or (study and uids[0] != study):
            raise Refused(status.DATA_SET_MISMATCH, "another study than the one addressed, or none")
        incoming.commit()
    except BaseException:
        incoming.discard()
        raise
    return uids


def _reference(origin: Origin) -> dict[str, Any]:
    item: dict[str, Any] = {}
    if is_loose_uid(origin.sop_class_uid):
        item["00081150"] = {"vr": "UI", "Value": [origin.sop_class_uid]}
    if is_loose_uid(origin.sop_instance_uid):
        item["00081155"] = {"vr": "UI", "Value": [origin.sop_instance_uid]}
    return item


def _failure(origin: Origin, code: int) -> dict[str, Any]:
    return {**_reference(origin), "00081197": {"vr": "US", "Value": [code]}}


def _answer(document: dict[str, Any]) -> HttpResponse:
    return HttpResponse(orjson.dumps(document), content_type="application/dicom+json")


class Studies(SearchStudies, Stow):
    """/studies: searched and stored to."""


class OneStudy(Retrieve, Stow):
    """/studies/{study}: retrieved and stored to."""
