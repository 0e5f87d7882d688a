"""Writing text in the character sets of DICOM: Specific Character Set (0008,0005), PS3.3 C.12.1.1.2, PS3.5 6.1.

A repertoire is what one value of Specific Character Set names. Without code extensions there is one, and every
character is written in it; with them (ISO 2022) each component of a value begins in the first repertoire, an
escape sequence announces each change, and the first is active again before every delimiter (PS3.5 6.1.2.5.3).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from pydicom import charset as pydicom_charset

ESC = b"\x1b"
UTF_8 = ("ISO_IR 192",)
ASCII = ("",)

# pydicom 3.0 does not know Latin-9 (PS3.3 C.12.1.1.2, added 2021): queries in it could not be read.
pydicom_charset.python_encoding.setdefault("ISO_IR 203", "iso8859_15")
pydicom_charset.python_encoding.setdefault("ISO 2022 IR 203", "iso8859_15")

# Table C.12-2: one byte a character, the upper half by ISO 2022 in G1.
_SINGLE = {
    "100": ("iso8859_1", b"-A"),
    "101": ("iso8859_2", b"-B"),
    "109": ("iso8859_3", b"-C"),
    "110": ("iso8859_4", b"-D"),
    "144": ("iso8859_5", b"-L"),
    "127": ("iso8859_6", b"-G"),
    "126": ("iso8859_7", b"-F"),
    "138": ("iso8859_8", b"-H"),
    "148": ("iso8859_9", b"-M"),
    "203": ("iso8859_15", b"-b"),
    "166": ("tis_620", b"-T"),
}
# Table C.12-5: complete by themselves, no code extension.
_WHOLE = {"ISO_IR 192": "utf_8", "GB18030": "gb18030", "GBK": "gbk"}

Encode = Callable[[str], "bytes | None"]


@dataclass(frozen=True, slots=True)
class _Set:
    """One coded character set: in which half of the code it lies, how it is announced, how a character is written."""

    half: int
    escape: bytes
    encode: Encode


def _ascii(char: str) -> bytes | None:
    return char.encode("ascii") if char < "\x80" else None


def _upper(codec: str) -> Encode:
    def encode(char: str) -> bytes | None:
        if char < "\x80":
            return None
        try:
            code = char.encode(codec)
        except UnicodeEncodeError:
            return None
        return code if code >= b"\xa0" else None

    return encode


def _japanese(char: str, lead: bytes) -> bytes | None:
    """A character by EUC-JP, which holds JIS X 0208 (two bytes), 0201 (behind 8E) and 0212 (behind 8F)."""
    if char < "\x80":
        return None
    try:
        code = char.encode("euc_jp")
    except UnicodeEncodeError:
        return None
    if not lead:
        return bytes(b & 0x7F for b in code) if len(code) == 2 and code[:1] != b"\x8e" else None
    if code[:1] != lead:
        return None
    return code[1:] if lead == b"\x8e" else bytes(b & 0x7F for b in code[1:])


def _romaji(char: str) -> bytes | None:
    """JIS X 0201 Roman (ISO-IR 14): ASCII, but Yen and overline stand where backslash and tilde would."""
    if char in "\\~":
        return None
    return {"\xa5": b"\\", "\u203e": b"~"}.get(char) or _ascii(char)


_ROMAN = _Set(0, ESC + b"(J", _romaji)
_PLAIN = _Set(0, ESC + b"(B", _ascii)


def _sets_of(term: str) -> tuple[_Set, ...] | None:
    """The sets that a value of Specific Character Set brings, G0 first; None for one we cannot write."""
    number = term.removeprefix("ISO_IR ").removeprefix("ISO 2022 IR ")
    match number:
        case "" | "6":
            return (_PLAIN,)
        case "13":
            return (_ROMAN, _Set(1, ESC + b")I", lambda char: _japanese(char, b"\x8e")))
        case "87":
            return (_Set(0, ESC + b"$B", lambda char: _japanese(char, b"")),)
        case "159":
            return (_Set(0, ESC + b"$(D", lambda char: _japanese(char, b"\x8f")),)
        case "149":
            return (_Set(1, ESC + b"$)C", _upper("euc_kr")),)
        case "58":
            return (_Set(1, ESC + b"$)A", _upper("gb2312")),)
    if number in _SINGLE and number != term:
        codec, escape = _SINGLE[number]
        return (_PLAIN, _Set(1, ESC + escape, _upper(codec)))
    return None


@dataclass(frozen=True)
class Writer:
    """How text is written under one Specific Character Set. `whole` is a codec, else `sets` in order of choice."""

    whole: str
    sets: tuple[_Set, ...]
    initial: tuple[_Set | None, _Set | None]

    def write(self, text: str, delimiters: str) -> bytes | None:
        """The text as bytes, or None when a character has no place. The code begins anew at each delimiter."""
        if self.whole:
            try:
                return text.encode(self.whole)
            except UnicodeEncodeError:
                return None
        out = bytearray()
        state = list(self.initial)
        for char in text:
            if char in delimiters:
                self._return(out, state)
                out += char.encode("ascii")
                state = list(self.initial)
                continue
            found = self._find(char, state)
            if found is None:
                return None
            chosen, code = found
            if state[chosen.half] is not chosen:
                out += chosen.escape
                state[chosen.half] = chosen
            out += code
        self._return(out, state)
        return bytes(out)

    def _find(self, char: str, state: list[_Set | None]) -> tuple[_Set, bytes] | None:
        """Sets that are active now come first, so that no escape is written without need."""
        for chosen in (*(s for s in state if s is not None), *self.sets):
            code = chosen.encode(char)
            if code is not None:
                return chosen, code
        return None

    def _return(self, out: bytearray, state: list[_Set | None]) -> None:
        """Only G0 must be given back: the delimiter is written in it."""
        start = self.initial[0]
        if start is not None and state[0] is not start:
            out += start.escape


@lru_cache(maxsize=256)
def writer(terms: tuple[str, ...]) -> Writer | None:
    """The writer for the values of a Specific Character Set; None when we do not know it or it makes no sense."""
    terms = terms or ASCII
    if len(terms) == 1 and terms[0] in _WHOLE:
        return Writer(_WHOLE[terms[0]], (), (None, None))
    found = [_sets_of(term) for term in terms]
    if any(sets is None for sets in found):
        return None
    sets = tuple(s for group in found if group for s in group)
    g0 = next((s for s in (found[0] or ()) if s.half == 0 and s in (_PLAIN, _ROMAN)), _PLAIN)
    g1 = next((s for s in (found[0] or ()) if s.half == 1), None)
    return Writer("", (g0, *(s for s in sets if s is not g0)), (g0, g1))


def write(text: str, terms: Sequence[str], delimiters: str = "\\\r\n\f\t") -> bytes | None:
    """`text` under this Specific Character Set, or None when it cannot hold it or is unknown to us.

    `delimiters` are characters before which the first repertoire is active again: `\\` between values, and
    for PN also `^` and `=` (PS3.5 6.1.2.5.3).
    """
    if text.isascii() and (not terms or terms[0] != "ISO_IR 13"):
        return text.encode("ascii")
    found = writer(tuple(terms))
    return found.write(text, delimiters) if found else None


def known(terms: Sequence[str]) -> bool:
    """Whether we can write in this Specific Character Set."""
    return writer(tuple(terms)) is not None


# -- what cannot be written


# Letters that have a plain spelling but no decomposition in Unicode.
_SPELLED = str.maketrans(
    {"ß": "ss", "ẞ": "SS", "Ø": "O", "ø": "o", "Æ": "AE", "æ": "ae", "Œ": "OE", "œ": "oe", "Ł": "L", "ł": "l",
     "Đ": "D", "đ": "d", "Ð": "D", "ð": "d", "Þ": "TH", "þ": "th", "ı": "i", "’": "'", "‘": "'", "–": "-", "—": "-"}
)  # fmt: skip


def adapt(text: str, terms: Sequence[str], *, name: bool = False) -> tuple[str, bytes]:
    """`text` made writable under `terms`, and its bytes. The rule, in this order:

    the whole in its compatible form (half width as full width); else each character as it is; without its
    accents; in its plain spelling (ß as ss); in its compatible form; else `?`. A component group of a person
    name in which a `?` would stand is left out as a whole, as long as another group remains.
    """
    delimiters = "\\\r\n\f\t^=" if name else "\\\r\n\f\t"
    adapted = "=".join(_groups(text, terms, delimiters)) if name else _adapted(text, terms, delimiters)
    if name:
        adapted = adapted.rstrip("=")
    encoded = write(adapted, terms, delimiters)
    return adapted, encoded if encoded is not None else adapted.encode("ascii", "replace")


def _groups(text: str, terms: Sequence[str], delimiters: str) -> list[str]:
    groups = text.split("=")
    made = [_adapted(group, terms, delimiters) for group in groups]
    good = [new if "?" not in new or "?" in old else "" for old, new in zip(groups, made, strict=True)]
    return good if any(good) else made


def _adapted(text: str, terms: Sequence[str], delimiters: str) -> str:
    for candidate in (text, unicodedata.normalize("NFKC", text)):
        if write(candidate, terms, delimiters) is not None:
            return candidate
    return "".join(_adapted_char(char, terms) for char in unicodedata.normalize("NFC", text))


def _adapted_char(char: str, terms: Sequence[str]) -> str:
    if char in "^=\\\r\n\f\t" or write(char, terms) is not None:
        return char
    decomposed = "".join(c for c in unicodedata.normalize("NFD", char) if not unicodedata.combining(c))
    for candidate in (decomposed, char.translate(_SPELLED), unicodedata.normalize("NFKC", char)):
        if candidate != char and candidate and write(candidate, terms) is not None:
            return candidate
    return "" if unicodedata.combining(char) else "?"
