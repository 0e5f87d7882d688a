"""Toy processes and peers. `python -m tests.config.toys NAME` runs one as a child."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from common.process import Context, context_from_environment, die_with_parent


def steady(ctx: Context) -> None:
    """Answers each connection with its process id, until told to stop."""
    door = ctx.sockets["toy"]
    door.settimeout(0.1)
    ctx.ready()
    while not ctx.stopping.is_set():
        try:
            peer, _ = door.accept()
        except TimeoutError:
            continue
        peer.sendall(f"{os.getpid()} {os.environ['ORDERLY_PROCESS']}".encode())
        peer.close()


def idle(ctx: Context) -> None:
    """Serves nothing, and stops when told."""
    ctx.ready()
    ctx.stopping.wait()


def failing(ctx: Context) -> None:
    """Dies at once, every time."""
    sys.exit(3)


def slow(ctx: Context) -> None:
    """Never becomes ready, and stops when told."""
    ctx.stopping.wait()


def hung(ctx: Context) -> None:
    """Gives one sign of life, then none."""
    ctx.beat()
    ctx.ready()
    time.sleep(60)


def deaf(ctx: Context) -> None:
    """Does not hear SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ctx.ready()
    time.sleep(60)


def forking(ctx: Context) -> None:
    """Has a forked child that holds the socket, as a pool of workers does."""
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    ctx.ready()
    ctx.stopping.wait()


@contextmanager
def echo_scp() -> Iterator[int]:
    """A DICOM peer (pynetdicom's own server) that answers C-ECHO; its port."""
    from pynetdicom import AE
    from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

    ae = AE(ae_title="GOOD")
    ae.add_supported_context(Verification)
    server = ae.start_server(("127.0.0.1", 0), block=False)
    assert server is not None
    try:
        yield server.socket.getsockname()[1]
    finally:
        server.shutdown()


if __name__ == "__main__":
    die_with_parent()
    context = context_from_environment(sys.argv[1])
    context.stop_on_signals()
    globals()[sys.argv[1]](context)
