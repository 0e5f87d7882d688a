"""Patients and visits: ADT messages, and the PID and PV1 of every other, as commands of `ris`. Pure."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from integration.hl7v2 import names, tables
from integration.hl7v2.errors import Code, Location, refuse
from integration.hl7v2.reading import NULL, Segment
from integration.hl7v2.scope import Head, Scope, clean, facts_at, instant, read_time
from integration.hl7v2.timestamps import Precision, TimestampError
from integration.hl7v2.timestamps import parse as parse_time
from ris.commands import (
    ChangeIdentifier,
    Identifier,
    MergePatients,
    MoveIdentifiers,
    MoveVisits,
    RegisterPatient,
    VisitFacts,
    VisitKey,
)

# DICOM's LO (64 characters) holds a Patient ID; an identifier is never cut.
_ID_LIMIT = 64
_ACCOUNT_LIMIT = 199

# ADT events that say something of one patient and visit → what they make of the visit.
VISIT_STATUS: Mapping[str, str] = {
    "A01": "in-progress", "A02": "in-progress", "A03": "finished", "A04": "in-progress", "A05": "planned",
    "A06": "in-progress", "A07": "in-progress", "A08": "", "A09": "", "A10": "in-progress", "A11": "cancelled",
    "A12": "in-progress", "A13": "in-progress", "A14": "planned", "A15": "", "A16": "", "A25": "", "A26": "",
    "A27": "cancelled", "A28": "", "A31": "", "A38": "cancelled", "A60": "",
}  # fmt: skip
MERGES = frozenset({"A18", "A30", "A34", "A36", "A39", "A40"})
# Moves (chapter 3.6.2): of identifiers, of accounts, of visits. A35 and A36 are the old forms of A41.
_ACCOUNTS = frozenset({"A35", "A36", "A41", "A44", "A49"})
VISIT_MOVES = frozenset({"A42", "A45", "A50"})
MOVES = frozenset({"A43", *_ACCOUNTS, *VISIT_MOVES}) - MERGES


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


def moves(head: Head) -> list[MoveIdentifiers | MoveVisits]:
    """The moves of a message: each MRG (with the PV1 after it) belongs to the PID before it. Raises Refused."""
    event = head.message.trigger_event
    found: list[MoveIdentifiers | MoveVisits] = []
    for group in head.message.groups("PID"):
        scope = Scope(head, group)
        mrgs = scope.own.get("MRG", [])
        if event == "A43":
            found += [_move_identifiers(head, scope, mrg) for mrg in mrgs]
        elif event in _ACCOUNTS:
            found += [_move_account(head, scope, mrg) for mrg in mrgs]
        else:
            found += [_move_visit(head, scope, mrg, pv1) for mrg, pv1 in _pairs(group)]
    if not found:
        raise refuse(Code.SEGMENT_SEQUENCE, "A move needs PID and MRG.", Location("MRG", 1))
    return found


def _pairs(segments: list[Segment]) -> list[tuple[Segment, Segment]]:
    """Each MRG with the PV1 that follows it before the next one."""
    places = [i for i, s in enumerate(segments) if s.name == "MRG"]
    pairs = []
    for place, end in zip(places, [*places[1:], len(segments)], strict=True):
        pv1 = next((s for s in segments[place:end] if s.name == "PV1"), None)
        pairs.append((segments[place], pv1 or Segment("")))
    return pairs


def _move_identifiers(head: Head, scope: Scope, mrg: Segment) -> MoveIdentifiers:
    """A43. What stands in PID-3 and in MRG-1 moves; what else the PID names (PID-3, else PID-2, PID-4) is whom to.

    Where the lists share nothing, MRG-1 names the patient who had it: what PID-3 names of that one moves (the form of
    IHE, ITI-64), else all that MRG-1 names. In the old form (2.3) PID-2 and MRG-4 name the two patients.
    """
    prior = read_identifiers(head, mrg, 1)
    if not prior:
        raise refuse(Code.REQUIRED_FIELD, "MRG-1 names no prior identifier.", mrg.at(1))
    pid = scope.segment("PID")
    target = register(head, scope, event="A43")
    keys = {(i.value, i.namespace, i.universal_id) for i in target.identifiers}
    shared = tuple(i for i in prior if (i.value, i.namespace, i.universal_id) in keys)
    old_forms = [i for field in (2, 4) for i in read_identifiers(head, pid, field)]
    identifiers = tuple(dict.fromkeys((*target.identifiers, *old_forms)))
    return MoveIdentifiers(
        patient=replace(target, identifiers=identifiers, visit=None),
        moved=shared,
        prior=tuple(dict.fromkeys((*(i for i in prior if i not in shared), *read_identifiers(head, mrg, 4)))),
    )


def _move_account(head: Head, scope: Scope, mrg: Segment) -> MoveVisits:
    """A44, and within one patient A35, A41, A49: the account in MRG-3 goes to the patient of PID-3, as PID-18."""
    prior_account, pid = clean(mrg.value(3)), scope.segment("PID")
    if not prior_account:
        raise refuse(Code.REQUIRED_FIELD, "MRG-3 names no prior account.", mrg.at(3))
    return MoveVisits(
        patient=replace(register(head, scope, event=head.message.trigger_event), visit=None),
        prior=read_identifiers(head, mrg, 1),
        prior_account=prior_account,
        account=clean(pid.value(18)) or prior_account,
    )


def _move_visit(head: Head, scope: Scope, mrg: Segment, pv1: Segment) -> MoveVisits:
    """A45, and within one patient A42, A50: the visit in MRG-5 goes to the patient and account of PID, as PV1-19."""
    prior, now = clean(mrg.value(5)), clean(pv1.value(19)) if pv1 else ""
    if not prior:
        raise refuse(Code.REQUIRED_FIELD, "MRG-5 names no prior visit.", mrg.at(5))
    own = Scope(head, [*scope.own.get("PID", ()), *([pv1] if pv1 else [])])
    return MoveVisits(
        patient=register(head, own, event=head.message.trigger_event),
        prior=read_identifiers(head, mrg, 1),
        visits=((VisitKey(prior, _issuer(mrg, 5)), VisitKey(now or prior, _issuer(pv1, 19) if pv1 else "")),),
        account=clean(scope.segment("PID").value(18)),
    )


def _issuer(segment: Segment, field: int) -> str:
    return clean(segment.value(field, 4)) or clean(segment.value(field, 4, 1, 2))


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
        pid = scope.segment("PID")
        account = clean(pid.value(18))
        if len(account) <= _ACCOUNT_LIMIT:
            _put(head, values, "account_number", pid, 18, account)
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
