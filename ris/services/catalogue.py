"""The procedure catalogue and the stations: what a code means here, and who can do it."""

import time
from collections.abc import Iterable

from ris.models import ProcedureDefinition, Station

_KEPT_S = 5.0
_RETRY_S = 0.5
"""After so long, what was not found is looked for again: it may have been added just now."""
_definitions: tuple[float, dict[str, ProcedureDefinition]] = (0.0, {})
_stations: tuple[float, list[Station]] = (0.0, [])


def definition(code: str) -> ProcedureDefinition | None:
    """The catalogue's line for an order code, or None. Read again every few seconds, sooner for an unknown code."""
    if not code:
        return None
    return _known_definitions(_KEPT_S).get(code) or _known_definitions(_RETRY_S).get(code)


def _known_definitions(seconds: float) -> dict[str, ProcedureDefinition]:
    global _definitions
    if time.monotonic() - _definitions[0] > seconds or not _definitions[0]:
        _definitions = (time.monotonic(), {d.code: d for d in ProcedureDefinition.objects.all()})
    return _definitions[1]


def stations(seconds: float = _KEPT_S) -> list[Station]:
    """All stations, as read at most so many seconds ago."""
    global _stations
    if time.monotonic() - _stations[0] > seconds or not _stations[0]:
        _stations = (time.monotonic(), list(Station.objects.all()))
    return _stations[1]


def stations_for(names: Iterable[str], location: str, modality: str) -> list[Station]:
    """The stations a step may use: those it names, else those of its room, else all of its modality."""
    wanted = set(names)
    if not wanted and not location and not modality:
        return []
    return _fitting(stations(), wanted, location, modality) or _fitting(
        stations(_RETRY_S), wanted, location, modality
    )


def _fitting(known: list[Station], wanted: set[str], location: str, modality: str) -> list[Station]:
    if wanted:
        return [s for s in known if s.name in wanted]
    in_room = [s for s in known if location and s.room == location and modality in ("", s.modality)]
    return in_room or [s for s in known if modality and s.modality == modality]


def forget() -> None:
    """Read everything again at the next question (tests, after an edit)."""
    global _definitions, _stations
    _definitions, _stations = (0.0, {}), (0.0, [])
