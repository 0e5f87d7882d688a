"""A child process that is asked one thing after another over its pipes, with a deadline for each answer.

What meets the bytes of strangers (decoders, pydicom on a header that our walker cannot follow) runs in one:
started by exec with nothing of our environment, it limits its own memory and time, and can be killed.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

MAX_HEAD = 1 << 24


class Child:
    """`python -m <module>` and its two pipes. Used by one thread at a time."""

    def __init__(self, module: str) -> None:
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
            "LC_ALL": "C.UTF-8",
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
        assert self.process.stdin
        os.set_blocking(self.process.stdin.fileno(), False)
        self.asked = 0

    def ask(
        self, request: dict[str, Any], deadline: float, data: bytes = b""
    ) -> tuple[dict[str, Any], bytes]:
        """Hand over a request (and the bytes it is about); gives the answer's head and body.

        Raises TimeoutError at the deadline (of time.monotonic), EOFError or OSError when the child died,
        ValueError for an answer that is none. After any of them the child is of no more use: `end` it.
        """
        assert self.process.stdin and self.process.stdout
        self.asked += 1
        self._write(self.process.stdin.fileno(), json.dumps(request).encode() + b"\n" + data, deadline)
        answer = self.process.stdout.fileno()
        length = int.from_bytes(self._read(answer, 4, deadline))
        if length > MAX_HEAD:
            raise ValueError("no answer")
        head = json.loads(self._read(answer, length, deadline))
        return head, self._read(answer, head["length"], deadline)

    @staticmethod
    def _write(descriptor: int, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([], [descriptor], [], left)[1]:
                raise TimeoutError
            view = view[os.write(descriptor, view[: 1 << 20]) :]

    @staticmethod
    def _read(descriptor: int, size: int, deadline: float) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise TimeoutError
            part = os.read(descriptor, min(size - len(parts), 1 << 20))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                try:
                    pipe.close()
                except OSError:
                    pass


# --- Within the child ------------------------------------------------------------------------------------


def limit(memory: int, seconds: float, requests: int) -> BinaryIO:
    """Set this process's limits: bytes of address space, and seconds of a request, of so many in its life.

    Gives the file that answers go to; whatever prints to standard output does so into nothing.
    """
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A child whose parent was killed while it works would never read the end of its input.
    cpu = int(seconds * requests)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return answers


def requests(seconds: float) -> Iterator[dict[str, Any]]:
    """The requests, one after the other, until standard input ends; one that takes too long ends us."""
    for line in sys.stdin.buffer:
        signal.alarm(int(seconds) + 5)
        yield json.loads(line)
        signal.alarm(0)


def answer(answers: BinaryIO, head: dict[str, Any], body: bytes = b"") -> None:
    """Answer the present request."""
    raw = json.dumps({**head, "length": len(body)}).encode()
    answers.write(len(raw).to_bytes(4) + raw + body)
    answers.flush()
