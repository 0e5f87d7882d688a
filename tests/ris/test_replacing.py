"""Orders replaced by others (ORC-1 RP or RU, with RO): the old one is off the worklist, the new one is on it."""

from datetime import timedelta

import pytest

from ris.commands import OrderAction, OrderGroup, OrderPolicy
from ris.errors import NotAllowed, UnknownKey
from ris.models import ImagingServiceRequest, RequestedProcedure, ScheduledProcedureStep
from tests.ris.making import NOW, group, place

pytestmark = pytest.mark.django_db
LATER = NOW + timedelta(minutes=5)


def old(**keys: str) -> OrderGroup:
    return group(OrderAction.REPLACED, detail=False, **keys)


def new(**keys: str) -> OrderGroup:
    return group(OrderAction.REPLACEMENT, start=NOW + timedelta(days=1), **keys)


def by_placer() -> dict[str, str]:
    return {s.procedure.placer_order_number: s.status for s in ScheduledProcedureStep.objects.all()}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize(
    ("accession", "code"), [("A2", "CTHEAD"), ("A2", "CTCHEST"), ("A1", "CTHEAD"), ("A1", "CTCHEST")]
)
def test_the_old_order_goes_and_the_new_one_comes(order: tuple[int, int], accession: str, code: str):
    place(group(accession="A1", placer="P1"))
    groups = (old(placer="P1"), new(accession=accession, placer="P2", code=code))
    place(*(groups[at] for at in order), at=LATER)
    assert by_placer() == {"P1": "CANCELED", "P2": "SCHEDULED"}
    place(group(OrderAction.CANCEL, placer="P2", detail=False), at=LATER + timedelta(minutes=1))
    assert by_placer() == {"P1": "CANCELED", "P2": "CANCELED"}


def test_one_order_is_replaced_by_two():
    place(group(accession="A1", placer="P1"))
    place(old(placer="P1"), new(accession="A2", placer="P2"), new(accession="A3", placer="P3"), at=LATER)
    assert by_placer() == {"P1": "CANCELED", "P2": "SCHEDULED", "P3": "SCHEDULED"}


def test_the_same_replacement_again_changes_nothing():
    place(group(accession="A1", placer="P1"))
    for _ in range(2):
        place(old(placer="P1"), new(accession="A1", placer="P2"), at=LATER)
    assert by_placer() == {"P1": "CANCELED", "P2": "SCHEDULED"}
    assert (ImagingServiceRequest.objects.count(), RequestedProcedure.objects.count()) == (1, 2)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_replacement_that_keeps_the_study_and_the_procedure_is_scheduled_again(order: tuple[int, int]):
    place(group(accession="A1", placer="P1", rp="R1", uid="1.2.3", sps="S1"))
    groups = (old(placer="P1"), new(accession="A1", placer="P2", rp="R1", uid="1.2.3", sps="S1"))
    place(*(groups[at] for at in order), at=LATER)
    step = ScheduledProcedureStep.objects.get()
    assert (step.status, step.start) == ("SCHEDULED", NOW + timedelta(days=1))
    place(group(OrderAction.CANCEL, placer="P2", detail=False), at=LATER + timedelta(minutes=1))
    assert by_placer() == {"P2": "CANCELED"}


def test_what_has_begun_or_is_not_known_is_not_replaced():
    with pytest.raises(UnknownKey):
        place(old(placer="P1"), new(placer="P2"))
    assert not ScheduledProcedureStep.objects.exists()
    place(group(accession="A1", placer="P1"))
    ScheduledProcedureStep.objects.update(status="STARTED")
    with pytest.raises(NotAllowed):
        place(old(placer="P1"), new(accession="A2", placer="P2"), at=LATER)
    assert by_placer() == {"P1": "STARTED"}


def test_where_unknown_orders_are_ignored_the_replacement_still_comes():
    place(old(placer="P1"), new(accession="A2", placer="P2"), policy=OrderPolicy(unknown_order="ignore"))
    assert by_placer() == {"P2": "SCHEDULED"}
