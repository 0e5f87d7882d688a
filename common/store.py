"""One unit of work: rows are collected while Python decides, and written in one statement before COMMIT.

The number of statements decides how fast messages are applied, so services do not save one row at a time:
they read what they need, decide, and hand changed rows to the unit. `flush` stores all of them with one
set-based statement that decides nothing itself. Events are published through the unit, so that a fact and
the rows of those who heard it are written together.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, time
from decimal import Decimal
from functools import cache
from typing import Any
from uuid import UUID

import orjson
import psycopg
from django.db import connection, models, transaction

from common import events
from common.cause import Cause
from common.clock import now


class Unit:
    """The rows and events of one transaction. `cause` says why, `at` when (UTC)."""

    def __init__(self, cause: Cause, at: datetime | None = None) -> None:
        self.cause = cause
        self.at = at or now()
        self._rows: dict[type[models.Model], dict[Any, models.Model]] = {}
        self._after: list[Callable[[], None]] = []

    def save(self, row: models.Model) -> None:
        """Insert or replace this row at `flush`; of two objects with one key the last handed in is written."""
        self._rows.setdefault(type(row), {})[id(row) if row.pk is None else row.pk] = row

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
        """Write everything collected, in one statement. Foreign keys are checked at COMMIT (deferred)."""
        rows, self._rows = self._rows, {}
        if rows:
            statement, payload = _statement({m: list(r.values()) for m, r in rows.items()})
            prepared(statement, [payload], psycopg.RawCursor)
        after, self._after = self._after, []
        for doorbell in after:
            transaction.on_commit(doorbell, robust=True)


@contextmanager
def unit_of_work(cause: Cause, at: datetime | None = None) -> Iterator[Unit]:
    """A transaction with a unit that is flushed at its end; an exception rolls everything back."""
    with transaction.atomic():
        unit = Unit(cause, at)
        yield unit
        unit.flush()


def prepared(
    statement: str, parameters: Any, kind: type[psycopg.Cursor[Any]] = psycopg.Cursor
) -> list[tuple[Any, ...]]:
    """Run a statement of the hot paths as a prepared one on the default connection; returns its rows.

    `kind` is psycopg.RawCursor for a statement with `$1`, which is not searched for placeholders each time.

    Planning the large statements takes longer than running them; PostgreSQL plans a prepared one once a
    connection. Everything else goes through Django's cursor.
    """
    connection.ensure_connection()
    raw = connection.connection
    with connection.wrap_database_errors, kind(getattr(raw, "_con", raw)) as cursor:
        cursor.execute(statement, parameters, prepare=True)
        return cursor.fetchall() if cursor.description else []


def hydrate(model: type[models.Model], columns: dict[str, Any]) -> Any:
    """A model instance from one row as `to_jsonb` gives it (column → JSON value), marked as read."""
    fields = model._meta.concrete_fields
    values = [field.to_python(columns[str(field.column)]) for field in fields]
    return model.from_db(connection.alias, [f.attname for f in fields], values)


def _statement(rows: dict[type[models.Model], list[models.Model]]) -> tuple[str, str]:
    """One statement that upserts the rows of all models, and its single jsonb parameter."""
    parts, payload = [], {}
    for model, instances in rows.items():
        known = [r for r in instances if r.pk is not None]
        fresh = [r for r in instances if r.pk is None]
        for group, with_key in ((known, True), (fresh, False)):
            if group:
                key = f"r{len(payload)}"
                payload[key] = [_values(row, with_key) for row in group]
                parts.append(f"{key} AS ({_upsert(model, key, with_key)})")
    text = "WITH input AS MATERIALIZED (SELECT $1::jsonb AS j), " + ", ".join(parts) + " SELECT 1"
    return text, orjson.dumps(payload, default=_plain).decode()


_upserts: dict[tuple[type[models.Model], str, bool], str] = {}


def _upsert(model: type[models.Model], key: str, with_key: bool) -> str:
    cached = _upserts.get((model, key, with_key))
    if cached:
        return cached
    fields = [f for f in model._meta.concrete_fields if with_key or not f.primary_key]
    table = connection.ops.quote_name(model._meta.db_table)
    names = [connection.ops.quote_name(f.column) for f in fields]
    columns = ", ".join(names)
    text = (
        f"INSERT INTO {table} ({columns}) SELECT {', '.join('t.' + n for n in names)} "
        f"FROM input, jsonb_populate_recordset(NULL::{table}, input.j->'{key}') t"
    )
    if with_key:
        primary = connection.ops.quote_name(model._meta.pk.column)
        rest = ", ".join(f"{n} = EXCLUDED.{n}" for n in names if n != primary)
        text += f" ON CONFLICT ({primary}) DO " + (f"UPDATE SET {rest}" if rest else "NOTHING")
    _upserts[(model, key, with_key)] = text
    return text


def _values(row: models.Model, with_key: bool) -> dict[str, Any]:
    held = row.__dict__
    return {
        column: held[attname]
        if attname in held and dated is None
        else (dated.pre_save(row, row._state.adding) if dated else getattr(row, attname))
        for column, attname, dated in _columns(type(row), with_key)
    }


@cache
def _columns(model: type[models.Model], with_key: bool) -> list[tuple[str, str, models.DateField | None]]:
    """Column, attribute, and the field where Django itself gives the value (auto_now, auto_now_add)."""
    return [
        (
            str(field.column),
            field.attname,
            field if isinstance(field, models.DateField) and (field.auto_now or field.auto_now_add) else None,
        )
        for field in model._meta.concrete_fields
        if with_key or not field.primary_key
    ]


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
