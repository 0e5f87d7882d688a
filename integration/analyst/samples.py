"""Sample messages of a system that is to be connected: what they hold field by field, what we lack, a proposed profile.

Nothing is stored. Everything is bounded: so many messages, so many seconds, so many values of a field.
"""

import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from common.clock import now
from integration import meanings
from integration.describe import component_name, field_name
from integration.hl7v2 import batches, charsets, orders, tables
from integration.hl7v2.errors import Refused
from integration.hl7v2.reading import Message, Segment, parse
from integration.hl7v2.scope import Head, Scope
from integration.hl7v2.timestamps import TimestampError
from integration.hl7v2.timestamps import parse as parse_time
from integration.sources import DEFAULT, FIELDS, Profile, compile_profile

MOST_BYTES = 20_000_000
MOST_MESSAGES = 2000
SECONDS = 15.0
_VALUES = 300  # different values of one place that are told apart
_SHOWN = 8  # of them shown
_LONG = 60  # characters of one value that are shown

_ORDERS = ("ORM", "OMG", "OMI")
# What an order needs to be worked on, and what is defaulted or made when it is missing.
REQUIRED = ("patient_identifiers", "procedure_code")
USED = {
    "accession_number": "one is made for each order",
    "placer_order_number": "changes and cancels cannot name the order",
    "modality": "taken from the procedure catalogue",
    "start": "the step waits for a clerk to schedule it",
    "study_instance_uid": "one is made",
    "scheduled_station_ae_title": "any station of the modality may take it",
    "requesting_physician": "the report does not say for whom it is",
    "priority": "all are routine",
    "reason": "the radiologist does not see why",
    "requested_procedure_id": "one is made",
    "scheduled_procedure_step_id": "one is made",
}


@dataclass
class Place:
    """One component of a segment in the samples: how often it is filled, with what."""

    place: str
    name: str
    of: int = 0
    filled: int = 0
    nulls: int = 0
    longest: int = 0
    values: Counter[str] = field(default_factory=Counter)
    more: bool = False
    """Whether there are more values than are told apart."""
    read_as: tuple[str, ...] = ()
    """The attributes that are read from here by the proposed profile."""

    @property
    def percent(self) -> int:
        """How often it is filled, of the segments of its name."""
        return round(100 * self.filled / self.of) if self.of else 0

    @property
    def distinct(self) -> str:
        """How many different values."""
        return f"{len(self.values)}+" if self.more else str(len(self.values))

    @property
    def common(self) -> list[tuple[str, int, str]]:
        """The commonest values: (value, count, what it means)."""
        segment, _, rest = self.place.partition("-")
        number, _, component = rest.partition(".")
        return [
            (value, count, meanings.meaning(segment, int(number), int(component or 0), value))
            for value, count in self.values.most_common(_SHOWN)
        ]


@dataclass
class Attribute:
    """One attribute of ours: in how many orders (or messages) it is found, where, and what becomes of the rest."""

    name: str
    found: int
    of: int
    places: list[tuple[str, int]]
    looked: str
    need: str
    """`required`, `used` or `optional`."""
    otherwise: str = ""

    @property
    def percent(self) -> int:
        """In how many it is found."""
        return round(100 * self.found / self.of) if self.of else 0

    @property
    def lacking(self) -> bool:
        """Whether something that we need or use is never, or not always, there."""
        return bool(self.of) and (
            self.found < self.of if self.need == "required" else self.need == "used" and not self.found
        )


@dataclass(frozen=True)
class Proposal:
    """One key of the proposed profile: its value, and why."""

    key: str
    value: Any
    why: str


@dataclass
class Findings:
    """Everything that the samples tell."""

    messages: int = 0
    given: int = 0
    stopped: bool = False
    unreadable: list[tuple[int, str]] = field(default_factory=list)
    kinds: list[tuple[str, int, str]] = field(default_factory=list)
    senders: list[tuple[str, str, int]] = field(default_factory=list)
    header: list[tuple[str, list[tuple[str, int]]]] = field(default_factory=list)
    """What headers say: separators, versions, character sets, processing ids."""
    warnings: list[tuple[str, int]] = field(default_factory=list)
    segments: list[tuple[str, int, list[Place]]] = field(default_factory=list)
    attributes: list[Attribute] = field(default_factory=list)
    codes: list[tuple[str, str, int, str]] = field(default_factory=list)
    """Codes that no table has: (key of the table, code, count, proposed meaning)."""
    proposals: list[Proposal] = field(default_factory=list)
    refused: list[tuple[str, int]] = field(default_factory=list)
    """What would be refused by the proposed profile: (why, count)."""

    @property
    def values(self) -> dict[str, Any]:
        """The proposed source, as a version's values."""
        application, facility = (self.senders[0][0], self.senders[0][1]) if self.senders else ("*", "*")
        profile = {p.key: p.value for p in self.proposals}
        return {
            "application": application or "*",
            "facility": facility if len(self.senders) == 1 and facility else "*",
            "address": "*",
            "enabled": True,
            "profile": profile,
        }

    @property
    def lacking(self) -> list[Attribute]:
        """What our model needs or uses and the samples do not have."""
        return [a for a in self.attributes if a.lacking]


# --------------------------------------------------------------------------------------------- taking apart

_HEAD = re.compile(rb"(?:\A|[\r\n\x0b])(?:\xef\xbb\xbf)?(?=(?:MSH|FHS|BHS)[^\w\s])")


def split(content: bytes) -> list[bytes]:
    """The messages in a file: one, a batch, MLLP frames, or many one after the other with anything between."""
    pieces: list[bytes] = []
    for frame in re.split(rb"\x1c\r?\n?", content):
        starts = [m.end() for m in _HEAD.finditer(frame)]
        if not starts:
            continue
        body = frame[starts[0] :]
        try:
            found = batches.split(body).messages
        except Refused:
            ends = [*starts[1:], len(frame)]
            found = [frame[a:b].strip(b"\x0b\r\n") for a, b in zip(starts, ends, strict=True)]
        pieces += [piece for piece in found if piece.startswith(b"MSH")]
    return pieces


def analyse(contents: Iterable[bytes], seconds: float = SECONDS) -> Findings:
    """Look at sample files and propose a profile. Bounded to MOST_MESSAGES messages and so many seconds."""
    deadline = time.monotonic() + seconds
    raws = [raw for content in contents for raw in split(content)]
    found = Findings(given=len(raws))
    parsed: list[Message] = []
    for index, raw in enumerate(raws, 1):
        if len(parsed) >= MOST_MESSAGES or time.monotonic() > deadline - seconds / 2:
            found.stopped = True
            break
        try:
            parsed.append(parse(raw))
        except Refused as refusal:
            found.unreadable.append(
                (index, f"{refusal.problem.text} {refusal.problem.location or ''}".strip())
            )
    found.messages = len(parsed)
    _headers(found, parsed)
    places = _places(parsed, deadline, found)
    found.proposals = list(_proposals(parsed, places, found))
    profile = compile_profile(found.values["profile"])
    _mark(places, profile)
    found.segments = _by_segment(places)
    found.attributes = list(_attributes(parsed, profile))
    found.refused = _refusals(parsed, profile)
    return found


def _headers(found: Findings, messages: list[Message]) -> None:
    kinds = Counter(f"{m.message_type}^{m.trigger_event}".rstrip("^") for m in messages)
    found.kinds = [(k, n, tables.EVENTS.get(k.partition("^")[2], "")) for k, n in kinds.most_common()]
    senders = Counter((m.sending_application, m.sending_facility) for m in messages)
    found.senders = [(a, f, n) for (a, f), n in senders.most_common(10)]
    said = {
        "Separators": Counter(m.header.field(1) + m.header.field(2) for m in messages),
        "Version": Counter(m.version or "(none)" for m in messages),
        "Declared character set": Counter(m.header.field(18) or "(none)" for m in messages),
        "Bytes are in": Counter(_written(m) for m in messages),
        "Processing ID": Counter(m.processing_id or "(none)" for m in messages),
        "Acknowledgment": Counter(_asked(m) for m in messages),
        "Time zone in MSH-7": Counter(_zone(m) for m in messages),
    }
    found.header = [(name, counted.most_common(6)) for name, counted in said.items() if counted]
    found.warnings = Counter(w.text for m in messages for w in m.warnings).most_common(10)


def _written(message: Message) -> str:
    return "ASCII" if message.raw.isascii() else message.charset or message.codec


def _asked(message: Message) -> str:
    modes = (message.header.value(15), message.header.value(16))
    return f"enhanced ({'/'.join(modes)})" if any(modes) else "original mode"


def _zone(message: Message) -> str:
    sent = message.header.value(7)
    match = re.search(r"[+-]\d{4}\Z", sent)
    return match[0] if match else ("none" if sent else "(no time)")


# ------------------------------------------------------------------------------------------- field by field


def _places(messages: list[Message], deadline: float, found: Findings) -> dict[tuple[str, int, int], Place]:
    places: dict[tuple[str, int, int], Place] = {}
    counts: Counter[str] = Counter()
    for number, message in enumerate(messages):
        if time.monotonic() > deadline:
            found.stopped, found.messages = True, number
            del messages[number:]
            break
        for segment in message.segments:
            counts[segment.name] += 1
            _count(segment, message.version, places)
    for (name, _, _), place in places.items():
        place.of = counts[name]
    return places


def _count(segment: Segment, version: str, places: dict[tuple[str, int, int], Place]) -> None:
    first = 3 if segment.name == "MSH" else 1
    for number in range(first, len(segment.fields)):
        if not segment.field(number):
            continue
        for component, value in _filled(segment, number):
            key = (segment.name, number, component)
            place = places.get(key)
            if place is None:
                place = places[key] = Place(*_called(segment.name, number, component, version))
            place.filled += 1
            place.nulls += value == "" or value == '""'
            place.longest = max(place.longest, len(value))
            shown = value[:_LONG] + ("…" if len(value) > _LONG else "")
            if shown in place.values or len(place.values) < _VALUES:
                place.values[shown] += 1
            else:
                place.more = True


def _filled(segment: Segment, number: int) -> Iterator[tuple[int, str]]:
    if segment.name == "OBX" and number == 5 and segment.value(2) in ("ED", "TX", "FT"):
        yield 0, segment.text(5)[:200] if segment.value(2) != "ED" else "(embedded file)"
        return
    parts = segment.components(number)
    if len(parts) == 1:
        yield 0, parts[0] or '""'
        return
    for component, value in enumerate(parts, 1):
        if value:
            yield component, value


def _called(name: str, number: int, component: int, version: str) -> tuple[str, str]:
    place = f"{name}-{number}" + (f".{component}" if component else "")
    named = field_name(name, number, version)
    part = component_name(name, number, component, version) if component else ""
    return place, f"{named}: {part}" if part and part != named else named


def _mark(places: dict[tuple[str, int, int], Place], profile: Profile) -> None:
    """Say at each place what is read from it."""
    readers: dict[tuple[str, int], list[tuple[int, str]]] = defaultdict(list)
    for key, expression in profile.fields.items():
        for one in expression.places:
            readers[(one.segment, one.field)].append((one.component or 0, key))
    for (segment, number, component), place in places.items():
        names = [
            key for wanted, key in readers.get((segment, number), ())
            if wanted in (0, component) or component == 0 and wanted == 1
        ]  # fmt: skip
        place.read_as = tuple(dict.fromkeys([*names, *_ALWAYS.get((segment, number), ())]))


# What is read without a key of the profile: the patient, what an order wants, texts.
_ALWAYS: dict[tuple[str, int], tuple[str, ...]] = {
    ("PID", 5): ("patient_name",), ("PID", 7): ("patient_birth_date",), ("PID", 8): ("patient_sex",),
    ("PID", 11): ("patient_address",), ("PID", 13): ("telephone",), ("ORC", 1): ("order control",),
    ("ORC", 5): ("order status",), ("PV1", 2): ("patient_class",), ("PV1", 3): ("current_patient_location",),
    ("PV1", 7): ("attending_physician_name",), ("MRG", 1): ("prior identifiers",), ("NTE", 3): ("comments",),
    ("MSH", 3): ("source",), ("MSH", 4): ("source",), ("MSH", 9): ("message type",), ("MSH", 10): ("control id",),
    ("MSH", 11): ("processing id",), ("MSH", 12): ("version",), ("MSH", 15): ("acknowledgment",),
    ("MSH", 16): ("acknowledgment",), ("MSH", 18): ("character set",), ("PV1", 44): ("admitted_at",),
    ("PV1", 45): ("discharged_at",),
}  # fmt: skip


def _by_segment(places: Mapping[tuple[str, int, int], Place]) -> list[tuple[str, int, list[Place]]]:
    by_name: dict[str, list[Place]] = {}
    for key in sorted(places, key=lambda k: (_RANK.get(k[0], 50), k)):
        by_name.setdefault(key[0], []).append(places[key])
    return [(name, some[0].of, some) for name, some in by_name.items()]


_ORDER = "MSH EVN PID PD1 PV1 PV2 MRG ORC OBR TQ1 IPC ZDS SCH AIS"
_RANK = {name: rank for rank, name in enumerate(_ORDER.split())}


# --------------------------------------------------------------------------------------------- our attributes


def _scopes(messages: list[Message], profile: Profile) -> list[Scope]:
    """One scope an order."""
    found: list[Scope] = []
    for message in messages:
        if message.message_type in _ORDERS:
            try:
                found += [g.scope for g in orders.groups(Head(message, profile, now())) if not g.foreign]
            except Refused:
                continue
    return found


def _attributes(messages: list[Message], profile: Profile) -> Iterator[Attribute]:
    scopes = _scopes(messages, profile)
    people = [Scope(Head(m, profile, now()), m.segments) for m in messages if m.first("PID")]
    visits = [Scope(Head(m, profile, now()), m.segments) for m in messages if m.message_type == "SIU"]
    for key in FIELDS:
        of = people if key in ("patient_identifiers", "admission_id") else scopes
        if key.startswith("appointment_"):
            of = visits
        if not of:
            continue
        where = Counter(str(hit[1]) for scope in of if (hit := scope.filled(key)))
        expression = profile.fields[key]
        found = sum(where.values()) if not expression.constant else len(of)
        need = "required" if key in REQUIRED else "used" if key in USED else "optional"
        looked = ", ".join(str(p) for p in expression.places)
        yield Attribute(key, found, len(of), where.most_common(4), looked, need, USED.get(key, ""))


def _refusals(messages: list[Message], profile: Profile) -> list[tuple[str, int]]:
    """What could not even be translated by this profile (whether it could be applied only the data would tell)."""
    from integration.hl7v2 import translate

    why: Counter[str] = Counter()
    for message in messages:
        try:
            head = Head(message, profile, now())
            translate.check_header(message, head)
            translate.translate(head)
        except Refused as refusal:
            why[f"{refusal.problem.text} {refusal.problem.location or ''}".strip()] += 1
    return why.most_common(10)


# ----------------------------------------------------------------------------------------------- proposing

_TERMS = (  # defined terms of Modality (0008,0060), PS3.3 section C.7.3.1.1.1
    "AR AU BI BMD CR CT DG DOC DX ECG EPS ES GM HC HD IO IVOCT IVUS KO LS MG MR NM OAM OCT OP OPM OPT OPV OT PR PT PX"
    " REG RESP RF RG RTDOSE RTIMAGE RTPLAN RTRECORD RTSTRUCT SEG SM SMR SR SRF TG US VA XA XC"
)
_MODALITIES = frozenset(_TERMS.split())
# What departments write for them.
_SAID_FOR = {
    "XR": "DX", "X-RAY": "DX", "XRAY": "DX", "RX": "DX", "RAD": "DX", "DR": "DX", "RO": "DX", "MRI": "MR", "MRT": "MR",
    "NMR": "MR", "IRM": "MR", "RM": "MR", "CAT": "CT", "TC": "CT", "SCAN": "CT", "KT": "CT", "SONO": "US", "ULT": "US",
    "ULTRASOUND": "US", "RUS": "US", "VUS": "US", "OUS": "US", "ECHO": "US", "MAMMO": "MG", "MAM": "MG", "MAMO": "MG",
    "FL": "RF", "FLUORO": "RF", "DF": "RF", "NUC": "NM", "NMS": "NM", "NUK": "NM", "PET": "PT", "PETCT": "PT",
    "ANGIO": "XA", "AN": "XA", "IR": "XA", "CATH": "XA", "DEXA": "BMD", "DXA": "BMD", "BD": "BMD",
}  # fmt: skip
_SEXES = {
    "MALE": "M",
    "FEMALE": "F",
    "1": "M",
    "2": "F",
    "W": "F",
    "H": "M",
    "OTHER": "O",
    "UNKNOWN": "",
    "9": "",
}
_PRIORITIES = {
    "1": "STAT", "2": "HIGH", "3": "ROUTINE", "U": "HIGH", "URGENT": "HIGH", "E": "STAT", "EMERGENCY": "STAT",
    "N": "ROUTINE", "NORMAL": "ROUTINE", "ELECTIVE": "ROUTINE", "L": "LOW", "LOW": "LOW", "H": "HIGH", "HIGH": "HIGH",
    "NOTFALL": "STAT",
}  # fmt: skip
_CONTROLS = {
    "NEW": "NW",
    "CANCEL": "CA",
    "CHANGE": "XO",
    "UPDATE": "XO",
    "UP": "XO",
    "DEL": "CA",
    "N": "NW",
    "C": "CA",
}
_STARTS = ("OBR-36", "OBR-27.4", "ORC-7.4", "TQ1-7", "ORC-15", "OBR-6", "OBR-7", "OBR-8", "ZDS-2")


def _proposals(
    messages: list[Message], places: Mapping[tuple[str, int, int], Place], found: Findings
) -> Iterator[Proposal]:
    scopes = _scopes(messages, DEFAULT)
    yield from _of_charset(messages)
    yield from _of_accession(scopes)
    yield from _of_start(scopes)
    yield from _of_identifiers(messages)
    for key, value, why in _of_tables(messages, scopes, found):
        yield Proposal(key, value, why)
    trial = {m.processing_id for m in messages} - {"", "P"}
    if trial:
        yield Proposal(
            "processing_ids", sorted({m.processing_id for m in messages if m.processing_id}),
            f"Some messages say {', '.join(sorted(trial))} in MSH-11; a live site applies only P otherwise.",
        )  # fmt: skip


def _of_charset(messages: list[Message]) -> Iterator[Proposal]:
    undeclared = [m for m in messages if not m.header.field(18) and not m.raw.isascii()]
    legacy = [m for m in undeclared if m.charset != "UNICODE UTF-8"]
    if legacy:
        guess = _codec_guess(legacy)
        yield Proposal(
            "charset", guess, f"{len(legacy)} messages declare no character set and are not UTF-8."
        )
    wrong = [m for m in messages if m.header.field(18) and m.charset == "UNICODE UTF-8"]
    lying = [m for m in wrong if charsets.canonical(m.header.field(18).split("~")[0]) != "UNICODE UTF-8"]
    lying = [m for m in lying if not m.raw.isascii()]
    if lying and len(lying) == sum(1 for m in messages if not m.raw.isascii()):
        said = Counter(m.header.field(18) for m in lying).most_common(1)[0][0]
        yield Proposal("force_charset", "UNICODE UTF-8", f"All say {said} in MSH-18, and all are UTF-8.")


def _codec_guess(messages: list[Message]) -> str:
    """cp1252, or another set in which these bytes make more letters and fewer signs."""

    def oddness(codec: str) -> int:
        try:
            text = b"".join(m.raw for m in messages[:200]).decode(codec)
        except UnicodeDecodeError:
            return 10**9
        high = [c for c in text if ord(c) > 127]
        mixed = sum(1 for a, b in re.findall(r"(\w)(\w)", text) if (ord(a) > 0x36F) != (ord(b) > 0x36F))
        return sum(1 for c in high if not c.isalpha()) * 3 + mixed

    return min(
        ("cp1252", "8859/2", "8859/5", "8859/7", "8859/9"),
        key=lambda name: (oddness(_codec(name)), name != "cp1252"),
    )


def _codec(name: str) -> str:
    known = charsets.canonical(name)
    return charsets.SETS[known][0] if known else name


def _of_accession(scopes: list[Scope]) -> Iterator[Proposal]:
    if not scopes or any(s.filled("accession_number") for s in scopes):
        return
    for place in ("OBR-3.1", "ORC-3.1", "OBR-20", "OBR-19", "OBR-2.1", "ORC-2.1"):
        values = [_at(s, place) for s in scopes]
        if all(values) and all(len(v) <= 16 for v in values) and len(set(values)) > len(values) // 2:
            word = {"3": "filler", "2": "placer"}.get(place[4:5], "")
            yield Proposal(
                "accession_number", f"{place}, make",
                f"No order has IPC-1 or OBR-18. {place} ({word or 'a'} number) is always there, differs, and fits.",
            )  # fmt: skip
            return


def _of_start(scopes: list[Scope]) -> Iterator[Proposal]:
    if not scopes or any(s.filled("start") for s in scopes):
        return
    for place in _STARTS:
        values = [v for s in scopes if (v := _at(s, place))]
        if len(values) * 5 >= len(scopes) * 4 and all(_is_time(v) for v in values):
            yield Proposal(
                "start", f"{FIELDS['start']}, {place}",
                f"No order has a start where we look; {place} holds a time in {len(values)} of {len(scopes)}.",
            )  # fmt: skip
            return


def _of_identifiers(messages: list[Message]) -> Iterator[Proposal]:
    pids = [m.first("PID") for m in messages if m.first("PID")]
    authorities = Counter(a for p in pids for a in _authorities(p))
    if pids and not authorities:
        facilities = Counter(m.sending_facility or m.sending_application for m in messages).most_common(1)
        if facilities and facilities[0][0]:
            yield Proposal(
                "default_authority", facilities[0][0],
                "No patient identifier names its authority (CX-4); the sending facility stands for it.",
            )  # fmt: skip
    elif len(authorities) > 1:
        first = Counter(a for p in pids if (a := p.value(3, 4) or p.value(3, 4, 1, 2))).most_common(1)
        if first:
            yield Proposal(
                "primary_authority", first[0][0],
                f"{len(authorities)} authorities give identifiers; this one stands first in most messages.",
            )  # fmt: skip


def _authorities(pid: Segment) -> Iterator[str]:
    for repetition in range(1, len(pid.repetitions(3)) + 1):
        found = pid.value(3, 4, repetition) or pid.value(3, 4, repetition, 2)
        if found:
            yield found


def _of_tables(
    messages: list[Message], scopes: list[Scope], found: Findings
) -> Iterator[tuple[str, dict[str, str], str]]:
    """Codes that the standard's tables do not have, each with what it probably means."""
    seen = {
        "control_table": (
            Counter(_at(s, "ORC-1") for s in scopes),
            set(tables.ORDER_CONTROL),
            _CONTROLS,
            "ORC-1",
        ),
        "status_table": (Counter(_at(s, "ORC-5") for s in scopes), set(tables.ORDER_STATUS), {}, "ORC-5"),
        "modality_table": (
            Counter(s.value("modality").upper() for s in scopes),
            _MODALITIES,
            _SAID_FOR,
            "OBR-24",
        ),
        "priority_table": (
            Counter(s.value("priority") for s in scopes),
            set(tables.PRIORITY) | {"STAT", "HIGH", "ROUTINE", "MEDIUM", "LOW"},
            _PRIORITIES,
            "TQ1-9",
        ),
        "sex_table": (Counter(m.first("PID").value(8) for m in messages), set(tables.SEX), _SEXES, "PID-8"),
    }
    for key, (values, known, guesses, place) in seen.items():
        foreign = {v: n for v, n in values.most_common() if v and v not in known and v.upper() not in known}
        table = {v: guesses[v.upper()] for v in foreign if v.upper() in guesses}
        found.codes += [(key, v, n, guesses.get(v.upper(), "")) for v, n in list(foreign.items())[:20]]
        if table:
            said = ", ".join(f"{k} → {v or 'empty'}" for k, v in table.items())
            yield key, table, f"{place} holds codes of their own: {said}. Look them over."


def _at(scope: Scope, place: str) -> str:
    name, _, rest = place.partition("-")
    number, _, component = rest.partition(".")
    segment = scope.segment(name)
    return str(segment.value(int(number), int(component or 1))).strip() if segment else ""


def _is_time(text: str) -> bool:
    try:
        return len(text) >= 8 and parse_time(text) is not None
    except TimestampError:
        return False
