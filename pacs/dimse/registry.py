"""Which service answers which SOP class and DIMSE command: the plug board of the DICOM door.

A service is a module with a function ``register(registry)``: the archive's own (server.SERVICES), or one that
the setting ``ORDERLY_DIMSE_SERVICES`` names. It calls :meth:`Registry.add` for each (SOP class, command) it serves::

    def register(registry: Registry) -> None:
        registry.add("1.2.840.10008.5.1.4.31", "C-FIND", find, service="worklist")
        registry.add("1.2.840.10008.3.1.2.3.3", "N-CREATE", create, service="mpps")

Handlers are plain functions. Each gets one :class:`Request` and runs in the thread of its association,
one request at a time; a database connection used there goes back to the pool after every request.

========================  =====================================================================
command                   the handler gives back
========================  =====================================================================
C-ECHO, C-STORE, N-*      one :class:`Outcome`
C-FIND                    an iterator (write a generator) of ``(status, identifier)``: status is
                          0xFF00 or 0xFF01, identifier the encoded bytes of one answer in
                          ``request.context.transfer_syntax`` (see below). The final 0x0000 is
                          ours to send, and 0xFE00 when the peer cancelled.
C-MOVE, C-GET             an iterator of :class:`Outcome`: pending ones with sub-operation
                          counts, the last one final
========================  =====================================================================

* ``raise Refused(status, comment, ...)`` at any place, also after rows were yielded, ends the request
  with that status, Error Comment, Offending Element and so on. Anything else that is raised is logged
  by type, answered with the command's "unable to process" code, and the association lives on.
* Pending answers are gathered and written in large pieces, and a slow peer holds the generator back:
  yield row by row, as fast as they come. Cancel is looked for by the association at each write; then
  the generator is closed (``GeneratorExit`` at its yield), so a server-side cursor in a ``with`` block is
  let go of. A handler that works long without yielding asks ``request.cancelled`` itself, and so does one
  that yields Outcomes (C-MOVE, C-GET): its final one says how far it came.
* Identifiers are sent as they are given. In Deflated Explicit VR Little Endian
  (1.2.840.10008.1.2.1.99) give the explicit little endian bytes: they are deflated on the way out.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from pacs.dimse import datasets, status
from pacs.dimse.errors import Refused

if TYPE_CHECKING:
    from pydicom import Dataset

    from pacs.dimse.command import Command

__all__ = ["Assoc", "Context", "Entry", "Outcome", "Peer", "Refused", "Registry", "Request", "load"]

IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1.99"
EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"

#: What a service without opinion of its own takes, in no order: the proposer's order decides.
TRANSFER_SYNTAXES = (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
)

#: The words a site uses to say what a peer may do (ApplicationEntity.services, ``[[ae]] services``).
SERVICES = ("echo", "store", "find", "move", "get", "commit", "worklist", "mpps")


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is calling and what it may do, as the Directory knows it (admission.py).

    `services` holds words of SERVICES. `options` is the peer's own profile (for example a
    ``worklist`` service may find ``{"strict": true}`` in it); its content is the service's affair.
    """

    ae_title: str
    services: frozenset[str]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Context:
    """One accepted presentation context (PS3.8 9.3.3): id (odd, 1 to 255) and its two UIDs.

    `as_scp`/`as_scu` say which roles we hold in it: SCU only after role selection (C-GET).
    """

    id: int
    abstract_syntax: str
    transfer_syntax: str
    as_scp: bool = True
    as_scu: bool = False


class Assoc(Protocol):
    """What a handler may know of the association its request came in by."""

    id: str  #: ours, unique; goes into logs instead of anything of the patient's
    calling_ae: str  #: as negotiated, spaces stripped
    called_ae: str
    address: str  #: the peer's IP address
    peer: Peer | None  #: None for a caller nobody knows: it may only C-ECHO
    contexts: Mapping[int, Context]

    def suboperation(
        self, context: Context, command: Mapping[str, Any], data: Any, exchange: Any
    ) -> Command: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """One response. `data` is the encoded data set in the context's transfer syntax, or None for none.

    `elements` are command elements beside Status, by keyword of PS3.7 annex E, for example
    ``{"AffectedSOPInstanceUID": uid}`` when an N-CREATE made the UID. Message ID, SOP class and
    instance UID are copied from the request unless given here.
    """

    status: int = status.SUCCESS
    data: bytes | None = None
    comment: str = ""
    elements: Mapping[str, Any] = field(default_factory=dict)


class Exchange(Protocol):
    """The association's side of one request (association.py); handlers use Request instead."""

    def fragments(self) -> Iterator[memoryview]: ...
    def cancelled(self) -> bool: ...


@dataclass
class Request:
    """One DIMSE request as its handler sees it."""

    assoc: Assoc
    context: Context
    command: Command  #: .message_id, .affected_sop_class_uid, .affected_sop_instance_uid, .get("Priority") …
    exchange: Exchange

    def fragments(self) -> Iterator[memoryview]:
        """The data set as it arrives. Each view is valid until the next one is asked for; once only."""
        return self.exchange.fragments()

    @cached_property
    def data(self) -> bytes:
        """The whole data set (identifier, attribute list) as received; b"" when there is none.

        Bounded by datasets.MAX_MESSAGE_BYTES, raises Refused above it. Not for C-STORE.
        """
        return datasets.gather(self.fragments(), self.command)

    @cached_property
    def dataset(self) -> Dataset:
        """`data` decoded by pydicom, after a check of depth and lengths; raises Refused when unreadable."""
        return datasets.decode(self.data, self.context.transfer_syntax, self.command)

    def encode(self, ds: Dataset) -> bytes:
        """`ds` as bytes for this request's transfer syntax (explicit little endian where it is deflated)."""
        return datasets.encode(ds, self.context.transfer_syntax)

    @property
    def cancelled(self) -> bool:
        """True once the peer sent C-CANCEL-RQ for this request. Looks at the socket without waiting."""
        return self.exchange.cancelled()


Handler = Callable[[Request], Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """What is registered for one SOP class: its handlers by command and the right they need."""

    sop_class_uid: str
    service: str
    transfer_syntaxes: tuple[str, ...] | None  #: None takes whatever the peer proposes (storage)
    handlers: Mapping[str, Handler]
    #: SOP Class Extended Negotiation (PS3.7 D.3.3.5): what we support, byte by byte; the answer holds, for
    #: each byte the peer sent, the lesser of both.
    application_information: bytes = b""


class Registry:
    """The services of this process."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._fallback: Callable[[str], Entry | None] = lambda uid: None

    def add(
        self,
        sop_class_uid: str,
        command: str,
        handler: Handler,
        *,
        service: str,
        transfer_syntaxes: tuple[str, ...] | None = TRANSFER_SYNTAXES,
        application_information: bytes = b"",
    ) -> None:
        """Let `handler` answer `command` ("C-FIND", "N-SET" …) on contexts of `sop_class_uid`.

        `service` is the right a peer needs (one of SERVICES). Raises ValueError when the place is taken
        or the class was registered under another right.
        """
        if service not in SERVICES:
            raise ValueError(
                f"{sop_class_uid}: no such right as {service!r}; it is one of {', '.join(SERVICES)}"
            )
        old = self._entries.get(sop_class_uid)
        if old and (command in old.handlers or old.service != service):
            raise ValueError(f"{sop_class_uid} {command}: already served (as {old.service!r})")
        handlers = {**(old.handlers if old else {}), command: handler}
        self._entries[sop_class_uid] = Entry(
            sop_class_uid, service, transfer_syntaxes, handlers, application_information
        )

    def add_fallback(self, entry_of: Callable[[str], Entry | None]) -> None:
        """Ask `entry_of` about SOP classes nobody added; storage uses it for private ones."""
        self._fallback = entry_of

    def find(self, sop_class_uid: str) -> Entry | None:
        """What serves this SOP class, or None."""
        return self._entries.get(sop_class_uid) or self._fallback(sop_class_uid)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())


def load(modules: Iterable[str]) -> Registry:
    """A registry filled by ``register(registry)`` of each named module, in order."""
    registry = Registry()
    for name in modules:
        importlib.import_module(name).register(registry)
    return registry
