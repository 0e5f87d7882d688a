"""Keeping what changed: saves a changed row together with the note of its change."""

from typing import Any
from uuid import UUID

from common.rows import Row, make
from common.store import Unit
from ris.models import Change

_NOT_NOTED = frozenset({"updated_at", "created_at", "cause", "facts_at", "patient_name_search", "status_at"})


def keep(row: Row, unit: Unit, patient_id: UUID | None) -> bool:
    """Save the row if it is new or differs from what was read, and note the change; True when it did.

    `updated_at` and `cause` are set from the unit where the model has them.
    """
    held = row.__dict__
    if row._read is None:
        if "updated_at" in held:
            held["updated_at"] = unit.at
        unit.save(row)
        note(row, unit, patient_id, {"created": True})
        return True
    changes = row.changes()
    if not changes:
        return False
    if "updated_at" in held:
        held["updated_at"] = unit.at
    if "cause" in held:
        held["cause"] = unit.cause
    unit.save(row)
    values = {name: pair for name, pair in changes.items() if name not in _NOT_NOTED}
    if values:
        note(row, unit, patient_id, values)
    return True


def note(row: Row, unit: Unit, patient_id: UUID | None, values: dict[str, Any]) -> None:
    """Note a change without saving the row."""
    unit.save(
        make(
            Change,
            at=unit.at,
            cause=unit.cause,
            what=row._meta.model_name,
            object_id=row.pk,
            patient_id=patient_id,
            values=values,
        )
    )
