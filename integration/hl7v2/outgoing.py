"""What all messages we send have in common: header, patient, visit, order, and the check before they are kept.

The composers take `facts`, the plain values that integration/outbox.py froze with the fact, and a destination,
whose settings (integration/destinations.py) say how it wants to be spoken to.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import hl7

from common.clock import to_site
from common.names import PersonName, parse_pn
from integration.destinations import setting
from integration.hl7v2 import charsets, composing, conformance, escapes
from integration.hl7v2.errors import Refused
from integration.hl7v2.names import write_cnn, write_xcn, write_xpn
from integration.hl7v2.reading import NULL, Message, parse
from integration.hl7v2.separators import Separators, read_separators
from integration.hl7v2.tables import structure_of
from integration.hl7v2.timestamps import Precision, format_time
from integration.models import Destination

Segments = list[tuple[str, dict[int, Any]]]

# Where our ids stand in ORC and OBR, unless the destination's `ids` say otherwise.
_PLACES = {
    "placer": "ORC-2 OBR-2",
    "filler": "ORC-3 OBR-3",
    "procedure": "OBR-19",
    "step": "OBR-20",
    "study": "",
}
_PLACE = re.compile(r"(ORC|OBR)-([1-9][0-9]?)")
_EI_FIELDS = {("ORC", 2), ("ORC", 3), ("ORC", 4), ("OBR", 2), ("OBR", 3)}


class Payload(str):
    """The Base64 text of a document: hl7apy, slow on megabytes, is shown a placeholder for it."""

    __slots__ = ()


class ComposeError(Exception):
    """A message cannot be composed as its destination wants it; a person must change facts or settings.

    The text names segments, fields and settings, never a patient's data.
    """


@dataclass(frozen=True, slots=True)
class Style:
    """How one destination wants its messages written."""

    separators: Separators
    charset: str
    version: str
    provider_authority: str

    def at_least(self, version: str) -> bool:
        """Whether the destination's version is this one or newer."""
        return _numbers(self.version) >= _numbers(version)


def style_of(destination: Destination) -> Style:
    """The style in a destination's settings. Raises ComposeError for settings that make no style."""
    said = str(setting(destination, "separators"))
    try:
        separators = read_separators(said[:1], said[1:])
    except Refused as refused:
        raise ComposeError(f"Setting `separators` of {destination.name}: {refused}") from None
    charset = str(setting(destination, "charset"))
    if charset and not charsets.canonical(charset):
        raise ComposeError(f"Setting `charset` of {destination.name} is no name of table 0211.")
    return Style(
        separators, charset, destination.version or "2.5.1", str(setting(destination, "provider_authority"))
    )


def header(destination: Destination, style: Style, kind: str, event: str, control_id: str, at: str) -> Any:
    """MSH (chapter 2.15.9). `at` is the instant of the fact, ISO 8601: the same bytes whenever it is composed."""
    facility = facility_of(destination)
    structure = structure_of(kind, event) if style.at_least("2.3.1") else ""
    enhanced = bool(setting(destination, "enhanced"))
    return (
        "MSH",
        {
            3: setting(destination, "sending_application"),
            4: facility,
            5: setting(destination, "receiving_application"),
            6: setting(destination, "receiving_facility"),
            7: instant(at),
            9: (kind, event, structure),
            10: control_id,
            11: setting(destination, "processing_id"),
            12: style.version,
            15: "AL" if enhanced else "",
            16: ("AL" if setting(destination, "application_ack") else "NE") if enhanced else "",
            17: setting(destination, "country"),
            18: style.charset if style.charset != "ASCII" else "",
        },
    )


def facility_of(destination: Destination) -> str:
    """Who speaks, MSH-4: the destination's own word for us, else the site's name."""
    from common.models import Site

    facility = str(setting(destination, "sending_facility"))
    if not facility:
        site = Site.objects.filter(pk=1).only("name").first()
        facility = site.name if site else "Orderly"
    return facility


def evn(at: str, style: Style, event: str) -> tuple[str, dict[int, Any]]:
    """EVN: when it happened (chapter 3.4.1); EVN-1 only for versions that still have it."""
    return ("EVN", {1: "" if style.at_least("2.7") else event, 2: instant(at)})


def pid(patient: Mapping[str, Any]) -> tuple[str, dict[int, Any]]:
    """PID: identifiers, name, birth date, sex (chapter 3.4.2)."""
    return (
        "PID",
        {
            1: "1",
            3: [cx(i) for i in patient["identifiers"]],
            5: write_xpn(parse_pn(patient["name"])) or None,
            7: patient["birth_date"],
            8: patient["sex"],
        },
    )


def pv1(
    visit: Mapping[str, Any] | None, order: Mapping[str, Any] | None, style: Style
) -> tuple[str, dict[int, Any]]:
    """PV1: class, place, referring physician and visit number (chapter 3.4.3); class U where no visit is known."""
    fields: dict[int, Any] = {1: "1", 2: (visit["patient_class"] if visit else "") or "U"}
    if visit:
        fields[3] = tuple(visit["location"].split("^"))
        fields[19] = (visit["admission_id"], "", "", visit["issuer"], "VN") if visit["admission_id"] else None
    if order:
        fields[8] = xcn(order["referring_id"], order["referring"], style)
    return ("PV1", fields)


def place_ids(
    facts: Mapping[str, Any],
    destination: Destination,
    orc: dict[int, Any],
    obr: dict[int, Any],
    procedure: Mapping[str, Any] | None = None,
) -> Segments:
    """Write the numbers of an order into ORC and OBR where the destination wants them; returns a ZDS if it wants one.

    Raises ComposeError for a place that is none.
    """
    placer, filler = numbers(facts, destination)
    order, own = facts["order"], procedure or facts["procedure"]
    accession = (order["accession"], order["accession_issuer"]) if order["accession"] else None
    values = {
        "accession": accession,
        "placer": placer,
        "filler": filler,
        "procedure": (own["requested_procedure_id"],),
        "step": (facts.get("step_id", "") if procedure is None else "",),
        "study": (own.get("study_instance_uid", ""),),
    }
    usual = {"accession": "OBR-18" if setting(destination, "accession") == "OBR-18" else "", **_PLACES}
    said = setting(destination, "ids")
    if unknown := set(said) - set(values):
        raise ComposeError(
            f"Setting `ids` of {destination.name} names {min(unknown)}, which is no id of ours."
        )
    zds = False
    for name, value in values.items():
        for place in str(said.get(name, usual[name])).split():
            if place == "ZDS" and name == "study":
                zds = True
                continue
            found = _PLACE.fullmatch(place)
            if not found:
                raise ComposeError(f"Setting `ids` of {destination.name}: {place} is no field of ORC or OBR.")
            segment, number = found[1], int(found[2])
            if value:
                fields = orc if segment == "ORC" else obr
                fields[number] = value if (segment, number) in _EI_FIELDS else value[0]
    uid = values["study"][0]
    return [("ZDS", {1: (uid, "", "Application", "DICOM")})] if zds and uid else []


def numbers(facts: Mapping[str, Any], destination: Destination) -> tuple[Any, Any]:
    """Placer and filler order number (EI), the filler as the destination wants it."""
    order = facts["order"]
    placer = (order["placer"], order["placer_issuer"]) if order["placer"] else None
    filler = (order["filler"], order["filler_issuer"]) if order["filler"] else None
    wants_accession = (
        setting(destination, "filler") == "accession" or setting(destination, "accession") == "OBR-3"
    )
    if order["accession"] and (wants_accession or filler is None):
        filler = (order["accession"], order["accession_issuer"])
    return placer, filler


def service(procedure: Mapping[str, Any]) -> tuple[str, str, str]:
    """OBR-4: code, text, system of the procedure."""
    text = procedure["meaning"] or procedure["description"]
    return (procedure["code_value"], text, procedure["scheme"])


def xcn(identifier: str, name: str, style: Style) -> Any:
    """A physician as XCN, or None when nobody is named."""
    if not identifier and not name:
        return None
    return write_xcn(identifier, parse_pn(name), style.provider_authority)


def cnn(identifier: str, name: str) -> Any:
    """A person as the CM/NDL of OBR-32 to 35, or None when nobody is named."""
    person: PersonName = parse_pn(name)
    return write_cnn(identifier, person) if identifier or person else None


def instant(text: str | None) -> str:
    """An ISO 8601 instant as HL7 writes it: on the site's clock with offset; a date or a zoneless time as it is."""
    if not text:
        return ""
    if len(text) == 10:
        return date.fromisoformat(text).strftime("%Y%m%d")
    moment = datetime.fromisoformat(text)
    return format_time(to_site(moment) if moment.tzinfo else moment, Precision.SECOND)


def encode(segments: Segments, style: Style) -> bytes:
    """The bytes of a message, checked. Raises ComposeError when what was written is not what would be read."""
    raw = composing.message(segments, style.separators, style.charset)
    check(raw, segments, style)
    return raw


def check(raw: bytes, segments: Segments, style: Style) -> None:
    """Read the bytes back with our parser, python-hl7 and, where it can pass, hl7apy. Raises ComposeError."""
    try:
        read = parse(raw)
    except Refused as refused:
        raise ComposeError(f"The composed message cannot be read back: {refused}") from None
    _compare(read, segments, style)
    _read_by_python_hl7(read.text, len(segments))
    if conformance.can_check(read.header.value(9, 3), read.version) and len(style.separators.msh_2) == 4:
        # Z segments are nobody's but ours and the receiver's: hl7apy loses its groups over them.
        short = [(name, _without_payload(fields)) for name, fields in segments if name[0] != "Z"]
        text = composing.message(short, style.separators, "UNICODE UTF-8").decode()
        if fault := conformance.fault(text):
            raise ComposeError(f"hl7apy finds it not conformant: {fault}")


def _read_by_python_hl7(text: str, segments: int) -> None:
    try:
        found = len(hl7.parse(text, encoding="utf-8"))
    except Exception as error:
        raise ComposeError(f"python-hl7 cannot read what was composed ({type(error).__name__}).") from None
    if found != segments:
        raise ComposeError("python-hl7 reads another number of segments than were composed.")


def _without_payload(fields: Mapping[int, Any]) -> dict[int, Any]:
    return {
        number: tuple("QUJD" if isinstance(part, Payload) else part for part in value)
        if isinstance(value, tuple)
        else value
        for number, value in fields.items()
    }


def _compare(read: Message, segments: Segments, style: Style) -> None:
    if [s.name for s in read.segments] != [name for name, _ in segments]:
        raise ComposeError("The segments read back are not those that were composed.")
    fitted = _fitter(style)
    for segment, (name, fields) in zip(read.segments, segments, strict=True):
        for number, value in fields.items():
            for place, leaf in _leaves(value):
                said = segment.value(number, place[1], place[0], place[2])
                if said != fitted(leaf):
                    where = "-".join(str(n) for n in (number, place[1]))
                    raise ComposeError(f"{name}-{where} does not read back as it was composed.")


def _leaves(value: Any) -> Sequence[tuple[tuple[int, int, int], str]]:
    """Every single value of a field with its place: repetition, component, subcomponent."""
    found = []
    for r, repetition in enumerate(value if isinstance(value, list) else [value], start=1):
        for c, component in enumerate(
            repetition if isinstance(repetition, tuple) else (repetition,), start=1
        ):
            for s, leaf in enumerate(component if isinstance(component, tuple) else (component,), start=1):
                if leaf is not None and leaf is not NULL:
                    found.append(((r, c, s), leaf))
    return found


def _fitter(style: Style) -> Callable[[Any], str]:
    """What a value reads as after it was written in the destination's character set."""
    name = style.charset or "ASCII"
    codec = charsets.SETS[charsets.canonical(name)][0]

    def fitted(leaf: Any) -> str:
        if isinstance(leaf, composing.Encoded):
            return escapes.unescape(str(leaf), style.separators)
        return charsets.encode(str(leaf), name).decode(codec)

    return fitted


def cx(identifier: Mapping[str, Any]) -> tuple[Any, ...]:
    """A patient's identifier as CX: value, authority, type."""
    authority = (identifier["namespace"], identifier["universal_id"], identifier["universal_id_type"])
    return (identifier["value"], "", "", authority, identifier["type_code"])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
