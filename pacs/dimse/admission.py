"""Who may associate, for what, and how many at once: asked before a peer gets a thread's full attention."""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from pacs.dimse.negotiation import Proposal, Reject, reject_busy, reject_called_ae, reject_calling_ae
from pacs.dimse.registry import Peer, Registry
from pacs.dimse.shared import STORAGE, UNKNOWN, Table, TableBusy

log = logging.getLogger(__name__)


class Directory(Protocol):
    """Knows the peers."""

    def lookup(self, calling: str, called: str, address: str, certificate: str | None) -> Peer | None:
        """The peer with this AE title calling from this address, or None. `certificate` is the SHA-256 (hex)
        of the one it showed, None without TLS. May raise; then nobody is admitted for now."""
        ...


@dataclass(frozen=True, slots=True)
class Known:
    """One row of a directory. `title` may be `*`; `host` an address, a network, a name, or `*`."""

    title: str
    host: str
    services: frozenset[str]
    certificate: str = ""  #: SHA-256 it must show; empty: none asked for
    options: Mapping[str, Any] = field(default_factory=dict)

    def admits(self, calling: str, address: str, certificate: str | None) -> bool:
        """Whether the caller is this peer."""
        if self.title not in ("*", calling):
            return False
        if self.certificate and self.certificate != certificate:
            return False
        return self.host in ("*", "") or _at(self.host, address)


def _at(host: str, address: str) -> bool:
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(host, strict=False)
    except ValueError:
        return address in _resolved(host)


_names: dict[str, tuple[float, frozenset[str]]] = {}


def _resolved(name: str) -> frozenset[str]:
    """The addresses of a host name, asked at most once a minute."""
    asked, found = _names.get(name, (0.0, frozenset()))
    if time.monotonic() - asked > 60 or not asked:
        try:
            found = frozenset(str(info[4][0]) for info in socket.getaddrinfo(name, None))
        except OSError:
            found = frozenset()
        _names[name] = (time.monotonic(), found)
    return found


class StaticDirectory:
    """A directory of given rows. The row that names title and host most closely is the peer."""

    def __init__(self, known: Iterable[Known]) -> None:
        # A title beats `*`, and a certificate, an address or a network beats `*`.
        self._known = sorted(
            known, key=lambda one: (one.title == "*", not one.certificate, one.host in ("*", ""))
        )

    def lookup(self, calling: str, called: str, address: str, certificate: str | None) -> Peer | None:
        """See Directory."""
        for one in self._known:
            if one.admits(calling, address, certificate):
                return Peer(calling, one.services, one.options)
        return None


class DatabaseDirectory:
    """The ApplicationEntity rows, read again every few seconds; the last reading serves while PostgreSQL is away."""

    def __init__(self, seconds: float = 2.0) -> None:
        self._seconds = seconds
        self._read_at = 0.0
        self._directory: StaticDirectory | None = None
        self._lock = threading.Lock()

    def lookup(self, calling: str, called: str, address: str, certificate: str | None) -> Peer | None:
        """See Directory."""
        return self._current().lookup(calling, called, address, certificate)

    def _current(self) -> StaticDirectory:
        with self._lock:
            now = time.monotonic()
            if self._directory is None or now - self._read_at > self._seconds:
                try:
                    self._directory = self._read()
                except Exception as error:
                    if self._directory is None:
                        raise
                    log.warning("peers cannot be read: %s", type(error).__name__)
                self._read_at = now
            return self._directory

    def _read(self) -> StaticDirectory:
        from pacs.models import ApplicationEntity

        rows = ApplicationEntity.objects.filter(enabled=True)
        return StaticDirectory(
            Known(
                row.title,
                row.host,
                frozenset(row.services),
                row.certificate_sha256.lower().replace(":", ""),
                row.settings,
            )
            for row in rows
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """How many associations there are at once, in all processes of a pool together."""

    total: int = 256
    storage: int = 192  #: of them with a storage class; the rest is for worklist, query and echo
    unknown: int = 16  #: of them by callers nobody knows
    one_address: int = 128

    @classmethod
    def of(cls, total: int) -> Limits:
        """So many in all, the others in proportion. Raises ValueError below 16."""
        if total < 16:
            raise ValueError(f"{total} associations at once are too few: give 16 or more")
        return cls(total, total * 3 // 4, max(total // 16, 2), total // 2)


class Slots:
    """Counts associations against their limits: of this process alone, or with the pool that shares `table`."""

    def __init__(self, limits: Limits = Limits(), table: Table | None = None) -> None:
        self._limits = limits
        self._table = table or Table(limits.total)
        self._lock = threading.Lock()
        self._mine = 0

    @property
    def limits(self) -> Limits:
        """What is held to."""
        return self._limits

    @property
    def taken(self) -> int:
        """How many associations this process serves."""
        return self._mine

    @contextmanager
    def one(self, address: str, *, known: bool, storage: bool) -> Iterator[None]:
        """Hold a slot for as long as the association lives. Raises Reject (local limit exceeded)."""
        limits = self._limits
        wanted = {"total": limits.total, "address": limits.one_address}
        flags = 0
        if storage:
            wanted["storage"], flags = limits.storage, flags | STORAGE
        if not known:
            wanted["unknown"], flags = limits.unknown, flags | UNKNOWN

        def judge(counts: Mapping[str, int]) -> None:
            for kind, limit in wanted.items():
                if counts[kind] >= limit:
                    raise reject_busy(f"limit of associations ({kind}: {limit})")

        try:
            row = self._table.take(flags, address, judge)
        except TableBusy as error:
            raise reject_busy(str(error)) from None
        with self._lock:
            self._mine += 1
        try:
            yield
        finally:
            self._table.give_back(row)
            with self._lock:
                self._mine -= 1


class Admission:
    """The judgement on one proposal: who it is, and whether it comes in."""

    def __init__(self, directory: Directory, registry: Registry, titles: Iterable[str], slots: Slots) -> None:
        self._directory, self._registry, self._slots = directory, registry, slots
        self._titles = frozenset(titles)

    def peer_of(self, proposal: Proposal, address: str, certificate: str | None) -> Peer | None:
        """The known peer; None for one that may only C-ECHO. Raises Reject when it asks for nothing but more."""
        if self._titles and proposal.called_ae not in self._titles:
            peer, rejection = None, reject_called_ae("called AE title is not ours")
        else:
            try:
                peer = self._directory.lookup(proposal.calling_ae, proposal.called_ae, address, certificate)
            except Exception as error:
                raise Reject(2, 3, 1, f"directory cannot be read ({type(error).__name__})") from None
            rejection = reject_calling_ae("nobody knows this AE title from this address")
        if peer is None and not any(self._service(c.abstract_syntax) == "echo" for c in proposal.contexts):
            raise rejection
        return peer

    def slot(self, proposal: Proposal, address: str, peer: Peer | None) -> Any:
        """A context manager that holds the association's slot; raises Reject on entering when there is none."""
        storage = any(self._service(c.abstract_syntax) == "store" for c in proposal.contexts)
        return self._slots.one(address, known=peer is not None, storage=storage and peer is not None)

    def _service(self, uid: str) -> str:
        entry = self._registry.find(uid)
        return entry.service if entry else ""
