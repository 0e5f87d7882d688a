"""The only way out: messages built from plain values, every delimiter and control character escaped.

A field is a text (one value), a tuple (components; a tuple inside it: subcomponents), a list (repetitions),
NULL (`""`, delete) or None (empty). No text, whatever it holds, can add a segment, a field or a component.
"""

from collections.abc import Mapping, Sequence

from integration.hl7v2 import charsets
from integration.hl7v2.escapes import escape
from integration.hl7v2.reading import NULL
from integration.hl7v2.separators import STANDARD, Separators

Leaf = str | int | None
Component = Leaf | tuple[Leaf, ...]
Repetition = Component | tuple[Component, ...]
Field = Repetition | Sequence[Repetition]

HEADERS = ("MSH", "FHS", "BHS")


class Encoded(str):
    """A text that is already in HL7's encoding with the same separators, such as an echoed field."""

    __slots__ = ()


def field(value: "Field", separators: Separators = STANDARD) -> str:
    """One encoded field; empty components and repetitions at the end are left out."""
    if isinstance(value, list):
        return _joined([_repetition(v, separators) for v in value], separators.repetition)
    return _repetition(value, separators)  # type: ignore[arg-type]


def segment(name: str, fields: Mapping[int, "Field"], separators: Separators = STANDARD) -> str:
    """One encoded segment, without its terminator. Fields by number; of a header, MSH-1 and MSH-2 are ours."""
    if len(name) != 3 or not name.isascii() or not name.isalnum() or name.upper() != name:
        raise ValueError("A segment's name is three capital letters or digits.")
    numbers = [n for n in fields if n > (2 if name in HEADERS else 0)]
    texts = [""] * (max(numbers, default=2 if name in HEADERS else 0) + 1)
    texts[0] = name
    for number in numbers:
        texts[number] = field(fields[number], separators)
    if name in HEADERS:
        texts[1:3] = [separators.msh_2]
    return _joined(texts, separators.field)


def message(
    segments: Sequence[tuple[str, Mapping[int, "Field"]]],
    separators: Separators = STANDARD,
    charset: str = "",
    transliterate: bool = True,
) -> bytes:
    """The bytes of a message, each segment ended by CR.

    `charset` is a table 0211 name (empty: ASCII); it belongs into MSH-18 as well, which the caller writes.
    Characters it lacks are brought as near as it can when `transliterate`, else ValueError.
    """
    text = "".join(segment(name, fields, separators) + "\r" for name, fields in segments)
    return charsets.encode(text, charset, transliterate)


def _repetition(value: Repetition, separators: Separators) -> str:
    if isinstance(value, tuple):
        return _joined([_component(v, separators) for v in value], separators.component)
    return _leaf(value, separators)


def _component(value: Component, separators: Separators) -> str:
    if isinstance(value, tuple):
        return _joined([_leaf(v, separators) for v in value], separators.subcomponent)
    return _leaf(value, separators)


def _leaf(value: Leaf, separators: Separators) -> str:
    if value is None:
        return ""
    if value is NULL:
        return '""'
    if isinstance(value, Encoded):
        return str(value)
    return escape(str(value), separators)


def _joined(parts: list[str], separator: str) -> str:
    while len(parts) > 1 and not parts[-1]:
        parts.pop()
    return separator.join(parts)
