"""Lanes: what concerns one patient is applied one after the other, what concerns different ones at once.

A lane is a transaction-level advisory lock of PostgreSQL. A message holds the lanes of all its identifiers and
of every patient that these lead to, taken in sorted order, until it commits. Waiters queue in arrival order.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from uuid import UUID

from common import wire
from common.wire import Answer
from ris.apart import is_apart

# Identifier values, and the patients that each leads to, through merges.
_FOUND = """
WITH RECURSIVE found AS (
    SELECT i.value, i.patient_id AS id FROM ris_patientidentifier i WHERE i.value = ANY($1::text[])
    UNION
    SELECT found.value, (SELECT p.merged_into_id FROM ris_patient p WHERE p.id = found.id)
    FROM found WHERE found.id IS NOT NULL
),"""

_BY_IDENTIFIER = f"""{_FOUND} keys AS (
    SELECT hashtextextended('id:' || v, $3::bigint) AS k, NULL::uuid AS patient FROM unnest($2::text[]) v
    UNION SELECT hashtextextended('patient:' || id, $3::bigint), id FROM found WHERE id IS NOT NULL
)
SELECT pg_advisory_xact_lock(k), patient FROM (SELECT k, patient FROM keys ORDER BY k) s
"""

# The same lanes by the value that leads to each, and without waiting for any.
_IF_FREE = f"""{_FOUND} keys AS (
    SELECT v AS value, hashtextextended('id:' || v, $2::bigint) AS k, NULL::uuid AS patient FROM unnest($1::text[]) v
    UNION ALL SELECT value, hashtextextended('patient:' || id, $2::bigint), id FROM found WHERE id IS NOT NULL
)
SELECT value, pg_try_advisory_xact_lock(k), patient FROM keys
"""

_BY_PATIENT = """
SELECT pg_advisory_xact_lock(k)
FROM (SELECT DISTINCT hashtextextended('patient:' || p, $2::bigint) AS k FROM unnest($1::uuid[]) p ORDER BY k) s
"""


def lock(values: Iterable[str], others: Iterable[str] = ()) -> frozenset[UUID]:
    """Hold the lanes of these identifier values, of the patients they lead to, and of `others`.

    `others` are further names to serialise on, such as `placer:123`, when there is no patient. Returns the
    ids of the patients that are held. Must run inside a transaction; read only after it.
    """
    held = ask(values, others)()
    return frozenset(UUID(patient.decode()) for _, patient in held if patient is not None)


def ask(values: Iterable[str], others: Iterable[str] = ()) -> Answer:
    """As `lock`, for a statement that travels with others (common/wire.py): held when they are answered."""
    wanted = sorted({v for v in values if v})
    return wire.ask(_BY_IDENTIFIER, (wanted, wanted + sorted(set(others)), _seed()))


@dataclass(slots=True)
class Lane:
    """What an identifier value leads to, and whether all of it is held."""

    held: bool = True
    patients: set[bytes] = field(default_factory=set)
    """The ids of those it leads to, as text."""


def ask_if_free(values: Iterable[str]) -> Callable[[], dict[str, Lane]]:
    """Hold the lanes of these identifier values as far as nobody else holds or awaits them; by value.

    For a statement that travels with others: call what is returned after it.
    """
    answer = wire.ask(_IF_FREE, (sorted({v for v in values if v}), _seed()))

    def lanes() -> dict[str, Lane]:
        found: dict[str, Lane] = defaultdict(Lane)
        for value, held, patient in answer():
            assert value is not None
            lane = found[value.decode()]
            lane.held &= held == b"t"
            if patient is not None:
                lane.patients.add(patient)
        return found

    return lanes


def lock_patients(patients: Iterable[UUID]) -> None:
    """Hold the lanes of these patients, for a page or a scanner that knows them by row id."""
    wanted = [str(p) for p in patients]
    if wanted:
        wire.ask(_BY_PATIENT, (wanted, _seed()))


def _seed() -> int:
    """Other locks for a trial over copies: it must not keep a patient's real messages waiting."""
    return 1 if is_apart() else 0
