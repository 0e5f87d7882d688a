"""Messages tried on copies: temporary tables stand before the real ones, so that nothing real is held or changed.

Within the sandbox every table of `ris` and of the rooms that hear it is empty, but for the rows that the messages
concern, copied as they are, or as they were at an earlier moment. Lanes are other locks than everybody's. All of it
is one transaction that is rolled back.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from django.apps import apps
from django.db import Error, connection, models, transaction

from common import cause
from common.rows import Row
from common.store import Unit
from integration import inbox
from integration.hl7v2 import translate
from integration.hl7v2.errors import Refused
from integration.hl7v2.scope import Head
from integration.models import Message
from integration.sources import Profile
from ris import context
from ris.apart import apart
from ris.commands import Identifier, OrderKeys, VisitFacts
from ris.models import (
    Change,
    ImagingServiceRequest,
    Patient,
    PatientIdentifier,
    Report,
    ReportVersion,
    RequestedProcedure,
    ScheduledProcedureStep,
    Visit,
)
from ris.services.patients import EMPTIED, ORDERED_FOR

# What a site has set up stays visible; everything else of these rooms is replaced.
_ROOMS = ("ris", "worklist")
_SEEN = frozenset({"ris_proceduredefinition", "ris_station", "ris_practitioner"})
_ALSO = ("integration_outboxitem", "integration_mirrorstate", "common_alert", "common_auditevent")
_SEQUENCES = ("ris_number",)
_COPIED = (
    Patient,
    PatientIdentifier,
    Visit,
    ImagingServiceRequest,
    RequestedProcedure,
    ScheduledProcedureStep,
    Report,
    ReportVersion,
)
_FACTS = (Patient, Visit, ImagingServiceRequest)

NOUNS = {
    "imagingservicerequest": "Order",
    "requestedprocedure": "Procedure",
    "scheduledprocedurestep": "Step",
    "patientidentifier": "Identifier",
    "patientmerge": "Merge",
    "reportversion": "Report version",
}
"""What people call a changed row, where the model's name is not it."""


_RANKS = ("Patient", "Identifier", "Visit", "Merge", "Order", "Procedure", "Step", "Report")


def _rank(name: str) -> tuple[int, str]:
    """Where a row stands when they are listed: people, then orders, then what is done."""
    last = name.rpartition(", ")[2].capitalize()
    return next((n for n, word in enumerate(_RANKS) if last.startswith(word)), len(_RANKS)), name


class _Undone(Exception):
    """Ends a transaction without keeping anything."""


@dataclass
class Tried:
    """What became of one message: its state, the problem if it was refused, and the rows as they stand after it.

    `rows` are its patients, orders, procedures and steps in their order, by names such as `Order 1`; `changes` what
    it changed of rows, attribute by attribute: (name, attribute, before, after).
    """

    state: str
    problem: str = ""
    place: str = ""
    warnings: list[str] = field(default_factory=list)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    changes: list[tuple[str, str, Any, Any]] = field(default_factory=list)

    @property
    def made(self) -> list[tuple[str, dict[str, Any]]]:
        """The rows that it would make, with what would stand in them."""
        names = dict.fromkeys(name for name, attribute, _, _ in self.changes if attribute == "created")
        return [(name, self.rows.get(name, {})) for name in sorted(names, key=_rank)]

    @property
    def changed(self) -> list[tuple[str, list[tuple[str, Any, Any]]]]:
        """The rows that it would change, with each attribute before and after."""
        found: dict[str, list[tuple[str, Any, Any]]] = {}
        for name, attribute, before, after in self.changes:
            if attribute != "created":
                found.setdefault(name, []).append((attribute, before, after))
        return sorted(found.items(), key=lambda item: _rank(item[0]))


@contextmanager
def sandbox() -> Iterator[None]:
    """Temporary tables before the real ones, for this thread's connection; rolled back at the end."""
    try:
        with rolled_back(), apart():
            with connection.cursor() as cursor:
                for statement in _making():
                    cursor.execute(statement)
            yield
    finally:
        if connection.is_usable():
            with connection.cursor() as cursor:
                cursor.execute("DISCARD PLANS")


@contextmanager
def rolled_back() -> Iterator[None]:
    """A transaction (or a savepoint within one) of which nothing is kept."""
    try:
        with transaction.atomic():
            yield
            raise _Undone
    except _Undone:
        pass


def _making() -> Iterator[str]:
    tables = [m._meta.db_table for room in _ROOMS for m in apps.get_app_config(room).get_models()]
    yield "SET LOCAL client_min_messages = warning"
    yield "DISCARD PLANS"  # plans made before know the real tables by their number
    for table in (*tables, *_ALSO):
        if table not in _SEEN:
            yield f'CREATE TEMP TABLE "{table}" (LIKE public."{table}" INCLUDING ALL) ON COMMIT DROP'
    for sequence in _SEQUENCES:
        yield f'CREATE TEMP SEQUENCE "{sequence}"'
    yield "INSERT INTO ris_assigningauthority SELECT * FROM public.ris_assigningauthority"


# -- what the messages concern


@dataclass
class Keys:
    """Everything by which messages name patients and orders."""

    identifiers: set[str] = field(default_factory=set)
    admissions: set[str] = field(default_factory=set)
    accessions: set[str] = field(default_factory=set)
    placers: set[str] = field(default_factory=set)
    fillers: set[str] = field(default_factory=set)
    studies: set[str] = field(default_factory=set)
    patients: set[UUID] = field(default_factory=set)
    requests: set[UUID] = field(default_factory=set)

    def add(self, row: Message, profile: Profile) -> None:
        """The keys of one message: what it is known to have touched, and what it names by this profile."""
        self.patients.update(row.patient_ids)
        self.requests.update(row.request_ids)
        try:
            message = profile.read(bytes(row.raw))
            translated = translate.translate(Head(message, profile, row.received_at))
        except Refused:
            return
        for command in translated.commands if translated else ():
            self._walk(command)

    def _walk(self, value: Any) -> None:
        if isinstance(value, Identifier):
            self.identifiers.add(value.value)
        elif isinstance(value, OrderKeys):
            self.accessions.add(value.accession_number)
            self.placers.add(value.placer.value)
            self.fillers.add(value.filler.value)
            self.studies.add(value.study_instance_uid)
        elif isinstance(value, tuple | list):
            for one in value:
                self._walk(one)
        elif dataclasses.is_dataclass(value):
            if isinstance(value, VisitFacts):
                self.admissions.add(value.admission_id)
            for one in dataclasses.fields(value):
                self._walk(getattr(value, one.name))


def copied(keys: Keys, before: datetime | None = None) -> list[models.Model]:
    """The real rows that these keys reach; with `before`, as they were then. Read outside the sandbox."""
    found = context.load(
        identifiers=keys.identifiers, admissions=keys.admissions, accessions=keys.accessions, placers=keys.placers,
        fillers=keys.fillers, studies=keys.studies, patients=keys.patients, requests=keys.requests,
    )  # fmt: skip
    rows: list[Row] = [
        *found.patients.values(),
        *(i for some in found.identifiers.values() for i in some),
        *found.visits,
        *found.requests.values(),
        *(p for some in found.procedures.values() for p in some),
        *(s for some in found.steps.values() for s in some),
    ]
    written = list(
        Report.objects.filter(procedure__in=[r.pk for r in rows if isinstance(r, RequestedProcedure)])
    )
    rows += [*written, *ReportVersion.objects.filter(report__in=[r.pk for r in written])]
    return list(_as_of(rows, before)) if before else list(rows)


def _as_of(rows: list[Row], moment: datetime) -> list[Row]:
    """The rows that were there at a moment, with what was changed since taken back."""
    by_id = {row.pk: row for row in rows}
    gone: set[UUID] = set()
    later = Change.objects.filter(object_id__in=list(by_id), at__gte=moment).order_by("-id")
    for change in later.values_list("object_id", "values"):
        row, values = by_id[change[0]], change[1]
        if values.get("created"):
            gone.add(row.pk)
        for name, pair in values.items():
            if isinstance(pair, list) and len(pair) == 2:
                _set(row, name, pair[0])
    for row in rows:
        created = getattr(row, "created_at", None) or getattr(row, "signed_at", None)
        if created is not None and created >= moment:
            gone.add(row.pk)
        if isinstance(row, _FACTS):
            row.facts_at = None  # the messages since then are the news again
    kept = [row for row in rows if row.pk not in gone]
    owners = {row.pk for row in kept}
    return [row for row in kept if all(o in owners or o not in by_id for o in _owners(row))]


def _owners(row: Row) -> Iterator[UUID]:
    for relation in row._meta.concrete_fields:
        if relation.is_relation and not relation.null:
            yield getattr(row, relation.attname)


def _set(row: Row, name: str, value: Any) -> None:
    try:
        attribute = next(f for f in row._meta.concrete_fields if f.attname == name)
        setattr(row, name, attribute.to_python(value))
    except (StopIteration, ValueError, TypeError):
        pass  # a note about something that is no column
    except Exception as error:
        if "ValidationError" not in type(error).__name__:
            raise


def fill(rows: Iterable[models.Model]) -> None:
    """Put copies into the sandbox."""
    by_model: dict[type[models.Model], list[models.Model]] = {model: [] for model in _COPIED}
    for row in rows:
        by_model.setdefault(type(row), []).append(row)
    for model, some in by_model.items():
        model._default_manager.bulk_create(some)


# -- trying


def attempt(row: Message, profile: Profile) -> Tried:
    """Apply one message in the sandbox by a profile, as the door would."""
    fresh = Message(
        id=row.pk, received_at=row.received_at, source_id=row.source_id, raw=row.raw, control_id=row.control_id,
        message_type=row.message_type, trigger_event=row.trigger_event,
    )  # fmt: skip
    unit = Unit(cause.hl7(row.pk), row.received_at)
    last = Change.objects.order_by("-id").values_list("pk", flat=True).first() or 0
    try:
        with transaction.atomic():
            applies = inbox.apply_bytes(fresh, unit, profile)
            unit.flush()
    except Refused as refusal:
        problem = refusal.problem
        state = Message.State.REFUSED if refusal.ack_code == "AE" else Message.State.REJECTED
        return Tried(state, problem.text, str(problem.location) if problem.location else "")
    except Error as error:
        return Tried(Message.State.REJECTED, f"The database does not take it ({type(error).__name__}).")
    something = fresh.patient_ids or fresh.request_ids
    state = Message.State.APPLIED if applies and something else Message.State.KEPT
    named = _named(fresh)
    tried = Tried(state, warnings=[str(w) for w in fresh.warnings])
    tried.rows = {name: _plain(one) for name, one in named.items()}
    tried.changes = list(_changes(last, named))
    return tried


def _named(row: Message) -> dict[str, Row]:
    """The rows that a message concerns, each under the name by which two trials are compared."""
    named: dict[str, Row] = {}
    found = Patient.objects.in_bulk(row.patient_ids)
    people = [found[pk] for pk in row.patient_ids if pk in found]
    for number, patient in enumerate(people, 1):
        named[_numbered("Patient", number, len(people))] = patient
    requests = ImagingServiceRequest.objects.in_bulk(row.request_ids)
    orders = [requests[pk] for pk in row.request_ids if pk in requests]
    for number, order in enumerate(orders, 1):
        name = _numbered("Order", number, len(orders))
        named[name] = order
        procedures = list(order.procedures.order_by("created_at", "id"))
        for nth, procedure in enumerate(procedures, 1):
            inner = _numbered("Procedure", nth, len(procedures))
            where = inner if len(orders) == 1 else f"{name}, {inner.lower()}"
            named[where] = procedure
            steps = list(procedure.steps.order_by("created_at", "id"))
            for one, step in enumerate(steps, 1):
                last = _numbered("Step", one, len(steps))
                plain = len(orders) == 1 and len(procedures) == 1
                named[last if plain else f"{where}, {last.lower()}"] = step
            version = ReportVersion.objects.filter(report__procedure=procedure).order_by("-number").first()
            if version is not None:
                named["Report" if where == "Procedure" else f"{where}, report"] = version
    return named


def _numbered(word: str, number: int, of: int) -> str:
    return f"{word} {number}" if of > 1 else word


# Attributes that say nothing of what the sender meant.
_UNSAID = frozenset(
    {
        "id",
        "created_at",
        "updated_at",
        "cause",
        "facts_at",
        "status_at",
        "patient_name_search",
        "made",
        "source",
    }
)


# What we note of a row among its details: nothing that a message says.
_NOTES = frozenset({"made", ORDERED_FOR, EMPTIED})


def _plain(row: Row) -> dict[str, Any]:
    """A row's attributes as plain values, without ids of rows, ages, and what we made up ourselves."""
    values: dict[str, Any] = {}
    made = _made(row)
    for attribute in row._meta.concrete_fields:
        name = attribute.attname
        if attribute.is_relation or name in _UNSAID:
            continue
        value = getattr(row, name)
        if name == "details":
            values.update({k: v for k, v in value.items() if k not in _NOTES})
        elif name in made:
            values[name] = "(made here)"
        else:
            values[name] = value
    return {k: _said(v) for k, v in values.items() if v not in (None, "", [], {})}


def _made(row: Row) -> frozenset[str]:
    """The attributes that were made because the sender left them out."""
    details = getattr(row, "details", {}) or {}
    made = getattr(row, "made", {}) or {}
    return frozenset([*details.get("made", ()), *made.get("made", ())])


def _said(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else value


def _changes(after: int, named: Mapping[str, Row]) -> Iterator[tuple[str, str, Any, Any]]:
    names = {row.pk: name for name, row in named.items()}
    for change in Change.objects.filter(pk__gt=after).order_by("id"):
        name = names.get(change.object_id) or NOUNS.get(change.what, change.what.capitalize())
        if change.values.get("created"):
            yield name, "created", None, True
            continue
        for attribute, pair in change.values.items():
            if isinstance(pair, list) and len(pair) == 2 and attribute not in _UNSAID:
                yield name, attribute, pair[0], pair[1]
