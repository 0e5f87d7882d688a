"""A FHIR server that takes PUTs: keeps versions, checks references, answers as a script tells it to."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Scripted:
    """An answer instead of the right one, after `seconds`."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    keeps: bool = False
    """Whether it stores the resource all the same."""


@dataclass
class FhirReceiver:
    """`resources` by `Type/id`; `puts` in the order in which they came. References must resolve."""

    script: list[Scripted] = field(default_factory=list)
    token: str = ""
    resources: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    puts: list[str] = field(default_factory=list)
    unresolved: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        receiver = self
        self._lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, headers = receiver._put(self.path, body, self.headers.get("Authorization", ""))
                answer = json.dumps({"resourceType": "OperationOutcome", "issue": []}).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer)))
                try:
                    self.end_headers()
                    self.wfile.write(answer)
                except OSError:  # the client has given up waiting
                    self.close_connection = True

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/fhir"

    def __enter__(self) -> FhirReceiver:
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The resources of one type."""
        return [r for name, r in self.resources.items() if name.startswith(kind + "/")]

    def _put(self, path: str, body: bytes, authorization: str) -> tuple[int, dict[str, str]]:
        name = path.removeprefix("/fhir/")
        resource = json.loads(body)
        if self.token and authorization != f"Bearer {self.token}":
            return 401, {}
        scripted = self.script.pop(0) if self.script else None
        if scripted:
            time.sleep(scripted.seconds)
        if scripted and not scripted.keeps:
            self.puts.append(f"{name} {scripted.status}")
            return scripted.status, scripted.headers
        with self._lock:
            self.puts.append(name)
            if f"{resource['resourceType']}/{resource['id']}" != name:
                return 400, {}
            missing = [r for r in _references(resource) if r not in self.resources and r != name]
            self.unresolved += [f"{name} -> {r}" for r in missing]
            new = name not in self.resources
            self.resources[name] = resource
            self.versions[name] = self.versions.get(name, 0) + 1
            etag = {"ETag": f'W/"{self.versions[name]}"'}
        return (scripted.status if scripted else 201 if new else 200), etag


def _references(element: Any) -> list[str]:
    if isinstance(element, dict):
        own = [element["reference"]] if isinstance(element.get("reference"), str) else []
        return own + [r for value in element.values() for r in _references(value)]
    if isinstance(element, list):
        return [r for value in element for r in _references(value)]
    return []
