"""MPPS told on to other receivers: queued with the fact, in order for each performed step, sent by outbox workers.

A destination of kind `mpps` gets every N-CREATE and N-SET that a scanner's message was taken in with, as the
scanner said it. An N-SET never overtakes its N-CREATE: they share a lane.
"""

from __future__ import annotations

from typing import Any

import orjson
from django.conf import settings

from common.store import Unit
from integration.delivery import Outcome
from integration.destinations import setting, tls_context
from integration.hl7v2.outgoing import ComposeError
from integration.models import Destination, OutboxItem
from integration.outbox import queue, subscribed
from pacs.dimse import sender
from pacs.dimse.errors import AssociationRefused, Ended
from pacs.dimse.registry import EXPLICIT_VR_LITTLE_ENDIAN
from ris.events import StepPerformed
from worklist import relay


def on_step_performed(event: StepPerformed, unit: Unit) -> None:
    """The message to each MPPS receiver that is switched on, and takes this scanner's."""
    performed = event.performed
    for destination in subscribed():
        if destination.kind != Destination.Kind.MPPS or not _wants(
            destination, performed.performed_station_ae_title
        ):
            continue
        queue(
            unit,
            destination,
            kind="MPPS",
            subject=f"performed:{performed.id}",
            lane=f"performed:{performed.id}",
            patient_id=performed.patient_id,
            facts={
                "command": "N-CREATE" if event.created else "N-SET",
                "uid": performed.sop_instance_uid,
                "attributes": dict(event.said),
            },
        )


def _wants(destination: Destination, station: str) -> bool:
    chosen = setting(destination, "stations")
    return not chosen or station in chosen


class MppsReceiver:
    """DIMSE to one MPPS receiver: done by its response, on one association while a worker drains the queue."""

    def __init__(self, destination: Destination) -> None:
        called = setting(destination, "called_ae")
        if not (destination.host and destination.port and called):
            raise ValueError(f"{destination.name} needs host, port and `called_ae`.")
        self._receiver = relay.Receiver(
            sender.Destination(
                destination.host,
                destination.port,
                called,
                setting(destination, "calling_ae") or settings.ORDERLY_AE_TITLE,
                tls_context(destination) if setting(destination, "tls") else None,
            ),
            connect_seconds=float(setting(destination, "connect_seconds")),
            answer_seconds=float(setting(destination, "ack_seconds")),
        )

    def prepare(self, item: OutboxItem) -> bytes:
        """The message in DICOM JSON, once it is known that it can be encoded. Raises ComposeError."""
        try:
            relay.encoded(item.facts["attributes"], EXPLICIT_VR_LITTLE_ENDIAN)
        except Exception as error:
            raise ComposeError(
                f"The scanner's attributes cannot be encoded: {type(error).__name__}."
            ) from None
        kept = {name: item.facts[name] for name in ("command", "uid", "attributes")}
        return orjson.dumps(kept, option=orjson.OPT_INDENT_2)

    def deliver(self, item: OutboxItem) -> Outcome:
        """Send it and read the status; one that says "I have that already" counts as delivered."""
        said: dict[str, Any] = orjson.loads(bytes(item.payload or b""))
        try:
            response = self._receiver.tell(said["command"], said["uid"], said["attributes"])
        except (AssociationRefused, Ended, OSError) as error:
            return Outcome("transport", str(error)[:200], again=True, down=True)
        verdict = relay.verdict(said["command"], response, repeated=item.attempts > 1)
        answer = f"{said['command']}: {response.status:04X} {response.get('ErrorComment') or ''}".strip()
        if verdict in ("taken", "known"):
            detail = "" if verdict == "taken" else f"it had it already ({response.status:04X})"
            return Outcome("delivered", detail, answer.encode())
        return Outcome("refused", answer, answer.encode(), again=verdict == "again")

    def close(self) -> None:
        """Release the association."""
        self._receiver.close()
