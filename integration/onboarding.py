"""What a new source really sends: a look at sample messages, field by field, and a profile to begin with."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from integration.hl7v2 import batches, tables
from integration.hl7v2.errors import Refused
from integration.hl7v2.reading import Message, Segment, looks_like_hl7, parse
from integration.sources import FIELDS, Place, compile_profile

_VALUES = 8  # different values shown a field
# Defined terms of Modality (0008,0060), PS3.3 section C.7.3.1.1.1.
_MODALITIES = """
AR AU BI BMD CR CT DG DOC DX ECG EPS ES GM HC HD IO IVOCT IVUS KO LS MG MR NM OAM OCT OP OPM OPT OPV OT PR PT PX
REG RESP RF RG RTDOSE RTIMAGE RTPLAN RTRECORD RTSTRUCT SEG SM SMR SR SRF TG US VA XA XC
"""


@dataclass
class FieldUse:
    """One component of the samples: how often it is filled, its commonest values, what reads it by default."""

    place: str
    filled: int = 0
    values: Counter[str] = field(default_factory=Counter)
    read_as: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Of the segments of its name, how many fill it."""
        return self.filled / self.of if self.of else 0.0

    of: int = 0


@dataclass
class Survey:
    """What the samples hold. `unread` are filled places that nothing of ours reads."""

    messages: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    senders: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    uses: list[FieldUse] = field(default_factory=list)
    proposal: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    @property
    def unread(self) -> list[FieldUse]:
        """Filled places that no key of a profile reads, the fullest first."""
        return sorted((u for u in self.uses if not u.read_as), key=lambda u: -u.share)


def take_apart(content: bytes) -> list[bytes]:
    """The messages in a dropped file: framed, batched, or one after the other."""
    content = content.replace(b"\x0b", b"").replace(b"\x1c\r", b"\r").replace(b"\x1c", b"\r")
    if not looks_like_hl7(content):
        return []
    try:
        return batches.split(content).messages
    except Refused:
        return []


def survey(raws: Iterable[bytes]) -> Survey:
    """Look at sample messages and propose a profile. Nothing is stored."""
    found = Survey()
    parsed: list[Message] = []
    for raw in raws:
        try:
            parsed.append(parse(raw))
        except Refused as refusal:
            found.unreadable.append(str(refusal.problem))
    found.messages = len(parsed)
    found.kinds.update(f"{m.message_type}^{m.trigger_event}" for m in parsed)
    found.senders.update(f"{m.sending_application}|{m.sending_facility}" for m in parsed)
    found.uses = _uses(parsed)
    _propose(found, parsed)
    return found


def _uses(messages: list[Message]) -> list[FieldUse]:
    uses: dict[tuple[str, int, int], FieldUse] = {}
    counts: Counter[str] = Counter()
    readers = _readers()
    for message in messages:
        for segment in message.segments:
            counts[segment.name] += 1
            for number, component, value in _filled(segment):
                key = (segment.name, number, component)
                if key not in uses:
                    place = f"{segment.name}-{number}" + (f".{component}" if component > 1 else "")
                    reads = readers.get(
                        (segment.name, number, component), readers.get((segment.name, number, 0), ())
                    )
                    uses[key] = FieldUse(place, read_as=tuple(reads))
                uses[key].filled += 1
                if value in uses[key].values or len(uses[key].values) < _VALUES:
                    uses[key].values[value] += 1
    for (name, _, _), use in uses.items():
        use.of = counts[name]
    return [uses[key] for key in sorted(uses)]


def _filled(segment: Segment) -> Iterable[tuple[int, int, str]]:
    first = 3 if segment.name == "MSH" else 1
    for number in range(first, len(segment.fields)):
        for component, value in enumerate(segment.components(number), 1):
            if value:
                yield number, component, value[:80]


def _readers() -> dict[tuple[str, int, int], list[str]]:
    """Place (component 0: the whole field) → the profile keys that look there by default."""
    readers: dict[tuple[str, int, int], list[str]] = {}
    for key, expression in compile_profile({}).fields.items():
        for place in expression.places:
            readers.setdefault((place.segment, place.field, _depth(place)), []).append(key)
    for number in (5, 6, 7, 8, 11, 13, 22, 27, 35, 36):
        readers.setdefault(("PID", number, 0), []).append("patient")
    for number in (2, 3, 7, 8, 44, 45):
        readers.setdefault(("PV1", number, 0), []).append("visit")
    for number in (3, 4, 9, 10, 11, 12, 15, 16, 18):
        readers.setdefault(("MSH", number, 0), []).append("header")
    for segment, number in (
        ("ORC", 1),
        ("ORC", 5),
        ("NTE", 3),
        ("AL1", 3),
        ("MRG", 1),
        ("OBX", 5),
        ("OBX", 3),
    ):
        readers.setdefault((segment, number, 0), []).append("meaning")
    return readers


def _depth(place: Place) -> int:
    return place.component or 0


def _propose(found: Survey, messages: list[Message]) -> None:
    orders = [m for m in messages if m.message_type in ("ORM", "OMG", "OMI")]
    _propose_accession(found, orders)
    _propose_authority(found, messages)
    _propose_tables(found, messages)
    charsets = Counter(w.text for m in messages for w in m.warnings)
    for text, count in charsets.most_common(3):
        found.reasons.append(f"{count} messages: {text}")


def _propose_accession(found: Survey, orders: list[Message]) -> None:
    if (
        not orders
        or any(s.has(18) for m in orders for s in m.all("OBR"))
        or any(m.all("IPC") for m in orders)
    ):
        return
    for place, word in (("OBR-3.1", "filler"), ("ORC-3.1", "filler"), ("OBR-2.1", "placer")):
        name, number = place[:3], int(place[4])
        values = [s.value(number) for m in orders for s in m.all(name)]
        if values and all(values) and all(len(v) <= 16 for v in values):
            found.proposal["accession_number"] = f"IPC-1, OBR-18, {place}, make"
            found.reasons.append(
                f"No order has OBR-18; the {word} number ({place}) is always there and fits."
            )
            return
    found.reasons.append("No order has an accession number; one is made.")


def _propose_authority(found: Survey, messages: list[Message]) -> None:
    pids = [m.first("PID") for m in messages if m.first("PID")]
    if pids and not any(p.value(3, 4) or p.value(3, 4, 1, 2) for p in pids):
        facilities = Counter(m.sending_facility for m in messages if m.sending_facility)
        if facilities:
            found.proposal["default_authority"] = facilities.most_common(1)[0][0]
            found.reasons.append("Patient identifiers name no authority; the sending facility stands for it.")


def _propose_tables(found: Survey, messages: list[Message]) -> None:
    foreign = _foreign(messages, "ORC", 1, tables.ORDER_CONTROL)
    if foreign:
        found.reasons.append(
            f"ORC-1 holds codes that are none of table 0119, map them: {', '.join(foreign)}."
        )
    foreign = _foreign(messages, "OBR", 24, dict.fromkeys(_MODALITIES.split(), ""))
    if foreign:
        found.reasons.append(f"OBR-24 holds what is no DICOM modality, map it: {', '.join(foreign)}.")
    foreign = _foreign(messages, "PID", 8, tables.SEX)
    if foreign:
        found.reasons.append(f"PID-8 holds what is none of table 0001, map it: {', '.join(foreign)}.")


def _foreign(messages: list[Message], name: str, number: int, known: dict[str, str]) -> list[str]:
    values = {s.value(number).strip().upper() for m in messages for s in m.all(name)}
    return sorted(v for v in values if v and v not in known)[:10]


__all__ = ["FIELDS", "FieldUse", "Survey", "survey", "take_apart"]
