"""Keeping what changed: saves a changed row together with the note of its change."""

from typing import Any
from uuid import UUID

from common.rows import Row
from common.store import Unit
from ris.models import Change

_NOT_NOTED = frozenset({"updated_at", "created_at", "cause", "facts_at", "patient_name_search", "status_at"})


def keep(row: Row, unit: Unit, patient_id: UUID | None) -> bool:
    """Save the row if it is new or differs from what was read, and note the change; True when it did.

    `updated_at` and `cause` are set from the unit where the model has them.
    """
    changes = row.changes()
    if row._read is not None and not changes:
        return False
    if hasattr(row, "updated_at"):
        row.updated_at = unit.at
    if hasattr(row, "cause") and row._read is not None:
        row.cause = unit.cause
    values: dict[str, Any] = {}
    if row._read is not None:
        values = {name: pair for name, pair in changes.items() if name not in _NOT_NOTED}
    unit.save(row)
    if values or row._read is None:
        note(row, unit, patient_id, values or {"created": True})
    return True


def note(row: Row, unit: Unit, patient_id: UUID | None, values: dict[str, Any]) -> None:
    """Note a change without saving the row."""
    unit.save(
        Change(
            at=unit.at,
            cause=unit.cause,
            what=row._meta.model_name,
            object_id=row.pk,
            patient_id=patient_id,
            values=values,
        )
    )
