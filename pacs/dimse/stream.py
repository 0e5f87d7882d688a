"""PDUs over a socket (PS3.8 section 9.3): read into preallocated memory, bounded and timed; written in one go."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator, Sequence

from pacs.dimse.errors import Closed, ProtocolError, TimedOut

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ = 0x01, 0x02, 0x03
P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = 0x04, 0x05, 0x06, 0x07

MAX_PDU = 128 * 1024  #: what we advertise: DCMTK sends no more, and larger ones gain next to nothing
MAX_CONTROL_PDU = 1024 * 1024
PDU_SECONDS = 60.0  #: for one whole PDU from its first byte, and for one write
TICK = 0.5  #: seconds after which a wait looks up, to see whether it should end

HEADER = struct.Struct(">BxI")
PDV_HEADER = struct.Struct(">IBB")
DATA_HEADER = struct.Struct(">BxIIBB")  #: of a P-DATA-TF PDU with one PDV

RELEASE_REQUEST = HEADER.pack(RELEASE_RQ, 4) + bytes(4)
RELEASE_RESPONSE = HEADER.pack(RELEASE_RP, 4) + bytes(4)

_FIXED_LENGTH = {ASSOCIATE_RJ: 4, RELEASE_RQ: 4, RELEASE_RP: 4, ABORT: 4}
_QUICKACK = getattr(socket, "TCP_QUICKACK", None)
#: Called at each tick of an idle wait; raises when the wait should end.
Patience = Callable[[], None]

_MAX_BUFFERS = 64  # a gathered write may take 1024 (IOV_MAX); larger ones gain nothing


def abort_pdu(source: int, reason: int) -> bytes:
    """A-ABORT; source 0 is the service user, 2 the provider (PS3.8 table 9-26)."""
    return HEADER.pack(ABORT, 4) + bytes((0, 0, source, reason if source == 2 else 0))


def reject_pdu(result: int, source: int, reason: int) -> bytes:
    """A-ASSOCIATE-RJ (PS3.8 table 9-21)."""
    return HEADER.pack(ASSOCIATE_RJ, 4) + bytes((0, result, source, reason))


def check_length(pdu_type: int, length: int, max_data: int) -> None:
    """Raise ProtocolError unless a PDU of this type may be this long; asked before a byte of it is read."""
    fixed = _FIXED_LENGTH.get(pdu_type)
    if fixed is not None:
        good = length == fixed
    elif pdu_type in (ASSOCIATE_RQ, ASSOCIATE_AC):
        good = 68 <= length <= MAX_CONTROL_PDU
    elif pdu_type == P_DATA:
        good = 6 <= length <= max_data
    else:
        raise ProtocolError(f"PDU type {pdu_type:02X}", ProtocolError.UNRECOGNIZED_PDU)
    if not good:
        raise ProtocolError(f"PDU type {pdu_type:02X} of {length} bytes")


def prepare(sock: socket.socket) -> None:
    """Set what every DICOM connection of ours has: no Nagle, keep-alive, waits that look up each TICK."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if isinstance(sock, ssl.SSLSocket):
        sock.settimeout(TICK)
        return
    sock.setblocking(True)
    tick = struct.pack("ll", int(TICK), int(TICK % 1 * 1_000_000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, tick)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, tick)


class Stream:
    """One connection. Used by one thread; `head` is what was read from it before."""

    def __init__(self, sock: socket.socket, *, head: bytes = b"", max_data: int = MAX_PDU) -> None:
        prepare(sock)
        self.sock = sock
        self.max_data = max_data  #: the length of P-DATA-TF that we take
        self._memory = bytearray(max(2 * max_data, len(head)) + 4096)
        self._view = memoryview(self._memory)
        self._view[: len(head)] = head
        self._start, self._end = 0, len(head)
        self._tls = isinstance(sock, ssl.SSLSocket)

    # -- reading

    def read_pdu(self, idle_seconds: float, *, patience: Patience | None = None) -> tuple[int, memoryview]:
        """The next PDU: its type and its body, which is valid until the next call.

        Waits `idle_seconds` for its first byte (asking `patience` at each tick), then PDU_SECONDS for all
        of it. Raises TimedOut, Closed or ProtocolError.
        """
        if self._start == self._end:
            self._start = self._end = 0
            self._receive_first(time.monotonic() + idle_seconds, patience)
        deadline = time.monotonic() + PDU_SECONDS
        self._need(6, deadline)
        pdu_type, length = HEADER.unpack_from(self._memory, self._start)
        check_length(pdu_type, length, self.max_data)
        if 6 + length > len(self._memory):
            self._grow(6 + length)
        self._need(6 + length, deadline)
        begin = self._start + 6
        self._start = begin + length
        return pdu_type, self._view[begin : self._start]

    def waiting(self) -> bool:
        """Whether bytes of the peer are there to be read without waiting."""
        if self._start < self._end or (self._tls and self.sock.pending()):  # type: ignore[attr-defined]
            return True
        return bool(select.select([self.sock], [], [], 0)[0])

    def _receive_first(self, deadline: float, patience: Patience | None) -> None:
        while not self._receive():
            if patience is not None:
                patience()
            if time.monotonic() > deadline:
                raise TimedOut("idle for too long")

    def _need(self, count: int, deadline: float) -> None:
        while self._end - self._start < count:
            if self._start + count > len(self._memory):
                held = self._end - self._start
                self._view[:held] = self._view[self._start : self._end]
                self._start, self._end = 0, held
            self._receive()
            if time.monotonic() > deadline and self._end - self._start < count:
                raise TimedOut("a PDU took too long")

    def _receive(self) -> bool:
        """Read what is there into free memory; False when a tick passed without a byte."""
        try:
            if _QUICKACK is not None:
                # The peer's Nagle waits for our ACK, and ours would wait 40 ms for company; it must be said
                # anew before each receive, since the kernel forgets it.
                self.sock.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
            count = self.sock.recv_into(self._view[self._end :])
        except (BlockingIOError, TimeoutError, InterruptedError):
            return False
        except OSError as error:
            raise Closed(f"connection broke: {type(error).__name__}") from None
        if count == 0:
            raise Closed("the peer closed the connection")
        self._end += count
        return True

    def _grow(self, size: int) -> None:
        """Control PDUs are rare and may be longer than our memory: take more, once, within their cap."""
        memory = bytearray(size)
        held = self._end - self._start
        memory[:held] = self._view[self._start : self._end]
        self._memory, self._view = memory, memoryview(memory)
        self._start, self._end = 0, held

    # -- writing

    def write(self, *buffers: bytes | bytearray | memoryview) -> None:
        """Send all buffers, in as few writes as the kernel allows. Raises TimedOut or Closed."""
        deadline = time.monotonic() + PDU_SECONDS
        for begin in range(0, len(buffers), _MAX_BUFFERS):
            self._write(list(buffers[begin : begin + _MAX_BUFFERS]), deadline)

    def _write(self, buffers: list[bytes | bytearray | memoryview], deadline: float) -> None:
        while buffers:
            try:
                sent = self.sock.send(b"".join(buffers)) if self._tls else self.sock.sendmsg(buffers)
            except (BlockingIOError, TimeoutError, InterruptedError):
                if time.monotonic() > deadline:
                    raise TimedOut("the peer does not take what we send") from None
                continue
            except OSError as error:
                raise Closed(f"connection broke: {type(error).__name__}") from None
            while buffers and sent >= len(buffers[0]):
                sent -= len(buffers[0])
                del buffers[0]
            if sent:
                buffers[0] = memoryview(buffers[0])[sent:]
            if buffers and time.monotonic() > deadline:
                raise TimedOut("the peer does not take what we send")

    def close(self) -> None:
        """Close the connection; never raises."""
        try:
            self.sock.close()
        except OSError:
            pass

    def close_after_peer(self, seconds: float = 2.0) -> None:
        """Close once the peer has (PS3.8 Sta13), so that our last PDU is not lost to a reset; bounded."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                self._start = self._end = 0
                self._receive()
        except (OSError, Closed):
            pass
        self.close()


def pdvs(body: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """The PDVs of a P-DATA-TF body: (context id, message control header, fragment) (PS3.8 9.3.5, annex E)."""
    at, end = 0, len(body)
    while at < end:
        if end - at < 6:
            raise ProtocolError("a PDV is cut off")
        length, context_id, control = PDV_HEADER.unpack_from(body, at)
        if length < 2 or at + 4 + length > end:
            raise ProtocolError("a PDV does not fit its PDU")
        yield context_id, control, body[at + 6 : at + 4 + length]
        at += 4 + length


Payload = bytes | memoryview | Sequence["bytes | memoryview"]


def data_pdus(
    context_id: int, payload: Payload, *, command: bool, max_data: int
) -> Iterator[bytes | memoryview]:
    """Header and fragments, in turn, of the P-DATA-TF PDUs that carry `payload`; none is longer than `max_data`.

    A payload in several pieces (a new header, the old pixels) is sent as one, without being joined first.
    """
    pieces = [payload] if isinstance(payload, bytes | memoryview) else list(payload)
    left = sum(map(len, pieces))
    most = max_data - 6
    if left <= most:
        yield DATA_HEADER.pack(P_DATA, left + 6, left + 2, context_id, 3 if command else 2)
        yield from pieces
        return
    views = iter([memoryview(piece) for piece in pieces])
    view = next(views)
    while left:
        count = min(most, left)
        left -= count
        control = (1 if command else 0) | (0 if left else 2)
        yield DATA_HEADER.pack(P_DATA, count + 6, count + 2, context_id, control)
        while count:
            part = view[:count]
            yield part
            count -= len(part)
            view = view[len(part) :]
            if not view and left + count:
                view = next(views)
