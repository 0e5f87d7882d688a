"""Answers to orders beyond the plain ACK: ORR^O02, ORG^O20, ORI^O24, for sources that want them."""

from collections.abc import Mapping

from integration.hl7v2 import orders, tables
from integration.hl7v2.acks import harmless
from integration.hl7v2.composing import Encoded, Field
from integration.hl7v2.reading import Message, Segment

# Order message → its answer (MSH-9).
KINDS: Mapping[str, tuple[str, str, str]] = {
    "ORM": ("ORR", "O02", "ORR_O02"),
    "OMG": ("ORG", "O20", "ORG_O20"),
    "OMI": ("ORI", "O24", "ORI_O24"),
}


def kind_of(message: Message) -> tuple[str, ...] | None:
    """MSH-9 of the answer to this message; None when it is no order. Before 2.4 without the structure."""
    kind = KINDS.get(message.message_type)
    if kind is None:
        return None
    return kind[:2] if message.version.startswith(("2.1", "2.2", "2.3")) else kind


def groups(
    message: Message,
    accepted: bool,
    numbers: Mapping[str, str],
    states: Mapping[str, str],
    imaging: Mapping[str, Mapping[int, Field]],
) -> list[tuple[str, dict[int, Field]]]:
    """An ORC for each of the message's: the answering control of table 0119, and the numbers echoed.

    `numbers` are placer numbers that we assigned, by filler number (ORC-1 SN is answered by NA); `states` are ORC-5
    by order number (SS is answered by SR with it). An answer to an OMI has for each OBR, as ORI_O24 demands, the OBR
    and its IPCs, in which `imaging` (IPC fields by order number) fills what the sender left to us.
    """
    if message.message_type != "OMI":
        return [("ORC", _orc(orc, accepted, numbers, states)) for orc in message.all("ORC")]
    found: list[tuple[str, dict[int, Field]]] = []
    for run in orders.runs(message.segments):
        orc, obr = (_first(run, name) for name in ("ORC", "OBR"))
        if orc is None:
            continue
        known = imaging.get(orc.value(2).strip()) or imaging.get(orc.value(3).strip()) or {}
        found.append(("ORC", _orc(orc, accepted, numbers, states)))
        found.append(("OBR", _echoed(obr, 4) if obr else {2: _echo(orc, 2), 3: _echo(orc, 3)}))
        ipcs = [_echoed(s, 9) for s in run if s.name == "IPC"] or [{}]
        found += [("IPC", {**ipc, **{n: v for n, v in known.items() if n not in ipc}}) for ipc in ipcs]
    return found


def _orc(
    orc: Segment, accepted: bool, numbers: Mapping[str, str], states: Mapping[str, str]
) -> dict[int, Field]:
    control = orc.value(1).strip().upper()
    yes, no = tables.CONTROL_ANSWERS.get(control, ("OK", "UA"))
    assigned = numbers.get(orc.value(3).strip())
    answer: dict[int, Field] = {1: yes if accepted else no, 2: _echo(orc, 2), 3: _echo(orc, 3)}
    if accepted and control == "SN" and assigned and not orc.has(2):
        answer[2] = assigned
    if accepted and control == "SS":
        answer[5] = states.get(orc.value(2).strip()) or states.get(orc.value(3).strip()) or ""
    return answer


def _first(segments: list[Segment], name: str) -> Segment | None:
    return next((s for s in segments if s.name == name), None)


def _echo(segment: Segment, number: int) -> Field:
    return Encoded(harmless(segment.field(number)))


def _echoed(segment: Segment, most: int) -> dict[int, Field]:
    """The filled fields of a segment, up to one."""
    return {number: _echo(segment, number) for number in range(1, most + 1) if segment.has(number)}


def wants_imaging(message: Message) -> bool:
    """Whether the full answer to a message says what we know for its IPCs."""
    return message.message_type == "OMI"


def asks(message: Message) -> bool:
    """Whether a plain ACK cannot answer an order message: ORC-1 SS asks for a state, SN for a number."""
    return asks_state(message) or bool(wanting_numbers(message))


def asks_state(message: Message) -> bool:
    """Whether an order message asks for the state of an order (ORC-1 SS)."""
    return any(orc.value(1).strip().upper() == "SS" for orc in message.all("ORC"))


def wanting_numbers(message: Message) -> list[tuple[str, str]]:
    """Filler numbers (value, issuer) of groups that ask for a placer number: ORC-1 SN without ORC-2."""
    return [
        (orc.value(3).strip(), orc.value(3, 2).strip())
        for orc in message.all("ORC")
        if orc.value(1).strip().upper() == "SN" and not orc.has(2) and orc.has(3)
    ]
