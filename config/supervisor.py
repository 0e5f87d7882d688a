"""The supervisor: starts the processes by exec, hands them their sockets, watches them, and stops them all.

A child says `ready` over a pipe once it serves. One that dies, or that has given signs of life and stops to,
is started again, later and later if it keeps dying. What runs is written to `run.json` at every change.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.process import ORPHAN_SECONDS
from config.processes import Process

log = logging.getLogger(__name__)

FIRST_DELAY = 0.2  # seconds until a dead child is started again; doubled at each early death
LONGEST_DELAY = 15.0
HEALTHY_AFTER = 30.0  # a child that lived this long starts anew with the first delay
SILENCE = 120.0  # a child that has beaten and then is silent for so long is hung
STOP_SECONDS = float(os.environ.get("ORDERLY_STOP_SECONDS", "20"))
TICK = 0.5

Command = Callable[[Process], list[str]]


def run_command(process: Process) -> list[str]:
    """The command line that runs one process of the table."""
    manage = Path(__file__).resolve().parent.parent / "manage.py"
    return [sys.executable, str(manage), "run", process.name]


class Child:
    """One process of the table as the supervisor sees it."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.popen: subprocess.Popen[bytes] | None = None
        self.status: int | None = None  # our end of the pipe on which it speaks
        self.state = "waiting"
        self.restarts = 0
        self.early_deaths = 0
        self.started = 0.0
        self.due = 0.0
        self.beaten: float | None = None
        self.last_exit: int | None = None
        self.renewing = False  # told to end so that it starts with new settings
        self.changed_at = self.down_since = datetime.now(UTC)

    def become(self, state: str) -> None:
        self.changed_at = datetime.now(UTC)
        if self.state == "ready":
            self.down_since = self.changed_at  # through all its starts, until it is ready again
        self.state = state

    def described(self) -> dict[str, Any]:
        return {
            "pid": self.popen.pid if self.popen else None,
            "state": self.state,
            "since": self.changed_at.isoformat(timespec="milliseconds"),
            "down_since": self.down_since.isoformat(timespec="milliseconds")
            if self.state != "ready"
            else None,
            "restarts": self.restarts,
            "last_exit": self.last_exit,
        }


class Supervisor:
    """Runs the table until told to stop. `tend` is called about twice a second (it looks after the database)."""

    def __init__(
        self,
        table: tuple[Process, ...],
        sockets: dict[str, socket.socket],
        run_file: Path,
        *,
        command: Command = run_command,
        environment: dict[str, str] | None = None,
        tend: Callable[[], dict[str, Any]] | None = None,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        self.children = [Child(process) for process in table]
        self.sockets = sockets
        self.run_file = run_file
        self.command = command
        self.environment = environment or {}
        self.tend = tend
        self.on_ready = on_ready
        self.started_at = datetime.now(UTC)
        self._stop_signals = 0
        self._renewals: list[Child] = []
        self._selector = selectors.DefaultSelector()
        self._lifeline = os.pipe()  # children hold the reading end; it ends when we do
        self._wakeup = socket.socketpair()
        self._tended: dict[str, Any] = {}
        self._written: dict[str, Any] = {}

    def run(self) -> None:
        """Start everything and watch it until `stop()`, SIGTERM or SIGINT; then stop everything."""
        self._listen_to_signals()
        try:
            while not self._stop_signals:
                self._start_what_is_due()
                self._note()
                self._wait(TICK)
                self._reap()
                self._find_the_hung()
                self._renew_the_next()
                if self.tend:
                    self._tended = self.tend()
        finally:
            self._stop_all()
            self.run_file.unlink(missing_ok=True)

    def stop(self) -> None:
        """Ask for the end; a second time, do not wait for children to drain."""
        self._stop_signals += 1

    def renew(self) -> None:
        """Start every process again, one after the other, so that each takes the settings of now (SIGHUP)."""
        self._renewals = list(self.children)

    # -- starting

    def _start_what_is_due(self) -> None:
        for child in self.children:
            if child.popen is None and time.monotonic() >= child.due:
                self._start(child)

    def _start(self, child: Child) -> None:
        heard, said = os.pipe()
        sockets = {name: self.sockets[name] for name in child.process.sockets if name in self.sockets}
        passed = {name: door.fileno() for name, door in sockets.items()}
        environment = {
            **os.environ,
            **self.environment,
            "ORDERLY_SUPERVISED": str(os.getpid()),
            "ORDERLY_PROCESS": child.process.name,
            "ORDERLY_SOCKETS": ",".join(f"{name}={fd}" for name, fd in passed.items()),
            "ORDERLY_STATUS_FD": str(said),
            "ORDERLY_LIFELINE_FD": str(self._lifeline[0]),
        }
        child.popen = subprocess.Popen(
            self.command(child.process),
            stdin=subprocess.DEVNULL,
            pass_fds=[*passed.values(), said, self._lifeline[0]],
            env=environment,
            start_new_session=True,  # Ctrl-C reaches us alone, and we can end its own children with it
        )
        os.close(said)
        os.set_blocking(heard, False)
        child.status = heard
        child.started = time.monotonic()
        child.beaten = None
        child.become("starting")
        self._selector.register(heard, selectors.EVENT_READ, child)

    # -- watching

    def _listen_to_signals(self) -> None:
        for end in self._wakeup:
            end.setblocking(False)
        signal.set_wakeup_fd(self._wakeup[1].fileno(), warn_on_full_buffer=False)
        self._selector.register(self._wakeup[0], selectors.EVENT_READ, None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop())
        signal.signal(signal.SIGHUP, lambda *_: self.renew())
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only to wake the loop

    def _wait(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            if key.data is None:
                with suppress(BlockingIOError):
                    self._wakeup[0].recv(4096)
            else:
                self._hear(key.data)

    def _hear(self, child: Child) -> None:
        try:
            said = os.read(child.status, 4096) if child.status is not None else b""
        except BlockingIOError:
            return
        if not said:
            self._close_status(child)
            return
        child.beaten = time.monotonic() if b"beat" in said else child.beaten
        if b"ready" in said and child.state == "starting":
            child.become("ready")
            log.info("%s is ready", child.process.name)
            self._note()
            if self.on_ready and all(one.state == "ready" for one in self.children):
                told, self.on_ready = self.on_ready, None
                told()

    def _reap(self) -> None:
        for child in self.children:
            if child.popen is None or (code := child.popen.poll()) is None:
                continue
            self._end_group(child, signal.SIGKILL)  # what it forked must not outlive it with our sockets
            self._close_status(child)
            lived = time.monotonic() - child.started
            child.early_deaths = 0 if lived > HEALTHY_AFTER else child.early_deaths + 1
            delay = min(FIRST_DELAY * 2 ** max(child.early_deaths - 1, 0), LONGEST_DELAY)
            child.popen = None
            if child.renewing:
                child.renewing, child.early_deaths, child.due = False, 0, 0.0
                child.become("waiting")
                log.info("%s ended as it was told; started again", child.process.name)
                continue
            child.last_exit = code
            child.restarts += 1
            child.due = time.monotonic() + delay
            child.become("waiting")
            log.error("%s ended (%s); started again in %.1f s", child.process.name, _exit_words(code), delay)

    def _find_the_hung(self) -> None:
        for child in self.children:
            if child.popen and child.beaten and time.monotonic() - child.beaten > SILENCE:
                log.error("%s gave no sign of life for %.0f s; it is killed", child.process.name, SILENCE)
                child.beaten = None
                self._end_group(child, signal.SIGKILL)
            elif child.renewing and (datetime.now(UTC) - child.changed_at).total_seconds() > STOP_SECONDS:
                log.warning("%s did not end within %.0f s; it is killed", child.process.name, STOP_SECONDS)
                self._end_group(child, signal.SIGKILL)

    def _renew_the_next(self) -> None:
        """Tell one process to end; the next one's turn comes when all are ready again."""
        if self._renewals and all(child.state == "ready" for child in self.children):
            child = self._renewals.pop(0)
            child.renewing = True
            child.become("stopping")
            if child.popen:
                child.popen.send_signal(signal.SIGTERM)

    def _note(self) -> None:
        """Write run.json when something changed; readers see the old file or the new one, whole."""
        said = {
            "pid": os.getpid(),
            "started_at": self.started_at.isoformat(timespec="milliseconds"),
            "ports": {name: door.getsockname()[1] for name, door in self.sockets.items()},
            "processes": {child.process.name: child.described() for child in self.children},
            **self._tended,
        }
        if said == self._written:
            return
        draft = self.run_file.with_suffix(f".{os.getpid()}.new")
        draft.write_text(json.dumps(said, indent=1))
        draft.replace(self.run_file)
        self._written = said

    # -- stopping

    def _stop_all(self) -> None:
        for door in self.sockets.values():
            door.close()
        for child in self.children:
            if child.popen:
                child.become("stopping")
                child.popen.send_signal(signal.SIGTERM)
        asked = self._stop_signals
        deadline = time.monotonic() + STOP_SECONDS
        while any(child.popen and child.popen.poll() is None for child in self.children):
            if time.monotonic() > deadline or self._stop_signals > max(asked, 1):
                break
            self._wait(0.05)
        for child in self.children:
            if child.popen is None:
                continue
            if child.popen.poll() is None:
                log.warning("%s did not stop within %.0f s; it is killed", child.process.name, STOP_SECONDS)
            self._end_group(child, signal.SIGKILL)
            child.popen.wait()
            self._close_status(child)
        self._close()

    def _end_group(self, child: Child, number: signal.Signals) -> None:
        if child.popen:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.popen.pid, number)

    def _close_status(self, child: Child) -> None:
        if child.status is not None:
            self._selector.unregister(child.status)
            os.close(child.status)
            child.status = None

    def _close(self) -> None:
        signal.set_wakeup_fd(-1)
        self._selector.close()
        for end in self._wakeup:
            end.close()
        for fd in self._lifeline:
            os.close(fd)


def end_leftovers(run_file: Path, seconds: float = ORPHAN_SECONDS + 5) -> bool:
    """After a killed supervisor: wait until the processes of its run.json are gone, for they hold its ports.

    Returns whether one was killed. Its ports may be taken for a moment longer: the kernel lets go of a dying
    process's command line, by which it is known here, before it closes its sockets.
    """
    try:
        said = json.loads(run_file.read_text())["processes"]
    except FileNotFoundError:
        return False
    except (ValueError, KeyError):
        return True
    deadline = time.monotonic() + seconds
    while left := [one["pid"] for name, one in said.items() if one["pid"] and _is_ours(one["pid"], name)]:
        if time.monotonic() > deadline:
            for pid in left:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
            break
        time.sleep(0.05)
    return True


def _is_ours(pid: int, name: str) -> bool:
    """Whether this process id still is the `manage.py run NAME` that it was (Linux; elsewhere: False)."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return words[-3:-1] == [b"run", name.encode()]


def _exit_words(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
