"""Data sets of messages that are small (identifiers, attribute lists): gathered, decoded and encoded with bounds."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from io import BytesIO
from typing import TYPE_CHECKING

from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from pacs import header
from pacs.dimse import status
from pacs.dimse.errors import Refused

if TYPE_CHECKING:
    from pacs.dimse.command import Command

MAX_MESSAGE_BYTES = 16 * 1024 * 1024  #: an N-CREATE of a long examination, with room; not for C-STORE
_DEFLATED = "1.2.840.10008.1.2.1.99"
_IMPLICIT = "1.2.840.10008.1.2"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"

_UNABLE = {
    "C-FIND": status.CANNOT_UNDERSTAND,
    "C-MOVE": status.CANNOT_UNDERSTAND,
    "C-GET": status.CANNOT_UNDERSTAND,
}


def unable(command: Command) -> int:
    """The code with which this command says that it cannot be carried out."""
    return _UNABLE.get(command.name, status.PROCESSING_FAILURE)


def gather(fragments: Iterable[memoryview], command: Command) -> bytes:
    """All fragments as bytes; raises Refused (out of resources) above MAX_MESSAGE_BYTES."""
    whole = bytearray()
    for fragment in fragments:
        if len(whole) + len(fragment) > MAX_MESSAGE_BYTES:
            code = status.OUT_OF_RESOURCES if command.name.startswith("C-") else status.RESOURCE_LIMITATION
            raise Refused(code, f"data set of more than {MAX_MESSAGE_BYTES >> 20} MiB")
        whole += fragment
    return bytes(whole)


def decode(data: bytes, transfer_syntax: str, command: Command) -> Dataset:
    """`data` as a Dataset. Raises Refused when it cannot be read in its transfer syntax."""
    try:
        if transfer_syntax == _DEFLATED:
            data = inflate(data)
        header.check(data, transfer_syntax)
        return read_dataset(
            BytesIO(data), transfer_syntax == _IMPLICIT, transfer_syntax != _BIG_ENDIAN, bytelength=len(data)
        )
    except Exception as error:  # pydicom raises anything at all on malformed input
        raise Refused(unable(command), f"data set unreadable: {type(error).__name__}") from None


def encode(ds: Dataset, transfer_syntax: str) -> bytes:
    """`ds` as bytes in the transfer syntax; explicit little endian for Deflated, deflated when it is sent."""
    buffer = DicomBytesIO()
    buffer.is_little_endian = transfer_syntax != _BIG_ENDIAN
    buffer.is_implicit_VR = transfer_syntax == _IMPLICIT
    write_dataset(buffer, ds)
    return buffer.getvalue()


def inflate(data: bytes, limit: int = MAX_MESSAGE_BYTES) -> bytes:
    """The raw deflate stream of PS3.5 A.5 opened; raises ValueError above `limit` bytes or when cut off."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    whole = inflater.decompress(data, limit)
    if inflater.unconsumed_tail:
        raise ValueError("inflates to more than is allowed")
    if not inflater.eof:
        raise ValueError("deflate stream cut off")
    return whole


def deflate(data: bytes) -> bytes:
    """`data` as a raw deflate stream of even length (PS3.5 A.5)."""
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    whole = deflater.compress(data) + deflater.flush()
    return whole + b"\0" * (len(whole) % 2)
