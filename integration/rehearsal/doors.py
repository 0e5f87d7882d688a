"""The engine as a peer sees it: doors with ports, which may be shut for a while and open again elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from django.conf import settings
from django.db import InterfaceError, OperationalError, connection

from common.process import read_run_file

T = TypeVar("T")

PAUSE_SECONDS = 0.25
"""Between two looks, and between two tries of a peer that was not answered."""


class NotRunning(Exception):
    """No engine runs on this data directory; the text says what to do."""


class GaveUp(Exception):
    """Something did not come within the bound; the text says what, and after how long."""


class Stopped(Exception):
    """The rehearsal was told to stop."""


class Doors:
    """Where the engine listens. Asked anew for each connection: a restarted engine may have other ports."""

    def __init__(self, stopping: threading.Event, patience: float) -> None:
        self.stopping, self.patience = stopping, patience
        self.host = settings.ORDERLY_BIND if settings.ORDERLY_BIND not in ("", "0.0.0.0") else "127.0.0.1"

    def port(self, name: str) -> int:
        """The port of `http`, `mllp` or `dicom`, waiting for an engine that is being started again.

        Raises NotRunning after the patience, Stopped when told so.
        """
        return self.wait_for(lambda: _ports().get(name), f"the engine's {name} port")

    def wait_for(self, look: Callable[[], T | None], what: str, seconds: float | None = None) -> T:
        """The first true answer of `look`. Raises GaveUp after the patience (`seconds`), Stopped when told so."""
        bound = self.patience if seconds is None else seconds
        deadline = time.monotonic() + bound
        while True:
            if found := look():
                return found
            if time.monotonic() > deadline:
                raise GaveUp(f"{what} did not come within {bound:.0f} s")
            self.pause()

    def pause(self, seconds: float = PAUSE_SECONDS) -> None:
        """Wait a moment. Raises Stopped when told so."""
        if self.stopping.wait(seconds):
            raise Stopped()

    def steadily(self, ask: Callable[[], T]) -> T:
        """What `ask` answers from the database, asked again while the database is away (bounded by the patience).

        `ask` must be safe to repeat: its transaction may have been committed before the connection broke.
        """
        deadline = time.monotonic() + self.patience
        while True:
            try:
                return ask()
            except (OperationalError, InterfaceError):
                connection.close()
                if time.monotonic() > deadline:
                    raise
                self.pause()


def _ports() -> dict[str, int]:
    run = read_run_file(settings.DATA_DIR)
    return run["ports"] if run else {}


def require_engine() -> dict[str, int]:
    """The ports of the running engine. Raises NotRunning."""
    ports = _ports()
    if not {"mllp", "dicom", "http"} <= ports.keys():
        raise NotRunning(
            f"No engine runs on {Path(settings.DATA_DIR)}. Start it first: `manage.py serve` in another terminal "
            "(with the same --data), and wait until it says that it is ready."
        )
    return ports
