"""A message for people: its lines, and its fields with the names the standard gives them (tables of hl7apy)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import hl7apy

from integration import meanings
from integration.hl7v2 import tables
from integration.hl7v2.errors import Refused
from integration.hl7v2.reading import Segment
from integration.sources import DEFAULT, Profile

_NEWEST = "2.8.2"
_LONGEST = 2000  # characters of one value on the page; a whole PDF helps nobody there
_REPETITIONS = 50
_SHOWN = 400  # and of one field in the raw line

# Segments that the standard's tables do not know under this name, or that sites add.
_SEGMENTS = {
    "MSH": "Message header", "EVN": "Event", "PID": "Patient", "PD1": "Patient, additional", "PV1": "Visit",
    "PV2": "Visit, additional", "MRG": "Merge: prior identifiers", "ORC": "Order control", "OBR": "Order detail",
    "TQ1": "Timing", "IPC": "Imaging procedure", "OBX": "Observation", "NTE": "Notes", "ZDS": "Study Instance UID",
    "AL1": "Allergy", "DG1": "Diagnosis", "SCH": "Appointment", "RGS": "Resource group", "AIS": "Service",
    "AIL": "Location", "AIP": "Personnel", "MSA": "Acknowledgment", "ERR": "Error", "TXA": "Document",
    "NK1": "Next of kin", "IN1": "Insurance", "GT1": "Guarantor", "ROL": "Role",
}  # fmt: skip


_POINTER = ("Pointer", "Application ID", "Type of data", "Subtype")  # data type RP, of which ZDS-1 is


@dataclass(frozen=True)
class Field:
    """One component (or whole field) that says something: its place, its name, its value."""

    place: str
    name: str
    value: str
    wrong: bool = False
    meaning: str = ""
    number: int = 0


@dataclass(frozen=True)
class Piece:
    """A stretch of a raw line: one field's text, or what stands between (number 0)."""

    number: int
    text: str


@dataclass(frozen=True)
class Described:
    """One segment for the page: its raw line, also in pieces, and its named fields."""

    name: str
    sequence: int
    title: str
    raw: str
    fields: list[Field] = field(default_factory=list)
    wrong: bool = False
    pieces: list[Piece] = field(default_factory=list)


def describe(raw: bytes, wrong: tuple[str, ...] = (), profile: Profile = DEFAULT) -> list[Described]:
    """The segments of a message with their fields named; `wrong` are places in the form of ERR-2 (`PID^1^3`).

    Bytes that are no message become lines without fields. The profile says in which set undeclared bytes are.
    """
    try:
        message = profile.read(raw)
    except Refused:
        lines = raw.decode("utf-8", "replace").replace("\n", "\r").split("\r")
        return [
            Described("", n, "", line[:_LONGEST]) for n, line in enumerate(lines, 1) if line.strip("\x00 ")
        ]
    version = message.version
    places = [place.split("^") for place in wrong]
    return [_segment(s, version, places) for s in message.segments]


def title_of(message_type: str, trigger_event: str) -> str:
    """What a message is about, in words: `update patient`, `imaging order`."""
    return tables.EVENTS.get(trigger_event, "")


def _segment(segment: Segment, version: str, places: list[list[str]]) -> Described:
    here = [p for p in places if p[0] == segment.name and _number(p, 1, 1) == segment.sequence]
    wrong_fields = {_number(p, 2, 0) for p in here}
    fields = [
        one
        for number in range(1, len(segment.fields))
        if segment.field(number)
        for one in _fields(segment, number, version, number in wrong_fields)
    ]
    for number in sorted(wrong_fields - {n for n in range(len(segment.fields)) if segment.field(n)} - {0}):
        fields.append(
            Field(f"{segment.name}-{number}", field_name(segment.name, number, version), "(empty)", True)
        )
    title = _SEGMENTS.get(segment.name, "")
    raw, pieces = segment.raw[:_LONGEST], list(_pieces(segment))
    return Described(segment.name, segment.sequence, title, raw, fields, bool(here), pieces)


def _pieces(segment: Segment) -> Iterator[Piece]:
    """The raw line, field by field, so that a page can show which text a name stands for."""
    separator = segment.separators.field
    for number, text in enumerate(segment.fields):
        if segment.name in ("MSH", "FHS", "BHS") and number == 1:
            continue
        if number:
            yield Piece(0, separator)
        cut = f"{text[:_SHOWN]}… ({len(text)} characters)" if len(text) > _SHOWN else text
        yield Piece(number, cut)


def _number(place: list[str], index: int, default: int) -> int:
    return int(place[index]) if len(place) > index and place[index].isdigit() else default


def _fields(segment: Segment, number: int, version: str, wrong: bool) -> list[Field]:
    place, name = f"{segment.name}-{number}", field_name(segment.name, number, version)
    if number <= 2 and segment.name == "MSH":
        return [Field(place, name, segment.field(number), wrong, "", number)]
    found = []
    repetitions = len(segment.repetitions(number))
    for repetition in range(1, min(repetitions, _REPETITIONS) + 1):
        parts = segment.components(number, repetition)
        mark = f"({repetition})" if repetitions > 1 else ""
        if len(parts) <= 1 or segment.name == "OBX" and number == 5:
            value = segment.component(number, 1, repetition) if len(parts) <= 1 else ""
            value = (value or segment.text(number))[:_LONGEST]
            meaning = meanings.meaning(segment.name, number, 0, value, version)
            found.append(Field(place + mark, name, value, wrong, meaning, number))
            continue
        for index in range(1, len(parts) + 1):
            value = segment.component(number, index, repetition)
            if value:
                part = component_name(segment.name, number, index, version)
                label = f"{name}: {part}" if part else name
                meaning = meanings.meaning(segment.name, number, index, value, version)
                found.append(Field(f"{place}{mark}.{index}", label, value[:_LONGEST], wrong, meaning, number))
    return found


@cache
def _library(version: str) -> Any:
    known = version if version in hl7apy.SUPPORTED_LIBRARIES else _NEWEST
    return hl7apy.load_library(known)


def _plain(name: str | None) -> str:
    """The tables' `PATIENT_NAME` as `Patient name`, without their examples."""
    text = re.sub(r" (e g|i e) .*", "", (name or "").replace("_", " ").lower())
    text = re.sub(r"(\w) s (?=\w)", r"\1's ", re.sub(r"^set id .*", "set id", text))
    return re.sub(r"\b(id|uid)\b", lambda word: word[0].upper(), text[:1].upper() + text[1:], flags=re.I)


@cache
def field_name(segment: str, number: int, version: str = _NEWEST) -> str:
    """A field's name by the standard: `Patient name`; empty when it has none."""
    for library in (_library(version), _library(_NEWEST)):
        entry = library.FIELDS.get(f"{segment}_{number}")
        if entry:
            return _plain(entry[3])
    return "Study Instance UID" if (segment, number) == ("ZDS", 1) else ""


@cache
def component_name(segment: str, number: int, component: int, version: str = _NEWEST) -> str:
    """A component's name by the standard: `Family name`; empty when it has none."""
    if (segment, number) == ("ZDS", 1):
        return _POINTER[component - 1] if component <= len(_POINTER) else ""
    library = _library(version)
    entry = library.FIELDS.get(f"{segment}_{number}") or _library(_NEWEST).FIELDS.get(f"{segment}_{number}")
    if not entry:
        return ""
    part = library.DATATYPES.get(f"{entry[2]}_{component}")
    return _plain(part[3]) if part else ""
