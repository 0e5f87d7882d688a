"""The DICOM file format (PS3.10 section 7): what stands before a data set in a file of ours, written and read."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

#: Ours, made once from a random UUID (PS3.5 B.2); it names the implementation, not an installation.
IMPLEMENTATION_CLASS_UID = "2.25.169368517666643274979231621578813432384"
IMPLEMENTATION_VERSION_NAME = "ORDERLY_0_1"
MAX_META_BYTES = 64 * 1024
_LONG = frozenset((b"OB", b"UN", b"SQ", b"UT", b"UC", b"UR", b"OW", b"OF", b"OD", b"OL", b"OV", b"SV", b"UV"))

SOP_CLASS, SOP_INSTANCE, TRANSFER_SYNTAX = 0x00020002, 0x00020003, 0x00020010
SOURCE_AE, SENDING_AE, RECEIVING_AE = 0x00020016, 0x00020017, 0x00020018


class NotPart10(ValueError):
    """The bytes are no DICOM file; says what is wrong, never a value."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What is known of an object before its data set is read. UIDs have been checked (digits and dots)."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae: str = ""
    called_ae: str = ""


def _element(tag: int, vr: bytes, value: bytes) -> bytes:
    if len(value) % 2:
        value += b" " if vr in (b"AE", b"SH") else b"\0"
    if vr == b"OB":
        return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def prefix(origin: Origin) -> bytes:
    """Preamble (zeros: nothing a peer sent), `DICM` and File Meta Information for a received data set."""
    parts = [
        _element(0x00020001, b"OB", b"\0\1"),
        _element(SOP_CLASS, b"UI", origin.sop_class_uid.encode("ascii")),
        _element(SOP_INSTANCE, b"UI", origin.sop_instance_uid.encode("ascii")),
        _element(TRANSFER_SYNTAX, b"UI", origin.transfer_syntax_uid.encode("ascii")),
        _element(0x00020012, b"UI", IMPLEMENTATION_CLASS_UID.encode("ascii")),
        _element(0x00020013, b"SH", IMPLEMENTATION_VERSION_NAME.encode("ascii")),
    ]
    for tag, ae in (
        (SOURCE_AE, origin.calling_ae),
        (SENDING_AE, origin.calling_ae),
        (RECEIVING_AE, origin.called_ae),
    ):
        if ae:
            parts.append(_element(tag, b"AE", ae.encode("ascii", "replace")[:16]))
    meta = b"".join(parts)
    return bytes(128) + b"DICM" + _element(0x00020000, b"UL", struct.pack("<I", len(meta))) + meta


def read_prefix(data: bytes | memoryview) -> tuple[Mapping[int, bytes], int]:
    """File Meta Information (tag → raw value, padding stripped) and the offset at which the data set begins.

    `data` is the beginning of a file, MAX_META_BYTES or more of it unless the file is shorter. The group
    length is not trusted: files with a wrong one exist. Raises NotPart10.
    """
    if len(data) < 132 or bytes(data[128:132]) != b"DICM":
        raise NotPart10("no DICM at byte 128")
    found: dict[int, bytes] = {}
    at, end = 132, min(len(data), MAX_META_BYTES)
    while at + 8 <= end:
        group, element, vr, length = struct.unpack_from("<HH2sH", data, at)
        if group != 2:
            break
        start = at + 8
        if vr in _LONG:
            if start + 4 > end:
                raise NotPart10("File Meta Information cut off")
            (length,) = struct.unpack_from("<I", data, start)
            start += 4
        if start + length > end:
            raise NotPart10("File Meta Information runs over its bounds")
        found[group << 16 | element] = bytes(data[start : start + length]).rstrip(b"\0 ")
        at = start + length
    if TRANSFER_SYNTAX not in found:
        raise NotPart10("no Transfer Syntax UID")
    return found, at


def origin_of(meta: Mapping[int, bytes]) -> Origin:
    """The Origin that File Meta Information tells of."""

    def text(tag: int) -> str:
        return meta.get(tag, b"").decode("ascii", "replace").strip(" \0")

    return Origin(
        text(SOP_CLASS),
        text(SOP_INSTANCE),
        text(TRANSFER_SYNTAX),
        text(SENDING_AE) or text(SOURCE_AE),
        text(RECEIVING_AE),
    )
