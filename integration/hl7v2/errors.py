"""What is wrong with a message, where, and how it is answered: the content of an ERR segment (chapter 2.15.5)."""

from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum


class Code(IntEnum):
    """HL7 table 0357, message error condition codes."""

    ACCEPTED = 0
    SEGMENT_SEQUENCE = 100
    REQUIRED_FIELD = 101
    DATA_TYPE = 102
    TABLE_VALUE = 103
    VALUE_TOO_LONG = 104
    MESSAGE_TYPE = 200
    EVENT_CODE = 201
    PROCESSING_ID = 202
    VERSION = 203
    UNKNOWN_KEY = 204
    DUPLICATE_KEY = 205
    RECORD_LOCKED = 206
    INTERNAL = 207

    @property
    def meaning(self) -> str:
        """The name the table gives the code."""
        return _MEANINGS[self]

    @property
    def rejects(self) -> bool:
        """Whether the code is answered AR (the message as such), not AE (its content)."""
        return 200 <= self < 204 or self >= 206


_MEANINGS = {
    Code.ACCEPTED: "Message accepted",
    Code.SEGMENT_SEQUENCE: "Segment sequence error",
    Code.REQUIRED_FIELD: "Required field missing",
    Code.DATA_TYPE: "Data type error",
    Code.TABLE_VALUE: "Table value not found",
    Code.VALUE_TOO_LONG: "Value too long",
    Code.MESSAGE_TYPE: "Unsupported message type",
    Code.EVENT_CODE: "Unsupported event code",
    Code.PROCESSING_ID: "Unsupported processing id",
    Code.VERSION: "Unsupported version id",
    Code.UNKNOWN_KEY: "Unknown key identifier",
    Code.DUPLICATE_KEY: "Duplicate key identifier",
    Code.RECORD_LOCKED: "Application record locked",
    Code.INTERNAL: "Application internal error",
}


class Severity(StrEnum):
    """HL7 table 0516, error severity."""

    ERROR = "E"
    WARNING = "W"
    INFORMATION = "I"


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a message (data type ERL): segment name, which of that name (from 1), field, repetition, …"""

    segment: str
    sequence: int = 1
    field: int | None = None
    repetition: int | None = None
    component: int | None = None
    subcomponent: int | None = None

    def parts(self) -> list[str]:
        """The components of ERL, without empty ones at the end."""
        values = (
            self.segment, self.sequence, self.field, self.repetition, self.component, self.subcomponent,
        )  # fmt: skip
        texts = ["" if v is None else str(v) for v in values]
        while texts and not texts[-1]:
            texts.pop()
        return texts

    def __str__(self) -> str:
        return "^".join(self.parts())


@dataclass(frozen=True, slots=True)
class Problem:
    """One line of what is wrong. The text says what and what to do and holds no value of the message."""

    code: Code
    text: str
    location: Location | None = None
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        place = f" at {self.location}" if self.location else ""
        return f"{int(self.code)} {self.code.meaning}{place}: {self.text}"


class Refused(Exception):
    """A message is not applied; `problem` says why, and whether AE or AR answers it."""

    def __init__(self, problem: Problem, *, permanent: bool = True) -> None:
        super().__init__(str(problem))
        self.problem = problem
        self.permanent = permanent

    @property
    def ack_code(self) -> str:
        """`AR` for the message as such (type, version, unrelated fault), `AE` for its content."""
        return "AR" if self.problem.code.rejects else "AE"


def refuse(code: Code, text: str, location: Location | None = None) -> Refused:
    """A refusal to raise."""
    return Refused(Problem(code, text, location))


def warning(text: str, location: Location | None = None, code: Code = Code.ACCEPTED) -> Problem:
    """Something odd that did not keep the message from being applied."""
    return replace(Problem(code, text, location), severity=Severity.WARNING)
