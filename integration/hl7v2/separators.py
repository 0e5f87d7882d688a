"""The delimiters of a message: MSH-1 and MSH-2 (HL7 v2 chapter 2.5.4)."""

from dataclasses import dataclass

from integration.hl7v2.errors import Code, Location, Refused, refuse

_DEFAULTS = "^~\\&"


@dataclass(frozen=True, slots=True)
class Separators:
    """One character each; `truncation` is empty before version 2.7 or where the sender names none."""

    field: str = "|"
    component: str = "^"
    repetition: str = "~"
    escape: str = "\\"
    subcomponent: str = "&"
    truncation: str = ""

    @property
    def msh_2(self) -> str:
        """The encoding characters in the order of MSH-2."""
        return self.component + self.repetition + self.escape + self.subcomponent + self.truncation

    @property
    def all(self) -> str:
        """Every delimiter, the field separator first."""
        return self.field + self.msh_2


STANDARD = Separators()


def read_separators(field: str, msh_2: str) -> Separators:
    """The separators a sender names. MSH-2 may hold one to five characters; missing ones take their defaults.

    Raises Refused (100 at MSH-1 or MSH-2) for none, for more than five, for duplicates, and for characters
    that are letters, digits, spaces, control characters or outside ASCII.
    """
    if not _usable(field):
        raise _bad(1, "MSH-1 must be one printable ASCII character that is no letter, digit or space.")
    if not 1 <= len(msh_2) <= 5 or not all(_usable(c) for c in msh_2):
        raise _bad(2, "MSH-2 must hold one to five printable ASCII characters, no letters, digits or spaces.")
    full = msh_2 if len(msh_2) >= 4 else msh_2 + _DEFAULTS[len(msh_2) :]
    if len(set(field + full)) != len(field + full):
        raise _bad(2, "MSH-1 and MSH-2 must name each separator once.")
    if field == "|" and full == _DEFAULTS:
        return STANDARD
    return Separators(field, *full)


def _usable(character: str) -> bool:
    return len(character) == 1 and "!" <= character <= "~" and not character.isalnum()


def _bad(field: int, text: str) -> Refused:
    return refuse(Code.SEGMENT_SEQUENCE, text, Location("MSH", 1, field))
