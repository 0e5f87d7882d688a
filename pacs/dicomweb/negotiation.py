"""What a client takes: the Accept header read tolerantly, and the choice of how an answer is made."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
OCTETS = "application/octet-stream"
DICOM = "application/dicom"
DICOM_JSON = "application/dicom+json"

FRAME_TYPES = {
    "1.2.840.10008.1.2.5": "image/dicom-rle",
    "1.2.840.10008.1.2.4.50": "image/jpeg",
    "1.2.840.10008.1.2.4.51": "image/jpeg",
    "1.2.840.10008.1.2.4.57": "image/jpeg",
    "1.2.840.10008.1.2.4.70": "image/jpeg",
    "1.2.840.10008.1.2.4.80": "image/jls",
    "1.2.840.10008.1.2.4.81": "image/jls",
    "1.2.840.10008.1.2.4.90": "image/jp2",
    "1.2.840.10008.1.2.4.91": "image/jp2",
    "1.2.840.10008.1.2.4.92": "image/jpx",
    "1.2.840.10008.1.2.4.93": "image/jpx",
    "1.2.840.10008.1.2.4.110": "image/jxl",
    "1.2.840.10008.1.2.4.111": "image/jxl",
    "1.2.840.10008.1.2.4.112": "image/jxl",
    "1.2.840.10008.1.2.4.201": "image/jphc",
    "1.2.840.10008.1.2.4.202": "image/jphc",
    "1.2.840.10008.1.2.4.203": "image/jphc",
}
"""Media types of compressed frames (PS3.18 Table 8.7.3-5); every other transfer syntax is octets."""

VIDEO_TYPES = {
    **{f"1.2.840.10008.1.2.4.{n}": "video/mpeg" for n in ("100", "100.1", "101", "101.1")},
    **{
        f"1.2.840.10008.1.2.4.{n}": "video/mp4"
        for n in (
            "102",
            "102.1",
            "103",
            "103.1",
            "104",
            "104.1",
            "105",
            "105.1",
            "106",
            "106.1",
            "107",
            "108",
        )
    },
}
"""Media types of video (PS3.18 Table 8.7.3-6)."""


@dataclass(frozen=True, slots=True)
class MediaRange:
    """One entry of an Accept header: type in lower case, parameters with their quotes removed."""

    type: str
    params: dict[str, str] = field(default_factory=dict)
    q: float = 1.0

    @property
    def inner(self) -> str:
        """The type of the parts of a multipart range; "" when it names none."""
        return self.params.get("type", "").lower()

    @property
    def transfer_syntax(self) -> str:
        """The transfer-syntax parameter; "" when there is none."""
        return self.params.get("transfer-syntax", "")

    def covers(self, media_type: str) -> bool:
        """Whether this range, itself no multipart, takes the media type."""
        kind = media_type.partition("/")[0]
        return self.type in ("*/*", f"{kind}/*", media_type)


_PART = re.compile(r'\s*([^=;,\s"]+)\s*(?:=\s*(?:"((?:[^"\\]|\\.)*)"|([^;,]*)))?\s*')
_MAX_HEADER = 4096


def media_ranges(header: str) -> list[MediaRange]:
    """An Accept header, best first. Values may be quoted or not; what cannot be read is passed over."""
    found: list[MediaRange] = []
    for entry in _split(header[:_MAX_HEADER], ","):
        pieces = _split(entry, ";")
        media_type = pieces[0].strip().lower() if pieces else ""
        if "/" not in media_type:
            continue
        params: dict[str, str] = {}
        for piece in pieces[1:]:
            read = _PART.fullmatch(piece)
            if read:
                value = read.group(2) if read.group(2) is not None else (read.group(3) or "")
                params[read.group(1).lower()] = value.strip()
        try:
            q = min(1.0, max(0.0, float(params.pop("q", "1"))))
        except ValueError:
            q = 1.0
        if q > 0:
            found.append(MediaRange(media_type, params, q))
    return sorted(found, key=lambda entry: -entry.q) or [MediaRange("*/*")]


def _split(text: str, separator: str) -> list[str]:
    """Split at a separator that stands outside quotes."""
    parts, quoted, start = [], False, 0
    for at, char in enumerate(text):
        if char == '"':
            quoted = not quoted
        elif char == separator and not quoted:
            parts.append(text[start:at])
            start = at + 1
    parts.append(text[start:])
    return [part for part in parts if part.strip()]


@dataclass(frozen=True, slots=True)
class Choice:
    """How an answer is made: decoded to Explicit VR Little Endian or as stored; in parts or alone."""

    decode: bool
    multipart: bool = True


def takes_json(ranges: Sequence[MediaRange]) -> bool:
    """Whether DICOM JSON is taken (application/json means the same)."""
    return any(entry.covers(DICOM_JSON) or entry.covers("application/json") for entry in ranges)


def choose_object(ranges: Sequence[MediaRange], syntax: str) -> Choice | None:
    """How whole objects are sent; None when nothing of it is taken (406)."""
    for entry in ranges:
        if entry.type in ("*/*", "multipart/*", "multipart/related"):
            multipart = True
            if entry.inner not in ("", "*/*", "application/*", DICOM):
                continue
        elif entry.type in (DICOM, "application/*"):
            multipart = False
        else:
            continue
        if entry.transfer_syntax in ("", "*", syntax):
            return Choice(False, multipart)
        if entry.transfer_syntax == EXPLICIT_LITTLE:
            return Choice(True, multipart)
    return None


def choose_frames(ranges: Sequence[MediaRange], syntax: str) -> Choice | None:
    """How frames are sent; None when nothing of it is taken (406).

    octet-stream without a transfer syntax means native pixels (PS3.18 8.7.3.5.2); with `*` any will do.
    """
    own = FRAME_TYPES.get(syntax, OCTETS)
    native = own == OCTETS
    for entry in ranges:
        if entry.type in ("*/*", "multipart/*", "multipart/related"):
            wanted, multipart = entry.inner or "*/*", True
        else:
            wanted, multipart = entry.type, False
        asked = entry.transfer_syntax
        if wanted in ("*/*", own, own.partition("/")[0] + "/*") and not (wanted == OCTETS and not native):
            if asked in ("", "*", syntax) or native and asked == EXPLICIT_LITTLE:
                return Choice(native, multipart)
            if wanted == "*/*" and asked == EXPLICIT_LITTLE:
                return Choice(True, multipart)
        elif wanted == OCTETS:
            if asked in ("*", syntax):
                return Choice(native, multipart)
            if asked in ("", EXPLICIT_LITTLE):
                return Choice(True, multipart)
    return None
