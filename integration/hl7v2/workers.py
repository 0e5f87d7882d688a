"""The listener's threads: which of them takes what waits, when, and how much of it at once."""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from django.db import connections

from integration import sharing
from integration.hl7v2.framing import Fault, Frame


@dataclass(slots=True)
class Job:
    """A frame or fault of a connection, waiting to be applied and answered."""

    connection: Any
    event: Frame | Fault
    alone: bool = field(init=False)
    """It shares its transaction with no other."""

    def __post_init__(self) -> None:
        self.alone = not isinstance(self.event, Frame) or len(self.event.payload) > sharing.LONGEST


class Workers:
    """Threads that apply jobs in the order in which they come, each with its own database connection.

    A few at a time take what waits, several jobs at once where these can share a transaction: with more of them each
    would have less to share. Who is at it for long (its lane may be held by another) is not counted: then the next
    one steps in. Of those that rest, the one that rested least does: its connection's plans are still warm.

    Several connections that were answered together send their next messages together, within a millisecond or so.
    Whoever took the first of these alone would leave the others without company, so what is expected so soon is
    waited for: not longer than BACK_SECONDS, and only from those who were as quick the time before.
    """

    AT_ONCE = 2
    LONG_SECONDS = 0.1
    BACK_SECONDS = 0.01

    def __init__(self, count: int, apply: Callable[[list[Job]], list[Job]], at_once: int = AT_ONCE) -> None:
        self._apply = apply
        self._at_once = min(at_once, count)
        self._lock = threading.Lock()
        self._resting: list[SimpleQueue[None]] = []
        self._pausing = 0
        """How many of the resting wake by themselves, soon."""
        self._at_work: dict[int, tuple[float, int]] = {}
        """Thread → since when (monotonic seconds) it is at its jobs, and how many these are."""
        self._expected: dict[Hashable, float] = {}
        """Connection → until when (monotonic seconds) its next job is waited for; the soonest first."""
        self._jobs: deque[Job] = deque()
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._work, args=(n,), name=f"mllp_{n}", daemon=True)
            for n in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def give(self, job: Job) -> bool:
        """Have a thread apply the job; False when none is taken any more."""
        with self._lock:
            if self._stopped:
                return False
            self._expected.pop(job.connection, None)
            self._jobs.append(job)
        self.nudge()
        return True

    def expect(self, connection: Hashable) -> None:
        """Its next job is about to come, for it was answered just now."""
        with self._lock:
            self._expected.pop(connection, None)
            self._expected[connection] = time.monotonic() + self.BACK_SECONDS

    def expect_no_more(self, connection: Hashable) -> None:
        """It is gone."""
        with self._lock:
            self._expected.pop(connection, None)

    def nudge(self) -> bool:
        """Wake a thread if one is wanted; True while jobs wait for one: then ask again in a while."""
        with self._lock:
            if self._jobs and self._resting and self._is_wanted() and not (self._pausing and self._pause()):
                self._resting.pop().put(None)
                return len(self._jobs) > 1
            return bool(self._jobs)

    def stop(self, seconds: float) -> None:
        """Take no more; what was given is done, and the threads' connections are closed, or the time is over."""
        with self._lock:
            self._stopped = True
            for bell in self._resting:
                bell.put(None)
            self._resting.clear()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _is_wanted(self) -> bool:
        """Whether fewer than so many are at work, not counting those who are at it for long."""
        moment = time.monotonic()
        return sum(moment - since < self.LONG_SECONDS for since, _ in self._at_work.values()) < self._at_once

    def _pause(self) -> float:
        """Seconds to wait for the company of those who are expected; 0: what waits is to be taken now."""
        moment = time.monotonic()
        while self._expected and (first := next(iter(self._expected.items())))[1] <= moment:
            del self._expected[first[0]]
        if not self._expected or self._stopped or self._jobs[0].alone or len(self._jobs) >= self._share():
            return 0.0
        return next(reversed(self._expected.values())) - moment

    def _share(self) -> int:
        """How many jobs one takes, so that each of those at work has as many."""
        under_way = len(self._jobs) + len(self._expected) + sum(n for _, n in self._at_work.values())
        return min(sharing.MOST, -(-under_way // self._at_once))

    def _work(self, me: int) -> None:
        bell: SimpleQueue[None] = SimpleQueue()
        while jobs := self._next(me, bell):
            left = self._apply(jobs)
            del jobs  # a large message is not kept until the next one comes
            with self._lock:
                for job in reversed(left):
                    job.alone = True
                    self._jobs.appendleft(job)
            if left:
                self.nudge()
        connections.close_all()

    def _next(self, me: int, bell: "SimpleQueue[None]") -> list[Job]:
        """What waits, else what comes next; nothing at the end."""
        latest = 0.0  # others may be expected again and again
        while True:
            pause = 0.0
            with self._lock:
                self._at_work.pop(me, None)
                if not self._jobs:
                    latest = 0.0
                if self._jobs and (self._stopped or self._is_wanted()):
                    pause = self._pause()
                    if pause:
                        latest = latest or time.monotonic() + self.BACK_SECONDS
                        pause = max(0.0, min(pause, latest - time.monotonic()))
                    if not pause:
                        jobs = self._taken()
                        self._at_work[me] = time.monotonic(), len(jobs)
                        return jobs
                if self._stopped:
                    return []
                self._resting.append(bell)
                self._pausing += bool(pause)
            self._rest(bell, pause)

    def _rest(self, bell: "SimpleQueue[None]", pause: float) -> None:
        """Until somebody rings, or so many seconds are over (0: without end)."""
        if not pause:
            bell.get()
            return
        try:
            bell.get(timeout=pause)
            rung = True
        except Empty:
            rung = False
        with self._lock:
            self._pausing -= 1
            if bell in self._resting:
                self._resting.remove(bell)
            elif not rung:
                bell.get()  # it was rung in this very moment

    def _taken(self) -> list[Job]:
        """The first job that waits, with those behind it that may share its transaction."""
        most = self._share()
        jobs = [self._jobs.popleft()]
        while self._jobs and not jobs[0].alone and not self._jobs[0].alone and len(jobs) < most:
            jobs.append(self._jobs.popleft())
        return jobs
