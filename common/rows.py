"""The base of rows with an id of our own making, which remember what they were when they were read."""

from functools import cache
from typing import Any

from django.db import models

from common.uids import uuid7


class Row(models.Model):
    """A row with a UUID version 7 as key, known before it is stored; hence many rows fit one statement."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)

    class Meta:
        abstract = True

    _read: dict[str, Any] | None = None

    @classmethod
    def from_db(cls, db: Any, field_names: Any, values: Any) -> "Row":
        row = super().from_db(db, field_names, values)
        row._read = dict(zip(field_names, values, strict=False))
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
            if name in present and present[name] != before.get(name)
        }


@cache
def _attributes(model: type[models.Model]) -> tuple[str, ...]:
    return tuple(field.attname for field in model._meta.concrete_fields)
