"""A disk that remembers: records what is done to a folder, and makes the folder that a power cut would have left.

Only what POSIX promises is taken for durable: the bytes of a file by a sync of that file, a name by a sync of its
folder. Whatever was not synced may be there or not, page by page; `survives` decides.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PAGE = 4096


@dataclass
class Op:
    """One thing done. `kind` is write, size, name, folder, gone, rename, sync, or mark."""

    kind: str
    file: int = 0  #: our number of the file, 0 for none
    path: str = ""  #: below the root
    other: str = ""  #: the old path of a rename
    at: int = 0  #: offset of a write, size of a file, or for a sync how many ops it covers
    data: bytes = b""


@dataclass
class File:
    """A file as it is rebuilt."""

    durable: bytearray = field(default_factory=bytearray)
    pages: list[tuple[int, bytes]] = field(default_factory=list)  #: written, in order, and not synced


class Disk:
    """Records what this process does below `root`, by patched functions of `os`."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.ops: list[Op] = []
        self.deaf: Callable[[str, bool], bool] = lambda path, is_folder: False
        """A mutated build: syncs of these (path, whether it is a folder) do not happen."""
        self._lock = threading.RLock()
        self._open: dict[int, tuple[str, int]] = {}  # descriptor → path, file
        self._numbers: dict[tuple[int, int], int] = {}  # device and inode → file
        self._count = 0
        self._existing()
        for name in (
            "open", "close", "write", "writev", "pwrite", "pwritev", "ftruncate", "fsync", "fdatasync", "rename",
            "replace", "link", "unlink", "remove", "mkdir", "rmdir",
        ):  # fmt: skip
            patch.setattr(os, name, self._wrapped(name, getattr(os, name)))

    def mark(self, said: str) -> None:
        """Note that this was said to somebody by now."""
        with self._lock:
            self.ops.append(Op("mark", path=said))

    # -- recording

    def _existing(self) -> None:
        for path in sorted(self.root.rglob("*")):
            if path.is_dir():
                self.ops.append(Op("folder", path=self._below(path)))
            else:
                number = self._number(path, fresh=True)
                self.ops.append(Op("name", number, self._below(path)))
                self.ops.append(Op("write", number, data=path.read_bytes()))
                self.ops.append(Op("sync", number, at=len(self.ops)))
        for path in [self.root, *self.root.rglob("*")]:
            if path.is_dir():
                self.ops.append(Op("sync", path=self._below(path), at=len(self.ops)))

    def _below(self, path: Any) -> str:
        return os.path.relpath(os.fspath(path), self.root)

    def _ours(self, path: Any) -> bool:
        return isinstance(path, str | Path) and str(path).startswith(f"{self.root}/") or path == self.root

    def _number(self, path: Any, *, fresh: bool = False) -> int:
        info = os.stat(path)
        key = (info.st_dev, info.st_ino)
        if fresh or key not in self._numbers:
            self._count += 1
            self._numbers[key] = self._count
        return self._numbers[key]

    def _wrapped(self, name: str, real: Any) -> Any:
        handler = getattr(self, f"_on_{name.replace('remove', 'unlink').replace('replace', 'rename')}", None)
        if handler is None:
            handler = self._on_writing

        def call(*args: Any, **kwargs: Any) -> Any:
            return handler(real, *args, **kwargs)

        return call

    def _on_open(self, real: Any, path: Any, flags: int, *rest: Any, **kwargs: Any) -> int:
        if not self._ours(path):
            return int(real(path, flags, *rest, **kwargs))
        with self._lock:
            new = bool(flags & os.O_CREAT) and not os.path.exists(path)
            descriptor = int(real(path, flags, *rest, **kwargs))
            if os.path.isdir(path):
                self._open[descriptor] = (self._below(path), 0)
                return descriptor
            known = (os.stat(path).st_dev, os.stat(path).st_ino) in self._numbers
            number = self._number(path, fresh=new)
            if new or not known:  # the latter was made behind our back, by open()
                self.ops.append(Op("name", number, self._below(path)))
            if flags & os.O_TRUNC and not new:
                self.ops.append(Op("size", number, at=0))
            self._open[descriptor] = (self._below(path), number)
            return descriptor

    def _on_close(self, real: Any, descriptor: int) -> None:
        with self._lock:
            self._open.pop(descriptor, None)
            real(descriptor)

    def _on_writing(self, real: Any, descriptor: int, data: Any, *rest: Any) -> Any:
        path, number = self._open.get(descriptor, ("", 0))
        if not number:
            return real(descriptor, data, *rest)
        with self._lock:
            at = rest[0] if rest else os.lseek(descriptor, 0, os.SEEK_CUR)
            written = real(descriptor, data, *rest)
            raw = b"".join(map(bytes, data)) if isinstance(data, list | tuple) else bytes(data)
            self.ops.append(Op("write", number, at=at, data=raw[:written]))
            return written

    def _on_ftruncate(self, real: Any, descriptor: int, size: int) -> None:
        with self._lock:
            real(descriptor, size)
            number = self._open.get(descriptor, ("", 0))[1]
            if number:
                self.ops.append(Op("size", number, at=size))

    def _on_fsync(self, real: Any, descriptor: int) -> None:
        found = self._open.get(descriptor)
        if found is None:
            return real(descriptor)  # type: ignore[no-any-return]
        path, number = found
        with self._lock:
            covered = len(self.ops)
        real(descriptor)
        if not self.deaf(path, not number):
            with self._lock:
                self.ops.append(Op("sync", number, "" if number else path, at=covered))
        return None

    _on_fdatasync = _on_fsync

    def _on_rename(self, real: Any, source: Any, target: Any) -> None:
        with self._lock:
            if self._ours(source) and (os.stat(source).st_dev, os.stat(source).st_ino) not in self._numbers:
                number = self._number(source)  # written by open(): what it holds was never synced
                self.ops.append(Op("name", number, self._below(source)))
                with open(source, "rb") as file:
                    self.ops.append(Op("write", number, data=file.read()))
            real(source, target)
            if self._ours(source):
                self.ops.append(Op("rename", path=self._below(target), other=self._below(source)))

    def _on_link(self, real: Any, source: Any, target: Any) -> None:
        with self._lock:
            real(source, target)
            if self._ours(target):
                self.ops.append(Op("name", self._number(target), self._below(target)))

    def _on_unlink(self, real: Any, path: Any, **kwargs: Any) -> None:
        with self._lock:
            real(path, **kwargs)
            if self._ours(path):
                self.ops.append(Op("gone", path=self._below(path)))

    _on_rmdir = _on_unlink

    def _on_mkdir(self, real: Any, path: Any, *rest: Any, **kwargs: Any) -> None:
        with self._lock:
            real(path, *rest, **kwargs)
            if self._ours(path):
                self.ops.append(Op("folder", path=self._below(path)))

    # -- the power cut

    def image(
        self, target: Path, cut: int, chance: random.Random | None, *, everything: bool = False
    ) -> None:
        """Make at `target` what the disk may hold when power goes after `cut` ops.

        Of what was not synced: nothing, `everything`, or what `chance` says: of each folder the first so many
        changes of names, of each file any of its pages.
        """
        ops = self.ops[:cut]
        kept = self._kept_names(ops, chance, everything)
        tree: dict[str, int] = {}  # path → file; 0 for a folder
        for at, op in enumerate(ops):
            if at in kept:
                _apply(tree, op)
        contents = self._contents(ops, chance, everything)
        target.mkdir()
        for path in sorted(tree):
            if not (target / path).parent.is_dir():
                continue  # its folder's own name was lost
            if tree[path]:
                (target / path).write_bytes(contents.get(tree[path], b""))
            else:
                (target / path).mkdir()

    @staticmethod
    def _kept_names(ops: list[Op], chance: random.Random | None, everything: bool) -> set[int]:
        changes: dict[str, list[int]] = {}  # folder → its changes
        synced: dict[str, int] = {}
        for at, op in enumerate(ops):
            if op.kind in ("name", "folder", "gone", "rename"):
                for path in {os.path.dirname(op.path) or ".", os.path.dirname(op.other or op.path) or "."}:
                    changes.setdefault(path, []).append(at)
            elif op.kind == "sync" and op.path:
                synced[op.path] = max(op.at, synced.get(op.path, 0))
        kept = set()
        for folder, all_of_it in changes.items():
            durable = [at for at in all_of_it if at < synced.get(folder, 0)]
            rest = all_of_it[len(durable) :]
            more = len(rest) if everything else chance.randint(0, len(rest)) if chance else 0
            kept |= {*durable, *rest[:more]}
        return kept

    @staticmethod
    def _contents(ops: list[Op], chance: random.Random | None, everything: bool) -> dict[int, bytes]:
        synced: dict[int, int] = {}
        for op in ops:
            if op.kind == "sync" and op.file:
                synced[op.file] = max(op.at, synced.get(op.file, 0))
        files: dict[int, bytearray] = {}
        for at, op in enumerate(ops):
            if op.kind not in ("write", "size"):
                continue
            content = files.setdefault(op.file, bytearray())
            surely = everything or at < synced.get(op.file, 0)
            if op.kind == "size":
                if surely or (chance and chance.random() < 0.5):
                    del content[op.at :]
                    content.extend(bytes(op.at - len(content)))
                continue
            for begin in range(0, len(op.data), PAGE):
                if surely or (chance and chance.random() < 0.5):
                    _put(content, op.at + begin, op.data[begin : begin + PAGE])
        return {number: bytes(content) for number, content in files.items()}


def _put(content: bytearray, at: int, data: bytes) -> None:
    if len(content) < at:
        content.extend(bytes(at - len(content)))
    content[at : at + len(data)] = data


def _apply(tree: dict[str, int], op: Op) -> None:
    if op.kind == "name":
        tree[op.path] = op.file
    elif op.kind == "folder":
        tree[op.path] = 0
    elif op.kind == "gone":
        tree.pop(op.path, None)
    elif op.other in tree:
        tree[op.path] = tree.pop(op.other)
