"""Orders: the ORC/OBR groups of ORM^O01, OMG^O19, OMI^O23 (and ORR^O02) as one command of `ris`. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from common.uids import is_loose_uid
from integration.hl7v2 import patients, tables
from integration.hl7v2.errors import Code, Location, refuse
from integration.hl7v2.reading import NULL, Segment
from integration.hl7v2.scope import Head, Scope, clean, facts_at, instant
from ris.commands import (
    ApplyOrders,
    OrderAction,
    OrderGroup,
    OrderKeys,
    OrderNumber,
    OrderPolicy,
    RegisterPatient,
)

# ORC-1 (table 0119) → what we do. Requests of a placer, what another filler tells, answers and links.
ACTIONS: Mapping[str, OrderAction] = {
    "NW": OrderAction.NEW, "SN": OrderAction.NEW, "CH": OrderAction.NEW, "RO": OrderAction.REPLACEMENT,
    "XO": OrderAction.CHANGE, "XX": OrderAction.CHANGE, "SC": OrderAction.STATUS,
    "CA": OrderAction.CANCEL, "OC": OrderAction.CANCEL,
    "DC": OrderAction.DISCONTINUE, "OD": OrderAction.DISCONTINUE,
    "HD": OrderAction.HOLD, "OH": OrderAction.HOLD, "RL": OrderAction.RELEASE, "OE": OrderAction.RELEASE,
    "RP": OrderAction.REPLACED, "RU": OrderAction.REPLACED, "NA": OrderAction.NUMBER_ASSIGNED,
    "SS": OrderAction.QUESTION,
    **dict.fromkeys(
        ("PA", "RE", "CN", "SR", "OK", "OR", "CR", "DR", "HR", "RQ", "XR", "UA", "UC", "UD", "UH", "UM", "UR",
         "UX", "DE", "RR", "LI", "AF", "OP"),
        OrderAction.NOTE,
    ),
}  # fmt: skip

# ORC-5 (table 0038) → the step's status it asks for.
STATUSES: Mapping[str, str] = {
    "SC": "SCHEDULED", "IP": "STARTED", "CM": "COMPLETED", "CA": "CANCELED", "DC": "DISCONTINUED", "HD": "HELD",
    "A": "", "ER": "", "RP": "",
}  # fmt: skip

# Segments of orders that are not ours: supplies, diets, drugs.
_FOREIGN_DETAIL = frozenset({"RQD", "RQ1", "ODS", "ODT", "RXO", "RXR", "RXC", "RXE", "RXD", "BPO"})

# Attributes that ris/errors.py may name → the profile's name of the field to point at.
_NAMED = {
    "patient_id": "patient_identifiers",
    "prior_patient_id": "patient_identifiers",
    "patient_birth_date": "patient_identifiers",
}


@dataclass(slots=True)
class Group:
    """One order group of a message: its segments, and the one IPC it is read with (each IPC is a step)."""

    scope: Scope
    has_detail: bool
    foreign: bool
    keys: OrderKeys = field(default_factory=OrderKeys)


@dataclass(slots=True)
class Orders:
    """A message's orders as a command, with the scopes that tell where an attribute of a group stands."""

    command: ApplyOrders
    scopes: list[Scope]

    def locate(self, attribute: str, group: int | None) -> Location:
        """The place in the message to which a refusal of `ris` points."""
        scope = self.scopes[group] if group is not None and group < len(self.scopes) else self.scopes[0]
        return locate(scope, attribute)


def locate(scope: Scope, attribute: str) -> Location:
    """The place of an attribute as `ris` names it."""
    if attribute == "order_control":
        return scope.segment("ORC").at(1)
    if attribute == "prior_patient_id":
        return Location("MRG", 1, 1)
    if attribute == "patient_birth_date":
        return Location("PID", 1, 7)
    name = _NAMED.get(attribute, attribute)
    if name in scope.profile.fields:
        return scope.where(name)
    return Location("ORC", 1) if scope.segment("ORC") else Location("PID", 1)


def read(head: Head) -> Orders | None:
    """The orders of a message; None when all are for something else than imaging (supplies, diets, drugs).

    Raises Refused with the place that cannot be used.
    """
    every = groups(head)
    found = [g for g in every if not g.foreign]
    if every and not found:
        head.warnings.append("The orders are for no imaging.")
        return None
    if len(found) < len(every):
        head.warnings.append(f"{len(every) - len(found)} orders are for no imaging; they were passed over.")
    if not found:
        raise refuse(
            Code.SEGMENT_SEQUENCE, "The message has no order: ORC and OBR are missing.", Location("ORC", 1)
        )
    for group in found:
        group.keys = keys(group.scope)
    _share_studies(found)
    command = ApplyOrders(
        patient=_patient(head),
        groups=tuple(_group(head, g) for g in found),
        facts_at=facts_at(found[0].scope, "order_facts_at"),
        source=head.profile.name,
        policy=_policy(head),
    )
    return Orders(command, [g.scope for g in found])


def groups(head: Head) -> list[Group]:
    """The groups in their order: each ORC with what follows it, each OBR of an ORC, each IPC of an OBR."""
    result: list[Group] = []
    for segments in runs(_until_second_patient(head)):
        ipcs = [s for s in segments if s.name == "IPC"]
        rest = [s for s in segments if s.name != "IPC"]
        has_detail = any(s.name == "OBR" for s in rest) or bool(ipcs)
        foreign = not has_detail and any(s.name in _FOREIGN_DETAIL for s in rest)
        for own in [[*rest, ipc] for ipc in ipcs] or [rest]:
            result.append(Group(Scope(head, own), has_detail, foreign))
    return result


def _until_second_patient(head: Head) -> list[Segment]:
    """The segments up to a second PID: after it stand results of earlier orders (PRIOR_RESULT), which are none."""
    segments, patients_seen = head.message.segments, 0
    for index, segment in enumerate(segments):
        patients_seen += segment.name == "PID"
        if patients_seen > 1:
            if head.message.message_type == "ORM":
                raise refuse(
                    Code.SEGMENT_SEQUENCE, "An ORM names one patient; send two messages.", segment.at()
                )
            return segments[:index]
    return segments


def runs(segments: list[Segment]) -> list[list[Segment]]:
    """Segments of one order each. An OBR without an ORC of its own opens a run that shares the ORC before it."""
    runs: list[list[Segment]] = []
    orc: Segment | None = None
    current: list[Segment] | None = None
    for segment in segments:
        if segment.name == "ORC":
            orc, current = segment, [segment]
            runs.append(current)
        elif segment.name == "OBR" and (current is None or any(s.name == "OBR" for s in current)):
            current = [orc, segment] if orc else [segment]
            runs.append(current)
        elif current is not None:
            current.append(segment)
    return runs


def _patient(head: Head) -> RegisterPatient:
    """The patient of an order. An answer (ORR) need not name one; its order does."""
    scope = Scope(head)
    if not scope.segment("PID") and head.message.message_type in ("ORR", "ORI", "ORG"):
        return RegisterPatient(identifiers=(), authoritative=False, facts_at=facts_at(scope))
    return patients.register(head, scope, authoritative=False)


def _policy(head: Head) -> OrderPolicy:
    word = head.profile.fields["accession_number"].word or "refuse"
    return OrderPolicy(
        accession_number="refuse" if word == "none" else word,
        start=head.profile["missing_start"],
        unknown_order=head.profile["unknown_order"],
    )


def keys(scope: Scope) -> OrderKeys:
    """The keys that a group names. Raises Refused (102) for a Study Instance UID that is none."""
    uid = scope.value("study_instance_uid")
    if uid and not is_loose_uid(uid):
        raise refuse(
            Code.DATA_TYPE,
            "A Study Instance UID has digits and dots only, at most 64.",
            scope.where("study_instance_uid"),
        )
    return OrderKeys(
        accession_number=str(scope.value("accession_number")),
        issuer_of_accession_number=_issuer(scope, "accession_number")
        if scope.value("accession_number")
        else "",
        placer=_number(scope, "placer_order_number"),
        filler=_number(scope, "filler_order_number"),
        requested_procedure_id=str(scope.value("requested_procedure_id")),
        study_instance_uid=str(uid),
        scheduled_procedure_step_id=str(scope.value("scheduled_procedure_step_id")),
    )


def _number(scope: Scope, attribute: str) -> OrderNumber:
    """An order number (EI): entity identifier, and its namespace, else universal id."""
    value = scope.value(attribute)
    return OrderNumber(str(value), _issuer(scope, attribute)) if value else OrderNumber()


def _issuer(scope: Scope, attribute: str) -> str:
    found = scope.filled(attribute)
    if found is None:
        return ""
    segment, place = found
    first = place.component or 1
    return str(clean(segment.value(place.field, first + 1)) or clean(segment.value(place.field, first + 2)))


def _share_studies(found: list[Group]) -> None:
    """One ZDS serves every group of its procedure: same accession (else order) and same procedure id (else code)."""
    if len(found) == 1:
        return
    studies = {_procedure_of(g): g.keys.study_instance_uid for g in found if g.keys.study_instance_uid}
    for group in found:
        uid = studies.get(_procedure_of(group), "")
        if uid and not group.keys.study_instance_uid:
            keys = group.keys
            group.keys = OrderKeys(
                keys.accession_number,
                keys.issuer_of_accession_number,
                keys.placer,
                keys.filler,
                keys.requested_procedure_id,
                uid,
                keys.scheduled_procedure_step_id,
            )


def _procedure_of(group: Group) -> tuple[str, str]:
    keys = group.keys
    order = keys.accession_number or keys.placer.value or keys.filler.value
    code = group.scope.code("procedure_code") or {}
    return order, keys.requested_procedure_id or str(code.get("code_value", ""))


def _group(head: Head, group: Group) -> OrderGroup:
    scope = group.scope
    action, status = _meaning(head, group)
    keys = group.keys
    named = (keys.accession_number, keys.placer.value, keys.filler.value, keys.study_instance_uid)
    if not any(named) and action is not OrderAction.NEW:
        raise refuse(
            Code.REQUIRED_FIELD, "The order has no number to be known by.", scope.segment("ORC").at(2)
        )
    if action in (OrderAction.NEW, OrderAction.REPLACEMENT) and not group.has_detail:
        raise refuse(Code.SEGMENT_SEQUENCE, "A new order needs an OBR segment.", scope.segment("ORC").at())
    return OrderGroup(
        action=action,
        keys=group.keys,
        status=status,
        request=_request(head, scope),
        procedure=_procedure(head, scope) if group.has_detail else {},
        step=_step(head, scope) if group.has_detail else {},
        has_detail=group.has_detail,
    )


def _meaning(head: Head, group: Group) -> tuple[OrderAction, str]:
    """The action and the status that ORC-1 and ORC-5 ask for. Raises Refused (101, 103) at ORC-1."""
    orc = group.scope.segment("ORC")
    sent = clean(orc.value(1)).upper() if orc else "NW"
    if not sent:
        raise refuse(Code.REQUIRED_FIELD, "The order control (ORC-1) is empty.", orc.at(1))
    code = head.profile.table("control_table", sent, dict.fromkeys(tables.ORDER_CONTROL, "")) or sent
    action = ACTIONS.get(code)
    if action is None:
        raise refuse(Code.TABLE_VALUE, "The order control (ORC-1) is none of table 0119; map it.", orc.at(1))
    said = clean(orc.value(5)).upper() if orc else ""
    status_code = head.profile.table("status_table", said, dict.fromkeys(tables.ORDER_STATUS, "")) or said
    status = STATUSES.get(status_code, "")
    if said and status_code not in STATUSES:
        head.warnings.append(f"{orc.at(5)}: this is none of table 0038; it was passed over.")
    if action in (OrderAction.NEW, OrderAction.CHANGE, OrderAction.STATUS, OrderAction.REPLACEMENT):
        return action, status
    return action, ""


def _request(head: Head, scope: Scope) -> dict[str, Any]:
    """Attributes of the order itself."""
    values: dict[str, Any] = {}
    for name in ("requesting_physician", "referring_physician_name"):
        person = scope.person(name)
        if person:
            values[name] = str(person.name) or person.id
            values["referring_physician_id" if name.startswith("referring") else f"{name}_id"] = person.id
    for name in ("requesting_service", "institution_name", "placer_group_number"):
        _put(values, name, scope.value(name))
    if not values.get("institution_name") and scope.segment("OBR"):
        _put(values, "institution_name", head.message.sending_facility)
    institution = scope.segment("ORC")
    if institution.value(17) and institution.value(17, 2):
        values["institution_code_sequence"] = [
            {
                "code_value": clean(institution.value(17)),
                "coding_scheme_designator": clean(institution.value(17, 3)) or "L",
                "code_meaning": clean(institution.value(17, 2)),
            }
        ]
    for name in ("institution_address", "confidentiality_code", "patient_state", "medical_alerts"):
        _put(values, name, scope.text(name) if name == "medical_alerts" else scope.value(name))
    _put(values, "order_callback_phone_number", scope.value("order_callback_phone_number"))
    entered_by = scope.person("order_entered_by")
    if entered_by:
        _put(values, "order_entered_by", str(entered_by.name))
    if scope.value("pregnancy_status") == "B6":  # table 0009: pregnant → (0010,21C0) 3, possibly… definitely
        values["pregnancy_status"] = 3
    weight = _measure(scope, "patient_weight", {"kg": 1, "g": 0.001, "lb": 0.45359237, "[lb_av]": 0.45359237})
    size = _measure(scope, "patient_size", {"m": 1, "cm": 0.01, "mm": 0.001, "in": 0.0254, "[in_i]": 0.0254})
    _put(values, "patient_weight", weight)
    _put(values, "patient_size", size)
    placed = scope.lenient_time("placed_at")
    if placed:
        values["placed_at"] = instant(placed, head.zone)
    _put(values, "route_of_admissions", scope.segment("PV1").value(2))
    return values


def _procedure(head: Head, scope: Scope) -> dict[str, Any]:
    """Attributes of the requested procedure."""
    values: dict[str, Any] = {}
    code = scope.code("procedure_code")
    if code:
        values["code_value"] = str(code["code_value"])
        values["coding_scheme_designator"] = str(code["coding_scheme_designator"])
        values["code_meaning"] = values["requested_procedure_description"] = str(code["code_meaning"])
        if not code["code_meaning"]:
            values["requested_procedure_description"] = str(code["code_value"])
    priority = scope.value("priority")
    if priority:
        standard = {**tables.PRIORITY, **{p: p for p in ("STAT", "HIGH", "ROUTINE", "MEDIUM", "LOW")}}
        found = head.profile.table("priority_table", priority, standard)
        if found in ("STAT", "HIGH", "ROUTINE", "MEDIUM", "LOW"):
            values["requested_procedure_priority"] = found
        else:
            head.warnings.append(
                f"{scope.where('priority')}: this priority is not known; it was passed over."
            )
    reason = scope.code("reason")
    if reason:
        values["reason_for_the_requested_procedure"] = str(reason["code_meaning"] or reason["code_value"])
        if reason["code_value"] and reason["code_meaning"]:
            values["reason_code"] = {
                **reason,
                "coding_scheme_designator": reason["coding_scheme_designator"] or "L",
            }
    _put(values, "patient_transport_arrangements", scope.value("patient_transport_arrangements"))
    notes = [clean(n.text(3)) for n in scope.own.get("NTE", ())]
    _put(values, "requested_procedure_comments", "\n".join(n for n in notes if n))
    return values


def _step(head: Head, scope: Scope) -> dict[str, Any]:
    """Attributes of the scheduled procedure step."""
    values: dict[str, Any] = {}
    modality = scope.value("modality").upper()
    modality = head.profile.table("modality_table", modality, {}) or modality
    if len(modality) > 16:
        head.warnings.append(f"{scope.where('modality')}: longer than a modality can be; it was passed over.")
    else:
        _put(values, "modality", modality)
    protocol = scope.code("protocol_code")
    if protocol and protocol["code_value"]:
        values["protocol_codes"] = [protocol]
    _put(values, "scheduled_procedure_step_description", scope.value("scheduled_procedure_step_description"))
    stations = scope.values("scheduled_station_name")
    if stations:
        values["scheduled_station_names"] = stations
    titles = _ae_titles(head, scope, stations)
    if titles:
        values["scheduled_station_ae_titles"] = titles
    _put(values, "scheduled_procedure_step_location", scope.value("scheduled_procedure_step_location"))
    performer = scope.person("scheduled_performing_physician_name")
    if performer:
        values["scheduled_performing_physician_name"] = str(performer.name) or performer.id
    minutes = scope.value("minutes")
    if minutes.isascii() and minutes.isdigit() and 0 < int(minutes) < 1440:
        values["minutes"] = int(minutes)
    start = scope.time("start")
    if start:
        moment = values["start"] = instant(start, head.zone)
        values["start_has_time"] = start.has_time
        values["timezone_offset_from_utc"] = _offset(moment.utcoffset()) if start.has_offset else ""
    return values


def _ae_titles(head: Head, scope: Scope, stations: list[str]) -> list[str]:
    """AE titles that the order names; by the source's table, stations' names too. Raises Refused (104) at IPC-9."""
    own = head.profile["station_table"]
    mapped = [str(own[s]) for s in stations if s in own]
    if mapped:
        return mapped
    found = scope.filled("scheduled_station_ae_title")
    titles = []
    for value in scope.values("scheduled_station_ae_title"):
        title = str(own.get(value, value))
        if len(title) <= 16 and "\\" not in title and title.isascii():
            titles.append(title)
        elif found and found[0].name == "IPC":
            raise refuse(
                Code.VALUE_TOO_LONG,
                "An AE title has at most 16 characters.",
                scope.where("scheduled_station_ae_title"),
            )
    return titles


def _measure(scope: Scope, attribute: str, units: Mapping[str, float]) -> str:
    """A measured value in DICOM's unit (kg, m), by OBX-6; empty when it is no number or of another unit."""
    found = scope.filled(attribute)
    if found is None:
        return ""
    factor = units.get(clean(found[0].value(6)).lower(), None if found[0].has(6) else 1)
    try:
        number = float(scope.value(attribute).replace(",", "."))
    except ValueError:
        return ""
    return f"{number * factor:.6g}" if factor and 0 < number * factor < 1000 else ""


def _offset(distance: timedelta | None) -> str:
    minutes = int((distance or timedelta()).total_seconds() // 60)
    sign = "-" if minutes < 0 else "+"
    return f"{sign}{abs(minutes) // 60:02d}{abs(minutes) % 60:02d}"


def _put(values: dict[str, Any], name: str, value: str) -> None:
    """Set what was said; `""` deletes."""
    if value is NULL:
        values[name] = ""
    elif value:
        values[name] = str(value)
