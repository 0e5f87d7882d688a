"""Rows made quickly, and the base of those with an id of our own making, which remember what they were when read.

A message makes fifteen rows. Django's own constructor looks at every field each time; here a model's defaults are
worked out once, and a row is filled from them.
"""

from functools import cache
from typing import Any, NamedTuple, TypeVar

from django.db import models
from django.db.models.base import ModelState
from django.db.models.signals import post_init, pre_init

from common.uids import uuid7

M = TypeVar("M", bound=models.Model)


class _Plan(NamedTuple):
    """How a model's rows are filled."""

    constants: dict[str, Any]
    makers: tuple[tuple[str, Any], ...]
    attributes: frozenset[str]
    relations: dict[str, tuple[str, str, type[models.Model]]]
    """Foreign key → its own attribute, the other row's, and what the other row must be."""
    names: frozenset[str]
    """All that a row may be given."""


@cache
def _plan(model: type[models.Model]) -> _Plan | None:
    """None where Django itself must make the rows: somebody listens, or the database gives a value."""
    fields = model._meta.concrete_fields
    listened = pre_init.has_listeners(model) or post_init.has_listeners(model)
    if listened or model._meta.abstract or any(f.generated or f.has_db_default() for f in fields):
        return None
    makers = {f.attname: f.default for f in fields if f.has_default() and callable(f.default)}
    attributes = frozenset(f.attname for f in fields)
    relations = {
        f.name: (f.attname, f.target_field.attname, f.related_model)
        for f in fields
        if isinstance(f, models.ForeignKey) and not f.one_to_one
    }
    return _Plan(
        {f.attname: f.get_default() for f in fields if f.attname not in makers},
        tuple(makers.items()),
        attributes,
        relations,
        attributes | relations.keys(),
    )


def _fill(row: models.Model, plan: _Plan, values: dict[str, Any]) -> None:
    held = row.__dict__
    state = held["_state"] = ModelState()
    held.update(plan.constants)
    for name, maker in plan.makers:
        if name not in values:
            held[name] = maker()
    for name, value in values.items():
        if name in plan.attributes:
            held[name] = value
            continue
        own, theirs, kind = plan.relations[name]
        if type(value) is kind:
            held[own] = value.__dict__[theirs]
            state.fields_cache[name] = value
        else:
            setattr(row, name, value)


def make(model: type[M], **values: Any) -> M:
    """A new row as `model(**values)` gives it, sooner; names are the model's fields, or rows they refer to."""
    plan = _plan(model)
    if plan is None or not plan.names >= values.keys():
        return model(**values)
    row = model.__new__(model)
    _fill(row, plan, values)
    return row


def is_new(row: models.Model) -> bool:
    """Whether the row was made here and never stored: nobody else can have its key."""
    return row._state.adding and "new" in row._state.__dict__


def mark_new(row: models.Model, new: bool = True) -> None:
    """Say of a row whose key was given that it is new, or that it is stored."""
    if new:
        row._state.__dict__["new"] = True
    else:
        row._state.__dict__.pop("new", None)


class Row(models.Model):
    """A row with a UUID version 7 as key, known before it is stored; hence many rows fit one statement."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)

    class Meta:
        abstract = True

    _read: dict[str, Any] | None = None

    def __init__(self, *args: Any, **values: Any) -> None:
        plan = None if args else _plan(type(self))
        if plan is None or not plan.names >= values.keys():
            super().__init__(*args, **values)
        else:
            _fill(self, plan, values)
            if "id" not in values:
                mark_new(self)

    @classmethod
    def from_db(cls, db: Any, field_names: Any, values: Any) -> "Row":
        if _plan(cls) is None or len(values) != len(cls._meta.concrete_fields):
            row = super().from_db(db, field_names, values)
            row._read = dict(zip(field_names, values, strict=False))
            return row
        row = cls.__new__(cls)
        held = row.__dict__
        state = held["_state"] = ModelState()
        state.adding, state.db = False, db
        read = held["_read"] = dict(zip(field_names, values, strict=True))
        held.update(read)
        return row

    def changes(self) -> dict[str, tuple[Any, Any]]:
        """What differs from what was read: attribute name → (before, after). All filled fields for a new row."""
        before, present = self._read, self.__dict__
        if before is None:
            filled = {name: present.get(name) for name in _attributes(type(self))}
            return {name: (None, new) for name, new in filled.items() if new not in (None, "", [], {})}
        return {
            name: (before.get(name), present[name])
            for name in _attributes(type(self))
            if name in present and present[name] is not before.get(name) and present[name] != before.get(name)
        }


@cache
def _attributes(model: type[models.Model]) -> tuple[str, ...]:
    return tuple(field.attname for field in model._meta.concrete_fields)
