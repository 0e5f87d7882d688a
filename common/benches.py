"""One measured case of `manage.py bench`: the JSON object that others read, the same for every bench."""

from __future__ import annotations

from typing import Any


def measured(
    bench: str,
    name: str,
    ours: float | None,
    unit: str,
    *,
    peer: str | None = None,
    theirs: float | None = None,
    ratio: float | None = None,
    floor: float | None = None,
    must: float | None = None,
    ok: bool = True,
) -> dict[str, Any]:
    """What a bench says of one case; numbers with two places below 100 and none above. None: there is none."""
    return {
        "bench": bench,
        "case": name,
        "ours": _short(ours),
        "unit": unit,
        "peer": peer,
        "theirs": _short(theirs),
        "ratio": _short(ratio),
        "floor": _short(floor),
        "must": must,
        "ok": ok,
    }


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 2 if value < 100 else None)
