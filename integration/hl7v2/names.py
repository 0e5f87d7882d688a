"""Names between HL7 (XPN, XCN, CNN) and DICOM's Person Name: suffix and prefix swap places.

XPN: family^given^middle^suffix^prefix^degree^type^representation; PN: family^given^middle^prefix^suffix. XCN is
an XPN moved by one, the person's id first; CNN (OBR-32 to 35) has the parts of an XCN as subcomponents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from common.names import NameGroup, PersonName, clean_component
from integration.hl7v2.reading import NULL, Segment

# Table 0200, name types, best first: legal, display, unsaid, official registry, then any other.
_TYPES = ("L", "D", "", "R", "C", "U")
# Table 0465, name/address representation → attribute of PersonName.
_GROUPS = {"": "alphabetic", "A": "alphabetic", "I": "ideographic", "P": "phonetic"}
_GROUP_LIMIT = 64  # characters of a PN group, PS3.5 table 6.2-1


@dataclass(frozen=True, slots=True)
class Person:
    """A person of an XCN, XPN or CNN: the id in its authority, and the name."""

    id: str
    authority: str
    name: PersonName


def read_xpn(segment: Segment, number: int) -> PersonName | None:
    """The name in a field of XPN: of its repetitions the best type, with its A, I and P representations.

    None when the field is empty or `""`; the caller asks the segment which it was.
    """
    candidates: dict[str, dict[str, NameGroup]] = {}
    for repetition in range(1, len(segment.repetitions(number)) + 1):
        parts = segment.components(number, repetition)
        group = _group(tuple(parts), 0)
        if not group:
            continue
        kind = _at(parts, 6).strip().upper()
        place = _GROUPS.get(_at(parts, 7).strip().upper(), "alphabetic")
        candidates.setdefault(kind, {}).setdefault(place, group)
    if not candidates:
        return None
    kind = min(candidates, key=lambda k: _TYPES.index(k) if k in _TYPES else len(_TYPES))
    return PersonName(**candidates[kind])


def read_xcn(segment: Segment, number: int, repetition: int = 1) -> Person | None:
    """The person in one repetition of XCN; None when it is empty. A lone id has an empty name."""
    if not segment.has(number):
        return None
    parts = segment.components(number, repetition)
    return _person(tuple(parts)) if any(parts) else None


@lru_cache(maxsize=8192)  # a few hundred physicians sign all orders
def _person(parts: tuple[str, ...]) -> Person:
    place = _GROUPS.get(_at(parts, 14).strip().upper(), "alphabetic")
    return Person(_at(parts, 0).strip(), _at(parts, 8).strip(), PersonName(**{place: _group(parts, 1)}))


def read_cnn(segment: Segment, number: int, repetition: int = 1) -> Person | None:
    """The person in OBR-32 to 35: subcomponents of component 1; senders of plain XCN are read as such."""
    parts = segment.subcomponents(number, 1, repetition)
    if len(parts) < 2:
        return read_xcn(segment, number, repetition)
    name = PersonName(alphabetic=_group(tuple(parts), 1))
    return Person(_at(parts, 0).strip(), _at(parts, 8).strip(), name)


def write_xpn(name: PersonName, kind: str = "L") -> list[tuple[str, ...]]:
    """The repetitions of an XPN field for a name, one a representation."""
    groups = ((name.alphabetic, "A"), (name.ideographic, "I"), (name.phonetic, "P"))
    filled = [(group, code) for group, code in groups if group]
    if len(filled) == 1 and filled[0][1] == "A":
        return [_xpn(filled[0][0], kind, "")]
    return [_xpn(group, kind, code) for group, code in filled]


def write_xcn(identifier: str, name: PersonName, authority: str = "") -> tuple[str, ...]:
    """One XCN repetition."""
    group = name.alphabetic or name.ideographic or name.phonetic
    return (
        identifier,
        group.family,
        group.given,
        group.middle,
        group.suffix,
        group.prefix,
        "",
        "",
        authority,
    )


def write_cnn(identifier: str, name: PersonName) -> tuple[tuple[str, ...], ...]:
    """The CNN of OBR-32 to 35: one component whose subcomponents are id, family, given, middle, suffix, prefix."""
    group = name.alphabetic or name.ideographic or name.phonetic
    return ((identifier, group.family, group.given, group.middle, group.suffix, group.prefix),)


def _xpn(group: NameGroup, kind: str, representation: str) -> tuple[str, ...]:
    return (group.family, group.given, group.middle, group.suffix, group.prefix, "", kind, representation)


@lru_cache(maxsize=8192)
def _group(parts: tuple[str, ...], start: int) -> NameGroup:
    """The PN group of family^given^middle^suffix^prefix^degree from this index; the degree joins the suffix."""
    family, given, middle, suffix, prefix, degree = [
        part if part.isalnum() else clean_component(part)
        for part in (_at(parts, start + i) for i in range(6))
    ]
    whole_suffix = " ".join(p for p in (suffix, degree) if p)
    return _fitted(NameGroup(family, given, middle, prefix, whole_suffix))


def _fitted(group: NameGroup) -> NameGroup:
    """A group of at most 64 characters: what is least of the name goes first."""
    if len(str(group)) <= _GROUP_LIMIT:
        return group
    for shorter in (
        NameGroup(group.family, group.given, group.middle, group.prefix, ""),
        NameGroup(group.family, group.given, group.middle, "", ""),
        NameGroup(group.family, group.given, "", "", ""),
    ):
        if len(str(shorter)) <= _GROUP_LIMIT:
            return shorter
    family = group.family[:_GROUP_LIMIT]
    given = group.given[: max(0, _GROUP_LIMIT - len(family) - 1)]
    return NameGroup(family.strip(), given.strip())


def _at(parts: Sequence[str], index: int) -> str:
    return parts[index] if index < len(parts) and parts[index] is not NULL else ""
