"""Messages that wait at the same time share a transaction, where none of them can meet another.

Most of what a message costs is its round trips, its statements and its COMMIT, and these are the same for a dozen
messages as for one. So those whose patients and orders are different, and whose lanes are free, are decided one after
the other and written together. Nothing is written before all have decided: one that is refused just falls out, and
if the writing fails, nothing has happened. Whatever cannot share is received alone, as if it had never been here.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from django.db import transaction

from common import wire
from common.crashpoints import crashpoint
from common.store import Unit
from common.wire import together
from integration import inbox
from integration.hl7v2 import batches
from integration.hl7v2.errors import Refused
from integration.inbox import Incoming, Peer, Reply
from integration.models import MessageIdentity
from ris import context
from ris.commands import ApplyOrders, RegisterPatient
from ris.services import lanes, orders, patients
from ris.services.lanes import Lane

logger = logging.getLogger(__name__)

MOST = 16
"""Messages in one transaction."""
LONGEST = 64 << 10
"""Bytes of a message that may share: the others wait while it is read."""
_WAIT_MS = 200  # for a twin in another transaction; then each goes alone, and waits as long as it must

Arrival = tuple[bytes, Peer, Sequence[str]]
"""A frame's payload, who sent it, and what the framing noted."""
Keys = dict[str, list[str]]

_WANTED: dict[type, Callable[[Any], Keys]] = {ApplyOrders: orders.wanted, RegisterPatient: patients.wanted}


def receive(arrivals: Sequence[Arrival], answer: Callable[[dict[int, Reply]], None]) -> list[int]:
    """Apply what can share a transaction, and `answer` by its number, after COMMIT; returns the numbers of the rest.

    The rest, in its order, is for `inbox.receive`, each by itself: nothing of it has been kept.
    """
    company: dict[int, Incoming] = {}
    wanted: dict[int, Keys] = {}
    spoken_of: set[tuple[str, str]] = set()
    for number, arrival in enumerate(arrivals):
        incoming = inbox.arrived(*arrival)
        keys = _keys(incoming)
        if keys is None:
            continue
        names = {(kind, v) for kind, values in keys.items() for v in values if v}
        names.add((incoming.sender, incoming.control_id))
        if spoken_of.isdisjoint(names):
            company[number], wanted[number] = incoming, keys
        spoken_of |= names  # also of one that goes alone: what came after it stays after it
    replies = _shared(company, wanted) if len(company) > 1 else {}
    if replies:
        answer(replies)
    return [n for n in range(len(arrivals)) if n not in replies]


def _keys(incoming: Incoming) -> Keys | None:
    """What the message is about, if it may share: one command about a patient, applied at once, answered simply."""
    if batches.is_batch(incoming.raw):
        return None
    try:
        inbox.recognise(incoming)
        inbox.read(incoming)
    except Exception:  # told when it is received alone
        return None
    translated = incoming.translated
    if translated is None or len(translated.commands) != 1 or inbox.answers_fully(incoming):
        return None
    command = translated.commands[0]
    wanted = _WANTED.get(type(command))
    keys = wanted(command) if wanted else {}
    return keys if any(keys.get("identifiers", ())) else None


def _shared(company: dict[int, Incoming], wanted: dict[int, Keys]) -> dict[int, Reply]:
    """The answers of those that were applied, by their numbers; none where the transaction failed."""
    try:
        with transaction.atomic():
            replies = _apply(company, wanted)
            if not replies:
                transaction.set_rollback(True)
    except Exception as error:
        logger.info("%d messages go alone: %s", len(company), type(error).__name__)
        inbox.ready_again(error)
        return {}
    for number, reply in replies.items():
        reply.profile = company[number].profile
    return replies


def _apply(company: dict[int, Incoming], wanted: dict[int, Keys]) -> dict[int, Reply]:
    """Identify, read, decide, write and commit; the answers by number. What falls out leaves nothing behind."""
    every: dict[str, Any] = defaultdict(list)
    for keys in wanted.values():
        for kind, values in keys.items():
            every[kind] += values
    with together():
        told = inbox.ask_identities(list(company.values()), _WAIT_MS)
        free = lanes.ask_if_free(every["identifiers"])
        known = context.ask(**every)
    crashpoint("inbox.after_identity")
    held, ctx = free(), known()
    replies: dict[int, Reply] = {}
    units: list[Unit] = []
    in_vain: list[str] = []
    met: set[bytes] = set()
    for (number, incoming), (identity, reused) in zip(company.items(), told(), strict=True):
        if identity is None:  # it was here before, or is at work elsewhere
            continue
        own = [held[v] for v in wanted[number]["identifiers"] if v]
        decided = None
        if _is_free(own, met):
            decided = _decide(incoming, identity, reused, ctx)
        met |= {p for lane in own for p in lane.patients}
        if decided is None:
            in_vain.append(str(identity.id))
            continue
        replies[number] = decided[0]
        units.append(decided[1])
    if not replies:
        return {}
    if in_vain:
        wire.ask("DELETE FROM integration_messageidentity WHERE id = ANY($1::bigint[])", (in_vain,))
    for unit in units[1:]:
        units[0].join(unit)
    crashpoint("inbox.before_commit")
    units[0].commit()
    return replies


def _is_free(own: list[Lane], met: set[bytes]) -> bool:
    """Whether all lanes are held, and lead to no patient that an earlier message leads to by another identifier."""
    return all(lane.held and lane.patients.isdisjoint(met) for lane in own)


def _decide(
    incoming: Incoming, identity: MessageIdentity, reused: bool, ctx: context.Context
) -> tuple[Reply, Unit] | None:
    """The message's answer and rows; None where it is refused: then it is refused again, alone, where that is kept."""
    row = inbox.new_row(incoming, identity, new=True)
    try:
        return inbox.decide(incoming, identity, row, reused, lambda: ctx)
    except Refused:
        return None
