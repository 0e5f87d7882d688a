"""The spool: data sets go from the socket to the disk as they come, and a success may be told once `commit` returns.

Each process that receives has a folder of its own below the spool, and holds a lock on it while it lives::

    spool/<process>/lock
    spool/<process>/<n>-<salt>.seg                        objects of up to BUFFER bytes, one after another
    spool/<process>/<n>-<salt>.done                       how far the indexer is through that segment
    spool/<process>/<n>.part                              a large object on its way; worth nothing yet
    spool/<process>/<n>-<ms>-<offset>-<size>-<sha256>.obj a large object, a whole Part 10 file
    spool/spare/<name>.seg                                segments that are read, to be written over

An object is kept in memory until it is whole and then written into the present segment; those who wait for the
disk at the same moment share one sync. A segment that the indexer has read is used again: to write over blocks
that are there already is durable without a commit of the file system's journal, which would wait for whatever
else is being written on that disk. What it held before is told by its salt: only records with the salt of the
file's present name count. The page with a record's header is written last, so a receiver killed midway leaves no
record; what a power cut tore is told by length and SHA-256. Nothing torn was ever answered with success.

An object that outgrows its buffer streams into a file of its own, one buffer being hashed and written while the
next fills; the volume later adopts that file without copying it.
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
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings

from common.crashpoints import crashpoint
from pacs.storage.part10 import Origin, prefix
from pacs.storage.volume import sync_folder

HEAD = 64 * 1024  #: a smaller object takes no buffer
BUFFER = 1024 * 1024  #: of an object on its way; a larger object gets a file of its own
BUFFERS = 24  #: of a process: however many send at once, it holds no more; others stream into files
SEGMENT_BYTES = 32 * 1024 * 1024
SPARES = 16  #: segments kept to be written over
RESERVE_BYTES = 512 * 1024 * 1024  #: below this much free space nothing more is taken

LOOK_SECONDS = 0.1  #: between two looks at how much space is free

PAGE = 4096  #: records begin at pages, so that nothing written before is written again
_MAGIC = b"ORD2"
#: magic, CRC-32 of what follows in this header, salt, received (ms since 1970), offset of the data set, size of
#: the file, SHA-256 of the data set
_RECORD = struct.Struct("<4sI8sQII32s")
_BEHIND = 8 * 1024 * 1024  #: of a large object: so much is written before the disk is told to begin


class SpoolFull(OSError):
    """No room: to be refused, and tried again by the sender later."""


class SpoolBroken(OSError):
    """A sync failed: what the disk holds is unknown. This process takes no more objects; it must be restarted."""


SPARE = "spare"


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
        self._buffers: list[bytearray] = []
        self._made = 0
        self._free, self._looked = 0, -1.0
        self.workers = ThreadPoolExecutor(4, thread_name_prefix="spool")  #: they hash and write large objects
        self.broken = False

    def begin(self, origin: Origin) -> Incoming:
        """Start to receive an object. Raises SpoolFull or SpoolBroken when nothing can be taken."""
        if self.broken:
            raise SpoolBroken("a sync failed earlier")
        if self._free_bytes() < RESERVE_BYTES:
            raise SpoolFull("disk nearly full")
        return Incoming(self, origin)

    def _free_bytes(self) -> int:
        """Free space of the disk, as it was a moment ago."""
        at = time.monotonic()
        if not 0 <= at - self._looked < LOOK_SECONDS:
            room = os.statvfs(self.folder)
            self._free, self._looked = room.f_bavail * room.f_frsize, at
        return self._free

    def path(self, suffix: str) -> Path:
        """A new name in this process's folder."""
        return self.folder / f"{next(self._numbers):08d}{suffix}"

    def append(self, origin_prefix: bytes, data: memoryview, digest: bytes, received: int) -> None:
        """Write a record into the present segment and return when it is durable."""
        size = len(origin_prefix) + len(data)
        with self._lock:
            segment = self._segment
            if segment is None or segment.size + stride(size) > SEGMENT_BYTES:
                segment = self._segment = self._new_segment()
            try:
                end = segment.append(origin_prefix, data, digest, received)
            except OSError as error:
                raise SpoolFull(f"cannot write: {error.strerror}") from None
        crashpoint("spool.appended")
        try:
            segment.sync_to(end)
        except OSError as error:
            self.broken = True
            raise SpoolBroken(f"cannot sync: {error.strerror}") from None

    def _new_segment(self) -> _Segment:
        try:
            spare = self._spare()
            segment = _Segment(spare or self._fresh())
        except OSError as error:
            raise SpoolFull(f"cannot write: {error.strerror}") from None
        crashpoint("spool.segment_named")
        try:
            if spare:  # it may not be long ago that it came there
                sync_folder(self.folder.parent / SPARE)
            sync_folder(self.folder)
        except OSError as error:
            self.broken = True
            raise SpoolBroken(f"cannot sync: {error.strerror}") from None
        crashpoint("spool.segment_begun")
        return segment

    def _name(self) -> Path:
        return self.path(f"-{secrets.token_hex(8)}.seg")

    def _spare(self) -> Path | None:
        """A segment to be written over, given its new name and with it its salt; None when there is none."""
        spares = self.folder.parent / SPARE
        for name in os.listdir(spares) if spares.is_dir() else ():
            path = self._name()
            with suppress(FileNotFoundError):  # another process was quicker
                os.rename(spares / name, path)
                return path
        return None

    def _fresh(self) -> Path:
        path = self._name()
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640))
        return path

    def lend(self) -> bytearray | None:
        """A buffer of BUFFER bytes, to be given back; None when all are lent."""
        with self._lock:
            if self._buffers:
                return self._buffers.pop()
            if self._made >= BUFFERS:
                return None
            self._made += 1
        return bytearray(BUFFER)

    def give_back(self, buffer: bytearray) -> None:
        """A buffer that nothing looks at any more."""
        with self._lock:
            self._buffers.append(buffer)

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


def stride(size: int) -> int:
    """What a record of a file of `size` bytes takes of a segment: whole pages."""
    return -(-(_RECORD.size + size) // PAGE) * PAGE


class _Segment:
    """A file that records are written into. The caller serialises appends; syncs are shared."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_WRONLY)
        self.size = 0
        self._salt = salt_of(path)
        self._synced = 0
        self._syncing = False
        self._condition = threading.Condition()

    def append(self, origin_prefix: bytes, data: memoryview, digest: bytes, received: int) -> int:
        """Write a record behind the others; gives the segment's new end. After an OSError there is none."""
        size = len(origin_prefix) + len(data)
        fields = struct.pack("<8sQII32s", self._salt, received, len(origin_prefix), size, digest)
        first = _MAGIC + struct.pack("<I", zlib.crc32(fields)) + fields + origin_prefix
        room = PAGE - len(first)
        first += data[:room]
        first += bytes(PAGE - len(first))
        end = self.size + stride(size)
        if size > PAGE - _RECORD.size:
            rest = data[room:]
            self._write([rest, bytes(-len(rest) % PAGE)], self.size + PAGE)
            crashpoint("spool.half_appended")
        self._write([first], self.size)
        self.size = end
        return end

    def _write(self, pieces: list[bytes | memoryview], at: int) -> None:
        length = sum(map(len, pieces))
        written = os.pwritev(self.fd, pieces, at)
        if written != length:  # the disk is full, or a signal came in between: once more, or fail
            rest = b"".join(pieces)[written:]
            if os.pwrite(self.fd, rest, at + written) != len(rest):
                raise OSError(28, "short write")

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
        self.size = 0  #: of the data set so far, in bytes
        self._hash = hashlib.sha256()
        self._memory = bytearray()  # the data set while it is small; then a buffer that is lent
        self._lent = False
        self._part: _Part | None = None

    def write(self, fragment: bytes | memoryview) -> None:
        """Take the next bytes of the data set. Raises SpoolFull when they cannot be kept."""
        before, self.size = self.size, self.size + len(fragment)
        if self._part is not None:
            self._part.write(fragment)
            return
        if not self._lent and self.size > HEAD:
            self._borrow(before)
        if not self._lent and self.size <= HEAD:
            self._memory += fragment
        elif self._lent and self.size <= BUFFER:
            with memoryview(self._memory) as buffer:  # a bytearray would copy the fragment once more
                buffer[before : self.size] = fragment
        else:
            self._outgrow(before)
            assert self._part is not None
            self._part.write(fragment)
            return
        self._hash.update(fragment)

    def _borrow(self, held: int) -> None:
        buffer = self._spool.lend()
        if buffer is not None:
            buffer[:held] = self._memory
            self._memory, self._lent = buffer, True

    def _outgrow(self, held: int) -> None:
        """Go on in a file, with what is held so far."""
        self._part = _Part(self._spool, self._hash, [self._prefix, memoryview(self._memory)[:held]])
        self._return()

    def _return(self) -> None:
        if self._lent:
            self._spool.give_back(self._memory)
        self._memory, self._lent = bytearray(), False

    @contextmanager
    def received(self) -> Iterator[memoryview]:
        """All of the data set that has come so far, to look at: in memory or mapped, never copied."""
        if self._part is None:
            with memoryview(self._memory) as whole, whole[: self.size] as view:
                yield view
            return
        self._part.flush()
        with (
            mmap.mmap(self._part.fd, 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as whole,
            whole[len(self._prefix) :] as view,
        ):
            yield view

    def commit(self) -> str:
        """Make the object durable and hand it to the indexer; gives the SHA-256 of the data set (hex).

        Raises SpoolFull or SpoolBroken; then nothing is kept.
        """
        received = time.time_ns() // 1_000_000
        try:
            if self._part is None:
                digest = self._hash.digest()
                crashpoint("spool.before_append")
                with self.received() as data:
                    self._spool.append(self._prefix, data, digest, received)
                crashpoint("spool.synced")
            else:
                self._part.flush()
                digest = self._hash.digest()
                self._part.name(
                    f"-{received}-{len(self._prefix)}-{len(self._prefix) + self.size}-{digest.hex()}.obj"
                )
        except OSError:
            self.discard()
            raise
        self._return()
        self._part = None
        return digest.hex()

    def discard(self) -> None:
        """Forget the object: nothing of it stays."""
        self._return()
        if self._part is not None:
            self._part.remove()
            self._part = None


class _Part:
    """The file of a large object while it comes: one buffer is hashed and written while the other one fills."""

    def __init__(self, spool: Spool, hasher: Any, begun: list[bytes | memoryview]) -> None:
        self._spool, self._hash = spool, hasher
        self._path: Path | None = spool.path(".part")
        self._at = self._told = 0  # bytes written; bytes that the disk was told to begin with
        self._filling, self._used = spool.lend(), 0
        self._flying: Future[None] | None = None
        self._other = spool.lend() if self._filling is not None else None
        try:
            self.fd = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o640)
        except OSError as error:
            self._return()
            raise SpoolFull(f"cannot write: {error.strerror}") from None
        try:
            self._write(begun)
        except SpoolFull:
            self.remove()
            raise

    def write(self, fragment: bytes | memoryview) -> None:
        """Take the next bytes. Raises SpoolFull, for these or earlier ones."""
        if self._filling is None:  # no buffer could be had
            self._keep(fragment)
            return
        view = memoryview(fragment)
        while view:
            count = min(len(view), BUFFER - self._used)
            with memoryview(self._filling) as buffer:
                buffer[self._used : self._used + count] = view[:count]
            self._used += count
            view = view[count:]
            if self._used == BUFFER:
                self._hand_over()

    def _hand_over(self) -> None:
        self._settle()
        assert self._filling is not None
        full = memoryview(self._filling)[: self._used]
        self._flying = self._spool.workers.submit(self._keep, full)
        self._used = 0
        if self._other is None:
            self._settle()
        else:
            self._filling, self._other = self._other, self._filling

    def _settle(self) -> None:
        """Wait until the buffer that was handed over is written. Raises SpoolFull."""
        flying, self._flying = self._flying, None
        if flying is not None:
            flying.result()

    def _keep(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        self._write([data])

    def _write(self, pieces: list[bytes | memoryview]) -> None:
        length = sum(map(len, pieces))
        try:
            written = os.writev(self.fd, pieces)
            if written < length:
                rest = memoryview(b"".join(pieces))[written:]
                while rest:
                    rest = rest[os.write(self.fd, rest) :]
            self._at += length
            if self._at - self._told >= _BEHIND:
                # Linux begins to write what it is told to drop: the sync at the end then finds little left to do.
                os.posix_fadvise(self.fd, self._told, self._at - self._told, os.POSIX_FADV_DONTNEED)
                self._told = self._at
        except OSError as error:
            raise SpoolFull(f"cannot write: {error.strerror}") from None

    def flush(self) -> None:
        """Return once all that was taken is hashed and written to the file. Raises SpoolFull."""
        if self._used:
            self._hand_over()
        self._settle()

    def name(self, ending: str) -> None:
        """Give the file its final name and make both durable. Raises SpoolBroken."""
        assert self._path is not None
        final = self._path.with_name(self._path.stem + ending)
        crashpoint("spool.before_rename")
        try:
            os.rename(self._path, final)
            self._path = final
            crashpoint("spool.renamed")
            # The name is given first: one journal commit then covers both, and a name whose bytes a power
            # cut took away is told by its length and hash.
            os.fsync(self.fd)
            crashpoint("spool.file_synced")
            sync_folder(final.parent)
            crashpoint("spool.folder_synced")
        except OSError as error:
            self._spool.broken = True
            raise SpoolBroken(f"cannot sync: {error.strerror}") from None
        self._path = None
        self._close()

    def remove(self) -> None:
        """Leave nothing behind."""
        with suppress(SpoolFull):
            self._settle()
        path, self._path = self._path, None
        self._close()
        if path is not None:
            path.unlink(missing_ok=True)

    def _close(self) -> None:
        os.close(self.fd)
        self._return()

    def _return(self) -> None:
        for buffer in (self._filling, self._other):
            if buffer is not None:
                self._spool.give_back(buffer)
        self._filling = self._other = None


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
    """Bytes of a segment that are no record though a record follows them: the disk has damaged what was there."""

    path: Path
    start: int
    end: int


def is_segment(path: Path) -> bool:
    """Whether this is a segment of the present layout; any other file is left alone."""
    return path.suffix == ".seg" and len(path.stem.partition("-")[2]) == 16


def salt_of(segment: Path) -> bytes:
    """What the records of this segment carry, from its name."""
    return bytes.fromhex(segment.stem.partition("-")[2])


def folders(base: Path | None = None) -> Iterator[tuple[Path, bool]]:
    """The folders of receivers, each with whether its process is gone."""
    base = base or root()
    try:
        found = sorted(entry.path for entry in os.scandir(base) if entry.is_dir() and entry.name != SPARE)
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
    newest = max((name for name in names if is_segment(folder / name)), default="")
    for name in names:
        path = folder / name
        if name.endswith(".obj"):
            entry = _entry_of_name(path, orphaned)
            if entry:
                yield entry
        elif is_segment(path):
            yield from _records(path, position(path), orphaned, orphaned or name != newest)
        elif name.endswith(".part") and orphaned:
            path.unlink(missing_ok=True)


def _entry_of_name(path: Path, orphaned: bool) -> Entry | None:
    try:
        _, received, offset, size, sha256 = path.name.removesuffix(".obj").split("-")
        return Entry(path, 0, int(size), int(offset), sha256, int(received), 0, orphaned)
    except ValueError:
        return None


def _records(path: Path, at: int, orphaned: bool, sealed: bool) -> Iterator[Entry | Torn]:
    """The records of a segment from `at` on. `sealed`: nothing is written to it any more, so that what is no
    record with a record behind it is damage, not a receiver at work."""
    salt = salt_of(path)
    with path.open("rb") as file:
        fd = file.fileno()
        length = os.fstat(fd).st_size
        while at + _RECORD.size <= length:
            fields = _fields(os.pread(fd, _RECORD.size, at), salt)
            if fields is not None:
                received, offset, size, digest = fields
                end = at + stride(size)
                yield Entry(path, at + _RECORD.size, size, offset, digest.hex(), received, end, orphaned)
                at = end
                continue
            behind = _next_record(fd, at + PAGE, length, salt) if sealed else None
            if behind is None:
                return
            yield Torn(path, at, behind)
            at = behind


def _fields(raw: bytes, salt: bytes) -> tuple[int, int, int, bytes] | None:
    """Received (ms), offset of the data set, size and digest of a record's header; None if it is none."""
    if len(raw) < _RECORD.size:
        return None
    magic, crc, salted, received, offset, size, digest = _RECORD.unpack(raw)
    if magic != _MAGIC or salted != salt or zlib.crc32(memoryview(raw)[8:]) != crc:
        return None
    return received, offset, size, digest


def _next_record(fd: int, at: int, length: int, salt: bytes) -> int | None:
    """Where the next whole header lies, from page `at` on."""
    for place in range(at, length - _RECORD.size, PAGE):
        if _fields(os.pread(fd, _RECORD.size, place), salt) is not None:
            return place
    return None


def read(entry: Entry) -> bytes:
    """The Part 10 file of an entry within a segment, as it lies there."""
    with entry.path.open("rb") as file:
        return os.pread(file.fileno(), entry.size, entry.start)


class Mapped:
    """Segments mapped into memory while a batch of their entries is dealt with."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}
        self._views: list[memoryview] = []

    def __enter__(self) -> Mapped:
        return self

    def __exit__(self, *_: Any) -> None:
        for view in self._views:
            view.release()
        for mapped in self._maps.values():
            with suppress(BufferError):  # a traceback may still hold a slice
                mapped.close()

    def view(self, entry: Entry) -> memoryview:
        """The Part 10 file of an entry within a segment. Raises ValueError when the segment ends before it does."""
        mapped = self._maps.get(entry.path)
        if mapped is None or len(mapped) < entry.start + entry.size:
            with entry.path.open("rb") as file:
                mapped = self._maps[entry.path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(mapped) < entry.start + entry.size:
            raise ValueError("length differs")
        whole = memoryview(mapped)
        view = whole[entry.start : entry.start + entry.size]
        self._views += (view, whole)
        return view


def verify(entry: Entry) -> None:
    """Read an entry and raise ValueError unless length and SHA-256 of its data set are those it was kept with."""
    digest = hashlib.sha256()
    with entry.path.open("rb") as file:
        there = os.fstat(file.fileno()).st_size - entry.start
        if there < entry.size or (entry.alone and there > entry.size):
            raise ValueError("length differs")
        file.seek(entry.start + entry.data_set_offset)
        left = entry.size - entry.data_set_offset
        while left > 0 and (chunk := file.read(min(1 << 20, left))):
            digest.update(chunk)
            left -= len(chunk)
    if digest.hexdigest() != entry.sha256:
        raise ValueError("SHA-256 differs")


def sync(found: Iterable[Entry]) -> None:
    """Make entries durable before a file is made of them: their receiver may not have come to it, or be dead. A power
    cut would then leave that file, and nothing that leads to a row for it. Raises OSError."""
    paths = {entry.path for entry in found}
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)
    for folder in {path.parent for path in paths}:
        sync_folder(folder)


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
    """Let go of segments that are read to their end, all but a live receiver's newest; and of an empty dead folder."""
    segments = sorted(filter(is_segment, folder.glob("*.seg")))
    for path in segments if orphaned else segments[:-1]:
        if next(_records(path, position(path), orphaned, True), None) is None:
            _retire(path)
    # A folder that is this young may be one whose receiver is just about to take its lock.
    settled = time.time() - folder.stat().st_mtime > 10
    if orphaned and settled:
        for note in folder.glob("*.done"):
            if not note.with_suffix(".seg").exists():  # a crash came between the two
                note.unlink()
        if {entry.name for entry in os.scandir(folder)} <= {"lock"}:
            (folder / "lock").unlink(missing_ok=True)
            folder.rmdir()


def _retire(segment: Path) -> None:
    """Keep a segment to be written over; remove one that is short, and all above SPARES."""
    spares = segment.parent.parent / SPARE
    spares.mkdir(exist_ok=True, mode=0o750)
    whole = segment.stat().st_size >= SEGMENT_BYTES - 2 * BUFFER
    if whole and len(os.listdir(spares)) < SPARES:
        os.rename(segment, spares / f"{secrets.token_hex(8)}.seg")
    else:
        segment.unlink()
    segment.with_suffix(".done").unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Waiting:
    """What the indexer has not come to."""

    files: int = 0  #: files that hold some of it
    oldest: float | None = None  #: when the object that waits longest was received (Unix seconds)
    newest: float | None = None  #: when the last of these files was last written (Unix seconds)
    objects: int = 0  #: as many as were asked to be counted in each file, at most


def waiting(base: Path | None = None, *, count: int = 1) -> Waiting:
    """What waits in the folders of all receivers; of each file `count` objects are counted at most."""
    since: list[float] = []
    written: list[float] = []
    objects = 0
    for folder, orphaned in folders(base):
        for file in os.scandir(folder):
            try:
                path = Path(file.path)
                found = _first(path, orphaned, count)
                if found:
                    written.append(file.stat().st_mtime)
                    since.append(found[0].received_ms / 1000)
                    objects += len(found)
            except FileNotFoundError:  # indexed in the meantime
                continue
    return Waiting(len(since), min(since), max(written), objects) if since else Waiting()


def _first(path: Path, orphaned: bool, count: int) -> list[Entry]:
    """The first entries of a file that the indexer has not come to, `count` at most."""
    if path.suffix == ".obj":
        entry = _entry_of_name(path, orphaned)
        return [entry] if entry else []
    if is_segment(path):
        records = _records(path, position(path), orphaned, orphaned)
        return list(itertools.islice((one for one in records if isinstance(one, Entry)), count))
    return []


def oldest(base: Path | None = None) -> tuple[int, float | None]:
    """How many files hold unindexed objects, and when the oldest of those was received (Unix seconds)."""
    found = waiting(base)
    return found.files, found.oldest
