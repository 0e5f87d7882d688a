"""The listener on a real socket: framing, order of answers, bounds, and a clean end."""

import contextlib
import socket
import ssl
import subprocess
import time

import pytest

from integration import sources
from integration.hl7v2.framing import encode
from integration.models import Message, Source
from ris.models import Patient
from ris.services import lanes
from tests.integration.hl7v2.conftest import holding, wait_until
from tests.integration.hl7v2.making import adt, orm

pytestmark = pytest.mark.django_db(transaction=True)


def codes(client, count):
    return [client.read().first("MSA").value(1) for _ in range(count)]


def code_of(ack):
    return ack.first("MSA").value(1)


def ids(client, count):
    return [client.read().first("MSA").value(2) for _ in range(count)]


def test_several_frames_in_one_write_are_answered_in_their_order(door, connect):
    client = connect(door)
    client.write(b"".join(encode(adt(control_id=f"C{n}", identifier=f"P{n}^^^HOSP")) for n in range(20)))
    assert ids(client, 20) == [f"C{n}" for n in range(20)]
    assert Patient.objects.count() == 20


def test_a_frame_byte_by_byte_is_answered(door, connect):
    client = connect(door)
    for byte in encode(adt(control_id="SLOW")):
        client.write(bytes([byte]))
    assert ids(client, 1) == ["SLOW"]


def test_a_peer_without_cr_gets_its_answer(door, connect):
    client = connect(door)
    client.write(b"\x0b" + adt(control_id="A") + b"\x1c")
    assert ids(client, 1) == ["A"]
    client.write(b"\x0b" + adt(control_id="B") + b"\x1c" + encode(adt(control_id="C")))
    assert ids(client, 2) == ["B", "C"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_other_line_ends_a_bom_and_keep_alives_are_taken(door, connect, end):
    client = connect(door)
    client.write(b"\r\n\x00" + b"\x0b\xef\xbb\xbf" + adt(control_id="L").replace(b"\r", end) + b"\x1c\r\r\n")
    assert ids(client, 1) == ["L"]
    assert Message.objects.get().state == "applied"


def test_an_aborted_frame_is_set_aside_and_the_next_is_applied(door, connect):
    client = connect(door)
    client.write(b"\x0bMSH|^~\\&|half" + encode(adt(control_id="W")))
    assert ids(client, 1) == ["W"]
    assert sorted(Message.objects.values_list("state", flat=True)) == ["applied", "fault"]


def test_ten_megabytes_with_a_pdf_are_taken(door, connect):
    raw = (
        adt(control_id="BIG")
        + b"OBX|1|ED|18748-4^Report^LN||^Application^PDF^Base64^"
        + b"QUJD" * 2_621_440
        + b"\r"
    )
    client = connect(door)
    client.write(encode(raw))
    assert ids(client, 1) == ["BIG"]
    assert bytes(Message.objects.get().raw) == raw


def test_a_frame_over_the_cap_is_answered_with_its_own_control_id_and_the_next_is_taken(
    open_door, any_source, connect
):
    client = connect(open_door(max_size=20_000))
    client.write(encode(adt(control_id="HUGE") + b"NTE|1||" + b"x" * 60_000 + b"\r"))
    ack = client.read()
    assert (ack.first("MSA").value(1), ack.first("MSA").value(2)) == ("AR", "HUGE")
    assert ack.first("ERR").value(3) == "207"
    assert client.send(adt(control_id="NEXT")).first("MSA").value(1) == "AA"
    assert sorted(Message.objects.values_list("state", flat=True)) == ["applied", "fault"]


def test_a_frame_that_never_ends_is_kept_as_a_fault_and_the_connection_closed(open_door, any_source, connect):
    client = connect(open_door(max_size=10_000))
    client.write(b"\x0b" + adt(control_id="ENDLESS"))
    try:
        for _ in range(400):
            client.write(b"x" * 10_000)
    except OSError:
        pass
    with contextlib.suppress(ConnectionResetError):  # bytes that nobody reads any more may reset it
        client.read_raw()
    assert client.is_closed()
    assert Message.objects.get(state="fault").control_id == "ENDLESS"


def test_a_frame_that_takes_too_long_is_closed(open_door, any_source, connect):
    client = connect(open_door(frame_seconds=0.4))
    client.write(b"\x0bMSH|^~\\&|dribble")
    assert client.is_closed()


def test_a_silent_connection_is_closed_after_the_idle_time(open_door, any_source, connect):
    client = connect(open_door(idle_seconds=0.3, frame_seconds=1))
    assert client.is_closed()


def test_too_many_connections_are_refused_and_the_others_live(open_door, any_source, connect):
    door = open_door(max_connections=3)
    clients = [connect(door) for _ in range(3)]
    assert clients[0].send(adt()).first("MSA").value(1) == "AA"
    assert connect(door).is_closed()
    clients[1].close()
    wait_until(lambda: len(door.listener.connections) == 2)
    assert connect(door).send(adt()).first("MSA").value(1) == "AA"


def test_stray_bytes_do_not_disturb_and_http_is_told_nothing(door, connect):
    client = connect(door)
    client.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + encode(adt(control_id="G")))
    assert ids(client, 1) == ["G"]


def test_bad_frames_among_good_ones_lose_none_and_disturb_none(door, connect):
    client = connect(door)
    bad = [
        b"\x0bgarbage\x1c\r",
        b"\x0bMSH|half",
        b"\x1c\x1c",
        b"noise",
        b"\x0b\x0b\x0b",
        b"\x0b\x1c\r",
        b"\x0bMSH|^^^^|\x1c\r",
    ]
    answered = 0
    for number in range(30):
        for piece in bad:
            client.write(piece)
        client.write(encode(adt(control_id=f"GOOD{number}", identifier=f"P{number}^^^HOSP")))
        while client.read().first("MSA").value(2) != f"GOOD{number}":
            pass
        answered += 1
    assert answered == 30
    assert Patient.objects.count() == 30
    assert Message.objects.filter(state="applied").count() == 30


def test_connections_do_not_wait_for_each_other(door, connect):
    """One connection's message waits for a lane; another's is applied meanwhile."""
    with holding(lambda: lanes.lock(["P1"])):
        slow, quick = connect(door), connect(door)
        slow.write(encode(adt(control_id="SLOW", identifier="P1^^^HOSP")))
        assert quick.send(adt(control_id="QUICK", identifier="P2^^^HOSP")).first("MSA").value(2) == "QUICK"
    assert ids(slow, 1) == ["SLOW"]


def test_stopping_answers_what_was_received_whole_and_closes(door, connect):
    client = connect(door)
    client.write(b"".join(encode(orm(placer=f"P{n}", control_id=f"S{n}")) for n in range(10)))
    first = client.read().first("MSA").value(2)
    door.stop()
    answered = [first]
    while (raw := client.read_raw()) is not None:
        assert b"MSA|AA|" in raw
        answered.append(raw)
    assert Message.objects.filter(state="applied").count() == len(answered)


@pytest.fixture
def certificate(tmp_path):
    """A certificate and key of our own."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


def test_tls_with_a_pinned_client_certificate(open_door, transactional_db, certificate, settings):
    cert, key = certificate
    settings.ORDERLY_TLS_CERTIFICATE, settings.ORDERLY_TLS_KEY, settings.ORDERLY_TLS_CA = (
        str(cert),
        str(key),
        str(cert),
    )
    fingerprint = _sha256_of(cert)
    Source.objects.create(name="pinned", profile={"certificate_sha256": fingerprint})
    door = open_door(tls=True)
    context = ssl.create_default_context(cafile=str(cert))
    context.load_cert_chain(cert, key)
    from integration.hl7v2.sender import Sender

    with Sender("127.0.0.1", door.port, tls=context) as sender:
        assert sender.send(adt(control_id="TLS"), "TLS").accepted
    stranger = ssl.create_default_context(cafile=str(cert))
    with pytest.raises(OSError):
        _talk_without_certificate(door.port, stranger)


def _talk_without_certificate(port, context):
    plain = socket.create_connection(("127.0.0.1", port), 10)
    with context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped:
        wrapped.sendall(encode(adt()))
        if wrapped.recv(1) == b"":
            raise ConnectionResetError


def _sha256_of(cert):
    import hashlib

    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(cert.read_text())).hexdigest()


# -- bounds of a source


def bound(**profile):
    Source.objects.update(profile=profile)
    sources.forget()


def test_a_source_has_its_own_longest_message(door, connect):
    bound(max_kb=2)
    client = connect(door)
    long = adt(control_id="LONG").replace(b"DOE^JANE", b"DOE^" + b"J" * 3000)
    ack = client.send(long)
    assert (code_of(ack), ack.first("ERR").value(3), ack.first("MSA").value(2)) == ("AR", "207", "LONG")
    assert code_of(client.send(adt())) == "AA"
    row = Message.objects.get(control_id="LONG")
    assert (row.state, bytes(row.raw)) == ("rejected", long[:4096])


def test_a_silent_connection_of_a_source_is_closed_after_its_own_time(open_door, any_source, connect):
    bound(idle_seconds=1)
    client = connect(open_door(frame_seconds=1.0))
    assert code_of(client.send(adt())) == "AA"
    assert client.is_closed(20)


def test_a_source_keeps_its_pace_over_all_its_connections(door, connect):
    """600 a minute: ten answers over two connections take most of a second; another source does not wait."""
    bound(per_minute=600)
    started = time.monotonic()
    clients = [connect(door), connect(door)]
    for number in range(5):
        for client in clients:
            client.write(encode(adt(identifier=f"P{number}^^^HOSP")))
    for client in clients:
        for _ in range(5):
            assert code_of(client.read(30)) == "AA"
    assert time.monotonic() - started >= 0.8
