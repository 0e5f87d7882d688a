"""The script of a rehearsal: the same seed, the same day; trouble shared out; keys that no other run has."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from random import Random
from typing import Any

import pytest

from integration.hl7v2 import charsets
from integration.rehearsal.catalogue import PROCEDURES, STATIONS, report_of
from integration.rehearsal.people import draw_people
from integration.rehearsal.script import Script, new_tag, write
from integration.rehearsal.trouble import FATES, STATUSES, Trouble, mistyped, share_out

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)


def day(
    seed: int = 5, trouble: float = 0.5, patients: int = 24, tag: str = "AAAAAA", now: datetime = NOW
) -> Script:
    return write(patients, trouble, seed, now, tag)


def without_uids(script: Script) -> list[dict[str, Any]]:
    visits = [asdict(visit) for visit in script.visits]
    for visit in visits:
        for exam in (visit["exam"], visit["neighbour"]):
            if exam:
                del exam["study_uid"]
    return visits


def test_the_same_seed_gives_the_same_day() -> None:
    assert without_uids(day(5)) == without_uids(day(5))
    assert without_uids(day(5)) != without_uids(day(6))


def test_another_run_of_the_same_seed_has_the_same_people_and_other_keys() -> None:
    one, other = day(tag="AAAAAA"), day(tag="BBBBBB")
    assert [v.person.name for v in one.visits] == [v.person.name for v in other.visits]
    keys = [{(e.placer, e.accession, e.person.number) for e in script.exams} for script in (one, other)]
    assert not keys[0] & keys[1]


def test_a_tag_has_six_characters_and_grows_with_time() -> None:
    assert len(new_tag()) == 6
    assert new_tag().isalnum()


def test_keys_are_unique_and_fit_dicom() -> None:
    script = day(patients=60)
    for name in ("placer", "accession", "study_uid", "procedure_id", "step_id"):
        values = [getattr(exam, name) for exam in script.exams if getattr(exam, name)]
        assert len(set(values)) == len(values), name
        assert max(map(len, values)) <= (64 if name == "study_uid" else 16), name
    numbers = {v.person.number for v in script.visits} | {v.known_as.number for v in script.visits}
    merged = sum(v.trouble is Trouble.MERGE for v in script.visits)
    assert len(numbers) == 60 + merged


@pytest.mark.parametrize(("patients", "share", "expected"), [(40, 0.2, 8), (6, 1, 6), (5, 0, 0), (1, 0.4, 0)])
def test_the_share_of_trouble_is_kept_and_every_kind_comes_in_turn(
    patients: int, share: float, expected: int
) -> None:
    shared = [kind for kind in share_out(patients, share, Random(3)) if kind is not Trouble.NONE]
    assert len(shared) == expected
    counts = Counter(shared).values()
    assert not shared or max(counts) - min(counts) <= 1
    assert len(set(shared)) == min(expected, len(Trouble) - 1)


def test_every_kind_of_trouble_has_its_fate_and_its_status_messages() -> None:
    assert FATES.keys() == STATUSES.keys() == set(Trouble)


def test_a_stranger_has_no_order_and_a_neighbour_has_one_on_the_same_scanner() -> None:
    for visit in day(trouble=1).visits:
        assert (visit.exam is None) == (visit.trouble is Trouble.STRANGER)
        assert (visit.neighbour is None) == (visit.trouble is not Trouble.NEIGHBOUR)
        if visit.neighbour and visit.exam:
            assert visit.neighbour.station == visit.exam.station
            assert visit.neighbour.person != visit.person
        if visit.trouble is Trouble.MERGE:
            assert visit.exam and visit.exam.person == visit.known_as != visit.person


def test_a_mistyped_number_is_another_one_of_the_same_length() -> None:
    for visit in day(trouble=1, patients=60).visits:
        if visit.trouble is Trouble.ACCESSION:
            assert visit.exam and visit.typed_accession != visit.exam.accession
            assert len(visit.typed_accession) == len(visit.exam.accession)
    assert mistyped("A0012", set()) == "A0021"
    assert mistyped("A1111", {"A1119"}) == "A1118"


def test_orders_come_in_every_dialect_and_for_every_scanner() -> None:
    script = day(patients=60, trouble=0)
    assert {exam.dialect for exam in script.exams} == {"ORM", "OMI", "OMG"}
    assert {exam.station for exam in script.exams} == set(STATIONS)
    assert all(exam.procedure.modality == exam.station.modality for exam in script.exams)


@pytest.mark.parametrize("hour", [0, 9, 23])
def test_every_exam_is_scheduled_on_the_day_of_the_rehearsal(hour: int) -> None:
    late = NOW.replace(hour=hour, minute=58)
    assert {exam.start.date() for exam in day(patients=80, now=late).exams} == {NOW.date()}


def test_names_come_in_several_scripts_and_fit_the_character_set_of_their_messages() -> None:
    source = draw_people(Random(1), "RH", NOW.date())
    people = [next(source) for _ in range(64)]
    assert len({str(p.name) for p in people}) > 60
    assert {"8859/1", "8859/5", "8859/7", "UNICODE UTF-8", ""} == {p.charset for p in people}
    assert sum(bool(p.name.ideographic) for p in people) == 8
    for person in people:
        charsets.encode(f"{person.name} {person.city}", person.charset, transliterate=False)


def test_a_report_speaks_of_the_lesion_or_of_none() -> None:
    for procedure in PROCEDURES:
        findings, impression = report_of(procedure, ("left lower lobe", 14), Random(2))
        assert "left lower lobe" in findings and "14 mm" in impression
        findings, impression = report_of(procedure, None, Random(2))
        assert "mm" not in findings and impression == procedure.healthy


def test_studies_may_be_left_unread_and_their_reports_are_not_expected() -> None:
    script = write(10, 0.4, 5, NOW, "AAAAAA", unread=2)
    left = [visit for visit in script.visits if visit.left_unread]
    assert len(left) == 2
    assert all(visit.trouble is Trouble.NONE and visit.versions == [] for visit in left)
    read = [visit for visit in script.visits if not visit.left_unread and visit.trouble is Trouble.NONE]
    assert all("FINAL" in visit.versions for visit in read)
    nobody = [v for v in script.visits if v.trouble in (Trouble.STRANGER, Trouble.CANCELLED)]
    assert all(visit.versions == [] for visit in nobody)
