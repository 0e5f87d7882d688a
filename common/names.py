"""Names of people, in the shape of DICOM's Person Name (PS3.5 section 6.2.1.2): three groups of five components."""

import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NameGroup:
    """One way of writing a name: family, given, middle, prefix, suffix."""

    family: str = ""
    given: str = ""
    middle: str = ""
    prefix: str = ""
    suffix: str = ""

    def __str__(self) -> str:
        return "^".join((self.family, self.given, self.middle, self.prefix, self.suffix)).rstrip("^")

    def __bool__(self) -> bool:
        return any((self.family, self.given, self.middle, self.prefix, self.suffix))

    def display(self) -> str:
        """`Prefix Given Middle Family, Suffix`: the order in which one reads a name aloud."""
        words = " ".join(w for w in (self.prefix, self.given, self.middle, self.family) if w)
        return f"{words}, {self.suffix}" if self.suffix else words


@dataclass(frozen=True, slots=True)
class PersonName:
    """A person's name: alphabetic, ideographic and phonetic groups, joined by `=`."""

    alphabetic: NameGroup = NameGroup()
    ideographic: NameGroup = NameGroup()
    phonetic: NameGroup = NameGroup()

    def __str__(self) -> str:
        return "=".join(str(g) for g in (self.alphabetic, self.ideographic, self.phonetic)).rstrip("=")

    def __bool__(self) -> bool:
        return bool(self.alphabetic or self.ideographic or self.phonetic)

    def display(self) -> str:
        """The name for a page: alphabetic, with the ideographic form in brackets."""
        first = (self.alphabetic or self.phonetic).display()
        ideographic = f"{self.ideographic.family}{self.ideographic.given}"
        if first and ideographic:
            return f"{first} ({ideographic})"
        return first or ideographic


def clean_component(text: str) -> str:
    """A component without the characters that separate components (`^ = \\`) and without control characters."""
    kept = "".join(" " if c in "^=\\\x7f" or ord(c) < 32 else c for c in text)
    return " ".join(kept.split())


def parse_pn(text: str) -> PersonName:
    """Read a PN value such as `Yamada^Tarou=山田^太郎`; surplus groups and components are dropped."""
    groups = []
    for part in text.split("=")[:3]:
        components = [c.strip() for c in part.split("^")[:5]]
        groups.append(NameGroup(*components))
    return PersonName(*groups)


def search_form(text: str) -> str:
    """A name as it is compared: case folded, accents removed, separators to single spaces."""
    decomposed = unicodedata.normalize("NFKD", text.replace("^", " ").replace("=", " "))
    bare = "".join(c for c in decomposed if not unicodedata.combining(c))
    return " ".join(bare.casefold().split())


def same_person_name(one: str, other: str) -> bool | None:
    """Whether two PN values can be one person's name; None when either says nothing.

    The family names must agree, and the given names agree as far as both have one (an initial agrees
    with the name it begins). Any pair of groups that both carry may agree: a romanised and an ideographic
    spelling of one name never contradict each other.
    """
    left, right = parse_pn(one), parse_pn(other)
    compared = False
    for a, b in (
        (left.alphabetic, right.alphabetic),
        (left.ideographic, right.ideographic),
        (left.phonetic, right.phonetic),
    ):
        if not a.family or not b.family:
            continue
        compared = True
        family_a, family_b = search_form(a.family), search_form(b.family)
        given_a, given_b = search_form(a.given), search_form(b.given)
        given_agrees = (
            not given_a or not given_b or given_a.startswith(given_b) or given_b.startswith(given_a)
        )
        if family_a.replace("-", " ") == family_b.replace("-", " ") and given_agrees:
            return True
    return False if compared else None
