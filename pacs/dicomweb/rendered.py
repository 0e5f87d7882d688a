"""Rendered answers: pictures of frames, documents and video as a browser shows them (PS3.18 10.4.1.1.3, 10.4.1.1.4)."""

from __future__ import annotations

import hashlib

from django.db.models import QuerySet
from django.http import Http404, HttpResponse
from rest_framework.exceptions import ParseError
from rest_framework.request import Request

from pacs import rendering
from pacs.dicomweb.base import DicomwebView, NotAcceptable
from pacs.dicomweb.negotiation import VIDEO_TYPES
from pacs.dicomweb.stored import NotThere, Source, Stored
from pacs.dicomweb.wado import Unmakeable, Unreadable, ranged
from pacs.header import HeaderError
from pacs.models import Instance

THUMBNAIL = (256, 256)
DOCUMENTS = {
    "1.2.840.10008.5.1.4.1.1.104.1": "application/pdf",
    "1.2.840.10008.5.1.4.1.1.104.2": "text/xml",
}
_DOCUMENT = "00420011"


class Rendered(DicomwebView):
    """GET …/rendered of an instance, its frames, or a series (its middle instance)."""

    thumbnail = False

    def get(
        self,
        request: Request,
        study: str,
        series: str | None = None,
        instance: str | None = None,
        frames: str | None = None,
    ) -> HttpResponse:
        """JPEG or PNG; a PDF or video as it is. Parameters: window, viewport, quality."""
        row = self._row(request, study, series, instance)
        if row is None:
            raise Http404
        source = Source.of(row)
        self.audit_once(request, row.series.study_id)
        if not self.thumbnail:
            other = _as_it_is(request, source)
            if other is not None:
                return other
        number = int(frames) if frames else (1 if row.number_of_frames in (None, 1) else None)
        picture = self._picture(request, source, number)
        tag = f'"{hashlib.sha256(f"{source.sha256}{picture}".encode()).hexdigest()[:32]}"'
        if request.headers.get("If-None-Match") == tag:
            response = HttpResponse(status=304)
        else:
            try:
                made = rendering.render(picture)
            except rendering.RenderingError as error:
                raise Unmakeable(error) from error
            response = HttpResponse(made.body, content_type=picture.media_type)
            if made.window:
                response["Orderly-Window"] = f"{made.window.center:g},{made.window.width:g}"
        response["ETag"] = tag
        response["Cache-Control"] = "private, max-age=3600"
        response["Vary"] = "Accept, Cookie, Authorization"
        return response

    def _row(self, request: Request, study: str, series: str | None, instance: str | None) -> Instance | None:
        rows = self.instances(request, study, series, instance)
        return rows.first() if instance is not None else middle(rows)

    def _picture(self, request: Request, source: Source, number: int | None) -> rendering.Picture:
        media_type = next(
            (
                known
                for entry in self.ranges(request)
                for known in rendering.MEDIA_TYPES
                if entry.covers(known)
            ),
            None,
        )
        if media_type is None:
            raise NotAcceptable("Pictures are made as image/jpeg or image/png.")
        params = request.query_params
        viewport = _viewport(params.get("viewport"))
        return rendering.Picture(
            path=source.path,
            frame=number,
            window=_window(params.get("window")),
            viewport=viewport or (THUMBNAIL if self.thumbnail else None),
            enlarge=not self.thumbnail,
            media_type=media_type,
            quality=_quality(params.get("quality")),
        )


class Thumbnail(Rendered):
    """GET …/thumbnail of a study, series, instance or frame."""

    thumbnail = True


def middle(rows: QuerySet[Instance]) -> Instance | None:
    """The middle one of the first series that has pictures; None when there are none."""
    images = rows.filter(rows__isnull=False)
    first = images.first()
    if first is None:
        return None
    images = images.filter(series_id=first.series_id)
    return images[images.count() // 2]


def _as_it_is(request: Request, source: Source) -> HttpResponse | None:
    """A document or a video that a browser shows by itself; None for everything else."""
    kind = DOCUMENTS.get(source.sop_class_uid)
    video = VIDEO_TYPES.get(source.transfer_syntax_uid)
    if not kind and not video:
        return None
    try:
        with Stored(source) as stored:
            if video:
                return ranged(request, stored.stream(), stored.data, video)
            content = stored.bulk([_DOCUMENT])
            length = stored.attributes.get("EncapsulatedDocumentLength")
    except NotThere as error:
        raise Http404(str(error)) from None
    except HeaderError:
        raise Unreadable from None
    if length:
        content = content[: int(length)]
    response = ranged(request, [(0, len(content))], content, kind or "")
    # A document is another's code: it is shown in our frame, but runs nothing and reaches nothing.
    response["X-Frame-Options"] = "SAMEORIGIN"
    response["Content-Security-Policy"] = "sandbox; default-src 'none'; style-src 'unsafe-inline'"
    return response


def _window(text: str | None) -> rendering.Window | None:
    """`center,width[,function]`, function as linear, linear-exact or sigmoid (PS3.18 8.3.5.1.4)."""
    if not text:
        return None
    parts = text.split(",")
    names = {"linear": "LINEAR", "linear-exact": "LINEAR_EXACT", "sigmoid": "SIGMOID"}
    try:
        center, width = float(parts[0]), float(parts[1])
        function = names[parts[2].lower()] if len(parts) > 2 else "LINEAR"
    except (IndexError, KeyError, ValueError):
        raise ParseError("window is center,width[,linear|linear-exact|sigmoid].") from None
    if not (abs(center) < 1e9 and 0 < width < 1e9):
        raise ParseError("window is out of bounds.")
    return rendering.Window(center, width, function)


def _viewport(text: str | None) -> tuple[int, int] | None:
    """`width,height` in pixels; cropping (four more numbers) is not done."""
    if not text:
        return None
    try:
        width, height = (int(part) for part in text.split(",")[:2])
    except ValueError:
        raise ParseError("viewport is width,height.") from None
    if not (1 <= width <= rendering.MAX_VIEWPORT and 1 <= height <= rendering.MAX_VIEWPORT):
        raise ParseError(f"viewport is 1 to {rendering.MAX_VIEWPORT} pixels each way.")
    return width, height


def _quality(text: str | None) -> int:
    try:
        return min(100, max(1, int(text or 85)))
    except ValueError:
        raise ParseError("quality is 1 to 100.") from None
