"""C-ECHO, the Verification service (PS3.4 annex A): open to everyone who may associate."""

from pacs.dimse.registry import Outcome, Registry, Request

VERIFICATION = "1.2.840.10008.1.1"


def echo(request: Request) -> Outcome:
    """Success: we are here."""
    return Outcome()


def register(registry: Registry) -> None:
    """Serve Verification."""
    registry.add(VERIFICATION, "C-ECHO", echo, service="echo")
