"""The TLS door: mutual, 1.2 and 1.3, and nothing else; the certificate is part of who a peer is."""

from __future__ import annotations

import datetime
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from pacs.dimse import sender
from pacs.dimse.admission import Admission, Known, Limits, Slots, StaticDirectory
from pacs.dimse.errors import AssociationRefused, Ended
from pacs.dimse.registry import Registry
from pacs.dimse.server import Server, tls_context
from pacs.services import echo, store
from pacs.storage import spool
from tests.conftest import require_peer
from tests.pacs.dimse.conftest import ALL, fingerprint
from tests.pacs.dimse.test_store import CT, EXPLICIT, made, write_part10


@pytest.fixture
def port(papers: Path, settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A TLS listener that knows SCANNER by its certificate."""
    settings.DATA_DIR = tmp_path
    monkeypatch.setattr(spool, "_mine", None)
    settings.ORDERLY_TLS_CERTIFICATE = str(papers / "server.pem")
    settings.ORDERLY_TLS_KEY = str(papers / "server.key")
    settings.ORDERLY_TLS_CA = str(papers / "ca.pem")
    registry = Registry()
    echo.register(registry)
    store.register(registry)
    slots = Slots(Limits())
    known = Known("SCANNER", "*", ALL, certificate=fingerprint(papers / "scanner.pem"))
    listener = socket.create_server(("127.0.0.1", 0))
    admission = Admission(StaticDirectory([known]), registry, ["ORDERLY"], slots)
    server = Server({listener: tls_context()}, registry, admission, slots)
    stopping = threading.Event()
    thread = threading.Thread(target=server.run, args=(stopping,), daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    stopping.set()
    thread.join(20)


def client(papers: Path, name: str = "scanner") -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(papers / "ca.pem"))
    if name:
        context.load_cert_chain(papers / f"{name}.pem", papers / f"{name}.key")
    return context


def destination(port: int, context: ssl.SSLContext | None, calling: str = "SCANNER") -> sender.Destination:
    return sender.Destination("127.0.0.1", port, "ORDERLY", calling, context)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("size", [100, 2_000_000])
def test_images_come_in_over_tls(port: int, papers: Path, version: ssl.TLSVersion, size: int) -> None:
    context = client(papers)
    context.minimum_version = context.maximum_version = version
    origin, data = made(size)
    with sender.associate(destination(port, context), [(CT, (EXPLICIT,))]) as assoc:
        assert [assoc.store(origin, data) for _ in range(3)] == [0, 0, 0]
    folders = [folder for folder, _ in spool.folders()]
    entries = [one for folder in folders for one in spool.entries(folder, False)]
    assert {one.sha256 for one in entries if isinstance(one, spool.Entry)} == {sha256(data).hexdigest()}


def test_another_certificate_than_the_peers_own_may_only_echo(port: int, papers: Path) -> None:
    server_as_client = client(papers, "server")
    assert sender.echo(destination(port, server_as_client)) == 0
    with pytest.raises(AssociationRefused, match="calling AE title not recognized"):
        sender.associate(destination(port, server_as_client), [(CT, (EXPLICIT,))])


@pytest.mark.parametrize("name", ["", "stranger"])
def test_a_caller_without_a_certificate_of_our_authority_gets_nowhere(
    port: int, papers: Path, name: str
) -> None:
    with pytest.raises(Ended):
        sender.echo(destination(port, client(papers, name)))
    assert sender.echo(destination(port, client(papers))) == 0


def test_plain_text_old_versions_and_anonymous_suites_are_refused(port: int, papers: Path) -> None:
    with pytest.raises(Ended):
        sender.echo(destination(port, None), seconds=3)
    for change in (
        lambda c: setattr(c, "maximum_version", ssl.TLSVersion.TLSv1_1),
        lambda c: (setattr(c, "maximum_version", ssl.TLSVersion.TLSv1_2), c.set_ciphers("aNULL:@SECLEVEL=0")),
    ):
        context = client(papers)
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        change(context)
        with pytest.raises(Ended):
            sender.echo(destination(port, context), seconds=3)
    assert sender.echo(destination(port, client(papers))) == 0


def test_one_that_begins_a_handshake_and_stops_is_dropped_and_holds_up_nobody(
    port: int, papers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pacs.dimse.server.SET_UP_SECONDS", 0.5)
    idle = socket.create_connection(("127.0.0.1", port))
    idle.sendall(b"\x16\x03\x01\x02\x00")
    assert sender.echo(destination(port, client(papers))) == 0
    idle.settimeout(20)
    began = datetime.datetime.now()
    assert idle.recv(100) == b""
    assert datetime.datetime.now() - began < datetime.timedelta(seconds=20)


def test_one_that_is_gone_before_it_was_taken_does_no_harm(papers: Path, settings) -> None:
    settings.ORDERLY_TLS_CERTIFICATE = str(papers / "server.pem")
    settings.ORDERLY_TLS_KEY = str(papers / "server.key")
    settings.ORDERLY_TLS_CA = str(papers / "ca.pem")
    registry, slots = Registry(), Slots()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        admission = Admission(StaticDirectory([]), registry, ["ORDERLY"], slots)
        server = Server({listener: tls_context()}, registry, admission, slots)
        for said in (b"", b"\x16\x03\x01"):
            gone = socket.create_connection(listener.getsockname())
            gone.sendall(said)
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            gone.close()  # by a reset, while it waits in the backlog
            server._loop(20)
            server._loop(0)
            assert not server._pending
        server._drain()


def test_echoscu_of_dcmtk_speaks_tls_with_us(port: int, papers: Path) -> None:
    subprocess.run(
        [require_peer("echoscu"), "+tls", str(papers / "scanner.key"), str(papers / "scanner.pem"), "+cf",
         str(papers / "ca.pem"), "-aet", "SCANNER", "-aec", "ORDERLY", "127.0.0.1", str(port)],
        check=True, timeout=30,
    )  # fmt: skip


def test_storescu_of_dcmtk_sends_over_tls(port: int, papers: Path, tmp_path: Path) -> None:
    origin, data = made(200_000)
    write_part10(tmp_path / "one.dcm", data)
    subprocess.run(
        [require_peer("storescu"), "+tls", str(papers / "scanner.key"), str(papers / "scanner.pem"), "+cf",
         str(papers / "ca.pem"), "-aet", "SCANNER", "-aec", "ORDERLY", "127.0.0.1", str(port),
         str(tmp_path / "one.dcm")], check=True, timeout=60,
    )  # fmt: skip
    assert spool.oldest()[0] == 1


def test_we_send_over_tls_to_storescp_of_dcmtk(papers: Path, tmp_path: Path, settings) -> None:
    """As routing and C-MOVE do: our certificate is shown, theirs is checked against our authority."""
    from pacs.services.move import _tls

    settings.ORDERLY_TLS_CERTIFICATE, settings.ORDERLY_TLS_KEY = (
        str(papers / "scanner.pem"),
        str(papers / "scanner.key"),
    )
    settings.ORDERLY_TLS_CA = str(papers / "ca.pem")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        theirs = probe.getsockname()[1]
    scp = subprocess.Popen(
        [require_peer("storescp"), "+tls", str(papers / "server.key"), str(papers / "server.pem"), "+cf",
         str(papers / "ca.pem"), "+B", "-od", str(tmp_path), str(theirs)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        origin, data = made(200_000)
        there = sender.Destination("127.0.0.1", theirs, "STORESCP", "ORDERLY", _tls())
        until = time.monotonic() + 60
        while True:
            try:
                with sender.associate(there, [(CT, (EXPLICIT,))]) as assoc:
                    assert assoc.store(origin, data) == 0
                break
            except Ended:
                assert time.monotonic() < until and scp.poll() is None
                time.sleep(0.1)
    finally:
        scp.terminate()
        scp.wait()
    (file,) = [path for path in tmp_path.iterdir() if path.is_file()]
    assert file.read_bytes().endswith(data)
