"""Who holds a lease: a name that tells a living process of this machine from a dead one.

A name is `machine:pid:start:token`. `machine` stands for this boot of this kernel and its namespace of process ids
(a container has one of its own), `start` for the moment at which the process began, so that a process id that is
used again is not taken for the one before. Of another machine nothing can be told: its leases end by their time.
"""

import hashlib
import os
import secrets
from functools import cache
from pathlib import Path

_PROC = Path("/proc")


def name() -> str:
    """A name for one lease of this process, at most 64 characters; never the same twice."""
    pid = os.getpid()
    return f"{_machine()}:{pid}:{_started(pid) or 0}:{secrets.token_hex(8)}"


def is_dead(owner: str) -> bool:
    """Whether the process that took this lease is surely gone. False where that cannot be told."""
    parts = owner.split(":")
    if len(parts) != 4 or parts[0] != _machine() or not _machine():
        return False
    pid, start = int(parts[1]), int(parts[2])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's process
        pass
    now = _started(pid)
    return bool(start) and now is not None and now != start


@cache
def _machine() -> str:
    """Twelve characters for this boot and namespace; empty where the system does not say."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return hashlib.sha256(f"{boot} {(_PROC / 'self/ns/pid').readlink()}".encode()).hexdigest()[:12]
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """When the process began, in ticks since boot; -1 when it is dead and only not buried; None when unknown."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
        fields = text[text.rindex(")") + 2 :].split()  # its name may hold anything
        return -1 if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
