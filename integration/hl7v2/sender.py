"""An MLLP client: one message in flight, done only by the ACK that names it, the socket closed after a time-out."""

import logging
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from integration.hl7v2 import framing
from integration.hl7v2.acks import AckCode, asking_of, build
from integration.hl7v2.errors import Refused
from integration.hl7v2.framing import Decoder, Fault, Frame
from integration.hl7v2.reading import Message, parse

logger = logging.getLogger(__name__)

_LARGEST_ACK = 1 << 20
_MOST_FOREIGN = 100
# A connection that has rested this long may be let go by its peer at the very moment we write.
_RESTED_SECONDS = 1.0


class NotAnswered(Exception):
    """No ACK that names the message came. The peer may or may not have it; the same bytes are sent again later."""


class _HungUp(NotAnswered):
    """The peer closed the connection without a word."""


class Unreachable(NotAnswered):
    """No connection: the peer cannot have the message."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The ACK that named our message: its code (MSA-1), ERR-3 codes, and its bytes."""

    raw: bytes
    code: str
    text: str
    error_codes: tuple[str, ...]

    @property
    def accepted(self) -> bool:
        """Whether the peer has taken the message over: AA or CA."""
        return self.code in ("AA", "CA")

    def ruled(self, rules: Mapping[str, str]) -> str:
        """`accept`, `park` or `retry`: the closest of a destination's rules (`AE:207`, `207`, `AE`), else our own."""
        for code in self.error_codes:
            for key in (f"{self.code}:{code}", code):
                if key in rules:
                    return rules[key]
        if self.code in rules:
            return rules[self.code]
        if self.accepted:
            return "accept"
        return "park" if self.permanent else "retry"

    @property
    def permanent(self) -> bool:
        """Whether sending the same bytes again cannot help: table 0357 says 200 to 203, or AE/CE without 206, 207."""
        if any(c in ("206", "207") for c in self.error_codes):
            return False
        return self.code in ("AE", "CE") or any(c in ("200", "201", "202", "203") for c in self.error_codes)


class Sender:
    """One connection to one endpoint. Not for several threads at once.

    `connect_timeout`, `ack_timeout` and `write_timeout` are seconds. `tls` wraps the socket, with `server_name`
    checked when the context checks names. With `application_ack` (enhanced mode) a CA is not the end: the
    application's AA, AE or AR follows as a message of its own, which is acknowledged where it asks for that.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        server_name: str = "",
        connect_timeout: float = 5.0,
        ack_timeout: float = 30.0,
        write_timeout: float = 30.0,
        application_ack: bool = False,
    ) -> None:
        self.host, self.port = host, port
        self.tls, self.server_name = tls, server_name
        self.connect_timeout, self.ack_timeout, self.write_timeout = (
            connect_timeout,
            ack_timeout,
            write_timeout,
        )
        self.application_ack = application_ack
        self._socket: socket.socket | None = None
        self._decoder = Decoder(_LARGEST_ACK)
        self._used_at = 0.0

    def __enter__(self) -> "Sender":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def connected(self) -> bool:
        """Whether a connection is open, as far as we know."""
        return self._socket is not None

    def connect(self) -> None:
        """Open the connection if it is not. Raises Unreachable."""
        if self._socket is not None:
            return
        try:
            plain = socket.create_connection((self.host, self.port), self.connect_timeout)
        except OSError as error:
            raise Unreachable(f"no connection to {self.host}:{self.port}: {error}") from error
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = (
                self.tls.wrap_socket(plain, server_hostname=self.server_name or self.host)
                if self.tls
                else plain
            )
        except (OSError, ValueError) as error:
            plain.close()
            raise Unreachable(f"no TLS connection to {self.host}:{self.port}: {error}") from error
        self._decoder = Decoder(_LARGEST_ACK)

    def close(self) -> None:
        """Close the connection; the next message opens a new one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def send(self, payload: bytes, control_id: str) -> Answer:
        """Send one message and wait for the ACK whose MSA-2 is `control_id`.

        ACKs with another MSA-2 are logged and not taken. A connection that has rested and breaks without a word is
        replaced by a new one, once. Raises Unreachable or NotAnswered; the connection is closed then, so that a
        late ACK cannot be taken for the next message's.
        """
        frame = framing.encode(payload)
        self._drop_if_closed()
        rested = self.connected and time.monotonic() - self._used_at > _RESTED_SECONDS
        try:
            return self._send(frame, control_id)
        except _HungUp:
            if not rested:
                raise
        return self._send(frame, control_id)

    def _send(self, frame: bytes, control_id: str) -> Answer:
        self.connect()
        assert self._socket is not None
        try:
            self._socket.settimeout(self.write_timeout)
            self._socket.sendall(frame)
            answer = self._wait(control_id)
        except NotAnswered:
            self.close()
            raise
        except (ConnectionResetError, BrokenPipeError) as error:
            self.close()
            raise _HungUp(f"the connection to {self.host}:{self.port} broke: {error}") from error
        except OSError as error:
            self.close()
            raise NotAnswered(f"the connection to {self.host}:{self.port} broke: {error}") from error
        except BaseException:
            self.close()
            raise
        self._used_at = time.monotonic()
        return answer

    def _wait(self, control_id: str) -> Answer:
        assert self._socket is not None
        deadline = time.monotonic() + self.ack_timeout
        foreign, heard = 0, False
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise NotAnswered(f"no ACK from {self.host}:{self.port} within {self.ack_timeout:g} s")
            self._socket.settimeout(min(left, 0.25) if self._decoder.waiting_for_end else left)
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                events = self._decoder.settle()
            else:
                events = self._decoder.feed(data) if data else self._decoder.close()
                if not data and not events:
                    kind = NotAnswered if heard else _HungUp
                    raise kind(f"{self.host}:{self.port} closed the connection without an ACK")
            answer = None
            heard = heard or bool(events)
            for event in events:
                found = _answer(event)
                if found and found[0] == control_id and answer is None:
                    if self.application_ack and found[1].code == "CA":
                        deadline = time.monotonic() + self.ack_timeout
                        continue
                    answer = found[1]
                    self._acknowledge(answer)
                    continue
                foreign += 1
                logger.warning(
                    "peer %s:%s sent something that is no ACK of our message", self.host, self.port
                )
                if foreign > _MOST_FOREIGN:
                    raise NotAnswered(f"{self.host}:{self.port} keeps sending what is no ACK of our message")
            if answer:
                return answer

    def _acknowledge(self, answer: Answer) -> None:
        """The commit ACK of an application ACK that asks for one in its own MSH-15."""
        asked = asking_of(answer.raw)
        if self._socket is None or asked.accept not in ("AL", "SU") or answer.code[:1] != "A":
            return
        self._socket.settimeout(self.write_timeout)
        self._socket.sendall(framing.encode(build(asked, AckCode.CA, at=datetime.now(UTC))))

    def _drop_if_closed(self) -> None:
        """Notice a peer that closed the idle connection, and read past surplus ACKs, before the next message."""
        if self._socket is None:
            return
        try:
            self._socket.settimeout(0.0)
            while data := self._socket.recv(65536):
                for _ in self._decoder.feed(data):
                    logger.warning("peer %s:%s sent a surplus ACK", self.host, self.port)
            self.close()
        except (BlockingIOError, ssl.SSLWantReadError):
            if self._decoder.open_length:  # half an ACK of something else: begin anew
                self.close()
        except OSError:
            self.close()


def _answer(event: Frame | Fault) -> tuple[str, Answer] | None:
    """MSA-2 and the answer in a frame; None when it is no acknowledgement."""
    if isinstance(event, Fault):
        return None
    try:
        message = parse(event.payload)
    except Refused:
        return None
    msa = message.first("MSA")
    if not msa:
        return None
    return msa.value(2).strip(), Answer(
        event.payload, msa.value(1).strip().upper(), _text(message), _codes(message)
    )


def _text(message: Message) -> str:
    msa = message.first("MSA")
    said = [msa.value(3)]
    said += [e.value(8) or e.value(7) or e.value(3, 2) for e in message.all("ERR")]
    return "; ".join(t for t in said if t)[:500]


def _codes(message: Message) -> tuple[str, ...]:
    codes = []
    for err in message.all("ERR"):
        code = err.value(3, 1) or err.value(1, 4)
        if code:
            codes.append(code.strip())
    return tuple(codes)
