"""Answers as bytes: each item's elements are encoded once, when the step changes, and put together when asked.

Stored form: the elements that have a value, of the data set and of the step's item alike, each in Explicit VR
Little Endian with UTF-8 text, joined by SEPARATOR. An answer is then a look-up of the wanted tags and a
join. Another transfer syntax, character set, length limit or time zone is reached by rewriting single
elements (`rewrite`), and most are remembered, since modalities, codes and dates repeat.

What does not fit DICOM is adapted by this rule, and noted on the item: text loses control characters, a
backslash in it becomes a slash, and it is cut at the last word that fits its VR; a name's group loses its last
components first; an identifier is never cut: one that a scanner needs withholds the item, others are left out.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from functools import lru_cache
from operator import itemgetter
from typing import Any

from common.clock import to_site
from pacs.dimse.registry import DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN as DEFLATED
from pacs.dimse.registry import EXPLICIT_VR_BIG_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from ris.models import ScheduledProcedureStep
from worklist import charsets
from worklist.attributes import (
    IN_DETAILS,
    IN_ROWS,
    INNER_BY_TAG,
    OUTER_BY_TAG,
    SCHEDULED_PROCEDURE_STEP_SEQUENCE,
    SPECIFIC_CHARACTER_SET,
    TIMEZONE_OFFSET_FROM_UTC,
    Entry,
    Facts,
)

SEPARATOR = b"\xff\xff"
"""Never part of an element: no tag or UTF-8 text has the byte FF twice, and lengths are even and below 64 kB."""

START_DATE, START_TIME, STATION_AE_TITLE = 0x00400002, 0x00400003, 0x00400001

_LONG = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"))
_CHARSET_VRS = frozenset(("SH", "LO", "ST", "LT", "PN", "UC", "UT"))
_ONE_VALUE = frozenset(("ST", "LT", "UT"))
_LIMITS = {
    "AE": 16,
    "CS": 16,
    "SH": 16,
    "LO": 64,
    "PN": 64,
    "UI": 64,
    "ST": 1024,
    "LT": 10240,
    "DS": 16,
    "AS": 4,
}
_PATTERNS = {
    "DA": re.compile(r"[0-9]{8}\Z"),
    "TM": re.compile(r"[0-9]{2}(?:[0-9]{2}(?:[0-9]{2}(?:\.[0-9]{1,6})?)?)?\Z"),
    "DS": re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?\Z"),
    "AS": re.compile(r"[0-9]{3}[DWMY]\Z"),
    "UI": re.compile(r"[0-9.]+\Z"),
    "CS": re.compile(r"[A-Z0-9 _]+\Z"),
}


class Withheld(Exception):
    """An identifier that a scanner needs does not fit; the text says which and how long, never the value."""


# -- one value


def fit(entry: Entry, text: str) -> tuple[str, bool]:
    """One value as DICOM can carry it, and whether it had to be changed. Raises Withheld."""
    vr = entry.vr
    clean = text.strip() if text.isprintable() and "\\" not in text else _clean(text, vr)
    pattern = _PATTERNS.get(vr)
    if vr == "CS":
        clean = clean.upper()
    if clean and pattern is not None and not pattern.match(clean):
        if entry.needed:
            raise Withheld(f"{entry.keyword} has characters that its VR {vr} does not allow.")
        return "", True
    if vr == "PN":
        fitted = "=".join(fit_name(group, _LIMITS["PN"]) for group in clean.split("=")[:3]).rstrip("=")
    else:
        fitted = (
            clean if len(clean) <= _LIMITS.get(vr, 1024) else _shorten(entry, clean, _LIMITS.get(vr, 1024))
        )
    return fitted, fitted != text.strip()


def _clean(text: str, vr: str) -> str:
    if vr in _ONE_VALUE:
        kept = text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n")
        return "".join(c for c in kept if c >= " " or c in "\r\n\t").strip()
    return "".join(" " if c < " " else c for c in text).replace("\\", "/").strip()


def _shorten(entry: Entry, text: str, limit: int) -> str:
    if entry.needed:
        raise Withheld(
            f"{entry.keyword} has {len(text)} characters; {entry.vr} holds {limit}. "
            "Give it a shorter one, or let the source's table map it."
        )
    if entry.identifier:
        return ""
    head = text[: limit + 1]
    words = head.rsplit(None, 1)[0] if " " in head.strip() else head
    return (words if len(words) >= limit // 2 else text)[:limit].rstrip()


def fit_name(group: str, limit: int) -> str:
    """A component group of a person name within `limit` characters: the last components go first."""
    parts = group.rstrip("^ ").split("^")
    while len("^".join(parts)) > limit and len(parts) > 1:
        parts.pop()
    return "^".join(parts)[:limit].rstrip("^ ")


# -- elements


def element(tag: int, vr: str, value: bytes, syntax: str = EXPLICIT_VR_LITTLE_ENDIAN) -> bytes:
    """One data element with its padding (PS3.5 7.1)."""
    if len(value) % 2:
        value += b"\0" if vr == "UI" else b" "
    group, number = tag >> 16, tag & 0xFFFF
    if syntax == IMPLICIT_VR_LITTLE_ENDIAN:
        return struct.pack("<HHI", group, number, len(value)) + value
    order = ">" if syntax == EXPLICIT_VR_BIG_ENDIAN else "<"
    if vr in _LONG:
        return struct.pack(f"{order}HH2sHI", group, number, vr.encode(), 0, len(value)) + value
    return struct.pack(f"{order}HH2sH", group, number, vr.encode(), len(value)) + value


def _item(content: bytes, syntax: str = EXPLICIT_VR_LITTLE_ENDIAN) -> bytes:
    order = ">" if syntax == EXPLICIT_VR_BIG_ENDIAN else "<"
    return struct.pack(f"{order}HHI", 0xFFFE, 0xE000, len(content)) + content


@dataclass(slots=True)
class Encoded:
    """What an item's row keeps of its answer."""

    answer: bytes
    ascii: bool
    adapted: list[str]
    withheld: str
    values: dict[int, list[str]]
    """By tag, the values as they are answered: what match columns are made from."""
    items: dict[int, list[Mapping[str, str]]]
    """By tag of a sequence, its items: snake_case keyword -> value."""


def encode(facts: Facts) -> Encoded:
    """Everything a scanner may be told about a step, encoded; see the module's rule for what does not fit."""
    result = Encoded(b"", True, [], "", {}, {})
    elements = _encode_start(facts.step, result)
    for entry in IN_ROWS:
        if raw := entry.source(facts):
            _encode_entry(entry, raw, result, elements)
    for name, raw in facts.details().items():
        if name in IN_DETAILS:
            _encode_entry(IN_DETAILS[name], raw, result, elements)
    result.answer = SEPARATOR.join(elements)
    return result


def _encode_entry(entry: Entry, raw: Any, result: Encoded, elements: list[bytes]) -> None:
    """Add the element of an attribute, if its value can be told."""
    try:
        if type(raw) is str and entry.vr != "US":
            value, changed, encoded = _encode_text(entry, raw)
            if changed and entry.keyword not in result.adapted:
                result.adapted.append(entry.keyword)
            if value:
                result.values[entry.tag] = [value]
                if not value.isascii():
                    result.ascii = False
        elif entry.vr == "SQ":
            encoded = _encode_sequence(entry, raw, result)
        elif entry.vr == "US":
            encoded = _encode_number(entry, raw, result)
        else:
            encoded = _encode_texts(entry, raw, result)
    except Withheld as reason:
        result.withheld = result.withheld or str(reason)
        return
    if encoded:
        elements.append(encoded)


def _encode_texts(entry: Entry, raw: Any, result: Encoded) -> bytes:
    """Several values of an attribute, or one that is no text."""
    texts = [str(v) for v in raw] if isinstance(raw, (list, tuple)) else [str(raw)]
    values = []
    for text in texts:
        value, changed = fit(entry, text)
        if changed and entry.keyword not in result.adapted:
            result.adapted.append(entry.keyword)
        if value:
            values.append(value)
    if not values:
        return b""
    if entry.vr in _ONE_VALUE:
        values = ["\r\n".join(values)]
    result.values[entry.tag] = values
    text = "\\".join(values)
    result.ascii = result.ascii and text.isascii()
    return element(entry.tag, entry.vr, text.encode("utf-8"))


@lru_cache(
    maxsize=16384
)  # most texts come again: names of physicians and procedures, rooms, the patient's own
def _encode_text(entry: Entry, text: str) -> tuple[str, bool, bytes]:
    """One text of an attribute: as DICOM can carry it, whether that changed it, its element. Raises Withheld."""
    value, changed = fit(entry, text)
    return value, changed, element(entry.tag, entry.vr, value.encode("utf-8")) if value else b""


def _encode_start(step: ScheduledProcedureStep, result: Encoded) -> list[bytes]:
    if step.start is None:
        return []
    day, clock = start_texts(step.start, step.start_has_time, None)
    result.values[START_DATE], result.values[START_TIME] = [day], [clock]
    return [element(START_DATE, "DA", day.encode()), element(START_TIME, "TM", clock.encode())]


def start_texts(start: datetime, has_time: bool, zone: tzinfo | None) -> tuple[str, str]:
    """A start as DICOM date and time, on the wall clock of `zone` (None: the site's).

    Only the day known: the time, which may not be empty, is 000000, and the day is the site's day everywhere.
    """
    local = to_site(start) if zone is None or not has_time else start.astimezone(zone)
    return local.strftime("%Y%m%d"), local.strftime("%H%M%S") if has_time else "000000"


def _encode_number(entry: Entry, raw: Any, result: Encoded) -> bytes:
    text = str(raw).strip()
    if not text:
        return b""
    if not text.isdecimal() or not 0 <= int(text) < 0xFF00:
        result.adapted.append(entry.keyword)
        return b""
    result.values[entry.tag] = [str(int(text))]
    return element(entry.tag, entry.vr, struct.pack("<H", int(text)))


def _encode_sequence(entry: Entry, raw: Iterable[dict[str, str]], result: Encoded) -> bytes:
    items, encoded = [], b""
    for given in raw:
        texts = tuple(str(given.get(inner.name) or "").strip() for inner in entry.items)
        kept, content = _encode_item(entry, texts)
        if content:
            items.append(kept)
            encoded += content
            result.ascii = result.ascii and all(v.isascii() for v in kept.values())
        elif entry.keyword not in result.adapted:
            result.adapted.append(entry.keyword)
    if not items:
        return b""
    result.items[entry.tag] = items
    return element(entry.tag, "SQ", encoded)


@lru_cache(maxsize=16384)  # the same codes are ordered again and again
def _encode_item(entry: Entry, texts: tuple[str, ...]) -> tuple[Mapping[str, str], bytes]:
    """An item's values and bytes; nothing when its code or identifier, which is never cut, does not fit."""
    kept: dict[str, str] = {}
    content = b""
    for inner, text in sorted(zip(entry.items, texts, strict=True), key=lambda pair: pair[0].tag):
        value, _ = fit(inner, text)
        if inner.keyword in ("CodeValue", "PatientID") and len(value) < len(text):
            return {}, b""
        if value:
            kept[inner.name] = value
            content += element(inner.tag, inner.vr, value.encode("utf-8"))
    return kept, _item(content) if content else b""


# -- rewriting single elements for one scanner


@dataclass(frozen=True)
class Form:
    """How one scanner wants its answers: transfer syntax, Specific Character Set, limits (tag, characters)."""

    syntax: str = EXPLICIT_VR_LITTLE_ENDIAN
    charset: tuple[str, ...] = charsets.UTF_8
    adapt: bool = False
    """Characters that the character set lacks are replaced (charsets.adapt); else the set is unfit."""
    limits: tuple[tuple[int, int], ...] = ()


_IN_IMPLICIT = Form(IMPLICIT_VR_LITTLE_ENDIAN)


@dataclass(frozen=True, slots=True)
class Rewritten:
    """An element in another form, with what had to be changed in it."""

    data: bytes
    adapted: tuple[str, ...] = ()
    too_long: bool = False
    """An identifier does not fit the scanner's own limit."""


@lru_cache(maxsize=65536)
def rewrite(stored: bytes, form: Form, items: tuple[int, ...] | None = None) -> Rewritten | None:
    """A stored element in another form; None when the character set cannot hold it.

    `items` are the tags wanted in the items of a sequence; None for all.
    """
    ((tag, vr, value),) = parse(stored)
    adapted: list[str] = []
    if vr != "SQ":
        found = _rewrite_value(tag, vr, value, form, adapted)
        if found is None:
            return None
        data, too_long = found
        return Rewritten(element(tag, vr, data, form.syntax), tuple(adapted), too_long)
    encoded, too_long = b"", False
    for item in _items(value):
        content = b""
        for inner_tag, inner_vr, inner_value in parse(item):
            if items is not None and inner_tag not in items:
                continue
            found = _rewrite_value(inner_tag, inner_vr, inner_value, form, adapted)
            if found is None:
                return None
            too_long |= found[1]
            content += element(inner_tag, inner_vr, found[0], form.syntax)
        encoded += _item(content, form.syntax)
    return Rewritten(element(tag, vr, encoded, form.syntax), tuple(adapted), too_long)


def _rewrite_value(
    tag: int, vr: str, value: bytes, form: Form, adapted: list[str]
) -> tuple[bytes, bool] | None:
    if vr == "US":
        return (value[::-1] if form.syntax == EXPLICIT_VR_BIG_ENDIAN else value), False
    text = value.decode("utf-8").rstrip("\0 ")
    limit = dict(form.limits).get(tag)
    too_long = False
    if limit is not None:
        shorter = [_within(part, vr, limit) for part in ([text] if vr in _ONE_VALUE else text.split("\\"))]
        entry = OUTER_BY_TAG.get(tag) or INNER_BY_TAG.get(tag)
        if shorter != ([text] if vr in _ONE_VALUE else text.split("\\")):
            adapted.append(entry.keyword if entry else f"{tag:08X}")
            too_long = bool(entry and entry.identifier)
        text = "\\".join(shorter)
    if vr not in _CHARSET_VRS or text.isascii() or form.charset == charsets.UTF_8:
        return text.encode("utf-8"), too_long
    delimiters = "\\^=\r\n\f\t" if vr == "PN" else "\\\r\n\f\t"
    written = charsets.write(text, form.charset, delimiters)
    if written is None:
        if not form.adapt:
            return None
        entry = OUTER_BY_TAG.get(tag) or INNER_BY_TAG.get(tag)
        adapted.append(entry.keyword if entry else f"{tag:08X}")
        written = charsets.adapt(text, form.charset, name=vr == "PN")[1]
    return written, too_long


def _within(text: str, vr: str, limit: int) -> str:
    if vr == "PN":
        return "=".join(fit_name(group, limit) for group in text.split("="))
    return text[:limit].rstrip()


def parse(data: bytes) -> Iterator[tuple[int, str, bytes]]:
    """Elements of our own encoding (Explicit VR Little Endian, defined lengths): tag, VR, value."""
    at = 0
    while at < len(data):
        group, number, vr = struct.unpack_from("<HH2s", data, at)
        name = vr.decode("ascii")
        if name in _LONG:
            (length,) = struct.unpack_from("<I", data, at + 8)
            at += 12
        else:
            (length,) = struct.unpack_from("<H", data, at + 6)
            at += 8
        yield group << 16 | number, name, data[at : at + length]
        at += length


def _items(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        yield data[at + 8 : at + 8 + length]
        at += 8 + length


# -- whole answers


@dataclass(frozen=True)
class Wanted:
    """The return keys of a query: tags and VRs, and which items of sequences. None: everything we have."""

    outer: tuple[tuple[int, str], ...]
    step: tuple[tuple[int, str], ...] | None
    """Return keys of the step; () for all of them; None when the sequence was not asked for."""
    items: tuple[tuple[int, tuple[int, ...]], ...] = ()
    """For sequences whose item named keys: those keys."""


_TAG_OF = itemgetter(slice(0, 4))
_FIXED = b"*"  # no tag: what stands there is never an item's
_STEP_START = struct.pack("<HH2sHIHHI", 0x0040, 0x0100, b"SQ", 0, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
_STEP_END = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
_IMPLICIT_STEP_START = struct.pack("<HHIHHI", 0x0040, 0x0100, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
_BIG_STEP_START = struct.pack(">HH2sHIHHI", 0x0040, 0x0100, b"SQ", 0, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
_BIG_STEP_END = struct.pack(">HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)


Template = tuple[tuple[bytes, ...], tuple[bytes, ...]]


@lru_cache(maxsize=1024)
def _template(wanted: Wanted, charset: tuple[str, ...], offset: str, own_ae: str) -> Template:
    """Keys and, for each, what stands there when an item has no such element: explicit little endian."""
    parts: list[tuple[int, list[tuple[bytes, bytes]]]] = []
    for tag, vr in wanted.outer:
        parts.append((tag, [(struct.pack("<HH", tag >> 16, tag & 0xFFFF), element(tag, vr, b""))]))
    if charset:
        parts.append((SPECIFIC_CHARACTER_SET, [(_FIXED, charset_element(charset))]))
    if offset:
        zone = element(TIMEZONE_OFFSET_FROM_UTC, "SH", offset.encode())
        parts.append((TIMEZONE_OFFSET_FROM_UTC, [(_FIXED, zone)]))
    if wanted.step is not None:
        step = wanted.step or tuple((t, e.vr) for t, e in INNER_BY_TAG.items())
        inner = [(_FIXED, _STEP_START)]
        for tag, vr in sorted(step):
            empty = element(tag, vr, own_ae.encode("ascii", "replace") if tag == STATION_AE_TITLE else b"")
            inner.append((struct.pack("<HH", tag >> 16, tag & 0xFFFF), empty))
        parts.append((SCHEDULED_PROCEDURE_STEP_SEQUENCE, [*inner, (_FIXED, _STEP_END)]))
    pairs = [pair for _, group in sorted(parts, key=lambda p: p[0]) for pair in group]
    return tuple(key for key, _ in pairs), tuple(empty for _, empty in pairs)


@lru_cache(maxsize=1024)
def _implicit_template(
    wanted: Wanted, charset: tuple[str, ...], offset: str, own_ae: str
) -> tuple[tuple[bytes, bytes, bool], ...]:
    """As `_template`, in Implicit VR Little Endian; and whether a stored element has the long form of its VR."""
    rows = []
    for key, empty in zip(*_template(wanted, charset, offset, own_ae), strict=True):
        if empty is _STEP_START or empty is _STEP_END:
            rows.append((key, _delimiter(empty, IMPLICIT_VR_LITTLE_ENDIAN), False))
        else:
            made = rewrite(empty, _IN_IMPLICIT)
            assert made is not None
            rows.append((key, made.data, empty[4:6].decode() in _LONG))
    return tuple(rows)


class Answers:
    """Puts the answers of one query together.

    `forms` are tried in order until one holds the item's text; the last must hold everything. `zone` is the
    zone of the answer where it is not the site's, `own_ae` stands for a station that nobody named.
    """

    def __init__(
        self,
        wanted: Wanted,
        forms: Sequence[Form],
        *,
        own_ae: str,
        zone: tzinfo | None = None,
        offset: str = "",
        show_charset: bool = False,
    ) -> None:
        self.wanted, self.forms, self.zone, self.show_charset = wanted, tuple(forms), zone, show_charset
        self.own_ae = own_ae
        self.offset = offset
        self.adapted: set[str] = set()
        self._items = dict(wanted.items)
        self._plain = self._template_for(forms[0].charset if show_charset else ())
        self._utf8 = self._template_for(charsets.UTF_8)
        first = forms[0]
        self._simple = first.syntax in (EXPLICIT_VR_LITTLE_ENDIAN, DEFLATED) and not first.limits
        self._implicit = first.syntax == IMPLICIT_VR_LITTLE_ENDIAN and not first.limits
        self._trims = [(struct.pack("<HH", t >> 16, t & 0xFFFF), t) for t in self._items]

    def _template_for(self, charset: tuple[str, ...]) -> Template:
        return _template(self.wanted, charset, self.offset, self.own_ae)

    def answer(self, stored: bytes, ascii_only: bool, start: datetime | None, has_time: bool) -> bytes | None:
        """The identifier of one response; None when an identifier does not fit the scanner's own limits."""
        parts = stored.split(SEPARATOR)
        found = dict(zip(map(_TAG_OF, parts), parts, strict=True))
        if self.zone is not None and start is not None:
            self._move(found, start, has_time)
        as_stored = ascii_only or self.forms[0].charset == charsets.UTF_8
        if as_stored and self._implicit:
            return self._in_implicit(found, ascii_only)
        if as_stored and self._simple:
            for key, tag in self._trims:
                if key in found:
                    trimmed = rewrite(found[key], Form(), self._items[tag])
                    assert trimmed is not None
                    found[key] = trimmed.data
            keys, empties = self._plain if ascii_only else self._utf8
            return b"".join(map(found.get, keys, empties))
        return self._rewritten(found, ascii_only)

    def _in_implicit(self, found: dict[bytes, bytes], ascii_only: bool) -> bytes:
        """As stored, but the VR goes and the length has four bytes: quick, since many scanners want no other."""
        charset = charsets.UTF_8 if not ascii_only else self.forms[0].charset if self.show_charset else ()
        pieces: list[bytes] = []
        for key, empty, is_long in _implicit_template(self.wanted, charset, self.offset, self.own_ae):
            part = found.get(key)
            if part is None:
                pieces.append(empty)
            elif is_long:
                tag = int.from_bytes(part[0:2], "little") << 16 | int.from_bytes(part[2:4], "little")
                whole = rewrite(part, _IN_IMPLICIT, self._items.get(tag))
                assert whole is not None
                pieces.append(whole.data)
            else:
                pieces += (part[:4], part[6:8], b"\0\0", part[8:])
        return b"".join(pieces)

    def _move(self, found: dict[bytes, bytes], start: datetime, has_time: bool) -> None:
        day, clock = start_texts(start, has_time, self.zone)
        found[b"\x40\0\x02\0"] = element(START_DATE, "DA", day.encode())
        found[b"\x40\0\x03\0"] = element(START_TIME, "TM", clock.encode())

    def _rewritten(self, found: dict[bytes, bytes], ascii_only: bool) -> bytes | None:
        for form in self.forms:
            charset = form.charset if not ascii_only or self.show_charset else ()
            pieces = self._pieces(found, form, charset)
            if pieces is not None:
                return b"".join(pieces) if pieces else None
        raise AssertionError("the last form holds every text")

    def _pieces(self, found: dict[bytes, bytes], form: Form, charset: tuple[str, ...]) -> list[bytes] | None:
        """The answer's elements; None when the character set cannot hold them, [] when an identifier is too long."""
        pieces: list[bytes] = []
        adapted: set[str] = set()
        for key, empty in zip(*self._template_for(charset), strict=True):
            stored = found.get(key, empty)
            if stored is _STEP_START or stored is _STEP_END:
                pieces.append(_delimiter(stored, form.syntax))
                continue
            tag = int.from_bytes(stored[0:2], "little") << 16 | int.from_bytes(stored[2:4], "little")
            piece = rewrite(stored, form, self._items.get(tag))
            if piece is None:
                return None
            if piece.too_long:
                self.adapted.add(f"{piece.adapted[0]} too long: item withheld")
                return []
            adapted.update(piece.adapted)
            pieces.append(piece.data)
        self.adapted |= adapted
        return pieces


def charset_element(charset: Sequence[str]) -> bytes:
    """Specific Character Set as a stored element."""
    return element(SPECIFIC_CHARACTER_SET, "CS", "\\".join(charset).encode("ascii"))


def _delimiter(which: bytes, syntax: str) -> bytes:
    if syntax == IMPLICIT_VR_LITTLE_ENDIAN:
        return _IMPLICIT_STEP_START if which is _STEP_START else which
    if syntax == EXPLICIT_VR_BIG_ENDIAN:
        return _BIG_STEP_START if which is _STEP_START else _BIG_STEP_END
    return which
