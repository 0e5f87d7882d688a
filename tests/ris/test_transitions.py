"""The table of step states: who may move a step from where to where."""

from datetime import timedelta

import pytest

from common.clock import now
from common.store import unit_of_work
from ris.models import ScheduledProcedureStep
from ris.models.schedule import StepStatus as S
from ris.services import steps
from ris.transitions import _TABLE, ON_WORKLIST, OPEN, TERMINAL, may_move
from tests.ris.making import group, place, register, who

ACTORS = ("order", "adt", "scanner", "images", "clerk", "report")

# Whoever is not in a cell may not: from → to → actors. Written out so that a change of the table is seen.
ALLOWED = {
    ("SCHEDULED", "ARRIVED"): "order adt clerk",
    ("ARRIVED", "SCHEDULED"): "order clerk",
    ("SCHEDULED", "STARTED"): "order scanner images clerk",
    ("READY", "STARTED"): "order scanner images clerk",
    ("HELD", "STARTED"): "scanner images clerk",
    ("SCHEDULED", "HELD"): "order clerk",
    ("HELD", "SCHEDULED"): "order clerk",
    ("STARTED", "HELD"): "clerk",
    ("STARTED", "SCHEDULED"): "scanner clerk",
    ("STARTED", "COMPLETED"): "order scanner images clerk report",
    ("STARTED", "DISCONTINUED"): "order scanner clerk",
    ("STARTED", "CANCELED"): "clerk",
    ("SCHEDULED", "CANCELED"): "order clerk",
    ("SCHEDULED", "COMPLETED"): "order scanner images clerk report",
    ("DEPARTED", "COMPLETED"): "order scanner images clerk report",
    ("COMPLETED", "STARTED"): "scanner clerk",
    ("COMPLETED", "SCHEDULED"): "clerk",
    ("COMPLETED", "CANCELED"): "clerk",
    ("CANCELED", "STARTED"): "clerk",
    ("CANCELED", "SCHEDULED"): "clerk",
    ("DISCONTINUED", "STARTED"): "clerk",
}


@pytest.mark.parametrize(
    ("pair", "actors"), ALLOWED.items(), ids=lambda v: "-".join(v) if isinstance(v, tuple) else v
)
def test_who_may(pair: tuple[str, str], actors: str) -> None:
    assert [actor for actor in ACTORS if may_move(actor, *pair)] == actors.split()


def test_there_is_one_table_with_every_actor_and_only_states_that_are() -> None:
    assert tuple(_TABLE) == ACTORS
    for moves in _TABLE.values():
        assert set(moves) <= set(S) and all(to <= set(S) for to in moves.values())
    assert set(S) == TERMINAL | OPEN and not TERMINAL & OPEN and ON_WORKLIST < OPEN


def test_staying_is_always_allowed_and_a_person_may_everything() -> None:
    for before in S:
        assert all(may_move(actor, before, before) for actor in ACTORS)
        assert all(may_move("clerk", before, after) for after in S)


def test_what_has_ended_is_opened_by_persons_and_by_a_second_scan_alone() -> None:
    for actor in ("order", "images", "report"):
        assert not any(may_move(actor, before, after) for before in TERMINAL for after in OPEN)
    assert [(b, a) for b in TERMINAL for a in OPEN if may_move("scanner", b, a)] == [(S.COMPLETED, S.STARTED)]


@pytest.mark.django_db
def test_a_patient_who_arrives_moves_the_steps_of_today_alone() -> None:
    today = now().replace(hour=12, minute=0)
    for accession, start in (("A1", today), ("A2", today + timedelta(days=3)), ("A3", today)):
        place(group(accession=accession, start=start), patient=who("4711", authoritative=False))
    third = ScheduledProcedureStep.objects.get(procedure__request__accession_number="A3")
    with unit_of_work("user:1") as unit:
        steps.move(third.pk, S.CANCELED, "clerk", unit)
    register(who("4711", arrived=True))
    found = ScheduledProcedureStep.objects.order_by("procedure__request__accession_number")
    assert list(found.values_list("status", flat=True)) == ["ARRIVED", "SCHEDULED", "CANCELED"]
