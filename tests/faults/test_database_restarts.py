"""PostgreSQL killed under load: senders get AA, AR or a closed socket, and never AA for something that is gone."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.hl7v2.framing import Decoder, Frame, encode
from integration.hl7v2.reading import parse
from tests.engine import Engine
from tests.integration.hl7v2.making import orm

SENDERS = 4


@pytest.fixture
def taking(tmp_path: Path) -> Iterator[Engine]:
    """A real engine that takes messages from anybody."""
    site = tmp_path / "site.toml"
    site.write_text('[[source]]\nname = "any"\napplication = "*"\nfacility = "*"\naddress = "*"\n')
    one = Engine(site=site)
    try:
        yield one.start()
    finally:
        one.close()


class Sender(threading.Thread):
    """A HIS that sends one order after the other, each until it is accepted, and keeps what it was told."""

    def __init__(self, port: int, number: int, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.port, self.number, self.over = port, number, over
        self.accepted: list[str] = []
        self.told: Counter[str] = Counter()

    def run(self) -> None:
        while not self.over.is_set():
            name = f"S{self.number}N{len(self.accepted)}"
            raw = orm(
                control_id=f"C{name}", placer=f"P{name}", accession=name,
                patient=f"PID|1||{name}^^^HOSP^MR||DOE^JANE||19700102|F",
            )  # fmt: skip
            while (code := self._send(raw)) != "AA":
                self.told[code] += 1
                time.sleep(0.05)
            self.told[code] += 1
            self.accepted.append(name)

    def _send(self, raw: bytes) -> str:
        """What a fresh connection answers; `closed` when nothing comes."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 60) as peer:
                peer.sendall(encode(raw))
                decoder = Decoder(1 << 20)
                while data := peer.recv(65536):
                    for event in decoder.feed(data):
                        if isinstance(event, Frame):
                            return parse(event.payload).first("MSA").value(1)
        except OSError:
            pass
        return "closed"


@pytest.mark.parametrize("kills", [2, pytest.param(25, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_what_was_accepted_is_there_after_each_restart_of_the_database(taking: Engine, kills: int) -> None:
    over = threading.Event()
    senders = [Sender(taking.port("mllp"), number, over) for number in range(SENDERS)]
    for sender in senders:
        sender.start()
    for _ in range(kills):
        before = sum(len(s.accepted) for s in senders)
        taking.wait_for(lambda b=before: sum(len(s.accepted) for s in senders) >= b + 4 * SENDERS, 120)
        taking.kill_and_wait("database")
    reached = [len(s.accepted) for s in senders]  # each of them goes on
    taking.wait_for(lambda: all(len(s.accepted) > b for s, b in zip(senders, reached, strict=True)), 120)
    over.set()
    for sender in senders:
        sender.join(120)
        assert not sender.is_alive()
    told = sum((s.told for s in senders), Counter())
    assert set(told) <= {"AA", "AR", "closed"}, told
    accepted = sorted(name for s in senders for name in s.accepted)
    applied = "SELECT accession_number FROM ris_imagingservicerequest"
    assert sorted(name for (name,) in taking.rows(applied)) == accepted
    kept = "SELECT control_id, count(*) FROM integration_message WHERE state = 'applied' GROUP BY 1"
    assert dict(taking.rows(kept)) == {f"C{name}": 1 for name in accepted}
    assert taking.rows("SELECT count(*) FROM ris_scheduledprocedurestep") == [(len(accepted),)]
