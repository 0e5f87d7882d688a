"""C-MOVE (PS3.4 annex C.4.2): stored objects go to a third party that the site has named."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from django.conf import settings

from pacs.dimse import sender, status
from pacs.dimse.errors import AssociationRefused, Ended
from pacs.dimse.negotiation import MAX_CONTEXTS
from pacs.dimse.registry import Context, Outcome, Refused, Registry, Request
from pacs.dimse.sender import Destination, Outgoing, RequestedAssociation, store_command
from pacs.models import ApplicationEntity
from pacs.services import retrieve
from pacs.services.retrieve import PLAIN, Opened, Stored, Unsendable
from pacs.storage.part10 import Origin


def register(registry: Registry) -> None:
    """Serve C-MOVE of both information models."""
    for uid in (retrieve.STUDY_ROOT_MOVE, retrieve.PATIENT_ROOT_MOVE):
        registry.add(uid, "C-MOVE", move, service="move", application_information=b"\1")


def move(request: Request) -> Iterator[Outcome]:
    """Send what the identifier means to the Move Destination. Raises Refused (A801 for one that nobody named)."""
    title = str(request.command.get("MoveDestination") or "")
    destination = destination_of(title)
    if destination is None:
        raise Refused(status.MOVE_DESTINATION_UNKNOWN, "Move Destination is not known here")
    found = retrieve.select(request)
    if not found:
        yield retrieve.Count(0).final(request, False)
        return
    retrieve.record(request, found, title)
    originator = (request.assoc.calling_ae, request.command.message_id)
    transfer = Transfer(destination, [one.origin for one in found], originator)
    try:
        yield from retrieve.run(request, found, transfer.send)
    finally:
        transfer.end()


def destination_of(title: str) -> Destination | None:
    """Where a node that the site has named listens; None for any other. Addresses come from nowhere else."""
    row = (
        ApplicationEntity.objects.filter(title=title, enabled=True, port__isnull=False)
        .exclude(host__in=("", "*"))
        .exclude(host__contains="/")
        .order_by("pk")
        .first()
    )
    if row is None or row.port is None:
        return None
    return Destination(row.host, row.port, row.title, settings.ORDERLY_AE_TITLE, _tls() if row.tls else None)


def _tls() -> ssl.SSLContext:
    """TLS as a client: the other side's certificate is checked against our authorities, ours is shown."""
    context = ssl.create_default_context(cafile=settings.ORDERLY_TLS_CA or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.ORDERLY_TLS_CERTIFICATE:
        context.load_cert_chain(settings.ORDERLY_TLS_CERTIFICATE, settings.ORDERLY_TLS_KEY or None)
    return context


@dataclass(frozen=True, slots=True)
class _Ready:
    """An object whose file is open and whose request is encoded."""

    one: Stored
    assoc: RequestedAssociation
    opened: Opened
    request: Outgoing


class Transfer:
    """Sends objects to one destination, over as few associations as their classes and syntaxes need.

    One that breaks is opened anew, twice at most in a row: a destination that is away fails what is left
    soon, and holds up nobody else.
    """

    def __init__(
        self, destination: Destination, origins: Iterable[Origin], originator: tuple[str, int] | None = None
    ) -> None:
        self._destination, self._originator = destination, originator
        self._groups = groups(origins)
        self._numbers = {pair: number for number, group in enumerate(self._groups) for pair in group}
        self._assocs: dict[int, RequestedAssociation] = {}
        self._failures = 0
        self._next: _Ready | None = None

    def send(self, one: Stored, following: Stored | None = None) -> int:
        """C-STORE one object; gives its status. The one that follows is made ready meanwhile. Raises Unsendable."""
        number = self._group(one)
        while self._failures < 2:
            try:
                assoc = self._assocs.get(number) or self._associate(number)
                ready = self._take(one, assoc) or self._ready(one, assoc)
                try:
                    code = assoc.perform(ready.request, meanwhile=lambda: self._look_ahead(following)).status
                finally:
                    ready.opened.close()
                self._failures = 0
                return code
            except AssociationRefused:
                self._failures = 2
            except Ended:
                self._failures += 1
                broken = self._assocs.pop(number, None)
                if broken:
                    broken.wire.close()
        raise Unsendable("the destination cannot be reached")

    def _group(self, one: Stored) -> int:
        return self._numbers[one.origin.sop_class_uid, one.origin.transfer_syntax_uid]

    def _ready(self, one: Stored, assoc: RequestedAssociation, *, as_it_lies: bool = False) -> _Ready:
        context = _context_for(assoc, one)
        if as_it_lies and context.transfer_syntax != one.origin.transfer_syntax_uid:
            raise Unsendable("to be decoded when its turn comes")
        opened = one.open(context.transfer_syntax)
        try:
            command = store_command(one.origin, self._originator)
            return _Ready(one, assoc, opened, assoc.prepared(context, command, opened.pieces))
        except BaseException:
            opened.close()
            raise

    def _look_ahead(self, following: Stored | None) -> None:
        """Make the next request ready. What fails here is told when its turn comes."""
        self._drop()
        assoc = self._assocs.get(self._group(following)) if following else None
        if following is None or assoc is None:
            return
        with contextlib.suppress(Unsendable, OSError, ValueError):
            self._next = self._ready(following, assoc, as_it_lies=True)

    def _take(self, one: Stored, assoc: RequestedAssociation) -> _Ready | None:
        """The request that was made ready, if it is this one on this association."""
        ready = self._next
        if ready is None or ready.one is not one or ready.assoc is not assoc:
            return None
        self._next = None
        return ready

    def _drop(self) -> None:
        if self._next is not None:
            self._next.opened.close()
            self._next = None

    @property
    def given_up(self) -> bool:
        """Whether the destination is taken for unreachable: nothing more will go through."""
        return self._failures >= 2

    def _associate(self, number: int) -> RequestedAssociation:
        assoc = self._assocs[number] = sender.associate(self._destination, contexts_of(self._groups[number]))
        return assoc

    def end(self) -> None:
        """Release what is open."""
        self._drop()
        for assoc in self._assocs.values():
            assoc.release()
        self._assocs.clear()


def groups(origins: Iterable[Origin]) -> list[set[tuple[str, str]]]:
    """(class, syntax) pairs in groups that one association can propose, plain ones for each class included."""
    result: list[set[tuple[str, str]]] = [set()]
    for pair in dict.fromkeys((origin.sop_class_uid, origin.transfer_syntax_uid) for origin in origins):
        if len(contexts_of(result[-1] | {pair})) > MAX_CONTEXTS:
            result.append(set())
        result[-1].add(pair)
    return result


def contexts_of(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, tuple[str, ...]]]:
    """What to propose: each pair by itself, and each class in the plain syntaxes."""
    pairs = sorted(pairs)
    contexts: list[tuple[str, tuple[str, ...]]] = [(uid, (syntax,)) for uid, syntax in pairs]
    for uid in dict.fromkeys(uid for uid, _ in pairs):
        contexts += [(uid, (syntax,)) for syntax in PLAIN if (uid, (syntax,)) not in contexts]
    return contexts


def _context_for(assoc: RequestedAssociation, one: Stored) -> Context:
    for syntax in (one.origin.transfer_syntax_uid, *PLAIN):
        context = assoc.context_for(one.origin.sop_class_uid, syntax)
        if context:
            return context
    raise Unsendable("the destination takes it in no syntax that we can make")
