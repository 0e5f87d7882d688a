"""What a process of the engine is given by whoever started it, and what `run.json` says of all of them.

Every process is a function `main(ctx: Context)`, named in config/processes.py. It calls `ctx.ready()` once it
serves, and returns when `ctx.stopping` is set (SIGTERM, SIGINT, or the supervisor's death).
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BEAT_SECONDS = 5.0
ORPHAN_SECONDS = 5.0  # what a process may still finish after its supervisor was killed


class Context:
    """The surroundings of one process: its sockets, the order to stop, and its way to say that it serves."""

    def __init__(
        self,
        name: str,
        sockets: dict[str, socket.socket] | None = None,
        *,
        status_fd: int | None = None,
        lifeline_fd: int | None = None,
    ) -> None:
        self.name = name
        self.sockets = sockets or {}
        self.stopping = threading.Event()
        self._status_fd = status_fd
        self._lifeline_fd = lifeline_fd
        self._last_beat = 0.0

    def ready(self) -> None:
        """Say that this process serves; `/readyz` answers 200 once all have. Safe to call twice or after fork."""
        self._say(b"ready\n")

    def beat(self) -> None:
        """A sign of life, for a process that wants to be restarted should it hang. Cheap; call it in a loop."""
        now = time.monotonic()
        if now - self._last_beat >= BEAT_SECONDS:
            self._last_beat = now
            self._say(b"beat\n")

    def stop_on_signals(self) -> None:
        """SIGTERM, SIGINT and the supervisor's death set `stopping`. To be called in the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stopping.set())
        if self._lifeline_fd is not None:
            threading.Thread(target=self._watch_lifeline, name="lifeline", daemon=True).start()

    def let_go(self) -> None:
        """In a process forked from this one: close what it was given, so that its end is its end."""
        for sock in self.sockets.values():
            sock.close()
        for fd in (self._status_fd, self._lifeline_fd):
            if fd is not None and fd > 2:
                os.close(fd)
        self._status_fd = self._lifeline_fd = None

    def _watch_lifeline(self) -> None:
        """The supervisor holds the other end of this pipe and writes nothing: readable means that it is gone."""
        fd = self._lifeline_fd
        if fd is not None:
            select.select([fd], [], [])
            os.kill(os.getpid(), signal.SIGTERM)
            # The database goes with the supervisor, and the sockets are wanted by the next one.
            time.sleep(ORPHAN_SECONDS)
            os.killpg(os.getpgrp(), signal.SIGKILL)

    def _say(self, word: bytes) -> None:
        if self._status_fd is not None:
            try:
                os.write(self._status_fd, word)
            except OSError:  # the supervisor is gone; the lifeline tells
                self._status_fd = None


def context_from_environment(name: str) -> Context:
    """The context of a process started by the supervisor: ORDERLY_SOCKETS is `mllp=5,mllp_tls=6`."""
    sockets = {}
    for pair in filter(None, os.environ.get("ORDERLY_SOCKETS", "").split(",")):
        key, _, fd = pair.partition("=")
        sockets[key] = socket.socket(fileno=int(fd))
        sockets[key].set_inheritable(False)
    return Context(
        name,
        sockets,
        status_fd=_fd("ORDERLY_STATUS_FD"),
        lifeline_fd=_fd("ORDERLY_LIFELINE_FD"),
    )


def _fd(variable: str) -> int | None:
    value = os.environ.get(variable)
    if not value:
        return None
    os.set_inheritable(int(value), False)
    return int(value)


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """Ask the kernel to send `number` to this process when its parent dies (Linux; elsewhere nothing happens).

    To be called first in a child that was forked or executed; a parent that died before is noticed too.
    """
    if sys.platform.startswith("linux"):
        parent = os.getppid()
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(number), 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), number)


# -- run.json


def run_file(data_dir: Path | str) -> Path:
    """Where `serve` says what runs, on which ports."""
    return Path(data_dir) / "run.json"


def read_run_file(data_dir: Path | str) -> dict[str, Any] | None:
    """What `run.json` says, or None when no `serve` runs on this data directory.

    `{"pid", "started_at", "ports": {"http": 8000, …}, "processes": {"web": {"pid", "state", "restarts", …}}}`
    """
    try:
        said = json.loads(run_file(data_dir).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return said if _alive(said.get("pid", 0)) else None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0


def resolve(target: str) -> Callable[[Context], None]:
    """The function that `package.module:function` names."""
    from importlib import import_module

    module, _, function = target.partition(":")
    found: Callable[[Context], None] = getattr(import_module(module), function)
    return found
