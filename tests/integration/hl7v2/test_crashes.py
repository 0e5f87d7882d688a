"""Kill -9 of the MLLP process at each point of a message's way: nothing acknowledged is lost, nothing applied twice."""

import os
import random
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from django.db import connection

from common.servers import free_port
from integration.models import Message, MessageIdentity
from ris.models import Change, ImagingServiceRequest, ScheduledProcedureStep
from tests.conftest import REPOSITORY
from tests.integration.hl7v2.conftest import Client, wait_until
from tests.integration.hl7v2.making import orm, pid

pytestmark = pytest.mark.django_db(transaction=True)


class Process:
    """The listener in a process of its own."""

    def __init__(self, port: int, crashpoint: str = "", *, appliers: bool = True) -> None:
        """Without appliers, a crashpoint that messages pass together kills the listener itself."""
        self.port = port
        environment = {**os.environ, "ORDERLY_CRASHPOINT": crashpoint, "ORDERLY_DB_POOL": "0"}
        environment["ORDERLY_MLLP_APPLIERS"] = "2" if appliers else "0"
        module = "tests.integration.hl7v2.listener_process"
        name = connection.settings_dict["NAME"]
        self.popen = subprocess.Popen(
            [sys.executable, "-m", module, name, str(port)],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
        )
        assert self.popen.stdout is not None
        assert self.popen.stdout.readline().strip() == b"ready"

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait(20)

    def stop(self) -> int:
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(30)


@pytest.fixture
def port():
    return free_port()


def send(port: int, raw: bytes) -> str:
    """The acknowledgement code; empty when the connection broke before one came."""
    client = Client(port)
    try:
        return client.send(raw).first("MSA").value(1)
    except (OSError, AssertionError):
        return ""
    finally:
        client.close()


@pytest.mark.parametrize("point", ["inbox.after_identity", "inbox.before_commit", "inbox.after_commit"])
def test_a_message_whose_listener_dies_is_applied_once_when_it_is_sent_again(any_source, port, point):
    raw = orm(accession="A1", control_id="DIES")
    process = Process(port, crashpoint=f"{point}:2")
    assert send(port, orm(accession="A0", placer="PL0")) == "AA"
    assert send(port, raw) == ""
    process.popen.wait(20)
    stored = MessageIdentity.objects.filter(control_id="DIES", accepted=True).count()
    assert stored == (1 if point == "inbox.after_commit" else 0)
    process = Process(port)
    assert send(port, raw) == "AA"
    assert send(port, raw) == "AA"
    assert process.stop() == 0
    assert Message.objects.filter(control_id="DIES").count() == 1
    assert ImagingServiceRequest.objects.count() == 2
    assert ScheduledProcedureStep.objects.count() == 2


def test_random_kills_lose_nothing_that_was_acknowledged(any_source, port):
    accepted = set()
    process = Process(port)
    for number in range(24):
        raw = orm(accession=f"A{number}", placer=f"PL{number}", control_id=f"K{number}")
        if number % 6 == 5:
            client = Client(port)
            client.write(b"\x0b" + raw + b"\x1c\r")
            process.kill()
            client.close()
            process = Process(port)
        for _ in range(3):
            if send(port, raw) == "AA":
                accepted.add(f"A{number}")
                break
    assert process.stop() == 0
    assert len(accepted) == 24
    assert set(ImagingServiceRequest.objects.values_list("accession_number", flat=True)) == accepted
    assert Message.objects.filter(state="applied").count() == 24


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(7, 11))
def test_two_hundred_kills_at_random_points(any_source, port, seed):
    """Fifty of them each time."""
    chance = random.Random(seed)
    points = ["inbox.after_identity", "inbox.before_commit", "inbox.after_commit"]
    accepted = 0
    for kill in range(50):
        process = Process(port, crashpoint=f"{chance.choice(points)}:{chance.randint(1, 4)}")
        for number in range(4):
            raw = orm(
                accession=f"K{kill}N{number}", placer=f"PL{kill}N{number}", control_id=f"C{kill}N{number}"
            )
            if send(port, raw) == "":
                process.popen.wait(20)
                process = Process(port)
                assert send(port, raw) == "AA"
            accepted += 1
        process.kill()
    assert ImagingServiceRequest.objects.count() == accepted
    assert Message.objects.filter(state="applied").count() == accepted


def order_of(lane: int, number: int) -> tuple[str, bytes]:
    """An order's accession number, and the order: each lane has a patient of its own."""
    name = f"L{lane}N{number}"
    raw = orm(
        accession=name, placer=f"PL{name}", procedure_id=f"R{name}", step_id=f"S{name}",
        control_id=f"C{name}", patient=pid(f"Q{lane}^^^HOSP^MR"),
    )  # fmt: skip
    return name, raw


class Senders:
    """So many of `send_until_accepted` at once, from the start of the block to its end."""

    def __init__(self, port: int, lanes: int) -> None:
        self.sent: list[list[str]] = [[] for _ in range(lanes)]
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=send_until_accepted, args=(port, lane, self._stop, names, self.wrong))
            for lane, names in enumerate(self.sent)
        ]

    @property
    def count(self) -> int:
        """How many orders were answered."""
        return sum(map(len, self.sent))

    def __enter__(self) -> "Senders":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(150)


def send_until_accepted(
    port: int, lane: int, stop: threading.Event, sent: list[str], wrong: list[str]
) -> None:
    """Orders of one patient on one connection; what was not answered is sent again, as a sender does."""
    number, client, deadline = 0, None, time.monotonic() + 900
    while not stop.is_set() and time.monotonic() < deadline:
        name, raw = order_of(lane, number)
        try:
            client = client or Client(port)
            code = client.send(raw).first("MSA").value(1)
        except (OSError, AssertionError):  # the listener died: nobody knows whether it was applied
            client = client and client.close()
            time.sleep(0.02)
            continue
        if code != "AA":
            wrong.append(code)
        sent.append(name)
        number += 1


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_kills_while_messages_share_transactions_lose_none_and_apply_none_twice(any_source, port, kills):
    chance = random.Random(kills)
    process = Process(port)
    assert send(port, orm(accession="FIRST")) == "AA"  # its authority is known from now on
    with Senders(port, 8) as senders:
        for kill in range(kills):
            before = senders.count
            wait_until(lambda before=before: senders.count >= before + 16, 120)
            time.sleep(chance.random() / 10)
            process.kill()
            points = ("inbox.after_identity", "inbox.before_commit", "inbox.after_commit")
            point = f"{chance.choice(points)}:{chance.randint(20, 60)}" if kill % 2 else ""
            process = Process(port, crashpoint=point, appliers=not point)
            if point:
                process.popen.wait(120)
                process = Process(port)
        last = senders.count
        wait_until(lambda: senders.count >= last + 16, 120)
    assert process.stop() == 0
    assert not senders.wrong
    accepted = {name for names in senders.sent for name in names} | {"FIRST"}
    applied = list(ImagingServiceRequest.objects.values_list("accession_number", flat=True))
    assert accepted <= set(applied) and len(applied) == len(set(applied))
    # Whoever was at it when all ended may have been applied without hearing of it.
    assert len(applied) - len(accepted) <= len(senders.sent)
    assert Message.objects.filter(state="applied").count() == len(applied)
    assert ScheduledProcedureStep.objects.count() == len(applied)
    assert Change.objects.filter(what="imagingservicerequest", values={"created": True}).count() == len(
        applied
    )
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(DISTINCT xmin::text) FROM integration_message")
        assert cursor.fetchone()[0] < len(applied)  # some did share


def appliers_of(process: Process) -> list[psutil.Process]:
    """The processes that apply for this listener: what its nursery has forked."""
    return [
        applier for nursery in psutil.Process(process.popen.pid).children() for applier in nursery.children()
    ]


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_an_applier_that_is_killed_costs_its_senders_nothing_and_is_replaced(any_source, port, kills):
    """They are not even disconnected: each message is answered AA once, and applied once."""
    chance = random.Random(kills)
    stop, wrong, ends = threading.Event(), [], []
    sent: list[list[str]] = [[] for _ in range(8)]
    process = Process(port)
    assert send(port, orm(accession="FIRST")) == "AA"

    def stream(lane: int) -> None:
        client, number = Client(port), 0
        try:
            while not stop.is_set():
                name, raw = order_of(lane, number)
                code = client.send(raw).first("MSA").value(1)
                sent[lane].append(name) if code == "AA" else wrong.append(code)
                number += 1
        except (OSError, AssertionError) as error:
            ends.append(repr(error))
        finally:
            client.close()

    senders = [threading.Thread(target=stream, args=(lane,)) for lane in range(8)]
    for sender in senders:
        sender.start()
    killed: set[int] = set()
    try:
        for _ in range(kills):
            wait_until(lambda: [a for a in appliers_of(process) if a.pid not in killed], 60)
            time.sleep(chance.random() / 10)
            victim = chance.choice([a for a in appliers_of(process) if a.pid not in killed])
            killed.add(victim.pid)
            victim.kill()
            before = sum(map(len, sent))
            wait_until(lambda before=before: sum(map(len, sent)) >= before + 16, 60)
    finally:
        stop.set()
        for sender in senders:
            sender.join(60)
    assert process.popen.poll() is None
    assert process.stop() == 0
    assert not wrong and not ends
    assert len(killed) == kills
    accepted = {name for names in sent for name in names} | {"FIRST"}
    applied = list(ImagingServiceRequest.objects.values_list("accession_number", flat=True))
    assert len(applied) == len(set(applied)) and set(applied) == accepted
    assert Message.objects.filter(state="applied").count() == len(applied)


def test_a_listener_that_is_killed_or_stopped_leaves_no_process_behind(any_source, port):
    for end in (Process.kill, Process.stop):
        process = Process(port)
        with Senders(port, 4) as senders:
            wait_until(lambda process=process: appliers_of(process), 60)
            children = psutil.Process(process.popen.pid).children(recursive=True)
        end(process)
        assert not psutil.wait_procs(children, 20)[1]
        assert not senders.wrong


def test_a_listener_whose_nursery_is_killed_goes_on_by_itself(any_source, port):
    process = Process(port)
    (nursery,) = psutil.Process(process.popen.pid).children()
    nursery.kill()
    with Senders(port, 4) as senders:
        wait_until(lambda: senders.count >= 40, 60)
    assert process.stop() == 0
    assert not senders.wrong
    assert Message.objects.filter(state="applied").count() == senders.count
