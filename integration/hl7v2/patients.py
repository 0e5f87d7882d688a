"""Patients and visits: ADT messages, and the PID and PV1 of every other, as commands of `ris`. Pure."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from integration.hl7v2 import names, tables
from integration.hl7v2.errors import Code, Location, refuse
from integration.hl7v2.reading import NULL, Segment
from integration.hl7v2.scope import Head, Scope, clean, facts_at, instant, read_time
from integration.hl7v2.timestamps import Precision, TimestampError
from integration.hl7v2.timestamps import parse as parse_time
from ris.commands import ChangeIdentifier, Identifier, MergePatients, RegisterPatient, VisitFacts

# DICOM's LO (64 characters) holds a Patient ID; an identifier is never cut.
_ID_LIMIT = 64

# ADT events that say something of one patient and visit → what they make of the visit.
VISIT_STATUS: Mapping[str, str] = {
    "A01": "in-progress", "A02": "in-progress", "A03": "finished", "A04": "in-progress", "A05": "planned",
    "A06": "in-progress", "A07": "in-progress", "A08": "", "A09": "", "A10": "in-progress", "A11": "cancelled",
    "A12": "in-progress", "A13": "in-progress", "A14": "planned", "A15": "", "A16": "", "A25": "", "A26": "",
    "A27": "cancelled", "A28": "", "A31": "", "A38": "cancelled", "A60": "",
}  # fmt: skip
MERGES = frozenset({"A18", "A34", "A39", "A40"})


def register(head: Head, scope: Scope, *, authoritative: bool = True, event: str = "") -> RegisterPatient:
    """The patient (and visit) of a message. Raises Refused where PID cannot be used.

    `authoritative` for ADT; the PID of an order only fills gaps. `event` is the trigger event of an ADT.
    """
    pid = scope.segment("PID")
    if not pid:
        raise refuse(Code.SEGMENT_SEQUENCE, "The message has no PID segment.", Location("PID", 1))
    found = identifiers(scope)
    if not found:
        raise refuse(
            Code.REQUIRED_FIELD,
            "The message names no patient identifier.",
            scope.where("patient_identifiers"),
        )
    return RegisterPatient(
        identifiers=found,
        values=_values(head, scope, pid, authoritative),
        visit=visit(head, scope, VISIT_STATUS.get(event, "")),
        facts_at=facts_at(scope),
        authoritative=authoritative,
        arrived=event in head.profile["arrived_events"],
    )


def merges(head: Head) -> list[MergePatients]:
    """The merges of a message (A18, A34, A39, A40): each MRG belongs to the PID before it."""
    found = []
    for group in head.message.groups("PID"):
        scope = Scope(head, group)
        for mrg in scope.own.get("MRG", ()):
            prior = read_identifiers(head, mrg, 1)
            if not prior:
                raise refuse(Code.REQUIRED_FIELD, "MRG-1 names no prior identifier.", mrg.at(1))
            found.append(
                MergePatients(survivor=register(head, scope, event=head.message.trigger_event), prior=prior)
            )
    if not found:
        raise refuse(Code.SEGMENT_SEQUENCE, "A merge needs PID and MRG.", Location("MRG", 1))
    return found


def change_identifier(head: Head) -> ChangeIdentifier:
    """A47: MRG-1 becomes PID-3. Of several, the pair of the same authority."""
    scope = Scope(head, head.message.segments)
    mrg = head.message.first("MRG")
    if not mrg:
        raise refuse(Code.SEGMENT_SEQUENCE, "A change of identifier needs PID and MRG.", Location("MRG", 1))
    prior = read_identifiers(head, mrg, 1)
    if not prior:
        raise refuse(Code.REQUIRED_FIELD, "MRG-1 names no prior identifier.", mrg.at(1))
    return ChangeIdentifier(patient=register(head, scope, event="A47"), prior=prior[0])


def identifiers(scope: Scope) -> tuple[Identifier, ...]:
    """The patient's identifiers, the one to show first: the primary authority's, else type MR, else as sent."""
    for place in scope.profile.fields["patient_identifiers"].places:
        segment = scope.segment(place.segment)
        found = read_identifiers(scope.head, segment, place.field) if segment else ()
        if found:
            return found
    return ()


def read_identifiers(head: Head, segment: Segment, field: int) -> tuple[Identifier, ...]:
    """The identifiers (CX) of one field, without those that are no person's. Raises Refused (104)."""
    found = []
    ignored = head.profile["ignored_identifier_types"]
    for repetition in range(1, len(segment.repetitions(field)) + 1):
        value = clean(segment.value(field, 1, repetition))
        kind = clean(segment.value(field, 5, repetition))
        if not value or kind in ignored:
            continue
        if len(value) > _ID_LIMIT:
            raise refuse(
                Code.VALUE_TOO_LONG,
                f"A patient identifier has at most {_ID_LIMIT} characters in DICOM and is never cut.",
                segment.at(field, 1, repetition),
            )
        namespace, universal, universal_type = (
            clean(segment.value(field, 4, repetition, part)) for part in (1, 2, 3)
        )
        if not namespace and not universal:
            namespace = head.profile["default_authority"]
        found.append(Identifier(value, namespace, universal, universal_type, kind))
    return tuple(sorted(found, key=lambda i: _rank(head, i)))


def _rank(head: Head, identifier: Identifier) -> int:
    primary = head.profile["primary_authority"]
    if primary and primary in (identifier.namespace, identifier.universal_id):
        return 0
    return 1 if identifier.type_code == "MR" else 3 if identifier.type_code in ("SS", "DL", "PPN") else 2


def visit(head: Head, scope: Scope, status: str = "") -> VisitFacts | None:
    """The visit of PV1; None without an admission id, for then nothing tells visits apart."""
    found = scope.filled("admission_id")
    if found is None:
        return None
    segment, place = found
    admission_id = scope.value("admission_id")
    if not admission_id:
        return None
    pv1 = scope.segment("PV1")
    values: dict[str, Any] = {}
    if status:
        values["status"] = status
    if pv1:
        _put(head, values, "patient_class", pv1, 2, clean(pv1.value(2)))
        _put(head, values, "current_patient_location", pv1, 3, _location(pv1))
        for name, field in (("attending_physician_name", 7), ("referring_physician_name", 8)):
            person = names.read_xcn(pv1, field)
            _put(head, values, name, pv1, field, str(person.name) if person else "")
        for name, field in (("admitted_at", 44), ("discharged_at", 45)):
            moment = _instant(head, pv1, field)
            if moment is not None:
                values[name] = moment
    issuer = clean(segment.value(place.field, 4)) or clean(segment.value(place.field, 4, 1, 2))
    return VisitFacts(admission_id=admission_id, issuer_of_admission_id=issuer, values=values)


def _instant(head: Head, segment: Segment, field: int) -> datetime | None:
    """A time of the visit; one that is none is noted, for it is no reason to refuse a patient."""
    text = segment.value(field).strip()
    if not text:
        return None
    try:
        return instant(parse_time(text, head.zone), head.zone)
    except TimestampError:
        head.warnings.append(f"{segment.at(field)}: this is no time; it was passed over.")
        return None


def _location(pv1: Segment) -> str:
    """PV1-3: point of care, room, bed, facility as one text."""
    parts = [clean(c) for c in pv1.components(3)[:4]]
    return " ".join(p for p in parts if p)


def _put(head: Head, values: dict[str, Any], name: str, segment: Segment, field: int, value: str) -> None:
    """Set a value that was said; `""` deletes and empty says nothing, unless the source means otherwise."""
    if segment.is_null(field):
        if head.profile["null"] == "delete":
            values[name] = ""
    elif value:
        values[name] = str(value)
    elif head.profile["empty"] == "delete" and head.message.message_type == "ADT":
        values[name] = ""


def _values(head: Head, scope: Scope, pid: Segment, authoritative: bool) -> dict[str, Any]:
    """Attributes of the patient that PID (and its NTE, AL1) says, by snake_case DICOM keyword."""
    values: dict[str, Any] = {}
    name = names.read_xpn(pid, 5)
    _put(head, values, "patient_name", pid, 5, str(name) if name else "")
    _put(head, values, "patient_birth_date", pid, 7, _birth_date(head, pid))
    _put(head, values, "patient_sex", pid, 8, _sex(head, pid))
    if (pid.field(8) and not pid.is_null(8)) and "patient_sex" not in values:
        values["patient_sex"] = ""  # U, unknown, is an answer
    mother = names.read_xpn(pid, 6)
    _put(head, values, "patient_mother_birth_name", pid, 6, str(mother) if mother else "")
    _put(head, values, "patient_address", pid, 11, _address(pid))
    _put(head, values, "patient_telephone_numbers", pid, 13, clean(pid.value(13)) or clean(pid.value(13, 12)))
    _put(head, values, "ethnic_group", pid, 22, clean(pid.value(22, 2)) or clean(pid.value(22)))
    _put(head, values, "military_rank", pid, 27, clean(pid.value(27, 2)))
    _put(head, values, "patient_species_description", pid, 35, clean(pid.value(35, 2)))
    _put(head, values, "patient_breed_description", pid, 36, clean(pid.value(36, 2)))
    comments = _comments(head)
    if comments:
        values["patient_comments"] = comments
    allergies = [_allergy(s) for s in head.message.all("AL1")]
    if any(allergies):
        values["allergies"] = "; ".join(dict.fromkeys(a for a in allergies if a))
    return values


def _birth_date(head: Head, pid: Segment) -> str:
    """YYYY, YYYYMM or YYYYMMDD; a time of day is left out. Raises Refused (102)."""
    read = read_time(head, pid, 7)
    if read is None:
        return ""
    return f"{read.value:%Y%m%d}".rjust(8, "0")[: min(read.precision, Precision.DAY)]


def _sex(head: Head, pid: Segment) -> str:
    sent = clean(pid.value(8))
    if not sent:
        return ""
    found = head.profile.table("sex_table", sent, tables.SEX)
    if found is None:
        head.warnings.append("PID^1^8: this is none of table 0001; it was passed over.")
        return ""
    return found if found in ("M", "F", "O") else ""


def _address(pid: Segment) -> str:
    """The first address of PID-11 as one line: street, other, city, state, zip, country."""
    parts = [clean(c) for c in pid.components(11)[:6]]
    return ", ".join(p for p in parts if p)


def _comments(head: Head) -> str:
    """NTE-3 of the NTE segments that follow PID."""
    lines = []
    in_pid = False
    for segment in head.message.segments:
        if segment.name == "PID":
            in_pid = True
        elif segment.name == "NTE" and in_pid:
            lines.append(clean(segment.text(3)))
        elif segment.name != "PD1":
            if in_pid:
                break
    return "\n".join(line for line in lines if line)


def _allergy(al1: Segment) -> str:
    value = clean(al1.value(3, 2)) or clean(al1.value(3))
    return "" if value is NULL else value
