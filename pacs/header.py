"""The header walker: finds the elements an index needs in a data set's first bytes, with bounds, without pydicom.

It reads every transfer syntax (PS3.5 annex A): implicit and explicit VR, both byte orders, deflated. It never
recurses and never trusts a length: depth, number of elements and sizes have ends, and a declared length is
held against the bytes that are there. `check` does the same for a whole small data set before pydicom sees it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from pydicom._dicom_dict import DicomDictionary
from pydicom.charset import convert_encodings, decode_bytes

IMPLICIT = "1.2.840.10008.1.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
#: Deflated as a whole (PS3.5 A.5); JPIP Referenced Deflate is written the same way.
DEFLATED_SYNTAXES = frozenset((DEFLATED, "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"))

MAX_DEPTH = 64
MAX_ELEMENTS = 100_000
LONGEST_VALUE = 128 * 1024  #: bytes of one value that the index looks at
MAX_INFLATED = 4 * 1024**3
MAX_RATIO = 200  #: inflated to deflated; above it a small object is a bomb, not an image

SPECIFIC_CHARACTER_SET = 0x00080005
PIXEL_DATA = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF

#: VRs whose explicit form has a length of 32 bits after two reserved bytes (PS3.5 section 7.1.2)
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_SHORT = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_SEQUENCES = frozenset(tag for tag, entry in DicomDictionary.items() if entry[0] == "SQ")


class HeaderError(ValueError):
    """The bytes are no data set in this transfer syntax; says what and where, never a value."""


class TooMuch(HeaderError):
    """A bound was passed (depth, elements, inflated size): not to be handed to another parser."""


class CutOff(HeaderError):
    """The data set is shorter than it says."""


@dataclass(slots=True)
class Header:
    """What a walk found: raw values of the wanted top-level elements, and how far it came."""

    little_endian: bool
    implicit: bool
    values: dict[int, bytes] = field(default_factory=dict)
    end: int = 0  #: where the walk ended: at the value of Pixel Data, else behind the last whole element
    #: The size the data set must have, when Pixel Data has a length; None while unknown.
    pixel_end: int | None = None
    encapsulated: bool = False  #: Pixel Data of undefined length begins at `end`
    whole: bool = False  #: the walk reached Pixel Data or the end of the data set
    _encodings: list[str] | None = None

    def text(self, tag: int) -> str:
        """The first value as text, spaces and padding stripped, "" when absent or empty."""
        values = self.texts(tag)
        return values[0] if values else ""

    def texts(self, tag: int) -> list[str]:
        """All values as text in Unicode (Specific Character Set applied), stripped; [] when absent or empty."""
        raw = self.values.get(tag, b"").rstrip(b"\0 ")
        if not raw:
            return []
        return [part.strip(" \0") for part in self._decode(raw).split("\\")]

    def plain(self, tag: int) -> str:
        """A single-valued text (ST, LT, UT): the backslash is a character of it."""
        return self._decode(self.values.get(tag, b"")).rstrip(" \0")

    @property
    def encodings(self) -> list[str]:
        """Python's names of the character sets of Specific Character Set; Latin-1 for one that nobody knows."""
        if self._encodings is None:
            named = self.values.get(SPECIFIC_CHARACTER_SET, b"").decode("ascii", "replace").strip(" \0")
            try:
                self._encodings = convert_encodings([part.strip() for part in named.split("\\")])
            except (LookupError, ValueError):
                self._encodings = ["iso8859"]
        return self._encodings

    def _decode(self, raw: bytes) -> str:
        if raw.isascii() and b"\x1b" not in raw and self.values.get(SPECIFIC_CHARACTER_SET) is None:
            return raw.decode("ascii")
        try:
            return decode_bytes(raw, self.encodings, {0x5C, 0x0A, 0x0D, 0x0C, 0x09, 0x5E, 0x3D})
        except (LookupError, ValueError):
            return raw.decode("latin-1")

    def integer(self, tag: int) -> int | None:
        """The first value of a US, UL, SS, SL or IS element; None when absent or no number."""
        raw = self.values.get(tag, b"")
        vr = DicomDictionary[tag][0]
        if vr == "IS":
            try:
                return int(float(raw.split(b"\\")[0].strip(b" \0").decode("ascii")))
            except (ValueError, OverflowError):
                return None
        size = 2 if vr in ("US", "SS") else 4
        if len(raw) < size:
            return None
        return int.from_bytes(
            raw[:size], "little" if self.little_endian else "big", signed=vr in ("SS", "SL")
        )


def walk(
    data: bytes | bytearray | memoryview,
    transfer_syntax: str,
    wanted: frozenset[int] = frozenset(),
    *,
    size: int | None = None,
    longest: int | None = None,
) -> Header:
    """Walk the top level of a data set (inflated, if it was deflated) up to Pixel Data.

    `data` is the whole data set or its beginning, `size` the length of the whole (default: of `data`).
    Values of `wanted` tags are copied (of each the first `longest` bytes); nothing else is. Raises CutOff when an
    element says more than `size` holds, TooMuch above a bound, HeaderError for anything that is no data set.
    """
    big = transfer_syntax == BIG_ENDIAN
    implicit = transfer_syntax == IMPLICIT
    order = ">" if big else "<"
    explicit_header = struct.Struct(order + "HH2sH").unpack_from
    implicit_header = struct.Struct(order + "HHI").unpack_from
    long_length = struct.Struct(order + "I").unpack_from
    available, total = len(data), len(data) if size is None else size
    header = Header(little_endian=not big, implicit=implicit)
    values = header.values
    at, count = 0, 0
    while True:
        header.end = at
        if at + 8 > available:
            if at == total:
                header.whole = True
            elif available == total:
                raise CutOff(f"element header cut off at byte {at}")
            return header
        if implicit:
            group, element, length = implicit_header(data, at)
            start, vr = at + 8, b""
        else:
            group, element, vr, length = explicit_header(data, at)
            start = at + 8
            if vr in _LONG:
                if start + 4 > available:
                    if available == total:
                        raise CutOff(f"element header cut off at byte {at}")
                    return header
                (length,) = long_length(data, start)
                start += 4
            elif vr not in _SHORT:
                raise HeaderError(f"no VR at byte {at}")
        tag = group << 16 | element
        count += 1
        if count > MAX_ELEMENTS:
            raise TooMuch(f"more than {MAX_ELEMENTS} elements")
        if tag in PIXEL_DATA:
            header.end, header.whole = start, True
            if length == _UNDEFINED:
                header.encapsulated = True
            else:
                header.pixel_end = start + length
                if header.pixel_end > total:
                    raise CutOff(f"Pixel Data says {length} bytes, {total - start} are there")
            return header
        if group == 0xFFFE:
            raise HeaderError(f"item or delimiter at top level, byte {at}")
        if length == _UNDEFINED:
            after, count = _skip(
                data, start, available, implicit or vr == b"UN", order, available == total, count
            )
            if after is None:
                return header
        else:
            after = start + length
            if after > total:
                raise CutOff(f"({group:04X},{element:04X}) runs over the end")
            if after > available:
                return header
        if tag in wanted:
            values[tag] = bytes(data[start : after if longest is None else min(after, start + longest)])
        at = after


def read(
    data: bytes | bytearray | memoryview, transfer_syntax: str, wanted: frozenset[int], *, most: int = 1 << 24
) -> Header:
    """`walk` a whole data set in any transfer syntax; where it cannot be walked, let pydicom try in a child.

    pydicom forgives what devices get wrong (a value representation that is none, implicit where explicit was
    announced); it is given no more than `most` bytes, and nothing that broke a bound or was cut off. Of a value
    only the first LONGEST_VALUE bytes are kept. Raises HeaderError.
    """
    if transfer_syntax in DEFLATED_SYNTAXES:
        inflated_size(_chunks(data), len(data))
        data = inflate_head(_chunks(data), most)
        size = most + 1 if len(data) == most else len(data)
        return walk(data, transfer_syntax, wanted, size=size, longest=LONGEST_VALUE)
    try:
        return walk(data, transfer_syntax, wanted, longest=LONGEST_VALUE)
    except (TooMuch, CutOff):
        raise
    except HeaderError as error:
        from pacs import reader  # it imports us

        return reader.read(bytes(data[:most]), transfer_syntax, wanted, error)


def _skip(
    data: bytes | bytearray | memoryview,
    at: int,
    end: int,
    implicit: bool,
    order: str,
    complete: bool,
    count: int,
) -> tuple[int | None, int]:
    """The offset behind a sequence of undefined length that begins at `at`; None when `data` ends before.

    Within it everything of a defined length is stepped over. `complete`: `data` is all there is. `count` is the
    number of elements that were seen before; given back with those seen here, for MAX_ELEMENTS holds for all.
    """
    explicit_header = struct.Struct(order + "HH2sH").unpack_from
    implicit_header = struct.Struct(order + "HHI").unpack_from
    long_length = struct.Struct(order + "I").unpack_from
    stack: list[tuple[bool, bool]] = [(True, implicit)]  # (between items of a sequence?, implicit VR inside?)
    while stack:
        if at + 8 > end:
            if complete:
                raise CutOff(f"sequence cut off at byte {at}")
            return None, count
        count += 1
        if count > MAX_ELEMENTS:
            raise TooMuch(f"more than {MAX_ELEMENTS} elements")
        between_items, is_implicit = stack[-1]
        group, element, length = implicit_header(data, at)
        tag, start = group << 16 | element, at + 8
        if between_items:
            if tag == _SEQUENCE_END:
                stack.pop()
            elif tag != _ITEM:
                raise HeaderError(f"neither item nor delimiter at byte {at}")
            elif length == _UNDEFINED:
                stack.append((False, is_implicit))
            else:
                start += length
        elif tag == _ITEM_END:
            stack.pop()
        else:
            vr = b""
            if not is_implicit:
                _, _, vr, length = explicit_header(data, at)
                if vr in _LONG:
                    if start + 4 > end:
                        if complete:
                            raise CutOff(f"element header cut off at byte {at}")
                        return None, count
                    (length,) = long_length(data, start)
                    start += 4
                elif vr not in _SHORT:
                    raise HeaderError(f"no VR at byte {at}")
            if length == _UNDEFINED:
                stack.append((True, is_implicit or vr == b"UN"))
            else:
                start += length
        if len(stack) > 2 * MAX_DEPTH:
            raise TooMuch(f"sequences nested deeper than {MAX_DEPTH}")
        if start > end:
            if complete:
                raise CutOff(f"element at byte {at} runs over the end")
            return None, count
        at = start
    return at, count


def end_of_fragments(read: Callable[[int, int], bytes], at: int, size: int) -> int:
    """The offset behind encapsulated Pixel Data (PS3.5 A.4) that begins at `at`.

    `read(offset, length)` gives bytes of the data set, `size` is its length. Raises CutOff or HeaderError.
    """
    for _ in range(10_000_000):
        head = read(at, 8)
        if len(head) < 8:
            raise CutOff("Pixel Data has no sequence delimiter")
        group, element, length = struct.unpack("<HHI", head)
        tag = group << 16 | element
        if tag == _SEQUENCE_END:
            return at + 8
        if tag != _ITEM or length == _UNDEFINED:
            raise HeaderError(f"no fragment at byte {at} of Pixel Data")
        at += 8 + length
        if at > size:
            raise CutOff("a fragment of Pixel Data runs over the end")
    raise TooMuch("too many fragments")


def check(data: bytes, transfer_syntax: str) -> None:
    """Walk all of a small data set, every sequence opened: depth, elements and lengths are within bounds.

    Meant to be passed before pydicom is given the same bytes. Raises HeaderError.
    """
    _check(data, ">" if transfer_syntax == BIG_ENDIAN else "<", transfer_syntax == IMPLICIT, False)


def check_sequence(value: bytes, *, implicit: bool, little_endian: bool) -> None:
    """The same for the value of a sequence as a walk copied it: its items, and its delimiter if it has one."""
    order = "<" if little_endian else ">"
    if value[-8:] == struct.pack(order + "HHI", 0xFFFE, 0xE0DD, 0):
        value = value[:-8]
    _check(value, order, implicit, True)


def _check(data: bytes, order: str, implicit: bool, sequence: bool) -> None:
    explicit_header = struct.Struct(order + "HH2sH").unpack_from
    implicit_header = struct.Struct(order + "HHI").unpack_from
    long_length = struct.Struct(order + "I").unpack_from
    at, count = 0, 0
    # (end of what we are in, between items of a sequence?, of undefined length?, implicit VR inside?)
    stack = [(len(data), sequence, False, implicit)]
    while stack:
        end, between_items, undefined, implicit = stack[-1]
        if at == end and not undefined:
            stack.pop()
            continue
        if at + 8 > end:
            raise CutOff(f"element header cut off at byte {at}")
        count += 1
        if count > MAX_ELEMENTS:
            raise TooMuch(f"more than {MAX_ELEMENTS} elements")
        group, element, length = implicit_header(data, at)
        tag, start, vr = group << 16 | element, at + 8, b""
        if undefined and tag == (_SEQUENCE_END if between_items else _ITEM_END):
            stack.pop()
            at = start
            continue
        if between_items and tag != _ITEM:
            raise HeaderError(f"neither item nor delimiter at byte {at}")
        if not between_items and not implicit:
            _, _, vr, length = explicit_header(data, at)
            if vr in _LONG:
                if start + 4 > end:
                    raise CutOff(f"element header cut off at byte {at}")
                (length,) = long_length(data, start)
                start += 4
            elif vr not in _SHORT:
                raise HeaderError(f"no VR at byte {at}")
        is_undefined = length == _UNDEFINED
        inner_end = end if is_undefined else start + length
        if inner_end > end:
            raise CutOff(f"element at byte {at} runs over the end")
        at = start
        if between_items:
            stack.append((inner_end, False, is_undefined, implicit))
        elif is_undefined or vr == b"SQ" or (implicit and _may_be_sequence(tag, data, start, length)):
            stack.append((inner_end, True, is_undefined, implicit or vr == b"UN"))
        else:
            at = inner_end
        if len(stack) > 2 * MAX_DEPTH:
            raise TooMuch(f"sequences nested deeper than {MAX_DEPTH}")


def _may_be_sequence(tag: int, data: bytes, start: int, length: int) -> bool:
    """Whether pydicom would open this implicit element: SQ in the dictionary, or private and looking like one."""
    if tag in _SEQUENCES:
        return True
    return bool(tag >> 16 & 1) and length >= 8 and data[start : start + 4] == b"\xfe\xff\x00\xe0"


def _chunks(data: bytes | bytearray | memoryview) -> Iterator[bytes]:
    return (bytes(data[at : at + (1 << 20)]) for at in range(0, len(data), 1 << 20))


def inflate_head(chunks: Iterable[bytes | memoryview], wanted_bytes: int) -> bytes:
    """The first `wanted_bytes` of a deflated data set, opened; fewer when it is shorter."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    whole = bytearray()
    try:
        for chunk in chunks:
            whole += inflater.decompress(chunk, wanted_bytes - len(whole) or 1)
            if inflater.eof or len(whole) >= wanted_bytes:
                break
    except zlib.error:
        raise HeaderError("no deflate stream") from None
    return bytes(whole[:wanted_bytes])


def inflated_size(chunks: Iterable[bytes | memoryview], deflated: int) -> int:
    """How long a deflated data set of `deflated` bytes is when opened, without keeping it.

    Raises CutOff when the stream does not end, TooMuch above MAX_INFLATED or (past 16 MiB) MAX_RATIO.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    size = 0
    limit = min(MAX_INFLATED, max(deflated * MAX_RATIO, 16 * 1024 * 1024))
    try:
        for chunk in chunks:
            while chunk:
                size += len(inflater.decompress(chunk, 1 << 20))
                if size > limit:
                    raise TooMuch(f"inflates to more than {limit} bytes")
                chunk = inflater.unconsumed_tail
            if inflater.eof:
                return size
        size += len(inflater.flush())
    except zlib.error:
        raise HeaderError("no deflate stream") from None
    if not inflater.eof:
        raise CutOff("deflate stream does not end")
    return size
