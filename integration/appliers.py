"""Processes that apply what waits together: Python computes on one core at a time, and a listener has more of them.

The listener hands messages to one of them over a pipe, and gets their answers after COMMIT. One that dies, or takes
too long, has promised nothing to anybody: the listener receives its messages itself, one by one, and their identities
tell which of them are applied already.

They are forked by a nursery, itself forked before the listener has threads and connections: so they share its memory,
start within milliseconds, and can be started again at any time.
"""

import logging
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from django.db import connections

from integration import sharing, sources
from integration.inbox import Reply
from integration.sharing import Arrival

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 60.0
"""The longest wait for an applier. What it waits for itself takes no second."""
START_SECONDS = 5.0
AGAIN_SECONDS = 1.0
"""After one was lost, until another is started."""
END_SECONDS = 5.0

Answered = dict[int, tuple[Reply, int | None]]
"""By number: the answer, without its profile, which stays behind; and the source whose profile it is."""


class Nursery:
    """The process that forks appliers. To be made before there are threads and database connections."""

    def __init__(self, let_go: Callable[[], None]) -> None:
        """`let_go` closes, in the new process, what belongs to this one alone."""
        self._ours, theirs = socket.socketpair()
        if os.fork() == 0:
            self._ours.close()
            let_go()
            _end_with(partial(_fork_as_asked, theirs))
        theirs.close()
        self._ours.settimeout(START_SECONDS)

    def start(self) -> "Applier":
        """A new applier. Raises OSError."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._ours, [b"1"], [theirs.fileno()])
        said = self._ours.recv(4)
        if len(said) < 4:
            raise ConnectionError("the nursery is gone")
        return Applier(struct.unpack("!i", said)[0], Connection(ours.detach()))


class Applier:
    """One of these processes, as the listener sees it."""

    def __init__(self, pid: int, pipe: "Connection[Any, Any]") -> None:
        self.pid = pid
        self._pipe = pipe

    def receive(self, arrivals: Sequence[Arrival]) -> tuple[Answered, list[int]]:
        """As `sharing.receive`. Raises OSError or EOFError: then nobody knows what was applied."""
        self._pipe.send(arrivals)
        if not self._pipe.poll(ANSWER_SECONDS):
            os.kill(self.pid, signal.SIGKILL)  # it lives, for its pipe is open
            raise TimeoutError
        told: tuple[Answered, list[int]] = self._pipe.recv()
        return told

    def end(self) -> None:
        """Have it end, and wait until it has."""
        try:
            self._pipe.send(None)
            if self._pipe.poll(END_SECONDS):
                self._pipe.recv()
        except (OSError, EOFError):
            pass
        self._pipe.close()


class Appliers:
    """At most so many of them. Each is started when there is something for it to do, so a quiet site has none."""

    def __init__(self, count: int, nursery: Nursery | None) -> None:
        self._count = count
        self._nursery = nursery
        self._lock = threading.Lock()
        self._idle: list[Applier] = []
        self._busy: set[Applier] = set()
        self._not_before = 0.0

    def receive(self, arrivals: Sequence[Arrival], answer: Callable[[dict[int, Reply]], None]) -> list[int]:
        """As `sharing.receive`: by one of the processes, if one is idle, else by this one."""
        applier = self._borrowed()
        if applier is None:
            return sharing.receive(arrivals, answer)
        try:
            told, left = applier.receive(arrivals)
        except (OSError, EOFError) as error:
            self._lost(applier, error)
            return list(range(len(arrivals)))
        with self._lock:
            self._busy.discard(applier)
            self._idle.append(applier)
        for reply, source_id in told.values():
            reply.profile = sources.profile_of(source_id)
        if told:
            answer({number: reply for number, (reply, _) in told.items()})
        return left

    def stop(self) -> None:
        """End all. None should be at work any more."""
        with self._lock:
            every = [*self._idle, *self._busy]
            self._idle, self._busy, self._count = [], set(), 0
        for applier in every:
            applier.end()

    def _borrowed(self) -> Applier | None:
        with self._lock:
            applier = self._idle.pop() if self._idle else self._started()
            if applier:
                self._busy.add(applier)
            return applier

    def _started(self) -> Applier | None:
        if self._nursery is None or len(self._busy) >= self._count or time.monotonic() < self._not_before:
            return None
        try:
            return self._nursery.start()
        except OSError as error:
            logger.error("no process that applies messages can be started any more: %s", type(error).__name__)
            self._nursery = None  # this one goes on alone
            return None

    def _lost(self, applier: Applier, error: Exception) -> None:
        logger.error("a process that applies messages is gone: %s", type(error).__name__)
        with self._lock:
            self._busy.discard(applier)
            self._not_before = time.monotonic() + AGAIN_SECONDS
        applier.end()


# -- in the processes --------------------------------------------------------------------------------------


def _end_with(work: Callable[[], None]) -> None:
    """Do the work and be gone: nothing of the process that this one was forked from is to run here."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # the listener finishes what it has taken, then it closes
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how one ended
        work()
    except (EOFError, OSError):
        pass
    except BaseException as error:
        logger.error("a process that applies messages ends: %s", type(error).__name__)
    finally:
        os._exit(0)


def _fork_as_asked(asked: socket.socket) -> None:
    """The nursery: fork an applier for each pipe that comes, until the listener is gone."""
    while True:
        said, fds, _, _ = socket.recv_fds(asked, 1, 1)
        if not said:
            return
        pid = os.fork()
        if pid == 0:
            asked.close()
            _end_with(partial(_apply_as_asked, Connection(fds[0])))
        os.close(fds[0])
        asked.sendall(struct.pack("!i", pid))


def _apply_as_asked(pipe: "Connection[Any, Any]") -> None:
    """An applier: apply what comes, until the listener says that it is enough, or is gone."""
    try:
        while (arrivals := pipe.recv()) is not None:
            pipe.send(_applied(arrivals))
    finally:
        connections.close_all()


def _applied(arrivals: Sequence[Arrival]) -> tuple[Answered, list[int]]:
    told: Answered = {}

    def answer(replies: dict[int, Reply]) -> None:
        for number, reply in replies.items():
            profile, reply.profile = reply.profile, None
            told[number] = reply, profile.source_id if profile else None

    try:
        left = sharing.receive(arrivals, answer)
    except Exception as error:
        logger.error("messages that waited together could not be handled: %s", type(error).__name__)
        left = [number for number in range(len(arrivals)) if number not in told]
    return told, left
