"""Servers as children: waited for, told why one does not serve, ended with all that it started."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from common import servers

LISTENER = (
    "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(600)"
)
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1] + ".part", "w").write(str(child.pid))
os.rename(sys.argv[1] + ".part", sys.argv[1])
time.sleep(600)
"""


def test_a_server_is_there_within_the_block_and_gone_after_it() -> None:
    port = servers.free_port()
    with servers.serving([sys.executable, "-c", LISTENER, str(port)], lambda: servers.connects(port)) as pid:
        servers.connects(port)
        os.kill(pid, 0)
    with pytest.raises(OSError):
        servers.connects(port)


def test_a_server_that_ends_at_once_says_why() -> None:
    port = servers.free_port()
    words = [sys.executable, "-c", "raise SystemExit('no such folder')"]
    with (
        pytest.raises(RuntimeError, match="no such folder"),
        servers.serving(words, lambda: servers.connects(port)),
    ):
        pass


def test_a_server_that_will_not_go_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "STOP_SECONDS", 0.1)
    there = tmp_path / "child"
    with servers.serving([sys.executable, "-c", STUBBORN, str(there)], lambda: there.read_text()):
        child = int(there.read_text())
    deadline = time.monotonic() + 60
    while _lives(child):
        assert time.monotonic() < deadline, "the child of a killed server still runs"
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    """Whether it runs; one that is dead and not yet buried by its new parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
