"""A message for people: its lines, and its fields with the names the standard gives them (tables of hl7apy)."""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import hl7apy

from integration.hl7v2 import tables
from integration.hl7v2.errors import Refused
from integration.hl7v2.reading import Segment, parse

_NEWEST = "2.8.2"
_LONGEST = 2000  # characters of one value on the page; a whole PDF helps nobody there

# Segments that the standard's tables do not know under this name, or that sites add.
_SEGMENTS = {
    "MSH": "Message header", "EVN": "Event", "PID": "Patient", "PD1": "Patient, additional", "PV1": "Visit",
    "PV2": "Visit, additional", "MRG": "Merge: prior identifiers", "ORC": "Order control", "OBR": "Order detail",
    "TQ1": "Timing", "IPC": "Imaging procedure", "OBX": "Observation", "NTE": "Notes", "ZDS": "Study Instance UID",
    "AL1": "Allergy", "DG1": "Diagnosis", "SCH": "Appointment", "RGS": "Resource group", "AIS": "Service",
    "AIL": "Location", "AIP": "Personnel", "MSA": "Acknowledgment", "ERR": "Error", "TXA": "Document",
    "NK1": "Next of kin", "IN1": "Insurance", "GT1": "Guarantor", "ROL": "Role",
}  # fmt: skip
_CODES: dict[tuple[str, int], dict[str, str]] = {
    ("ORC", 1): tables.ORDER_CONTROL,
    ("ORC", 5): tables.ORDER_STATUS,
    ("OBR", 25): tables.RESULT_STATUS,
    ("MSA", 1): tables.ACKNOWLEDGMENT,
    ("MSH", 11): tables.PROCESSING,
}


@dataclass(frozen=True)
class Field:
    """One component (or whole field) that says something: its place, its name, its value."""

    place: str
    name: str
    value: str
    wrong: bool = False


@dataclass(frozen=True)
class Described:
    """One segment for the page: its raw line and its named fields."""

    name: str
    sequence: int
    title: str
    raw: str
    fields: list[Field] = field(default_factory=list)
    wrong: bool = False


def describe(raw: bytes, wrong: tuple[str, ...] = ()) -> list[Described]:
    """The segments of a message with their fields named; `wrong` are places in the form of ERR-2 (`PID^1^3`).

    Bytes that are no message become lines without fields.
    """
    try:
        message = parse(raw)
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
            Field(f"{segment.name}-{number}", _field_name(segment.name, number, version), "(empty)", True)
        )
    title = _SEGMENTS.get(segment.name, "")
    return Described(segment.name, segment.sequence, title, segment.raw[:_LONGEST], fields, bool(here))


def _number(place: list[str], index: int, default: int) -> int:
    return int(place[index]) if len(place) > index and place[index].isdigit() else default


def _fields(segment: Segment, number: int, version: str, wrong: bool) -> list[Field]:
    place, name = f"{segment.name}-{number}", _field_name(segment.name, number, version)
    if number <= 2 and segment.name == "MSH":
        return [Field(place, name, segment.field(number), wrong)]
    found = []
    repetitions = len(segment.repetitions(number))
    for repetition in range(1, repetitions + 1):
        parts = segment.components(number, repetition)
        mark = f"({repetition})" if repetitions > 1 else ""
        if len(parts) <= 1 or segment.name == "OBX" and number == 5:
            value = _said(
                segment, number, segment.component(number, 1, repetition) if len(parts) <= 1 else ""
            )
            found.append(Field(place + mark, name, value or segment.text(number)[:_LONGEST], wrong))
            continue
        for index in range(1, len(parts) + 1):
            value = segment.component(number, index, repetition)
            if value:
                part = _component_name(segment.name, number, index, version)
                label = f"{name}: {part}" if part else name
                found.append(Field(f"{place}{mark}.{index}", label, value[:_LONGEST], wrong))
    return found


def _said(segment: Segment, number: int, value: str) -> str:
    meaning = _CODES.get((segment.name, number), {}).get(value, "")
    return f"{value} ({meaning})" if meaning else value[:_LONGEST]


@cache
def _library(version: str) -> Any:
    known = version if version in hl7apy.SUPPORTED_LIBRARIES else _NEWEST
    return hl7apy.load_library(known)


def _plain(name: str | None) -> str:
    """The tables' `PATIENT_NAME` as `Patient name`."""
    return (name or "").replace("_", " ").capitalize()


@cache
def _field_name(segment: str, number: int, version: str) -> str:
    for library in (_library(version), _library(_NEWEST)):
        entry = library.FIELDS.get(f"{segment}_{number}")
        if entry:
            return _plain(entry[3])
    return "Study Instance UID" if (segment, number) == ("ZDS", 1) else ""


@cache
def _component_name(segment: str, number: int, component: int, version: str) -> str:
    library = _library(version)
    entry = library.FIELDS.get(f"{segment}_{number}") or _library(_NEWEST).FIELDS.get(f"{segment}_{number}")
    if not entry:
        return ""
    part = library.DATATYPES.get(f"{entry[2]}_{component}")
    return _plain(part[3]) if part else ""
