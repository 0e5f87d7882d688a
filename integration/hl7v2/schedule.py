"""Appointments: SIU S12 to S17 and S26 as changes of the steps that they book. Pure."""

from collections.abc import Mapping
from typing import Any

from integration.hl7v2 import patients
from integration.hl7v2.errors import Code, refuse
from integration.hl7v2.orders import Orders
from integration.hl7v2.reading import Segment
from integration.hl7v2.scope import Head, Scope, clean, facts_at, instant, read_time
from ris.commands import (
    ApplyOrders,
    OrderAction,
    OrderGroup,
    OrderKeys,
    OrderNumber,
    OrderPolicy,
    RegisterPatient,
)

# Trigger event → whether it books a time (else it gives the step's time back: the order waits for a new one).
BOOKS: Mapping[str, bool] = {
    "S12": True, "S13": True, "S14": True, "S15": False, "S16": False, "S17": False, "S26": False,
}  # fmt: skip

# SCH-10, AIS-8 (duration units; UCUM and the words senders use) → minutes.
_UNITS: Mapping[str, float] = {
    "": 1, "m": 1, "min": 1, "minutes": 1, "minute": 1, "mins": 1, "s": 1 / 60, "sec": 1 / 60, "seconds": 1 / 60,
    "h": 60, "hr": 60, "hour": 60, "hours": 60,
}  # fmt: skip


def read(head: Head) -> Orders:
    """A booking as a command: the order's numbers, the time, the place. Raises Refused.

    An appointment for something that is no order here is noted and passed over: a feed of a whole hospital holds
    many. The patient is only compared, never made from an appointment.
    """
    scope = Scope(head, head.message.segments)
    sch = scope.segment("SCH")
    if not sch:
        raise refuse(Code.SEGMENT_SEQUENCE, "An appointment needs an SCH segment.", sch.at())
    group = OrderGroup(
        action=OrderAction.CHANGE,
        keys=_keys(scope),
        step=_booked(head, scope) if BOOKS[head.message.trigger_event] else _given_back(head),
    )
    command = ApplyOrders(
        patient=_patient(scope),
        groups=(group,),
        facts_at=facts_at(Scope(head)),
        source=head.profile.name,
        policy=OrderPolicy(unknown_order="ignore"),
        makes_patient=False,
    )
    return Orders(command, [scope])


def _keys(scope: Scope) -> OrderKeys:
    """The numbers by which an appointment names its order. Raises Refused (101) without any."""
    placer, filler = (
        OrderNumber(str(scope.value(name)), _issuer(scope, name)) if scope.value(name) else OrderNumber()
        for name in ("appointment_placer_order", "appointment_filler_order")
    )
    accession = str(scope.value("appointment_accession"))
    if not (placer.value or filler.value or accession):
        raise refuse(
            Code.REQUIRED_FIELD, "The appointment names no order.", scope.where("appointment_placer_order")
        )
    return OrderKeys(accession_number=accession, placer=placer, filler=filler)


def _issuer(scope: Scope, name: str) -> str:
    found = scope.filled(name)
    if found is None:
        return ""
    segment, place = found
    return str(clean(segment.value(place.field, 2)) or clean(segment.value(place.field, 3)))


def _patient(scope: Scope) -> RegisterPatient:
    identifiers = patients.identifiers(scope) if scope.segment("PID") else ()
    return RegisterPatient(identifiers=identifiers, authoritative=False)


def _booked(head: Head, scope: Scope) -> dict[str, Any]:
    """The step's time, length and place."""
    values: dict[str, Any] = {}
    start = scope.time("appointment_start")
    if start is None:
        head.warnings.append("The appointment has no start.")
    else:
        values["start"] = instant(start, head.zone)
        values["start_has_time"] = start.has_time
    minutes = _minutes(scope)
    if minutes:
        values["minutes"] = minutes
    station = _station(head, scope)
    if station:
        values["scheduled_station_names"] = [station]
        own = head.profile["station_table"].get(station)
        values["scheduled_station_ae_titles"] = [str(own)] if own else []
    return values


def _given_back(head: Head) -> dict[str, Any]:
    """The time is free again; a no-show says so to the clerk."""
    values: dict[str, Any] = {"start": None}
    if head.message.trigger_event == "S26":
        values["comments"] = "Did not appear."
    return values


def _minutes(scope: Scope) -> int:
    """AIS-7 and AIS-8, else SCH-9 and SCH-10, else the time between SCH-11.4 and .5; 0 when nothing says it."""
    for name, number, unit in (("AIS", 7, 8), ("SCH", 9, 10)):
        segment = scope.segment(name)
        factor = _UNITS.get(clean(segment.value(unit)).lower()) if segment else None
        try:
            minutes = round(float(segment.value(number)) * (factor or 0)) if segment else 0
        except (ValueError, OverflowError):
            continue
        if 0 < minutes < 1440:
            return minutes
    return _between(scope, scope.segment("SCH"))


def _between(scope: Scope, sch: Segment) -> int:
    start, end = read_time(scope.head, sch, 11, 4), read_time(scope.head, sch, 11, 5)
    if not (start and end and start.has_time and end.has_time):
        return 0
    minutes = round((instant(end, scope.head.zone) - instant(start, scope.head.zone)).total_seconds() / 60)
    return minutes if 0 < minutes < 1440 else 0


def _station(head: Head, scope: Scope) -> str:
    """The room or scanner: AIL-3 (its room, else its point of care), else AIG-3."""
    ail = scope.segment("AIL")
    if ail:
        return str(clean(ail.value(3, 2)) or clean(ail.value(3)))
    aig = scope.segment("AIG")
    return str(clean(aig.value(3)) or clean(aig.value(3, 2))) if aig else ""
