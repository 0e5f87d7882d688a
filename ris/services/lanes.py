"""Lanes: what concerns one patient is applied one after the other, what concerns different ones at once.

A lane is a transaction-level advisory lock of PostgreSQL. A message holds the lanes of all its identifiers and
of every patient that these lead to, taken in sorted order, until it commits. Waiters queue in arrival order.
"""

from collections.abc import Iterable
from uuid import UUID

from common.store import prepared
from ris.apart import is_apart

_BY_IDENTIFIER = """
WITH RECURSIVE found AS (
    SELECT p.id, p.merged_into_id FROM ris_patientidentifier i JOIN ris_patient p ON p.id = i.patient_id
    WHERE i.value = ANY(%(values)s::text[])
    UNION
    SELECT p.id, p.merged_into_id FROM ris_patient p JOIN found f ON p.id = f.merged_into_id
), keys AS (
    SELECT hashtextextended('id:' || v, %(seed)s) AS k, NULL::uuid AS patient FROM unnest(%(keys)s::text[]) v
    UNION SELECT hashtextextended('patient:' || id, %(seed)s), id FROM found
)
SELECT pg_advisory_xact_lock(k), patient FROM (SELECT k, patient FROM keys ORDER BY k) s
"""

_BY_PATIENT = """
SELECT pg_advisory_xact_lock(k)
FROM (SELECT DISTINCT hashtextextended('patient:' || p, %(seed)s) AS k FROM unnest(%(patients)s::uuid[]) p ORDER BY k) s
"""


def lock(values: Iterable[str], others: Iterable[str] = ()) -> frozenset[UUID]:
    """Hold the lanes of these identifier values, of the patients they lead to, and of `others`.

    `others` are further names to serialise on, such as `placer:123`, when there is no patient. Returns the
    ids of the patients that are held. Must run inside a transaction; read only after it.
    """
    wanted = sorted({v for v in values if v})
    held = prepared(_BY_IDENTIFIER, {"values": wanted, "keys": wanted + sorted(set(others)), "seed": _seed()})
    return frozenset(patient for _, patient in held if patient is not None)


def lock_patients(patients: Iterable[UUID]) -> None:
    """Hold the lanes of these patients, for a page or a scanner that knows them by row id."""
    wanted = [str(p) for p in patients]
    if wanted:
        prepared(_BY_PATIENT, {"patients": wanted, "seed": _seed()})


def _seed() -> int:
    """Other locks for a trial over copies: it must not keep a patient's real messages waiting."""
    return 1 if is_apart() else 0
