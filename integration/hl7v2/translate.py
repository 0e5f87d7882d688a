"""Which message becomes which commands: one table from type and event to translation, and the checks of MSH."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from integration.hl7v2 import orders, patients, reports, schedule
from integration.hl7v2.errors import Code, Location, refuse
from integration.hl7v2.reading import Message
from integration.hl7v2.scope import Head, Scope
from ris.commands import (
    ApplyOrders,
    ChangeIdentifier,
    FileReport,
    MergePatients,
    MoveIdentifiers,
    MoveVisits,
    RegisterPatient,
)

Command = (
    RegisterPatient
    | MergePatients
    | ChangeIdentifier
    | MoveIdentifiers
    | MoveVisits
    | ApplyOrders
    | FileReport
)
Locate = Callable[[str, int | None], Location]

_VERSION = re.compile(r"2\.[1-9](\.\d){0,2}\Z")


@dataclass(slots=True)
class Translated:
    """The commands of a message in their order, and where an attribute at fault stands in it."""

    commands: list[Command] = field(default_factory=list)
    locate: Locate = lambda attribute, group: Location("MSH", 1)
    """attribute and group index, as in ris/errors.py → place."""


def check_header(message: Message, head: Head) -> None:
    """Refuse what the header rules out: type, control id, processing id, version (chapter 2.9.2.2)."""
    if not message.message_type:
        raise refuse(Code.MESSAGE_TYPE, "The message type (MSH-9) is empty.", Location("MSH", 1, 9))
    if not message.control_id:
        raise refuse(Code.REQUIRED_FIELD, "The control id (MSH-10) is empty.", Location("MSH", 1, 10))
    if len(message.control_id) > 199:
        raise refuse(Code.VALUE_TOO_LONG, "A control id has at most 199 characters.", Location("MSH", 1, 10))
    if not head.profile.takes_processing_id(message.processing_id):
        raise refuse(Code.PROCESSING_ID, "This processing id is not applied here.", Location("MSH", 1, 11))
    if message.version and not _VERSION.match(message.version):
        raise refuse(Code.VERSION, "Only versions 2.1 to 2.9 are understood.", Location("MSH", 1, 12))


def translate(head: Head) -> Translated | None:
    """The commands of a message; None for a type or event that is not applied (it is kept). Raises Refused."""
    message = head.message
    reader = _READERS.get((message.message_type, message.trigger_event)) or _READERS.get(
        (message.message_type, "")
    )
    return reader(head) if reader else None


def refuse_unknown(message: Message) -> None:
    """Refuse a type or event that is not applied, for sources that want it so."""
    known = any(kind == message.message_type for kind, _ in _READERS)
    if known:
        raise refuse(Code.EVENT_CODE, "This event is not applied here.", Location("MSH", 1, 9, 1, 2))
    raise refuse(Code.MESSAGE_TYPE, "This message type is not applied here.", Location("MSH", 1, 9, 1, 1))


def applied_events() -> list[tuple[str, str]]:
    """The types and events that are applied, for documentation."""
    return sorted(_READERS)


def _register(head: Head) -> Translated:
    scope = Scope(head, head.message.segments)
    command = patients.register(head, scope, event=head.message.trigger_event)
    return Translated([command], lambda attribute, group: orders.locate(scope, attribute))


def _merge(head: Head) -> Translated:
    scope = Scope(head, head.message.segments)
    return Translated([*patients.merges(head)], lambda attribute, group: orders.locate(scope, attribute))


def _move(head: Head) -> Translated:
    scope = Scope(head, head.message.segments)
    return Translated([*patients.moves(head)], lambda attribute, group: orders.locate(scope, attribute))


def _change_identifier(head: Head) -> Translated:
    scope = Scope(head, head.message.segments)
    return Translated(
        [patients.change_identifier(head)], lambda attribute, group: orders.locate(scope, attribute)
    )


def _orders(head: Head) -> Translated | None:
    found = orders.read(head)
    return Translated([found.command], found.locate) if found else None


def _appointment(head: Head) -> Translated:
    found = schedule.read(head)
    return Translated([found.command], found.locate)


def _results(head: Head) -> Translated | None:
    found = reports.results(head) if head.profile["results"] == "file" else None
    return Translated([*found.commands], found.locate) if found else None


def _document(head: Head) -> Translated | None:
    if head.profile["results"] != "file":
        return None
    found = reports.document(head)
    return Translated([*found.commands], found.locate) if found else None


def _answer(head: Head) -> Translated | None:
    """ORR, ORG, ORI: the other side's answer to an order; only what has groups says anything."""
    if not head.message.all("ORC"):
        return None
    return _orders(head)


_READERS: dict[tuple[str, str], Callable[[Head], Translated | None]] = {
    **{("ADT", event): _register for event in patients.VISIT_STATUS},
    **{("ADT", event): _merge for event in patients.MERGES},
    **{("ADT", event): _move for event in patients.MOVES},
    ("ADT", "A47"): _change_identifier,
    **{("SIU", event): _appointment for event in schedule.BOOKS},
    ("ORU", ""): _results,
    **{("MDM", event): _document for event in (*reports.DOCUMENTS, *reports.ANNOUNCED)},
    ("ORM", ""): _orders,
    ("OMG", ""): _orders,
    ("OMI", ""): _orders,
    ("ORR", ""): _answer,
    ("ORG", ""): _answer,
    ("ORI", ""): _answer,
}
