"""One unit of work: rows are collected while Python decides, and written in one round trip before COMMIT.

The number of round trips decides how fast messages are applied, so services do not save one row at a time:
they read what they need, decide, and hand changed rows to the unit. `flush` stores all of them, with one
set-based statement a table that decides nothing itself. Events are published through the unit, so that a fact and
the rows of those who heard it are written together.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from functools import cache
from typing import Any
from uuid import UUID

import orjson
from django.db import DEFAULT_DB_ALIAS, connection, connections, models, transaction

from common import events
from common.cause import Cause
from common.clock import now
from common.rows import is_new, mark_new
from common.wire import ask, together


class Unit:
    """The rows and events of one transaction. `cause` says why, `at` when (UTC)."""

    def __init__(self, cause: Cause, at: datetime | None = None, *, eager: bool = False) -> None:
        """`eager`: `go_ahead` may write what is decided before the rest is; whoever rolls back calls `wire.abandon`."""
        self.cause = cause
        self.at = at or now()
        self._eager = eager
        self._rows: dict[type[models.Model], dict[Any, models.Model]] = {}
        self._after: list[Callable[[], None]] = []

    def save(self, row: models.Model) -> None:
        """Insert or replace this row at `flush`; of two objects with one key the last handed in is written."""
        key = row.__dict__.get(_key(type(row)))
        self._rows.setdefault(type(row), {})[id(row) if key is None else key] = row

    def publish(self, event: Any) -> None:
        """Tell the wiring about a fact of this transaction; what its hearers add is written with it."""
        events.publish(event, self)

    def ring(self, doorbell: Callable[[], None]) -> None:
        """Nudge a worker after COMMIT; a failing bell is swallowed, since the sweeper finds what is due."""
        if doorbell not in self._after:
            self._after.append(doorbell)

    def pending(self, model: type[models.Model]) -> list[Any]:
        """The rows of one model that wait for the flush."""
        return list(self._rows.get(model, {}).values())

    def flush(self) -> None:
        """Write everything collected, in one round trip. Foreign keys are checked at COMMIT (deferred)."""
        with together():
            self._send()

    def go_ahead(self) -> None:
        """Everything that costs much to write is collected: have it written while the rest is thought about.

        A unit that is not eager waits for its flush, or for those whose transaction it shares.
        """
        if self._eager:
            self._eager = False  # once: each time costs a system call
            with together(ahead=True):
                self._send()

    def commit(self) -> None:
        """As `flush`, and COMMIT travels with it: nobody waits for the database between the two.

        The last act within `transaction.atomic()`, which then has only the doorbells left to ring. Where that
        block is not the outermost one, this is `flush`.
        """
        current = connections[DEFAULT_DB_ALIAS]
        outermost = current.in_atomic_block and not current.savepoint_ids and current.commit_on_exit
        if not outermost or current.needs_rollback:
            self.flush()
            return
        with together(commit=True):
            self._send()

    def join(self, other: "Unit") -> None:
        """Take over the rows and doorbells of another unit of this transaction, which is empty then."""
        for model, rows in other._rows.items():
            self._rows.setdefault(model, {}).update(rows)
        for doorbell in other._after:
            self.ring(doorbell)
        other._rows, other._after = {}, []

    def _send(self) -> None:
        """Ask for what stores the rows: it travels with what is asked in the same block, else together."""
        for doorbell in self._after:
            transaction.on_commit(doorbell, robust=True)
        self._after = []
        rows, self._rows = self._rows, {}
        for model in sorted(rows, key=_table):  # many transactions at once touch the tables in one order
            for how, group in _groups(model, rows[model].values()).items():
                ask(_text(model, how), [orjson.dumps(group, default=_plain)])


@contextmanager
def unit_of_work(cause: Cause, at: datetime | None = None) -> Iterator[Unit]:
    """A transaction with a unit that is flushed at its end; an exception rolls everything back."""
    with transaction.atomic():
        unit = Unit(cause, at)
        yield unit
        unit.flush()


def hydrate(model: type[models.Model], columns: dict[str, Any]) -> Any:
    """A model instance from one row as `to_json` gives it (column → JSON value), marked as read."""
    names, readers = _readers(model)
    values = [
        columns[column] if read is None or columns[column] is None else read(columns[column])
        for column, read in readers
    ]
    return model.from_db(DEFAULT_DB_ALIAS, names, values)


@cache
def _readers(
    model: type[models.Model],
) -> tuple[list[str], list[tuple[str, Callable[[Any], Any] | None]]]:
    """Attributes, and for each its column and what makes its value from JSON's (None: it is the same)."""
    fields = model._meta.concrete_fields
    return [f.attname for f in fields], [(str(f.column), _reader(f)) for f in fields]


def _reader(field: Any) -> Callable[[Any], Any] | None:
    of = field.target_field if isinstance(field, models.ForeignKey) else field
    if type(of) in (models.CharField, models.TextField, models.BooleanField, models.JSONField):
        return None
    if type(of) is models.UUIDField:
        return UUID
    if type(of) is models.DateTimeField:
        return datetime.fromisoformat
    return of.to_python


class How(Enum):
    """How a row is written."""

    NUMBERED = "numbered"
    """New; the database gives its key."""
    NEW = "new"
    """New, with a key of our own: nothing can be there."""
    REPLACED = "replaced"
    """Inserted, or put in the place of what is there."""


def _groups(model: type[models.Model], rows: Iterable[models.Model]) -> dict[How, list[dict[str, Any]]]:
    """The rows of one model by how they are written, each as column → value; from now on they are stored."""
    key = _key(model)
    groups: dict[How, list[dict[str, Any]]] = {}
    for row in rows:
        if row.__dict__.get(key) is None:
            how = How.NUMBERED
        elif is_new(row):
            how = How.NEW
            mark_new(row, False)
        else:
            how = How.REPLACED
        groups.setdefault(how, []).append(_values(row, *_columns(model, how is not How.NUMBERED)))
    return groups


def _table(model: type[models.Model]) -> str:
    return model._meta.db_table


@cache
def _text(model: type[models.Model], how: How) -> str:
    """The statement that writes rows of a model, given as one JSON array of objects."""
    fields = [f for f in model._meta.concrete_fields if how is not How.NUMBERED or not f.primary_key]
    table = connection.ops.quote_name(model._meta.db_table)
    names = [connection.ops.quote_name(str(f.column)) for f in fields]
    columns = ", ".join(names)
    text = (
        f"INSERT INTO {table} ({columns}) SELECT {', '.join('t.' + n for n in names)} "
        f"FROM json_populate_recordset(NULL::{table}, $1::json) t"
    )
    if how is How.REPLACED:
        primary = connection.ops.quote_name(str(model._meta.pk.column))
        rest = ", ".join(f"{n} = EXCLUDED.{n}" for n in names if n != primary)
        text += f" ON CONFLICT ({primary}) DO " + (f"UPDATE SET {rest}" if rest else "NOTHING")
    return text


@cache
def _key(model: type[models.Model]) -> str:
    """The attribute that holds the primary key."""
    return model._meta.pk.attname


def _values(
    row: models.Model, plain: list[tuple[str, str]], others: list[tuple[str, models.DateField]]
) -> dict[str, Any]:
    held = row.__dict__
    try:
        values = {column: held[attname] for column, attname in plain}
    except KeyError:  # a column that was not read
        values = {column: getattr(row, attname) for column, attname in plain}
    for column, field in others:
        values[column] = field.pre_save(row, row._state.adding)
    return values


@cache
def _columns(
    model: type[models.Model], with_key: bool
) -> tuple[list[tuple[str, str]], list[tuple[str, models.DateField]]]:
    """Column and attribute; and the columns whose value Django itself gives (auto_now, auto_now_add)."""
    plain: list[tuple[str, str]] = []
    others: list[tuple[str, models.DateField]] = []
    for field in model._meta.concrete_fields:
        if field.primary_key and not with_key:
            continue
        if isinstance(field, models.DateField) and (field.auto_now or field.auto_now_add):
            others.append((str(field.column), field))
        else:
            plain.append((str(field.column), field.attname))
    return plain, others


def _plain(value: Any) -> Any:
    if isinstance(value, UUID | Decimal):
        return str(value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        return "\\x" + bytes(value).hex()
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    raise TypeError(
        f"A value of type {type(value).__name__} cannot be stored by a unit; give it a plain form."
    )
