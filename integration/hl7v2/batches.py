"""Batches (chapter 2.10.3): FHS BHS messages BTS FTS taken apart, each message's bytes unchanged."""

import re
from dataclasses import dataclass, field

from integration.hl7v2.errors import Code, Location, refuse
from integration.hl7v2.reading import _lead, header_of

_SEGMENT = re.compile(rb"(?:\A|\r\n?|\n)(?=(MSH|FHS|BHS|BTS|FTS)(.?))")


@dataclass(slots=True)
class Batch:
    """What a file or batch holds. `declared` is what BTS-1 counted, or None."""

    messages: list[bytes] = field(default_factory=list)
    declared: int | None = None
    warnings: list[str] = field(default_factory=list)


def is_batch(raw: bytes) -> bool:
    """Whether the bytes are a file or batch: they begin with FHS or BHS."""
    return _lead(raw)[:3] in (b"FHS", b"BHS")


def split(raw: bytes) -> Batch:
    """The messages of a file or batch (also of several messages one after the other without FHS or BHS).

    Raises Refused (100) when it does not begin with a header.
    """
    header_of(raw)
    body = _lead(raw)
    separator = body[3:4]
    batch = Batch()
    # A line counts as a header only with the separator after its name: text may begin with "MSH" too.
    marks = [
        m
        for m in _SEGMENT.finditer(body)
        if m[2] == separator or (m[1] in (b"BTS", b"FTS") and m[2] in b"\r\n")
    ]
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        piece = body[
            mark.end() : following.end() if following else len(body)
        ]  # its line end is in the next mark
        if mark[1] == b"MSH":
            batch.messages.append(piece)
        elif mark[1] == b"BTS":
            count = piece.split(separator)[1].strip() if separator in piece else b""
            batch.declared = (batch.declared or 0) + int(count) if count.isdigit() else batch.declared
    if not batch.messages:
        raise refuse(Code.SEGMENT_SEQUENCE, "The batch holds no message.", Location("BHS"))
    if batch.declared is not None and batch.declared != len(batch.messages):
        batch.warnings.append(f"BTS-1 counts {batch.declared} messages, {len(batch.messages)} are here.")
    return batch
