"""What goes wrong in a rehearsal, who it happens to, and what must become of it all the same."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from random import Random


class Trouble(StrEnum):
    """One kind of trouble; NONE is a visit where all goes well."""

    NONE = "none"
    DUPLICATE = "duplicate"
    """The order message is sent twice, byte for byte."""
    CANCELLED = "cancelled"
    """The order is cancelled before the scan."""
    ACCESSION = "accession"
    """The exam is typed at the console: a new Study Instance UID and a wrong accession number."""
    NEIGHBOUR = "neighbour"
    """The neighbour's worklist entry is picked: its UIDs and numbers, with this patient's identity."""
    MERGE = "merge"
    """The patient is merged into another registration of the same person after the scan (A40)."""
    STRANGER = "stranger"
    """Images of a patient nobody knows: no registration, no order."""


class Fate(StrEnum):
    """What must become of a study."""

    LINKS = "links"
    """It finds its order by itself."""
    WAITS_FOR_CLERK = "waits for clerk"
    """It must wait as a case until a clerk links it to its order, and never link by itself."""
    STAYS_OPEN = "stays open"
    """It must stand as an open case at the end."""
    NO_STUDY = "no study"
    """There must be none."""


FATES = {
    Trouble.NONE: Fate.LINKS,
    Trouble.DUPLICATE: Fate.LINKS,
    Trouble.MERGE: Fate.LINKS,
    Trouble.ACCESSION: Fate.WAITS_FOR_CLERK,
    Trouble.NEIGHBOUR: Fate.WAITS_FOR_CLERK,
    Trouble.STRANGER: Fate.STAYS_OPEN,
    Trouble.CANCELLED: Fate.NO_STUDY,
}

STATUSES = {
    Trouble.NONE: ("IP", "CM"),
    Trouble.DUPLICATE: ("IP", "CM"),
    Trouble.MERGE: ("IP", "CM"),
    Trouble.ACCESSION: ("CM",),
    Trouble.NEIGHBOUR: ("CM",),
    Trouble.STRANGER: (),
    Trouble.CANCELLED: (),
}
"""ORC-5 of the status messages that the HIS must get of the visit's order, each once. What it asked for itself
(a cancellation) is not told back; where the scanner could not name the order, only its completion is known."""

_KINDS = [trouble for trouble in Trouble if trouble is not Trouble.NONE]


def share_out(patients: int, share: float, rng: Random) -> list[Trouble]:
    """Which trouble each patient has: `share` of them one each, every kind in turn before one comes again."""
    count = min(patients, round(patients * share))
    turn = _in_turn(rng)
    troubled = set(rng.sample(range(patients), count))
    return [next(turn) if number in troubled else Trouble.NONE for number in range(patients)]


def _in_turn(rng: Random) -> Iterator[Trouble]:
    while True:
        yield from rng.sample(_KINDS, len(_KINDS))


def mistyped(accession: str, taken: set[str]) -> str:
    """An accession number as a tired hand types it: two digits swapped, else one digit wrong."""
    for place in range(len(accession) - 1, 0, -1):
        swapped = accession[: place - 1] + accession[place] + accession[place - 1] + accession[place + 1 :]
        if accession[place].isdigit() and accession[place - 1].isdigit() and swapped != accession:
            return swapped
    last = accession[-1]
    for digit in "9876543210":
        if digit != last and accession[:-1] + digit not in taken:
            return accession[:-1] + digit
    return "9" * len(accession)
