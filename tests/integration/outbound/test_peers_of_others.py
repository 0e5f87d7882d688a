"""Programs that others wrote, at both ends: they take our messages and acknowledge them, and we theirs."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hl7
import pytest
from hl7.mllp import start_hl7_server

from common.servers import free_port
from integration.models import Message, OutboxItem
from ris.models import ImagingServiceRequest
from tests.conftest import missing, require_peer
from tests.integration.hl7v2 import conftest as doors
from tests.integration.hl7v2.making import orm
from tests.integration.outbound.making import hl7_destination, ordered, signed, states
from tests.integration.outbound.test_delivery import drain
from tests.peer_programs import NPM_PEERS, PEERS, npm_modules

pytestmark = pytest.mark.django_db(transaction=True)

any_source, door, fresh_memory, open_door = doors.any_source, doors.door, doors.fresh_memory, doors.open_door

FINDINGS = "Größe: 50% | normal ^ no ~ mass & more \\ end\nΚαρδιά, сердце"


class Node:
    """A program of ours for Node.js around somebody else's package."""

    def __init__(self, script: str, *words: str) -> None:
        node = require_peer("node")
        require_peer("npm")
        try:
            modules = npm_modules()
        except (OSError, subprocess.SubprocessError):
            missing("HL7 packages of npm", PEERS["npm"])
        self.popen = subprocess.Popen(
            [node, str(NPM_PEERS / script), *words],
            env={**os.environ, "NODE_PATH": str(modules)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """Its next line; the test's own time-out bounds the wait."""
        assert self.popen.stdout and self.popen.stderr
        said = self.popen.stdout.readline()
        assert said, self.popen.stderr.read()[-2000:]
        return said.strip()

    def close(self) -> None:
        self.popen.kill()
        self.popen.wait(20)
        for stream in (self.popen.stdout, self.popen.stderr):
            if stream:
                stream.close()


@pytest.fixture
def node() -> Iterator[Any]:
    """Start a Node.js program; all end with the test."""
    started: list[Node] = []

    def start(script: str, *words: str) -> Node:
        started.append(Node(script, *words))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.mark.parametrize("package", ["simple-hl7", "node-hl7-server", "@medplum/hl7"])
@pytest.mark.parametrize("style", ["lines", "FT+PDF"])
def test_a_receiver_of_npm_takes_our_reports_and_is_believed(node: Any, package: str, style: str) -> None:
    port = free_port()
    receiver = node("receive.cjs", package, str(port))
    assert receiver.line() == "ready"
    destination = hl7_destination(port, messages=("ORU",), ack_seconds=20.0, obx_style=style)
    signed(ordered("A1"), FINDINGS)
    signed(ordered("A2", patient="4712"), FINDINGS)
    drain(destination)
    assert states(destination) == ["delivered", "delivered"]
    heard: dict[str, dict] = {}
    while len(heard) < 2:  # node-hl7-server reads a connection's earlier messages again with each new one
        one = json.loads(receiver.line())
        heard.setdefault(one["control_id"], one)
    assert list(heard) == list(OutboxItem.objects.order_by("id").values_list("control_id", flat=True))
    for one in heard.values():
        assert one["name"].startswith("Sommer") and any("Größe" in text for text in one["texts"])
        assert any("Καρδιά, сердце" in text for text in one["texts"])
        assert ("JVBERi0" in "".join(one["texts"])) == ("PDF" in style)


def test_python_hl7_s_own_server_takes_our_reports_and_is_believed() -> None:
    heard: list[hl7.Message] = []
    with PythonHl7(heard) as server:
        destination = hl7_destination(server.port, messages=("ORU",))
        signed(ordered(), FINDINGS)
        drain(destination)
        assert states(destination) == ["delivered"]
    assert str(heard[0]["MSH"][0][10]) == OutboxItem.objects.get().control_id
    texts = [str(heard[0].unescape(str(obx[5]))) for obx in heard[0].segments("OBX")]
    assert FINDINGS.splitlines()[0] in texts


class PythonHl7:
    """python-hl7's MLLP server on a loop of its own."""

    def __init__(self, heard: list) -> None:
        self.heard = heard
        self.loop = asyncio.new_event_loop()
        self.server = self.loop.run_until_complete(
            start_hl7_server(self._serve, "127.0.0.1", 0, encoding="utf-8")
        )
        self.port: int = self.server.sockets[0].getsockname()[1]
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    async def _serve(self, reader: Any, writer: Any) -> None:
        try:
            while True:
                message = await reader.readmessage()
                self.heard.append(message)
                writer.writemessage(message.create_ack())
                await writer.drain()
        except asyncio.IncompleteReadError:
            writer.close()

    def __enter__(self) -> "PythonHl7":
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(20)
        self.server.close()


@pytest.fixture
def order_file(tmp_path: Path) -> Path:
    """An order as it would be sent, its segments ended by CR."""
    path = tmp_path / "order.hl7"
    path.write_bytes(orm(control_id="PEER1"))
    return path


def assert_applied() -> None:
    """The order came in, was applied, and answered AA."""
    message = Message.objects.get(control_id="PEER1")
    assert (message.state, message.ack_code) == ("applied", "AA")
    assert ImagingServiceRequest.objects.count() == 1


@pytest.mark.parametrize("package", ["simple-hl7", "node-hl7-client", "@medplum/hl7"])
def test_a_sender_of_npm_is_understood_and_reads_our_acknowledgement(
    node: Any, package: str, order_file: Path, door: doors.Door
) -> None:
    sender = node("send.cjs", package, str(door.port), str(order_file))
    assert json.loads(sender.line()) == {"code": "AA", "control_id": "PEER1"}
    assert_applied()


def test_mllp_send_of_pypi_is_understood_and_prints_our_acknowledgement(
    order_file: Path, door: doors.Door
) -> None:
    words = ["--loose", "--file", str(order_file), "--port", str(door.port), "127.0.0.1"]
    program = [sys.executable, "-c", "import sys; from hl7.client import mllp_send; sys.exit(mllp_send())"]
    done = subprocess.run([*program, *words], capture_output=True, timeout=60)
    assert b"MSA|AA|PEER1" in done.stdout, done.stderr[-2000:]
    assert_applied()
