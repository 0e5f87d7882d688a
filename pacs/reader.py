"""Headers that our own walker cannot follow, read by pydicom in a child with an end to its memory and time.

pydicom forgives what devices get wrong, and may take any memory, time or depth over what enemies make. One
child at a time is enough: such headers are rare. One that overruns or dies is replaced, and the header refused.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from io import BytesIO
from typing import Any

from pacs import children
from pacs.children import Child
from pacs.header import BIG_ENDIAN, IMPLICIT, LONGEST_VALUE, MAX_DEPTH, Header, HeaderError, TooMuch

MEMORY_BYTES = 1024**3
"""Address space of the child; its libraries alone map about half of it."""
SECONDS = 10.0
HEADERS_PER_CHILD = 1_000

_lock = threading.Lock()
_child: Child | None = None
_owner = 0


def read(data: bytes, transfer_syntax: str, wanted: frozenset[int], first: HeaderError) -> Header:
    """The wanted elements of a data set as pydicom finds them. Raises TooMuch when the child overruns or dies on
    it, and `first`, what our walker said, when pydicom cannot read it either."""
    request = {"syntax": transfer_syntax, "wanted": sorted(wanted), "size": len(data)}
    with _lock:
        try:
            head, body = _living().ask(request, time.monotonic() + SECONDS, data)
        except TimeoutError:
            end()
            raise TooMuch(f"reading it takes more than {SECONDS:.0f} s") from None
        except (EOFError, OSError, ValueError):
            end()
            raise TooMuch("whoever reads it dies") from None
        if _child is not None and _child.asked >= HEADERS_PER_CHILD:
            end()
    if head["trouble"] == "too much":
        raise TooMuch(head["detail"])
    if head["trouble"]:
        raise first
    header = Header(little_endian=head["little_endian"], implicit=head["implicit"], whole=True)
    at = 0
    for tag, length in head["values"]:
        header.values[tag] = body[at : at + length]
        at += length
    return header


def _living() -> Child:
    global _child, _owner
    if _child is not None and (_owner != os.getpid() or _child.process.poll() is not None):
        if _owner == os.getpid():
            _child.end()
        _child = None
    if _child is None:
        _child, _owner = Child("pacs.reader"), os.getpid()
    return _child


@atexit.register
def end() -> None:
    """Let go of the child, if there is one."""
    global _child
    if _child is not None and _owner == os.getpid():
        _child.end()
    _child = None


# --- The child -------------------------------------------------------------------------------------------


def main() -> None:
    """Read headers until standard input ends."""
    import sys

    answers = children.limit(MEMORY_BYTES, SECONDS, HEADERS_PER_CHILD)
    for request in children.requests(SECONDS):
        data = sys.stdin.buffer.read(request["size"])
        try:
            head, body = _found(data, request["syntax"], request["wanted"])
        except TooMuch as error:
            head, body = {"trouble": "too much", "detail": str(error)}, b""
        except MemoryError:
            head, body = {"trouble": "too much", "detail": "reading it takes too much memory"}, b""
        except RecursionError:
            head, body = {"trouble": "too much", "detail": "it is nested too deeply"}, b""
        except Exception:  # pydicom raises anything at all on malformed input
            head, body = {"trouble": "unreadable"}, b""
        children.answer(answers, head, body)


def _found(data: bytes, transfer_syntax: str, wanted: list[int]) -> tuple[dict[str, Any], bytes]:
    from pydicom.dataelem import RawDataElement
    from pydicom.filereader import read_dataset
    from pydicom.tag import BaseTag

    if data.count(b"\xff\xff\xff\xff") > 10 * MAX_DEPTH:
        raise TooMuch("too many sequences of undefined length")
    ds = read_dataset(
        BytesIO(data),
        transfer_syntax == IMPLICIT,
        transfer_syntax != BIG_ENDIAN,
        bytelength=len(data),
        stop_when=lambda tag, vr, length: tag >= 0x7FE00008,
        specific_tags=[BaseTag(tag) for tag in wanted],
    )
    implicit, little = transfer_syntax == IMPLICIT, transfer_syntax != BIG_ENDIAN
    values, parts = [], []
    for tag in wanted:
        element = ds._dict.get(BaseTag(tag))
        if isinstance(element, RawDataElement) and isinstance(element.value, bytes):
            implicit, little = element.is_implicit_VR, element.is_little_endian
            parts.append(element.value[:LONGEST_VALUE])
            values.append((tag, len(parts[-1])))
    if not values:
        raise HeaderError("nothing that is known is in it")
    head = {"trouble": "", "implicit": implicit, "little_endian": little, "values": values}
    return head, b"".join(parts)


if __name__ == "__main__":
    main()
