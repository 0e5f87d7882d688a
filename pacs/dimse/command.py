"""DIMSE command sets (PS3.7 section 6.3, annex E): read and written by a small parser of our own, with bounds.

A command set is always Implicit VR Little Endian, flat, group 0000. A peer's command is read before
anything is known of its good will, so nothing here recurses, grows or trusts a length.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

MAX_COMMAND_BYTES = 64 * 1024  #: an offending-element list may be long; nothing honest comes near this
MAX_COMMAND_ELEMENTS = 64
NO_DATA_SET = 0x0101

#: keyword → (tag, VR) of PS3.7 annex E.1
ELEMENTS: dict[str, tuple[int, str]] = {
    "CommandGroupLength": (0x00000000, "UL"),
    "AffectedSOPClassUID": (0x00000002, "UI"),
    "RequestedSOPClassUID": (0x00000003, "UI"),
    "CommandField": (0x00000100, "US"),
    "MessageID": (0x00000110, "US"),
    "MessageIDBeingRespondedTo": (0x00000120, "US"),
    "MoveDestination": (0x00000600, "AE"),
    "Priority": (0x00000700, "US"),
    "CommandDataSetType": (0x00000800, "US"),
    "Status": (0x00000900, "US"),
    "OffendingElement": (0x00000901, "AT"),
    "ErrorComment": (0x00000902, "LO"),
    "ErrorID": (0x00000903, "US"),
    "AffectedSOPInstanceUID": (0x00001000, "UI"),
    "RequestedSOPInstanceUID": (0x00001001, "UI"),
    "EventTypeID": (0x00001002, "US"),
    "AttributeIdentifierList": (0x00001005, "AT"),
    "ActionTypeID": (0x00001008, "US"),
    "NumberOfRemainingSuboperations": (0x00001020, "US"),
    "NumberOfCompletedSuboperations": (0x00001021, "US"),
    "NumberOfFailedSuboperations": (0x00001022, "US"),
    "NumberOfWarningSuboperations": (0x00001023, "US"),
    "MoveOriginatorApplicationEntityTitle": (0x00001030, "AE"),
    "MoveOriginatorMessageID": (0x00001031, "US"),
}
_KEYWORDS = {tag: (keyword, vr) for keyword, (tag, vr) in ELEMENTS.items()}
_TAGS = {keyword: tag for keyword, (tag, _) in ELEMENTS.items()}
_HEADER = struct.Struct("<HHI")
_US = struct.Struct("<H")

#: Command Field of requests (PS3.7 table E.1-1); a response has the top bit set.
REQUESTS = {
    0x0001: "C-STORE",
    0x0010: "C-GET",
    0x0020: "C-FIND",
    0x0021: "C-MOVE",
    0x0030: "C-ECHO",
    0x0100: "N-EVENT-REPORT",
    0x0110: "N-GET",
    0x0120: "N-SET",
    0x0130: "N-ACTION",
    0x0140: "N-CREATE",
    0x0150: "N-DELETE",
    0x0FFF: "C-CANCEL",
}
CODES = {name: code for code, name in REQUESTS.items()}
RESPONSE = 0x8000


class CommandError(Exception):
    """The bytes are no command set; the text says what and where, and holds nothing a peer sent."""


class Command(dict[str, Any]):
    """A command set: keyword of annex E → value (int, str; a list of ints for AT)."""

    @property
    def field(self) -> int:
        """Command Field (0000,0100)."""
        return int(self["CommandField"])

    @property
    def name(self) -> str:
        """`C-STORE`, `N-SET` …; of a response the name of its request; "" for a code PS3.7 does not know."""
        return REQUESTS.get(self.field & ~RESPONSE, "")

    @property
    def is_response(self) -> bool:
        """True for a response."""
        return bool(self.field & RESPONSE)

    @property
    def message_id(self) -> int:
        """Message ID of a request, Message ID Being Responded To of a response or C-CANCEL."""
        return int(self.get("MessageID", self.get("MessageIDBeingRespondedTo", 0)))

    @property
    def has_data_set(self) -> bool:
        """Whether a data set follows (Command Data Set Type other than 0101H)."""
        return self.get("CommandDataSetType", NO_DATA_SET) != NO_DATA_SET

    @property
    def affected_sop_class_uid(self) -> str:
        """Affected or Requested SOP Class UID, whichever the command has; "" for neither."""
        return str(self.get("AffectedSOPClassUID") or self.get("RequestedSOPClassUID") or "")

    @property
    def affected_sop_instance_uid(self) -> str:
        """Affected or Requested SOP Instance UID; "" for neither. As sent: check before use."""
        return str(self.get("AffectedSOPInstanceUID") or self.get("RequestedSOPInstanceUID") or "")

    @property
    def status(self) -> int:
        """Status of a response."""
        return int(self["Status"])


def decode(raw: bytes | bytearray | memoryview) -> Command:
    """Read a command set. Raises CommandError unless every length fits and the needed elements are there."""
    if len(raw) > MAX_COMMAND_BYTES:
        raise CommandError(f"command set of {len(raw)} bytes")
    raw = bytes(raw)
    command = Command()
    at, end, count = 0, len(raw), 0
    while at < end:
        if end - at < 8:
            raise CommandError(f"element header cut off at byte {at}")
        group, element, length = _HEADER.unpack_from(raw, at)
        at += 8
        if group != 0:
            raise CommandError(f"element of group {group:04X} at byte {at - 8}")
        if length > end - at:
            raise CommandError(f"length of (0000,{element:04X}) runs over the end")
        count += 1
        if count > MAX_COMMAND_ELEMENTS:
            raise CommandError("too many elements")
        known = _KEYWORDS.get(element)
        if known:
            command[known[0]] = _value(known[1], raw[at : at + length], element)
        at += length
    if "CommandField" not in command:
        raise CommandError("no Command Field")
    if "MessageID" not in command and "MessageIDBeingRespondedTo" not in command:
        raise CommandError("no Message ID")
    if command.is_response and "Status" not in command:
        raise CommandError("response without Status")
    return command


def _value(vr: str, value: bytes, element: int) -> Any:
    if vr in ("US", "UL"):
        size = 2 if vr == "US" else 4
        if len(value) != size:
            raise CommandError(f"(0000,{element:04X}) has {len(value)} bytes instead of {size}")
        return int.from_bytes(value, "little")
    if vr == "AT":
        if len(value) % 4:
            raise CommandError(f"(0000,{element:04X}) is no list of tags")
        words = struct.unpack(f"<{len(value) // 2}H", value)
        return [words[i] << 16 | words[i + 1] for i in range(0, len(words), 2)]
    return value.decode("ascii", "replace").rstrip("\0 ").lstrip(" ")


def encode(command: Mapping[str, Any]) -> bytes:
    """Write a command set with its group length, elements in ascending order. None values are left out."""
    parts: list[bytes] = []
    for keyword in sorted(command, key=_TAGS.__getitem__):
        value = command[keyword]
        if value is None or keyword == "CommandGroupLength":
            continue
        tag, vr = ELEMENTS[keyword]
        raw = _bytes(vr, value)
        parts += (_HEADER.pack(0, tag, len(raw)), raw)
    body = b"".join(parts)
    return struct.pack("<HHII", 0, 0, 4, len(body)) + body


def _bytes(vr: str, value: Any) -> bytes:
    if vr == "US":
        return _US.pack(value)
    if vr == "AT":
        return b"".join(struct.pack("<HH", tag >> 16, tag & 0xFFFF) for tag in value)
    raw = str(value).encode("ascii", "replace")
    if vr == "LO":
        raw = raw[:64]
    if vr == "AE":
        raw = raw[:16]
    return raw + (b"\0" if vr == "UI" else b" ") * (len(raw) % 2)


def response_to(
    request: Command, status: int, *, data_set: bool = False, comment: str = "", **elements: Any
) -> dict[str, Any]:
    """The response to `request`: class and instance as it named them, then `elements`."""
    response: dict[str, Any] = {
        "AffectedSOPClassUID": request.affected_sop_class_uid or None,
        "CommandField": request.field | RESPONSE,
        "MessageIDBeingRespondedTo": request.message_id,
        "CommandDataSetType": 1 if data_set else NO_DATA_SET,
        "Status": status,
        "ErrorComment": comment or None,
    }
    if request.name == "C-STORE" or request.name.startswith("N-"):
        response["AffectedSOPInstanceUID"] = request.affected_sop_instance_uid or None
    for keyword in ("ActionTypeID", "EventTypeID"):
        if keyword in request and status == 0:
            response[keyword] = request[keyword]
    return response | elements
