"""The procedure catalogue and the stations: what a code means here, and who can do it."""

import time
from collections.abc import Iterable

from ris.models import ProcedureDefinition, Station

_KEPT_S = 5.0
_definitions: tuple[float, dict[str, ProcedureDefinition]] = (0.0, {})
_stations: tuple[float, list[Station]] = (0.0, [])


def definition(code: str) -> ProcedureDefinition | None:
    """The catalogue's line for an order code, or None. Read again every few seconds."""
    global _definitions
    if time.monotonic() - _definitions[0] > _KEPT_S or not _definitions[0]:
        _definitions = (time.monotonic(), {d.code: d for d in ProcedureDefinition.objects.all()})
    return _definitions[1].get(code) if code else None


def stations() -> list[Station]:
    """All stations. Read again every few seconds."""
    global _stations
    if time.monotonic() - _stations[0] > _KEPT_S or not _stations[0]:
        _stations = (time.monotonic(), list(Station.objects.all()))
    return _stations[1]


def stations_for(names: Iterable[str], location: str, modality: str) -> list[Station]:
    """The stations a step may use: those it names, else those of its room, else all of its modality."""
    wanted = set(names)
    by_name = [s for s in stations() if s.name in wanted]
    if by_name or wanted:
        return by_name
    in_room = [s for s in stations() if location and s.room == location and modality in ("", s.modality)]
    return in_room or [s for s in stations() if modality and s.modality == modality]


def forget() -> None:
    """Read everything again at the next question (tests, after an edit)."""
    global _definitions, _stations
    _definitions, _stations = (0.0, {}), (0.0, [])
