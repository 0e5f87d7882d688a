"""Kill -9 of the MLLP process at each point of a message's way: nothing acknowledged is lost, nothing applied twice."""

import os
import signal
import socket
import subprocess
import sys

import pytest
from django.db import connection

from integration.models import Message, MessageIdentity
from ris.models import ImagingServiceRequest, ScheduledProcedureStep
from tests.conftest import REPOSITORY
from tests.integration.hl7v2.conftest import Client
from tests.integration.hl7v2.making import orm

pytestmark = pytest.mark.django_db(transaction=True)


class Process:
    """The listener in a process of its own."""

    def __init__(self, port: int, crashpoint: str = "") -> None:
        self.port = port
        environment = {**os.environ, "ORDERLY_CRASHPOINT": crashpoint, "ORDERLY_DB_POOL": "0"}
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
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


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
    import random

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
