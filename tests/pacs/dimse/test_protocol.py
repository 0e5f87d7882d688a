"""What a network throws at the door: malformed PDUs, slow and idle peers, too many of them, the ends of things."""

from __future__ import annotations

import random
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pynetdicom import AE, build_role
from pynetdicom.sop_class import CTImageStorage, ModalityWorklistInformationFind, Verification

from pacs.dimse import command, negotiation, sender, stream
from pacs.dimse.admission import Known, Limits
from pacs.dimse.errors import AssociationRefused, ProtocolError, Refused
from pacs.dimse.negotiation import Proposed
from pacs.dimse.registry import Outcome, Registry, Request
from tests.conftest import require_peer
from tests.pacs.dimse.conftest import ALL, Served

VERIFICATION, CT = str(Verification), str(CTImageStorage)
WORKLIST = str(ModalityWorklistInformationFind)
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"


def connect(served: Served) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", served.port), timeout=20)
    sock.settimeout(20)
    return sock


def request(
    contexts: list[tuple[str, tuple[str, ...]]], calling: str = "SCANNER", called: str = "ORDERLY"
) -> bytes:
    proposed = [Proposed(2 * n + 1, uid, syntaxes) for n, (uid, syntaxes) in enumerate(contexts)]
    return negotiation.request_pdu(calling, called, proposed)


ECHO = request([(VERIFICATION, (IMPLICIT,))])


def read_pdu(sock: socket.socket) -> tuple[int, bytes]:
    """The next PDU; (0, b"") when the connection ends."""
    head = _exactly(sock, 6)
    if len(head) < 6:
        return 0, b""
    kind, length = stream.HEADER.unpack(head)
    return kind, _exactly(sock, length)


def _exactly(sock: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        try:
            chunk = sock.recv(count - len(got))
        except ConnectionResetError:
            chunk = b""
        if not chunk:
            return got
        got += chunk
    return got


def associated(served: Served, contexts: list[tuple[str, tuple[str, ...]]] | None = None) -> socket.socket:
    sock = connect(served)
    sock.sendall(request(contexts or [(VERIFICATION, (IMPLICIT,))]))
    assert read_pdu(sock)[0] == stream.ASSOCIATE_AC
    return sock


def pdata(*pdvs: tuple[int, int, bytes]) -> bytes:
    body = b"".join(
        struct.pack(">IBB", len(raw) + 2, context, control) + raw for context, control, raw in pdvs
    )
    return stream.HEADER.pack(stream.P_DATA, len(body)) + body


ECHO_RQ = command.encode(
    {"AffectedSOPClassUID": VERIFICATION, "CommandField": 0x30, "MessageID": 1, "CommandDataSetType": 0x0101}
)


def lives(served: Served) -> None:
    """The listener still answers."""
    assert sender.echo(served.destination()) == 0


# -- negotiation


def test_echoscu_is_answered(served: Served) -> None:
    subprocess.run(
        [require_peer("echoscu"), "-aec", "ORDERLY", "127.0.0.1", str(served.port)], check=True, timeout=30
    )


def test_an_unknown_caller_may_echo_and_nothing_else(served: Served) -> None:
    destination = served.destination(calling="NOBODY")
    assert sender.echo(destination) == 0
    with pytest.raises(AssociationRefused, match="calling AE title not recognized"):
        sender.associate(destination, [(CT, (EXPLICIT,))])
    with sender.associate(destination, [(CT, (EXPLICIT,)), (VERIFICATION, (IMPLICIT,))]) as assoc:
        assert [context.abstract_syntax for context in assoc.contexts.values()] == [VERIFICATION]
    assert [refusal[0] for refusal in served.refusals] == ["NOBODY", "NOBODY"]


def test_a_caller_of_another_title_than_ours_may_echo_and_nothing_else(served: Served) -> None:
    assert sender.echo(served.destination(called="OTHER")) == 0
    with pytest.raises(AssociationRefused, match="called AE title not recognized"):
        sender.associate(served.destination(called="OTHER"), [(CT, (EXPLICIT,))])


def test_each_service_needs_its_own_right(serve: Callable[..., Served]) -> None:
    known = [Known("SCANNER", "127.0.0.0/8", frozenset(("worklist",))), Known("SCANNER", "10.0.0.0/8", ALL)]
    served = serve(register=slow_find(0), known=known)
    contexts = [(CT, (EXPLICIT,)), (WORKLIST, (IMPLICIT,)), (VERIFICATION, (IMPLICIT,))]
    with sender.associate(served.destination(), contexts) as assoc:
        assert {context.abstract_syntax for context in assoc.contexts.values()} == {WORKLIST, VERIFICATION}


def test_128_contexts_are_negotiated_and_more_are_a_protocol_error(served: Served) -> None:
    with sender.associate(served.destination(), [(CT, (EXPLICIT,))] * 128) as assoc:
        assert len(assoc.contexts) == 128
    sock = connect(served)
    good = bytearray(request([(CT, (EXPLICIT,))] * 128))
    item = good[74 + 4 + 21 : 74 + 4 + 21 + 4 + struct.unpack(">H", good[101:103])[0]]
    body = good[6:] + item
    sock.sendall(stream.HEADER.pack(1, len(body)) + body)
    assert read_pdu(sock)[0] in (stream.ABORT, 0)
    lives(served)


def test_within_a_context_the_proposers_first_syntax_is_taken(served: Served) -> None:
    jpeg = "1.2.840.10008.1.2.4.70"
    with sender.associate(served.destination(), [(CT, (jpeg, EXPLICIT, IMPLICIT))]) as assoc:
        assert [context.transfer_syntax for context in assoc.contexts.values()] == [jpeg]
    with sender.associate(served.destination(), [(VERIFICATION, (jpeg, IMPLICIT))]) as assoc:
        assert [context.transfer_syntax for context in assoc.contexts.values()] == [IMPLICIT]


def test_window_roles_and_identity_of_a_proposal_are_answered_properly(served: Served) -> None:
    from pynetdicom.pdu_primitives import (
        AsynchronousOperationsWindowNegotiation,
        SOPClassExtendedNegotiation,
        UserIdentityNegotiation,
    )

    ae = AE(ae_title="SCANNER")
    ae.add_requested_context(CTImageStorage, EXPLICIT)
    window = AsynchronousOperationsWindowNegotiation()
    window.maximum_number_operations_invoked, window.maximum_number_operations_performed = 8, 8
    extended = SOPClassExtendedNegotiation()
    extended.sop_class_uid, extended.service_class_application_information = CTImageStorage, b"\3\1\1\0\0\0"
    identity = UserIdentityNegotiation()
    identity.user_identity_type, identity.primary_field = 1, b"somebody"
    identity.positive_response_requested = True
    assoc = ae.associate(
        "127.0.0.1", served.port, ae_title="ORDERLY",
        ext_neg=[window, extended, identity, build_role(CTImageStorage, scu_role=True, scp_role=True)],
    )  # fmt: skip
    assert assoc.is_established
    assert assoc.acceptor.asynchronous_operations == (1, 1)
    assert assoc.acceptor.sop_class_extended == {CTImageStorage: b"\2\0\0\0\0\0"}
    assert assoc.acceptor.role_selection[CTImageStorage].scp_role is True
    assert assoc.acceptor.user_identity is None
    assert assoc.accepted_contexts[0].as_scu and assoc.accepted_contexts[0].as_scp
    assert assoc.acceptor.maximum_length == stream.MAX_PDU
    assoc.release()


def test_no_pdu_of_ours_is_longer_than_the_peer_takes(serve: Callable[..., Served]) -> None:
    served = serve(register=slow_find(3, identifier=b"\x10\x00\x20\x00\x70\x17\x00\x00" + b"x" * 6000))
    ae = AE(ae_title="SCANNER")
    ae.maximum_pdu_size = 1024
    ae.add_requested_context(WORKLIST, IMPLICIT)
    assoc = ae.associate("127.0.0.1", served.port, ae_title="ORDERLY")
    ds = Dataset()
    ds.PatientID = "1"
    received = [len(answer.PatientID) for _, answer in assoc.send_c_find(ds, WORKLIST) if answer is not None]
    assert received == [6000, 6000, 6000]
    assoc.release()


# -- messages


def slow_find(rows: int, seconds: float = 0.0, identifier: bytes = b"") -> Callable[[Registry], None]:
    """Registers a worklist that gives `rows` answers (for ever when negative)."""

    def find(asked: Request) -> Iterator[tuple[int, bytes]]:
        count = 0
        while count != rows:
            count += 1
            if seconds:
                time.sleep(seconds)
            yield 0xFF00, identifier

    return lambda registry: registry.add(WORKLIST, "C-FIND", find, service="worklist")


def test_an_endless_query_ends_when_it_is_cancelled(serve: Callable[..., Served]) -> None:
    served = serve(register=slow_find(-1, identifier=bytes(100)))
    sock = associated(served, [(WORKLIST, (IMPLICIT,))])
    asked = {"AffectedSOPClassUID": WORKLIST, "CommandField": 0x20, "MessageID": 9, "Priority": 0,
             "CommandDataSetType": 1}  # fmt: skip
    sock.sendall(pdata((1, 3, command.encode(asked))) + pdata((1, 2, b"")))
    assert read_pdu(sock)[0] == stream.P_DATA
    cancel = {"CommandField": 0x0FFF, "MessageIDBeingRespondedTo": 9, "CommandDataSetType": 0x0101}
    sock.sendall(pdata((1, 3, command.encode(cancel))))
    statuses = set()
    while 0xFE00 not in statuses:
        kind, body = read_pdu(sock)
        assert kind == stream.P_DATA
        for _, control, fragment in stream.pdvs(memoryview(body)):
            if control & 1:
                statuses.add(command.decode(fragment).status)
    assert statuses <= {0xFF00, 0xFE00}
    sock.sendall(stream.RELEASE_REQUEST)
    assert read_pdu(sock)[0] == stream.RELEASE_RP


def test_what_a_handler_raises_is_answered_and_the_association_goes_on(serve: Callable[..., Served]) -> None:
    def fail(asked: Request) -> Iterator[tuple[int, bytes]]:
        yield 0xFF00, b""
        raise ValueError("a patient's name")

    def refuse(asked: Request) -> Iterator[tuple[int, bytes]]:
        yield 0xFF00, b""
        raise Refused(0xA900, "bad key", OffendingElement=[0x00100010])

    study_root = "1.2.840.10008.5.1.4.1.2.2.1"

    def register(registry: Registry) -> None:
        registry.add(WORKLIST, "C-FIND", fail, service="worklist")
        registry.add(study_root, "C-FIND", refuse, service="find")

    served = serve(register=register)
    ae = AE(ae_title="SCANNER")
    ae.add_requested_context(WORKLIST)
    ae.add_requested_context(study_root)
    assoc = ae.associate("127.0.0.1", served.port, ae_title="ORDERLY")
    ds = Dataset()
    ds.PatientID = "1"
    last = list(assoc.send_c_find(ds, WORKLIST))[-1][0]
    assert (last.Status, last.ErrorComment) == (0xC000, "failed: ValueError")
    last = list(assoc.send_c_find(ds, study_root))[-1][0]
    assert (last.Status, last.ErrorComment, last.OffendingElement) == (0xA900, "bad key", 0x00100010)
    assoc.release()


def test_n_create_and_n_set_give_their_attributes_and_elements(serve: Callable[..., Served]) -> None:
    mpps = "1.2.840.10008.3.1.2.3.3"

    def create(asked: Request) -> Outcome:
        assert asked.dataset.PatientID == "P1"
        made = Dataset()
        made.PatientID = "P2"
        return Outcome(data=asked.encode(made), elements={"AffectedSOPInstanceUID": "1.2.3"})

    def refuse(asked: Request) -> Outcome:
        assert asked.command.affected_sop_instance_uid == "1.2.3"
        raise Refused(0x0110, "may no longer be updated", ErrorID=0xA710)

    def register(registry: Registry) -> None:
        registry.add(mpps, "N-CREATE", create, service="mpps")
        registry.add(mpps, "N-SET", refuse, service="mpps")

    served = serve(register=register)
    ae = AE(ae_title="SCANNER")
    for syntax in (IMPLICIT, "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"):
        ae.requested_contexts = []
        ae.add_requested_context(mpps, syntax)
        assoc = ae.associate("127.0.0.1", served.port, ae_title="ORDERLY")
        ds = Dataset()
        ds.PatientID = "P1"
        status, made = assoc.send_n_create(ds, mpps, None)
        assert (status.Status, made.PatientID) == (0, "P2")
        status, _ = assoc.send_n_set(ds, mpps, "1.2.3")
        assert (status.Status, status.ErrorID, status.ErrorComment) == (
            0x0110,
            0xA710,
            "may no longer be updated",
        )
        assoc.release()
    with sender.associate(served.destination(), [(mpps, (IMPLICIT,))]) as own:
        context = own.context_for(mpps)
        assert context is not None
        patient = b"\x10\0\x20\0\2\0\0\0P1"
        response = own.exchange(context, {"AffectedSOPClassUID": mpps, "CommandField": 0x140}, patient)
        assert (response.status, response.affected_sop_instance_uid) == (0, "1.2.3")


def test_an_operation_that_is_not_served_is_answered_as_such(served: Served) -> None:
    sock = associated(served)
    wrong = {"AffectedSOPClassUID": CT, "CommandField": 0x30, "MessageID": 2, "CommandDataSetType": 0x0101}
    unknown = {
        "AffectedSOPClassUID": VERIFICATION,
        "CommandField": 0x20,
        "MessageID": 3,
        "CommandDataSetType": 1,
    }
    for asked, code in ((wrong, 0x0122), (unknown, 0x0211)):
        sock.sendall(pdata((1, 3, command.encode(asked))))
        if asked is unknown:
            sock.sendall(pdata((1, 2, b"\0\0")))
        kind, body = read_pdu(sock)
        assert kind == stream.P_DATA
        assert command.decode(next(stream.pdvs(memoryview(body)))[2]).status == code


def test_a_command_may_come_in_pieces_and_several_pdvs_in_one_pdu(served: Served) -> None:
    sock = associated(served)
    for at in range(0, len(ECHO_RQ), 7):
        last = at + 7 >= len(ECHO_RQ)
        sock.sendall(pdata((1, 3 if last else 1, ECHO_RQ[at : at + 7])))
    assert read_pdu(sock)[0] == stream.P_DATA
    sock.sendall(pdata((1, 1, ECHO_RQ[:20]), (1, 1, b""), (1, 3, ECHO_RQ[20:])))
    assert read_pdu(sock)[0] == stream.P_DATA


# -- what breaks the protocol

BAD_COMMANDS = [
    b"",
    b"\0\0\0",
    ECHO_RQ[:-1],
    ECHO_RQ + b"\x08\0\x05\0\0\0\0\0",
    struct.pack("<HHI", 0, 0x100, 0xFFFFFFFF),
    struct.pack("<HHIH", 0, 0x100, 2, 0x30),
    struct.pack("<HHI", 0, 0x200, 0) * 100,
    b"\0" * 70_000,
    command.encode({"CommandField": 0x8030, "MessageIDBeingRespondedTo": 1, "CommandDataSetType": 0x0101}),
]


@pytest.mark.parametrize(
    "sent",
    [
        *[pdata((1, 3, bad)) for bad in BAD_COMMANDS],
        pdata((3, 3, ECHO_RQ)),  # a context that nobody agreed to
        pdata((1, 2, b"data")),  # a data set first
        pdata((1, 1, ECHO_RQ[:10]), (1, 2, b"data")),
        stream.HEADER.pack(stream.P_DATA, 0),
        stream.HEADER.pack(stream.P_DATA, 10) + struct.pack(">IBB", 100, 1, 3) + b"abcd",
        stream.HEADER.pack(stream.P_DATA, 6) + struct.pack(">IBB", 1, 1, 3),
        stream.HEADER.pack(stream.P_DATA, 0xFFFFFFFF),
        stream.HEADER.pack(stream.P_DATA, stream.MAX_PDU + 1),
        stream.HEADER.pack(stream.RELEASE_RQ, 5) + bytes(5),
        stream.HEADER.pack(stream.RELEASE_RP, 4) + bytes(4),
        stream.HEADER.pack(0x09, 4) + bytes(4),
        stream.HEADER.pack(0xFF, 0),
        ECHO,  # a second association request
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=lambda sent: f"{sent[:1].hex()}-{len(sent)}-{sent[6:16].hex()}",
)
def test_what_breaks_the_protocol_ends_the_association_with_an_abort(served: Served, sent: bytes) -> None:
    sock = associated(served)
    sock.sendall(sent)
    kind, body = read_pdu(sock)
    assert (kind, body[2]) == (stream.ABORT, 2)
    assert read_pdu(sock)[0] == 0
    lives(served)


@pytest.mark.parametrize(
    "sent",
    [
        stream.HEADER.pack(1, 0xFFFFFFFF) + b"x" * 100,
        stream.HEADER.pack(1, 67) + bytes(67),
        stream.HEADER.pack(1, 68) + bytes(68),
        stream.HEADER.pack(1, 68) + b"\0\1" + bytes(66),
        ECHO[:80] + b"\xff\xff" + ECHO[82:],
        ECHO[:74] + b"\x99" * (len(ECHO) - 74),
        pdata((1, 3, ECHO_RQ)),
        stream.RELEASE_REQUEST,
        stream.abort_pdu(0, 0),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        bytes(100),
    ],
    ids=lambda sent: f"{sent[:1].hex()}-{len(sent)}",
)
def test_what_is_no_association_request_gets_no_further(served: Served, sent: bytes) -> None:
    sock = connect(served)
    sock.sendall(sent)
    kind, _ = read_pdu(sock)
    assert kind in (stream.ABORT, stream.ASSOCIATE_RJ, 0)
    lives(served)


def test_other_versions_and_application_contexts_are_rejected_as_such(served: Served) -> None:
    for bad, expected in (
        (ECHO[:6] + b"\0\2" + ECHO[8:], (1, 2, 2)),
        (ECHO.replace(b"1.2.840.10008.3.1.1.1", b"1.2.840.10008.3.1.1.2"), (1, 1, 2)),
    ):
        sock = connect(served)
        sock.sendall(bad)
        kind, body = read_pdu(sock)
        assert (kind, tuple(body[1:])) == (stream.ASSOCIATE_RJ, expected)


def mutated(raw: bytes, chance: random.Random) -> bytes:
    """`raw` with a few bytes changed, cut out, doubled or cut off."""
    out = bytearray(raw)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(out))
        kind = chance.randrange(5)
        if kind == 0:
            out[at] = chance.randrange(256)
        elif kind == 1:
            del out[at : at + chance.randint(1, 8)]
        elif kind == 2:
            out[at:at] = out[at : at + chance.randint(1, 16)]
        elif kind == 3:
            out[at : at + 4] = chance.choice((b"\xff\xff\xff\xff", bytes(4), b"\0\1\0\0"))
        else:
            del out[at:]
        if not out:
            return b"\0"
    return bytes(out)


def test_hundreds_of_mutated_conversations_leave_the_listener_well(served: Served) -> None:
    chance = random.Random(20260310)
    store = command.encode(
        {"AffectedSOPClassUID": CT, "AffectedSOPInstanceUID": "1.2.3", "CommandField": 1, "MessageID": 1,
         "Priority": 0, "CommandDataSetType": 1}
    )  # fmt: skip
    opening = request([(CT, (EXPLICIT,)), (VERIFICATION, (IMPLICIT,))])
    talk = (
        pdata((1, 3, store))
        + pdata((1, 0, b"\x08\0\x16\0UI\0\0"))
        + pdata((1, 2, b""))
        + pdata((3, 3, ECHO_RQ))
    )
    for number in range(400):
        sock = connect(served)
        try:
            if number % 2:
                sock.sendall(mutated(opening, chance))
            else:
                sock.sendall(opening)
                read_pdu(sock)
                sock.sendall(mutated(talk, chance))
            sock.shutdown(socket.SHUT_WR)
            while read_pdu(sock)[0]:
                pass
        except OSError:
            pass
        sock.close()
        if number % 50 == 0:
            lives(served)
    lives(served)
    deadline = time.monotonic() + 20
    while [t for t in threading.enumerate() if t.name == "association"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [t for t in threading.enumerate() if t.name == "association"]
    assert not served.leftovers()


@hypothesis_settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_bytes_that_are_no_command_set_raise_only_what_is_announced(raw: bytes) -> None:
    try:
        read = command.decode(raw)
    except command.CommandError:
        return
    assert command.decode(command.encode(read)) == {
        **read,
        "CommandGroupLength": len(command.encode(read)) - 12,
    }


@hypothesis_settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_bytes_that_are_no_association_request_raise_only_what_is_announced(raw: bytes) -> None:
    for body in (raw, ECHO[6:80] + raw, ECHO[6:] + raw):
        try:
            negotiation.read_request(body)
        except (ProtocolError, negotiation.Reject):
            pass


# -- slow, idle and too many


def test_one_that_dribbles_its_request_is_dropped(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pacs.dimse.server.SET_UP_SECONDS", 0.6)
    sock = connect(served)
    ended = False
    for byte in ECHO:
        try:
            sock.sendall(bytes((byte,)))
            sock.settimeout(0.05)
            if sock.recv(1) == b"":
                ended = True
                break
        except TimeoutError:
            continue
        except OSError:
            ended = True
            break
    assert ended
    lives(served)


def test_one_that_dribbles_a_pdu_is_aborted(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "PDU_SECONDS", 0.6)
    sock = associated(served)
    raw = pdata((1, 3, ECHO_RQ))
    started = time.monotonic()
    sock.settimeout(0.05)
    got = b""
    for byte in raw:
        try:
            sock.sendall(bytes((byte,)))
            got = sock.recv(100)
            break
        except TimeoutError:
            continue
    assert got[:1] == bytes((stream.ABORT,))
    assert time.monotonic() - started < 20
    lives(served)


def test_an_idle_association_is_ended(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pacs.dimse.server.IDLE_SECONDS", 0.3)
    sock = associated(served)
    assert read_pdu(sock)[0] == stream.ABORT


def test_idle_and_dribbling_callers_keep_no_honest_one_out(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pacs.dimse.server.MAX_PENDING", 40)
    idle = [connect(served) for _ in range(120)]
    dribbling = [connect(served) for _ in range(20)]
    for number in range(40):
        for sock in dribbling:
            try:
                sock.sendall(ECHO[number : number + 1])
            except OSError:
                pass  # dropped: there are too many
        lives(served)
    for sock in idle + dribbling:
        sock.close()


def test_a_storm_of_images_leaves_slots_for_the_worklist(serve: Callable[..., Served]) -> None:
    served = serve(register=slow_find(1), limits=Limits(total=6, storage=3, unknown=2, one_address=100))
    images = [associated(served, [(CT, (EXPLICIT,))]) for _ in range(3)]
    with pytest.raises(AssociationRefused, match="for now.*local limit exceeded"):
        sender.associate(served.destination(), [(CT, (EXPLICIT,))])
    with sender.associate(served.destination(), [(WORKLIST, (IMPLICIT,))]) as assoc:
        assert assoc.contexts
    images.pop().close()
    deadline = time.monotonic() + 20
    while True:  # the slot is free once the listener has seen the end
        try:
            sender.associate(served.destination(), [(CT, (EXPLICIT,))]).release()
            break
        except AssociationRefused:
            assert time.monotonic() < deadline


def test_unknown_callers_and_single_addresses_have_limits_of_their_own(serve: Callable[..., Served]) -> None:
    served = serve(limits=Limits(total=10, storage=10, unknown=1, one_address=3))
    sock = connect(served)
    sock.sendall(request([(VERIFICATION, (IMPLICIT,))], calling="NOBODY"))
    assert read_pdu(sock)[0] == stream.ASSOCIATE_AC
    with pytest.raises(AssociationRefused, match="local limit"):
        sender.echo(served.destination(calling="NOBODY2"))
    held = [associated(served), associated(served)]
    with pytest.raises(AssociationRefused, match="local limit"):
        sender.echo(served.destination())
    for one in [sock, *held]:
        one.close()


# -- ends


def test_release_and_abort_end_an_association_at_any_point(served: Served) -> None:
    sock = associated(served)
    sock.sendall(pdata((1, 3, ECHO_RQ)) + stream.RELEASE_REQUEST)
    assert read_pdu(sock)[0] == stream.P_DATA
    assert read_pdu(sock)[0] == stream.RELEASE_RP
    assert read_pdu(sock)[0] == 0
    sock = associated(served)
    sock.sendall(stream.abort_pdu(0, 0))
    assert read_pdu(sock)[0] == 0
    sock = associated(served)
    sock.close()
    lives(served)


def test_a_listener_that_stops_lets_requests_end_and_idle_associations_go(
    serve: Callable[..., Served],
) -> None:
    served = serve(register=slow_find(4, seconds=0.2))
    idle = associated(served)
    busy = sender.associate(served.destination(), [(WORKLIST, (IMPLICIT,))])
    answered: list[int] = []

    def ask() -> None:
        context = busy.context_for(WORKLIST)
        assert context is not None
        asked = {"AffectedSOPClassUID": WORKLIST, "CommandField": 0x20, "MessageID": 1, "Priority": 0,
                 "CommandDataSetType": 1}  # fmt: skip
        busy.send(context, asked, b"\0\0")
        while not answered or answered[-1] == 0xFF00:
            answered.append(busy.next_message(20).command.status)

    thread = threading.Thread(target=ask)
    thread.start()
    while not answered and thread.is_alive():
        time.sleep(0.01)
    served.stopping.set()
    thread.join(20)
    assert answered[-1] == 0
    assert read_pdu(idle)[0] == stream.ABORT
    busy.abort()


def test_pdvs_are_cut_to_the_peers_length_and_put_together_again() -> None:
    payload = bytes(range(256)) * 10
    for most in (16, 100, 1024, 1 << 17):
        wire = b"".join(bytes(piece) for piece in stream.data_pdus(5, payload, command=False, max_data=most))
        at, got, last = 0, b"", 0
        while at < len(wire):
            kind, length = stream.HEADER.unpack_from(wire, at)
            assert kind == stream.P_DATA and length <= most
            for context, control, fragment in stream.pdvs(memoryview(wire)[at + 6 : at + 6 + length]):
                assert context == 5 and not control & 1
                got += bytes(fragment)
                last = control & 2
            at += 6 + length
        assert got == payload and last == 2
