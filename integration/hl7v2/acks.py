"""Acknowledgements (chapter 2.9): original and enhanced mode, ERR by version, and nothing echoed that could harm."""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from functools import lru_cache

from integration.hl7v2 import charsets, composing
from integration.hl7v2.composing import Encoded, Field
from integration.hl7v2.errors import Location, Problem, Refused, Severity
from integration.hl7v2.reading import Message, header_of
from integration.hl7v2.separators import STANDARD, Separators
from integration.hl7v2.timestamps import format_time


class AckCode(StrEnum):
    """HL7 table 0008, acknowledgment code: A… from the application, C… for the commit (enhanced mode)."""

    AA = "AA"
    AE = "AE"
    AR = "AR"
    CA = "CA"
    CE = "CE"
    CR = "CR"

    @property
    def positive(self) -> bool:
        """Whether the sender may forget its message."""
        return self in (AckCode.AA, AckCode.CA)

    @property
    def commit(self) -> "AckCode":
        """The enhanced-mode code of the same meaning."""
        return AckCode("C" + self.value[1])


_UNSAFE = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Asking:
    """What an ACK must know of the message it answers, echoed fields still encoded (without control characters)."""

    separators: Separators = STANDARD
    sender: tuple[str, str] = ("", "")  # MSH-3, MSH-4
    receiver: tuple[str, str] = ("", "")  # MSH-5, MSH-6
    trigger: str = ""
    control_id: str = ""
    processing_id: str = "P"
    version: str = "2.5.1"
    accept: str = ""  # MSH-15
    application: str = ""  # MSH-16
    charset: str = ""  # MSH-18, its first repetition

    @property
    def enhanced(self) -> bool:
        """Whether the sender asks for enhanced mode: either of MSH-15 and MSH-16 is filled."""
        return bool(self.accept or self.application)


def asking(message: Message) -> Asking:
    """What to echo of a message that could be parsed."""
    return asking_header(message.separators, message.header.fields)


def asking_of(raw: bytes) -> Asking:
    """What to echo of bytes that could not be parsed, as far as they have a header."""
    try:
        separators, fields = header_of(raw)
    except Refused:
        return Asking()
    return asking_header(separators, [f.decode("latin-1") for f in fields])


def asking_header(separators: Separators, fields: list[str]) -> Asking:
    """What to echo of a header's encoded fields (index as in the standard)."""

    def echo(number: int) -> str:
        return harmless(fields[number]) if number < len(fields) else ""

    kind = echo(9).split(separators.component)
    return Asking(
        separators=separators,
        sender=(echo(3), echo(4)),
        receiver=(echo(5), echo(6)),
        trigger=kind[1] if len(kind) > 1 else "",
        control_id=echo(10),
        processing_id=echo(11) or "P",
        version=echo(12) or "2.5.1",
        accept=_condition(echo(15)),
        application=_condition(echo(16)),
        charset=echo(18).split(separators.repetition)[0],
    )


def _condition(text: str) -> str:
    """A value of table 0155; anything else (a space, a word of somebody's own) asks for nothing."""
    found = text.strip().upper()
    return found if found in ("AL", "NE", "ER", "SU") else ""


def harmless(field: str) -> str:
    """An encoded field without control characters, fit to be echoed."""
    return field if field.isprintable() else _UNSAFE.sub("", field)


def replies(asked: Asking, code: AckCode) -> tuple[AckCode | None, AckCode | None]:
    """The immediate acknowledgement and the later one, by MSH-15 and MSH-16 (table 0155: AL NE ER SU).

    Original mode: the application's code at once. Enhanced: the commit code where MSH-15 wants one; the
    application's where MSH-16 wants one, at once when no commit ACK goes before it.
    """
    if not asked.enhanced:
        return code, None
    commit = code.commit if _wanted(asked.accept, code.positive) else None
    application = code if _wanted(asked.application, code.positive) else None
    return (commit, application) if commit else (application, None)


def _wanted(condition: str, positive: bool) -> bool:
    return condition == "AL" or (condition == "SU" and positive) or (condition == "ER" and not positive)


def build(
    asked: Asking,
    code: AckCode,
    problems: Sequence[Problem] = (),
    *,
    at: datetime,
    kind: tuple[str, ...] | None = None,
    groups: Sequence[tuple[str, dict[int, Field]]] = (),
) -> bytes:
    """The bytes of an ACK. `at` is aware and becomes MSH-7 with its offset; MSH-10 is new.

    From version 2.5 each problem is an ERR segment (ERR-2 place, ERR-3 code, ERR-4 severity, ERR-8 text);
    before, ERR-1 holds place and code and MSA-3 the text of the first error. `kind` is MSH-9 of an answer that
    is more than an ACK, `groups` the segments that it adds.
    """
    charset = charsets.canonical(asked.charset)
    if not charset and not all(f.isascii() for f in (*asked.sender, *asked.receiver, asked.control_id)):
        charset = "UNICODE UTF-8"
    if asked.control_id and not (problems or groups or kind) and asked.separators == STANDARD:
        text = _kept(replace(asked, control_id=_ID), code).replace(_AT, format_time(at))
        text = text.replace(_OURS, new_control_id()).replace(_ID, asked.control_id)
    else:
        text = _text(asked, code, problems, format_time(at), new_control_id(), kind, groups)
    return charsets.encode(text, charset)


# Stand-ins in an acknowledgement that is kept. Control characters never come from a sender (`harmless`).
_AT, _OURS, _ID = Encoded("\x01"), Encoded("\x02"), Encoded("\x03")


@lru_cache(maxsize=1024)
def _kept(asked: Asking, code: AckCode) -> str:
    """A plain acknowledgement but for its time and control ids: the next message of a sender gets the same."""
    return _text(asked, code, (), _AT, _OURS, None, ())


def _text(
    asked: Asking,
    code: AckCode,
    problems: Sequence[Problem],
    at: str,
    control_id: str,
    kind: tuple[str, ...] | None,
    groups: Sequence[tuple[str, dict[int, Field]]],
) -> str:
    modern = _version(asked.version) >= (2, 5)
    structured = _version(asked.version) >= (2, 4)
    if kind is None:
        kind = ("ACK", Encoded(asked.trigger), "ACK") if structured and asked.trigger else ("ACK",)
    errors = [p for p in problems if p.severity is Severity.ERROR]
    msh = {
        3: Encoded(asked.receiver[0]),
        4: Encoded(asked.receiver[1]),
        5: Encoded(asked.sender[0]),
        6: Encoded(asked.sender[1]),
        7: at,
        9: kind,
        10: control_id,
        11: Encoded(asked.processing_id),
        12: Encoded(asked.version),
        18: Encoded(asked.charset),
    }
    msa = {
        1: code.value,
        2: Encoded(asked.control_id),
        3: "" if modern or not errors else _line(errors[0].text)[:80],
    }
    segments: list[tuple[str, dict]] = [("MSH", msh), ("MSA", msa)]
    segments += [("ERR", _err(p, modern)) for p in problems]
    segments += groups
    return "".join(composing.segment(name, fields, asked.separators) + "\r" for name, fields in segments)


def new_control_id() -> str:
    """A new MSH-10: 20 characters (the length that every version allows), never repeated in practice."""
    return secrets.token_hex(10).upper()


def _err(problem: Problem, modern: bool) -> dict[int, object]:
    code = (str(int(problem.code)), problem.code.meaning, "HL70357")
    place = problem.location or Location("")
    if modern:
        return {2: tuple(place.parts()), 3: code, 4: problem.severity.value, 8: _line(problem.text)}
    # ERR-1 (ELD): segment, sequence, field, and the code as one component with subcomponents.
    first = ["" if v is None else str(v) for v in (place.segment, place.sequence, place.field)]
    return {1: (*first, code)} if place.segment else {1: ("", "", "", code)}


def _line(text: str) -> str:
    return " ".join(_UNSAFE.sub(" ", text).split())


def _version(text: str) -> tuple[int, ...]:
    numbers = re.findall(r"\d+", text)[:3]
    return tuple(int(n) for n in numbers) or (2, 5, 1)
