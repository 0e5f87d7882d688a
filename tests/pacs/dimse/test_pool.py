"""The pool of receiving processes: limits that hold for all of them together, and slots that a dead one gives back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pacs.dimse import stream
from pacs.dimse.admission import Admission, Limits, Slots, StaticDirectory
from pacs.dimse.negotiation import Reject
from pacs.dimse.registry import Registry
from pacs.dimse.server import Server
from pacs.dimse.shared import Table, TableBusy
from tests.engine import Engine
from tests.pacs.dimse.conftest import engine_for_scanner
from tests.pacs.dimse.test_protocol import CT, EXPLICIT, IMPLICIT, VERIFICATION, WORKLIST, read_pdu, request

STORAGE = [(CT, (EXPLICIT,))]
QUERY = [(WORKLIST, (IMPLICIT,))]


def test_slots_of_one_table_are_counted_together_and_those_of_a_dead_process_forgotten() -> None:
    limits = Limits(total=4, storage=3, unknown=1, one_address=2)
    fd = Table.file(limits.total)
    tables = [Table(limits.total, fd, owner) for owner in (1, 2)]
    first, second = (Slots(limits, table) for table in tables)
    try:
        with (
            first.one("10.0.0.1", known=True, storage=True),
            second.one("10.0.0.1", known=True, storage=True),
        ):
            assert (first.taken, second.taken, tables[0].count()) == (1, 1, 2)
            with pytest.raises(Reject, match="address: 2"), first.one("10.0.0.1", known=True, storage=False):
                pass
            with second.one("10.0.0.2", known=True, storage=True):
                with pytest.raises(Reject, match="storage: 3"), first.one("::1", known=True, storage=True):
                    pass
                with (
                    first.one("fe80::1", known=False, storage=False),
                    pytest.raises(Reject, match="total: 4"),
                    first.one("::2", known=True, storage=False),
                ):
                    pass
                assert tables[1].count() == 3
            tables[0].forget(2)
            assert tables[1].count() == 1
        assert tables[0].count() == 0
    finally:
        os.close(fd)


def test_a_table_that_a_stopped_process_holds_refuses_instead_of_waiting_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pacs.dimse.shared.LOCK_SECONDS", 0.05)
    fd = Table.file(4)
    hold = (
        "import fcntl, sys; fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX); print('held', flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(fd)], pass_fds=[fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline()
        table = Table(4, fd)
        with pytest.raises(TableBusy):
            table.take(0, "::1", lambda counts: None)
        with (
            pytest.raises(Reject, match="held"),
            Slots(Limits(total=4), table).one("::1", known=True, storage=False),
        ):
            pass
    finally:
        holder.kill()
        holder.communicate()
        os.close(fd)


def test_a_caller_that_was_dropped_for_another_may_still_have_spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both in one look at the sockets: a new caller, and bytes of the one that must go for it."""
    monkeypatch.setattr("pacs.dimse.server.MAX_PENDING", 1)
    registry, slots = Registry(), Slots()
    admission = Admission(StaticDirectory([]), registry, ["ORDERLY"], slots)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server({listener: None}, registry, admission, slots)
        look = server._selector.select

        def callers_first(seconds: float) -> list[Any]:
            deadline = time.monotonic() + 20
            while len(found := look(seconds)) < wanted and time.monotonic() < deadline:
                pass
            return sorted(found, key=lambda event: event[0].fileobj is not listener)

        monkeypatch.setattr(server._selector, "select", callers_first)
        wanted = 1
        with socket.create_connection(listener.getsockname()) as first:
            server._loop(1)
            first.sendall(b"\1")
            with socket.create_connection(listener.getsockname()) as second:
                wanted = 2
                server._loop(1)
                assert [pending.sock.getpeername() for pending in server._pending.values()] == [
                    second.getsockname()
                ]
                first.settimeout(20)
                assert _has_ended(first)
        server._drain()


def test_limits_in_proportion_and_too_few() -> None:
    assert Limits.of(256) == Limits()
    with pytest.raises(ValueError, match="16 or more"):
        Limits.of(8)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine whose three receiving processes take 16 associations: 12 with storage, 8 from an address."""
    settings = {"ORDERLY_DICOM_ASSOCIATIONS": "16", "ORDERLY_DICOM_PROCESSES": "3"}
    with engine_for_scanner(tmp_path_factory.mktemp("pool"), **settings) as engine:
        yield engine


def ask(engine: Engine, address: str, contexts: list[tuple[str, tuple[str, ...]]]) -> socket.socket | None:
    """An association from this loopback address; None when the limit is reached."""
    sock = socket.create_connection(
        ("127.0.0.1", engine.port("dicom")), timeout=60, source_address=(address, 0)
    )
    sock.sendall(request(contexts))
    kind, body = read_pdu(sock)
    if kind == stream.ASSOCIATE_AC:
        return sock
    sock.close()
    assert (kind, body[1:]) == (stream.ASSOCIATE_RJ, bytes((2, 3, 2)))
    return None


def members(engine: Engine) -> list[int]:
    """The processes of the pool but its first."""
    tasks = Path(f"/proc/{engine.pid('dicom')}/task")
    return [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()]


def test_limits_hold_for_all_processes_together_and_a_killed_one_gives_its_slots_back(pool: Engine) -> None:
    held = [ask(pool, f"127.0.0.{2 + number % 2}", STORAGE) for number in range(12)]
    assert all(held)
    assert ask(pool, "127.0.0.4", STORAGE) is None  # the rest is for others
    held += [ask(pool, "127.0.0.2", QUERY) for _ in range(2)]
    assert all(held)
    assert ask(pool, "127.0.0.2", QUERY) is None  # eight from one address
    held += [ask(pool, "127.0.0.4", QUERY) for _ in range(2)]
    assert all(held)
    assert ask(pool, "127.0.0.5", [(VERIFICATION, (IMPLICIT,))]) is None  # sixteen in all

    def another() -> socket.socket | None:
        return ask(pool, "127.0.0.6", STORAGE)

    for pid in members(pool):
        os.kill(pid, signal.SIGKILL)
    ended = [sock for sock in held if sock and _has_ended(sock)]
    if not ended and held[0]:  # the pool shares the work, so the killed ones served some: all but surely
        held[0].close()
    held.append(pool.wait_for(another))
    for sock in held:
        if sock:
            sock.close()
    held = [pool.wait_for(lambda: ask(pool, "127.0.0.7", QUERY)) for _ in range(8)]
    for sock in held:
        assert sock
        sock.close()


def _has_ended(sock: socket.socket) -> bool:
    sock.settimeout(1)
    try:
        return sock.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True
