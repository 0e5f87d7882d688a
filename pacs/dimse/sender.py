"""Our associations to others: C-ECHO and fast C-STORE (SCU), over the same PDUs and bounds as the listener."""

from __future__ import annotations

import contextlib
import mmap
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pacs.dimse import negotiation, stream
from pacs.dimse.association import Association
from pacs.dimse.command import CODES, NO_DATA_SET, Command
from pacs.dimse.errors import AssociationRefused, Ended, ProtocolError
from pacs.dimse.negotiation import VERIFICATION, Proposed
from pacs.dimse.registry import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    Context,
)
from pacs.dimse.stream import Stream
from pacs.storage.part10 import MAX_META_BYTES, Origin, origin_of, read_prefix

CONNECT_SECONDS = 10.0
RESPONSE_SECONDS = 120.0  #: a peer may need its time to store a large object
MEDIUM_PRIORITY = 0


@dataclass(frozen=True, slots=True)
class Destination:
    """Where to call, and as whom."""

    host: str
    port: int
    called_ae: str
    calling_ae: str
    tls: ssl.SSLContext | None = None


def associate(
    destination: Destination,
    contexts: Iterable[tuple[str, Iterable[str]]],
    *,
    roles: Mapping[str, tuple[bool, bool]] | None = None,
    seconds: float = CONNECT_SECONDS,
) -> RequestedAssociation:
    """Ask for an association with these (abstract syntax, transfer syntaxes), at most 128 of them.

    Raises AssociationRefused when the peer says no or accepts none of them, an Ended when it cannot be
    reached, breaks off or breaks the protocol. `seconds` bounds the connection and, anew, the answer.
    """
    proposed = [Proposed(2 * at + 1, uid, tuple(syntaxes)) for at, (uid, syntaxes) in enumerate(contexts)]
    if not 0 < len(proposed) <= negotiation.MAX_CONTEXTS:
        raise ValueError(
            f"{len(proposed)} presentation contexts: there may be 1 to {negotiation.MAX_CONTEXTS}"
        )
    wire = Stream(_connected(destination, seconds))
    try:
        wire.write(negotiation.request_pdu(destination.calling_ae, destination.called_ae, proposed, roles))
        pdu_type, body = wire.read_pdu(seconds)
        if pdu_type == stream.ASSOCIATE_RJ:
            raise negotiation.refusal(body)
        if pdu_type == stream.ABORT:
            raise AssociationRefused("aborted by the peer")
        if pdu_type != stream.ASSOCIATE_AC:
            raise ProtocolError(f"PDU type {pdu_type:02X} instead of an answer", ProtocolError.UNEXPECTED_PDU)
        accepted, max_data = negotiation.read_accept(body, proposed)
        assoc = RequestedAssociation(wire, accepted, negotiation.check_max_data(max_data))
    except ProtocolError as error:
        Association(wire, {}, stream.MAX_PDU).abort(error.reason)
        raise
    except (AssociationRefused, Ended):
        wire.close()
        raise
    if not accepted:
        assoc.release()
        raise AssociationRefused("the peer accepts none of the proposed presentation contexts")
    return assoc


def _connected(destination: Destination, seconds: float) -> socket.socket:
    try:
        sock = socket.create_connection((destination.host, destination.port), timeout=seconds)
        if destination.tls is not None:
            return destination.tls.wrap_socket(sock, server_hostname=destination.host)
        return sock
    except OSError as error:
        raise Ended(f"cannot connect: {error.strerror or type(error).__name__}") from None


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request, encoded: what goes onto the wire."""

    message_id: int
    buffers: list[Any]


class RequestedAssociation(Association):
    """An association that we asked for. Ends by `release` (or leaving its `with` block), or `abort`."""

    _last_message_id = 0

    def __enter__(self) -> RequestedAssociation:
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if isinstance(error, ProtocolError):
            self.abort(error.reason)
        elif error is not None:
            self.abort()
        else:
            self.release()

    def context_for(self, abstract_syntax: str, transfer_syntax: str | None = None) -> Context | None:
        """The accepted context of this class (and transfer syntax), if there is one."""
        for context in self.contexts.values():
            if context.abstract_syntax == abstract_syntax and transfer_syntax in (
                None,
                context.transfer_syntax,
            ):
                return context
        return None

    def exchange(
        self,
        context: Context,
        command: Mapping[str, Any],
        data: stream.Payload | None = None,
        *,
        seconds: float = RESPONSE_SECONDS,
    ) -> Command:
        """Send a request and return its (only) response; a data set in it is dropped.

        `command` lacks Message ID and data set type, which are set here. Raises an Ended.
        """
        return self.perform(self.prepared(context, command, data), seconds=seconds)

    def prepared(
        self, context: Context, command: Mapping[str, Any], data: stream.Payload | None = None
    ) -> Outgoing:
        """A request as `exchange` sends it, for `perform`; what `data` looks at must stay until then."""
        self._last_message_id = message_id = self._last_message_id % 0xFFFF + 1
        request = {
            **command,
            "MessageID": message_id,
            "CommandDataSetType": NO_DATA_SET if data is None else 1,
        }
        return Outgoing(message_id, self.encoded(context, request, data))

    def perform(
        self,
        request: Outgoing,
        *,
        seconds: float = RESPONSE_SECONDS,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Command:
        """Send a prepared request and return its response, as `exchange` does. `meanwhile` is called halfway: the
        peer then has something to read, and nothing of ours lies between its response and the next request.
        """
        half = len(request.buffers) // 2
        self.wire.write(*request.buffers[:half])
        meanwhile()
        self.wire.write(*request.buffers[half:])
        message = self.next_message(seconds)
        for _ in self.fragments():
            pass
        if not message.command.is_response or message.command.message_id != request.message_id:
            raise ProtocolError("not the response that is due", ProtocolError.UNEXPECTED_PDU)
        return message.command

    def echo(self, seconds: float = RESPONSE_SECONDS) -> int:
        """C-ECHO; gives its status."""
        context = self.context_for(VERIFICATION)
        if context is None:
            raise AssociationRefused("the peer does not offer Verification")
        command = {"AffectedSOPClassUID": VERIFICATION, "CommandField": CODES["C-ECHO"]}
        return self.exchange(context, command, seconds=seconds).status

    def store(
        self,
        origin: Origin,
        data: stream.Payload,
        *,
        originator: tuple[str, int] | None = None,
    ) -> int:
        """C-STORE of an encoded data set; gives its status. `originator`: AE title and message id of a C-MOVE.

        Raises AssociationRefused when no context was accepted for its class and transfer syntax.
        """
        context = self.context_for(origin.sop_class_uid, origin.transfer_syntax_uid)
        if context is None:
            raise AssociationRefused("the peer does not take this SOP class in this transfer syntax")
        return self.exchange(context, store_command(origin, originator), data).status

    def encoded(self, context: Context, command: Mapping[str, Any], data: Any = None) -> list[Any]:
        """As ever, but a data set is sent as it is: in a deflated syntax it lies deflated already."""
        buffers = super().encoded(context, command)
        if data is not None:
            buffers += stream.data_pdus(context.id, data, command=False, max_data=self.max_data)
        return buffers


def store_command(origin: Origin, originator: tuple[str, int] | None = None) -> dict[str, Any]:
    """The command set of a C-STORE-RQ, but for its Message ID."""
    command: dict[str, Any] = {
        "AffectedSOPClassUID": origin.sop_class_uid,
        "AffectedSOPInstanceUID": origin.sop_instance_uid,
        "CommandField": CODES["C-STORE"],
        "Priority": MEDIUM_PRIORITY,
    }
    if originator:
        command["MoveOriginatorApplicationEntityTitle"], command["MoveOriginatorMessageID"] = originator
    return command


@contextlib.contextmanager
def part10(path: Path) -> Iterator[tuple[Origin, memoryview]]:
    """A Part 10 file's origin and its data set, mapped into memory. Raises part10.NotPart10 or OSError."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    whole = memoryview(mapped)
    try:
        meta, offset = read_prefix(whole[:MAX_META_BYTES])
        yield origin_of(meta), whole[offset:]
    finally:
        whole.release()
        with contextlib.suppress(BufferError):  # a failed send's traceback may still hold a slice
            mapped.close()


def echo(destination: Destination, seconds: float = CONNECT_SECONDS) -> int:
    """Associate, C-ECHO, release; gives the status. Raises AssociationRefused or an Ended."""
    syntaxes = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)
    with associate(destination, [(VERIFICATION, syntaxes)], seconds=seconds) as assoc:
        return assoc.echo(seconds)


def contexts_of(origins: Iterable[Origin]) -> list[tuple[str, tuple[str, ...]]]:
    """What to propose to send these objects as they are: one context for each class and transfer syntax."""
    pairs = dict.fromkeys((origin.sop_class_uid, origin.transfer_syntax_uid) for origin in origins)
    return [(uid, (syntax,)) for uid, syntax in pairs]
