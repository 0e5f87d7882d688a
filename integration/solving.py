"""What a person does with a message: apply it again, replay, edit, park, release, skip; each with a reason, each noted.

The bytes that came are never changed: an edited message is a row of its own that names its original.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from django.db import transaction

from common import cause
from common.clock import now, site_zone
from common.store import Unit
from integration import inbox, sources
from integration.hl7v2 import acks, charsets
from integration.hl7v2.acks import AckCode
from integration.hl7v2.errors import Code, Location, Problem, Refused, refuse
from integration.models import Message, MessageDeed, MessageIdentity

State = Message.State
Did = MessageDeed.What

MOST = 200  # messages replayed at once


class NotOpen(Exception):
    """The message is settled already, or not in a state for this; the text says how."""


@dataclass(frozen=True)
class Replayed:
    """What came of replaying one message: its state, and the problem if it was refused."""

    message_id: int
    state: str
    problem: Problem | None = None


# -- applied once more


def apply_again(message_id: int, by: str, reason: str) -> None:
    """Apply the stored bytes by the source's present profile. Raises Refused (with the place) or NotOpen.

    A message that was answered AE counts as accepted from now on: sent again, it changes nothing.
    """
    with transaction.atomic():
        _apply(_open(message_id), by, reason, Did.APPLIED)


def replay(message_ids: Sequence[int], by: str, reason: str, go_on: bool = False) -> list[Replayed]:
    """Apply messages again in the order in which they came, whatever became of them; each in its own transaction.

    Ends at the first that is refused unless `go_on`. Older facts do not overwrite newer ones here either.
    """
    done: list[Replayed] = []
    for message_id in sorted(set(message_ids))[:MOST]:
        try:
            with transaction.atomic():
                row = Message.objects.select_for_update().get(pk=message_id)
                _apply(row, by, reason, Did.REPLAYED)
            done.append(Replayed(row.pk, row.state))
        except Refused as refusal:
            _note(message_id, by, Did.REPLAYED, reason, _said(refusal.problem))
            done.append(Replayed(message_id, State.REFUSED, refusal.problem))
            if not go_on:
                break
    return done


def _apply(row: Message, by: str, reason: str, what: str) -> None:
    before = row.get_state_display().partition(":")[0].lower()
    was_open = row.state in Message.OPEN_STATES and row.solved_at is None
    row.patient_ids, row.request_ids, row.accession_numbers, row.warnings = [], [], [], []
    unit = Unit(cause.hl7(row.pk))
    applies = inbox.apply_bytes(row, unit)
    row.state = State.APPLIED if applies or was_open else State.KEPT
    row.applied_at, row.attempts = unit.at, row.attempts + 1
    if was_open:
        row.solved_at, row.solved_by, row.solved_reason = unit.at, by, reason[:300]
    unit.save(row)
    unit.flush()
    if was_open:
        _accept(row, unit)
    _note(row.pk, by, what, reason, f"{before} → {row.get_state_display().partition(':')[0].lower()}")


def _accept(row: Message, unit: Unit) -> None:
    """Sent again, it is answered AA from now on and changes nothing."""
    asked = acks.asking_of(bytes(row.raw))
    ack = acks.build(asked, AckCode.AA, [], at=unit.at.astimezone(site_zone()))
    MessageIdentity.objects.filter(message_id=row.pk).update(accepted=True, ack=ack)


# -- edited


def text_of(row: Message) -> tuple[str, str]:
    """A message as one edits it, a segment a line, and the name of the character set it is written in."""
    raw, profile = bytes(row.raw), sources.profile_of(row.source_id)
    try:
        message = profile.read(raw)
    except Refused:
        return raw.decode("latin-1").replace("\r\n", "\n").replace("\r", "\n"), "8859/1"
    return "\n".join(s.raw for s in message.segments), message.codec


def bytes_of(row: Message, text: str) -> bytes:
    """An edited text as bytes, in the message's character set. Raises Refused where it cannot be written in it."""
    _, codec = text_of(row)
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    body = "\r".join(line for line in lines if line) + "\r"
    try:
        return charsets.encode(body, codec, transliterate=False)
    except ValueError:
        problem = (
            f"The text has characters that its character set ({codec}) lacks; change MSH-18 or the text."
        )
        raise refuse(Code.DATA_TYPE, problem, Location("MSH", 1, 18)) from None


def resubmit(message_id: int, text: str, by: str, reason: str) -> Message:
    """Apply an edited copy of a message, which becomes a row of its own; the original is settled and kept as it came.

    Nothing is stored when it is refused. Raises Refused with the place, or NotOpen when nothing was changed.
    """
    with transaction.atomic():
        original = Message.objects.select_for_update().get(pk=message_id)
        raw = bytes_of(original, text)
        if raw == bytes(original.raw):
            raise NotOpen("Nothing is changed in it. Apply it again as it is, or replay it.")
        profile = sources.profile_of(original.source_id)
        message = profile.read(raw)
        identity, made = MessageIdentity.objects.get_or_create(
            sender=original.sender, control_id=message.control_id, sha256=hashlib.sha256(raw).hexdigest()
        )
        if not made and identity.accepted:
            raise NotOpen("Exactly this message was accepted before; it changes nothing.")
        copy = Message(
            received_at=now(), source_id=original.source_id, peer=original.peer, sender=original.sender,
            control_id=message.control_id[:199], message_type=message.message_type[:20],
            trigger_event=message.trigger_event[:20], version=message.version[:20], sent_at=original.sent_at,
            raw=raw, state=State.WAITING, attempts=0, original=original,
        )  # fmt: skip
        copy.save()
        identity.message_id = copy.pk
        identity.save(update_fields=["message_id"])
        _apply(copy, by, reason, Did.EDITED)
        if original.state in Message.OPEN_STATES and original.solved_at is None:
            original.solved_at, original.solved_by = now(), by
            original.solved_reason = f"Edited and applied as message {copy.pk}. {reason}".strip()[:300]
            original.save(update_fields=["solved_at", "solved_by", "solved_reason"])
        _note(original.pk, by, Did.EDITED, reason, f"as message {copy.pk}")
    return copy


# -- left, held, let go


def skip(message_id: int, by: str, reason: str) -> None:
    """Leave a message for good; its lane goes on. Raises NotOpen."""
    with transaction.atomic():
        row = _open(message_id)
        row.state = State.SKIPPED
        row.solved_at, row.solved_by, row.solved_reason = now(), by, reason[:300]
        row.save(update_fields=["state", "solved_at", "solved_by", "solved_reason"])
        _note(row.pk, by, Did.SKIPPED, reason)


def park(message_id: int, by: str, reason: str) -> None:
    """Set an open message aside until a person releases it; where its source stores first, its lane waits behind it.

    Raises NotOpen.
    """
    with transaction.atomic():
        row = _open(message_id)
        if row.state == State.PARKED:
            raise NotOpen("The message is parked already.")
        row.state = State.PARKED
        row.save(update_fields=["state"])
        _note(row.pk, by, Did.PARKED, reason)


def release(message_id: int, by: str, reason: str) -> None:
    """Let a parked message be applied in its lane's order again. Raises NotOpen."""
    with transaction.atomic():
        row = _open(message_id)
        if row.state != State.PARKED:
            raise NotOpen("Only a parked message can be released.")
        row.state, row.errors = State.WAITING, []
        row.save(update_fields=["state", "errors"])
        _note(row.pk, by, Did.RELEASED, reason)


def _open(message_id: int) -> Message:
    row = Message.objects.select_for_update().get(pk=message_id)
    if row.state not in Message.OPEN_STATES or row.solved_at is not None:
        raise NotOpen(f"The message is settled: {row.get_state_display()}.")
    return row


def _note(message_id: int, by: str, what: str, reason: str, outcome: str = "") -> None:
    MessageDeed.objects.create(
        message_id=message_id, at=now(), by=by, what=what, reason=reason[:300], outcome=outcome[:300]
    )


def _said(problem: Problem) -> str:
    return f"refused: {problem.text} {problem.location or ''}".strip()


__all__ = [
    "NotOpen", "Refused", "Replayed", "apply_again", "bytes_of", "park", "release", "replay", "resubmit", "skip",
    "text_of",
]  # fmt: skip
