"""A listener on a real socket, in this process, over the test's database; and a peer that speaks to it."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvloop
from django.db import connections, transaction

from integration import inbox, sources
from integration.hl7v2.framing import Decoder, Frame, encode
from integration.hl7v2.listener import Limits, Listener
from integration.hl7v2.reading import Message, parse
from integration.models import Source
from ris.services import authorities, catalogue


class Door:
    """A running listener: its port, and how to stop it."""

    def __init__(self, limits: Limits, tls: bool = False) -> None:
        self._tls = tls
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self._loop = uvloop.new_event_loop()
        self._started = threading.Event()
        self.listener: Listener | None = None
        self._limits = limits
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._started.wait(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        self.listener = Listener(self._limits)
        await self.listener.start(*((None, self.socket) if self._tls else (self.socket, None)))
        self._started.set()
        await self._stop.wait()
        await self.listener.stop()

    def stop(self) -> None:
        """Drain and stop."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(30)
            assert not self._thread.is_alive()


class Client:
    """An MLLP peer on one connection."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 60)
        self.decoder = Decoder(1 << 24)
        self.frames: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self, seconds: float = 60) -> Message:
        """The next answer."""
        raw = self.read_raw(seconds)
        assert raw is not None, "the connection was closed without an answer"
        return parse(raw)

    def read_raw(self, seconds: float = 60) -> bytes | None:
        """The next answer's bytes; None when the connection was closed."""
        deadline = time.monotonic() + seconds
        while not self.frames:
            self.socket.settimeout(max(0.01, deadline - time.monotonic()))
            data = self.socket.recv(65536)
            if not data:
                return None
            self.frames += [e.payload for e in self.decoder.feed(data) if isinstance(e, Frame)]
        return self.frames.pop(0)

    def send(self, payload: bytes) -> Message:
        """Send a message and read its acknowledgement."""
        self.write(encode(payload))
        return self.read()

    def is_closed(self, seconds: float = 60) -> bool:
        """Whether the other side closes the connection."""
        self.socket.settimeout(seconds)
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False

    def close(self) -> None:
        self.socket.close()


@contextmanager
def holding(work: Callable[[], object]) -> Iterator[None]:
    """In a transaction of another connection: do this, and keep its locks until the end of the block."""
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with transaction.atomic():
                work()
                held.set()
                release.wait(120)
        finally:
            connections.close_all()

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert held.wait(30)
        yield
    finally:
        release.set()
        holder.join()


@pytest.fixture
def fresh_memory():
    """What processes keep in memory belongs to another test's database."""
    _forget()
    yield
    _forget()


def _forget() -> None:
    sources.forget()
    authorities.forget()
    catalogue.forget()
    inbox._left.clear()


@pytest.fixture
def any_source(transactional_db, fresh_memory) -> Source:
    """A source that stands for everybody."""
    return Source.objects.create(name="anybody")


@pytest.fixture
def open_door(transactional_db, fresh_memory):
    """Start a listener with the given limits."""
    opened: list[Door] = []

    def make(tls: bool = False, **limits) -> Door:
        opened.append(Door(Limits(**{"threads": 4, **limits}), tls))
        return opened[-1]

    yield make
    for door in opened:
        door.stop()


@pytest.fixture
def door(open_door, any_source) -> Door:
    """A listener that takes messages from everybody."""
    return open_door()


@pytest.fixture
def connect():
    """Open connections that are closed after the test."""
    opened: list[Client] = []

    def make(door: Door) -> Client:
        opened.append(Client(door.port))
        return opened[-1]

    yield make
    for client in opened:
        client.close()


def wait_until(true: Callable[[], Any], seconds: float = 30) -> None:
    """Wait for a condition, bounded."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)
