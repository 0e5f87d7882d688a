"""Sources as data: who may send, which field holds what, and how gaps and oddities are handled.

A profile is a flat table (site.toml `[[source]]`, `Source.profile`): keys of FIELDS say where a value stands, as
alternatives of which the first filled one counts (`OBR-18, IPC-1, make`); keys of POLICIES choose a behaviour or
map local codes. docs/hl7.md is generated from these two tables.
"""

import ipaddress
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from django.utils.functional import cached_property

from common.clock import site_zone
from integration.hl7v2 import charsets, tables
from integration.hl7v2.errors import Refused
from integration.hl7v2.reading import Message as Parsed
from integration.hl7v2.reading import header_of, parse
from integration.hl7v2.separators import Separators, read_separators
from integration.models import Source


class ProfileError(ValueError):
    """A profile cannot be used; `key` is at fault, the text says what is allowed."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(f"{key}: {text}")
        self.key = key


# -- which field holds what ------------------------------------------------------------------------------

_WORDS = ("make", "placer", "filler", "refuse", "none")
_PLACE = re.compile(
    r"(?P<segment>[A-Z][A-Z0-9]{2})(?:\[(?P<selector>[^\]]{1,60})\])?-(?P<field>[1-9]\d{0,2})"
    r"(?:\.(?P<component>[1-9]\d?))?(?:\.(?P<subcomponent>[1-9]\d?))?\Z"
)
_ALTERNATIVE = re.compile(r"'[^']*'|[^,|']+")


@dataclass(frozen=True, slots=True)
class Place:
    """A place such as `OBR-4.5`; with a selector (`OBX[8302-2]-5`) the OBX whose OBX-3 holds that text."""

    segment: str
    field: int
    component: int | None = None
    subcomponent: int | None = None
    selector: str = ""

    def __str__(self) -> str:
        text = f"{self.segment}[{self.selector}]" if self.selector else self.segment
        text += f"-{self.field}"
        if self.component:
            text += f".{self.component}"
        return f"{text}.{self.subcomponent}" if self.subcomponent else text


@dataclass(frozen=True, slots=True)
class Expression:
    """Alternatives in their order, the word that ends them (what to do when all are empty), or a constant."""

    places: tuple[Place, ...]
    word: str = ""
    constant: str = ""


# Attribute → where it stands, by reference to IHE RAD TF-2 appendix B: ORM 2.3.1 and OMG, OMI 2.5.1.
FIELDS: dict[str, str] = {
    # keys
    "patient_identifiers": "PID-3, PID-2, PID-4",
    "placer_order_number": "ORC-2, OBR-2",
    "filler_order_number": "ORC-3, OBR-3",
    "placer_group_number": "ORC-4",
    "accession_number": "IPC-1, OBR-18, make",
    "requested_procedure_id": "IPC-2, OBR-19",
    "study_instance_uid": "IPC-3, ZDS-1",
    "scheduled_procedure_step_id": "IPC-4, OBR-20",
    # step
    "modality": "IPC-5, OBR-24",
    "protocol_code": "IPC-6, OBR-4.4",
    "scheduled_procedure_step_description": "IPC-6.2, OBR-4.5",
    "scheduled_station_name": "IPC-7",
    "scheduled_procedure_step_location": "IPC-8",
    "scheduled_station_ae_title": "IPC-9, ORC-18",
    "start": "TQ1-7, ORC-7.4, OBR-27.4, OBR-36",
    "scheduled_performing_physician_name": "OBR-34",
    "minutes": "TQ1-6.1",
    # procedure
    "procedure_code": "OBR-44, OBR-4",
    "priority": "TQ1-9, ORC-7.6, OBR-27.6, OBR-5",
    "reason": "OBR-31",
    "patient_transport_arrangements": "OBR-30",
    # order
    "requesting_physician": "OBR-16, ORC-12",
    "referring_physician_name": "PV1-8",
    "requesting_service": "ORC-13.9",
    "institution_name": "ORC-21, ORC-17.2",
    "institution_address": "ORC-22",
    "confidentiality_code": "ORC-28.2, ORC-28.1",
    "order_callback_phone_number": "ORC-14",
    "order_entered_by": "ORC-10",
    "placed_at": "ORC-9",
    # what the order says of the patient's state
    "patient_state": "OBR-12",
    "medical_alerts": "OBR-13",
    "pregnancy_status": "PV1-15",
    "patient_weight": "OBX[Body Weight]-5, OBX[29463-7]-5, OBX[3141-9]-5",
    "patient_size": "OBX[Body Height]-5, OBX[8302-2]-5, OBX[3137-7]-5",
    # visit
    "admission_id": "PV1-19, PID-18",
    # appointments (SIU)
    "appointment_placer_order": "SCH-26, SCH-1",
    "appointment_filler_order": "SCH-27, SCH-2",
    "appointment_accession": "none",
    "appointment_start": "AIS-4, AIL-6, AIP-6, TQ1-7, SCH-11.4",
    # reports
    "reported_at": "OBR-22",
    # how old the facts are, where MSH-7 says when the message was made at all
    "facts_at": "EVN-2, MSH-7",
    "order_facts_at": "ORC-9, MSH-7",
}


# -- how gaps and oddities are handled -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Policy:
    """One key of a profile that is no field: its default, what it may be, and what it means."""

    default: Any
    allowed: tuple[Any, ...] | type
    note: str


POLICIES: dict[str, Policy] = {
    "policy": Policy("applied", ("applied", "stored"), "AA after the message is applied, or once it is stored"),
    "unknown_type": Policy("keep", ("keep", "refuse"), "a type we do not apply: kept (AA), or refused (AR 200/201)"),
    "results": Policy("keep", ("keep", "file"), "reports (ORU, MDM): kept, or filed as versions of the order's report"),
    "unknown_order": Policy("refuse", ("refuse", "create", "ignore"), "change or cancel of an order nobody knows"),
    "missing_start": Policy("wait", ("wait", "now"), "an order without a start waits for a clerk, or is now"),
    "null": Policy("delete", ("delete", "ignore"), 'what `""` means'),
    "empty": Policy("keep", ("keep", "delete"), "what an empty field in an ADT means; `delete` for full-state feeds"),
    "reused_control_id": Policy("warn", ("warn", "refuse"), "an MSH-10 seen before with other content"),
    "charset": Policy("cp1252", str, "the set of bytes that declare none and are not UTF-8"),
    "force_charset": Policy("", str, "the set, whatever MSH-18 says"),
    "separators": Policy("", str, r"MSH-2 as this source means it, like ^~\&, whatever it says; empty: as it says"),
    "timezone": Policy("", str, "the zone of times that name none, like Europe/Berlin; empty: the site's"),
    "processing_ids": Policy([], list, "MSH-11 that are applied; empty: all, on a live site P only"),
    "default_authority": Policy("", str, "the authority of identifiers that name none"),
    "primary_authority": Policy("", str, "the authority whose identifier lists and worklist show"),
    "ignored_identifier_types": Policy(["AN", "VN"], list, "CX-5 of identifiers that are no person's"),
    "arrived_events": Policy(["A10"], list, "ADT events that say that the patient is here"),
    "certificate_sha256": Policy("", str, "the fingerprint of the only TLS certificate it may show"),
    "max_kb": Policy(0, int, "the longest message in kB; a longer one gets AR 207; 0: the listener's own bound"),
    "per_minute": Policy(0, int, "most messages a minute, over all its connections; what is more waits; 0: any"),
    "idle_seconds": Policy(0, int, "a connection silent for so long is closed; 0: the listener's own bound"),
    "order_answers": Policy("ack", ("ack", "full"), "answer orders by an ACK, or by ORR, ORG, ORI"),
    "control_table": Policy({}, dict, "local ORC-1 → one of table 0119"),
    "status_table": Policy({}, dict, "local ORC-5 → one of table 0038"),
    "modality_table": Policy({}, dict, "local modality → DICOM's"),
    "priority_table": Policy({}, dict, "local priority → STAT HIGH ROUTINE MEDIUM LOW"),
    "sex_table": Policy({}, dict, "local sex → M F O or empty"),
    "station_table": Policy({}, dict, "local station → AE title"),
}  # fmt: skip

PROFILE_KEYS = frozenset(FIELDS) | frozenset(POLICIES)


_MOST_KINDS = 256
"""Sets of segments that a profile remembers its places for."""


@dataclass(frozen=True)
class Profile:
    """A profile ready for use. `name` is the source's name; `fields` holds an expression for each of FIELDS."""

    name: str
    fields: Mapping[str, Expression]
    policies: Mapping[str, Any]
    zone: ZoneInfo | None
    source_id: int | None = None
    live: bool = False
    _places: dict[frozenset[str], Mapping[str, tuple[Place, ...]]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def places(self, present: Iterable[str]) -> Mapping[str, tuple[Place, ...]]:
        """Attribute → the places worth looking at in a message with these segments, in their order.

        Messages of one kind have the same segments, and half of the alternatives are for other kinds.
        """
        named = self._segments.intersection(present)
        found = self._places.get(named)
        if found is None:
            if len(self._places) >= _MOST_KINDS:
                self._places.clear()
            found = self._places[named] = {
                key: tuple(p for p in e.places if p.segment in named) for key, e in self.fields.items()
            }
        return found

    @cached_property
    def _segments(self) -> frozenset[str]:
        """The names of the segments that any place is in."""
        return frozenset(p.segment for e in self.fields.values() for p in e.places)

    def __getitem__(self, policy: str) -> Any:
        return self.policies[policy]

    def read(self, raw: bytes, head: tuple[Separators, list[bytes]] | None = None) -> Parsed:
        """Read a message as this source means it; `head` is what `header_of` said of it. Raises Refused."""
        if self["separators"]:
            said, header = head or header_of(raw)
            head = read_separators(said.field, self["separators"]), header
        return parse(raw, self["charset"], self["force_charset"], head)

    def takes_processing_id(self, processing_id: str) -> bool:
        """Whether a message with this MSH-11 is applied here (an empty one counts as P)."""
        allowed = self["processing_ids"] or (["P"] if self.live else ["P", "T", "D"])
        return (processing_id or "P") in allowed

    def table(self, policy: str, value: str, standard: Mapping[str, str]) -> str | None:
        """A local code through the source's table, else the standard's; None when neither has it."""
        own = self.policies[policy]
        for key in (value, value.upper()):
            if key in own:
                return str(own[key])
            if key in standard:
                return standard[key]
        return None


def compile_profile(
    profile: Mapping[str, Any], name: str = "", source_id: int | None = None, live: bool = False
) -> Profile:
    """A profile made ready. Raises ProfileError for an unknown key, a value not allowed, a place that is none."""
    for key in profile:
        if key not in PROFILE_KEYS:
            raise ProfileError(key, "no such key; see docs/hl7.md")
    fields = {key: _expression(key, str(profile.get(key, default))) for key, default in FIELDS.items()}
    policies = {key: _policy(key, profile.get(key, p.default), p) for key, p in POLICIES.items()}
    zone = None
    if policies["timezone"]:
        try:
            zone = ZoneInfo(policies["timezone"])
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ProfileError("timezone", "no such time zone; write it like Europe/Berlin") from None
    for key in ("charset", "force_charset"):
        if policies[key] and not charsets.is_codec(policies[key]):
            raise ProfileError(key, "no such character set; use a name of table 0211 or of Python")
    if policies["separators"]:
        try:
            read_separators("|", policies["separators"])
        except Refused as refused:
            raise ProfileError("separators", refused.problem.text) from None
    for key, table in (("control_table", tables.ORDER_CONTROL), ("status_table", tables.ORDER_STATUS)):
        for value in policies[key].values():
            if value not in table:
                raise ProfileError(key, f"maps to {value}; allowed are {', '.join(table)}")
    return Profile(name, fields, policies, zone, source_id, live)


def check(profile: Mapping[str, Any]) -> None:
    """Raise ProfileError when the profile cannot be used."""
    compile_profile(profile)


def _policy(key: str, value: Any, policy: Policy) -> Any:
    allowed = policy.allowed
    if isinstance(allowed, type):
        if not isinstance(value, allowed):
            words = {"str": "a text", "list": "a list", "dict": "a table", "int": "a whole number"}
            raise ProfileError(key, f"must be {words[allowed.__name__]}")
        if isinstance(value, int) and (isinstance(value, bool) or value < 0):
            raise ProfileError(key, "must be a whole number, 0 or more")
    elif value not in allowed:
        raise ProfileError(key, f"must be one of {', '.join(allowed)}")
    return value


@lru_cache(maxsize=1024)
def _expression(key: str, text: str) -> Expression:
    places: list[Place] = []
    word = constant = ""
    for raw in _ALTERNATIVE.findall(text):
        part = raw.strip()
        if not part:
            continue
        if word or constant:
            raise ProfileError(key, f"nothing may follow {word or repr(constant)}")
        if part[0] == "'":
            constant = part[1:-1]
        elif part in _WORDS:
            word = part
        elif match := _PLACE.match(part):
            component, subcomponent = match["component"], match["subcomponent"]
            places.append(
                Place(
                    match["segment"],
                    int(match["field"]),
                    int(component) if component else None,
                    int(subcomponent) if subcomponent else None,
                    match["selector"] or "",
                )
            )
        else:
            raise ProfileError(
                key, f"{part!r} is no place such as OBR-18 or PID-3.1, and none of {', '.join(_WORDS)}"
            )
    return Expression(tuple(places), word, constant)


DEFAULT = compile_profile({})


# -- who sends -------------------------------------------------------------------------------------------

_KEPT_S = 5.0
_RETRY_S = 0.5
_cache: tuple[float, list[tuple[Source, Profile]]] = (0.0, [])


def all_sources() -> list[tuple[Source, Profile]]:
    """The enabled sources with their profiles; read again every few seconds.

    A source whose profile cannot be used is passed over, and so are its messages (AR): a wrong table must not
    apply orders wrongly.
    """
    global _cache
    if _cache[0] and time.monotonic() - _cache[0] <= _KEPT_S:
        return _cache[1]
    from common.models import Site

    live = Site.objects.filter(live=True).exists()
    found = []
    for source in Source.objects.filter(enabled=True):
        try:
            found.append((source, compile_profile(source.profile, source.name, source.pk, live)))
        except ProfileError:
            continue
    _cache = (time.monotonic(), found)
    return found


def profile_of(source_id: int | None) -> Profile:
    """The present profile of an enabled source, for reading what it sent before; of nobody known, the defaults."""
    return next((profile for source, profile in all_sources() if source.pk == source_id), DEFAULT)


def forget() -> None:
    """Read the sources again at the next question (after an edit, in tests)."""
    global _cache
    _cache = (0.0, [])


def find(
    application: str, facility: str, address: str, certificate_sha256: str = ""
) -> tuple[Source, Profile] | None:
    """The source of a message by MSH-3.1, MSH-4.1, the peer's address and its TLS certificate.

    `*` matches anything; the most exact source wins. None: nobody we know.
    """
    found = _find(application, facility, address, certificate_sha256)
    if found is None and time.monotonic() - _cache[0] > _RETRY_S:  # a source made just now may be asked for
        forget()
        found = _find(application, facility, address, certificate_sha256)
    return found


def _find(
    application: str, facility: str, address: str, certificate_sha256: str
) -> tuple[Source, Profile] | None:
    best: tuple[tuple[int, int, int, int], tuple[Source, Profile]] | None = None
    for source, profile in all_sources():
        distance = _address_distance(source.address, address)
        if (
            source.application not in ("*", application)
            or source.facility not in ("*", facility)
            or distance < 0
        ):
            continue
        pinned = str(profile["certificate_sha256"]).replace(":", "").lower()
        if pinned and pinned != certificate_sha256.lower():
            continue
        rank = (source.application != "*", source.facility != "*", distance, -source.pk)
        if best is None or rank > best[0]:
            best = (rank, (source, profile))  # type: ignore[assignment]
    return best[1] if best else None


def site_zone_of(profile: Profile) -> ZoneInfo:
    """The zone of the source's times that name none."""
    return profile.zone or site_zone()


@lru_cache(maxsize=4096)
def _address_distance(pattern: str, address: str) -> int:
    """How exactly an address fits: -1 not at all, 0 for `*`, else the length of the network's prefix."""
    if pattern in ("*", ""):
        return 0
    try:
        network = ipaddress.ip_network(pattern, strict=False)
        ip = ipaddress.ip_address(address.split("%")[0])
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
            ip = ip.ipv4_mapped
    except ValueError:
        return 128 if pattern == address else -1
    return network.prefixlen if ip.version == network.version and ip in network else -1
