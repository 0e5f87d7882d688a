r"""Escape sequences (HL7 v2 chapter 2.7): \F\ \S\ \T\ \R\ \E\ \P\ \Xhh\ \Cxxyy\ \Mxxyyzz\ \H\ \N\ and \.xx\."""

import re
from collections.abc import Callable
from functools import lru_cache

from integration.hl7v2.separators import STANDARD, Separators

Decode = Callable[[bytes], str | None]

# The most one layout command may add: \.sp50000000\ must not make 50 MB.
_MOST_REPEATS = 100
_LAYOUT = re.compile(r"\.(br|fi|nf|ce|sp|in|ti|sk)\s*([+-]?\d{1,9})?\Z")
_HEX = re.compile(r"X(?:[0-9A-Fa-f]{2})+\Z")
_SWITCH = re.compile(r"[CM](?:[0-9A-Fa-f]{2}){2,3}\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def latin(data: bytes) -> str:
    """Bytes of an escape where no character set is known."""
    return data.decode("cp1252", errors="replace")


def unescape(text: str, separators: Separators = STANDARD, decode: Decode = latin) -> str:
    r"""The value that an encoded text stands for.

    `decode` reads the bytes of `\Xhh..\` in the message's character set (None: cannot); runs that follow each
    other are read together, for a character may be spread over them. Layout commands of formatted text become
    line ends and spaces. Unknown and unclosed sequences stay as they are (`C:\temp`).
    """
    escape = separators.escape
    if escape not in text:
        return text
    named = _named(separators)
    out: list[str] = []
    pos = 0
    pending = bytearray()  # bytes of \X..\ runs that follow each other
    pending_raw: list[str] = []

    def settle() -> None:
        if pending:
            read = decode(bytes(pending))
            out.append("".join(pending_raw) if read is None else read)
            pending.clear()
            pending_raw.clear()

    while True:
        start = text.find(escape, pos)
        if start < 0:
            break
        stop = text.find(escape, start + 1)
        if start > pos:
            settle()
            out.append(text[pos:start])
        if stop < 0:
            pos = start
            break
        body = text[start + 1 : stop]
        if _HEX.match(body):
            pending += bytes.fromhex(body[1:])
            pending_raw.append(escape + body + escape)
            pos = stop + 1
            continue
        settle()
        if _SWITCH.match(body):
            pos = _switched(text, stop + 1, body, escape, out)
            continue
        value = named.get(body)
        if value is None:
            value = _layout(body)
        if value is not None:
            out.append(value)
            pos = stop + 1
        elif body[:1] == "Z" and len(body) <= 8:  # a local one: kept as it stands
            out.append(escape + body + escape)
            pos = stop + 1
        else:  # none: the character is data, and what follows may open a real one
            out.append(escape)
            pos = start + 1
    settle()
    out.append(text[pos:])
    return "".join(out)


def escape(text: str, separators: Separators = STANDARD) -> str:
    r"""The encoded form of any text: every delimiter, CR, LF and other control characters escaped.

    `unescape(escape(x)) == x`. A text that is exactly `""` would read as "delete", so its first quote goes
    as a byte.
    """
    if text == '""':
        return f'{separators.escape}X22{separators.escape}"'
    return text.translate(_encoding(separators))


@lru_cache(maxsize=64)
def _named(separators: Separators) -> dict[str, str]:
    names = {
        "F": separators.field,
        "S": separators.component,
        "T": separators.subcomponent,
        "R": separators.repetition,
        "E": separators.escape,
        "H": "",
        "N": "",
    }
    if separators.truncation:
        names["P"] = separators.truncation
    return names


@lru_cache(maxsize=64)
def _encoding(separators: Separators) -> dict[int, str]:
    mark = separators.escape
    table = {code: f"{mark}X{code:02X}{mark}" for code in (*range(0x20), 0x7F)}
    for letter, character in _named(separators).items():
        if character:
            table[ord(character)] = mark + letter + mark
    return table


def _layout(body: str) -> str | None:
    """What a layout command of FT text becomes in plain text; None when it is no such command."""
    match = _LAYOUT.match(body)
    if not match:
        return None
    command, number = match.group(1), min(abs(int(match.group(2) or 1)), _MOST_REPEATS)
    if command in ("br", "ce"):
        return "\n"
    if command == "sp":
        return "\n" * max(number, 1)
    if command == "sk":
        return " " * number
    return ""


# ISO 2022 designations as HL7 writes them in hex (table 0211 names in comments), and how to read what follows.
_SETS: dict[str, Callable[[bytes], str]] = {
    "284A": lambda b: b.decode("ascii"),  # ISO IR14, romaji
    "2949": lambda b: bytes(c | 0x80 for c in b).decode("shift_jis"),  # ISO IR14, katakana
    "2442": lambda b: (b"\x1b$B" + b + b"\x1b(B").decode("iso2022_jp"),  # ISO IR87
    "242842": lambda b: (b"\x1b$B" + b + b"\x1b(B").decode("iso2022_jp"),
    "242844": lambda b: (b"\x1b$(D" + b + b"\x1b(B").decode("iso2022_jp_1"),  # ISO IR159
    "242943": lambda b: bytes(c | 0x80 for c in b).decode("euc_kr"),  # KS X 1001
    "2D41": lambda b: bytes(c | 0x80 for c in b).decode("iso8859_1"),
    "2D42": lambda b: bytes(c | 0x80 for c in b).decode("iso8859_2"),
    "2D43": lambda b: bytes(c | 0x80 for c in b).decode("iso8859_3"),
    "2D44": lambda b: bytes(c | 0x80 for c in b).decode("iso8859_4"),
    "2D4C": lambda b: bytes(c | 0x80 for c in b).decode("iso8859_5"),
    "2D47": lambda b: bytes(c | 0x80 for c in b).decode("iso8859_6"),
    "2D46": lambda b: bytes(c | 0x80 for c in b).decode("iso8859_7"),
    "2D48": lambda b: bytes(c | 0x80 for c in b).decode("iso8859_8"),
    "2D4D": lambda b: bytes(c | 0x80 for c in b).decode("iso8859_9"),
}


def _switched(text: str, pos: int, body: str, escape: str, out: list[str]) -> int:
    r"""Read the run after `\Cxxyy\` or `\Mxxyyzz\` up to the next escape; returns where to go on."""
    if body == "C2842":  # back to ASCII, hence to the default set
        return pos
    stop = text.find(escape, pos)
    stop = len(text) if stop < 0 else stop
    run, read = text[pos:stop], _SETS.get(body[1:].upper())
    if read is None:
        out.append(escape + body + escape + run)
        return stop
    try:
        out.append(read(run.encode("ascii")))
    except UnicodeError:
        out.append(escape + body + escape + run)
    return stop
