"""Delivery: the outbox drained, destination by destination, lane by lane.

PostgreSQL is the queue of record. A worker claims the head of a lane with a lease, sends outside any
transaction, and settles the item it still owns. Within a lane nothing overtakes; a failed head backs off and its
lane waits behind it, other lanes go on. A parked item lets its lane go on. A crash between send and settle sends
the same bytes with the same control id again, never something else before them.
"""

import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Event
from typing import Any, Protocol

from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet

from common import alerts, audit
from common.clock import now
from common.crashpoints import crashpoint
from integration import kept, leases
from integration.destinations import setting, tls_context
from integration.hl7v2 import demographics, mdm, results, status
from integration.hl7v2.outgoing import ComposeError
from integration.hl7v2.sender import NotAnswered, Sender, Unreachable
from integration.models import DeliveryAttempt, Destination, OutboxItem

logger = logging.getLogger(__name__)

# A lease outlives every bound of one attempt by this much, so that a slow attempt is not taken for a dead one.
_LEASE_MARGIN_SECONDS = 30.0
# An item whose worker died so often in the middle of it is parked: it may be what kills them.
_CRASHES_MOST = 5


@dataclass(frozen=True)
class Outcome:
    """What came of one attempt. `answer` are the bytes that settled it, `detail` says more, for pages."""

    name: str
    """`delivered`, `unchanged`, `refused`, `rejected`, `timeout`, `transport` or `compose`."""
    detail: str = ""
    answer: bytes = b""
    again: bool = False
    """Whether sending the same again can help."""
    down: bool = False
    """Whether it speaks of the destination (no connection, no answer), not of this item."""
    pause: float | None = None
    """Seconds after which the peer asked us to come back."""

    @property
    def done(self) -> bool:
        """Whether the destination has it."""
        return self.name in ("delivered", "unchanged")


class Transport(Protocol):
    """The way to one destination, open while a worker drains it."""

    def prepare(self, item: OutboxItem) -> bytes | None:
        """The bytes that are kept before the first attempt, or None where each attempt makes its own.

        Raises ComposeError.
        """
        ...

    def deliver(self, item: OutboxItem) -> Outcome:
        """One attempt, bounded in time. Raises ComposeError."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


# ---------------------------------------------------------------------------------------------- transports


_COMPOSERS: dict[str, Callable[[Mapping[str, Any], Destination, str], bytes]] = {
    "ORU": results.compose,
    "MDM": mdm.compose,
    "ORM": status.compose,
    "OMG": status.compose_omg,
    "OMI": status.compose_omi,
    "ADT": demographics.compose,
}


class Mllp:
    """HL7 v2 over MLLP: done by the ACK that names the message, on the connection it was sent on."""

    def __init__(self, destination: Destination) -> None:
        self.destination = destination
        self.sender = Sender(
            destination.host,
            destination.port or 0,
            tls=tls_context(destination) if setting(destination, "tls") else None,
            server_name=setting(destination, "tls_server_name"),
            connect_timeout=float(setting(destination, "connect_seconds")),
            write_timeout=float(setting(destination, "write_seconds")),
            ack_timeout=float(setting(destination, "ack_seconds")),
            application_ack=bool(
                setting(destination, "enhanced") and setting(destination, "application_ack")
            ),
        )

    def prepare(self, item: OutboxItem) -> bytes:
        """Compose and check the message; once, for retries send these bytes."""
        compose = _COMPOSERS.get(item.kind)
        if compose is None:
            raise ComposeError(f"There is no HL7 message of kind {item.kind}.")
        return compose(item.facts, self.destination, item.control_id)

    def deliver(self, item: OutboxItem) -> Outcome:
        """Send the kept bytes and read the answer: by the destination's rules it is taken, final, or tried again."""
        try:
            answer = self.sender.send(bytes(item.payload or b""), item.control_id)
        except Unreachable as error:
            return Outcome("transport", str(error), again=True, down=True)
        except NotAnswered as error:
            return Outcome("timeout", str(error), again=True, down=True)
        verdict = answer.ruled(setting(self.destination, "ack_rules"))
        said = " ".join(part for part in (answer.code, ",".join(answer.error_codes), answer.text) if part)
        if verdict == "accept":
            return Outcome("delivered", "" if answer.accepted else said, answer.raw)
        name = "refused" if answer.code in ("AE", "CE") else "rejected"
        return Outcome(name, said, answer.raw, again=verdict == "retry")

    def close(self) -> None:
        """Close the connection."""
        self.sender.close()


def open_transport(destination: Destination) -> Transport:
    """The transport of a destination's kind."""
    if destination.kind == Destination.Kind.FHIR:
        from integration.fhir.mirror import FhirServer

        return FhirServer(destination)
    if destination.kind == Destination.Kind.MPPS:
        from integration.performed import MppsReceiver

        return MppsReceiver(destination)
    return Mllp(destination)


# What this process keeps open for the next message.
KEPT: kept.Kept[Transport] = kept.Kept()


# ------------------------------------------------------------------------------------------------ draining


def drain(destination_id: int, stopping: Event | None = None, seconds: float = 20.0) -> tuple[int, bool]:
    """Send what is due to one destination; returns how many were tried and whether more may be due.

    Goes on until nothing is due, it is told to stop, or its time is up and another destination should have the
    thread. Returns at once when as many workers as the destination allows are at it already.
    """
    tried, end = 0, time.monotonic() + seconds
    way: kept.Way[Transport] | None = None
    served: Destination | None = None
    try:
        while not (stopping and stopping.is_set()):
            if time.monotonic() > end:
                return tried, True
            claimed = claim(destination_id)
            if claimed is None:
                left = pause_of(destination_id)
                if not left:
                    break
                (stopping or Event()).wait(min(left, max(0.0, end - time.monotonic())))
                continue
            tried += 1
            served = claimed.destination
            if way is not None and not way.fits(served):
                way.transport.close()
                way = None
            try:
                way = way or KEPT.take(served) or kept.opened(open_transport(served), served)
            except (
                OSError,
                ValueError,
            ) as error:  # settings that make no connection: a bad url, no such file
                fault = Outcome("transport", f"settings: {error}", again=True, down=True)
                settle(claimed, fault, now(), 0.0)
                continue
            attempt(claimed, way.transport)
    finally:
        if way is not None and served is not None:
            KEPT.give(way, served)
    return tried, False


def claim(destination_id: int) -> OutboxItem | None:
    """Lease the oldest due head of a lane that nobody works at; None when there is none or no place is free.

    Claims of one destination are serialised by its row, so that two workers never see the same free lane.
    """
    with transaction.atomic():
        destination = (
            Destination.objects.select_for_update(no_key=True).filter(pk=destination_id, enabled=True).first()
        )
        moment = now()
        if destination is None or (
            destination.circuit_open_until and destination.circuit_open_until > moment
        ):
            return None
        if _paced(destination, moment) > 0:
            return None
        busy = list(
            queued().filter(destination=destination, lease_until__gt=moment).values_list("lane", flat=True)
        )
        if len(busy) >= _places(destination):
            return None
        item = due_heads(moment).filter(destination=destination).exclude(lane__in=busy).order_by("id").first()
        if item is None:
            return None
        item.destination = destination
        item.attempts += 1
        item.lease_owner = leases.name()
        item.lease_until = moment + timedelta(seconds=_longest_attempt(destination) + _LEASE_MARGIN_SECONDS)
        item.save(update_fields=["attempts", "lease_owner", "lease_until"])
        return item


def free_dead_leases() -> int:
    """Take back what workers of this machine held when they died; returns how many items that were.

    Such an item waits as after a failure, longer each time, for it may be what kills them.
    """
    held = queued().filter(lease_until__gt=now()).select_related("destination")
    freed = 0
    for item in held.order_by("id"):
        if not leases.is_dead(item.lease_owner):
            continue
        deaths = max(1, item.attempts - item.tries.count())
        due = now() + timedelta(seconds=backoff(item.destination, deaths))
        freed += (
            queued()
            .filter(pk=item.pk, lease_owner=item.lease_owner)
            .update(lease_owner="", lease_until=None, due_at=due)
        )
    if freed:
        logger.warning("%s outbox item(s) of a worker that died are free again", freed)
    return freed


def pause_of(destination_id: int) -> float:
    """Seconds until the destination's pace lets the next message through; 0 when that is not why nothing goes."""
    destination = Destination.objects.filter(pk=destination_id, enabled=True).first()
    moment = now()
    if destination is None or not due_heads(moment).filter(destination=destination).exists():
        return 0.0
    if destination.circuit_open_until and destination.circuit_open_until > moment:
        return 0.0
    return _paced(destination, moment)


def _paced(destination: Destination, moment: datetime) -> float:
    """Seconds to wait for the pace: what was begun last, and is done or under way, tells when the next may begin."""
    most = float(setting(destination, "per_minute"))
    if most <= 0:
        return 0.0
    gap = timedelta(seconds=60 / most)
    tries = DeliveryAttempt.objects.filter(at__gt=moment - gap, item__destination=destination)
    leases = queued().filter(destination=destination, lease_until__gt=moment)
    held = timedelta(seconds=_longest_attempt(destination) + _LEASE_MARGIN_SECONDS)
    begun = list(tries.values_list("at", flat=True))
    begun += [until - held for until in leases.values_list("lease_until", flat=True) if until]
    return max(0.0, (max(begun) + gap - moment).total_seconds()) if begun else 0.0


def queued() -> QuerySet[OutboxItem]:
    """Items that wait to be sent."""
    return OutboxItem.objects.filter(state=OutboxItem.State.QUEUED)


def due_heads(moment: datetime) -> QuerySet[OutboxItem]:
    """Heads of lanes that are due and not leased."""
    before = queued().filter(
        destination=OuterRef("destination"), lane=OuterRef("lane"), id__lt=OuterRef("id")
    )
    free = Q(lease_until=None) | Q(lease_until__lte=moment)
    return queued().filter(free, due_at__lte=moment).exclude(Exists(before))


def attempt(item: OutboxItem, transport: Transport) -> Outcome:
    """Compose if that was not done yet, send, and settle. Never raises for what a peer or a message does."""
    started, begun = now(), time.monotonic()
    outcome = _crashed_too_often(item) or _prepared(item, transport)
    if outcome is None:
        crashpoint("delivery.before_send")
        try:
            outcome = transport.deliver(item)
        except ComposeError as error:
            outcome = Outcome("compose", str(error))
        except Exception as error:  # our own fault: one bad item must not stop its destination
            logger.exception("outbox item %s could not be delivered", item.pk)
            outcome = Outcome("transport", f"internal error: {type(error).__name__}", again=True)
        crashpoint("delivery.between_send_and_settle")
    settle(item, outcome, started, (time.monotonic() - begun) * 1000)
    return outcome


def _prepared(item: OutboxItem, transport: Transport) -> Outcome | None:
    """Store the composed bytes before the first attempt; an outcome only when that fails."""
    if item.payload:
        return None
    try:
        payload = transport.prepare(item)
    except ComposeError as error:
        return Outcome("compose", str(error))
    except Exception as error:
        logger.exception("outbox item %s could not be composed", item.pk)
        return Outcome("compose", f"internal error: {type(error).__name__}")
    if payload is not None:
        item.payload = payload
        OutboxItem.objects.filter(pk=item.pk, lease_owner=item.lease_owner).update(payload=payload)
    return None


def _crashed_too_often(item: OutboxItem) -> Outcome | None:
    """Attempts that left no trace were cut off by a crash; after a few the item itself is under suspicion."""
    if item.attempts <= _CRASHES_MOST:
        return None
    if item.attempts - 1 - item.tries.count() < _CRASHES_MOST:
        return None
    return Outcome(
        "compose", f"its worker died {_CRASHES_MOST} times in the middle of it; look before sending again"
    )


# ------------------------------------------------------------------------------------------------ settling


def settle(item: OutboxItem, outcome: Outcome, started: datetime, duration_ms: float) -> bool:
    """Record the attempt and move the item on, if it is still ours; False when another worker took it over."""
    destination = item.destination
    with transaction.atomic():
        DeliveryAttempt.objects.create(
            item=item,
            at=started,
            duration_ms=duration_ms,
            outcome=outcome.name,
            detail=outcome.detail[:300],
            answer=outcome.answer or None,
        )
        ours = queued().filter(pk=item.pk, lease_owner=item.lease_owner)
        kept = ours.update(**_next(item, outcome), lease_owner="", lease_until=None)
        _note_health(destination, outcome)
        if outcome.name == "delivered":
            audit.record(
                "system:delivery",
                "send",
                item.kind,
                patients=[item.patient_id] if item.patient_id else [],
                objects=[item.subject],
                detail={"destination": destination.name, "outbox_item": item.pk},
            )
    if not kept:
        logger.warning("outbox item %s was taken over while it was being sent", item.pk)
    return bool(kept)


def _next(item: OutboxItem, outcome: Outcome) -> dict[str, object]:
    """What becomes of the item."""
    moment = now()
    if outcome.done:
        return {
            "state": OutboxItem.State.DELIVERED,
            "delivered_at": moment,
            "answer": outcome.answer or None,
            "last_error": "",
        }
    error = f"{outcome.name}: {outcome.detail}"[:300]
    if not outcome.again or _gave_up(item, outcome, moment):
        return {"state": OutboxItem.State.PARKED, "answer": outcome.answer or None, "last_error": error}
    pause = outcome.pause if outcome.pause is not None else backoff(item.destination, item.attempts)
    return {"due_at": moment + timedelta(seconds=pause), "last_error": error}


def _gave_up(item: OutboxItem, outcome: Outcome, moment: datetime) -> bool:
    """Every retry has an end: by number where the peer says no, by age where it says nothing."""
    if outcome.name in ("rejected", "refused"):
        rejections = item.tries.filter(outcome__in=("rejected", "refused")).count()
        return rejections >= int(setting(item.destination, "rejections_most"))
    return moment - item.created_at > timedelta(hours=float(setting(item.destination, "give_up_hours")))


def backoff(destination: Destination, failures: int) -> float:
    """Seconds to wait after this many failures: doubling up to the destination's most, half of it at random."""
    most = float(setting(destination, "retry_seconds_most"))
    whole = min(most, float(setting(destination, "retry_seconds")) * 2 ** min(failures - 1, 20))
    return whole / 2 + random.uniform(0, whole / 2)


def _note_health(destination: Destination, outcome: Outcome) -> None:
    """Open the circuit after failures in a row, close it at the first sign of life; one alert at either."""
    if not outcome.down:
        if outcome.name != "compose" and (destination.failures or destination.circuit_open_until):
            _recovered(destination)
        return
    Destination.objects.filter(pk=destination.pk).update(failures=F("failures") + 1)
    destination.refresh_from_db(fields=["failures"])
    after = int(setting(destination, "circuit_after"))
    if destination.failures >= after:
        pause = backoff(destination, destination.failures - after + 1)
        destination.circuit_open_until = now() + timedelta(seconds=pause)
        Destination.objects.filter(pk=destination.pk).update(
            circuit_open_until=destination.circuit_open_until
        )
        alerts.raise_alert(
            alert_key(destination),
            f"{destination.name} does not answer; what it should get waits and is tried again.",
            severity="critical",
            link=f"/admin/integration/destination/{destination.pk}/change/",
        )


def _recovered(destination: Destination) -> None:
    """The destination answers again. What backed off because it did not need not wait any longer."""
    was_open = destination.failures >= int(setting(destination, "circuit_after"))
    Destination.objects.filter(pk=destination.pk).update(failures=0, circuit_open_until=None)
    destination.failures, destination.circuit_open_until = 0, None
    if was_open:
        nobody_answered = Q(last_error__startswith="transport") | Q(last_error__startswith="timeout")
        queued().filter(nobody_answered, destination=destination, due_at__gt=now()).update(due_at=now())
        alerts.recover(alert_key(destination))


def alert_key(destination: Destination) -> str:
    """The alert of a destination that does not answer."""
    return f"destination:{destination.name}"


def _places(destination: Destination) -> int:
    """How many may work at it at once; one, while it is being probed."""
    if destination.failures >= int(setting(destination, "circuit_after")):
        return 1
    return max(1, int(setting(destination, "connections")))


def _longest_attempt(destination: Destination) -> float:
    """The bound of one attempt in seconds; a FHIR item may take several requests."""
    keys = ("connect_seconds", "write_seconds", "ack_seconds")
    bounds = sum(float(setting(destination, key)) for key in keys)
    if setting(destination, "application_ack"):
        bounds += float(setting(destination, "ack_seconds"))
    return bounds * (10 if destination.kind == Destination.Kind.FHIR else 1)


# ------------------------------------------------------------------------------------------- by a person


def send_again(item: OutboxItem) -> None:
    """Queue a parked, skipped or delivered item once more, with its bytes as they are. It keeps its place."""
    OutboxItem.objects.filter(pk=item.pk).exclude(state=OutboxItem.State.QUEUED).update(
        state=OutboxItem.State.QUEUED, due_at=now(), attempts=0, lease_owner="", lease_until=None
    )
    _ring_later(item.destination_id)


def compose_again(item: OutboxItem) -> None:
    """Queue a parked item to be composed anew, after its destination's settings were repaired."""
    OutboxItem.objects.filter(pk=item.pk, state=OutboxItem.State.PARKED).update(
        state=OutboxItem.State.QUEUED, payload=None, due_at=now(), attempts=0
    )
    _ring_later(item.destination_id)


def skip(item: OutboxItem) -> None:
    """Take an item out of the queue for good: a person decided that it need not be sent."""
    free = Q(lease_until=None) | Q(lease_until__lte=now())
    OutboxItem.objects.filter(
        free, pk=item.pk, state__in=(OutboxItem.State.QUEUED, OutboxItem.State.PARKED)
    ).update(state=OutboxItem.State.SKIPPED)


def _ring_later(destination_id: int) -> None:
    from integration.outbox import doorbell

    transaction.on_commit(doorbell(destination_id), robust=True)
