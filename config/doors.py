"""The sockets we listen on: name, port setting, and how each is bound."""

from __future__ import annotations

import errno
import socket
import time

from django.conf import settings

# Socket name → the setting that holds its port. A TLS door is bound only where a certificate is configured.
DOORS = {
    "http": "ORDERLY_HTTP_PORT",
    "mllp": "ORDERLY_MLLP_PORT",
    "mllp_tls": "ORDERLY_MLLP_TLS_PORT",
    "dicom": "ORDERLY_DICOM_PORT",
    "dicom_tls": "ORDERLY_DICOM_TLS_PORT",
}
BACKLOG = 1024
PATIENCE = 15.0  # seconds that ports of a killed supervisor may take until the kernel gives them back


class DoorTaken(RuntimeError):
    """A port cannot be bound; the text says which and what to do."""


def open_doors(
    wanted: list[str], ports: dict[str, int | None] | None = None, *, patience: float = 0.0
) -> dict[str, socket.socket]:
    """Bind and listen; `ports` overrides the settings (0 takes a free port). Raises DoorTaken.

    They listen from now on: who connects while the processes start waits in the backlog and is served. A port
    that is taken is tried again for `patience` seconds in all.
    """
    opened: dict[str, socket.socket] = {}
    until = time.monotonic() + patience
    for name in wanted:
        if name.endswith("_tls") and not settings.ORDERLY_TLS_CERTIFICATE:
            continue
        asked = (ports or {}).get(name)
        port = getattr(settings, DOORS[name]) if asked is None else asked
        try:
            opened[name] = _listen_by(until, settings.ORDERLY_BIND, port)
        except OSError as trouble:
            for one in opened.values():
                one.close()
            raise DoorTaken(_explain(name, port, trouble)) from None
    return opened


def port_of(door: socket.socket) -> int:
    """The port that a socket is bound to."""
    return int(door.getsockname()[1])


def _listen_by(until: float, host: str, port: int) -> socket.socket:
    while True:
        try:
            return _listen(host, port)
        except OSError as trouble:
            if trouble.errno != errno.EADDRINUSE or time.monotonic() >= until:
                raise
            time.sleep(0.1)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    door = socket.socket(family, socket.SOCK_STREAM)
    try:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind((host, port))
        door.listen(BACKLOG)
    except OSError:
        door.close()
        raise
    return door


def _explain(name: str, port: int, trouble: OSError) -> str:
    option = "--" + name.replace("_", "-")
    where = f"{settings.ORDERLY_BIND}:{port}"
    if trouble.errno == errno.EADDRINUSE:
        return f"Port {where} ({name}) is taken by another program. Choose another: {option} PORT (0: any free one)."
    if trouble.errno == errno.EACCES:
        return f"This user may not open port {where} ({name}). Choose one above 1023: {option} PORT."
    if trouble.errno == errno.EADDRNOTAVAIL:
        return f"This machine has no address {settings.ORDERLY_BIND}; set ORDERLY_BIND to one it has."
    return f"Port {where} ({name}) cannot be opened: {trouble.strerror}. Choose another: {option} PORT."
