"""What would happen if stored messages, or an edited one, were applied now: tried on copies, nothing kept."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from integration import sources
from integration.analyst.sandbox import Keys, Tried, attempt, copied, fill, sandbox
from integration.models import Message

SECONDS = 8.0


@dataclass(frozen=True)
class Previewed:
    """One message and what would become of it; nothing when the time was up before its turn."""

    message: Message
    tried: Tried | None

    @property
    def refused(self) -> bool:
        """Whether it would not be applied."""
        return self.tried is not None and self.tried.state in (Message.State.REFUSED, Message.State.REJECTED)


def preview(rows: Sequence[Message], seconds: float = SECONDS) -> list[Previewed]:
    """Try messages one after the other, in the order of their ids, on copies of what they concern as it is now."""
    deadline = time.monotonic() + seconds
    ordered = sorted(rows, key=lambda row: row.pk or 0)
    keys = Keys()
    for row in ordered:
        keys.add(row, sources.profile_of(row.source_id))
    copies = copied(keys)
    done: list[Previewed] = []
    with sandbox():
        fill(copies)
        for row in ordered:
            in_time = time.monotonic() < deadline
            done.append(Previewed(row, attempt(row, sources.profile_of(row.source_id)) if in_time else None))
    return done


def edited(row: Message, raw: bytes) -> Previewed:
    """Try other bytes in the place of a message's own."""
    trial = Message(
        id=row.pk, received_at=row.received_at, source_id=row.source_id, raw=raw, control_id=row.control_id,
        message_type=row.message_type, trigger_event=row.trigger_event,
    )  # fmt: skip
    return preview([trial])[0]
