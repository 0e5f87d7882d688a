"""The supervisor over toy processes: real children, real signals, real sockets."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent


class Watched:
    """A supervisor running in a subprocess, seen through its run.json."""

    def __init__(self, run_file: Path, names: tuple[str, ...]) -> None:
        self.run_file = run_file
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "tests.config.toy_supervisor", str(run_file), *names],
            cwd=REPOSITORY,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def said(self) -> dict[str, Any]:
        try:
            return json.loads(self.run_file.read_text())
        except FileNotFoundError:
            return {"processes": {}}

    def child(self, name: str) -> dict[str, Any]:
        return self.said()["processes"].get(name, {})

    def wait(self, what: Callable[[], Any], seconds: float = 30) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < deadline, f"it never came: {self.said()}"
            time.sleep(0.02)
        return found

    def wait_ready(self, name: str, *, not_pid: int | None = None) -> int:
        def ready() -> Any:
            child = self.child(name)
            return child.get("state") == "ready" and child["pid"] != not_pid and child["pid"]

        return int(self.wait(ready))

    def ask(self) -> list[str]:
        with socket.create_connection(("127.0.0.1", self.said()["ports"]["toy"]), timeout=10) as peer:
            return peer.recv(100).decode().split()


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Watched]]:
    started: list[Watched] = []

    def start(*names: str) -> Watched:
        started.append(Watched(tmp_path / "run.json", names))
        return started[-1]

    yield start
    for one in started:
        one.popen.kill()
        one.popen.wait()


def gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_child_serves_on_the_socket_it_was_handed(supervise: Any) -> None:
    watched = supervise("steady")
    pid = watched.wait_ready("steady")
    assert watched.ask() == [str(pid), "steady"]


def test_a_killed_child_is_started_again_and_the_same_port_answers(supervise: Any) -> None:
    watched = supervise("steady")
    first = watched.wait_ready("steady")
    port = watched.said()["ports"]["toy"]
    os.kill(first, signal.SIGKILL)
    second = watched.wait_ready("steady", not_pid=first)
    assert watched.said()["ports"]["toy"] == port
    assert watched.ask() == [str(second), "steady"]
    assert watched.child("steady")["restarts"] == 1
    assert watched.child("steady")["last_exit"] == -signal.SIGKILL


def test_who_connects_while_a_child_is_down_is_served_by_the_next(supervise: Any) -> None:
    watched = supervise("steady")
    first = watched.wait_ready("steady")
    os.kill(first, signal.SIGKILL)
    watched.wait(lambda: gone(first))
    assert watched.ask()[0] != str(first)


def test_a_child_that_keeps_dying_is_tried_later_and_later_and_hinders_nobody(supervise: Any) -> None:
    watched = supervise("failing", "idle")
    watched.wait_ready("idle")
    watched.wait(lambda: watched.child("failing")["restarts"] >= 3)
    since = watched.child("failing")["down_since"]
    watched.wait(lambda: watched.child("failing")["restarts"] >= 4)
    assert watched.child("failing")["down_since"] == since
    assert watched.child("failing")["last_exit"] == 3
    assert watched.child("idle")["restarts"] == 0


def test_a_child_that_does_not_say_so_is_not_ready(supervise: Any) -> None:
    watched = supervise("idle", "slow")
    watched.wait_ready("idle")
    assert watched.child("slow")["state"] == "starting"


def test_a_hung_child_is_killed_and_started_again(supervise: Any) -> None:
    watched = supervise("hung")
    first = watched.wait_ready("hung")
    watched.wait_ready("hung", not_pid=first)
    assert gone(first)


def test_sigterm_stops_every_child_and_takes_run_json_away(supervise: Any) -> None:
    watched = supervise("steady", "idle")
    pids = [watched.wait_ready("steady"), watched.wait_ready("idle")]
    watched.popen.send_signal(signal.SIGTERM)
    assert watched.popen.wait(20) == 0
    assert all(gone(pid) for pid in pids)
    assert not watched.run_file.exists()


def test_a_child_deaf_to_sigterm_is_killed_in_the_end(supervise: Any) -> None:
    watched = supervise("deaf")
    pid = watched.wait_ready("deaf")
    watched.popen.send_signal(signal.SIGTERM)
    assert watched.popen.wait(20) == 0
    assert gone(pid)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the kernel of Linux")
def test_children_die_with_a_supervisor_that_was_killed(supervise: Any) -> None:
    watched = supervise("steady", "idle")
    pids = [watched.wait_ready("steady"), watched.wait_ready("idle")]
    watched.popen.kill()
    watched.popen.wait()
    watched.wait(lambda: all(gone(pid) for pid in pids))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_a_dead_child_had_forked_goes_with_it(supervise: Any) -> None:
    watched = supervise("forking")
    first = watched.wait_ready("forking")
    with open(f"/proc/{first}/task/{first}/children") as file:
        forked = int(file.read().split()[0])
    os.kill(first, signal.SIGKILL)
    watched.wait_ready("forking", not_pid=first)
    watched.wait(lambda: gone(forked))


def test_sighup_starts_every_child_anew_and_counts_no_death(supervise: Any) -> None:
    watched = supervise("steady", "deaf")
    first = {name: watched.wait_ready(name) for name in ("steady", "deaf")}
    watched.popen.send_signal(signal.SIGHUP)
    for name, pid in first.items():
        watched.wait_ready(name, not_pid=pid)
        assert gone(pid)
    assert [watched.child(name)["restarts"] for name in first] == [0, 0]
