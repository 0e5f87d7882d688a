"""The door at full size: ten thousand malformed PDUs; a thousand idle and fifty slow callers; honest work beside."""

from __future__ import annotations

import os
import random
import resource
import selectors
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pacs.dimse import command, sender, stream
from pacs.dimse.sender import Destination
from tests.conftest import require_peer
from tests.engine import Engine
from tests.pacs.dimse.conftest import Beside, engine_for_scanner
from tests.pacs.dimse.test_pool import members
from tests.pacs.dimse.test_protocol import (
    CT,
    ECHO,
    ECHO_RQ,
    EXPLICIT,
    IMPLICIT,
    VERIFICATION,
    mutated,
    pdata,
    read_pdu,
    request,
)
from tests.pacs.dimse.test_store import made, write_part10

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SECONDS = 20  #: no C-ECHO takes longer, however loaded the machine; the gate itself, one second, is printed
GROWTH = 50 * 1024 * 1024


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with engine_for_scanner(tmp_path_factory.mktemp("gates")) as engine:
        yield engine


def destination(engine: Engine) -> Destination:
    return Destination("127.0.0.1", engine.port("dicom"), "ORDERLY", "SCANNER")


def processes(engine: Engine) -> dict[int, int]:
    """Resident bytes of each receiving process."""
    pids = [engine.pid("dicom"), *members(engine)]
    page = os.sysconf("SC_PAGE_SIZE")
    return {pid: int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page for pid in pids}


class Watch(Beside):
    """Asks C-ECHO again and again while something else goes on."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self.seconds: list[float] = []
        self.troubles: list[str] = []

    def run(self) -> None:
        while not self.stopping.is_set():
            started = time.monotonic()
            try:
                assert sender.echo(destination(self._engine), SECONDS) == 0
            except Exception as error:
                self.troubles.append(f"{type(error).__name__}: {error}")
            self.seconds.append(time.monotonic() - started)
            self.stopping.wait(0.1)


OPENING = request([(CT, (EXPLICIT,)), (VERIFICATION, (IMPLICIT,))])
STORE_RQ = command.encode(
    {"AffectedSOPClassUID": CT, "AffectedSOPInstanceUID": "1.2.3", "CommandField": 1, "MessageID": 1, "Priority": 0,
     "CommandDataSetType": 1}
)  # fmt: skip
WELL_FORMED = {
    "associate": OPENING,
    "data": pdata((1, 3, STORE_RQ)) + pdata((1, 2, b"\x08\0\x16\0UI\0\0")) + pdata((3, 3, ECHO_RQ)),
    "release": stream.RELEASE_REQUEST,
    "abort": stream.abort_pdu(0, 0),
    "accept": stream.HEADER.pack(stream.ASSOCIATE_AC, len(OPENING) - 6) + OPENING[6:],
    "reject": stream.reject_pdu(1, 1, 1),
}


def malformed(chance: random.Random) -> tuple[bool, bytes]:
    """Whether it comes after an association was made, and the bytes."""
    kind = chance.choice(list(WELL_FORMED))
    raw = WELL_FORMED[kind]
    after = kind != "associate" or chance.random() < 0.2
    dice = chance.random()
    if dice < 0.15:  # a length that is a lie
        return after, raw[:2] + chance.choice((b"\xff\xff\xff\xff", bytes(4), b"\0\2\0\7")) + raw[6:]
    if dice < 0.25:  # a type that is none
        return after, bytes((chance.choice((0, 8, 9, 0x47, 0xFF)),)) + raw[1:]
    if dice < 0.35:
        return after, raw[: chance.randrange(1, len(raw))]
    return after, mutated(raw, chance)


def throw(engine: Engine, count: int, seed: int) -> int:
    """Send malformed PDUs, each on a connection of its own; gives how many were sent."""
    chance = random.Random(seed)
    sent = 0
    for _ in range(count):
        after, raw = malformed(chance)
        with socket.create_connection(("127.0.0.1", engine.port("dicom")), timeout=60) as sock:
            try:
                if after:
                    sock.sendall(OPENING)
                    read_pdu(sock)
                sock.sendall(raw)
                sock.shutdown(socket.SHUT_WR)
                while read_pdu(sock)[0]:
                    pass
            except OSError:
                pass  # it hung up on us: that is an answer too
            sent += 1
    return sent


def test_ten_thousand_malformed_pdus_move_nothing(engine: Engine) -> None:
    throw(engine, 500, 1)  # what grows at first use has grown
    before = processes(engine)
    sent: list[int] = []
    with Watch(engine) as watch:
        threads = [
            threading.Thread(target=lambda seed=seed: sent.append(throw(engine, 2500, seed)))
            for seed in range(2, 6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(sent) == 10_000
    assert not watch.troubles
    after = processes(engine)
    assert set(after) == set(before)  # nobody died
    assert engine.run["processes"]["dicom"]["restarts"] == 0
    print(f"C-ECHO took {max(watch.seconds):.3f} s at most, of {len(watch.seconds)}; growth",
          [f"{(after[pid] - before[pid]) >> 10} KiB" for pid in after])  # fmt: skip
    assert max(after[pid] - before[pid] for pid in after) < GROWTH
    assert not list((engine.data_dir / "spool").rglob("*.part"))
    tasks = [len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in after]
    assert max(tasks) < 40  # no thread hangs


class Siege(Beside):
    """`idle` callers that say nothing and `slow` ones that say a byte a second; who is dropped comes back."""

    def __init__(self, port: int, idle: int, slow: int) -> None:
        super().__init__()
        self._port, self._idle, self._slow = port, idle, slow
        self.opened = 0

    def run(self) -> None:
        selector = selectors.DefaultSelector()
        said: dict[socket.socket, int] = {}  # slow callers → bytes said
        idle: set[socket.socket] = set()
        second = time.monotonic()
        while not self.stopping.is_set():
            for _ in range(50):
                if len(idle) < self._idle:
                    self._open(selector, idle)
                elif len(said) < self._slow:
                    sock = self._open(selector, None)
                    if sock:
                        said[sock] = 0
            for key, _ in selector.select(0.01):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if _ended(sock):
                    selector.unregister(sock)
                    sock.close()
                    idle.discard(sock)
                    said.pop(sock, None)
            if time.monotonic() - second >= 1:
                second = time.monotonic()
                for sock in said:
                    try:
                        sock.send(ECHO[said[sock] : said[sock] + 1])
                        said[sock] += 1
                    except OSError:
                        pass  # seen as ended above
        for sock in [*idle, *said]:
            sock.close()
        selector.close()

    def _open(
        self, selector: selectors.BaseSelector, into: set[socket.socket] | None
    ) -> socket.socket | None:
        sock = socket.socket()
        sock.setblocking(False)
        if sock.connect_ex(("127.0.0.1", self._port)) not in (0, 115):
            sock.close()
            return None
        self.opened += 1
        selector.register(sock, selectors.EVENT_READ)
        if into is not None:
            into.add(sock)
        return sock


def _ended(sock: socket.socket) -> bool:
    try:
        return sock.recv(4096) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_two_hundred_honest_associations_get_through_a_thousand_idle_and_fifty_slow_callers(
    engine: Engine, tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    try:
        _besieged(engine, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _besieged(engine: Engine, tmp_path: Path) -> None:
    storescu = require_peer("storescu")
    _, data = made(1000, "1.2.9.1")
    write_part10(tmp_path / "one.dcm", data)
    before = processes(engine)
    took = []
    with Siege(engine.port("dicom"), 1000, 50) as siege, Watch(engine) as watch:
        engine.wait_for(lambda: siege.opened >= 1050)
        for number in range(200):
            started = time.monotonic()
            origin, data = made(1000, f"1.2.8.{number + 1}")
            with sender.associate(
                destination(engine), sender.contexts_of([origin]), seconds=SECONDS
            ) as assoc:
                assert assoc.store(origin, data) == 0
            took.append(time.monotonic() - started)
            if number % 50 == 0:
                subprocess.run(
                    [storescu, "-aet", "SCANNER", "-aec", "ORDERLY", "127.0.0.1", str(engine.port("dicom")),
                     str(tmp_path / "one.dcm")], check=True, timeout=120,
                )  # fmt: skip
    assert not watch.troubles
    after = processes(engine)
    assert set(after) == set(before)
    grown = [f"{(after[pid] - before[pid]) >> 10} KiB" for pid in after]
    print(
        f"{siege.opened} hostile connections; an honest association took {max(took):.3f} s at most;", end=" "
    )
    print(f"C-ECHO {max(watch.seconds):.3f} s; growth {grown}")
    assert max(after[pid] - before[pid] for pid in after) < GROWTH

    def indexed() -> bool:
        return engine.rows("SELECT count(*) FROM pacs_instance")[0][0] == 201

    engine.wait_for(indexed)
