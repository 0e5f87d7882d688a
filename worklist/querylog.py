"""Remembering what scanners asked and got, for a while: the ground of "why is my patient not on the scanner?".

Scanners ask the same every few seconds. A query that is asked again with the same answers counts on the row it
has; anything new gets a row, and an audit row with it when patients were disclosed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

from django.db import connection

from common.clock import now
from worklist.models import QueryLog

KEEP_DAYS = 14
KEEP_ROWS = 200
"""A scanner's newest rows; more are removed by `prune`."""
MAX_ITEMS = 200


@dataclass
class Asked:
    """One query as it is remembered. `keys` are the keys that were not universal: [keyword, text]."""

    ae_title: str
    called_ae: str
    address: str
    identifier: bytes
    transfer_syntax: str
    keys: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    status: int = 0
    comment: str = ""
    count: int = 0
    items: list[UUID] = field(default_factory=list)
    patients: list[str] = field(default_factory=list)
    duration_ms: float = 0.0


_STATEMENT = """
WITH quick AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true)),
kept AS (
    INSERT INTO worklist_querylog
        (ae_title, called_ae, address, digest, keys, notes, status, comment, count, item_ids, identifier,
         transfer_syntax, duration_ms, times, first_at, last_at)
    SELECT %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, 1, %s, %s FROM quick
    ON CONFLICT (ae_title, digest) DO UPDATE SET
        times = worklist_querylog.times + 1, last_at = EXCLUDED.last_at, address = EXCLUDED.address,
        called_ae = EXCLUDED.called_ae, duration_ms = EXCLUDED.duration_ms
    RETURNING id, times
)
INSERT INTO common_auditevent (at, actor, action, what, patient_ids, object_ids, detail, address)
SELECT %s, %s, 'search', 'worklist', %s, %s, jsonb_build_object('query', kept.id, 'count', %s::int), %s
FROM kept WHERE kept.times = 1 AND %s > 0
"""


def remember(asked: Asked) -> None:
    """Keep a query, in one statement of its own. A crash of the machine may lose the last few; nothing waits for it."""
    at = now()
    items = asked.items[:MAX_ITEMS]
    digest = _digest(asked)
    values = (
        asked.ae_title,
        asked.called_ae,
        asked.address or None,
        digest,
        json.dumps(asked.keys),
        list(dict.fromkeys(note[:200] for note in asked.notes))[:50],
        asked.status,
        asked.comment[:200],
        asked.count,
        items,
        asked.identifier,
        asked.transfer_syntax,
        asked.duration_ms,
        at,
        at,
    )
    patients = json.dumps(list(dict.fromkeys(asked.patients))[:100])
    objects = json.dumps([str(i) for i in items[:100]])
    audit = (at, f"ae:{asked.ae_title}", patients, objects, asked.count, asked.address or None, asked.count)
    with connection.cursor() as cursor:
        cursor.execute(_STATEMENT, (*values, *audit))


def _digest(asked: Asked) -> str:
    """Equal for a repeat: the same query, status and items in whatever order."""
    parts: Sequence[object] = (
        asked.transfer_syntax,
        asked.identifier.hex(),
        asked.status,
        asked.count,
        sorted(str(i) for i in asked.items),
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def prune() -> int:
    """Remove rows that are old or too many for their scanner; gives their number."""
    old, _ = QueryLog.objects.filter(last_at__lt=now() - timedelta(days=KEEP_DAYS)).delete()
    with connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM worklist_querylog WHERE id IN (SELECT id FROM (SELECT id, row_number() OVER "
            "(PARTITION BY ae_title ORDER BY last_at DESC) AS place FROM worklist_querylog) r WHERE place > %s)",
            [KEEP_ROWS],
        )
        return old + cursor.rowcount
