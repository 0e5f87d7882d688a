"""The state machine of PS3.8 section 9.2, from both sides: what each PDU means when, and how associations end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pacs.dimse import negotiation, sender, stream
from pacs.dimse.errors import Aborted, AssociationRefused, Closed, Ended, ProtocolError
from pacs.dimse.registry import Peer, Registry
from pacs.services import echo
from tests.pacs.dimse.conftest import ALL, Served
from tests.pacs.dimse.test_protocol import (
    ECHO,
    ECHO_RQ,
    IMPLICIT,
    VERIFICATION,
    associated,
    connect,
    lives,
    pdata,
    read_pdu,
)

ABORTED_BY_PROVIDER = bytes((0, 0, 2))

# -- we are the acceptor


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (ECHO, stream.ABORT),  # AA-8: a second A-ASSOCIATE-RQ
        (stream.HEADER.pack(stream.ASSOCIATE_AC, len(ECHO) - 6) + ECHO[6:], stream.ABORT),
        (stream.reject_pdu(1, 1, 1), stream.ABORT),
        (stream.RELEASE_RESPONSE, stream.ABORT),
        (stream.HEADER.pack(0x0A, 4) + bytes(4), stream.ABORT),
        (pdata((1, 3, ECHO_RQ)), stream.P_DATA),  # DT-2
        (stream.RELEASE_REQUEST, stream.RELEASE_RP),  # AR-2, AR-4
        (stream.abort_pdu(0, 0), 0),  # AA-3: no answer to an abort
        (stream.abort_pdu(2, 6), 0),
    ],
    ids=["RQ", "AC", "RJ", "RP", "unknown", "data", "release", "abort", "abort by provider"],
)
def test_what_each_pdu_means_to_an_established_association(
    served: Served, sent: bytes, expected: int
) -> None:
    sock = associated(served)
    sock.sendall(sent)
    kind, body = read_pdu(sock)
    assert kind == expected
    if expected == stream.ABORT:
        assert body[:3] == ABORTED_BY_PROVIDER
    if expected in (stream.ABORT, stream.RELEASE_RP):
        assert read_pdu(sock)[0] == 0  # Sta13: the connection is closed
    sock.close()
    lives(served)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (pdata((1, 3, ECHO_RQ)), stream.ABORT),  # AA-1
        (stream.RELEASE_REQUEST, stream.ABORT),
        (stream.RELEASE_RESPONSE, stream.ABORT),
        (stream.reject_pdu(1, 1, 1), stream.ABORT),
        (stream.abort_pdu(0, 0), None),  # AA-2: closed; saying so before is harmless
    ],
    ids=["data", "release", "RP", "RJ", "abort"],
)
def test_what_each_pdu_means_before_an_association(served: Served, sent: bytes, expected: int | None) -> None:
    sock = connect(served)
    sock.sendall(sent)
    kind, _ = read_pdu(sock)
    assert kind == expected if expected is not None else kind in (stream.ABORT, 0)
    lives(served)


def test_what_comes_after_the_release_is_not_answered(served: Served) -> None:
    sock = associated(served)
    sock.sendall(stream.RELEASE_REQUEST + pdata((1, 3, ECHO_RQ)) + stream.RELEASE_REQUEST)
    assert read_pdu(sock)[0] == stream.RELEASE_RP
    assert read_pdu(sock)[0] == 0
    lives(served)


# -- we are the requestor


@contextmanager
def scripted(script: Callable[[socket.socket, Callable[[], None]], None]) -> Iterator[sender.Destination]:
    """An acceptor that takes one connection and does as `script(socket, accept)` says."""
    registry = Registry()
    echo.register(registry)
    listener = socket.create_server(("127.0.0.1", 0))
    troubles: list[BaseException] = []

    def serve() -> None:
        sock, _ = listener.accept()
        sock.settimeout(20)
        try:
            kind, body = read_pdu(sock)
            assert kind == stream.ASSOCIATE_RQ

            def accept() -> None:
                proposal = negotiation.read_request(body)
                sock.sendall(negotiation.agree(proposal, Peer("X", ALL), registry).pdu)

            script(sock, accept)
        except BaseException as trouble:
            troubles.append(trouble)
        finally:
            sock.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield sender.Destination("127.0.0.1", listener.getsockname()[1], "PEER", "ORDERLY")
    finally:
        thread.join(30)
        listener.close()
    assert not thread.is_alive() and not troubles, troubles


def associate(there: sender.Destination) -> sender.RequestedAssociation:
    return sender.associate(there, [(VERIFICATION, (IMPLICIT,))])


def test_a_release_that_both_ask_for_at_once_is_answered_and_waited_for() -> None:
    def script(sock: socket.socket, accept: Callable[[], None]) -> None:
        accept()
        assert read_pdu(sock)[0] == stream.RELEASE_RQ
        sock.sendall(stream.RELEASE_REQUEST)  # they crossed on the wire
        assert read_pdu(sock)[0] == stream.RELEASE_RP
        sock.sendall(stream.RELEASE_RESPONSE)
        assert read_pdu(sock)[0] == 0

    with scripted(script) as there:
        associate(there).release()


def test_data_that_comes_before_the_release_is_answered_is_dropped() -> None:
    def script(sock: socket.socket, accept: Callable[[], None]) -> None:
        accept()
        assert read_pdu(sock)[0] == stream.RELEASE_RQ
        sock.sendall(pdata((1, 3, ECHO_RQ)) + stream.RELEASE_RESPONSE)
        assert read_pdu(sock)[0] == 0

    with scripted(script) as there:
        associate(there).release()


def test_an_abort_instead_of_an_answer_ends_the_association() -> None:
    def script(sock: socket.socket, accept: Callable[[], None]) -> None:
        accept()
        assert read_pdu(sock)[0] == stream.P_DATA
        sock.sendall(stream.abort_pdu(0, 0))
        assert read_pdu(sock)[0] == 0

    with scripted(script) as there, pytest.raises(Aborted):
        assoc = associate(there)
        try:
            assoc.echo()
        finally:
            assoc.wire.close()


def test_a_pdu_out_of_turn_is_answered_with_an_abort() -> None:
    def script(sock: socket.socket, accept: Callable[[], None]) -> None:
        accept()
        assert read_pdu(sock)[0] == stream.P_DATA
        sock.sendall(stream.reject_pdu(1, 1, 1))
        kind, body = read_pdu(sock)
        assert (kind, body[:3]) == (stream.ABORT, ABORTED_BY_PROVIDER)

    with scripted(script) as there, pytest.raises(ProtocolError), associate(there) as assoc:
        assoc.echo()


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (stream.reject_pdu(1, 1, 3), AssociationRefused, "calling AE title"),
        (stream.reject_pdu(2, 3, 2), AssociationRefused, "for now.*local limit"),
        (stream.abort_pdu(0, 0), AssociationRefused, "aborted"),
        (b"", Closed, "closed"),
        (stream.RELEASE_RESPONSE, ProtocolError, "instead of an answer"),
        (stream.HEADER.pack(stream.ASSOCIATE_AC, 0xFFFFFFF0), ProtocolError, "bytes"),
    ],
    ids=["rejected", "busy", "aborted", "closed", "release", "huge"],
)
def test_what_may_come_instead_of_an_acceptance(answer: bytes, error: type[Exception], words: str) -> None:
    def script(sock: socket.socket, accept: Callable[[], None]) -> None:
        sock.sendall(answer)
        sock.shutdown(socket.SHUT_WR)
        while read_pdu(sock)[0]:
            pass

    with scripted(script) as there, pytest.raises(error, match=words):
        associate(there)


def test_nobody_there_is_said_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(Ended, match="cannot connect"):
        associate(sender.Destination("127.0.0.1", port, "PEER", "ORDERLY"))
