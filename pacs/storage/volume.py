"""The file volume: plain DICOM files under names of our own, placed durably, never changed.

A path is made of hashes only, so that no value of a peer is ever part of it, and the same object always
has the same path: to place it again after a crash does no harm. The objects of one series share a folder.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from django.conf import settings

from common.crashpoints import crashpoint

_PATH = re.compile(r"[0-9a-f]{2}/[0-9a-f]{2}/[0-9a-f]{32}/[0-9a-f]{48}\.dcm")


_FOLDERS = {"files": "volume", "aside": "aside"}
"""Volume, by the name that rows carry, and its folder of the data directory."""


def roots() -> dict[str, Path]:
    """Where each volume lies, by the name that rows carry."""
    return {name: Path(settings.DATA_DIR) / folder for name, folder in _FOLDERS.items()}


def full_path(volume: str, relative: str) -> str:
    """What `Volume.path` gives, for those who open many files one after the other. Raises ValueError as it does."""
    if not _PATH.fullmatch(relative):
        raise ValueError("not a path of this volume")
    return f"{settings.DATA_DIR}/{_FOLDERS[volume]}/{relative}"


def path_of(row: Any) -> Path:
    """Where the file of an Instance or SetAside lies. Raises ValueError for a path that is none of ours."""
    return Volume(row.volume).path(row.path)


def open_file(row: Any) -> BinaryIO:
    """The Part 10 file of an Instance or SetAside, for reading; its data set begins at `data_set_offset`."""
    return path_of(row).open("rb")


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def relative_path(group: str, *identity: str) -> str:
    """The path below a root of the object with this identity (UIDs, transfer syntax, SHA-256), in the folder
    that all objects of `group` (study and series) share."""
    folder = _hash(group)
    return f"{folder[:2]}/{folder[2:4]}/{folder[:32]}/{_hash(*identity)[:48]}.dcm"


class Volume:
    """A tree of files. What is placed is durable once `sync` has returned."""

    def __init__(self, name: str = "files", root: Path | None = None) -> None:
        self.name = name
        self.root = root or roots()[name]
        self._unsynced: list[int] = []  # open files
        self._written: list[int] = []  # those of them that were written here, not linked
        self._folders: set[Path] = set()

    def path(self, relative: str) -> Path:
        """The full path. Raises ValueError unless `relative` has the form that we give."""
        if not _PATH.fullmatch(relative):
            raise ValueError("not a path of this volume")
        return self.root / relative

    def place(self, relative: str, data: bytes | memoryview) -> None:
        """Write a file. One that a crash left half-written under the same name is written anew."""
        path = self._prepared(relative)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
        self._unsynced.append(fd)
        self._written.append(fd)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    def adopt(self, source: Path, relative: str) -> None:
        """Give a spooled file a name here as well; it is copied only where both lie on different disks."""
        path = self._prepared(relative)
        try:
            os.link(source, path)
        except FileExistsError:
            if os.path.samefile(source, path):
                return
            path.unlink()  # half-placed before a crash; the caller knows that no row names it
            os.link(source, path)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
            with source.open("rb") as original, path.open("wb") as copy:
                shutil.copyfileobj(original, copy, 1 << 20)
        self._unsynced.append(os.open(path, os.O_RDONLY))

    def sync(self) -> None:
        """Make everything placed since the last call durable: files, then the folders that name them."""
        try:
            for fd in self._written:
                # Linux begins to write what it is told to drop. With all blocks given in one go, the first sync
                # below commits the file system's journal for all of them.
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            while self._unsynced:
                fd = self._unsynced.pop()
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
                crashpoint("volume.file_synced")
            for folder in self._folders:
                sync_folder(folder)
            self._folders.clear()
            crashpoint("volume.synced")
        finally:
            self.forget()

    def forget(self) -> None:
        """Close what was placed and not synced, after a failure."""
        self._written.clear()
        while self._unsynced:
            os.close(self._unsynced.pop())
        self._folders.clear()

    def remove(self, relatives: Iterable[str]) -> None:
        """Delete files, if they are there."""
        for relative in relatives:
            self.path(relative).unlink(missing_ok=True)

    def _prepared(self, relative: str) -> Path:
        path = self.path(relative)
        folder = path.parent
        if folder not in self._folders:
            missing = [folder]
            while not missing[-1].parent.is_dir():
                missing.append(missing[-1].parent)
            for one in reversed(missing):
                one.mkdir(exist_ok=True, mode=0o750)
                self._folders.add(one.parent)
            self._folders.add(folder)
        return path


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
