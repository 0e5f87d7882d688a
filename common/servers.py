"""Servers as children, for benches and tests: a port for each, waited for until they answer, ended with the block."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START_SECONDS = 90.0
STOP_SECONDS = 30.0
_LAST_BYTES = 2000  #: of what a server said, for the error that tells why it does not serve


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses, and that no outgoing connection is ever given (Linux: 32768 and above).

    Asking for one of those until its server is up may connect to itself, and then holds the server's port.
    """
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def connects(port: int) -> None:
    """Whether something listens on this port of 127.0.0.1, as `serving` asks it: OSError when nothing does."""
    socket.create_connection(("127.0.0.1", port), 5).close()


@contextmanager
def serving(
    words: Sequence[str],
    answers: Callable[[], Any] | None = None,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[int]:
    """A server as a child until the end of the block: SIGTERM then, and SIGKILL for whatever is left of its group.

    `answers` asks it once and raises anything while it does not serve; without it, nothing is waited for.
    `environment` is the whole of it (ours when None). Gives the process id once it answers; RuntimeError with its
    last words when it ended before, or does not answer within START_SECONDS.
    """
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            words,
            env=environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            if answers is not None:
                _wait(child, answers, lambda: _last_words(said))
            yield child.pid
        finally:
            _end(child)


def _wait(child: subprocess.Popen[bytes], answers: Callable[[], Any], last_words: Callable[[], str]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            answers()
            return
        except Exception as error:
            if child.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{child.args!r} does not serve ({error}):\n{last_words()}") from None
            time.sleep(0.05)


def _end(child: subprocess.Popen[bytes]) -> None:
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # nothing was left of it
    child.wait()


def _last_words(said: Any) -> str:
    said.seek(0, os.SEEK_END)
    said.seek(max(0, said.tell() - _LAST_BYTES))
    return bytes(said.read()).decode(errors="replace")
