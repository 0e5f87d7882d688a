"""Which status of a scheduled step may follow which, and who may move it there: one table."""

from ris.models.schedule import StepStatus as S

TERMINAL = frozenset({S.COMPLETED, S.DISCONTINUED, S.CANCELED})
OPEN = frozenset({S.SCHEDULED, S.ARRIVED, S.READY, S.STARTED, S.DEPARTED, S.HELD})
ON_WORKLIST = frozenset({S.SCHEDULED, S.ARRIVED, S.READY})

# Who → from → to. PS3.3 C.4.10 names the states but no order; this is the department's.
# `order` is the HIS by message, `adt` its word that the patient is here, `scanner` MPPS, `images` an arrived study,
# `clerk` a person, `report` a signature.
_WAITING = (S.SCHEDULED, S.ARRIVED, S.READY)
_TABLE: dict[str, dict[str, frozenset[str]]] = {
    "order": {
        **{
            s: frozenset({*_WAITING, S.HELD, S.STARTED, S.COMPLETED, S.CANCELED, S.DISCONTINUED})
            for s in _WAITING
        },
        S.HELD: frozenset({*_WAITING, S.CANCELED, S.DISCONTINUED, S.COMPLETED}),
        S.STARTED: frozenset({S.COMPLETED, S.DISCONTINUED, S.DEPARTED}),
        S.DEPARTED: frozenset({S.COMPLETED, S.DISCONTINUED}),
    },
    "adt": {S.SCHEDULED: frozenset({S.ARRIVED})},
    "scanner": {
        **{s: frozenset({S.STARTED, S.COMPLETED, S.DISCONTINUED}) for s in (*_WAITING, S.HELD)},
        S.STARTED: frozenset({S.COMPLETED, S.DISCONTINUED, S.SCHEDULED}),
        S.DEPARTED: frozenset({S.COMPLETED, S.DISCONTINUED}),
        S.COMPLETED: frozenset({S.STARTED}),
    },
    "images": {
        **{s: frozenset({S.STARTED, S.COMPLETED}) for s in (*_WAITING, S.HELD)},
        S.STARTED: frozenset({S.COMPLETED}),
        S.DEPARTED: frozenset({S.COMPLETED}),
    },
    "clerk": {s: frozenset(S) - {s} for s in S},
    "report": {s: frozenset({S.COMPLETED}) for s in OPEN},
}


def may_move(actor: str, before: str, after: str) -> bool:
    """Whether `actor` may move a step from `before` to `after`; staying is always allowed."""
    return before == after or after in _TABLE[actor].get(before, frozenset())
