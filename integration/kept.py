"""Connections that stay open between drains: what a worker is done with waits here for the next message.

Each belongs to one process and to the settings it was opened with. A destination says by `keep_open_seconds` how
long one may wait; after a time-out none ever comes here open, for its sender has closed it (a late ACK must find
nobody).
"""

import threading
import time
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import orjson

from integration.destinations import setting
from integration.models import Destination

# However busy, a connection is opened anew after this long: certificates and addresses change.
_OLDEST_SECONDS = 600.0


class Closable(Protocol):
    """Something to let go of."""

    def close(self) -> None:
        """Let go of the connection."""
        ...


W = TypeVar("W", bound=Closable)


@dataclass(slots=True)
class Way(Generic[W]):
    """An open way to a destination, with the settings it was opened for and when."""

    transport: W
    opened_for: bytes
    opened_at: float
    until: float = 0.0

    def fits(self, destination: Destination) -> bool:
        """Whether it may carry the next message: the settings are the same, and it is not too old."""
        young = time.monotonic() - self.opened_at < _OLDEST_SECONDS
        return young and self.opened_for == _settings_of(destination)


def opened(transport: W, destination: Destination) -> Way[W]:
    """A transport that was just made for a destination."""
    return Way(transport, _settings_of(destination), time.monotonic())


class Kept(Generic[W]):
    """The ways that wait in this process, by destination. For several threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[int, list[Way[W]]] = {}

    def take(self, destination: Destination) -> Way[W] | None:
        """A way that fits the destination as it is now, out of those that wait; the others are closed."""
        moment = time.monotonic()
        with self._lock:
            waiting = self._waiting.pop(destination.id, [])
            good = [w for w in waiting if w.fits(destination) and moment < w.until]
            if good[1:]:
                self._waiting[destination.id] = good[1:]
        for way in waiting:
            if not any(way is one for one in good):
                way.transport.close()
        return good[0] if good else None

    def give(self, way: Way[W], destination: Destination) -> None:
        """Put a way aside for the next message, or close it where the destination does not let it wait."""
        seconds = float(setting(destination, "keep_open_seconds"))
        if seconds <= 0 or destination.kind not in (Destination.Kind.HL7, Destination.Kind.FHIR):
            way.transport.close()
            return
        way.until = time.monotonic() + seconds
        with self._lock:
            self._waiting.setdefault(destination.id, []).append(way)

    def close_idle(self, every: bool = False) -> int:
        """Close what has waited long enough (or all of it); returns how many that were."""
        moment = time.monotonic()
        with self._lock:
            over = [w for ways in self._waiting.values() for w in ways if every or w.until <= moment]
            self._waiting = {
                key: left
                for key, ways in self._waiting.items()
                if (left := [w for w in ways if not any(w is o for o in over)])
            }
        for way in over:
            way.transport.close()
        return len(over)


def _settings_of(destination: Destination) -> bytes:
    """What a transport is made of; health and name do not count."""
    said = [
        destination.kind,
        destination.host,
        destination.port,
        destination.url,
        destination.version,
        destination.settings,
    ]
    return orjson.dumps(said, option=orjson.OPT_SORT_KEYS)
