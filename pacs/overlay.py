"""The overlay: corrected attributes of a study, and how they reach every answer while files stay as received.

An overlay maps DICOM keywords to values: a string, a list of strings, or for a sequence a list of such maps;
"" and [] empty an attribute. It holds only what differs from the files and never a UID.

`correct` writes one (called by the floor above when a study is matched or a patient changes); `apply_json`
and `apply_dataset` lay it over decoded answers; `splice` lays it over the bytes of a stored data set, in any
transfer syntax, touching its header only.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydicom._dicom_dict import DicomDictionary
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element

from common.clock import now
from pacs.events import StudyOverlaid
from pacs.header import (
    BIG_ENDIAN,
    DEFLATED_SYNTAXES,
    IMPLICIT,
    MAX_DEPTH,
    MAX_ELEMENTS,
    PIXEL_DATA,
    SPECIFIC_CHARACTER_SET,
    CutOff,
    HeaderError,
    TooMuch,
)
from pacs.matching import TABLES, Level, Matching, dicom_text, name_keys, parse_date, parse_time
from pacs.models import Overlay, Study

if TYPE_CHECKING:
    from common.store import Unit

Attributes = Mapping[str, Any]
UNICODE = "ISO_IR 192"
MAX_INFLATED = 1024**3
"""Bytes of a deflated data set that are opened in memory to be spliced."""

_CORRECTABLE = frozenset(
    ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "SQ", "ST", "TM", "UC", "UT")
)
_TEXT = frozenset((b"SH", b"LO", b"ST", b"LT", b"UC", b"UT", b"PN"))
"""VRs that Specific Character Set speaks of (PS3.5 6.1.2.3)."""


class NotCorrectable(ValueError):
    """An attribute that an overlay may not hold; names the keyword, never the value."""


# --- Writing an overlay ----------------------------------------------------------------------------------


def correct(study: Study, attributes: Attributes, unit: Unit) -> bool:
    """Make `attributes` the overlay of a study; those that equal what was received are left out.

    {} takes all corrections back. The study's columns follow, so that queries find what answers show; what
    they were is kept in `as_received`. The row is locked and read anew here: hand in no unsaved changes.
    Publishes StudyOverlaid and returns True when anything changed. Raises NotCorrectable.
    """
    check(attributes)
    if unit.pending(Study) or unit.pending(Overlay):
        unit.flush()
    study.refresh_from_db(from_queryset=Study.objects.select_for_update())
    before = Overlay.objects.filter(study=study).first()
    wanted = {key: value for key, value in attributes.items() if value != received(study, key)}
    if wanted == (before.attributes if before else {}):
        return False
    for keyword, column in _COLUMNS.items():
        _set_column(study, column, keyword, wanted)
    overlay = before or Overlay(study=study, version=0, cause=unit.cause)
    overlay.attributes = wanted
    overlay.version += 1
    overlay.cause = unit.cause
    overlay.updated_at = now()
    unit.save(study)
    unit.save(overlay)
    unit.publish(StudyOverlaid(study))
    return True


def check(attributes: Attributes) -> None:
    """Raise NotCorrectable for a keyword that DICOM does not know, a UID, or anything that is no text."""
    for keyword, value in attributes.items():
        tag = tag_for_keyword(keyword)
        if tag is None or tag >> 16 in (0x0002, 0x0028) or dictionary_VR(tag) not in _CORRECTABLE:
            raise NotCorrectable(
                f"{keyword} is not corrected by an overlay: only text and sequences of text are."
            )
        if dictionary_VR(tag) == "SQ":
            if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
                raise NotCorrectable(f"{keyword} takes a list of maps.")
            for item in value:
                check(item)
        elif not isinstance(value, str) and not (
            isinstance(value, list) and all(isinstance(part, str) for part in value)
        ):
            raise NotCorrectable(f"{keyword} takes a string or a list of strings.")


def received(study: Study, keyword: str) -> Any:
    """The value of a study's attribute as its files hold it, as far as the index knows it; else None."""
    column = _COLUMNS.get(keyword)
    if column:
        current = dicom_text(getattr(study, column))
        return study.as_received.get(column, current)
    tag = tag_for_keyword(keyword)
    held = study.attributes.get(f"{tag:08X}") if tag is not None else None
    if not held or held.get("vr") == "SQ":
        return None
    values = [
        part.get("Alphabetic", "") if isinstance(part, dict) else str(part) for part in held.get("Value", [])
    ]
    return values if len(values) > 1 else "".join(values)


_COLUMNS: dict[str, str] = {
    row.keyword: row.column.removeprefix("study.")
    for row in TABLES[Level.STUDY].values()
    if row.column.startswith("study.")
    and row.vr in _CORRECTABLE
    and row.kind not in (Matching.NUMBER, Matching.ANY_OF)
}
"""Keyword → column of Study, for the attributes that an overlay may change."""


def _set_column(study: Study, column: str, keyword: str, overlay: Attributes) -> None:
    """Let a column show the overlay's value or, without one, what was received."""
    original = received(study, keyword)
    if keyword in overlay:
        study.as_received[column] = original
        shown = overlay[keyword]
        text = "\\".join(shown) if isinstance(shown, list) else shown
    else:
        study.as_received.pop(column, None)
        text = original
    setattr(study, column, _column_value(column, text))
    if column == "patient_name":
        alphabetic, ideographic, phonetic = name_keys(text)
        study.patient_name_search = alphabetic
        study.patient_name_ideographic_search = ideographic
        study.patient_name_phonetic_search = phonetic
    elif column == "referring_physician_name":
        study.referring_physician_name_search = name_keys(text)[0]


def _column_value(column: str, text: str) -> Any:
    try:
        if column == "study_date":
            return parse_date(text, strict=False) if text else None
        if column == "study_time":
            return parse_time(text, strict=False) if text else None
    except ValueError:
        return None
    return text[: getattr(Study._meta.get_field(column), "max_length", None)]


def attributes_of(study: Study) -> dict[str, Any]:
    """The overlay of a study; {} without one. Costs a query unless `overlay` was selected with the study."""
    try:
        held: dict[str, Any] = study.overlay.attributes
    except Overlay.DoesNotExist:
        return {}
    return held


# --- Laying it over decoded answers ----------------------------------------------------------------------


def dataset_of(attributes: Attributes) -> Dataset:
    """The overlay as a data set of its own."""
    ds = Dataset()
    for keyword, value in attributes.items():
        vr = dictionary_VR(keyword)
        held = [dataset_of(item) for item in value] if vr == "SQ" else value
        # No validation: its warnings would carry the value into a log.
        ds.add(DataElement(keyword, vr, held, validation_mode=IGNORE))
    return ds


def json_of(attributes: Attributes) -> dict[str, dict[str, Any]]:
    """The overlay as DICOM JSON; an emptied attribute has no Value."""
    document: dict[str, dict[str, Any]] = dataset_of(attributes).to_json_dict()
    return document


def apply_json(document: dict[str, Any], over: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """A DICOM JSON object (PS3.18 annex F) with the values of `json_of`; an emptied attribute is left out."""
    if not over:
        return document
    result = {**document, **over}
    for tag, element in over.items():
        if not element.get("Value"):
            del result[tag]
    return result if over.keys() <= document.keys() else dict(sorted(result.items()))


def apply_dataset(ds: Dataset, attributes: Attributes) -> None:
    """Set the overlay's values in a decoded data set, whose character set becomes Unicode when it must."""
    over = dataset_of(attributes)
    named = ds.get("SpecificCharacterSet")
    names = [named] if isinstance(named, str) else [str(name) for name in named or []]
    if not _holds(over, names):
        ds.SpecificCharacterSet = UNICODE
    for elem in over:
        ds[elem.tag] = elem


# --- Laying it over bytes --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Splice:
    """`head` stands for the data set's bytes up to `resume`; from there on they are used as they lie."""

    head: bytes
    resume: int


@dataclass(frozen=True, slots=True)
class _Syntax:
    implicit: bool
    order: str

    @classmethod
    def of(cls, transfer_syntax: str) -> _Syntax:
        return cls(transfer_syntax == IMPLICIT, ">" if transfer_syntax == BIG_ENDIAN else "<")


@dataclass(frozen=True, slots=True)
class _Element:
    tag: int
    vr: bytes
    start: int
    value: int
    end: int
    undefined: bool


_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))


def splice(data: Any, start: int, transfer_syntax: str, attributes: Attributes) -> Splice:
    """Lay an overlay over an encoded data set that begins at `start` of `data` (bytes or an mmap).

    Elements are replaced or inserted in order, group lengths follow. When the data set's character set
    cannot hold the new text, all its text, nested too, becomes ISO_IR 192. A deflated data set is opened
    and deflated anew, so all of it is in `head`. Raises HeaderError for bytes that are no such data set.
    """
    if not attributes:
        return Splice(b"", start)
    if transfer_syntax in DEFLATED_SYNTAXES:
        inflated = inflate(data, start)
        inner = splice(inflated, 0, "1.2.840.10008.1.2.1", attributes)
        deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        whole = deflater.compress(inner.head) + deflater.compress(memoryview(inflated)[inner.resume :])
        whole += deflater.flush()
        return Splice(whole + b"\0" * (len(whole) % 2), len(data))
    return _splice(data, start, _Syntax.of(transfer_syntax), dataset_of(attributes))


def pieces(
    data: Any, data_set_offset: int, transfer_syntax: str, attributes: Attributes, size: int = 1 << 20
) -> Iterator[bytes]:
    """A stored Part 10 file with its overlay, in pieces of at most about `size` bytes."""
    spliced = splice(data, data_set_offset, transfer_syntax, attributes)
    yield bytes(data[:data_set_offset]) + spliced.head
    for at in range(spliced.resume, len(data), size):
        yield bytes(data[at : at + size])


def _splice(data: Any, start: int, syntax: _Syntax, over: Dataset) -> Splice:
    names: list[str] = []
    unicode: bool | None = None
    last_group = max((int(elem.tag) >> 16 for elem in over), default=0)
    kept: list[tuple[int, bytes]] = []
    resume = start
    for element in _elements(data, start, len(data), syntax):
        if element.tag in PIXEL_DATA:
            break
        if element.tag == SPECIFIC_CHARACTER_SET:
            names = _names(bytes(data[element.value : element.end]))
        elif element.tag > SPECIFIC_CHARACTER_SET and unicode is None:
            unicode = not _holds(over, names)
        if unicode is False and element.tag >> 16 > last_group:
            break
        if unicode:
            kept.append((element.tag, _in_unicode(data, element, syntax, names, 0)))
        else:
            kept.append((element.tag, bytes(data[element.start : element.end])))
        resume = element.end
    if unicode is None:
        unicode = not _holds(over, names)
    if unicode:
        over.SpecificCharacterSet = UNICODE
    encodings = ["utf8"] if unicode else _encodings(names)
    merged = dict(kept)
    for elem in over:
        merged[int(elem.tag)] = _encoded(elem, syntax, encodings)
    return Splice(_joined(sorted(merged.items()), syntax), resume)


def _joined(elements: Sequence[tuple[int, bytes]], syntax: _Syntax) -> bytes:
    """The elements in order, each group length (gggg,0000) counted anew (PS3.5 7.2)."""
    sizes: dict[int, int] = {}
    for tag, raw in elements:
        if tag & 0xFFFF:
            sizes[tag >> 16] = sizes.get(tag >> 16, 0) + len(raw)
    parts: list[bytes] = []
    for tag, raw in elements:
        if tag & 0xFFFF == 0 and len(raw) >= 12:
            raw = raw[:-4] + struct.pack(syntax.order + "I", sizes.get(tag >> 16, 0))
        parts.append(raw)
    return b"".join(parts)


def _elements(data: Any, at: int, end: int, syntax: _Syntax) -> Iterator[_Element]:
    """The elements of one level, from `at` to `end` or to an item delimiter. Raises HeaderError."""
    for _ in range(MAX_ELEMENTS):
        if at >= end:
            return
        element = _element(data, at, end, syntax)
        if element.tag == _ITEM_END:
            return
        yield element
        at = element.end
    raise TooMuch(f"more than {MAX_ELEMENTS} elements")


def _element(data: Any, at: int, end: int, syntax: _Syntax) -> _Element:
    """The element at an offset; the end of one of undefined length is found by walking its items."""
    if at + 8 > end:
        raise CutOff(f"element header cut off at byte {at}")
    group, number, length = struct.unpack_from(syntax.order + "HHI", data, at)
    tag, value, vr = group << 16 | number, at + 8, b""
    if group == 0xFFFE:
        return _Element(tag, vr, at, value, value, False)
    if syntax.implicit:
        entry = DicomDictionary.get(tag)
        vr = entry[0].encode() if entry else b"UN"
    else:
        vr = bytes(data[at + 4 : at + 6])
        if not (vr.isalpha() and vr.isupper()):
            raise HeaderError(f"no VR at byte {at}")
        if vr in _LONG:
            if at + 12 > end:
                raise CutOff(f"element header cut off at byte {at}")
            (length,) = struct.unpack_from(syntax.order + "I", data, at + 8)
            value = at + 12
        else:
            (length,) = struct.unpack_from(syntax.order + "H", data, at + 6)
    if length != _UNDEFINED:
        if value + length > end:
            raise CutOff(f"({group:04X},{number:04X}) runs over the end")
        return _Element(tag, vr, at, value, value + length, False)
    if tag in PIXEL_DATA:
        return _Element(tag, vr, at, value, end, True)
    inside = _Syntax(True, "<") if vr == b"UN" and not syntax.implicit else syntax
    return _Element(tag, vr, at, value, _end_of_sequence(data, value, end, inside, 0), True)


def _end_of_sequence(data: Any, at: int, end: int, syntax: _Syntax, depth: int) -> int:
    """The offset behind the sequence delimiter of a sequence whose first item is at `at`."""
    if depth > MAX_DEPTH:
        raise TooMuch(f"sequences nested deeper than {MAX_DEPTH}")
    for _ in range(MAX_ELEMENTS):
        tag, length = _item(data, at, end, syntax)
        at += 8
        if tag == _SEQUENCE_END:
            return at
        if length != _UNDEFINED:
            at += length
            continue
        while True:
            element = _nested(data, at, end, syntax, depth)
            at = element.end
            if element.tag == _ITEM_END:
                break
    raise TooMuch(f"more than {MAX_ELEMENTS} items")


def _nested(data: Any, at: int, end: int, syntax: _Syntax, depth: int) -> _Element:
    """As `_element`, counting how deep sequences of undefined length lie in one another."""
    if at + 12 <= end:
        vr = b"SQ" if syntax.implicit else bytes(data[at + 4 : at + 6])
        length_at = at + (4 if syntax.implicit else 8)
        group = struct.unpack_from(syntax.order + "H", data, at)[0]
        (length,) = struct.unpack_from(syntax.order + "I", data, length_at)
        if group != 0xFFFE and vr in _LONG and length == _UNDEFINED:
            number = struct.unpack_from(syntax.order + "H", data, at + 2)[0]
            inside = _Syntax(True, "<") if vr == b"UN" and not syntax.implicit else syntax
            behind = _end_of_sequence(data, length_at + 4, end, inside, depth + 1)
            return _Element(group << 16 | number, vr, at, length_at + 4, behind, True)
    return _element(data, at, end, syntax)


def _item(data: Any, at: int, end: int, syntax: _Syntax) -> tuple[int, int]:
    if at + 8 > end:
        raise CutOff(f"sequence cut off at byte {at}")
    group, number, length = struct.unpack_from(syntax.order + "HHI", data, at)
    tag = group << 16 | number
    if tag not in (_ITEM, _SEQUENCE_END):
        raise HeaderError(f"neither item nor delimiter at byte {at}")
    return tag, length


def _encoded(elem: Any, syntax: _Syntax, encodings: list[str]) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_little_endian = syntax.order == "<"
    buffer.is_implicit_VR = syntax.implicit
    write_data_element(buffer, elem, encodings)
    return bytes(buffer.getvalue())


# --- Character sets --------------------------------------------------------------------------------------


def _names(raw: bytes) -> list[str]:
    return [name.strip(" \0") for name in raw.decode("ascii", "replace").split("\\")]


def _encodings(names: Sequence[str]) -> list[str]:
    """Python codecs of a Specific Character Set; a name nobody knows is taken as Latin-1, byte for byte."""
    try:
        return list(convert_encodings(list(names) or [""]))
    except (LookupError, ValueError):
        return ["iso8859"]


def _holds(over: Dataset, names: Sequence[str]) -> bool:
    """Whether a Specific Character Set can carry all text of an overlay."""
    codecs = _encodings(names)
    # ISO_IR 6, also when it is only implied, is ASCII; pydicom writes Latin-1 there.
    plain = [not name or name.upper().replace("ISO_IR", "IR").endswith("IR 6") for name in names] or [True]
    codecs = ["ascii" if is_plain else codec for codec, is_plain in zip(codecs, plain, strict=False)]
    if UNICODE not in names and any(name not in _KNOWN_NAMES for name in names):
        codecs = ["ascii"]
    return all(_can_encode(text, codecs) for text in _texts(over))


_KNOWN_NAMES = frozenset(
    ["", "GB18030", "GBK", "ISO 2022 B5"]
    + [f"ISO_IR {n}" for n in (6, 13, 100, 101, 109, 110, 126, 127, 138, 144, 148, 166, 192, 203)]
    + [
        f"ISO 2022 IR {n}"
        for n in (6, 13, 58, 87, 100, 101, 109, 110, 126, 127, 138, 144, 148, 149, 159, 166, 203)
    ]
)


def _texts(ds: Dataset) -> Iterator[str]:
    for elem in ds:
        if elem.VR == "SQ":
            for item in elem.value:
                yield from _texts(item)
        elif elem.VR.encode() in _TEXT and elem.value:
            values = elem.value if elem.VM > 1 else [elem.value]
            yield from (str(value) for value in values)


def _can_encode(text: str, codecs: Sequence[str]) -> bool:
    """Whether each character has a place in one of the codecs (code extensions switch between them)."""

    def encodes(char: str, codec: str) -> bool:
        try:
            char.encode(codec)
        except (UnicodeEncodeError, LookupError):
            return False
        return True

    return text.isascii() or all(any(encodes(char, codec) for codec in codecs) for char in text)


_DELIMITERS = {0x5C, 0x0A, 0x0D, 0x0C, 0x09, 0x5E, 0x3D}
"""Where ISO 2022 returns to the first character set (PS3.5 6.1.2.5.3), the name delimiters included."""


def _in_unicode(data: Any, element: _Element, syntax: _Syntax, names: Sequence[str], depth: int) -> bytes:
    """An element as bytes, its text and the text of its items in UTF-8; everything else as it lies."""
    if depth > MAX_DEPTH:
        raise TooMuch(f"sequences nested deeper than {MAX_DEPTH}")
    raw = bytes(data[element.value : element.end])
    if element.tag == SPECIFIC_CHARACTER_SET:
        return _framed(data, element, syntax, UNICODE.encode())
    if element.vr == b"SQ":
        inner = b"".join(_items_in_unicode(data, element, syntax, names, depth))
        return _framed(data, element, syntax, inner)
    if element.vr in _TEXT and (not raw.isascii() or b"\x1b" in raw):
        text = _decoded(raw, names)
        encoded = text.encode()
        return _framed(data, element, syntax, encoded + b" " * (len(encoded) % 2))
    return bytes(data[element.start : element.end])


def _decoded(raw: bytes, names: Sequence[str]) -> str:
    try:
        return decode_bytes(raw, _encodings(names), _DELIMITERS)
    except (LookupError, ValueError):
        return raw.decode("latin-1")


def _items_in_unicode(
    data: Any, sequence: _Element, syntax: _Syntax, names: Sequence[str], depth: int
) -> Iterator[bytes]:
    at = sequence.value
    while at < sequence.end:
        tag, length = _item(data, at, sequence.end, syntax)
        at += 8
        if tag == _SEQUENCE_END:
            yield bytes(data[at - 8 : at])
            return
        undefined = length == _UNDEFINED
        end = sequence.end if undefined else at + length
        if end > sequence.end:
            raise CutOff(f"item at byte {at - 8} runs over the end")
        own = names
        parts: list[bytes] = []
        for element in _elements(data, at, end, syntax):
            if element.tag == SPECIFIC_CHARACTER_SET:
                own = _names(bytes(data[element.value : element.end]))
            parts.append(_in_unicode(data, element, syntax, own, depth + 1))
            at = element.end
        content = b"".join(parts)
        if undefined:
            yield struct.pack(syntax.order + "HHI", 0xFFFE, 0xE000, _UNDEFINED) + content
            yield struct.pack(syntax.order + "HHI", 0xFFFE, 0xE00D, 0)
            at += 8
        else:
            yield struct.pack(syntax.order + "HHI", 0xFFFE, 0xE000, len(content)) + content


def _framed(data: Any, element: _Element, syntax: _Syntax, value: bytes) -> bytes:
    """The element's header with the length of a new value, and the value; undefined length stays so."""
    head = bytes(data[element.start : element.value])
    if element.undefined:
        return head + value
    if syntax.implicit or element.vr in _LONG:
        return head[:-4] + struct.pack(syntax.order + "I", len(value)) + value
    if len(value) > 0xFFFE:
        raise HeaderError(
            f"{keyword_for_tag(element.tag) or 'an element'} does not fit its length in Unicode"
        )
    return head[:-2] + struct.pack(syntax.order + "H", len(value)) + value


def inflate(data: Any, start: int) -> bytes:
    """A deflated data set opened (PS3.5 A.5), with an end to its size."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    whole = bytearray()
    try:
        for at in range(start, len(data), 1 << 20):
            chunk = bytes(data[at : at + (1 << 20)])
            while chunk and not inflater.eof:
                whole += inflater.decompress(chunk, 1 << 24)
                chunk = inflater.unconsumed_tail
                if len(whole) > MAX_INFLATED:
                    raise TooMuch(f"inflates to more than {MAX_INFLATED} bytes")
    except zlib.error:
        raise HeaderError("no deflate stream") from None
    if not inflater.eof:
        raise CutOff("deflate stream does not end")
    return bytes(whole)
