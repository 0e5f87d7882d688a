"""What a person does with a message that was not applied: try it again, or skip it, each with a reason."""

from django.db import transaction

from common import cause
from common.clock import now, site_zone
from common.store import Unit
from integration import inbox
from integration.hl7v2 import acks
from integration.hl7v2.acks import AckCode
from integration.hl7v2.errors import Refused
from integration.models import Message, MessageIdentity

State = Message.State


class NotOpen(Exception):
    """The message is settled already; the text says how."""


def apply_again(message_id: int, by: str, reason: str) -> None:
    """Apply the stored bytes by the source's present profile. Raises Refused (with the place) or NotOpen.

    A message that was answered AE counts as accepted from now on: sent again, it changes nothing.
    """
    with transaction.atomic():
        row = _open(message_id)
        row.patient_ids, row.request_ids, row.accession_numbers = [], [], []
        unit = Unit(cause.hl7(row.pk))
        inbox.apply_bytes(row, unit)
        row.state, row.applied_at, row.attempts = State.APPLIED, unit.at, row.attempts + 1
        row.solved_at, row.solved_by, row.solved_reason = unit.at, by, reason[:300]
        unit.save(row)
        unit.flush()
        asked = acks.asking_of(bytes(row.raw))
        ack = acks.build(asked, AckCode.AA, [], at=unit.at.astimezone(site_zone()))
        MessageIdentity.objects.filter(message_id=row.pk).update(accepted=True, ack=ack)


def skip(message_id: int, by: str, reason: str) -> None:
    """Leave a message for good; its lane goes on. Raises NotOpen."""
    with transaction.atomic():
        row = _open(message_id)
        row.state = State.SKIPPED
        row.solved_at, row.solved_by, row.solved_reason = now(), by, reason[:300]
        row.save(update_fields=["state", "solved_at", "solved_by", "solved_reason"])


def _open(message_id: int) -> Message:
    row = Message.objects.select_for_update().get(pk=message_id)
    if row.state not in Message.OPEN_STATES or row.solved_at is not None:
        raise NotOpen(f"The message is settled: {row.get_state_display()}.")
    return row


__all__ = ["NotOpen", "Refused", "apply_again", "skip"]
