"""What all messages we send have in common: header, patient, visit, order, and the check before they are kept.

The composers take `facts`, the plain values that integration/outbox.py froze with the fact, and a destination,
whose settings (integration/destinations.py) say how it wants to be spoken to.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import hl7

from common.clock import to_site
from common.names import PersonName, parse_pn
from integration.destinations import setting
from integration.hl7v2 import charsets, composing, escapes
from integration.hl7v2.errors import Refused
from integration.hl7v2.names import write_cnn, write_xcn, write_xpn
from integration.hl7v2.reading import NULL, Message, parse
from integration.hl7v2.separators import Separators, read_separators
from integration.hl7v2.tables import structure_of
from integration.hl7v2.timestamps import Precision, format_time
from integration.models import Destination

Segments = list[tuple[str, dict[int, Any]]]

# Versions of which hl7apy 1.3.5 can pass a right message of the structure (reference: it never passes ORM_O01).
_HL7APY_PASSES = {"ORU_R01": ("2.4", "2.5", "2.5.1", "2.6")}


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
    from common.models import Site

    facility = setting(destination, "sending_facility")
    if not facility:
        site = Site.objects.filter(pk=1).only("name").first()
        facility = site.name if site else "Orderly"
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
            16: "NE" if enhanced else "",
            17: setting(destination, "country"),
            18: style.charset if style.charset != "ASCII" else "",
        },
    )


def pid(patient: Mapping[str, Any]) -> tuple[str, dict[int, Any]]:
    """PID: identifiers, name, birth date, sex (chapter 3.4.2)."""
    return (
        "PID",
        {
            1: "1",
            3: [_cx(i) for i in patient["identifiers"]],
            5: write_xpn(parse_pn(patient["name"])) or None,
            7: patient["birth_date"],
            8: patient["sex"],
        },
    )


def pv1(visit: Mapping[str, Any], order: Mapping[str, Any], style: Style) -> tuple[str, dict[int, Any]]:
    """PV1: class, place, referring physician and visit number (chapter 3.4.3)."""
    return (
        "PV1",
        {
            1: "1",
            2: visit["patient_class"] or "U",
            3: tuple(visit["location"].split("^")),
            8: xcn(order["referring_id"], order["referring"], style),
            19: (visit["admission_id"], "", "", visit["issuer"]),
        },
    )


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
    if len(hl7.parse(read.text, encoding="utf-8")) != len(segments):
        raise ComposeError("python-hl7 reads another number of segments than were composed.")
    structure = read.header.value(9, 3)
    if read.version in _HL7APY_PASSES.get(structure, ()) and len(style.separators.msh_2) == 4:
        _conforms(read.text)


def _conforms(text: str) -> None:
    """hl7apy's own validation of structure, cardinality and data types."""
    from hl7apy.exceptions import HL7apyException
    from hl7apy.parser import parse_message

    try:
        parse_message(text, find_groups=True).validate()
    except HL7apyException as error:
        raise ComposeError(
            f"hl7apy finds it not conformant ({type(error).__name__}): {_named(error)}"
        ) from None


def _named(error: Exception) -> str:
    """The error's text if it only names elements; a text that may quote a value is left out."""
    text = str(error)
    return (
        text
        if text.startswith(("Missing required child", "Invalid children", "Child limit exceeded"))
        else ""
    )


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


def _cx(identifier: Mapping[str, Any]) -> tuple[Any, ...]:
    authority = (identifier["namespace"], identifier["universal_id"], identifier["universal_id_type"])
    return (identifier["value"], "", "", authority, identifier["type_code"])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
