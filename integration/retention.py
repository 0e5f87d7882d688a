"""How long messages are kept: removed batch by batch when they are old and settled, unless a legal hold keeps them.

A message's identity (who sent which control id with which bytes, and its acknowledgement) outlives it: sent again,
it is still known. What a message made or changed stays; so do the notes of those changes.
"""

import logging
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connection, transaction
from django.db.models import QuerySet

from common import audit
from common.clock import now
from common.counting import counted
from common.models import Site
from integration import search
from integration.models import LegalHold, Message, OutboxItem, Source
from ris.models import ImagingServiceRequest, Patient, PatientIdentifier

logger = logging.getLogger(__name__)

KEYS = ("keep_messages_days", "keep_deliveries_days")
"""In the site's settings: days; 0 or nothing: for ever."""
LEAST_DAYS = 7
BATCH = 500


@dataclass(frozen=True)
class State:
    """How things stand: the days, what is old enough to go, what is held, the oldest there is."""

    messages_days: int
    deliveries_days: int
    oldest_message: datetime | None
    oldest_delivery: datetime | None
    due_messages: int
    due_deliveries: int
    holds: list[LegalHold]


class NotAllowed(ValueError):
    """A number of days, or a hold, that cannot be; the text says what can."""


# ----------------------------------------------------------------------------------------------- settings


def days(key: str) -> int:
    """How many days things are kept; 0: for ever."""
    site = Site.objects.filter(pk=1).first()
    said = site.settings.get(key, 0) if site else 0
    return said if isinstance(said, int) and said >= LEAST_DAYS else 0


def keep_for(messages: int, deliveries: int) -> None:
    """Set the days. Raises NotAllowed for fewer than a week."""
    for number in (messages, deliveries):
        if number and number < LEAST_DAYS:
            raise NotAllowed(f"Keep messages at least {LEAST_DAYS} days, or 0 for ever.")
    with transaction.atomic():
        site, _ = Site.objects.select_for_update().get_or_create(pk=1)
        site.settings = {**site.settings, KEYS[0]: messages, KEYS[1]: deliveries}
        site.save()


def state() -> State:
    """How things stand now; counts go up to 10,000."""
    messages, deliveries = (days(key) for key in KEYS)
    return State(
        messages,
        deliveries,
        Message.objects.order_by("received_at").values_list("received_at", flat=True).first(),
        OutboxItem.objects.order_by("id").values_list("created_at", flat=True).first(),
        counted(_due_messages(messages), 10_000) if messages else 0,
        counted(_due_deliveries(deliveries), 10_000) if deliveries else 0,
        list(LegalHold.objects.filter(lifted_at=None)),
    )


# -------------------------------------------------------------------------------------------------- holds


def place_hold(about: str, value: str, reason: str, by: str) -> LegalHold:
    """Keep messages about a patient (an identifier or row id), an accession number, a source (its name), or all.

    Raises NotAllowed when nothing is meant by it, or no reason is given.
    """
    if not reason.strip():
        raise NotAllowed("Say why; whoever lifts the hold will ask.")
    meant = _meant(about, value.strip())
    return LegalHold.objects.create(
        about=about, value=meant, reason=reason.strip()[:300], placed_at=now(), placed_by=by
    )


def lift_hold(pk: int, by: str) -> None:
    """End a hold; what is old goes with the next batches."""
    LegalHold.objects.filter(pk=pk, lifted_at=None).update(lifted_at=now(), lifted_by=by)


def _meant(about: str, value: str) -> str:
    if about == LegalHold.About.ALL:
        return ""
    if about == LegalHold.About.ACCESSION and value:
        return value
    if about == LegalHold.About.SOURCE:
        source = Source.objects.filter(name=value).first()
        if source is not None:
            return str(source.pk)
        raise NotAllowed(f"There is no source {value!r}.")
    if about == LegalHold.About.PATIENT and value:
        found = set(PatientIdentifier.objects.filter(value=value).values_list("patient_id", flat=True))
        if not found and (pk := _uuid(value)) and Patient.objects.filter(pk=pk).exists():
            found = {pk}
        if len(found) == 1:
            return str(found.pop())
        raise NotAllowed(
            "More than one patient has this number; open the patient and take the address's last part."
            if found
            else "No patient has this number."
        )
    raise NotAllowed("Say what the hold is about.")


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


# ------------------------------------------------------------------------------------------------ removing


def _due_messages(kept: int) -> QuerySet[Message]:
    """Messages old enough, settled, and not held."""
    rows = Message.objects.filter(received_at__lt=now() - timedelta(days=kept)).exclude(search.UNSETTLED)
    for hold in LegalHold.objects.filter(lifted_at=None):
        rows = _without(rows, hold)
    return rows


def _without(rows: QuerySet[Message], hold: LegalHold) -> QuerySet[Message]:
    if hold.about == LegalHold.About.ALL:
        return rows.none()
    if hold.about == LegalHold.About.SOURCE:
        return rows.exclude(source_id=int(hold.value))
    if hold.about == LegalHold.About.ACCESSION:
        held = search.about_accession(hold.value)
    else:
        held = search.about_patient(UUID(hold.value))
    for ids in held:
        rows = rows.exclude(pk__in=ids)
    return rows


def _due_deliveries(kept: int) -> QuerySet[OutboxItem]:
    """Deliveries old enough and done. Holds keep those about the patient, or about the patient of the accession."""
    settled = (OutboxItem.State.DELIVERED, OutboxItem.State.SKIPPED)
    rows = OutboxItem.objects.filter(state__in=settled, created_at__lt=now() - timedelta(days=kept))
    for hold in LegalHold.objects.filter(lifted_at=None):
        if hold.about == LegalHold.About.ALL:
            return rows.none()
        if held := _patients_of(hold):
            rows = rows.exclude(patient_id__in=held)
    return rows


def _patients_of(hold: LegalHold) -> set[UUID]:
    """The patients whose deliveries a hold keeps, with all that were merged."""
    if hold.about == LegalHold.About.PATIENT:
        found = {UUID(hold.value)}
    elif hold.about == LegalHold.About.ACCESSION:
        orders = ImagingServiceRequest.objects.filter(accession_number=hold.value)
        found = set(orders.values_list("patient_id", flat=True))
    else:
        return set()
    return {merged for pk in found for merged in search.with_merged(pk)}


def prune(seconds: float = 0.5) -> tuple[int, int]:
    """Remove what is due, oldest first, batch by batch, within a bound; returns how many messages and deliveries."""
    deadline = time.monotonic() + seconds
    gone = [0, 0]
    for index, (key, remove) in enumerate(zip(KEYS, (_remove_messages, _remove_deliveries), strict=True)):
        kept = days(key)
        while kept and time.monotonic() < deadline:
            count = remove(kept)
            gone[index] += count
            if count < BATCH:
                break
    if any(gone):
        audit.record(
            "system:retention", "prune", "message", detail={"messages": gone[0], "deliveries": gone[1]}
        )
    return gone[0], gone[1]


def _remove_messages(kept: int) -> int:
    with transaction.atomic():
        due = _due_messages(kept).order_by("received_at").select_for_update(skip_locked=True, of=("self",))
        ids = list(due.values_list("pk", flat=True)[:BATCH])
        if ids:
            _delete("integration_messagetext", "message_id", ids)
            _delete("integration_messagedeed", "message_id", ids)
            Message.objects.filter(original_id__in=ids).update(original=None)
            _delete("integration_message", "id", ids)
    return len(ids)


def _remove_deliveries(kept: int) -> int:
    with transaction.atomic():
        due = _due_deliveries(kept).order_by("id").select_for_update(skip_locked=True, of=("self",))
        ids = list(due.values_list("pk", flat=True)[:BATCH])
        if ids:
            _delete("integration_deliveryattempt", "item_id", ids)
            _delete("integration_outboxitem", "id", ids)
    return len(ids)


def _delete(table: str, column: str, ids: list[Any]) -> None:
    """One statement, without reading the rows first: they hold the messages' bytes."""
    with connection.cursor() as cursor:
        cursor.execute(f"DELETE FROM {table} WHERE {column} = ANY(%s)", [ids])
