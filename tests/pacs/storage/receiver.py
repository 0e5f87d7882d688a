"""A receiving process to be killed: `python -m tests.pacs.storage.receiver`; prints its port."""

from __future__ import annotations

import os
import socket
import threading

import django


def main() -> None:
    """Serve C-ECHO and C-STORE to everyone, until killed. The data directory comes from the environment."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    django.setup()
    from pacs.dimse.admission import Admission, Known, Limits, Slots, StaticDirectory
    from pacs.dimse.registry import load
    from pacs.dimse.server import Server

    registry = load(("pacs.services.echo", "pacs.services.store"))
    slots = Slots(Limits())
    directory = StaticDirectory([Known("*", "*", frozenset(("echo", "store")))])
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server({listener: None}, registry, Admission(directory, registry, ["ORDERLY"], slots), slots)
    print(listener.getsockname()[1], flush=True)
    server.run(threading.Event())


if __name__ == "__main__":
    main()
