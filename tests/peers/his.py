"""A HIS that receives MLLP messages as a script tells it to: accepts, refuses, is late, names another message."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

VT, END = b"\x0b", b"\x1c\r"

Reply = Callable[["Received"], "bytes | None"]


@dataclass(frozen=True)
class Received:
    """One message as it came: its bytes, on which connection (from 1), and its own number (from 1)."""

    raw: bytes
    connection: int
    number: int

    @property
    def control_id(self) -> str:
        """MSH-10."""
        return self.raw.split(b"\r")[0].split(b"|")[9].decode()

    def field(self, segment: str, number: int) -> str:
        """A field of the first segment of that name, as sent."""
        for line in self.raw.decode().split("\r"):
            parts = line.split("|")
            if parts[0] == segment:
                return parts[number] if number < len(parts) else ""
        return ""


def ack(code: str = "AA", *, of: str = "", error: str = "") -> Reply:
    """A reply that acknowledges: `of` names another MSH-10 than the received one, `error` is an ERR-3 code."""

    def reply(received: Received) -> bytes:
        err = f"ERR||PID^1^3|{error}|E\r" if error else ""
        text = (
            f"MSH|^~\\&|HIS|HOSP|ORDERLY|SITE|20260301||ACK|A{received.number}|P|2.5.1\r"
            f"MSA|{code}|{of or received.control_id}\r{err}"
        )
        return VT + text.encode() + END

    return reply


def late(seconds: float, then: Reply | None = None) -> Reply:
    """A reply that comes after a while."""

    def reply(received: Received) -> bytes | None:
        time.sleep(seconds)
        return (then or ack())(received)

    return reply


def silence(received: Received) -> None:
    """No answer at all."""


def garbage(received: Received) -> bytes:
    """An answer that is no HL7."""
    return VT + b"hello" + END


@dataclass
class His:
    """The receiver. `script` replies to the first messages in turn; afterwards `otherwise` does."""

    script: list[Reply] = field(default_factory=list)
    otherwise: Reply = field(default_factory=ack)
    received: list[Received] = field(default_factory=list)
    connections: int = 0

    def __post_init__(self) -> None:
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._door.getsockname()[1]
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> His:
        return self

    def __exit__(self, *exc: object) -> None:
        self._door.close()
        for one in self._sockets:
            one.close()

    def hang_up(self) -> None:
        """Close every connection; new ones are taken."""
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def ids(self) -> list[str]:
        """The control ids in the order they came."""
        return [r.control_id for r in self.received]

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._door.accept()
            except OSError:
                return
            self._sockets.append(peer)
            self.connections += 1
            threading.Thread(target=self._serve, args=(peer, self.connections), daemon=True).start()

    def _serve(self, peer: socket.socket, connection: int) -> None:
        waiting = b""
        try:
            while data := peer.recv(65536):
                waiting += data
                while END in waiting:
                    frame, waiting = waiting.split(END, 1)
                    self._answer(peer, frame.lstrip(VT), connection)
        except OSError:
            pass

    def _answer(self, peer: socket.socket, raw: bytes, connection: int) -> None:
        with self._lock:
            received = Received(raw, connection, len(self.received) + 1)
            self.received.append(received)
            reply = self.script.pop(0) if self.script else self.otherwise
        answer = reply(received)
        if answer:
            peer.sendall(answer)


def dead_port() -> int:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        return int(door.getsockname()[1])
