"""The script of a rehearsal: who comes, what is ordered, what goes wrong. The same seed gives the same day.

Only keys (Patient IDs, order numbers, UIDs) differ from run to run, since they carry the run's tag: a rehearsal
may be repeated on one database as often as one likes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from random import Random

from common.names import PersonName
from common.uids import new_uid
from integration.rehearsal.catalogue import PROCEDURES, STATIONS, Procedure, Station
from integration.rehearsal.people import PHYSICIANS, Person, draw_people
from integration.rehearsal.trouble import FATES, STATUSES, Fate, Trouble, mistyped, share_out

DIALECTS = ("ORM", "OMI", "OMG")
"""Message types in which orders are placed, in turn: ORM^O01 2.3.1, OMI^O23 and OMG^O19 2.5.1."""


@dataclass(frozen=True, slots=True)
class Exam:
    """One order of one procedure. An OMG leaves to us what it leaves empty: accession, UID, step id, station."""

    person: Person
    procedure: Procedure
    station: Station
    dialect: str
    placer: str
    accession: str
    study_uid: str
    procedure_id: str
    step_id: str
    start: datetime
    priority: str
    reason: str
    physician: tuple[str, PersonName]


@dataclass(slots=True)
class Visit:
    """A patient's way through the morning. `events` are the ADT events that register the person, in order.

    `known_as` is the person under the number it was first registered by, when it is merged later.
    `neighbour` is an order of somebody else, on the same scanner's worklist, whose exam does not take place.
    """

    number: int
    person: Person
    exam: Exam | None
    trouble: Trouble
    events: tuple[str, ...]
    seed: int
    lesion: bool
    addendum: bool
    preliminary: bool
    known_as: Person
    neighbour: Exam | None = None
    typed_accession: str = ""
    left_unread: bool = False
    """Nobody reads it: it stays on the reading list."""

    @property
    def versions(self) -> list[str]:
        """The statuses of the report's versions, in order: what the radiologist signs."""
        if self.left_unread or self.fate not in (Fate.LINKS, Fate.WAITS_FOR_CLERK):
            return []
        before, after = ["PRELIMINARY"] * self.preliminary, ["ADDENDED"] * self.addendum
        return [*before, "FINAL", *after]

    @property
    def fate(self) -> Fate:
        """What must become of its study."""
        return FATES[self.trouble]

    @property
    def statuses(self) -> tuple[str, ...]:
        """The status messages that the HIS must get."""
        return STATUSES[self.trouble]


@dataclass(slots=True)
class Script:
    """The whole morning. `tag` is in every key of the run."""

    tag: str
    seed: int
    visits: list[Visit]
    exams: list[Exam] = field(default_factory=list)

    def __post_init__(self) -> None:
        for visit in self.visits:
            self.exams += [exam for exam in (visit.exam, visit.neighbour) if exam]


def write(patients: int, trouble: float, seed: int, now: datetime, tag: str = "", unread: int = 0) -> Script:
    """The script of `patients` people, of whom the share `trouble` has some. `now` is aware, on the site's clock.

    Of those who come last and have no trouble, `unread` are left to whoever looks at the reading list afterwards.
    """
    tag = tag or new_tag()
    rng = Random(seed)
    people = draw_people(rng, f"RH{tag}", now.date())
    troubles = share_out(patients, trouble, rng)
    writer = _Writer(tag, rng, now)
    visits = []
    for number, kind in enumerate(troubles):
        visits.append(writer.visit(number, kind, next(people), people))
    untroubled = [visit for visit in reversed(visits) if visit.trouble is Trouble.NONE]
    for visit in untroubled[:unread]:
        visit.left_unread = True
    return Script(tag, seed, visits)


_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def new_tag() -> str:
    """Six characters that no other run on this database has: the seconds since 2024 in base 32."""
    seconds = int(time.time()) - 1_704_067_200
    return "".join(_DIGITS[seconds >> shift & 31] for shift in range(25, -1, -5))


class _Writer:
    """What runs through all visits: the random numbers, the counter of orders."""

    def __init__(self, tag: str, rng: Random, now: datetime) -> None:
        self.tag, self.rng, self.now = tag, rng, now
        self.orders = 0
        self.accessions: set[str] = set()

    def visit(self, number: int, trouble: Trouble, person: Person, people: Iterator[Person]) -> Visit:
        """One visit. A neighbour, where there is one, is the next person of `people`."""
        rng = self.rng
        exam = None if trouble is Trouble.STRANGER else self.exam(person, trouble)
        known_as = person
        neighbour = None
        if trouble is Trouble.MERGE and exam is not None:
            known_as = replace(person, number=f"RE{person.number[2:]}")
            exam = replace(exam, person=known_as)
        if trouble is Trouble.NEIGHBOUR and exam is not None:
            neighbour = self.exam(next(people), trouble, at=exam)
        visit = Visit(
            number=number,
            person=person,
            exam=exam,
            trouble=trouble,
            events=() if exam is None else self.events(),
            seed=rng.randrange(1 << 30),
            lesion=rng.random() < 0.6,
            addendum=rng.random() < 0.2,
            preliminary=rng.random() < 0.2,
            known_as=known_as,
            neighbour=neighbour,
        )
        if trouble is Trouble.ACCESSION and exam is not None:
            visit.typed_accession = mistyped(exam.accession, self.accessions)
        return visit

    def events(self) -> tuple[str, ...]:
        """Outpatients mostly, some admitted, some announced; now and then the registration is corrected."""
        chance = self.rng.random()
        first = ("A04",) if chance < 0.6 else ("A01",) if chance < 0.85 else ("A05", "A01")
        return (*first, "A08") if self.rng.random() < 0.25 else first

    def exam(self, person: Person, trouble: Trouble, at: Exam | None = None) -> Exam:
        """An order. One whose keys a person will mistype is of a dialect that brings keys of its own."""
        rng = self.rng
        self.orders += 1
        station = at.station if at else rng.choice(STATIONS)
        fitting = [p for p in PROCEDURES if p.modality == station.modality]
        procedure = rng.choice(fitting)
        dialect = DIALECTS[self.orders % 3]
        if trouble is Trouble.ACCESSION and dialect == "OMG":
            dialect = "OMI"
        number = f"{self.tag}{self.orders:04d}"
        self.accessions.add(number)
        says_all = dialect != "OMG"
        return Exam(
            person=person,
            procedure=procedure,
            station=station,
            dialect=dialect,
            placer=f"P{number}",
            accession=number if says_all else "",
            study_uid=new_uid() if says_all else "",
            procedure_id=f"Q{number}" if says_all else "",
            step_id=f"S{number}" if says_all else "",
            start=_soon(self.now, self.orders),
            priority=rng.choice(("R", "R", "R", "A", "S")),
            reason=rng.choice(procedure.reasons),
            physician=rng.choice(PHYSICIANS),
        )


def _soon(now: datetime, number: int) -> datetime:
    """A time of today, five minutes after the one before, as far as the day reaches."""
    end = now.replace(hour=23, minute=55, second=0, microsecond=0)
    planned = now.replace(second=0, microsecond=0) + timedelta(minutes=5 * number)
    return planned if planned < end else max(now.replace(second=0, microsecond=0), end)
