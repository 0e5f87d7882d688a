"""Which thread takes what waits, when, and how much of it at once."""

import threading
import time
from types import SimpleNamespace

import pytest

from integration.hl7v2.workers import Workers
from tests.integration.hl7v2.conftest import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


def job(name: int, alone: bool = False):
    return SimpleNamespace(name=name, alone=alone, connection=name)


class Work:
    """What the workers did: the names of the jobs of each taking. They go on when the gate is open."""

    def __init__(self, count: int, *, open: bool = True, left: tuple[int, ...] = ()) -> None:
        self.done: list[list[int]] = []
        self.threads: list[str] = []
        self.gate = threading.Event()
        self.began = threading.Semaphore(0)
        self._left = left
        if open:
            self.gate.set()
        self.workers = Workers(count, self._apply)

    def _apply(self, jobs):
        self.began.release()
        self.gate.wait(30)
        self.done.append([j.name for j in jobs])
        self.threads.append(threading.current_thread().name)
        return [j for j in jobs if j.name in self._left] if len(jobs) > 1 else []

    def end(self) -> list[list[int]]:
        self.gate.set()
        self.workers.stop(30)
        return self.done


def test_they_take_what_waits_together_in_its_order_do_what_was_given_and_take_no_more_at_the_end():
    work = Work(1, open=False)
    work.workers.give(job(0, alone=True))
    for number in range(1, 20):
        assert work.workers.give(job(number))
    work.workers.give(job(20, alone=True))
    assert work.end() == [[0], list(range(1, 17)), [17, 18, 19], [20]]
    assert not work.workers.give(job(21))


def test_what_cannot_share_is_applied_alone_before_what_came_later():
    work = Work(1, open=False, left=(2, 3))
    for given in [job(0, alone=True), *(job(n) for n in range(1, 20))]:
        work.workers.give(given)
    assert work.end() == [[0], list(range(1, 17)), [2], [3], [17, 18, 19]]


def test_who_is_at_it_for_long_keeps_nobody_from_stepping_in():
    together = threading.Barrier(4, timeout=30)

    def apply(jobs):
        together.wait()
        return []

    workers = Workers(4, apply)
    for number in range(4):
        workers.give(job(number, alone=True))
    wait_until(lambda: not workers.nudge())
    workers.stop(30)
    assert not together.broken


def test_a_quiet_listener_uses_one_connection_to_the_database():
    work = Work(4)
    for number in range(20):
        wait_until(lambda: len(work.workers._resting) == 4)
        work.workers.give(job(number))
        wait_until(lambda number=number: len(work.done) == number + 1)
    work.end()
    assert len(set(work.threads)) == 1


def test_two_at_work_have_equal_shares_of_what_is_under_way():
    work = Work(4, open=False)
    work.workers.give(job(0))
    assert work.began.acquire(timeout=30)
    with work.workers._lock:  # all come before the second one looks
        work.workers._jobs.extend(job(n) for n in range(1, 10))
    work.workers.nudge()
    assert work.began.acquire(timeout=30)
    with work.workers._lock:
        assert sorted(n for _, n in work.workers._at_work.values()) == [1, 5]
    work.end()
    assert sorted(n for taken in work.done for n in taken) == list(range(10))


def test_those_who_are_expected_back_are_waited_for_and_share(monkeypatch):
    monkeypatch.setattr(Workers, "BACK_SECONDS", 20.0)
    work = Work(1)
    for number in range(1, 5):
        work.workers.expect(number)
    for number in range(1, 4):
        work.workers.give(job(number))
    time.sleep(0.1)
    assert work.done == []
    work.workers.give(job(4))
    wait_until(lambda: work.done == [[1, 2, 3, 4]])
    work.end()


def test_half_of_them_are_enough_where_two_work_at_once(monkeypatch):
    monkeypatch.setattr(Workers, "BACK_SECONDS", 20.0)
    work = Work(2)
    for number in range(1, 5):
        work.workers.expect(number)
    work.workers.give(job(1))
    time.sleep(0.1)
    assert work.done == []
    work.workers.give(job(2))
    wait_until(lambda: work.done == [[1, 2]])
    work.end()


@pytest.mark.parametrize("gone", [True, False])
def test_who_is_gone_or_late_is_not_waited_for(gone, monkeypatch):
    monkeypatch.setattr(Workers, "BACK_SECONDS", 20.0 if gone else 0.2)
    work = Work(1)
    work.workers.expect(1)
    work.workers.expect(2)
    if gone:
        work.workers.expect_no_more(2)
    work.workers.give(job(1))
    wait_until(lambda: work.done == [[1]])
    work.end()


def test_nobody_is_waited_for_again_and_again(monkeypatch):
    monkeypatch.setattr(Workers, "BACK_SECONDS", 0.2)
    work = Work(1)
    work.workers.expect("somebody")
    work.workers.give(job(1))
    deadline = time.monotonic() + 20
    while not work.done and time.monotonic() < deadline:
        work.workers.expect(object())
        time.sleep(0.01)
    assert work.done == [[1]]
    work.end()


def test_one_that_goes_alone_waits_for_nobody(monkeypatch):
    monkeypatch.setattr(Workers, "BACK_SECONDS", 20.0)
    work = Work(1)
    work.workers.expect(1)
    work.workers.expect(2)
    work.workers.give(job(1, alone=True))
    wait_until(lambda: work.done == [[1]])
    work.end()


def test_nothing_is_waited_for_at_the_end(monkeypatch):
    monkeypatch.setattr(Workers, "BACK_SECONDS", 20.0)
    work = Work(1)
    work.workers.expect(1)
    work.workers.expect(2)
    work.workers.give(job(1))
    assert work.end() == [[1]]
