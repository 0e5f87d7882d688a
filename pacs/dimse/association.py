"""An association after its set-up: message exchange and the ends of it (PS3.7 annex E.1, PS3.8 section 9.2)."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pacs.dimse import command as commands
from pacs.dimse import datasets, status, stream
from pacs.dimse.command import Command, CommandError, response_to
from pacs.dimse.errors import Aborted, Closed, Ended, ProtocolError, Refused, Released, TimedOut
from pacs.dimse.registry import DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, Context, Outcome, Peer, Registry, Request
from pacs.dimse.stream import Patience, Stream

log = logging.getLogger(__name__)

MESSAGE_SECONDS = 60.0  #: between two PDUs of one message
SUBOPERATION_SECONDS = 120.0  #: until a peer has stored what it asked for
GATHERED_BYTES = 64 * 1024  #: pending answers are written when they come to this much …
GATHERED_SECONDS = 0.05  #: … or when the last write is this long ago

_MULTIPLE = frozenset(("C-FIND", "C-MOVE", "C-GET"))
_ids = itertools.count(1)


@dataclass(slots=True)
class Message:
    """A DIMSE message whose command has been read; its data set, if it has one, is still on the wire."""

    context: Context
    command: Command


class Association:
    """Message exchange over one established association, by one thread. Either side may have asked for it."""

    def __init__(self, wire: Stream, contexts: Mapping[int, Context], max_data: int) -> None:
        self.wire = wire
        self.contexts = contexts
        self.max_data = max_data  #: longest P-DATA-TF body that the peer takes
        self._pdvs: Iterator[tuple[int, int, memoryview]] = iter(())
        self._unread = False  # fragments of the last message's data set are still to come
        self._reading: Message | None = None

    # -- receiving

    def next_message(self, idle_seconds: float, patience: Patience | None = None) -> Message:
        """The next message's command, once what was left of the previous data set has been dropped.

        Raises an Ended: Released, Aborted, Closed, TimedOut or ProtocolError.
        """
        for _ in self.fragments():
            pass
        parts = bytearray()
        wait = idle_seconds
        while True:
            context_id, control, fragment = self._next_pdv(wait, None if parts else patience)
            wait = MESSAGE_SECONDS
            if not control & 1:
                raise ProtocolError(
                    "a data set fragment where a command was due", ProtocolError.UNEXPECTED_PDU
                )
            context = self._context(context_id, parts)
            parts += fragment
            if len(parts) > commands.MAX_COMMAND_BYTES:
                raise ProtocolError("command set too long")
            if control & 2:
                break
        try:
            command = commands.decode(parts)
        except CommandError as error:
            raise ProtocolError(str(error)) from None
        self._reading = Message(context, command)
        self._unread = command.has_data_set
        return self._reading

    def fragments(self) -> Iterator[memoryview]:
        """The fragments of the present message's data set, as they come; a view lives until the next is asked for."""
        while self._unread:
            context_id, control, fragment = self._next_pdv(MESSAGE_SECONDS)
            message = self._reading
            if control & 1 or message is None or context_id != message.context.id:
                raise ProtocolError("something else within a data set", ProtocolError.UNEXPECTED_PDU)
            if control & 2:
                self._unread = False
            yield fragment

    def _context(self, context_id: int, parts: bytearray) -> Context:
        context = self.contexts.get(context_id)
        if context is None:
            raise ProtocolError("a presentation context that was not accepted")
        if not parts:
            self._command_context = context_id
        elif context_id != self._command_context:
            raise ProtocolError("one command over two presentation contexts")
        return context

    def _next_pdv(self, idle_seconds: float, patience: Patience | None = None) -> tuple[int, int, memoryview]:
        pdv = next(self._pdvs, None)
        while pdv is None:
            pdu_type, body = self.wire.read_pdu(idle_seconds, patience=patience)
            if pdu_type != stream.P_DATA:
                self._control(pdu_type)
            self._pdvs = stream.pdvs(body)
            pdv = next(self._pdvs, None)
        return pdv

    def _control(self, pdu_type: int) -> None:
        """What any PDU but P-DATA means for an established association (PS3.8 table 9-10, Sta6)."""
        if pdu_type == stream.RELEASE_RQ:
            self.wire.write(stream.RELEASE_RESPONSE)
            self.wire.close_after_peer()
            raise Released("released")
        if pdu_type == stream.ABORT:
            raise Aborted("aborted by the peer")
        raise ProtocolError(f"PDU type {pdu_type:02X} out of turn", ProtocolError.UNEXPECTED_PDU)

    def cancel_requested(self, message_id: int) -> bool:
        """Whether a C-CANCEL-RQ for this message has come; does not wait. Raises Ended as `next_message` does.

        Anything else than a cancel is out of turn: we agreed to one operation at a time.
        """
        if self._unread or not self.wire.waiting():
            return False
        message = self.next_message(MESSAGE_SECONDS)
        if message.command.name != "C-CANCEL" or message.command.is_response:
            raise ProtocolError("a second operation at once", ProtocolError.UNEXPECTED_PDU)
        return message.command.message_id == message_id

    # -- sending

    def encoded(self, context: Context, command: Mapping[str, Any], data: bytes | None = None) -> list[Any]:
        """A message as the buffers that go onto the wire."""
        raw = commands.encode(command)
        buffers = list(stream.data_pdus(context.id, raw, command=True, max_data=self.max_data))
        if data is not None:
            if context.transfer_syntax == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
                data = datasets.deflate(data)
            buffers += stream.data_pdus(context.id, data, command=False, max_data=self.max_data)
        return buffers

    def send(self, context: Context, command: Mapping[str, Any], data: Any = None) -> None:
        """Send a message in as few writes as can be."""
        self.wire.write(*self.encoded(context, command, data))

    # -- ending

    def release(self, seconds: float = 10.0) -> None:
        """Ask for release and wait for the answer, dropping data that still comes; then close. Never raises."""
        try:
            self.wire.write(stream.RELEASE_REQUEST)
            while True:
                pdu_type, _ = self.wire.read_pdu(seconds)
                if pdu_type == stream.RELEASE_RQ:  # both at once: answer, and go on waiting (Sta7, Sta9)
                    self.wire.write(stream.RELEASE_RESPONSE)
                elif pdu_type != stream.P_DATA:
                    break
        except Ended:
            pass
        self.wire.close()

    def abort(self, reason: int | None = None) -> None:
        """Send A-ABORT, by the service user or, with a reason, by the provider; then close. Never raises."""
        try:
            self.wire.write(stream.abort_pdu(0, 0) if reason is None else stream.abort_pdu(2, reason))
            self.wire.close_after_peer()
        except Ended:
            self.wire.close()


class Draining(Ended):
    """The process stops: an idle association is ended."""


class ServedAssociation(Association):
    """An association that a peer asked for: its requests are handed to the services, one at a time."""

    def __init__(
        self,
        wire: Stream,
        contexts: Mapping[int, Context],
        max_data: int,
        *,
        registry: Registry,
        peer: Peer | None,
        calling_ae: str,
        called_ae: str,
        address: str,
        idle_seconds: float,
        leave: Callable[[bool], bool] = lambda busy: False,
        after_request: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(wire, contexts, max_data)
        self.id = f"a{next(_ids)}"
        self.registry, self.peer = registry, peer
        self.calling_ae, self.called_ae, self.address = calling_ae, called_ae, address
        self.idle_seconds = idle_seconds
        self._leave, self._after_request = leave, after_request
        self._last_message_id = 0

    def serve(self) -> str:
        """Answer requests until the association ends; says how it ended. Never raises an Ended."""
        try:
            while True:
                if self._leave(True):
                    raise Draining("stopping")
                message = self.next_message(self.idle_seconds, self._patience)
                if message.command.name == "C-CANCEL":
                    continue  # its operation is over: the two crossed on the wire
                if message.command.is_response:
                    raise ProtocolError("a response to nothing", ProtocolError.UNEXPECTED_PDU)
                try:
                    self._answer(message)
                finally:
                    self._after_request()
        except ProtocolError as error:
            self.abort(error.reason)
            return f"protocol error: {error}"
        except (TimedOut, Draining) as error:
            self.abort()
            return str(error)
        except (Released, Aborted, Closed) as error:
            self.wire.close()
            return str(error)

    def _patience(self) -> None:
        if self._leave(False):
            raise Draining("stopping")

    def _answer(self, message: Message) -> None:
        exchange = _Exchange(self, message)
        request = Request(self, message.context, message.command, exchange)
        try:
            handler = self._handler(message)
            if message.command.name in _MULTIPLE:
                _ = request.data  # what comes after the identifier can only be a cancel
                self._answer_many(request, exchange, handler(request))
            else:
                outcome = handler(request)
                self._finish(message, outcome.status, outcome.comment, outcome.data, outcome.elements)
        except Refused as refusal:
            self._finish(message, refusal.status, refusal.comment, None, refusal.elements)
        except Ended:
            raise
        except Exception as error:
            # Its text may hold a patient's data; the traceback's own lines do not.
            log.error(
                "%s %s failed: %s", self.id, message.command.name, type(error).__name__, exc_info=_bare(error)
            )
            self._finish(
                message, datasets.unable(message.command), f"failed: {type(error).__name__}", None, {}
            )

    def _handler(self, message: Message) -> Callable[[Request], Any]:
        command, context = message.command, message.context
        entry = self.registry.find(context.abstract_syntax)
        handler = entry.handlers.get(command.name) if entry else None
        if handler is None:
            raise Refused(status.UNRECOGNIZED_OPERATION, "operation not supported on this SOP class")
        if not context.as_scp:
            raise Refused(status.NOT_AUTHORIZED, "role not negotiated")
        if command.affected_sop_class_uid != context.abstract_syntax:
            raise Refused(status.CLASS_NOT_SUPPORTED, "SOP class is not that of the presentation context")
        return handler

    def suboperation(
        self, context: Context, command: Mapping[str, Any], data: stream.Payload, exchange: Any
    ) -> Command:
        """Ask the peer something while its own request is at work (C-STORE of a C-GET); gives its response.

        A C-CANCEL of the request that comes in between is remembered by its `exchange`.
        """
        self._last_message_id = message_id = self._last_message_id % 0xFFFF + 1
        raw = commands.encode({**command, "MessageID": message_id, "CommandDataSetType": 1})
        self.wire.write(
            *stream.data_pdus(context.id, raw, command=True, max_data=self.max_data),
            *stream.data_pdus(context.id, data, command=False, max_data=self.max_data),
        )
        while True:
            message = self.next_message(SUBOPERATION_SECONDS)
            answered = message.command
            if answered.name == "C-CANCEL" and not answered.is_response:
                exchange.was_cancelled = True
            elif answered.is_response and answered.message_id == message_id:
                for _ in self.fragments():
                    pass
                return answered
            else:
                raise ProtocolError("not the response that is due", ProtocolError.UNEXPECTED_PDU)

    def _finish(
        self, message: Message, code: int, comment: str, data: bytes | None, elements: Mapping[str, Any]
    ) -> None:
        """Send the response, after dropping what the handler left of the data set unread."""
        for _ in self.fragments():
            pass
        response = response_to(message.command, code, data_set=data is not None, comment=comment, **elements)
        self.send(message.context, response, data)

    def _answer_many(self, request: Request, exchange: _Exchange, answers: Any) -> None:
        """Send what the handler's iterator yields, until it ends, gives a final outcome, or the peer cancels."""
        writer = _Answers(self, request.context, request.command)
        final = Outcome()
        answers = iter(answers)
        try:
            for answer in answers:
                if isinstance(answer, Outcome) and not status.is_pending(answer.status):
                    final = answer
                    break
                if writer.add(answer) and not isinstance(answer, Outcome) and exchange.cancelled():
                    break  # a retrieval sees for itself that it was cancelled, and says how far it came
        except Refused as refusal:
            final = Outcome(refusal.status, comment=refusal.comment, elements=refusal.elements)
        finally:
            close = getattr(answers, "close", None)
            if close is not None:
                close()
        if exchange.was_cancelled and final.status == status.SUCCESS:
            final = Outcome(status.CANCELLED, elements=final.elements)
        for _ in self.fragments():
            pass
        writer.finish(final)


class _Answers:
    """Gathers pending answers into large writes; the first leaves at once, and none waits long for company."""

    def __init__(self, assoc: Association, context: Context, command: Command) -> None:
        self._assoc, self._context, self._command = assoc, context, command
        self._prefixes: dict[int, bytes] = {}
        self._gathered: list[Any] = []
        self._size = 0
        self._written = 0.0

    def add(self, answer: Outcome | tuple[int, bytes]) -> bool:
        """Take one pending answer; True when it was written together with what was gathered before it."""
        if isinstance(answer, Outcome):
            self._add_outcome(answer)
        else:
            code, data = answer
            if code not in self._prefixes:
                response = response_to(self._command, code, data_set=True)
                self._prefixes[code] = b"".join(self._assoc.encoded(self._context, response))
            if self._context.transfer_syntax == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
                data = datasets.deflate(data)
            self._gathered.append(self._prefixes[code])
            self._gathered += stream.data_pdus(
                self._context.id, data, command=False, max_data=self._assoc.max_data
            )
            self._size += len(data)
        if self._size < GATHERED_BYTES and time.monotonic() - self._written < GATHERED_SECONDS:
            return False
        self._assoc.wire.write(b"".join(self._gathered))
        self._gathered, self._size, self._written = [], 0, time.monotonic()
        return True

    def _add_outcome(self, answer: Outcome) -> None:
        self._gathered += self._assoc.encoded(self._context, self._response(answer), answer.data)
        self._size += len(answer.data or b"")

    def finish(self, final: Outcome) -> None:
        """Write what is gathered and the final response."""
        last = self._assoc.encoded(self._context, self._response(final), final.data)
        self._assoc.wire.write(b"".join(self._gathered), *last)

    def _response(self, outcome: Outcome) -> dict[str, Any]:
        return response_to(
            self._command,
            outcome.status,
            data_set=outcome.data is not None,
            comment=outcome.comment,
            **outcome.elements,
        )


class _Exchange:
    """What a Request may do on the wire."""

    def __init__(self, assoc: Association, message: Message) -> None:
        self._assoc, self._message = assoc, message
        self.was_cancelled = False

    def fragments(self) -> Iterator[memoryview]:
        return self._assoc.fragments()

    def cancelled(self) -> bool:
        if not self.was_cancelled:
            self.was_cancelled = self._assoc.cancel_requested(self._message.command.message_id)
        return self.was_cancelled


def _bare(error: BaseException) -> Any:
    """The traceback of an exception without its text."""
    return type(error), Exception(type(error).__name__), error.__traceback__
