"""Character sets of messages: MSH-18 (table 0211), how its bytes are read, and what DICOM calls it."""

import codecs
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from integration.hl7v2.errors import Code, Location, Problem, refuse, warning

_AT = Location("MSH", 1, 18)

# Table 0211 → (Python codec, DICOM Specific Character Set (0008,0005); PS3.3 section C.12.1.1.2).
# Sets that DICOM does not have travel there as ISO_IR 192.
SETS: dict[str, tuple[str, str]] = {
    "ASCII": ("ascii", ""),
    "8859/1": ("iso8859_1", "ISO_IR 100"),
    "8859/2": ("iso8859_2", "ISO_IR 101"),
    "8859/3": ("iso8859_3", "ISO_IR 109"),
    "8859/4": ("iso8859_4", "ISO_IR 110"),
    "8859/5": ("iso8859_5", "ISO_IR 144"),
    "8859/6": ("iso8859_6", "ISO_IR 127"),
    "8859/7": ("iso8859_7", "ISO_IR 126"),
    "8859/8": ("iso8859_8", "ISO_IR 138"),
    "8859/9": ("iso8859_9", "ISO_IR 148"),
    "8859/15": ("iso8859_15", "ISO_IR 203"),
    "ISO IR6": ("ascii", ""),
    "ISO IR14": ("shift_jis", "ISO_IR 13"),
    "ISO IR87": ("iso2022_jp", "ISO 2022 IR 87"),
    "ISO IR159": ("iso2022_jp_1", "ISO 2022 IR 159"),
    "GB 18030-2000": ("gb18030", "GB18030"),
    "KS X 1001": ("euc_kr", "ISO 2022 IR 149"),
    "CNS 11643-1992": ("big5hkscs", "ISO_IR 192"),
    "BIG-5": ("big5", "ISO_IR 192"),
    "UNICODE": ("utf_8", "ISO_IR 192"),
    "UNICODE UTF-8": ("utf_8", "ISO_IR 192"),
}

# How senders write the names of the table.
_ALIASES = {
    "8859-1": "8859/1", "ISO-8859-1": "8859/1", "ISO8859-1": "8859/1", "ISO_IR 100": "8859/1", "LATIN1": "8859/1",
    "ISO-8859-2": "8859/2", "ISO-8859-15": "8859/15", "ISO IR100": "8859/1",
    "UTF-8": "UNICODE UTF-8", "UTF8": "UNICODE UTF-8", "UNICODE UTF8": "UNICODE UTF-8", "ISO_IR 192": "UNICODE UTF-8",
    "US-ASCII": "ASCII", "ISO_IR 6": "ASCII", "ISO IR 6": "ASCII", "ISO IR 87": "ISO IR87", "ISO IR 14": "ISO IR14",
    "ISO IR 159": "ISO IR159", "GB18030": "GB 18030-2000", "GB 18030": "GB 18030-2000", "BIG5": "BIG-5",
    "KSC5601": "KS X 1001",
}  # fmt: skip

_JAPANESE = {"ISO IR14", "ISO IR87", "ISO IR159"}
_SINGLE_BYTE = {name for name in SETS if name.startswith("8859/")}


@dataclass(frozen=True, slots=True)
class Decoded:
    """A message as text; `name` is the table 0211 name of the set its bytes were in, as far as it has one."""

    text: str
    codec: str
    name: str
    warnings: tuple[Problem, ...] = ()


def canonical(declared: str) -> str:
    """The table 0211 name of what a sender wrote in MSH-18, or empty when it is none."""
    name = declared.strip().upper()
    name = _ALIASES.get(name, name)
    return name if name in SETS else ""


def is_codec(name: str) -> bool:
    """Whether a configured fallback (`cp1252`, `8859/2`, …) names a set that can be read."""
    try:
        codecs.lookup(_codec_of(name))
    except LookupError:
        return False
    return True


def decode(raw: bytes, declared: tuple[str, ...] = (), fallback: str = "cp1252", force: str = "") -> Decoded:
    """The text of a message's bytes.

    A declared set (`declared`: the repetitions of MSH-18) is read strictly; an undeclared one as UTF-8, else
    as `fallback` with a warning. Bytes that declare a set of one byte a character, yet are valid UTF-8, are
    UTF-8 with a warning. `force` overrides what the sender says. Raises Refused (102 at MSH-18).
    """
    if force:
        return _strict(raw, _codec_of(force), canonical(force) or force)
    if raw.isascii() and b"\x1b" not in raw:
        name = canonical(declared[0]) if declared and declared[0] else ""
        codec, label = (SETS[name][0], name) if name else ("utf_8", "")
        return Decoded(raw.decode("ascii"), codec, label, () if name or not any(declared) else (_unknown(),))
    names = [canonical(d) for d in declared if d]
    if not names:
        return _guessed(raw, fallback, ())
    if not names[0]:
        return _guessed(raw, fallback, (_unknown(),))
    if names[0] in ("ASCII", "ISO IR6") and len(names) == 1:
        return _guessed(raw, fallback, (warning("MSH-18 says ASCII; the message holds other bytes.", _AT),))
    if names[0] in _SINGLE_BYTE:
        return _single_byte(raw, names[0])
    if _JAPANESE & set(names):
        return _japanese(raw, names)
    if names[0] == "KS X 1001" or "KS X 1001" in names:
        return _strict(raw.replace(b"\x1b$)C", b""), "euc_kr", "KS X 1001")
    return _strict(raw, SETS[names[0]][0], names[0])


@lru_cache(maxsize=32)
def decoder(codec: str) -> Callable[[bytes], str | None]:
    """A function that reads bytes of an escape in this set; None for bytes that are none of it."""

    def read(data: bytes) -> str | None:
        try:
            return data.decode(codec)
        except (UnicodeError, LookupError):
            return None

    return read


def encode(text: str, name: str, transliterate: bool = True) -> bytes:
    """The bytes of a text in a table 0211 set.

    Characters the set lacks lose their accents, or become `?`, when `transliterate`; else ValueError.
    """
    codec = _codec_of(name or "ASCII")
    try:
        return text.encode(codec)
    except UnicodeEncodeError:
        if not transliterate:
            raise ValueError(f"The text has characters that {name or 'ASCII'} lacks.") from None
    return "".join(_fitted(c, codec) for c in text).encode(codec)


def _codec_of(name: str) -> str:
    known = canonical(name)
    return SETS[known][0] if known else name


@lru_cache(maxsize=4096)
def _fitted(character: str, codec: str) -> str:
    """The character, or what is nearest to it in the set."""
    bare = "".join(c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c))
    for form in (character, _PLAIN.get(character, ""), bare):
        try:
            if form and form.encode(codec):
                return form
        except UnicodeEncodeError:
            continue
    return "?"


# Letters that Unicode does not decompose.
_PLAIN = {
    "ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L",
    "đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "þ": "th", "Þ": "Th", "ı": "i", "€": "EUR", "–": "-", "—": "-",
    "‘": "'", "’": "'", "“": '"', "”": '"', "…": "...", "µ": "u", "×": "x", "•": "*",
}  # fmt: skip


def _strict(raw: bytes, codec: str, name: str) -> Decoded:
    try:
        return Decoded(raw.decode(codec), codec, name)
    except UnicodeDecodeError as error:
        raise refuse(
            Code.DATA_TYPE,
            f"The message is not in the character set that it should be in ({name}); byte {error.start} is wrong.",
            _AT,
        ) from None


def _guessed(raw: bytes, fallback: str, said: tuple[Problem, ...]) -> Decoded:
    """Nothing usable was declared: UTF-8 if the bytes are that, else the configured set."""
    try:
        return Decoded(raw.decode("utf-8"), "utf_8", "UNICODE UTF-8", said)
    except UnicodeDecodeError:
        pass
    codec = _codec_of(fallback)
    note = warning(f"No character set is declared and the bytes are not UTF-8; read as {fallback}.", _AT)
    try:
        return Decoded(raw.decode(codec), codec, canonical(fallback), (*said, note))
    except UnicodeDecodeError:
        # cp1252 leaves five bytes undefined; Latin-1 reads every byte.
        return Decoded(raw.decode("iso8859_1"), "iso8859_1", "8859/1", (*said, note))


def _single_byte(raw: bytes, name: str) -> Decoded:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        pass
    else:
        return Decoded(
            text, "utf_8", "UNICODE UTF-8", (warning(f"MSH-18 says {name}; the bytes are UTF-8.", _AT),)
        )
    if name == "8859/1" and any(0x80 <= b < 0xA0 for b in raw):
        try:
            text = raw.decode("cp1252")
        except UnicodeDecodeError:
            pass
        else:
            return Decoded(
                text, "cp1252", name, (warning("MSH-18 says 8859/1; the bytes are Windows-1252.", _AT),)
            )
    return _strict(raw, SETS[name][0], name)


def _japanese(raw: bytes, names: list[str]) -> Decoded:
    """ISO 2022 with escapes; without any, eight-bit bytes are JIS X 0201 katakana."""
    name = next(n for n in names if n in _JAPANESE)
    if b"\x1b" not in raw:
        return _strict(raw, "shift_jis", name)
    for codec in ("iso2022_jp_ext", "iso2022_jp_2"):
        try:
            return Decoded(raw.decode(codec), codec, name)
        except UnicodeDecodeError:
            continue
    return _strict(raw, "iso2022_jp_2", name)


def _unknown() -> Problem:
    return warning("MSH-18 names no character set of table 0211; it is passed over.", _AT, Code.TABLE_VALUE)
