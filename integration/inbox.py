"""What becomes of a frame: stored, parsed and applied in one transaction, then acknowledged.

A message's identity (who sent it, its MSH-10, the digest of its bytes) is inserted first: PostgreSQL lets one of
two twins pass and has the other wait. What cannot be applied is stored in a transaction of its own, answered by
its place, and stands on the list of open messages until it is solved.
"""

import hashlib
import logging
import re
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import Error, InterfaceError, OperationalError, connection, transaction

from common import cause, wire
from common.clock import now, site_zone
from common.crashpoints import crashpoint
from common.rows import make, mark_new
from common.store import Unit
from common.wire import together
from integration import sources
from integration.hl7v2 import acks, answers, batches, composing, translate
from integration.hl7v2.acks import AckCode, Asking
from integration.hl7v2.composing import Encoded
from integration.hl7v2.errors import Code, Location, Problem, Refused, Severity, refuse
from integration.hl7v2.framing import Fault, FaultKind
from integration.hl7v2.patients import identifiers
from integration.hl7v2.reading import Message as Parsed
from integration.hl7v2.reading import header_of
from integration.hl7v2.scope import Head, Scope
from integration.hl7v2.separators import STANDARD, Separators
from integration.hl7v2.timestamps import format_time
from integration.models import Message, MessageIdentity
from integration.order_state import imaging_of, states_of
from integration.sources import Profile
from ris.commands import (
    Applied,
    ApplyOrders,
    ChangeIdentifier,
    FileReport,
    MergePatients,
    MoveIdentifiers,
    MoveVisits,
    OrderAction,
    OrderGroup,
    OrderKeys,
    OrderNumber,
    RegisterPatient,
)
from ris.context import Context
from ris.errors import Refusal
from ris.models import ImagingServiceRequest
from ris.services import authorities, lanes, merging, orders, outside_reports, patients

logger = logging.getLogger(__name__)

State = Message.State

_TRIES = 3
_WAIT_MS = 10_000  # the longest wait for a lane, or for a twin at work
_RETRY_SQLSTATES = frozenset({"40P01", "40001", "23505"})  # deadlock, serialization, somebody was first
_LOCKED_SQLSTATES = frozenset({"55P03"})  # lock_timeout
_KEPT_OF_TOO_LONG = 4096
_STRANGERS_A_MINUTE = 60  # rows that one address may leave by faults and from unknown senders


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of the connection."""

    address: str
    port: int = 0
    certificate_sha256: str = ""

    def __str__(self) -> str:
        return f"{self.address}:{self.port}" if self.port else self.address


@dataclass(slots=True)
class Reply:
    """What goes back: the bytes to send at once (empty: nothing is asked for), a later application ACK, the row."""

    ack: bytes = b""
    later: bytes = b""
    code: str = ""
    message_id: int | None = None
    duplicate: bool = False
    profile: Profile | None = None
    """Of the source that sent it: its bounds hold for the connection."""


_NOTHING_ASKED = Asking()


@dataclass(slots=True)
class Incoming:
    """One frame on its way: what is known of it before, and what is decided while it is applied."""

    raw: bytes
    peer: Peer
    received_at: datetime
    started: float
    notes: tuple[str, ...] = ()
    digest: str = ""
    asked: Asking = _NOTHING_ASKED
    sender: str = ""
    control_id: str = ""
    opened: tuple[Separators, list[bytes]] | None = None
    """The separators, and the fields of the header as they came."""
    parsed: Parsed | None = None
    head: Head | None = None
    profile: Profile | None = None
    translated: translate.Translated | None = None
    """What the message says, under the policy `applied`; None: nothing that we apply."""
    warnings: list[str] = field(default_factory=list)
    foreseen: "Reply | None" = None
    """Its answer, if it is accepted; None where that is not known beforehand."""
    numbers: dict[str, str] = field(default_factory=dict)
    """Placer numbers that we assigned, by filler number."""
    states: dict[str, str] = field(default_factory=dict)
    """ORC-5 by order number, where the message asks (SS)."""
    imaging: dict[str, dict[int, composing.Field]] = field(default_factory=dict)
    """IPC fields by order number, for the full answer to an OMI."""


def receive(raw: bytes, peer: Peer, notes: Sequence[str] = ()) -> Reply:
    """Take one frame's payload: store it, apply it, and return the acknowledgement, after COMMIT.

    Never raises for anything that a message holds. When the database is away the answer is AR 207 and nothing
    is stored: the sender keeps its message. A batch (FHS, BHS) is taken message by message, each with its own
    row, and answered by a batch of acknowledgements.
    """
    if batches.is_batch(raw):
        return _receive_batch(raw, peer, notes)
    return _receive_one(raw, peer, notes)


def _receive_batch(raw: bytes, peer: Peer, notes: Sequence[str]) -> Reply:
    try:
        batch = batches.split(raw)
    except Refused:
        return _receive_one(raw, peer, notes)  # no messages in it: a fault as any other
    replies = [_receive_one(one, peer, [*notes, *batch.warnings]) for one in batch.messages]
    separators, header = header_of(raw)
    fields = [f.decode("latin-1") for f in header]
    swapped = {
        ours: Encoded(acks.harmless(fields[theirs])) for ours, theirs in _SWAPPED if theirs < len(fields)
    }
    head = composing.segment("BHS", {**swapped, 7: format_time(now().astimezone(site_zone()))}, separators)
    tail = composing.segment("BTS", {1: sum(1 for a in replies if a.ack)}, separators)
    body = b"".join(a.ack for a in replies)
    return Reply(head.encode("latin-1") + b"\r" + body + tail.encode() + b"\r", code=replies[-1].code)


# Fields of BHS: ours ← theirs; sender and receiver swap, their control id (11) is the one we refer to (12).
_SWAPPED = ((3, 5), (4, 6), (5, 3), (6, 4), (12, 11))


def arrived(raw: bytes, peer: Peer, notes: Sequence[str] = ()) -> Incoming:
    """A frame's payload at its arrival, not yet looked at."""
    incoming = Incoming(raw, peer, now(), time.perf_counter(), tuple(notes))
    incoming.digest = hashlib.sha256(raw).hexdigest()
    return incoming


def _receive_one(raw: bytes, peer: Peer, notes: Sequence[str]) -> Reply:
    incoming = arrived(raw, peer, notes)
    for attempt in range(1, _TRIES + 1):
        try:
            reply = _received(incoming)
            reply.profile = incoming.profile
            return reply
        except Exception as error:  # also a fault of ours: the message must stand on the list all the same
            if not ready_again(error) or attempt == _TRIES:
                return _failed(incoming, error)
    raise AssertionError("the loop returns")


def _received(incoming: Incoming) -> Reply:
    try:
        recognise(incoming)
        with transaction.atomic():
            try:
                return _apply_once(incoming)
            except BaseException:
                wire.abandon()
                raise
    except Refused as refusal:
        return _refused(incoming, refusal)


def ready_again(error: Exception) -> bool:
    """Whether another try can succeed: a deadlock, somebody who was first, a lost connection. Readies for it.

    After a connection was lost in COMMIT nobody knows whether it took place; the identity row tells the next try.
    """
    if _is_away(error):
        connection.close()
        return True
    authorities.forget()  # what was read in the transaction that failed may never have been
    return isinstance(error, Error) and _sqlstate(error) in _RETRY_SQLSTATES


def recognise(incoming: Incoming) -> None:
    """Find the message's source, by its header alone. Raises Refused."""
    try:
        incoming.opened = separators, raw_header = header_of(incoming.raw)
    except Refused as refusal:
        raise _Rejected(refusal.problem) from None
    header = [f.decode("latin-1") for f in raw_header]
    incoming.asked = acks.asking_header(separators, header)

    def named(number: int) -> str:
        text = header[number] if len(header) > number else ""
        return text.split(separators.component)[0].strip()

    incoming.sender = _sender_key(incoming)
    incoming.control_id = _clipped(named(10), 199)
    found = sources.find(named(3), named(4), incoming.peer.address, incoming.peer.certificate_sha256)
    if found is None:
        problem = Problem(Code.TABLE_VALUE, "No source is configured for this sender.", Location("MSH", 1, 3))
        raise _Rejected(problem)
    incoming.profile = profile = found[1]
    if 0 < profile["max_kb"] * 1024 < len(incoming.raw):
        length, incoming.raw = len(incoming.raw), incoming.raw[:_KEPT_OF_TOO_LONG]
        raise _Rejected(Problem(Code.INTERNAL, f"The message is too long for this source: {length} bytes."))


def read(incoming: Incoming) -> None:
    """Parse the message of a source that we know, and say what it wants. Raises Refused."""
    profile = incoming.profile
    assert profile is not None
    incoming.parsed = message = profile.read(incoming.raw, incoming.opened)
    incoming.control_id = _clipped(message.control_id, 199)
    if not incoming.raw.isascii():
        incoming.asked = acks.asking(message)
    incoming.head = Head(message, profile, incoming.received_at)
    incoming.warnings = [*incoming.notes, *(str(w.text) for w in message.warnings)]
    translate.check_header(message, incoming.head)
    incoming.translated = None
    if profile["policy"] != "stored":
        incoming.translated = translate.translate(incoming.head)


class _Rejected(Refused):
    """No HL7, or nobody we know: answered AR, whatever the code's own class."""

    @property
    def ack_code(self) -> str:
        return "AR"


class _NotDone(Refused):
    """What `ris` refuses is the message's content: AE, also where the nearest code is 207."""

    @property
    def ack_code(self) -> str:
        return "AE"


# -- once --------------------------------------------------------------------------------------------------

# Also said for the transaction: how long to wait for others, and that statements prepared once stay planned, for
# planning those of the hot path takes longer than running them.
_IDENTIFY = """
WITH bound AS (
    SELECT set_config('lock_timeout', $4::text, true), set_config('plan_cache_mode', 'force_generic_plan', true)
),
given AS MATERIALIZED (
    SELECT m.* FROM bound, unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY m (sender, control_id, sha256, n)
),
told AS (
    INSERT INTO integration_messageidentity (sender, control_id, sha256, message_id, accepted, ack)
    SELECT sender, control_id, sha256, nextval('integration_message_id_seq'), false, ''::bytea FROM given ORDER BY n
    ON CONFLICT (sender, control_id, sha256) DO NOTHING
    RETURNING id, message_id, sender, control_id, sha256
)
SELECT told.id, told.message_id, EXISTS (
    SELECT 1 FROM integration_messageidentity other
    WHERE other.sender = given.sender AND other.control_id = given.control_id AND other.sha256 <> given.sha256)
FROM given LEFT JOIN told USING (sender, control_id, sha256) ORDER BY given.n
"""

_PLAIN = re.compile(r"[A-Za-z0-9._-]+")

Identities = list[tuple[MessageIdentity | None, bool]]
"""For each message its new identity row, held until COMMIT (None: it was here before), and whether its control id came
with other content before."""


def ask_identities(incomings: Sequence[Incoming], wait_ms: int = _WAIT_MS) -> Callable[[], Identities]:
    """Insert the identity rows of messages, by a statement that travels with others; call what is returned after it.

    A twin that is being applied is waited for, at most so long; then its row is here, accepted or not.
    """
    named = [_named(incoming) for incoming in incomings]
    columns = [[n[key] for n in named] for key in ("sender", "control_id", "sha256")]
    told = wire.ask(_IDENTIFY, (*columns, f"{wait_ms}ms"))

    def identities() -> Identities:
        return [
            (
                make(MessageIdentity, id=int(identity), message_id=int(message), **names)
                if identity is not None and message is not None
                else None,
                reused == b"t",
            )
            for names, (identity, message, reused) in zip(named, told(), strict=True)
        ]

    return identities


def _identified(incoming: Incoming, told: Callable[[], Identities]) -> tuple[MessageIdentity, bool, bool]:
    """The message's identity row, whether it is new, and whether its control id was used for other content."""
    ((identity, reused),) = told()
    if identity is not None:
        return identity, True, reused
    return MessageIdentity.objects.select_for_update().get(**_named(incoming)), False, reused


def _named(incoming: Incoming) -> dict[str, str]:
    sender = incoming.sender or _sender_key(incoming)
    return {"sender": sender, "control_id": incoming.control_id, "sha256": incoming.digest}


def _apply_once(incoming: Incoming) -> Reply:
    if ahead := _reads_the_same(incoming):
        with together(ahead=True):
            told = ask_identities([incoming])
    read(incoming)
    with together(ahead=True):  # its lanes, and all that is known of whom it concerns
        if not ahead:
            told = ask_identities([incoming])
        known = _ask_known(incoming)
    incoming.foreseen = _plain_reply(incoming)
    identity, new, reused = _identified(incoming, told)
    crashpoint("inbox.after_identity")
    if identity.accepted:
        return _again(incoming, identity)
    row = new_row(incoming, identity, new)
    reply, unit = decide(incoming, identity, row, reused, known, eager=True)
    crashpoint("inbox.before_commit")
    unit.commit()
    return reply


def _reads_the_same(incoming: Incoming) -> bool:
    """Whether the control id is what it will be when the message is parsed, whatever its character set."""
    assert incoming.profile is not None and incoming.opened is not None
    usual = incoming.opened[0] is STANDARD and not incoming.profile["separators"]
    return usual and _PLAIN.fullmatch(incoming.control_id) is not None


def decide(
    incoming: Incoming,
    identity: MessageIdentity,
    row: Message,
    reused: bool,
    known: Callable[[], Context] | None,
    *,
    eager: bool = False,
) -> tuple[Reply, Unit]:
    """What becomes of a message that was read: its answer, and the rows to write before it is given.

    `reused`: its control id came with other content before. `known` is what its service asked for, in this
    transaction. `eager`: its rows may be on their way before its answer is known. Raises Refused.
    """
    assert incoming.parsed is not None and incoming.profile is not None and incoming.head is not None
    if reused:
        if incoming.profile["reused_control_id"] == "refuse":
            raise refuse(
                Code.DUPLICATE_KEY,
                "This control id was used for another message before.",
                Location("MSH", 1, 10),
            )
        incoming.warnings.append("MSH^1^10: this control id was used for another message before.")
    unit = Unit(cause.hl7(row.pk), incoming.received_at, eager=eager)
    if incoming.profile["policy"] == "stored":
        _store_for_later(incoming.head, row)
    else:
        _apply_now(incoming, incoming.head, unit, row, known() if known else None)
        _assign_numbers(incoming, unit)
        _know_answer(incoming, row, unit)
    row.warnings = [*incoming.warnings, *incoming.head.warnings, *row.warnings]
    reply = incoming.foreseen or _reply(incoming, AckCode.AA, ())
    reply.message_id = row.pk
    row.ack_code, row.ack = reply.code, reply.ack
    row.duration_ms = round((time.perf_counter() - incoming.started) * 1000, 3)
    identity.accepted, identity.ack = True, reply.ack
    unit.save(row)
    unit.save(identity)
    return reply, unit


def _ask_known(incoming: Incoming) -> Callable[[], Context] | None:
    """What the message's one command concerns, asked for; None where its service asks by itself."""
    commands = incoming.translated.commands if incoming.translated else []
    ask = _ASKING.get(type(commands[0])) if len(commands) == 1 else None
    return ask(commands[0]) if ask else None


def _apply_now(incoming: Incoming, head: Head, unit: Unit, row: Message, known: Context | None) -> None:
    """Policy `applied`: what the message says is done before it is acknowledged. Raises Refused."""
    if incoming.translated is None:
        if head.profile["unknown_type"] == "refuse":
            translate.refuse_unknown(head.message)
        row.state = State.KEPT
        return
    carry_out(incoming.translated, unit, row, known)
    nothing = not (row.patient_ids or row.request_ids)
    row.state, row.applied_at = (State.KEPT, None) if nothing else (State.APPLIED, now())


def _store_for_later(head: Head, row: Message) -> None:
    """Policy `stored`: AA says that the message is kept. One that cannot be applied is parked and holds its lane."""
    try:
        translated = translate.translate(head)
    except Refused as refusal:
        row.state, row.errors = State.PARKED, [_described(refusal.problem)]
        row.lanes = sorted({i.value for i in identifiers(Scope(head))})
        return
    row.state = State.KEPT if translated is None else State.WAITING
    row.lanes = _lanes(translated) if translated else []


def _again(incoming: Incoming, identity: MessageIdentity) -> Reply:
    """The same message again after it was accepted: the same acknowledgement, and nothing else.

    In enhanced mode the application's acknowledgement follows again: the first one may have been lost on its way.
    """
    _, later = acks.replies(incoming.asked, AckCode.AA)
    if (
        later
        and incoming.parsed is not None
        and (kept := Message.objects.filter(pk=identity.message_id).first())
    ):
        _know_answer(incoming, kept)
        incoming.numbers = {
            made.filler_order_number: made.placer_order_number
            for made in ImagingServiceRequest.objects.filter(pk__in=kept.request_ids)
        }
    again = _answer(incoming, later, ()) if later else b""
    return Reply(bytes(identity.ack), again, "", identity.message_id, duplicate=True)


def _know_answer(incoming: Incoming, row: Message, unit: Unit | None = None) -> None:
    """Read what the fuller answer to an order tells: states that it asks for, and what its IPCs leave to us."""
    assert incoming.parsed is not None and incoming.profile is not None
    states = answers.asks_state(incoming.parsed)
    imaging = incoming.profile["order_answers"] == "full" and answers.wants_imaging(incoming.parsed)
    if unit is not None and (states or imaging):
        unit.flush()
    if states:
        incoming.states = states_of(row.request_ids)
    if imaging:
        incoming.imaging = imaging_of(row.request_ids)


def new_row(incoming: Incoming, identity: MessageIdentity, new: bool) -> Message:
    """The message's row: new, or the one it had when it was refused before."""
    row = None if new else Message.objects.filter(pk=identity.message_id).first()
    attempts = row.attempts + 1 if row else 1
    fresh = make(
        Message,
        id=identity.message_id,
        received_at=row.received_at if row else incoming.received_at,
        peer=_clipped(str(incoming.peer), 64),
        sender=incoming.sender or _sender_key(incoming),
        control_id=incoming.control_id,
        raw=incoming.raw,
        attempts=attempts,
        ack=b"",
    )
    mark_new(fresh, new)
    if incoming.profile is not None:
        fresh.source_id = incoming.profile.source_id
    message = incoming.parsed
    if message is not None:
        fresh.message_type = _clipped(message.message_type, 20)
        fresh.trigger_event = _clipped(message.trigger_event, 20)
        fresh.version = _clipped(message.version, 20)
        sent = incoming.head.sent_at if incoming.head else None
        fresh.sent_at = sent.utc() if sent else None
    return fresh


# Command → its service; those that come in numbers let what they must know be asked for beforehand.
_SERVICES: dict[type, Callable[..., Applied]] = {
    RegisterPatient: patients.register,
    MergePatients: merging.merge,
    ChangeIdentifier: merging.change_identifier,
    MoveIdentifiers: merging.move_identifiers,
    MoveVisits: merging.move_visits,
    ApplyOrders: orders.apply,
    FileReport: outside_reports.file,
}


_ASKING: dict[type, Callable[[Any], Callable[[], Context]]] = {
    RegisterPatient: patients.ask,
    ApplyOrders: orders.ask,
}


def carry_out(
    translated: translate.Translated, unit: Unit, row: Message, known: Context | None = None
) -> None:
    """Hand the commands to `ris`, in order, and note what they did. Raises Refused with the place.

    `known` is what the service of the only command asked for, in this transaction.
    """
    commands = translated.commands
    if (
        len(commands) > 1
    ):  # all lanes first, in sorted order; each command then sees what the one before wrote
        lanes.lock({v for c in commands for v in _identifier_values(c)})
    for index, command in enumerate(commands):
        if index:
            unit.flush()
        try:
            service = _SERVICES[type(command)]
            applied = service(command, unit, known) if known else service(command, unit)
        except Refusal as refusal:
            place = translated.locate(refusal.attribute, refusal.group)
            raise _NotDone(Problem(Code(refusal.code), refusal.text, place)) from refusal
        row.patient_ids = list(dict.fromkeys([*row.patient_ids, *applied.patient_ids]))
        row.request_ids = list(dict.fromkeys([*row.request_ids, *applied.request_ids]))
        row.accession_numbers = list(dict.fromkeys([*row.accession_numbers, *applied.accession_numbers]))
        row.warnings = [*row.warnings, *applied.warnings]


def _identifier_values(command: translate.Command) -> list[str]:
    """The values of every identifier that a command names: its lanes."""
    if isinstance(command, RegisterPatient):
        return [i.value for i in command.identifiers]
    if isinstance(command, MergePatients):
        return [i.value for i in (*command.survivor.identifiers, *command.prior)]
    if isinstance(command, ChangeIdentifier):
        return [i.value for i in (*command.patient.identifiers, command.prior)]
    if isinstance(command, MoveIdentifiers):
        return [i.value for i in (*command.patient.identifiers, *command.moved, *command.prior)]
    if isinstance(command, MoveVisits):
        return [i.value for i in (*command.patient.identifiers, *command.prior)]
    if isinstance(command, FileReport):
        return [i.value for i in command.patient.identifiers]
    return [i.value for i in command.patient.identifiers] or [g.keys.placer.value for g in command.groups]


def _lanes(translated: translate.Translated) -> list[str]:
    return sorted({v for c in translated.commands for v in _identifier_values(c) if v})


def _reply(
    incoming: Incoming, code: AckCode, problems: Sequence[Problem], message_id: int | None = None
) -> Reply:
    immediate, later = acks.replies(incoming.asked, code)
    built = [_answer(incoming, c, problems) if c else b"" for c in (immediate, later)]
    return Reply(built[0], built[1], (immediate or code).value, message_id)


def _plain_reply(incoming: Incoming) -> Reply | None:
    """What it will be answered if it is accepted, where that depends on nothing that is decided on the way."""
    return None if answers_fully(incoming) else _reply(incoming, AckCode.AA, ())


def answers_fully(incoming: Incoming) -> bool:
    """Whether the source or the message wants more than an ACK: such an answer reads what was written."""
    message, profile = incoming.parsed, incoming.profile
    full = profile is not None and profile["order_answers"] == "full"
    return message is not None and (full or answers.asks(message))


def _answer(incoming: Incoming, code: AckCode, problems: Sequence[Problem]) -> bytes:
    """An acknowledgement, or the fuller answer to an order where the source wants one."""
    at = incoming.received_at.astimezone(site_zone())
    message = incoming.parsed
    kind = answers.kind_of(message) if message and answers_fully(incoming) else None
    if message is None or kind is None or code.value[0] == "C":
        return acks.build(incoming.asked, code, problems, at=at)
    groups = answers.groups(
        message, code.positive, incoming.numbers, incoming.states, incoming.imaging if code.positive else {}
    )
    return acks.build(incoming.asked, code, problems, at=at, kind=kind, groups=groups)


def _assign_numbers(incoming: Incoming, unit: Unit) -> None:
    """Orders that a filler announces with SN get their accession number as placer number, for the NA we answer."""
    assert incoming.parsed is not None
    wanting = answers.wanting_numbers(incoming.parsed)
    if not wanting:
        return
    unit.flush()
    for filler, issuer in wanting:
        made = ImagingServiceRequest.objects.filter(filler_order_number=filler, filler_issuer=issuer).first()
        if made is None:
            continue
        keys = OrderKeys(placer=OrderNumber(made.accession_number), filler=OrderNumber(filler, issuer))
        group = OrderGroup(action=OrderAction.NUMBER_ASSIGNED, keys=keys)
        orders.apply(ApplyOrders(patient=RegisterPatient(identifiers=()), groups=(group,)), unit)
        incoming.numbers[filler] = made.accession_number


# -- not applied -------------------------------------------------------------------------------------------


def _refused(incoming: Incoming, refusal: Refused) -> Reply:
    """Answer AE or AR with the place, and keep the message where a person sees it."""
    code = AckCode(refusal.ack_code)
    if not incoming.sender:  # not even a header
        return _stored(incoming, State.FAULT, code, refusal.problem, stranger=True)
    state = State.REFUSED if code is AckCode.AE else State.REJECTED
    return _stored(incoming, state, code, refusal.problem, stranger=incoming.profile is None)


def _failed(incoming: Incoming, error: BaseException) -> Reply:
    """Something of ours failed: AR, which invites the sender to try again; stored if the database lets us."""
    locked = isinstance(error, Error) and _sqlstate(error) in _LOCKED_SQLSTATES
    if locked:
        problem = Problem(Code.RECORD_LOCKED, "The patient is busy with another message; send again.")
    else:
        problem = Problem(Code.INTERNAL, "The message could not be applied now; send again.")
        trace = "" if isinstance(error, Error) else "".join(traceback.format_tb(error.__traceback__))
        logger.error(
            "a message from %s could not be applied: %s %s\n%s",
            incoming.peer, type(error).__name__, _sqlstate(error), trace,
        )  # fmt: skip
    if _is_away(error):
        return _reply(incoming, AckCode.AR, [problem])
    return _stored(incoming, State.REJECTED, AckCode.AR, problem)


def _stored(
    incoming: Incoming, state: "Message.State", code: AckCode, problem: Problem, stranger: bool = False
) -> Reply:
    """Store a message that is not applied, in a transaction of its own, on its row if it has one."""
    if stranger and not _may_leave_a_row(incoming.peer.address):
        return _reply(incoming, code, [problem])
    try:
        with transaction.atomic():
            identity, new, _ = _identified(incoming, ask_identities([incoming]))
            if identity.accepted:  # its twin was accepted in the meantime
                return _again(incoming, identity)
            row = new_row(incoming, identity, new)
            row.state = state
            row.errors = [_described(problem)]
            row.warnings = [*incoming.warnings, *(incoming.head.warnings if incoming.head else ())]
            reply = _reply(incoming, code, [problem], row.pk)
            row.ack_code, row.ack = reply.code, reply.ack
            row.duration_ms = round((time.perf_counter() - incoming.started) * 1000, 3)
            unit = Unit(cause.hl7(row.pk), incoming.received_at)
            unit.save(row)
            unit.flush()
            return reply
    except Error as error:
        logger.error("a message from %s could not be stored: %s", incoming.peer, type(error).__name__)
        busy = Problem(Code.INTERNAL, "The message could not be stored; send again.")
        return _reply(incoming, AckCode.AR, [busy])


def receive_fault(fault: Fault, peer: Peer) -> Reply:
    """Store bytes that were no frame, and answer them where an answer can be understood."""
    incoming = Incoming(fault.data, peer, now(), time.perf_counter())
    incoming.digest = hashlib.sha256(fault.data).hexdigest()
    incoming.asked = acks.asking_of(fault.data)
    incoming.sender = _sender_key(incoming)
    incoming.control_id = _clipped(incoming.asked.control_id, 199)
    text = f"No whole message: {fault.kind.note} ({fault.length} bytes)."
    if fault.kind is FaultKind.OVERSIZE:
        problem = Problem(Code.INTERNAL, f"The message is too long: {fault.length} bytes.")
    else:
        problem = Problem(Code.SEGMENT_SEQUENCE, text)
    reply = _stored(incoming, State.FAULT, AckCode.AR, problem, stranger=True)
    answerable = fault.kind is FaultKind.OVERSIZE or (
        fault.kind is FaultKind.STRAY and bool(incoming.asked.control_id)
    )
    return reply if answerable else Reply(b"", b"", reply.code, reply.message_id)


_left: dict[str, deque[float]] = defaultdict(deque)


def _may_leave_a_row(address: str) -> bool:
    """Whether what this address sends is stored although nobody knows it: so many a minute, no more."""
    times, moment = _left[address], time.monotonic()
    while times and moment - times[0] > 60:
        times.popleft()
    if len(times) >= _STRANGERS_A_MINUTE:
        return False
    times.append(moment)
    if len(_left) > 10_000:
        _left.clear()
    return True


# -- applied later (policy `stored`) -----------------------------------------------------------------------

_NEXT = """
SELECT m.id FROM integration_message m
WHERE m.state = 'waiting' AND m.solved_at IS NULL AND NOT EXISTS (
    SELECT 1 FROM integration_message e
    WHERE e.state IN ('waiting', 'parked') AND e.solved_at IS NULL AND e.id < m.id AND e.lanes && m.lanes)
ORDER BY m.id LIMIT 1 FOR UPDATE OF m SKIP LOCKED
"""


def apply_waiting(limit: int = 100) -> int:
    """Apply stored messages that wait, each lane in its order; returns how many were taken.

    One that cannot be applied is parked and holds its lane until a person solves it.
    """
    for done in range(limit):
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute(_NEXT)
                found = cursor.fetchone()
            if found is None:
                return done
            row = Message.objects.get(pk=found[0])
            _apply_stored(row)
    return limit


def _apply_stored(row: Message) -> None:
    unit = Unit(cause.hl7(row.pk))
    try:
        with transaction.atomic():
            row.patient_ids, row.request_ids, row.accession_numbers = [], [], []
            apply_bytes(row, unit)
            row.state, row.applied_at = State.APPLIED, unit.at
            unit.save(row)
            unit.flush()
            return
    except Refused as refusal:
        problem = refusal.problem
    except Error as error:
        if _is_away(error) or _sqlstate(error) in _RETRY_SQLSTATES | _LOCKED_SQLSTATES:
            raise
        problem = Problem(Code.INTERNAL, "The database does not take what the message says.")
    except Exception as error:
        trace = "".join(traceback.format_tb(error.__traceback__))  # no text of the error: it may hold a value
        logger.error("message %s could not be applied: %s\n%s", row.pk, type(error).__name__, trace)
        problem = Problem(Code.INTERNAL, "The message could not be applied; a fault of ours.")
    row.refresh_from_db()
    row.state, row.errors, row.attempts = State.PARKED, [_described(problem)], row.attempts + 1
    row.save(update_fields=["state", "errors", "attempts"])


def apply_bytes(row: Message, unit: Unit, profile: Profile | None = None) -> bool:
    """Apply the stored bytes of a message into the unit, by a profile or its source's present one. Raises Refused.

    Returns whether the message is of a type that is applied.
    """
    found = profile or next((p for s, p in sources.all_sources() if s.pk == row.source_id), None)
    if found is None:
        raise Refused(
            Problem(Code.TABLE_VALUE, "The message's source is not configured.", Location("MSH", 1, 3))
        )
    message = found.read(bytes(row.raw))
    head = Head(message, found, row.received_at)
    translate.check_header(message, head)
    translated = translate.translate(head)
    if translated is not None:
        carry_out(translated, unit, row)
    row.warnings = [*row.warnings, *head.warnings]
    return translated is not None


# -- small things ------------------------------------------------------------------------------------------


def _described(problem: Problem) -> dict[str, Any]:
    return {
        "code": int(problem.code),
        "meaning": problem.code.meaning,
        "place": str(problem.location) if problem.location else "",
        "text": problem.text,
        "severity": problem.severity.value if problem.severity else Severity.ERROR.value,
    }


def _sender_key(incoming: Incoming) -> str:
    """MSH-3 and MSH-4 as sent, or the peer's address where both are empty."""
    said = "|".join(incoming.asked.sender)
    return _clipped(said if said != "|" else incoming.peer.address, 300)


def _clipped(text: str, limit: int) -> str:
    """At most so many characters; a longer one keeps a digest, so that two never become one."""
    text = text.replace("\x00", "")
    if len(text) <= limit:
        return text
    return text[: limit - 17] + "#" + hashlib.sha256(text.encode()).hexdigest()[:16]


def _sqlstate(error: BaseException) -> str:
    return str(getattr(error.__cause__, "sqlstate", None) or "")


def _is_away(error: BaseException) -> bool:
    """Whether the database cannot be reached (no SQLSTATE, class 08 or 57P)."""
    if not isinstance(error, OperationalError | InterfaceError):
        return False
    state = _sqlstate(error)
    return not state or state.startswith(("08", "57P"))
