"""`make demo` as a newcomer meets it: a board, a password shown once, Ctrl-C, and a second start."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path

import pytest

from tests.engine import REPOSITORY, Engine


class Demonstration:
    """`manage.py demo` as a subprocess whose output is read as it comes."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-u", "manage.py", "demo", "--patients", "2", "--trouble", "0"],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.said = ""

    def read_until(self, words: str) -> str:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.said += line
            if words in line:
                return self.said
        raise AssertionError(f"it ended without saying {words!r}:\n{self.said[-4000:]}")

    def interrupt(self) -> int:
        """Ctrl-C, and the exit status."""
        self.popen.send_signal(signal.SIGINT)
        assert self.popen.stdout is not None
        self.said += self.popen.stdout.read()
        return self.popen.wait(90)


@pytest.mark.timeout(600)
def test_a_newcomer_sees_the_morning_logs_in_stops_it_and_finds_the_data_again(engine: Engine) -> None:
    first = Demonstration(engine.environment)
    try:
        board = first.read_until("Ctrl-C stops everything")
        assert _log_in(_address(board), *_login(board)).endswith("/")
        assert _orders(board) > 0
        assert re.search(r"ORU: ([1-9]\d*) of \1 delivered", board)
        assert first.interrupt() == 0, first.said[-2000:]
    finally:
        first.popen.kill()
    assert not (engine.data_dir / "run.json").exists()
    assert not _files_with(_login(board)[1], engine.data_dir), "the password was kept"

    second = Demonstration(engine.environment)
    try:
        again = second.read_until("Ctrl-C stops everything")
        assert "data of an earlier start" in again
        assert "with the password shown at the first start" in again
        assert _orders(again) > _orders(board)
        assert second.interrupt() == 0
    finally:
        second.popen.kill()


def _files_with(text: str, folder: Path) -> list[Path]:
    readable = (path for path in folder.rglob("*") if path.is_file() and os.access(path, os.R_OK))
    return [path for path in readable if text.encode() in path.read_bytes()]


def _orders(board: str) -> int:
    """How many orders the engine holds, by its board."""
    return int(re.search(r"^ +(\d+) orders$", board, re.M).group(1))


def _address(board: str) -> str:
    return re.search(r"Pages +(http://\S+)/", board).group(1)


def _login(board: str) -> tuple[str, str]:
    found = re.search(r"Login +(\S+) / (\S+) ", board)
    return found.group(1), found.group(2)


def _log_in(address: str, name: str, password: str) -> str:
    """The address one lands on after logging in at the login page."""
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
    page = opener.open(f"{address}/", timeout=30)
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.read().decode()).group(1)
    form = {"username": name, "password": password, "csrfmiddlewaretoken": token, "next": "/"}
    data = urllib.parse.urlencode(form).encode()
    landed = opener.open(urllib.request.Request(page.url, data, {"Referer": page.url}), timeout=30)
    assert "csrfmiddlewaretoken" not in landed.url
    assert "/login" not in landed.url, "the password did not open the door"
    return landed.url
