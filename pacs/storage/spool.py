"""The spool: data sets go from the socket to the disk as they come, and a success may be told once `commit` returns.

Each process that receives has a folder of its own below the spool, and holds a lock on it while it lives::

    spool/<process>/lock
    spool/<process>/<n>.part                              a large object on its way; worth nothing yet
    spool/<process>/<n>-<ms>-<offset>-<size>-<sha256>.obj a large object, a whole Part 10 file
    spool/<process>/<n>.seg                               small objects, appended one after another
    spool/<process>/<n>.done                              how far the indexer is through a segment

An object of up to SMALL bytes is kept in memory until it is whole and then appended to the segment in one
write; those who wait for the disk at the same moment share one sync. A larger one streams into a file of
its own, which the volume later adopts without copying it. Every record carries its length and SHA-256, so
whatever a crash tore is known for what it is; nothing torn was ever answered with success.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import mmap
import os
import secrets
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings

from common.crashpoints import crashpoint
from pacs.storage.part10 import Origin, prefix
from pacs.storage.volume import sync_folder

SMALL = 64 * 1024
SEGMENT_BYTES = 32 * 1024 * 1024
RESERVE_BYTES = 512 * 1024 * 1024  #: below this much free space nothing more is taken

_MAGIC = b"ORD1"
#: magic, CRC-32 of all that follows, received (ms since 1970), offset of the data set, size of the file, SHA-256
_RECORD = struct.Struct("<4sIQII32s")


class SpoolFull(OSError):
    """No room: to be refused, and tried again by the sender later."""


class SpoolBroken(OSError):
    """A sync failed: what the disk holds is unknown. This process takes no more objects; it must be restarted."""


def root() -> Path:
    """Where the spool lies."""
    return Path(settings.DATA_DIR) / "spool"


class Spool:
    """The writing side, one for each process; its objects may be received by many threads at once."""

    def __init__(self, base: Path | None = None) -> None:
        base = base or root()
        base.mkdir(parents=True, exist_ok=True, mode=0o750)
        name = f"{os.getpid()}-{secrets.token_hex(6)}"
        self.folder = base / name
        self.folder.mkdir(mode=0o750)
        self._lock_fd = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR, 0o640)
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
        sync_folder(base)
        sync_folder(base.parent)  # which names the spool itself, perhaps for the first time
        self._numbers = itertools.count(1)
        self._segment: _Segment | None = None
        self._lock = threading.Lock()
        self.broken = False

    def begin(self, origin: Origin) -> Incoming:
        """Start to receive an object. Raises SpoolFull or SpoolBroken when nothing can be taken."""
        if self.broken:
            raise SpoolBroken("a sync failed earlier")
        room = os.statvfs(self.folder)
        if room.f_bavail * room.f_frsize < RESERVE_BYTES:
            raise SpoolFull("disk nearly full")
        return Incoming(self, origin)

    def path(self, suffix: str) -> Path:
        """A new name in this process's folder."""
        return self.folder / f"{next(self._numbers):08d}{suffix}"

    def append(self, record: list[bytes | bytearray]) -> None:
        """Add a whole record to the present segment and return when it is durable."""
        with self._lock:
            segment = self._segment
            if segment is None or segment.size >= SEGMENT_BYTES:
                segment = self._segment = self._new_segment()
            try:
                end = segment.append(record)
            except OSError as error:
                if not segment.cut():  # the next one begins a new segment, behind nothing half-written
                    self._segment = None
                raise SpoolFull(f"cannot write: {error.strerror}") from None
        try:
            segment.sync_to(end)
        except OSError as error:
            self.broken = True
            raise SpoolBroken(f"cannot sync: {error.strerror}") from None

    def _new_segment(self) -> _Segment:
        try:
            segment = _Segment(self.path(".seg"))
        except OSError as error:
            raise SpoolFull(f"cannot write: {error.strerror}") from None
        try:
            sync_folder(self.folder)
        except OSError as error:
            self.broken = True
            raise SpoolBroken(f"cannot sync: {error.strerror}") from None
        return segment

    def close(self) -> None:
        """Let go of the folder; what is in it is the indexer's now."""
        self._segment = None
        os.close(self._lock_fd)


_mine: tuple[int, Spool] | None = None
_mine_lock = threading.Lock()


def mine() -> Spool:
    """This process's spool, made at the first call."""
    global _mine
    with _mine_lock:
        if _mine is None or _mine[0] != os.getpid() or _mine[1].folder.parent != root():
            _mine = (os.getpid(), Spool())
        return _mine[1]


def broken() -> bool:
    """Whether a sync of this process failed, so that it should be restarted."""
    return _mine is not None and _mine[1].broken


class _Segment:
    """A file that whole records are appended to. The caller serialises appends; syncs are shared."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640)
        self.size = 0
        self._synced = 0
        self._syncing = False
        self._condition = threading.Condition()

    def append(self, record: list[bytes | bytearray]) -> int:
        length = sum(map(len, record))
        written = os.pwritev(self.fd, record, self.size)
        if written != length:  # the disk is full, or a signal came in between: once more, or fail
            rest = b"".join(record)[written:]
            if os.pwrite(self.fd, rest, self.size + written) != len(rest):
                raise OSError(28, "short write")
        self.size += length
        return self.size

    def cut(self) -> bool:
        """Drop what was written behind the last whole record; False when that cannot be done."""
        try:
            os.ftruncate(self.fd, self.size)
        except OSError:
            return False
        return True

    def sync_to(self, end: int) -> None:
        """Return once the first `end` bytes are durable; one thread syncs for all that wait."""
        with self._condition:
            while self._synced < end:
                if self._syncing:
                    self._condition.wait(60)
                    continue
                self._syncing, target = True, self.size
                self._condition.release()
                failed = True
                try:
                    os.fdatasync(self.fd)
                    failed = False
                finally:
                    self._condition.acquire()
                    self._syncing = False
                    if not failed:
                        self._synced = max(self._synced, target)
                    self._condition.notify_all()

    def __del__(self) -> None:
        os.close(self.fd)  # not earlier: others may still wait for its sync


class Incoming:
    """One object on its way in. Use from one thread; end it by `commit` or `discard`."""

    def __init__(self, spool: Spool, origin: Origin) -> None:
        self._spool = spool
        self.origin = origin
        self._prefix = prefix(origin)
        self.head = bytearray()  #: the data set while it is small
        self.size = 0  #: of the data set so far, in bytes
        self._hash = hashlib.sha256()
        self._fd: int | None = None
        self._path: Path | None = None

    def write(self, fragment: bytes | memoryview) -> None:
        """Take the next bytes of the data set. Raises SpoolFull when they cannot be kept."""
        self._hash.update(fragment)
        self.size += len(fragment)
        if self._fd is not None:
            self._write([fragment])
        elif self.size <= SMALL:
            self.head += fragment
        else:
            self._open()
            self._write([self._prefix, self.head, fragment])
            self.head = bytearray()

    def _write(self, pieces: list[Any]) -> None:
        assert self._fd is not None
        try:
            written = os.writev(self._fd, pieces)
            if written < sum(map(len, pieces)):
                rest = memoryview(b"".join(pieces))[written:]
                while rest:
                    rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            raise SpoolFull(f"cannot write: {error.strerror}") from None

    @contextmanager
    def received(self) -> Iterator[memoryview]:
        """All of the data set that has come so far, to look at: in memory or mapped, never copied."""
        if self._fd is None:
            with memoryview(self.head) as view:
                yield view
            return
        with (
            mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as whole,
            whole[len(self._prefix) :] as view,
        ):
            yield view

    def _open(self) -> None:
        path = self._spool.path(".part")
        try:
            self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o640)
        except OSError as error:
            raise SpoolFull(f"cannot write: {error.strerror}") from None
        self._path = path

    def commit(self) -> str:
        """Make the object durable and hand it to the indexer; gives the SHA-256 of the data set (hex).

        Raises SpoolFull or SpoolBroken; then nothing is kept.
        """
        digest = self._hash.digest()
        received = time.time_ns() // 1_000_000
        try:
            if self._fd is None:
                self._append(digest, received)
            else:
                self._name(digest, received)
        except OSError:
            self.discard()
            raise
        return digest.hex()

    def _append(self, digest: bytes, received: int) -> None:
        size = len(self._prefix) + self.size
        rest = struct.pack("<QII32s", received, len(self._prefix), size, digest)
        crc = zlib.crc32(self.head, zlib.crc32(self._prefix, zlib.crc32(rest)))
        crashpoint("spool.before_append")
        self._spool.append([_MAGIC, struct.pack("<I", crc), rest, self._prefix, self.head])
        crashpoint("spool.appended")

    def _name(self, digest: bytes, received: int) -> None:
        assert self._path is not None and self._fd is not None
        size = len(self._prefix) + self.size
        number = self._path.name.partition(".")[0]
        final = self._path.with_name(f"{number}-{received}-{len(self._prefix)}-{size}-{digest.hex()}.obj")
        crashpoint("spool.before_rename")
        try:
            os.rename(self._path, final)
            self._path = final
            crashpoint("spool.renamed")
            # The name is given first: one journal commit then covers both, and a name whose bytes a power
            # cut took away is told by its length and hash.
            os.fsync(self._fd)
            crashpoint("spool.file_synced")
            sync_folder(final.parent)
            crashpoint("spool.folder_synced")
        except OSError as error:
            self._spool.broken = True
            raise SpoolBroken(f"cannot sync: {error.strerror}") from None
        os.close(self._fd)
        self._fd = None

    def discard(self) -> None:
        """Forget the object: nothing of it stays."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None


# -- the reading side


@dataclass(frozen=True, slots=True)
class Entry:
    """A spooled object: a Part 10 file, lying alone (`end` is 0) or within a segment."""

    path: Path
    start: int  #: of the Part 10 file within `path`
    size: int  #: of the Part 10 file
    data_set_offset: int  #: within the Part 10 file
    sha256: str
    received_ms: int
    end: int  #: of the record within its segment
    orphaned: bool  #: its receiver is gone, so a power cut may lie between: verify before use

    @property
    def alone(self) -> bool:
        """True for an object in a file of its own."""
        return self.end == 0


@dataclass(frozen=True, slots=True)
class Torn:
    """Bytes of a dead receiver's segment that are no record, with whole ones possibly behind them."""

    path: Path
    start: int


def folders(base: Path | None = None) -> Iterator[tuple[Path, bool]]:
    """The folders of receivers, each with whether its process is gone."""
    base = base or root()
    try:
        found = sorted(entry.path for entry in os.scandir(base) if entry.is_dir())
    except FileNotFoundError:
        return
    for path in found:
        yield Path(path), not _alive(Path(path))


def _alive(folder: Path) -> bool:
    try:
        fd = os.open(folder / "lock", os.O_RDWR)
    except FileNotFoundError:  # being made, or being removed
        return time.time() - folder.stat().st_mtime < 60 if folder.exists() else False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def entries(folder: Path, orphaned: bool) -> Iterator[Entry | Torn]:
    """What waits in a receiver's folder, oldest first. A dead receiver's unfinished parts are removed."""
    names = sorted(os.listdir(folder))
    for name in names:
        path = folder / name
        if name.endswith(".obj"):
            entry = _entry_of_name(path, orphaned)
            if entry:
                yield entry
        elif name.endswith(".seg"):
            yield from _entries_of_segment(path, orphaned)
        elif name.endswith(".part") and orphaned:
            path.unlink(missing_ok=True)


def _entry_of_name(path: Path, orphaned: bool) -> Entry | None:
    try:
        _, received, offset, size, sha256 = path.name.removesuffix(".obj").split("-")
        return Entry(path, 0, int(size), int(offset), sha256, int(received), 0, orphaned)
    except ValueError:
        return None


def _entries_of_segment(path: Path, orphaned: bool) -> Iterator[Entry | Torn]:
    at = position(path)
    with path.open("rb") as file:
        length = os.fstat(file.fileno()).st_size
        while at + _RECORD.size <= length:
            magic, crc, received, offset, size, digest = _RECORD.unpack(
                os.pread(file.fileno(), _RECORD.size, at)
            )
            start = at + _RECORD.size
            whole = magic == _MAGIC and start + size <= length and size <= 4 * SMALL
            if not whole:
                break
            yield Entry(path, start, size, offset, digest.hex(), received, start + size, orphaned)
            at = start + size
        if orphaned and at < length:
            yield Torn(path, at)


def is_cut_off(rest: bytes) -> bool:
    """Whether the end of a segment is a record that a crash cut short, or was never written (zeros)."""
    if len(rest) < _RECORD.size:
        return rest.startswith(_MAGIC) or not rest.strip(b"\0") or _MAGIC.startswith(rest)
    magic, _, _, _, size, _ = _RECORD.unpack_from(rest)
    return not rest.strip(b"\0") or (magic == _MAGIC and len(rest) < _RECORD.size + size <= 5 * SMALL)


def raw(entry: Entry) -> bytes:
    """The bytes of an entry within a segment, whatever they are."""
    with entry.path.open("rb") as file:
        return os.pread(file.fileno(), entry.size, entry.start)


def read(entry: Entry) -> bytes:
    """The Part 10 file of a small entry. Raises ValueError when its bytes are not those that were received."""
    with entry.path.open("rb") as file:
        at = entry.start - _RECORD.size
        record = os.pread(file.fileno(), _RECORD.size + entry.size, at)
    (crc,) = struct.unpack_from("<I", record, 4)
    if len(record) < _RECORD.size + entry.size or zlib.crc32(memoryview(record)[8:]) != crc:
        raise ValueError("record torn")
    return record[_RECORD.size :]


def verify(entry: Entry) -> None:
    """Read a large entry and raise ValueError unless length and SHA-256 are those of its name."""
    digest = hashlib.sha256()
    with entry.path.open("rb") as file:
        if os.fstat(file.fileno()).st_size != entry.size:
            raise ValueError("length differs")
        file.seek(entry.data_set_offset)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != entry.sha256:
        raise ValueError("SHA-256 differs")


def position(segment: Path) -> int:
    """How far the indexer is through a segment, in bytes."""
    try:
        return int(segment.with_suffix(".done").read_text())
    except (FileNotFoundError, ValueError):
        return 0


def free(done: list[Entry]) -> None:
    """Let go of entries whose rows are committed. Losing this in a crash means to index them again."""
    ends: dict[Path, int] = {}
    for entry in done:
        if entry.alone:
            entry.path.unlink(missing_ok=True)
        else:
            ends[entry.path] = max(ends.get(entry.path, 0), entry.end)
    for path, end in ends.items():
        note = path.with_suffix(".done")
        draft = path.with_suffix(".new")
        draft.write_text(str(end))
        draft.replace(note)


def clean(folder: Path, orphaned: bool) -> None:
    """Remove segments that are read to their end, all but a live receiver's newest; and an empty dead folder."""
    segments = sorted(folder.glob("*.seg"))
    for path in segments if orphaned else segments[:-1]:
        if position(path) >= path.stat().st_size:
            path.unlink()
            path.with_suffix(".done").unlink(missing_ok=True)
    # A folder that is this young may be one whose receiver is just about to take its lock.
    settled = time.time() - folder.stat().st_mtime > 10
    if orphaned and settled and {entry.name for entry in os.scandir(folder)} <= {"lock"}:
        (folder / "lock").unlink(missing_ok=True)
        folder.rmdir()


def oldest(base: Path | None = None) -> tuple[int, float | None]:
    """How many files hold unindexed objects, and when the oldest was last written (Unix seconds)."""
    count, since = 0, None
    for folder, _ in folders(base):
        for entry in os.scandir(folder):
            try:
                path = Path(entry.path)
                if path.suffix == ".obj" or (path.suffix == ".seg" and entry.stat().st_size > position(path)):
                    at = entry.stat().st_mtime
                else:
                    continue
            except FileNotFoundError:
                continue
            count, since = count + 1, min(at, since or at)
    return count, since
