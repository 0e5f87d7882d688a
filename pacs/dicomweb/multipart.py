"""multipart/related, written in pieces and read from a stream (RFC 2387, PS3.18 8.6.1)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

MAX_PART_HEADERS = 16 * 1024
MAX_PARTS = 100_000


class BadMultipart(ValueError):
    """The body is no multipart message; says what is wrong."""


def boundary() -> str:
    """A boundary that no content contains but by an accident of 128 bits."""
    return f"orderly-{secrets.token_hex(16)}"


def write(parts: Iterable[tuple[str, Iterable[bytes]]], mark: str) -> Iterator[bytes]:
    """The body: each part is its Content-Type and the pieces of its content."""
    for content_type, pieces in parts:
        yield f"--{mark}\r\nContent-Type: {content_type}\r\n\r\n".encode("ascii")
        yield from pieces
        yield b"\r\n"
    yield f"--{mark}--\r\n".encode("ascii")


@dataclass(slots=True)
class Part:
    """A part being read: its headers (names in lower case) and its content, to be iterated once."""

    headers: dict[str, str]
    content: Iterator[bytes]


def read(receive: Callable[[int], bytes], mark: str, size: int = 1 << 18) -> Iterator[Part]:
    """The parts of a body, as it comes in; `receive(n)` gives up to n bytes, b"" at the end.

    A part's content that was not iterated to its end is passed over. Raises BadMultipart.
    """
    reader = _Reader(receive, mark, size)
    reader.skip_preamble()
    for _ in range(MAX_PARTS):
        if reader.at_end():
            return
        headers = reader.headers()
        part = Part(headers, reader.content())
        yield part
        for _rest in part.content:
            pass
    raise BadMultipart(f"more than {MAX_PARTS} parts")


class _Reader:
    def __init__(self, receive: Callable[[int], bytes], mark: str, size: int) -> None:
        if not 1 <= len(mark) <= 200:
            raise BadMultipart("the boundary is missing or too long")
        self.delimiter = b"\r\n--" + mark.encode("latin-1", "replace")
        self.receive, self.size = receive, size
        self.buffer = b"\r\n"  # so that a boundary at the very beginning is found like any other

    def more(self) -> bool:
        chunk = self.receive(self.size)
        self.buffer += chunk
        return bool(chunk)

    def skip_preamble(self) -> None:
        for _ in self.content():
            pass

    def at_end(self) -> bool:
        """What follows a boundary: two hyphens end the message, a line end opens a part."""
        while len(self.buffer) < 2:
            if not self.more():
                raise BadMultipart("the body ends behind a boundary")
        if self.buffer.startswith(b"--"):
            return True
        while b"\r\n" not in self.buffer[:1024]:
            if len(self.buffer) >= 1024 or not self.more():
                raise BadMultipart("no line end behind a boundary")
        self.buffer = self.buffer[self.buffer.index(b"\r\n") :]
        return False

    def headers(self) -> dict[str, str]:
        """The header lines of a part; the buffer stands at the line end before the first of them."""
        while b"\r\n\r\n" not in self.buffer[: MAX_PART_HEADERS + 4]:
            if len(self.buffer) > MAX_PART_HEADERS or not self.more():
                raise BadMultipart("the headers of a part do not end")
        block, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        found = {}
        for line in block.decode("latin-1").split("\r\n"):
            name, colon, value = line.partition(":")
            if colon:
                found[name.strip().lower()] = value.strip()
        return found

    def content(self) -> Iterator[bytes]:
        """Bytes up to the next boundary, which is taken off."""
        keep = len(self.delimiter)
        while True:
            at = self.buffer.find(self.delimiter)
            if at >= 0:
                piece, self.buffer = self.buffer[:at], self.buffer[at + keep :]
                if piece:
                    yield piece
                return
            if len(self.buffer) > keep:
                piece, self.buffer = self.buffer[:-keep], self.buffer[-keep:]
                yield piece
            if not self.more():
                raise BadMultipart("the body ends before its last boundary")
