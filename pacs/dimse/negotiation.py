"""Association negotiation (PS3.8 section 9.3, PS3.7 annex D) with pynetdicom's PDU classes and rules, within bounds."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    AsynchronousOperationsWindowNegotiation,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
    SOPClassExtendedNegotiation,
)
from pynetdicom.presentation import PresentationContext, negotiate_as_acceptor

from pacs.dimse.errors import AssociationRefused, ProtocolError
from pacs.dimse.registry import Context, Entry, Peer, Registry
from pacs.dimse.stream import HEADER, MAX_PDU
from pacs.storage.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
VERIFICATION = "1.2.840.10008.1.1"

MAX_CONTEXTS = 128
MAX_ITEMS = 8192  #: of all kinds in one request; 128 contexts of 60 transfer syntaxes fit

ACCEPTANCE, USER_REJECTION, ABSTRACT_SYNTAX_NOT_SUPPORTED, TRANSFER_SYNTAXES_NOT_SUPPORTED = 0, 1, 3, 4


class Reject(Exception):
    """A-ASSOCIATE-RJ with its result, source and reason (PS3.8 table 9-21); the text is for the log and audit."""

    def __init__(self, result: int, source: int, reason: int, text: str) -> None:
        super().__init__(text)
        self.result, self.source, self.reason = result, source, reason


PERMANENT, TRANSIENT = 1, 2


def reject_calling_ae(text: str) -> Reject:
    """Calling AE title not recognized."""
    return Reject(PERMANENT, 1, 3, text)


def reject_called_ae(text: str) -> Reject:
    """Called AE title not recognized."""
    return Reject(PERMANENT, 1, 7, text)


def reject_busy(text: str) -> Reject:
    """Local limit exceeded, for now."""
    return Reject(TRANSIENT, 3, 2, text)


@dataclass(frozen=True, slots=True)
class Proposed:
    """One proposed presentation context."""

    id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(slots=True)
class Proposal:
    """What an A-ASSOCIATE-RQ says."""

    calling_ae: str
    called_ae: str
    contexts: list[Proposed] = field(default_factory=list)
    max_data: int = 0  #: longest P-DATA-TF the requestor takes; 0: any
    implementation_class_uid: str = ""
    implementation_version_name: str = ""
    roles: dict[str, tuple[bool, bool]] = field(default_factory=dict)  #: class → (SCU, SCP)
    extended: dict[str, bytes] = field(default_factory=dict)
    asked_for_window: bool = False
    asked_for_identity: bool = False


def scan(body: bytes | memoryview) -> None:
    """Check the items of an A-ASSOCIATE-RQ or -AC for number and length before objects are made of them."""
    end, count, contexts = len(body), 0, 0
    if end < 68:
        raise ProtocolError("association PDU too short")
    pending = [(68, end)]
    while pending:
        at, stop = pending.pop()
        while at < stop:
            if stop - at < 4:
                raise ProtocolError("an item is cut off")
            kind, length = struct.unpack_from(">BxH", body, at)
            inner, at = at + 4, at + 4 + length
            if at > stop:
                raise ProtocolError("an item runs over its PDU")
            count += 1
            if kind in (0x20, 0x21):
                contexts += 1
                if length < 4:
                    raise ProtocolError("a presentation context is cut off")
                pending.append((inner + 4, at))
            elif kind == 0x50:
                pending.append((inner, at))
            if count > MAX_ITEMS or contexts > MAX_CONTEXTS:
                raise ProtocolError("too many items")


def read_request(body: bytes | memoryview) -> Proposal:
    """Read the body of an A-ASSOCIATE-RQ. Raises ProtocolError, or Reject for a protocol version or context
    name that is not DICOM's."""
    scan(body)
    (version,) = struct.unpack_from(">H", body)
    if not version & 1:
        raise Reject(PERMANENT, 2, 2, "protocol version not supported")
    pdu = A_ASSOCIATE_RQ()
    try:
        pdu.decode(HEADER.pack(1, len(body)) + bytes(body))
        if str(pdu.application_context_name or "") != APPLICATION_CONTEXT:
            raise Reject(PERMANENT, 1, 2, "application context name not supported")
        proposal = Proposal(pdu.calling_ae_title.strip(), pdu.called_ae_title.strip())
        for item in pdu.presentation_context:
            proposal.contexts.append(
                Proposed(
                    int(item.presentation_context_id or 0),
                    str(item.abstract_syntax or ""),
                    tuple(str(uid) for uid in item.transfer_syntax if uid),
                )
            )
        _read_user_information(pdu.user_information, proposal)
    except Reject:
        raise
    except Exception as error:  # pynetdicom raises anything at all on malformed items
        raise ProtocolError(f"association request unreadable: {type(error).__name__}") from None
    ids = [context.id for context in proposal.contexts]
    if len(set(ids)) != len(ids) or not all(i % 2 for i in ids):
        raise ProtocolError("presentation context ids are not odd and different")
    if not proposal.calling_ae or not proposal.called_ae:
        raise reject_calling_ae("no AE title") if not proposal.calling_ae else reject_called_ae("no AE title")
    return proposal


def _read_user_information(item: Any, proposal: Proposal) -> None:
    if item is None:
        return
    proposal.max_data = int(item.maximum_length or 0)
    proposal.implementation_class_uid = str(item.implementation_class_uid or "")
    proposal.implementation_version_name = str(item.implementation_version_name or "")
    for uid, role in item.role_selection.items():
        proposal.roles[str(uid)] = (bool(role.scu_role), bool(role.scp_role))
    for extended in item.ext_neg:
        proposal.extended[str(extended.uid)] = bytes(extended.app_info or b"")
    proposal.asked_for_window = item.async_ops_window is not None
    proposal.asked_for_identity = item.user_identity is not None


def check_max_data(max_data: int) -> int:
    """The longest P-DATA-TF body we send to a peer that takes `max_data` (0: any); ours bounds it."""
    if max_data == 0:
        return MAX_PDU
    if max_data < 16:  # six bytes are header: nothing sensible would get through
        raise ProtocolError(f"maximum length of {max_data} bytes")
    return min(max_data, MAX_PDU)


# -- accepting


@dataclass(slots=True)
class Agreement:
    """What was agreed: the accepted contexts by id, and the A-ASSOCIATE-AC that says so."""

    contexts: dict[int, Context]
    pdu: bytes
    denied: list[str]  #: abstract syntaxes refused because the peer lacks the right, for the audit


def agree(proposal: Proposal, peer: Peer | None, registry: Registry) -> Agreement:
    """Answer a proposal by what `peer` may do (None: C-ECHO only) and what the registry serves.

    Within a context the first proposed transfer syntax that the service takes is chosen: it is how the
    sender has its data. A class that the peer has no right to is answered "user rejection".
    """
    results: dict[int, tuple[int, str]] = {}
    served: dict[str, Entry] = {}
    denied = []
    proposed = []
    for context in proposal.contexts:
        entry = registry.find(context.abstract_syntax)
        first = context.transfer_syntaxes[0] if context.transfer_syntaxes else "1.2.840.10008.1.2"
        if entry is None:
            results[context.id] = (ABSTRACT_SYNTAX_NOT_SUPPORTED, first)
        elif not _allowed(entry, peer, proposal.roles.get(context.abstract_syntax)):
            results[context.id] = (USER_REJECTION, first)
            denied.append(context.abstract_syntax)
        elif not context.transfer_syntaxes:
            results[context.id] = (TRANSFER_SYNTAXES_NOT_SUPPORTED, first)
        else:
            served[context.abstract_syntax] = entry
            proposed.append(context)
    agreed, roles = negotiate_as_acceptor(
        [_context(c.abstract_syntax, c.transfer_syntaxes, c.id) for c in proposed],
        [_supported(entry, uid, proposed) for uid, entry in served.items()],
        {UID(uid): both for uid, both in proposal.roles.items() if uid in served},
    )
    contexts = {}
    for result in agreed:
        syntax = str(result.transfer_syntax[0])
        cx_id = int(result.context_id or 0)
        outcome = USER_REJECTION if result.result is None else int(result.result)
        results[cx_id] = (outcome, syntax)
        if outcome == ACCEPTANCE:
            contexts[cx_id] = Context(
                cx_id,
                str(result.abstract_syntax),
                syntax,
                bool(result.as_scp),
                bool(result.as_scu),
            )
    return Agreement(contexts, _accept_pdu(proposal, results, roles, served), denied)


def _allowed(entry: Entry, peer: Peer | None, role: tuple[bool, bool] | None) -> bool:
    if entry.service == "echo":
        return True
    if peer is None:
        return False
    if entry.service == "store" and role is not None and role[1]:
        # The peer wants to receive: sub-operations of its C-GET. To store as well it needs that right too.
        return "get" in peer.services and (not role[0] or "store" in peer.services)
    return entry.service in peer.services


def _supported(entry: Entry, uid: str, proposed: Iterable[Proposed]) -> PresentationContext:
    """Our side of the negotiation: the syntaxes we take of those proposed, in the proposer's order."""
    syntaxes = [s for c in proposed if c.abstract_syntax == uid for s in c.transfer_syntaxes]
    if entry.transfer_syntaxes is not None:
        syntaxes = [s for s in syntaxes if s in entry.transfer_syntaxes] or list(entry.transfer_syntaxes)
    context = _context(uid, tuple(dict.fromkeys(syntaxes)))
    if entry.service == "store":
        context.scu_role = context.scp_role = True
    return context


def _context(abstract: str, syntaxes: Iterable[str], context_id: int | None = None) -> PresentationContext:
    context = PresentationContext()
    context.context_id = context_id
    context._abstract_syntax = UID(abstract)  # the setters check and log each UID; ours were checked
    context._transfer_syntax = [UID(syntax) for syntax in syntaxes]
    return context


def _accept_pdu(
    proposal: Proposal,
    results: Mapping[int, tuple[int, str]],
    roles: Iterable[SCP_SCU_RoleSelectionNegotiation],
    served: Mapping[str, Entry],
) -> bytes:
    primitive = A_ASSOCIATE()
    primitive.application_context_name = APPLICATION_CONTEXT
    primitive.calling_ae_title = proposal.calling_ae
    primitive.called_ae_title = proposal.called_ae
    primitive.result = 0
    primitive.result_source = 1
    answers = []
    for context in proposal.contexts:
        result, syntax = results[context.id]
        answer = _context(context.abstract_syntax, [syntax], context.id)
        answer.result = result
        answers.append(answer)
    primitive.presentation_context_definition_results_list = answers
    items: list[Any] = [*_our_user_information(), *roles]
    if proposal.asked_for_window:
        window = AsynchronousOperationsWindowNegotiation()  # one at a time, both ways (PS3.7 D.3.3.3)
        window.maximum_number_operations_invoked = window.maximum_number_operations_performed = 1
        items.append(window)
    for uid, asked in proposal.extended.items():
        ours = served[uid].application_information if uid in served else b""
        if ours and asked:
            extended = SOPClassExtendedNegotiation()
            extended.sop_class_uid = UID(uid)
            extended.service_class_application_information = bytes(
                min(theirs, our) for theirs, our in zip(asked, ours.ljust(len(asked), b"\0"), strict=False)
            )
            items.append(extended)
    primitive.user_information = items
    return bytes(A_ASSOCIATE_AC(primitive).encode())


def _our_user_information() -> list[Any]:
    length = MaximumLengthNotification()
    length.maximum_length_received = MAX_PDU
    implementation = ImplementationClassUIDNotification()
    implementation.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    return [length, implementation, version]


# -- requesting


def request_pdu(
    calling_ae: str,
    called_ae: str,
    contexts: Iterable[Proposed],
    roles: Mapping[str, tuple[bool, bool]] | None = None,
) -> bytes:
    """The A-ASSOCIATE-RQ that proposes these contexts; `roles` maps a class to the (SCU, SCP) roles we want."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = APPLICATION_CONTEXT
    primitive.calling_ae_title = calling_ae
    primitive.called_ae_title = called_ae
    primitive.presentation_context_definition_list = [
        _context(c.abstract_syntax, c.transfer_syntaxes, c.id) for c in contexts
    ]
    items = _our_user_information()
    for uid, (scu, scp) in (roles or {}).items():
        role = SCP_SCU_RoleSelectionNegotiation()
        role.sop_class_uid, role.scu_role, role.scp_role = UID(uid), scu, scp
        items.append(role)
    primitive.user_information = items
    return bytes(A_ASSOCIATE_RQ(primitive).encode())


def read_accept(body: bytes | memoryview, proposed: Iterable[Proposed]) -> tuple[dict[int, Context], int]:
    """Read the body of an A-ASSOCIATE-AC: the accepted contexts by id, and the peer's maximum length."""
    scan(body)
    pdu = A_ASSOCIATE_AC()
    try:
        pdu.decode(HEADER.pack(2, len(body)) + bytes(body))
        by_id = {context.id: context for context in proposed}
        contexts = {}
        for item in pdu.presentation_context:
            asked = by_id.get(item.presentation_context_id or 0)
            if item.result == ACCEPTANCE and asked and str(item.transfer_syntax) in asked.transfer_syntaxes:
                contexts[asked.id] = Context(
                    asked.id, asked.abstract_syntax, str(item.transfer_syntax), as_scp=False, as_scu=True
                )
        information = pdu.user_information
        return contexts, int((information.maximum_length if information else 0) or 0)
    except Exception as error:
        raise ProtocolError(f"association answer unreadable: {type(error).__name__}") from None


@cache
def _reject_words() -> dict[tuple[int, int], str]:
    return {
        (1, 1): "no reason given",
        (1, 2): "application context name not supported",
        (1, 3): "calling AE title not recognized",
        (1, 7): "called AE title not recognized",
        (2, 1): "no reason given",
        (2, 2): "protocol version not supported",
        (3, 1): "temporary congestion",
        (3, 2): "local limit exceeded",
    }


def refusal(body: bytes | memoryview) -> AssociationRefused:
    """What an A-ASSOCIATE-RJ says, as the exception to raise."""
    _, result, source, reason = bytes(body)
    words = _reject_words().get((source, reason), f"source {source}, reason {reason}")
    return AssociationRefused(
        f"association rejected ({'for now' if result == TRANSIENT else 'for good'}): {words}"
    )
