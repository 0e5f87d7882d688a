"""Who is told in a rehearsal: the HIS's receiving port (MLLP) and a small FHIR server, each with its own log."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from common.clock import now, to_site
from integration.hl7v2 import acks, framing
from integration.hl7v2.acks import AckCode
from integration.hl7v2.errors import Refused
from integration.hl7v2.reading import Message, parse

LOOPBACK = "127.0.0.1"
_LARGEST = 4 << 20


@dataclass(frozen=True, slots=True)
class Received:
    """One frame that came, and whether it was acknowledged. `message` is None for one that is no HL7."""

    at: datetime
    raw: bytes
    message: Message | None
    acknowledged: bool

    @property
    def control_id(self) -> str:
        """MSH-10, or nothing."""
        return self.message.control_id if self.message else ""


class HisReceiver:
    """The port on which the HIS takes results and order status: each message gets AA, by the standard's rules.

    `drops(number)` may say that the n-th new message is taken but its connection ends without an ACK, as by a
    network's fault: the same message must then come again.
    """

    def __init__(self, drops: Callable[[int], bool] = lambda number: False) -> None:
        self.log: list[Received] = []
        self._drops, self._seen, self._lock = drops, set[str](), threading.Lock()
        self._door = socket.create_server((LOOPBACK, 0))
        self._open: set[socket.socket] = set()
        self.port: int = self._door.getsockname()[1]
        threading.Thread(target=self._accept, name="rehearsal-his", daemon=True).start()

    def close(self) -> None:
        """Shut the door and hang up."""
        self._door.close()
        for peer in list(self._open):
            peer.close()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._door.accept()
            except OSError:
                return
            self._open.add(peer)
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        decoder = framing.Decoder(_LARGEST)
        try:
            while data := peer.recv(65536):
                for event in decoder.feed(data):
                    answer = self._take(event.payload) if isinstance(event, framing.Frame) else None
                    if answer is None:
                        return
                    peer.sendall(framing.encode(answer))
        except OSError:
            pass  # the peer is gone; it comes again when it has something to say
        finally:
            self._open.discard(peer)
            peer.close()

    def _take(self, raw: bytes) -> bytes | None:
        """Log a message and give its ACK; None: hang up without one."""
        at = now()
        try:
            message: Message | None = parse(raw)
        except Refused:
            message = None
        with self._lock:
            control_id = message.control_id if message else ""
            fresh = control_id not in self._seen
            dropped = fresh and self._drops(len(self._seen))
            self._seen.add(control_id)
            self.log.append(Received(at, raw, message, message is not None and not dropped))
        if message is None:
            return acks.build(acks.asking_of(raw), AckCode.AR, at=to_site(at))
        return None if dropped else acks.build(acks.asking(message), AckCode.AA, at=to_site(at))


@dataclass(slots=True)
class Resource:
    """One resource as the FHIR receiver holds it. `versions` counts the contents that differed."""

    body: dict[str, Any]
    digest: str
    first_at: datetime
    at: datetime
    versions: int = 1
    puts: int = 1


@dataclass(slots=True)
class Call:
    """One HTTP request in the FHIR receiver's log."""

    at: datetime
    method: str
    path: str
    status: int


@dataclass
class FhirReceiver:
    """A FHIR R4 server for as long as the rehearsal takes: PUT and GET by id, transactions of PUTs."""

    resources: dict[str, Resource] = field(default_factory=dict)
    log: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer((LOOPBACK, 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="rehearsal-fhir", daemon=True).start()

    @property
    def url(self) -> str:
        """Its base."""
        return f"http://{LOOPBACK}:{self._server.server_address[1]}/fhir"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()

    def of_type(self, resource_type: str) -> list[dict[str, Any]]:
        """The bodies of one type."""
        with self._lock:
            return [r.body for r in self.resources.values() if r.body["resourceType"] == resource_type]

    def answer(self, method: str, path: str, raw: bytes) -> tuple[int, dict[str, Any], Resource | None]:
        """Do what a request asks; status, body and the resource concerned."""
        status, body, found = self._do(method, path.strip("/").removeprefix("fhir").strip("/"), raw)
        self.log.append(Call(now(), method, path, status))
        return status, body, found

    def _do(self, method: str, path: str, raw: bytes) -> tuple[int, dict[str, Any], Resource | None]:
        if method == "GET" and path == "metadata":
            statement = {"resourceType": "CapabilityStatement", "status": "active", "kind": "instance"}
            return 200, {**statement, "fhirVersion": "4.0.1", "format": ["json"]}, None
        if method == "GET":
            found = self.resources.get(path)
            return (200, found.body, found) if found else (*_outcome(404, "not-found"), None)
        try:
            body = json.loads(raw)
        except ValueError:
            return *_outcome(400, "structure"), None
        if method == "PUT":
            return self._put(path, body)
        if (
            method == "POST"
            and not path
            and isinstance(body, dict)
            and body.get("type") in ("transaction", "batch")
        ):
            return self._transaction(body)
        return *_outcome(405, "not-supported"), None

    def _put(self, path: str, body: Any) -> tuple[int, dict[str, Any], Resource | None]:
        if not isinstance(body, dict) or path != f"{body.get('resourceType')}/{body.get('id')}":
            return *_outcome(400, "invalid"), None
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        with self._lock:
            held = self.resources.get(path)
            if held is None:
                held = self.resources[path] = Resource(body, digest, now(), now())
                return 201, body, held
            held.puts += 1
            if held.digest != digest:
                held.body, held.digest, held.at, held.versions = body, digest, now(), held.versions + 1
            return 200, body, held

    def _transaction(self, bundle: dict[str, Any]) -> tuple[int, dict[str, Any], None]:
        entries = []
        for entry in bundle.get("entry", []):
            asked = entry.get("request", {})
            if asked.get("method") != "PUT":
                return *_outcome(400, "not-supported"), None
            status, _, held = self._put(asked.get("url", ""), entry.get("resource"))
            if held is None:
                return *_outcome(400, "invalid"), None
            entries.append({"response": {"status": str(status), "etag": f'W/"{held.versions}"'}})
        return 200, {"resourceType": "Bundle", "type": f"{bundle['type']}-response", "entry": entries}, None


def _outcome(status: int, code: str) -> tuple[int, dict[str, Any]]:
    return status, {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": code}]}


def _handler(receiver: FhirReceiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """HTTP to FhirReceiver.answer and back."""

        protocol_version = "HTTP/1.1"

        def _any(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, body, held = receiver.answer(self.command, self.path.partition("?")[0], raw)
            said = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/fhir+json")
            self.send_header("Content-Length", str(len(said)))
            if held is not None:
                self.send_header("ETag", f'W/"{held.versions}"')
                self.send_header("Location", f"{receiver.url}{self.path.removeprefix('/fhir')}")
            self.end_headers()
            self.wfile.write(said)

        do_GET = do_PUT = do_POST = do_DELETE = _any

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing on the terminal: the receiver keeps its own log."""

    return Handler
