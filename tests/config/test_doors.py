"""The doors: a port that is taken is named, and one that a dying process still holds is waited for."""

from __future__ import annotations

import socket
import threading

import pytest

from config.doors import DoorTaken, open_doors, port_of


def taken_port() -> socket.socket:
    """A listener of somebody else, on a port that nobody else is given when it closes."""
    other = socket.socket()
    other.bind(("127.0.0.1", 0))
    other.listen()
    return other


def test_a_taken_port_is_named_with_what_to_do() -> None:
    with taken_port() as other:
        port = port_of(other)
        with pytest.raises(DoorTaken, match=rf"127\.0\.0\.1:{port} \(mllp\) is taken .* --mllp PORT"):
            open_doors(["mllp"], {"mllp": port})


def test_a_port_that_a_killed_process_gives_back_in_time_is_opened() -> None:
    other = taken_port()
    port = port_of(other)
    closing = threading.Timer(0.5, other.close)
    closing.start()
    opened = open_doors(["mllp"], {"mllp": port}, patience=60)
    with opened["mllp"]:
        assert port_of(opened["mllp"]) == port
    closing.join()


def test_patience_with_a_taken_port_has_an_end() -> None:
    with taken_port() as other, pytest.raises(DoorTaken):
        open_doors(["mllp"], {"mllp": port_of(other)}, patience=0.3)
