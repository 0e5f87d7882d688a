"""C-GET (PS3.4 annex C.4.3): stored objects come back on the asker's own association."""

from __future__ import annotations

from collections.abc import Iterator

from pacs.dimse.registry import Context, Outcome, Registry, Request
from pacs.dimse.sender import store_command
from pacs.services import retrieve
from pacs.services.retrieve import PLAIN, Stored, Unsendable


def register(registry: Registry) -> None:
    """Serve C-GET of both information models."""
    for uid in (retrieve.STUDY_ROOT_GET, retrieve.PATIENT_ROOT_GET):
        registry.add(uid, "C-GET", get, service="get", application_information=b"\1")


def get(request: Request) -> Iterator[Outcome]:
    """Send what the identifier means; one C-STORE sub-operation an object. Raises Refused."""
    found = retrieve.select(request)
    retrieve.record(request, found, request.assoc.calling_ae)

    def send(one: Stored, following: Stored | None) -> int:
        context = _context_for(request, one)
        opened = one.open(context.transfer_syntax)
        try:
            command = store_command(one.origin)
            return request.assoc.suboperation(context, command, opened.pieces, request.exchange).status
        finally:
            opened.close()

    yield from retrieve.run(request, found, send)


def _context_for(request: Request, one: Stored) -> Context:
    """The accepted context in which we may send this object: as it lies, else plain. Raises Unsendable."""
    offered = {
        context.transfer_syntax: context
        for context in request.assoc.contexts.values()
        if context.as_scu and context.abstract_syntax == one.origin.sop_class_uid
    }
    for syntax in (one.origin.transfer_syntax_uid, *PLAIN):
        if syntax in offered:
            return offered[syntax]
    raise Unsendable("no presentation context for it")
