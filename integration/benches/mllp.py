"""`manage.py bench mllp`: orders over MLLP, durable and fully applied before their AA, beside python-hl7's server."""

import json as jsonlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

import psutil
import psycopg
from django.db import connection

from common.benches import measured
from common.servers import connects, free_port, serving
from integration.hl7v2.framing import Decoder, Frame, encode
from integration.models import Message, Source
from ris.models import ScheduledProcedureStep

SECONDS = 8.0
PATIENTS = 5000
IDLE = 200
FLAT_MESSAGES = int(os.environ.get("BENCH_MESSAGES", "20000"))  # 100000 for the whole of it
MUST = {1: 200, 10: 500}
FLAT_MB = 50

Say = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Rate:
    """What a run of some seconds gave: messages a second, and the times of single ones in milliseconds."""

    per_second: float
    p50: float
    p99: float
    accepted: int


def run(json: bool = False) -> bool:
    """Measure and print every case; True when no `must` is missed."""
    rows: list[dict[str, Any]] = []

    def say(row: dict[str, Any]) -> None:
        rows.append(row)
        print(jsonlib.dumps(row) if json else _line(row), flush=True)

    Source.objects.create(name="bench", application="*", facility="*")
    with _listener() as (port, process):
        _load(port, 4, 3.0, "W")  # connections, plans and caches
        for connections in MUST:
            _rate(port, connections, say)
        _memory(port, process, say)
    return all(row["ok"] for row in rows)


def _rate(port: int, connections: int, say: Say) -> None:
    floor = _floor(connections)
    with _peer() as theirs_port:
        theirs = _load(theirs_port, connections, SECONDS / 2, f"T{connections}")
    before = ScheduledProcedureStep.objects.count()
    ours = _load(port, connections, SECONDS, f"O{connections}")
    applied = ScheduledProcedureStep.objects.count() - before
    named = f"ORM fully applied, {connections} connection{'s' if connections > 1 else ''}"
    say(
        measured(
            "mllp",
            named,
            ours.per_second,
            "messages/s",
            peer="python-hl7 with one row and a commit a message",
            theirs=theirs.per_second,
            ratio=ours.per_second / theirs.per_second if theirs.per_second else None,
            floor=floor,
            must=MUST[connections],
            ok=ours.per_second >= MUST[connections] and applied == ours.accepted,
        )
    )
    for name, value in (("median", ours.p50), ("p99", ours.p99)):
        say(measured("mllp", f"{named}: {name}", value, "ms"))


def _memory(port: int, process: psutil.Process, say: Say) -> None:
    """The listener's growth over many messages, with idle connections beside them."""
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(IDLE)]
    _load(port, 10, 3.0, "M0")
    before, stored = resident(process), Message.objects.count()
    number = 0
    while Message.objects.count() - stored < FLAT_MESSAGES:
        number += 1
        _load(port, 10, 10.0, f"M{number}")
    grown = (resident(process) - before) / 1e6
    for one in idle:
        one.close()
    named = f"listener's growth over {FLAT_MESSAGES} messages, {IDLE} idle connections"
    say(measured("mllp", named, grown, "MB", must=FLAT_MB, ok=grown <= FLAT_MB))


def resident(process: psutil.Process) -> int:
    """Bytes that a process and those it forked hold in memory; what they share counts once."""
    return sum(p.memory_full_info().pss for p in [process, *process.children(recursive=True)])


# -- who is measured


@contextmanager
def _listener() -> Iterator[tuple[int, psutil.Process]]:
    """The MLLP process as `run mllp` starts it; its port and process."""
    port = free_port()
    manage = Path(__file__).resolve().parents[2] / "manage.py"
    words = [sys.executable, str(manage), "run", "mllp"]
    with serving(words, lambda: connects(port), {**os.environ, "ORDERLY_MLLP_PORT": str(port)}) as pid:
        yield port, psutil.Process(pid)


@contextmanager
def _peer() -> Iterator[int]:
    """python-hl7's own server, which inserts one row and commits for each message before its ACK."""
    port = free_port()
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS bench_peer (id bigserial PRIMARY KEY, raw text)")
    words = [sys.executable, "-m", "integration.benches.peer", str(port), _conninfo()]
    with serving(words, lambda: connects(port)):
        yield port


def _floor(connections: int) -> float:
    """Rows inserted and committed a second by so many connections, without any HL7."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS bench_floor (id bigserial PRIMARY KEY, raw bytea)")
    end = time.monotonic() + 2.0
    done: list[int] = []

    def work() -> None:
        count = 0
        with psycopg.connect(_conninfo(), autocommit=True) as own:
            while time.monotonic() < end:
                own.execute("INSERT INTO bench_floor (raw) VALUES (%s)", (b"x" * 1000,), prepare=True)
                count += 1
        done.append(count)

    threads = [threading.Thread(target=work) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / 2.0


def _conninfo() -> str:
    settings = connection.settings_dict
    return psycopg.conninfo.make_conninfo(
        dbname=settings["NAME"], user=settings["USER"], host=settings["HOST"], port=settings["PORT"] or None
    )


# -- the load


def _load(port: int, connections: int, seconds: float, series: str) -> Rate:
    """Send orders on so many connections, each waiting for its AA; raises when an answer is no AA."""
    times: list[list[float]] = [[] for _ in range(connections)]
    wrong: list[bytes] = []
    end = time.monotonic() + seconds
    started = time.monotonic()

    def work(lane: int) -> None:
        try:
            talk(lane)
        except OSError as error:
            wrong.append(str(error).encode())

    def talk(lane: int) -> None:
        own = times[lane]
        decoder = Decoder(1 << 20)
        with socket.create_connection(("127.0.0.1", port), 30) as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            number = 0
            while time.monotonic() < end:
                # Each connection goes through other patients: two departments seldom speak of one at a time.
                raw = encode(order(f"{series}{lane}N{number}", lane * (PATIENTS // connections) + number))
                begun = time.perf_counter()
                peer.sendall(raw)
                frames: list[Any] = []
                while not frames:
                    frames = decoder.feed(peer.recv(65536))
                own.append(time.perf_counter() - begun)
                number += 1
                if not (isinstance(frames[0], Frame) and b"|AA|" in frames[0].payload):
                    wrong.append(bytes(frames[0].payload))
                    return

    threads = [threading.Thread(target=work, args=(lane,)) for lane in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.monotonic() - started
    if wrong:
        raise RuntimeError(f"an order was not accepted: {wrong[0][:300]!r}")
    every = sorted(t * 1000 for own in times for t in own)
    cuts = quantiles(every, n=100) if len(every) > 1 else [0.0] * 99
    return Rate(len(every) / elapsed, cuts[49], cuts[98], len(every))


def order(name: str, number: int) -> bytes:
    """An ORM^O01 of about 1 KB: one group with every key, for one of some thousand patients."""
    person = number % PATIENTS
    orc = f"ORC|NW|PL{name}^HIS|FI{name}^RIS||SC||1^once^^20260302090000^^R||20260301120000|||100^SMITH^ANN^Q^^DR"
    obr = (
        f"OBR|1|PL{name}^HIS|FI{name}^RIS|CTHEAD^CT Head^L^PROT1^CT head plain^L|||||||||Fall|||100^SMITH^ANN^Q^^DR"
        f"||{_short(name)}|R{_short(name)}|S{_short(name)}||||CT"
        "|||1^once^^20260302090000^^R|||WALK|^Headache after a fall"
    )
    return "\r".join(
        (
            f"MSH|^~\\&|HIS|HOSP|RIS|RAD|20260301120000+0000||ORM^O01|{name}|P|2.3.1||||||UNICODE UTF-8",
            f"PID|1||P{person}^^^HOSP^MR||BENCH{person}^PATIENT^X||1970{person % 12 + 1:02d}15|F|||"
            "1 Main Street^^Springfield^XX^12345||555-0100",
            f"PV1|1|O|RAD^1^1^HOSP||||5101^NELL^FREDERICK|200^JONES^BOB|||||||||||V{person}^^^HOSP",
            orc,
            obr,
            f"ZDS|1.2.826.0.1.3680043.9.9999.{abs(hash(name)) % 10**18}^HIS^Application^DICOM\r",
        )
    ).encode()


def _short(name: str) -> str:
    """A number that fits 16 characters and is the name's alone."""
    return name if len(name) <= 15 else f"{abs(hash(name)) % 10**14}"


def _line(row: dict[str, Any]) -> str:
    said = f"{row['case']:60} {row['ours']:>9} {row['unit']:11}"
    if row["peer"]:
        said += f" theirs {row['theirs']}  x{row['ratio']}  floor {row['floor']}"
    if row["must"] is not None:
        said += f"  must {row['must']}"
    return said + ("" if row["ok"] else "   MISSED")
