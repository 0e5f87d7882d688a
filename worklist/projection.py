"""Keeps the worklist true: every change of an order, patient or step rewrites the items it touches, in the same unit.

The handlers make rows from an event's rows and hand them to the unit; they ask the database only for what an
event cannot carry. `rebuild` makes every item again from `ris`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date, time, timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID

from django.db import transaction

from common.clock import now
from common.rows import is_new, make, mark_new
from common.store import Unit
from pacs.matching import Matching, name_keys, text_key
from ris.events import OrderChanged, PatientChanged, PatientsMerged, StepMoved
from ris.models import (
    ImagingServiceRequest,
    PatientIdentifier,
    ScheduledProcedureStep,
)
from ris.transitions import ON_WORKLIST, TERMINAL
from worklist import answers
from worklist.attributes import ALL, Entry, Facts
from worklist.models import WorklistItem

BATCH = 500


def item_of(facts: Facts) -> WorklistItem:
    """The worklist item of a step: pure, from its rows."""
    step = facts.step
    encoded = answers.encode(facts)
    withheld = encoded.withheld
    if not withheld and step.start is None:
        withheld = "The step has no start yet: it waits to be scheduled."
    if not withheld and not facts.identifiers:
        withheld = "The patient has no identifier, and a scanner cannot work without a Patient ID."
    columns: dict[str, Any] = {}
    for entry in _KEYS:
        if values := encoded.values.get(entry.tag):
            _fill_keys(entry, values, columns)
    for entry, inner in _ITEM_KEYS:
        if items := encoded.items.get(entry.tag):
            found = [text_key(i[inner.name]) for i in items if inner.name in i]
            columns[inner.columns[0]] = found if inner.array else found[0] if found else ""
    columns |= {
        "step_id": step.id,
        "patient_row": facts.patient.id,
        "request_row": facts.request.id,
        "waiting": step.status in ON_WORKLIST and not withheld,
        "withheld": withheld[:300],
        "adapted": encoded.adapted,
        "status": step.status,
        "start": step.start,
        "start_has_time": step.start_has_time,
        "ascii": encoded.ascii,
        "answer": encoded.answer,
        "updated_at": now(),
    }
    item = make(WorklistItem, **columns)
    mark_new(item, is_new(step))
    return item


_KEYS = tuple(entry for entry in ALL if entry.columns)
_ITEM_KEYS = tuple((entry, inner) for entry in ALL for inner in entry.items if inner.columns)


_keys_of_name = lru_cache(maxsize=8192)(name_keys)  # the same physicians order again and again


def _fill_keys(entry: Entry, values: list[str], columns: dict[str, Any]) -> None:
    """Fill an attribute's match columns with the normal form of what is answered."""
    first = values[0]
    if entry.kind is Matching.NAME:
        columns.update(zip(entry.columns, _keys_of_name(first), strict=False))
    elif entry.kind is Matching.DATE:
        columns[entry.columns[0]] = date(int(first[:4]), int(first[4:6]), int(first[6:]))
    elif entry.kind is Matching.TIME:
        columns[entry.columns[0]] = time(int(first[:2]), int(first[2:4]), int(first[4:6]))
    elif entry.kind is Matching.NUMBER:
        columns[entry.columns[0]] = int(first)
    elif entry.array:
        columns[entry.columns[0]] = [text_key(v) for v in values]
    else:
        columns[entry.columns[0]] = text_key(first)


# -- handlers: who hears what stands in integration/wiring.py


def on_order_changed(event: OrderChanged, unit: Unit) -> None:
    """An order is new or changed: its steps that the event carries are written anew."""
    for step in event.steps:
        unit.save(
            item_of(Facts(step, step.procedure, event.request, event.patient, event.identifiers, event.visit))
        )


def on_patient_changed(event: PatientChanged, unit: Unit) -> None:
    """A patient changed: the items of all open steps that the event carries."""
    for step in event.steps:
        request = step.procedure.request
        visit = request.visit
        if event.visit is not None and event.visit.id == request.visit_id:
            visit = event.visit
        unit.save(item_of(Facts(step, step.procedure, request, event.patient, event.identifiers, visit)))


def on_patients_merged(event: PatientsMerged, unit: Unit) -> None:
    """Steps moved to another patient. PatientChanged of the one who has them now carries the open ones.

    Closed ones are corrected here, so that a query for what is done shows no retired patient.
    """
    owner = event.retired if event.undone else event.survivor
    requests = [UUID(r) for r in event.moved.get("imagingservicerequest", ())]
    if not requests:
        return
    pending = [i for i in unit.pending(PatientIdentifier) if i.patient_id == owner.id]
    identifiers = _identifiers(owner.id, pending)
    moved = {r.id: r for r in unit.pending(ImagingServiceRequest)}
    for step in _steps(procedure__request_id__in=requests, status__in=TERMINAL):
        request = moved.get(step.procedure.request_id, step.procedure.request)
        unit.save(item_of(Facts(step, step.procedure, request, owner, identifiers, request.visit)))


def on_step_moved(event: StepMoved, unit: Unit) -> None:
    """A step's status changed: its item follows. Beside OrderChanged there is nothing left to do."""
    step = event.step
    if any(item.step_id == step.id and item.status == step.status for item in unit.pending(WorklistItem)):
        return
    identifiers = _identifiers(
        event.patient.id, [i for i in unit.pending(PatientIdentifier) if i.patient_id == event.patient.id]
    )
    facts = Facts(step, event.procedure, event.request, event.patient, identifiers, event.request.visit)
    unit.save(item_of(facts))


def _identifiers(patient: UUID, pending: Iterable[PatientIdentifier] = ()) -> tuple[PatientIdentifier, ...]:
    """A patient's current identifiers, the one to show first; `pending` are rows that wait for the flush."""
    rows = {i.id: i for i in PatientIdentifier.objects.filter(patient_id=patient).select_related("authority")}
    rows.update({i.id: i for i in pending})
    current = [i for i in rows.values() if i.status == PatientIdentifier.Status.CURRENT]
    return tuple(sorted(current, key=lambda i: (i.position, i.id)))


def _steps(**which: Any) -> Iterator[ScheduledProcedureStep]:
    return iter(
        ScheduledProcedureStep.objects.filter(**which)
        .select_related("procedure__request__visit", "procedure__request__patient")
        .iterator(BATCH)
    )


# -- from scratch


def refresh(step: UUID) -> WorklistItem | None:
    """Make one item again from `ris`, now; None when there is no such step (its item is removed)."""
    found = next(_steps(pk=step), None)
    if found is None:
        WorklistItem.objects.filter(pk=step).delete()
        return None
    _store([found])
    return WorklistItem.objects.get(pk=step)


def rebuild(keep_days: int = 30) -> int:
    """Make all items again from `ris`, batch by batch, while scanners go on asking; gives their number.

    Steps that ended more than `keep_days` ago get no item. Items without a step are removed.
    """
    WorklistItem.objects.exclude(pk__in=ScheduledProcedureStep.objects.values("pk")).delete()
    count = 0
    batch: list[ScheduledProcedureStep] = []
    oldest = now() - timedelta(days=keep_days)
    for step in _steps():
        if step.status in TERMINAL and step.status_at < oldest:
            continue
        batch.append(step)
        if len(batch) == BATCH:
            count += _store(batch)
            batch = []
    return count + _store(batch)


def _store(steps: list[ScheduledProcedureStep]) -> int:
    """Write the items of some steps, unless a message changed them meanwhile: each row is locked while it is made."""
    if not steps:
        return 0
    with transaction.atomic():
        list(
            ScheduledProcedureStep.objects.select_for_update(of=("self",)).filter(
                pk__in=[s.pk for s in steps]
            )
        )
        fresh = list(_steps(pk__in=[s.pk for s in steps]))
        people = {s.procedure.request.patient_id for s in fresh}
        identifiers: dict[UUID, list[PatientIdentifier]] = {}
        for row in (
            PatientIdentifier.objects.filter(patient_id__in=people, status=PatientIdentifier.Status.CURRENT)
            .select_related("authority")
            .order_by("position", "id")
        ):
            identifiers.setdefault(row.patient_id, []).append(row)
        unit = Unit("system:worklist")
        for step in fresh:
            request = step.procedure.request
            own = tuple(identifiers.get(request.patient_id, ()))
            unit.save(item_of(Facts(step, step.procedure, request, request.patient, own, request.visit)))
        unit.flush()
    return len(fresh)


def prune(keep_days: int = 30) -> int:
    """Remove the items of steps that ended long ago; gives their number."""
    oldest = now() - timedelta(days=keep_days)
    gone, _ = WorklistItem.objects.filter(status__in=TERMINAL, step__status_at__lt=oldest).delete()
    return gone
