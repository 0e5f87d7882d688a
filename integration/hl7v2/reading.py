"""A message as it was sent: segments, fields, repetitions, components, decoded when asked for. Pure, lazy."""

import re
from collections.abc import Callable, Iterator
from typing import Final

from django.utils.functional import cached_property  # Python's own takes a lock before version 3.12

from integration.hl7v2 import charsets, escapes
from integration.hl7v2.errors import Code, Location, Problem, refuse, warning
from integration.hl7v2.separators import STANDARD, Separators, read_separators

BOM = b"\xef\xbb\xbf"
_HEADS = (b"MSH", b"FHS", b"BHS")
_HEADERS = ("MSH", "FHS", "BHS")
_NAME = re.compile(r"[A-Z][A-Z0-9]{2}\Z")
# A line that opens a segment, as opposed to text that goes on after a lone LF.
_LF_BEFORE_SEGMENT = r"\n(?=[A-Z][A-Z0-9]{2}(?:%s|\n|\Z)|\s*\Z)"


class Null(str):
    """The value `""`: the sender deletes what was there. Reads as an empty text, `is NULL` tells it apart."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "NULL"


NULL: Final = Null("")
_QUOTES = '""'


class Segment:
    """One segment. Fields, repetitions, components and subcomponents count from 1, as in the standard."""

    __slots__ = ("_decode", "fields", "name", "position", "raw", "separators", "sequence")

    def __init__(
        self,
        raw: str,
        separators: Separators = STANDARD,
        decode: escapes.Decode = escapes.latin,
        position: int = 1,
        sequence: int = 1,
    ) -> None:
        self.raw = raw
        self.separators = separators
        self.name = raw[:3]
        self.position = position  # of the segment in its message, from 1
        self.sequence = sequence  # among the segments of its name, from 1
        self._decode = decode
        # The encoded fields; index 0 is the segment's name, and in headers 1 is the field separator.
        self.fields = raw.split(separators.field)
        if self.name in _HEADERS:
            self.fields.insert(1, separators.field)

    def __repr__(self) -> str:
        return f"<Segment {self.name} {self.sequence}>"  # no content: it may be health data

    def __bool__(self) -> bool:
        """Whether the message holds this segment at all."""
        return len(self.raw) > 0

    def field(self, number: int) -> str:
        """A whole field, encoded; empty beyond the last."""
        fields = self.fields
        return fields[number] if number < len(fields) else ""

    def has(self, number: int) -> bool:
        """Whether the field says anything (`""` does)."""
        return self.field(number) != ""

    def is_null(self, number: int) -> bool:
        """Whether the whole field is `""`: delete what was there."""
        return self.field(number) == _QUOTES

    def repetitions(self, number: int) -> list[str]:
        """The encoded repetitions of a field; none for an empty field, empty ones kept (`A~~B`)."""
        field = self.field(number)
        if not field:
            return []
        if self._is_delimiters(number):
            return [field]
        return field.split(self.separators.repetition)

    def value(self, number: int, component: int = 1, repetition: int = 1, subcomponent: int = 1) -> str:
        """One decoded value: empty when absent, NULL for `""`.

        A value of a deeper level than the sender used is its first part, and `""` at any level is NULL below.
        """
        fields = self.fields
        text = fields[number] if number < len(fields) else ""
        if not text:
            return ""
        if number <= 2 and self._is_delimiters(number):
            return text
        s = self.separators
        # Most values have no deeper level, and `in` is the cheapest way to see it.
        if repetition != 1 or s.repetition in text:
            text = _part(text, s.repetition, repetition)
        if text == _QUOTES:
            return NULL
        if component != 1 or s.component in text:
            text = _part(text, s.component, component)
        if subcomponent != 1 or s.subcomponent in text:
            text = text if text == _QUOTES else _part(text, s.subcomponent, subcomponent)
        if text == _QUOTES:
            return NULL
        return escapes.unescape(text, s, self._decode) if s.escape in text else text

    def component(self, number: int, component: int = 1, repetition: int = 1) -> str:
        """A whole decoded component, its subcomponent separators as they stand."""
        text = _part(
            _part(self.field(number), self.separators.repetition, repetition),
            self.separators.component,
            component,
        )
        return NULL if text == _QUOTES else self.decoded(text)

    def components(self, number: int, repetition: int = 1) -> list[str]:
        """The first subcomponents of all components of one repetition, decoded."""
        s = self.separators
        text = self.field(number)
        if repetition != 1 or s.repetition in text:
            text = _part(text, s.repetition, repetition)
        if not text:
            return []
        if s.subcomponent not in text and s.escape not in text and _QUOTES not in text:
            return text.split(s.component)
        if text == _QUOTES:
            return [NULL]
        return [self._leaf(_part(c, s.subcomponent, 1)) for c in text.split(s.component)]

    def subcomponents(self, number: int, component: int = 1, repetition: int = 1) -> list[str]:
        """The decoded subcomponents of one component."""
        s = self.separators
        text = _part(_part(self.field(number), s.repetition, repetition), s.component, component)
        return [self._leaf(t) for t in text.split(s.subcomponent)] if text else []

    def text(self, number: int) -> str:
        """A whole field as one text, stray separators kept as characters: report lines, comments."""
        field = self.field(number)
        return NULL if field == _QUOTES else self.decoded(field)

    def decoded(self, encoded: str) -> str:
        """The text that an encoded one stands for."""
        return escapes.unescape(encoded, self.separators, self._decode)

    def at(
        self, field: int | None = None, component: int | None = None, repetition: int | None = None
    ) -> Location:
        """The place of a field, for ERR."""
        if component is not None and repetition is None:
            repetition = 1
        return Location(self.name, self.sequence, field, repetition, component)

    def _leaf(self, text: str) -> str:
        return NULL if text == _QUOTES else self.decoded(text)

    def _is_delimiters(self, number: int) -> bool:
        return number <= 2 and self.name in _HEADERS


class Message:
    """A parsed message. `raw` holds its bytes unchanged, `text` what they say."""

    def __init__(
        self, raw: bytes, text: str, separators: Separators, segments: list[Segment], codec: str, charset: str,
        warnings: list[Problem],
    ) -> None:  # fmt: skip
        self.raw = raw
        self.text = text
        self.separators = separators
        self.segments = segments
        self.codec = codec  # Python's name of the character set
        self.charset = charset  # the table 0211 name, empty when undeclared
        self.warnings = warnings
        self.header = segments[0]

    def __repr__(self) -> str:
        return f"<Message {self.message_type}^{self.trigger_event} of {len(self.segments)} segments>"

    def first(self, name: str) -> Segment:
        """The first segment of this name; without one, an empty one that is false."""
        for segment in self.segments:
            if segment.name == name:
                return segment
        absent = Segment("", self.separators)
        absent.name = name
        return absent

    def all(self, name: str) -> list[Segment]:
        """Every segment of this name, in order."""
        return [s for s in self.segments if s.name == name]

    def groups(self, start: str, until: tuple[str, ...] = ()) -> Iterator[list[Segment]]:
        """The runs of segments that begin with `start` and end before the next one, or before one of `until`."""
        group: list[Segment] | None = None
        for segment in self.segments:
            if segment.name == start or segment.name in until:
                if group:
                    yield group
                group = [segment] if segment.name == start else None
            elif group is not None:
                group.append(segment)
        if group:
            yield group

    @cached_property
    def message_type(self) -> str:
        """MSH-9.1, such as `ADT`."""
        return self.header.value(9, 1).strip().upper()

    @cached_property
    def trigger_event(self) -> str:
        """MSH-9.2, such as `A08`; from EVN-1 where old senders leave it out."""
        event = self.header.value(9, 2).strip().upper()
        return event or self.first("EVN").value(1).strip().upper()

    @cached_property
    def control_id(self) -> str:
        """MSH-10."""
        return self.header.value(10).strip()

    @cached_property
    def processing_id(self) -> str:
        """MSH-11.1: P, T or D."""
        return self.header.value(11).strip().upper()

    @cached_property
    def version(self) -> str:
        """MSH-12.1, such as `2.5.1`."""
        return self.header.value(12).strip()

    @property
    def sending_application(self) -> str:
        """MSH-3.1."""
        return self.header.value(3).strip()

    @property
    def sending_facility(self) -> str:
        """MSH-4.1."""
        return self.header.value(4).strip()

    @property
    def receiving_application(self) -> str:
        """MSH-5.1."""
        return self.header.value(5).strip()

    @property
    def receiving_facility(self) -> str:
        """MSH-6.1."""
        return self.header.value(6).strip()


def header_of(raw: bytes) -> tuple[Separators, list[bytes]]:
    """The separators and the raw fields of the first header (index as in the standard). Raises Refused."""
    body = _lead(raw)
    if body[:3] not in _HEADS:
        raise refuse(
            Code.SEGMENT_SEQUENCE, "The message does not begin with an MSH segment.", Location("MSH")
        )
    end = len(body)
    for stop in (b"\r", b"\n"):
        found = body.find(stop)
        end = found if 0 <= found < end else end
    line = body[:end]
    field = line[3:4]
    parts = line.split(field) if field else [line]
    separators = read_separators(
        field.decode("latin-1"), parts[1].decode("latin-1") if len(parts) > 1 else ""
    )
    parts.insert(1, field)
    return separators, parts


def parse(
    raw: bytes,
    fallback: str = "cp1252",
    force_charset: str = "",
    head: tuple[Separators, list[bytes]] | None = None,
) -> Message:
    """Read one message: any MSH-1/MSH-2, its own MSH-18, CR, CRLF or LF between segments, with or without BOM.

    `fallback` is the set of undeclared bytes that are not UTF-8; `force_charset` overrides MSH-18. A lone LF in
    a message with CR is data. `head` is what `header_of` said of it, for who asked before. Raises Refused (100,
    101 or 102) when it is no message.
    """
    separators, header = head or header_of(raw)
    body = _lead(raw)
    if body[:3] != b"MSH":
        raise refuse(Code.SEGMENT_SEQUENCE, "A batch must be split into its messages first.", Location("MSH"))
    declared: tuple[str, ...] = ()
    if len(header) > 18 and header[18]:
        repetition = separators.repetition.encode()
        declared = tuple(part.decode("latin-1") for part in header[18].split(repetition))
    decoded = charsets.decode(body, declared, fallback, force_charset)
    warnings = list(decoded.warnings)
    decode = charsets.decoder(decoded.codec)
    segments = _segments(decoded.text, separators, decode, warnings)
    return Message(raw, decoded.text, separators, segments, decoded.codec, decoded.name, warnings)


def split_segments(text: str, separators: Separators) -> list[str]:
    """The encoded segments of a message's text."""
    if "\r" in text:
        lines = text.replace("\r\n", "\r").split("\r") if "\n" in text else text.split("\r")
        if "\n" in text and not _has_bare_cr(text):
            pattern = _LF_BEFORE_SEGMENT % re.escape(separators.field)
            lines = [part for line in lines for part in re.split(pattern, line)]
        return lines
    if "\n" in text:
        return re.split(_LF_BEFORE_SEGMENT % re.escape(separators.field), text)
    return [text]


def _has_bare_cr(text: str) -> bool:
    return text.count("\r") > text.count("\r\n")


def _segments(
    text: str, separators: Separators, decode: Callable[[bytes], str | None], warnings: list[Problem]
) -> list[Segment]:
    segments: list[Segment] = []
    counts: dict[str, int] = {}
    lines = split_segments(text, separators)
    for number, line in enumerate(lines):
        name = line[:3]
        if not (_NAME.match(name) and (len(line) == 3 or line[3] == separators.field)):
            stripped = line.strip(" \t\r\n\x00\x1a\ufeff")
            if not stripped:
                continue
            name, line = stripped[:3], stripped
            if not (_NAME.match(name) and (len(line) == 3 or line[3] == separators.field)):
                if number == len(lines) - 1 and segments:
                    warnings.append(warning("Text after the last segment is passed over.", _after(segments)))
                    break
                raise refuse(
                    Code.SEGMENT_SEQUENCE,
                    "A line is no segment; a line end inside a field must be escaped.",
                    _after(segments),
                )
        if name == "MSH" and segments:
            raise refuse(
                Code.SEGMENT_SEQUENCE, "A second MSH: send one message a frame, or a batch.", _after(segments)
            )
        counts[name] = counts.get(name, 0) + 1
        segments.append(Segment(line, separators, decode, len(segments) + 1, counts[name]))
    if not segments or segments[0].name != "MSH":
        raise refuse(
            Code.SEGMENT_SEQUENCE, "The message does not begin with an MSH segment.", Location("MSH")
        )
    return segments


def _after(segments: list[Segment]) -> Location:
    last = segments[-1] if segments else None
    return Location(last.name, last.sequence) if last else Location("MSH")


def _lead(raw: bytes) -> bytes:
    """The bytes without what may stand before the header."""
    if raw[:1] == b"M":
        return raw
    body = raw.lstrip(b"\r\n\t \x00")
    return body[3:].lstrip(b"\r\n\t ") if body.startswith(BOM) else body


def _part(text: str, separator: str, number: int) -> str:
    """The n-th part; without the separator, the text itself is the first."""
    if number == 1:
        cut = text.find(separator)
        return text if cut < 0 else text[:cut]
    parts = text.split(separator, number)
    return parts[number - 1] if number <= len(parts) else ""
