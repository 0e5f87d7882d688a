"""The worker killed at random, again and again: every report arrives, each under one control id, none is lost."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator

import pytest
from django.conf import settings
from django.db import connection

from common.clock import now
from integration import delivery
from integration.models import Destination, OutboxItem
from tests.integration.outbound.making import hl7_destination, ordered, signed
from tests.integration.outbound.test_crashes_and_doorbells import wait_for
from tests.integration.outbound.test_delivery import drain
from tests.peers.his import His, Received, ack, late

pytestmark = pytest.mark.django_db(transaction=True)


class Nursery:
    """Where workers come from: see worker_nursery."""

    def __init__(self) -> None:
        module = "tests.integration.outbound.worker_nursery"
        self.popen = subprocess.Popen(
            [sys.executable, "-m", module, connection.settings_dict["NAME"]],
            cwd=settings.BASE_DIR,
            env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.popen.stdout
        return self.popen.stdout.readline().strip()

    def worker(self, destination: Destination) -> int:
        """A new worker's process id."""
        assert self.popen.stdin
        self.popen.stdin.write(f"{destination.pk}\n")
        self.popen.stdin.flush()
        return int(self._line())

    def kill(self, pid: int) -> None:
        """kill -9, and wait until it is gone."""
        os.kill(pid, signal.SIGKILL)
        assert self._line() == "dead"

    def close(self) -> None:
        for stream in (self.popen.stdin, self.popen.stdout):
            if stream:
                stream.close()
        self.popen.wait(20)


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    one = Nursery()
    yield one
    one.close()


@pytest.mark.parametrize(
    "kills", [10, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_a_worker_killed_at_random_delivers_every_report_under_one_control_id(
    kills: int, nursery: Nursery
) -> None:
    chance = random.Random(20260301)
    answering = threading.Event()  # while it is not set, the HIS keeps its acknowledgements back
    answering.set()

    def answer(received: Received) -> bytes | None:
        held = not answering.is_set()
        answering.wait(20)
        code = ack("AR", error="207") if chance.random() < 0.1 else ack()
        return late(0 if held else chance.uniform(0, 0.04), code)(received)

    struck = 0
    with His(otherwise=answer) as his:
        destination = hl7_destination(his.port, messages=("ORU",), rejections_most=1000)
        for number in range(kills):
            if number % 2 == 0:
                signed(ordered(f"A{number}", patient=str(4711 + number % 7)))
            seen = len(his.received)
            if number % 4 == 0:  # surely in the middle of a message; the others anywhere
                answering.clear()
                pid = nursery.worker(destination)
                wait_for(lambda: len(his.received) > seen)  # noqa: B023
            else:
                pid = nursery.worker(destination)
                time.sleep(chance.uniform(0, 0.4))
            nursery.kill(pid)
            answering.set()
            struck += delivery.free_dead_leases()  # as the next worker does, and the sweeper
            assert not OutboxItem.objects.filter(state="queued", lease_until__gt=now()).exists()
            recover()
        finish(destination)
        assert struck >= kills // 4
        assert_all_delivered(destination, his)


def recover() -> None:
    """What time does, at once: a pause is over; and a person sends again what is parked."""
    OutboxItem.objects.filter(state="queued").update(due_at=now())
    Destination.objects.update(circuit_open_until=None)
    for item in OutboxItem.objects.filter(state="parked"):
        assert "worker died" in item.last_error
        delivery.send_again(item)


def finish(destination: Destination) -> None:
    """A worker that nobody kills ends the work."""
    while OutboxItem.objects.exclude(state="delivered").exists():
        drain(destination)
        recover()


def assert_all_delivered(destination: Destination, his: His) -> None:
    items = list(OutboxItem.objects.filter(destination=destination))
    assert {i.state for i in items} == {"delivered"}
    copies: dict[str, set[bytes]] = defaultdict(set)
    for received in his.received:
        copies[received.control_id].add(received.raw)
    assert set(copies) == {i.control_id for i in items}
    for item in items:
        assert copies[item.control_id] == {bytes(item.payload or b"")}
        assert f"MSA|AA|{item.control_id}".encode() in bytes(item.answer or b"")
    assert len({i.subject for i in items}) == len(items)
