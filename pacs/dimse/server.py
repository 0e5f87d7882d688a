"""The DICOM listener: a pool of processes that accept on one socket, each serving every service.

In each process one loop accepts connections and gathers their association requests; idle or slow callers
never get further than this loop, which drops the oldest of them when it holds too many. A caller whose
request is whole gets a thread for as long as its association lives.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from django.conf import settings
from django.db import close_old_connections, connections

from common.process import Context as Surroundings
from pacs.dimse import negotiation, stream
from pacs.dimse.admission import Admission, DatabaseDirectory, Limits, Slots
from pacs.dimse.association import ServedAssociation
from pacs.dimse.errors import Ended, ProtocolError
from pacs.dimse.negotiation import Reject
from pacs.dimse.registry import Registry, load
from pacs.dimse.shared import Table
from pacs.storage import spool

log = logging.getLogger(__name__)

#: What the archive serves by itself; the setting ORDERLY_DIMSE_SERVICES names more.
SERVICES = tuple(f"pacs.services.{name}" for name in ("echo", "store", "find", "move", "get"))

SET_UP_SECONDS = 5.0  #: from the connection to the last byte of the association request
MAX_PENDING = 128  #: connections without a whole request
MAX_PENDING_BYTES = 16 * 1024 * 1024  #: of theirs, held in memory
MORE_THREADS = 64  #: beside those of associations: callers that are being refused
IDLE_SECONDS = 300.0  #: between messages of a known peer
UNKNOWN_IDLE_SECONDS = 10.0  #: and of one that may only C-ECHO
DRAIN_SECONDS = 12.0  #: a busy association may go on so long after SIGTERM
CHILD_DELAY = 1.0


@dataclass(eq=False)
class Pending:
    """A connection whose association request has not come in whole."""

    sock: socket.socket
    address: str
    deadline: float
    received: bytearray = field(default_factory=bytearray)
    shaking_hands: bool = False  # TLS

    def step(self) -> bool:
        """Read what is there; True when the request is whole. Raises ProtocolError or OSError."""
        if self.shaking_hands:
            self.sock.do_handshake()  # type: ignore[attr-defined]
            self.shaking_hands = False
        while True:
            missing = self._missing()
            if missing <= 0:
                return True
            chunk = self.sock.recv(min(missing, 65536))
            if not chunk:
                raise ConnectionResetError("closed before associating")
            self.received += chunk

    def _missing(self) -> int:
        if len(self.received) < 6:
            return 6 - len(self.received)
        pdu_type, length = stream.HEADER.unpack_from(self.received)
        if pdu_type != stream.ASSOCIATE_RQ:
            raise ProtocolError(f"PDU type {pdu_type:02X} before association", ProtocolError.UNEXPECTED_PDU)
        stream.check_length(pdu_type, length, stream.MAX_PDU)
        return int(6 + length - len(self.received))


class Server:
    """One process's share of the listener."""

    def __init__(
        self,
        listeners: dict[socket.socket, ssl.SSLContext | None],
        registry: Registry,
        admission: Admission,
        slots: Slots,
        *,
        shares: bool = False,
        audit: Callable[[str, str, str], None] = lambda calling, address, reason: None,
    ) -> None:
        self._listeners, self._registry, self._admission, self._slots = listeners, registry, admission, slots
        self._shares, self._audit = shares, audit
        self._selector = selectors.DefaultSelector()
        self._pending: dict[socket.socket, Pending] = {}  # oldest first
        self._threads: set[threading.Thread] = set()
        self._stop_at: float | None = None
        for listener in listeners:
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ)

    def run(self, stopping: threading.Event, beat: Callable[[], None] = lambda: None) -> None:
        """Serve until `stopping` is set; then let associations end, within DRAIN_SECONDS and a little."""
        while not stopping.is_set() and not spool.broken():
            self._loop(0.25)
            beat()
        self._drain()

    # -- the door

    def _loop(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            sock = key.fileobj
            if sock in self._listeners:
                self._accept(sock)  # type: ignore[arg-type]
            else:
                pending = self._pending.get(sock)  # type: ignore[call-overload]
                if pending is not None:  # else it was dropped for the one that was just taken
                    self._advance(pending)
        now = time.monotonic()
        for pending in [p for p in self._pending.values() if p.deadline < now]:
            self._drop(pending)

    def _accept(self, listener: socket.socket) -> None:
        if self._shares and len(self._pending) < 4:
            # The less a process has to do, the sooner it takes the next caller: that balances the pool.
            time.sleep(min(self._slots.taken + len(self._pending), 4) * 0.001)
        try:
            sock, peer = listener.accept()
        except OSError:  # another process was quicker, or the caller is gone already
            return
        sock.setblocking(False)
        context = self._listeners[listener]
        if context is not None:
            try:
                sock = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            except OSError:  # gone by a reset
                sock.close()
                return
        pending = Pending(
            sock, str(peer[0]), time.monotonic() + SET_UP_SECONDS, shaking_hands=context is not None
        )
        while len(self._pending) >= MAX_PENDING or self._pending_bytes() > MAX_PENDING_BYTES:
            self._drop(self._oldest_of_the_greediest())
        self._pending[sock] = pending
        self._selector.register(sock, selectors.EVENT_READ)
        self._advance(pending)

    def _pending_bytes(self) -> int:
        return sum(len(pending.received) for pending in self._pending.values())

    def _oldest_of_the_greediest(self) -> Pending:
        """Who goes when there are too many: an honest caller asks at once, so the oldest is none."""
        address = Counter(pending.address for pending in self._pending.values()).most_common(1)[0][0]
        return next(pending for pending in self._pending.values() if pending.address == address)

    def _advance(self, pending: Pending) -> None:
        try:
            if not pending.step():
                return
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except ssl.SSLWantWriteError:
            return  # the handshake's few bytes fit any socket buffer; else the deadline ends it
        except ProtocolError as error:
            self._forget(pending)
            _last_word(pending.sock, stream.abort_pdu(2, error.reason))
            return
        except (OSError, ValueError):
            self._drop(pending)
            return
        self._forget(pending)
        if len(self._threads) >= self._slots.limits.total + MORE_THREADS:
            _last_word(pending.sock, stream.reject_pdu(2, 3, 2))
            return
        thread = threading.Thread(target=self._associate, args=(pending,), daemon=True, name="association")
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:  # no more threads to be had
            self._threads.discard(thread)
            _last_word(pending.sock, stream.reject_pdu(2, 3, 1))

    def _forget(self, pending: Pending) -> None:
        self._pending.pop(pending.sock, None)
        self._selector.unregister(pending.sock)

    def _drop(self, pending: Pending) -> None:
        self._forget(pending)
        pending.sock.close()

    # -- one association, in its thread

    def _associate(self, pending: Pending) -> None:
        calling = ""
        try:
            wire = stream.Stream(pending.sock)
        except OSError:  # gone in the meantime
            pending.sock.close()
            self._threads.discard(threading.current_thread())
            return
        try:
            proposal = negotiation.read_request(memoryview(pending.received)[6:])
            calling = proposal.calling_ae
            peer = self._admission.peer_of(proposal, pending.address, _certificate_of(pending.sock))
            with self._admission.slot(proposal, pending.address, peer):
                agreement = negotiation.agree(proposal, peer, self._registry)
                max_data = negotiation.check_max_data(proposal.max_data)
                for uid in agreement.denied:
                    self._audit(calling, pending.address, f"no right to {uid}")
                close_old_connections()  # an association that only idles must not hold one of the pool
                wire.write(agreement.pdu)
                assoc = ServedAssociation(
                    wire,
                    agreement.contexts,
                    max_data,
                    registry=self._registry,
                    peer=peer,
                    calling_ae=calling,
                    called_ae=proposal.called_ae,
                    address=pending.address,
                    idle_seconds=IDLE_SECONDS if peer else UNKNOWN_IDLE_SECONDS,
                    leave=self._leave,
                    after_request=close_old_connections,
                )
                log.debug("%s from %s", assoc.id, pending.address)
                log.debug("%s ended: %s", assoc.id, assoc.serve())
        except Reject as rejection:
            log.info("association from %s rejected: %s", pending.address, rejection)
            self._audit(calling, pending.address, str(rejection))
            _say_and_close(wire, stream.reject_pdu(rejection.result, rejection.source, rejection.reason))
        except ProtocolError as error:
            _say_and_close(wire, stream.abort_pdu(2, error.reason))
        except Exception as error:
            if not isinstance(error, Ended):
                log.error("association from %s failed: %s", pending.address, type(error).__name__)
            wire.close()
        finally:
            connections.close_all()
            self._threads.discard(threading.current_thread())

    def _leave(self, busy: bool) -> bool:
        """Whether an association should end now because the process does: idle ones at once, busy ones later."""
        if spool.broken():
            return True
        if self._stop_at is None:
            return False
        return not busy or time.monotonic() > self._stop_at + DRAIN_SECONDS

    def _drain(self) -> None:
        self._stop_at = time.monotonic()
        for listener in self._listeners:
            self._selector.unregister(listener)
        while self._pending and time.monotonic() < self._stop_at + 1:
            self._loop(0.1)  # callers that were accepted in the last moment
        for pending in list(self._pending.values()):
            self._drop(pending)
        deadline = self._stop_at + DRAIN_SECONDS + 3
        for thread in list(self._threads):
            thread.join(max(deadline - time.monotonic(), 0))
        self._selector.close()


def _say_and_close(wire: stream.Stream, pdu: bytes) -> None:
    try:
        wire.write(pdu)
        wire.close_after_peer()
    except Ended:
        wire.close()


def _last_word(sock: socket.socket, pdu: bytes) -> None:
    """Tell a caller why, if its socket takes it at once, and close."""
    try:
        sock.send(pdu)
    except (OSError, ValueError):
        pass
    sock.close()


def _certificate_of(sock: socket.socket) -> str | None:
    if not isinstance(sock, ssl.SSLSocket):
        return None
    shown = sock.getpeercert(binary_form=True)
    return sha256(shown).hexdigest() if shown else None


# -- the process


class AuditOfRefusals:
    """Writes a refusal into the audit trail; the same one at most once a minute, lest a caller fill the disk."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: dict[tuple[str, str, str], float] = {}

    def __call__(self, calling: str, address: str, reason: str) -> None:
        from common import audit

        now = time.monotonic()
        with self._lock:
            if now - self._told.get((calling, address, reason), -60.0) < 60 or len(self._told) > 10_000:
                return
            self._told = {key: at for key, at in self._told.items() if now - at < 60}
            self._told[calling, address, reason] = now
        try:
            audit.record(f"ae:{calling}", "refuse", "association", detail={"reason": reason}, address=address)
        except Exception as error:
            log.warning("a refusal could not be audited: %s", type(error).__name__)


def tls_context() -> ssl.SSLContext:
    """TLS 1.2 and 1.3 with client certificates required (PS3.15 B.12), from the ORDERLY_TLS_ settings."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:DHE+AESGCM:ECDHE+CHACHA20:!aNULL")
    context.load_cert_chain(settings.ORDERLY_TLS_CERTIFICATE, settings.ORDERLY_TLS_KEY or None)
    if settings.ORDERLY_TLS_CA:
        context.load_verify_locations(settings.ORDERLY_TLS_CA)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def main(ctx: Surroundings) -> None:
    """The process `dicom`: starts the rest of the pool by exec, serves its own share, and ends with all of it."""
    is_first = "ORDERLY_DICOM_MEMBER" not in os.environ
    size = int(os.environ.get("ORDERLY_DICOM_PROCESSES") or max(2, min(os.cpu_count() or 2, 8)))
    limits = Limits.of(int(os.environ.get("ORDERLY_DICOM_ASSOCIATIONS") or Limits().total))
    table_fd = Table.file(limits.total) if is_first else int(os.environ["ORDERLY_DICOM_TABLE"])
    table = Table(limits.total, table_fd, int(os.environ.get("ORDERLY_DICOM_MEMBER", "0")) + 1)
    pool = Pool(ctx, size - 1, table, table_fd) if is_first else None
    if pool:
        pool.start()
    registry = load((*SERVICES, *getattr(settings, "ORDERLY_DIMSE_SERVICES", ())))
    slots = Slots(limits, table)
    titles = getattr(settings, "ORDERLY_AE_TITLES", None) or [settings.ORDERLY_AE_TITLE]
    admission = Admission(DatabaseDirectory(), registry, titles, slots)
    listeners: dict[socket.socket, ssl.SSLContext | None] = {}
    for name, listener in ctx.sockets.items():
        listeners[listener] = tls_context() if name.endswith("_tls") else None
    server = Server(listeners, registry, admission, slots, shares=size > 1, audit=AuditOfRefusals())
    if pool:
        pool.serves()
    else:
        ctx.ready()
    try:
        server.run(ctx.stopping, pool.look_after if pool else ctx.beat)
    finally:
        if pool:
            pool.stop()
    if spool.broken():
        log.critical("a sync to disk failed; this process ends so that it is started afresh")
        sys.exit(1)


class Pool:
    """The other processes of the listener, started by exec on the same sockets and started again when they die."""

    def __init__(self, ctx: Surroundings, size: int, table: Table, table_fd: int) -> None:
        self._ctx, self._size = ctx, size
        self._table, self._table_fd = table, table_fd  # of the associations of all
        self._children: list[subprocess.Popen[bytes]] = []
        self._heard, self._said = os.pipe()  # members say `ready` here
        self._lifeline = os.pipe()  # and see by this one that we are gone
        self._ready = 0
        self._start_at = 0.0
        os.set_blocking(self._heard, False)

    def start(self) -> None:
        """Start the members."""
        while len(self._children) < self._size:
            self._children.append(self._start(len(self._children) + 1))

    def serves(self) -> None:
        """We serve ourselves; `ctx.ready()` is said once all do."""
        self._ready += 1
        self._say_ready()

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        sockets = {name: sock.fileno() for name, sock in self._ctx.sockets.items()}
        environment = {
            **os.environ,
            "ORDERLY_SUPERVISED": str(os.getpid()),
            "ORDERLY_DICOM_MEMBER": str(number),
            "ORDERLY_DICOM_TABLE": str(self._table_fd),
            "ORDERLY_SOCKETS": ",".join(f"{name}={fd}" for name, fd in sockets.items()),
            "ORDERLY_STATUS_FD": str(self._said),
            "ORDERLY_LIFELINE_FD": str(self._lifeline[0]),
        }
        return subprocess.Popen(
            [sys.executable, str(Path(settings.BASE_DIR) / "manage.py"), "run", "dicom"],
            stdin=subprocess.DEVNULL,
            pass_fds=[*sockets.values(), self._said, self._lifeline[0], self._table_fd],
            env=environment,
        )

    def look_after(self) -> None:
        """Start dead members again, and give our own sign of life."""
        self._ctx.beat()
        self._say_ready()
        for at, child in enumerate(self._children):
            if child.poll() is not None and time.monotonic() >= self._start_at:
                log.error("a process of the DICOM pool ended (%s); started again", child.returncode)
                self._start_at = time.monotonic() + CHILD_DELAY
                self._table.forget(at + 2)  # member 1 is the second process
                self._children[at] = self._start(at + 1)

    def _say_ready(self) -> None:
        try:
            self._ready += os.read(self._heard, 4096).count(b"ready")
        except BlockingIOError:
            pass
        if self._ready > self._size:
            self._ctx.ready()

    def stop(self) -> None:
        """End the members, which drain as we do."""
        for child in self._children:
            child.terminate()
        deadline = time.monotonic() + DRAIN_SECONDS + 4
        for child in self._children:
            try:
                child.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
