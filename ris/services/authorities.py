"""Assigning authorities: few rows, asked for by every message, so a process keeps them in memory.

Whoever retries after a rolled back transaction calls `forget()` first: what was read in it may never have been.
"""

from common.store import Unit
from ris.apart import memory
from ris.commands import Identifier
from ris.models import AssigningAuthority

_everybodys: list[AssigningAuthority] = []


def same(row: AssigningAuthority, namespace: str, universal_id: str) -> bool:
    """Whether the row is this authority: by universal id if both have one, else by namespace."""
    if row.universal_id and universal_id:
        return row.universal_id == universal_id
    return row.namespace == namespace


def matching(identifier: Identifier, *, refresh: bool = False) -> list[AssigningAuthority]:
    """All known authorities that are the identifier's, exact ones first; reads the table when none is known."""
    known = memory("authorities", _everybodys)
    if refresh or not known:
        known[:] = AssigningAuthority.objects.all()
    found = [a for a in known if same(a, identifier.namespace, identifier.universal_id)]
    if not found and not refresh:
        return matching(identifier, refresh=True)
    found.sort(key=lambda a: (a.namespace != identifier.namespace, a.universal_id != identifier.universal_id))
    return found


def get_or_make(identifier: Identifier, unit: Unit) -> AssigningAuthority:
    """The authority of an identifier; a new one is stored with the unit."""
    found = matching(identifier)
    if found:
        return found[0]
    for row in unit.pending(AssigningAuthority):
        if same(row, identifier.namespace, identifier.universal_id):
            return row
    row = AssigningAuthority(
        namespace=identifier.namespace,
        universal_id=identifier.universal_id,
        universal_id_type=identifier.universal_id_type,
    )
    unit.save(row)
    return row


def by_id(authority_id: object) -> AssigningAuthority | None:
    """The authority with this row id, for lists that show many identifiers."""
    known = memory("authorities", _everybodys)
    found = next((a for a in known if a.id == authority_id), None)
    if found is None:
        known[:] = AssigningAuthority.objects.all()
        found = next((a for a in known if a.id == authority_id), None)
    return found


def forget() -> None:
    """Empty the memory (tests)."""
    memory("authorities", _everybodys).clear()
