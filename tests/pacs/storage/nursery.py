"""Processes to be killed: `python -m tests.pacs.storage.nursery DATABASE DATA_DIR`.

For each line of standard input, `receiver`, `indexer` or `router` and perhaps a crash point, it forks one that works
until it is killed, and prints its process id and port (0: none). Some have habits: `receiver~no_file_sync` is one of a
mutated build (MUTATIONS), `indexer~eager` waits for no company, `receiver~no_reserve` takes objects until the disk is
full. Forking a process that has everything imported makes hundreds of deaths affordable; it has no database connection
and no thread of its own to share.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import django

#: Syncs that a mutated build leaves out: asked with the path, and whether it is a folder.
MUTATIONS: dict[str, Callable[[str, bool], bool]] = {
    "no_file_sync": lambda path, is_folder: not is_folder,
    "no_folder_sync": lambda path, is_folder: is_folder,
    # Of the archive's own root too, which an indexer syncs when it makes the first folders of a volume.
    "index_before_file": lambda path, is_folder: "/spool" not in path,
}


def mutate(leave_out: Callable[[str, bool], bool]) -> None:
    """Be a build that leaves these syncs out."""

    def deaf(sync: Callable[[int], None]) -> Callable[[int], None]:
        def called(fd: int) -> None:
            if not leave_out(os.readlink(f"/proc/self/fd/{fd}"), stat.S_ISDIR(os.fstat(fd).st_mode)):
                sync(fd)

        return called

    os.fsync, os.fdatasync = deaf(os.fsync), deaf(os.fdatasync)


def receive(listener: socket.socket) -> None:
    """Serve C-ECHO and C-STORE to everyone."""
    from pacs.dimse.admission import Admission, Known, Slots, StaticDirectory
    from pacs.dimse.registry import load
    from pacs.dimse.server import Server

    registry = load(("pacs.services.echo", "pacs.services.store"))
    slots = Slots()
    directory = StaticDirectory([Known("*", "*", frozenset(("echo", "store")))])
    server = Server({listener: None}, registry, Admission(directory, registry, ["ORDERLY"], slots), slots)
    server.run(threading.Event())


def index() -> None:
    """Take the spool into the archive."""
    from common.process import Context
    from pacs import indexing

    indexing.main(Context("indexer"))


def route() -> None:
    """Send on what is due."""
    from common.process import Context
    from pacs import routing

    routing.run(Context("router"))


def main(database: str, data_dir: str) -> None:
    """Fork what is asked for, one line each, until standard input ends."""
    django.setup()
    from django.conf import settings

    from common import crashpoints
    from pacs import indexing
    from pacs.dimse import server  # noqa: F401
    from pacs.services import echo, store  # noqa: F401
    from pacs.storage import spool

    settings.DATABASES["default"]["NAME"] = database
    settings.DATA_DIR = Path(data_dir)
    settings.ORDERLY_SETTLE_SECONDS = 3600.0
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the dead
    print("ready", flush=True)
    for line in sys.stdin:
        what, _, point = line.strip().partition(" ")
        what, _, habit = what.partition("~")
        listener = socket.create_server(("127.0.0.1", 0), backlog=64) if what == "receiver" else None
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.close(0)
            crashpoints._wanted, _, passes = point.partition(":")
            crashpoints._passes_left = int(passes or 1)
            if habit in MUTATIONS:
                mutate(MUTATIONS[habit])
            if habit == "no_reserve":
                spool.RESERVE_BYTES = 0
            if what == "indexer" and habit:
                indexing.PATIENCE_SECONDS = 0.0
            if listener:
                receive(listener)
            elif what == "router":
                route()
            else:
                index()
            os._exit(0)
        print(pid, listener.getsockname()[1] if listener else 0, flush=True)
        if listener:
            listener.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
