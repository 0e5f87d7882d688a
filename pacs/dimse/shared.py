"""The table of associations that the processes of one pool share, so that limits hold for all of them together.

It is a file without a name, mapped by each process: one row an association, with the number of the process
that serves it, its kind, and its caller's address. The rows of a process that died are cleared by the one
that starts it again.
"""

from __future__ import annotations

import fcntl
import ipaddress
import mmap
import os
import struct
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256

_ROW = struct.Struct("BB16s")  # owner (0: free), flags, address
LOCK_SECONDS = 2.0  #: others hold the lock for microseconds; a process that was stopped holds it longer

STORAGE, UNKNOWN = 1, 2  #: flags of an association
Judge = Callable[["Counter[str]"], None]


class TableBusy(OSError):
    """The table is held by a process that does not go on."""


class Table:
    """`rows` associations at most. `fd` is a file made by `file`; without one the table is this process's own."""

    def __init__(self, rows: int, fd: int | None = None, owner: int = 1) -> None:
        if not 1 <= owner <= 255:
            raise ValueError(f"process {owner} of a pool: there may be 255")
        self._fd, self._owner, self._rows = fd, owner, rows
        self._memory = mmap.mmap(-1 if fd is None else fd, rows * _ROW.size)
        self._threads = threading.Lock()

    @staticmethod
    def file(rows: int) -> int:
        """A file descriptor for a table of so many rows, to be handed to the processes of a pool."""
        with tempfile.TemporaryFile(prefix="orderly-dicom-") as made:
            os.ftruncate(made.fileno(), rows * _ROW.size)
            return os.dup(made.fileno())

    def take(self, flags: int, address: str, judge: Judge) -> int:
        """Take a free row; gives its number. `judge` sees the counts first (`total`, `storage`, `unknown` and
        the caller's own address as `address`) and raises when there are too many. Raises TableBusy."""
        key = _key(address)
        with self._locked():
            counts: Counter[str] = Counter()
            free = -1
            for row, (owner, held, where) in enumerate(_ROW.iter_unpack(self._memory[:])):
                if not owner:
                    free = row if free < 0 else free
                    continue
                counts["total"] += 1
                counts["storage"] += bool(held & STORAGE)
                counts["unknown"] += bool(held & UNKNOWN)
                counts["address"] += where == key
            judge(counts)
            if free < 0:
                raise TableBusy("no row is free")
            _ROW.pack_into(self._memory, free * _ROW.size, self._owner, flags, key)
            return free

    def give_back(self, row: int) -> None:
        """The association ended."""
        self._memory[row * _ROW.size] = 0  # one byte: nobody sees half of it

    def forget(self, owner: int) -> None:
        """Clear the rows of a process that died; no lock is needed, for nobody else touches them."""
        for row, (held_by, _, _) in enumerate(_ROW.iter_unpack(self._memory[:])):
            if held_by == owner:
                self.give_back(row)

    def count(self) -> int:
        """How many associations there are."""
        return sum(1 for owner, _, _ in _ROW.iter_unpack(self._memory[:]) if owner)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._threads:
            if self._fd is None:
                yield
                return
            deadline = time.monotonic() + LOCK_SECONDS
            while True:
                try:
                    fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with its process
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise TableBusy("the table of associations is held") from None
                    time.sleep(0.0005)
            try:
                yield
            finally:
                fcntl.lockf(self._fd, fcntl.LOCK_UN)


def _key(address: str) -> bytes:
    try:
        return ipaddress.ip_address(address).packed.rjust(16, b"\0")
    except ValueError:
        return sha256(address.encode()).digest()[:16]
