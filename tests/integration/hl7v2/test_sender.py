"""The MLLP client against scripted peers on real sockets: only the ACK that names the message counts."""

import datetime
import socket
import threading

import pytest

from integration.hl7v2 import acks, framing
from integration.hl7v2 import sender as sender_module
from integration.hl7v2.framing import Decoder, Frame
from integration.hl7v2.sender import NotAnswered, Sender, Unreachable

AT = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)


def msg(control_id: str) -> bytes:
    return f"MSH|^~\\&|RIS|X|HIS|Y|2026||ORU^R01|{control_id}|P|2.5.1\rPID|||1\r".encode()


def ack(control_id: str, code: str = "AA", problems=()) -> bytes:
    asked = acks.Asking(control_id=control_id)
    return framing.encode(acks.build(asked, acks.AckCode(code), problems, at=AT))


class Peer:
    """A server that runs `script(connection, frames)` for each connection, and remembers what it received."""

    def __init__(self, script):
        self.script, self.received, self.connections = script, [], 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(20)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            connection.settimeout(20)
            threading.Thread(target=self._talk, args=(connection, self.connections), daemon=True).start()

    def _talk(self, connection, number):
        decoder = Decoder(1 << 20)
        with connection:
            try:
                while data := connection.recv(65536):
                    for frame in (e for e in decoder.feed(data) if isinstance(e, Frame)):
                        self.received.append(frame.payload)
                        control_id = frame.payload.split(b"|")[9].decode()
                        for piece in self.script(number, control_id):
                            if piece is None:
                                return
                            connection.sendall(piece)
            except OSError:
                return

    def close(self):
        self.listener.close()


@pytest.fixture
def peer():
    made = []

    def make(script):
        made.append(Peer(script))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_message_is_done_by_the_ack_that_names_it(peer):
    there = peer(lambda n, i: [ack(i)])
    with Sender("127.0.0.1", there.port) as sender:
        for control_id in ("1", "2", "3"):
            answer = sender.send(msg(control_id), control_id)
            assert (answer.accepted, answer.code) == (True, "AA")
    assert there.received == [msg("1"), msg("2"), msg("3")]
    assert there.connections == 1


def test_an_ack_in_pieces_and_without_cr_is_taken(peer):
    whole = ack("7")
    there = peer(lambda n, i: [whole[:10], whole[10:-1]])
    with Sender("127.0.0.1", there.port) as sender:
        assert sender.send(msg("7"), "7").accepted


def test_a_foreign_ack_is_not_taken_and_the_right_one_after_it_is(peer):
    there = peer(lambda n, i: [ack("other", "AR"), b"\x0bnonsense\x1c\r", ack(i, "AE")])
    with Sender("127.0.0.1", there.port) as sender:
        assert sender.send(msg("1"), "1").code == "AE"


def test_after_a_time_out_the_socket_is_closed_so_that_a_late_ack_is_nobodys(peer):
    late = threading.Event()

    def script(number, control_id):
        if number == 1:
            late.wait(10)
            return [ack("2")]  # what the first connection says about the second message is not believed
        return [ack(control_id)]

    there = peer(script)
    with Sender("127.0.0.1", there.port, ack_timeout=0.3) as sender:
        with pytest.raises(NotAnswered, match="no ACK"):
            sender.send(msg("1"), "1")
        assert not sender.connected
        late.set()
        sender.ack_timeout = 10
        assert sender.send(msg("2"), "2").accepted
    assert there.connections == 2


def test_surplus_acks_before_a_message_are_read_past(peer):
    there = peer(lambda n, i: [ack(i), ack(i), ack("99")])
    with Sender("127.0.0.1", there.port) as sender:
        assert sender.send(msg("1"), "1").accepted
        assert sender.send(msg("99"), "99").accepted
    assert len(there.received) == 2


def test_a_peer_that_closes_is_no_answer_and_the_next_message_connects_anew(peer):
    there = peer(lambda n, i: [None] if n == 1 else [ack(i)])
    with Sender("127.0.0.1", there.port) as sender:
        with pytest.raises(NotAnswered):
            sender.send(msg("1"), "1")
        assert sender.send(msg("1"), "1").accepted


def test_an_idle_connection_that_the_peer_closed_costs_no_message(peer):
    there = peer(lambda n, i: [ack(i), None])
    with Sender("127.0.0.1", there.port) as sender:
        assert sender.send(msg("1"), "1").accepted
        threading.Event().wait(0.1)
        assert sender.send(msg("2"), "2").accepted


@pytest.mark.parametrize(("rested", "connections"), [(True, 2), (False, 1)])
def test_a_rested_connection_that_breaks_without_a_word_is_replaced_at_once(
    peer, monkeypatch, rested, connections
):
    monkeypatch.setattr(sender_module, "_RESTED_SECONDS", -1.0 if rested else 3600.0)
    there = peer(lambda n, i: [None] if (n, i) == (1, "2") else [ack(i)])
    with Sender("127.0.0.1", there.port) as sender:
        assert sender.send(msg("1"), "1").accepted
        if rested:
            assert sender.send(msg("2"), "2").accepted
        else:
            with pytest.raises(NotAnswered):
                sender.send(msg("2"), "2")
    assert there.received == [msg("1"), *[msg("2")] * connections]
    assert there.connections == connections


def test_a_new_connection_that_breaks_is_not_tried_twice(peer):
    there = peer(lambda n, i: [None])
    with Sender("127.0.0.1", there.port) as sender, pytest.raises(NotAnswered):
        sender.send(msg("1"), "1")
    assert there.connections == 1


def test_a_time_out_on_a_rested_connection_sends_nothing_twice(peer, monkeypatch):
    monkeypatch.setattr(sender_module, "_RESTED_SECONDS", -1.0)
    there = peer(lambda n, i: [ack(i)] if i == "1" else [])
    with Sender("127.0.0.1", there.port) as sender:
        assert sender.send(msg("1"), "1").accepted
        sender.ack_timeout = 0.3
        with pytest.raises(NotAnswered, match="no ACK"):
            sender.send(msg("2"), "2")
        assert not sender.connected
    assert there.received == [msg("1"), msg("2")]


def test_nobody_there_is_unreachable():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(Unreachable):
        Sender("127.0.0.1", port, connect_timeout=1).send(msg("1"), "1")


@pytest.mark.parametrize(
    ("code", "err", "permanent"),
    [("AE", 101, True), ("AE", 206, False), ("AR", 203, True), ("AR", 207, False), ("AR", None, False)],
)
def test_an_answer_says_whether_sending_again_can_help(peer, code, err, permanent):
    from integration.hl7v2.errors import Code, Problem

    problems = [Problem(Code(err), "x")] if err else []
    there = peer(lambda n, i: [ack(i, code, problems)])
    with Sender("127.0.0.1", there.port) as sender:
        answer = sender.send(msg("1"), "1")
    assert answer.permanent is permanent
    assert not answer.accepted


def test_a_payload_with_framing_bytes_is_not_sent(peer):
    there = peer(lambda n, i: [ack(i)])
    with Sender("127.0.0.1", there.port) as sender, pytest.raises(framing.FramingError):
        sender.send(b"MSH|^~\\&|\x0b", "1")
    assert there.received == []
