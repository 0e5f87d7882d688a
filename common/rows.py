"""The base of rows with an id of our own making, which remember what they were when they were read."""

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
        before = self._read or {}
        result = {}
        for field in self._meta.concrete_fields:
            new, old = getattr(self, field.attname), before.get(field.attname)
            if self._read is None and new in (None, "", [], {}):
                continue
            if new != old:
                result[field.attname] = (old, new)
        return result
