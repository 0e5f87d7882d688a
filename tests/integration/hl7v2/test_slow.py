"""What takes long: bad frames by the thousand, a hundred thousand round trips, the memory of a busy listener."""

import random
import socket
import threading

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from integration.benches.mllp import order, resident
from integration.hl7v2.composing import message
from integration.hl7v2.framing import encode
from integration.hl7v2.reading import parse
from integration.models import Message
from ris.models import Patient, ScheduledProcedureStep
from tests.integration.hl7v2.conftest import Client
from tests.integration.hl7v2.making import adt
from tests.integration.hl7v2.test_composing import MSH, SETS, texts
from tests.integration.hl7v2.test_crashes import Process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def bad_frames(chance: random.Random, count: int) -> list[bytes]:
    """Frames and pieces that are no message: mutilated, cut, unfinished, foreign."""
    good = adt(control_id="BAD")
    made = []
    for _ in range(count):
        body = bytearray(good)
        match chance.randrange(7):
            case 0:
                body = bytearray(chance.randbytes(chance.randrange(1, 200)).translate(None, b"\x0b\x1c"))
            case 1:
                del body[: chance.randrange(1, 60)]
            case 2:
                body[3] = chance.choice(b"AB1 \x00")
            case 3:
                body = bytearray(b"MSH|^~\\&|" + chance.randbytes(30).translate(None, b"\x0b\x1c"))
            case 4:
                made.append(
                    b"\x0b" + bytes(body[: chance.randrange(5, 80)])
                )  # never ended: the next one aborts it
                continue
            case 5:
                made.append(chance.choice([b"\x0b\x1c\r", b"noise", b"\x0b\x0b\x0b", b"\r\n", b"\x00" * 20]))
                continue
            case 6:
                body = body.replace(b"PID", b"\nPI")
        made.append(encode(bytes(body)))
    return made


@pytest.mark.django_db(transaction=True)
def test_twenty_thousand_bad_frames_among_a_thousand_good_ones(open_door, any_source, connect):
    chance = random.Random(20260301)
    client = connect(open_door())
    bad = bad_frames(chance, 20_000)
    answered: set[str] = set()
    done = threading.Event()

    def read() -> None:
        while len(answered) < 1000:
            msa = client.read(120).first("MSA")
            if msa.value(2).startswith("GOOD") and msa.value(1) == "AA":
                answered.add(msa.value(2))
        done.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    for number in range(1000):
        for piece in bad[number * 20 : number * 20 + 20]:
            client.write(piece)
        client.write(encode(adt(control_id=f"GOOD{number}", identifier=f"P{number}^^^HOSP")))
    assert done.wait(280)
    assert len(answered) == 1000
    assert Patient.objects.filter(identifiers__value__startswith="P").distinct().count() >= 1000
    assert Message.objects.filter(state="applied", control_id__startswith="GOOD").count() == 1000


@settings(max_examples=100_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts, st.integers(1, 40), st.sampled_from(SETS))
def test_a_hundred_thousand_texts_in_any_field_come_back(text, number, separators):
    raw = message([MSH, ("ZZ1", {number: text}), ("ZZ2", {1: "end"})], separators, "UNICODE UTF-8")
    read = parse(raw)
    assert [s.name for s in read.segments] == ["MSH", "ZZ1", "ZZ2"]
    assert read.first("ZZ1").value(number) == text


MESSAGES = 100_000
CONNECTIONS = 10
WARM = 2_000


def send_orders(port: int, lane: int, numbers: range, wrong: list[str]) -> None:
    """Orders of one connection, each sent when the one before is acknowledged."""
    client = Client(port)
    try:
        for number in numbers:
            client.write(encode(order(f"{lane}N{number}", lane * 100_000 + number)))
            answer = client.read(120).first("MSA").value(1)
            if answer != "AA":
                wrong.append(answer)
    except Exception as error:
        wrong.append(repr(error))
    finally:
        client.close()


def send_all(port: int, numbers: range) -> None:
    wrong: list[str] = []
    senders = [
        threading.Thread(target=send_orders, args=(port, lane, numbers, wrong)) for lane in range(CONNECTIONS)
    ]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert not wrong


@pytest.mark.django_db(transaction=True)
def test_memory_stays_flat_over_a_hundred_thousand_messages_beside_idle_connections(any_source):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = Process(port)
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
    try:
        each = WARM // CONNECTIONS
        send_all(port, range(each))
        listener = psutil.Process(process.popen.pid)
        before = resident(listener)
        send_all(port, range(each, each + MESSAGES // CONNECTIONS))
        grown = (resident(listener) - before) / 1e6
        assert Message.objects.filter(state="applied").count() == MESSAGES + WARM
        assert ScheduledProcedureStep.objects.count() == MESSAGES + WARM
        assert grown <= 50, f"{grown:.0f} MB"
        client = Client(port)  # idle ones were not in its way, and are still served
        client.socket.close()
        client.socket = idle[-1]
        assert client.send(adt(control_id="IDLE")).first("MSA").value(1) == "AA"
    finally:
        for one in idle:
            one.close()
        assert process.stop() == 0
