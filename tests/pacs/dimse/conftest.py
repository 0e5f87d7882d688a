"""A DICOM listener of our own code on an ephemeral port, in a thread of the test."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Self

import pytest

from pacs.dimse.admission import Admission, Known, Limits, Slots, StaticDirectory
from pacs.dimse.registry import Registry
from pacs.dimse.sender import Destination
from pacs.dimse.server import Server
from pacs.services import echo, store
from pacs.storage import spool
from tests.conftest import missing
from tests.engine import Engine

ALL = frozenset(("echo", "store", "find", "move", "get", "worklist", "mpps"))


SITE = """
[[ae]]
title = "SCANNER"
host = "*"
services = ["echo", "store", "find", "worklist"]
"""


@contextmanager
def engine_for_scanner(folder: Path, **environment: str) -> Iterator[Engine]:
    """A whole engine that knows SCANNER; its site file lies in `folder`."""
    site = folder / "site.toml"
    site.write_text(SITE)
    engine = Engine(site=site, environment=environment)
    try:
        yield engine.start()
    finally:
        engine.close()


class Beside:
    """A thread that repeats something, and ends with its `with` block."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self._thread = threading.Thread(target=self.run)

    def run(self) -> None:
        """Until `stopping` is set."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._thread.join(60)


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and certificates of server, scanner and stranger (of another authority), by openssl."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*words: str) -> None:
        try:
            subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)
        except FileNotFoundError:
            missing("openssl", "apt-get install openssl")

    for authority in ("ca", "otherca"):
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={authority}",
                "-keyout", f"{authority}.key", "-out", f"{authority}.pem")  # fmt: skip
    for name, authority in (("server", "ca"), ("scanner", "ca"), ("stranger", "otherca")):
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", f"{name}.key",
                "-out", f"{name}.csr")  # fmt: skip
        (folder / "ext").write_text("subjectAltName=IP:127.0.0.1\n")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key",
                "-CAcreateserial", "-days", "2", "-extfile", "ext", "-out", f"{name}.pem")  # fmt: skip
    return folder


def fingerprint(pem: Path) -> str:
    return sha256(ssl.PEM_cert_to_DER_cert(pem.read_text())).hexdigest()


@dataclass
class Served:
    """A running listener."""

    port: int
    server: Server
    stopping: threading.Event
    spool_root: Path
    refusals: list[tuple[str, str, str]] = field(default_factory=list)

    def destination(self, calling: str = "SCANNER", called: str = "ORDERLY") -> Destination:
        return Destination("127.0.0.1", self.port, called, calling)

    def entries(self) -> list[spool.Entry]:
        """What lies whole in the spool."""
        found = []
        for folder, orphaned in spool.folders(self.spool_root):
            found += [entry for entry in spool.entries(folder, orphaned) if isinstance(entry, spool.Entry)]
        return found

    def files(self) -> list[bytes]:
        """The Part 10 files in the spool."""
        return [entry.path.read_bytes() if entry.alone else spool.read(entry) for entry in self.entries()]

    def leftovers(self) -> list[str]:
        """Names of files that hold no whole object."""
        return [path.name for path in self.spool_root.rglob("*.part")]


@pytest.fixture
def serve(settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Served]]:
    """Start listeners: `serve(register=…, known=…, limits=…, tls=…)`; all stop at the end of the test."""
    settings.DATA_DIR = tmp_path
    monkeypatch.setattr(spool, "_mine", None)
    running: list[tuple[Served, threading.Thread]] = []

    def start(
        register: Callable[[Registry], None] | None = None,
        known: list[Known] | None = None,
        limits: Limits | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> Served:
        registry = Registry()
        echo.register(registry)
        store.register(registry)
        if register:
            register(registry)
        slots = Slots(limits or Limits())
        directory = StaticDirectory(
            known if known is not None else [Known("SCANNER", "*", ALL), Known("STORESCU", "*", ALL)]
        )
        admission = Admission(directory, registry, ["ORDERLY"], slots)
        listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        refusals: list[tuple[str, str, str]] = []
        server = Server(
            {listener: tls}, registry, admission, slots, audit=lambda *told: refusals.append(told)
        )
        stopping = threading.Event()
        served = Served(listener.getsockname()[1], server, stopping, tmp_path / "spool", refusals)
        thread = threading.Thread(target=server.run, args=(stopping,), daemon=True)
        thread.start()
        running.append((served, thread))
        return served

    yield start
    for served, thread in running:
        served.stopping.set()
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    """A listener with echo and store that knows SCANNER and STORESCU."""
    return serve()
