"""A real ext4 whose power can be cut: a file system in a file, on a loop device, mounted where nobody else sees it.

The cut is ext4's own `shutdown` without a flush of its journal, as file system developers make it to try recovery:
from that moment on nothing more goes to the device, every write and sync fails, and what was only in memory is never
written. So the image needs no copy, which could not be made in one moment: taken off and mounted again, it is what a
disk without a cache of its own held when the power went, and the journal recovers as after any crash. That a disk
forgets what it was not told to flush is left to the model (disk.py).

Mounted so that the file system saves nobody by chance: its journal is not committed by the clock (`commit`), and a
file that takes another's name is not written out by itself (`noauto_da_alloc`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path

BYTES = 2 * 1024**3  #: as said to mkfs; the image is sparse
OPTIONS = "loop,commit=3600,noauto_da_alloc"
_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN (linux/ext4.h), _IOR('X', 125, __u32)
_NO_LOG_FLUSH = 2
_PROGRAMS = ("mkfs.ext4", "mount", "umount", "nsenter", "unshare")


def hindrance() -> str:
    """Why this machine has no such disk; "" when it has."""
    if os.geteuid() != 0:
        return "needs root, to mount a loop device"
    if not Path("/dev/loop-control").exists():
        return "needs a loop device"
    lacking = [program for program in _PROGRAMS if not shutil.which(program, path=_path())]
    return f"needs {', '.join(lacking)} (e2fsprogs, util-linux)" if lacking else ""


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class LoopDisk:
    """One disk. The mount is in a namespace held by a child that ends when we do: nothing is left, however we end."""

    def __init__(self, folder: Path) -> None:
        self._image, self._point = folder / "disk.img", folder / "mounted"
        self._point.mkdir()
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo held; exec cat"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PATH": _path()},
        )  # fmt: skip
        assert self._holder.stdout is not None and self._holder.stdout.readline() == b"held\n"
        self._mounted = False

    @property
    def root(self) -> Path:
        """Where everybody (as root) finds what is on it."""
        return Path(f"/proc/{self._holder.pid}/root{self._point}")

    def make(self) -> None:
        """A new, empty file system, mounted."""
        self._unmount()
        self._image.unlink(missing_ok=True)
        with self._image.open("wb") as file:
            file.truncate(BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(self._image)], check=True, env={"PATH": _path()})
        self._mount()

    def cut(self) -> None:
        """The power goes, now."""
        fd = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def restart(self) -> None:
        """The power is back: the journal recovers, and the disk is mounted again. Nobody may have a file open."""
        self._unmount()
        self._mount()

    def remount(self, option: str) -> None:
        """Change it while it is mounted: `ro`, `rw`, or `abort`, as when its journal finds that it cannot go on."""
        done = self._inside("mount", "-o", f"remount,{option}", str(self._point))
        assert done.returncode == 0, done.stderr.decode()

    def fill(self, but: int) -> Path:
        """Take all room but so many bytes; gives the file to be removed for it to be there again."""
        ballast = self.root / "ballast"
        size = 0
        with ballast.open("wb") as file:
            for piece in (64 << 20, 1 << 20, 1 << 12):  # what the file system keeps back is not told
                with contextlib.suppress(OSError):
                    while True:
                        os.posix_fallocate(file.fileno(), size, piece)
                        size += piece
            file.truncate(size - but)
            os.fsync(file.fileno())
        return ballast

    def close(self) -> None:
        """Let go of everything."""
        try:
            self._unmount()
        finally:
            self._holder.communicate(timeout=20)
            self._image.unlink(missing_ok=True)

    def _inside(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["nsenter", "-t", str(self._holder.pid), "-m", *words],
            capture_output=True, env={"PATH": _path()}, timeout=60,
        )  # fmt: skip

    def _mount(self) -> None:
        done = self._inside("mount", "-o", OPTIONS, str(self._image), str(self._point))
        assert done.returncode == 0, done.stderr.decode()
        self._mounted = True

    def _unmount(self) -> None:
        deadline = time.monotonic() + 30
        while self._mounted:
            done = self._inside("umount", str(self._point))
            self._mounted = done.returncode != 0
            assert not self._mounted or time.monotonic() < deadline, done.stderr.decode()
            if self._mounted:  # one that was killed may not have let go yet
                time.sleep(0.05)
