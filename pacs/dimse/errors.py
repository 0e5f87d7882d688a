"""What can go wrong at the DICOM door: refusals of a request, and ends of an association."""

from __future__ import annotations

from typing import Any


class Refused(Exception):
    """Ends the request with a status that is no success.

    `comment` becomes Error Comment (0000,0902), cut to 64 characters: never a patient's data.
    `elements` are further command elements by keyword, such as ``ErrorID=0xA710`` or
    ``OffendingElement=[0x00400100]`` (a list of tags as integers).
    """

    def __init__(self, status: int, comment: str = "", **elements: Any) -> None:
        super().__init__(f"0x{status:04X} {comment}".strip())
        self.status, self.comment, self.elements = status, comment, elements


class Ended(Exception):
    """The association is over; the text says how, for a log line."""


class Closed(Ended):
    """The peer closed the connection, or it broke."""


class Aborted(Ended):
    """The peer sent A-ABORT."""


class Released(Ended):
    """The peer asked for release and got it."""


class TimedOut(Ended):
    """A deadline passed: a whole PDU, association set-up, a write, or idleness."""


class ProtocolError(Ended):
    """The peer broke PS3.8; `reason` goes into the A-ABORT (PS3.8 table 9-26, provider)."""

    UNRECOGNIZED_PDU = 1
    UNEXPECTED_PDU = 2
    INVALID_PARAMETER = 6

    def __init__(self, text: str, reason: int = INVALID_PARAMETER) -> None:
        super().__init__(text)
        self.reason = reason


class AssociationRefused(Exception):
    """A peer that we called did not take our association (A-ASSOCIATE-RJ, or nothing accepted)."""
