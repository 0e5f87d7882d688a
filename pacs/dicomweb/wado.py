"""WADO-RS: studies, series, instances, metadata, frames and bulk data (PS3.18 10.4)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from typing import Any

from django.http import Http404, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from rest_framework.exceptions import APIException, ParseError
from rest_framework.request import Request

from pacs import manifest, overlay
from pacs.dicomweb import multipart
from pacs.dicomweb.base import DicomwebView, NotAcceptable, json_response
from pacs.dicomweb.negotiation import (
    DICOM,
    EXPLICIT_LITTLE,
    FRAME_TYPES,
    OCTETS,
    choose_frames,
    choose_object,
    takes_json,
)
from pacs.dicomweb.stored import NotThere, Source, Stored, decompressed
from pacs.header import HeaderError
from pacs.rendering import RenderingError

MAX_FRAMES = 2_000
"""Frames of one request."""


class Unmakeable(APIException):
    """An answer that cannot be made of a stored object; the status tells whether trying again can help."""

    _STATUS = {
        "no_such_frame": 404,
        "not_an_image": 404,
        "no_decoder": 406,
        "too_large": 413,
        "too_slow": 503,
        "busy": 503,
        "gone": 500,
    }

    def __init__(self, error: RenderingError) -> None:
        super().__init__(error.detail, error.reason)
        self.status_code = self._STATUS.get(error.reason, 422)


class Unreadable(APIException):
    """422: the stored bytes are no data set that can be walked."""

    status_code = 422
    default_detail = "The stored object cannot be read; it is kept as it was received."


class Retrieve(DicomwebView):
    """GET /studies/{study}, /series/{series} and /instances/{instance}: whole objects with their overlay."""

    def get(
        self, request: Request, study: str, series: str | None = None, instance: str | None = None
    ) -> HttpResponseBase:
        """multipart/related of application/dicom, or one object alone where the client takes that."""
        ranges = self.ranges(request)
        rows = list(self.instances(request, study, series, instance))
        if not rows:
            raise Http404
        sources = [Source.of(row) for row in rows]
        choices = [choose_object(ranges, source.transfer_syntax_uid) for source in sources]
        if None in choices:
            raise NotAcceptable
        decode = [bool(choice and choice.decode) for choice in choices]
        self.audit(request, "read", [rows[0].series.study_id], objects=len(rows))
        if len(sources) == 1 and choices[0] and not choices[0].multipart:
            return self._alone(sources[0], decode[0])
        mark = multipart.boundary()
        return StreamingHttpResponse(
            multipart.write(_objects(zip(sources, decode, strict=True)), mark),
            content_type=f'multipart/related; type="{DICOM}"; boundary={mark}',
        )

    @staticmethod
    def _alone(source: Source, decode: bool) -> HttpResponseBase:
        try:
            pieces = [decompressed(source)] if decode else _pieces(source)
            response = StreamingHttpResponse(pieces, content_type=DICOM)
        except RenderingError as error:
            raise Unmakeable(error) from error
        response["Content-Disposition"] = f'attachment; filename="{source.sop_instance_uid}.dcm"'
        return response


def _objects(sources: Iterable[tuple[Source, bool]]) -> Iterator[tuple[str, Iterable[bytes]]]:
    for source, decode in sources:
        syntax = EXPLICIT_LITTLE if decode else source.transfer_syntax_uid
        content = [decompressed(source)] if decode else _pieces(source)
        yield f"{DICOM}; transfer-syntax={syntax}", content


def _pieces(source: Source) -> Iterator[bytes]:
    with Stored(source) as stored:
        yield from stored.pieces()


class Metadata(DicomwebView):
    """GET …/metadata of a study, series or instance: all attributes as DICOM JSON."""

    def get(
        self, request: Request, study: str, series: str | None = None, instance: str | None = None
    ) -> HttpResponse:
        """A list of objects. One that cannot be read is left out, and a Warning says so."""
        if not takes_json(self.ranges(request)):
            raise NotAcceptable("Metadata is answered as application/dicom+json.")
        rows = list(self.instances(request, study, series, instance))
        if not rows:
            raise Http404
        self.audit(request, "read", [rows[0].series.study_id], objects=len(rows))
        over = overlay.json_of(overlay.attributes_of(rows[0].series.study))
        documents: list[dict[str, Any]] = []
        for series_id, of_series in groupby(rows, key=lambda row: row.series_id):
            for document in manifest.documents(series_id, list(of_series)):
                if document is not None:
                    documents.append(overlay.apply_json(document, over))
        unread = len(rows) - len(documents)
        if not documents:
            raise Unreadable
        response = json_response(request, documents)
        if unread:
            response["Warning"] = f'299 orderly "{unread} objects cannot be read and were left out"'
        return response


class Frames(DicomwebView):
    """GET …/frames/{list}: pixels as they are stored, or native where the client asks for octets."""

    def get(self, request: Request, study: str, series: str, instance: str, frames: str) -> HttpResponseBase:
        """multipart/related with a part for each frame; a single frame alone where the client takes that."""
        numbers = [int(number) for number in re.split(r",|%2[Cc]", frames) if number]
        if not numbers or len(numbers) > MAX_FRAMES:
            raise ParseError(f"A request names 1 to {MAX_FRAMES} frames.")
        row = self.instance(request, study, series, instance)
        source = Source.of(row)
        choice = choose_frames(self.ranges(request), source.transfer_syntax_uid)
        if choice is None or (not choice.multipart and len(numbers) > 1):
            raise NotAcceptable
        self.audit_once(request, row.series.study_id)
        try:
            with Stored(source) as stored:
                # The first is made before the answer begins, so that what is wrong with it has a status.
                first = stored.frame(numbers[0], decode=choice.decode)
                if max(numbers) > stored.frames or min(numbers) < 1:
                    raise NotThere(f"the object has frames 1 to {stored.frames}")
        except NotThere as error:
            raise Http404(str(error)) from None
        except RenderingError as error:
            raise Unmakeable(error) from error
        except HeaderError:
            raise Unreadable from None
        kind, syntax = OCTETS, EXPLICIT_LITTLE
        if not choice.decode:
            syntax = source.transfer_syntax_uid
            kind = FRAME_TYPES.get(syntax, OCTETS)
        part_type = f"{kind}; transfer-syntax={syntax}"
        response: HttpResponseBase
        if not choice.multipart:
            response = HttpResponse(first, content_type=part_type)
        else:
            mark = multipart.boundary()
            contents = chain([first], _frames(source, numbers[1:], choice.decode))
            body = multipart.write(((part_type, [content]) for content in contents), mark)
            content_type = f'multipart/related; type="{kind}"; transfer-syntax={syntax}; boundary={mark}'
            if len(numbers) == 1:
                response = HttpResponse(b"".join(body), content_type=content_type)
            else:
                response = StreamingHttpResponse(body, content_type=content_type)
        response["Cache-Control"] = "private, max-age=3600"
        return response


def _frames(source: Source, numbers: list[int], decode: bool) -> Iterator[bytes]:
    if numbers:
        with Stored(source) as stored:
            for number in numbers:
                yield stored.frame(number, decode=decode)


class Bulkdata(DicomwebView):
    """GET …/bulkdata/{path}: a binary value that metadata names by its URI."""

    def get(self, request: Request, study: str, series: str, instance: str, path: str) -> HttpResponse:
        """The bytes, little endian: in one part where multipart is asked for first, else alone or in ranges."""
        row = self.instance(request, study, series, instance)
        self.audit_once(request, row.series.study_id)
        try:
            with Stored(Source.of(row)) as stored:
                content = stored.bulk([part for part in path.split("/") if part])
        except NotThere as error:
            raise Http404(str(error)) from None
        except RenderingError as error:
            raise Unmakeable(error) from error
        except (HeaderError, RecursionError):
            raise Unreadable from None
        if self.ranges(request)[0].type in ("multipart/related", "multipart/*"):
            mark = multipart.boundary()
            return HttpResponse(
                b"".join(multipart.write([(OCTETS, [content])], mark)),
                content_type=f'multipart/related; type="{OCTETS}"; boundary={mark}',
            )
        return ranged(request, [(0, len(content))], content, OCTETS)


def ranged(request: Request, pieces: list[tuple[int, int]], data: Any, content_type: str) -> HttpResponse:
    """200 with everything or 206 with one range (RFC 9110 14.2) of the pieces (offset, length) of `data`."""
    total = sum(length for _, length in pieces)
    first, last = 0, total - 1
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", "").strip())
    partial = asked is not None and asked.group(0) != "bytes=-"
    if asked is not None and partial:
        if not asked.group(1):
            first = max(0, total - int(asked.group(2)))
        else:
            first = int(asked.group(1))
            last = min(last, int(asked.group(2))) if asked.group(2) else last
        if first > last:
            response = HttpResponse(status=416)
            response["Content-Range"] = f"bytes */{total}"
            return response
    parts, at = [], 0
    for offset, length in pieces:
        low, high = max(first, at), min(last + 1, at + length)
        if low < high:
            parts.append(bytes(data[offset + low - at : offset + high - at]))
        at += length
    response = HttpResponse(b"".join(parts), status=206 if partial else 200, content_type=content_type)
    response["Accept-Ranges"] = "bytes"
    if partial:
        response["Content-Range"] = f"bytes {first}-{last}/{total}"
    return response
