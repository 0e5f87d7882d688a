"""C-STORE: every storage SOP class in every transfer syntax, from the socket to the spool (PS3.4 annex B).

Success means that the object is durable and hashed. Nothing of it is decoded here; its outline is walked, so
that a data set shorter than it says, or another object than the command names, is refused while its sender
still has it. What cannot be walked at all is taken, and set aside by the indexer for a person to see.
"""

from __future__ import annotations

from functools import cache

from django.conf import settings
from pydicom._uid_dict import UID_dictionary
from pynetdicom.sop_class import _STORAGE_CLASSES

from common.uids import is_loose_uid
from pacs import header
from pacs.dimse import status
from pacs.dimse.registry import Entry, Outcome, Refused, Registry, Request
from pacs.storage import spool
from pacs.storage.part10 import Origin

SOP_CLASS_UID, SOP_INSTANCE_UID = 0x00080016, 0x00080018
_WANTED = frozenset((SOP_CLASS_UID, SOP_INSTANCE_UID))
_CHUNK = 1 << 20


@cache
def storage_classes() -> frozenset[str]:
    """The storage SOP classes of the standard that pydicom or pynetdicom knows, retired ones included."""
    named = {
        str(uid)
        for uid, (name, kind, *_) in UID_dictionary.items()
        if kind == "SOP Class" and "Storage" in name and "Commitment" not in name
    }
    return frozenset(named | {str(uid) for uid in _STORAGE_CLASSES.values()})


def store(request: Request) -> Outcome:
    """Take one object. Raises Refused: A700 no room, A900 not what the command says, C000 cut off."""
    command, context = request.command, request.context
    if not is_loose_uid(command.affected_sop_instance_uid):
        raise Refused(status.INVALID_OBJECT_INSTANCE, "SOP Instance UID is no UID")
    if not command.has_data_set:
        raise Refused(status.CANNOT_UNDERSTAND, "no data set")
    origin = Origin(
        context.abstract_syntax,
        command.affected_sop_instance_uid,
        context.transfer_syntax,
        request.assoc.calling_ae,
        request.assoc.called_ae,
    )
    try:
        incoming = spool.mine().begin(origin)
        try:
            for fragment in request.fragments():
                incoming.write(fragment)
            check(incoming)
            incoming.commit()
        except BaseException:
            incoming.discard()
            raise
    except OSError as error:
        raise Refused(status.OUT_OF_RESOURCES, f"cannot be kept: {error}") from None
    return Outcome()


def check(incoming: spool.Incoming) -> None:
    """Raise Refused when a received object is cut off, or is not the one it was announced as."""
    syntax = incoming.origin.transfer_syntax_uid
    try:
        with incoming.received() as received:
            if syntax in header.DEFLATED_SYNTAXES:
                header.inflated_size(_chunks(received), len(received))
                head = header.inflate_head(_chunks(received), _CHUNK)
                found = header.walk(head, syntax, _WANTED, size=max(len(head), _CHUNK))
            else:
                found = header.walk(received, syntax, _WANTED)
                if found.encapsulated:
                    header.end_of_fragments(
                        lambda at, count: bytes(received[at : at + count]), found.end, len(received)
                    )
    except header.CutOff as error:
        raise Refused(status.CANNOT_UNDERSTAND, f"data set cut off: {error}") from None
    except header.HeaderError:
        return  # the indexer tries harder, and sets aside what it cannot read
    for tag, announced in (
        (SOP_CLASS_UID, incoming.origin.sop_class_uid),
        (SOP_INSTANCE_UID, incoming.origin.sop_instance_uid),
    ):
        said = found.text(tag)
        if said and said != announced:
            raise Refused(
                status.DATA_SET_MISMATCH, "data set is another object than announced", OffendingElement=[tag]
            )


def _chunks(data: memoryview) -> list[memoryview]:
    return [data[at : at + _CHUNK] for at in range(0, len(data), _CHUNK)]


def _private(uid: str) -> Entry | None:
    """Private storage classes, where ORDERLY_PRIVATE_STORAGE names them (a list of UIDs, or `*`)."""
    allowed = getattr(settings, "ORDERLY_PRIVATE_STORAGE", ())
    private = is_loose_uid(uid) and not uid.startswith("1.2.840.10008.")
    if private and ("*" in allowed or uid in allowed):
        return Entry(uid, "store", None, {"C-STORE": store})
    return None


def register(registry: Registry) -> None:
    """Serve every storage SOP class; any transfer syntax is taken as it comes."""
    for uid in sorted(storage_classes()):
        # Level of support 2 (full), no judgement of signatures, no coercion (PS3.4 table B.3-1).
        registry.add(
            uid,
            "C-STORE",
            store,
            service="store",
            transfer_syntaxes=None,
            application_information=b"\2\0\0\0\0",
        )
    registry.add_fallback(_private)
