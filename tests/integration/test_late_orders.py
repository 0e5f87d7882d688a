"""An order that comes after its images takes them, by itself, before long."""

from typing import Any

import pytest

from common.store import unit_of_work
from integration import sweeper
from pacs.models import Study
from ris.models import ReconciliationCase, StudyMatch
from ris.reconciliation import cases
from tests.ris.making import group, make_study, place

pytestmark = pytest.mark.django_db(transaction=True)


def waiting(**said: Any) -> Study:
    """A study that settled before its order came."""
    study = make_study(**said)
    with unit_of_work(f"study:{study.id}") as unit:
        cases.reconcile(study, unit)
    assert ReconciliationCase.objects.get(study=study).state == "OPEN"
    return study


def test_the_sweeper_compares_waiting_studies_with_orders_that_came_since(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sweeper, "_AGES_SECONDS", 0.0)
    by_number, by_uid = waiting(accession="A1"), waiting(uid="1.2.4")
    sweep = sweeper.Sweeper()
    sweep.sweep()
    assert not StudyMatch.objects.exists()
    place(group(accession="A1", uid="1.2.3"))
    sweep.sweep()
    assert StudyMatch.objects.get().study == by_number
    place(group(accession="A2", rp="R2", uid="1.2.4", placer="P2"))
    sweep.sweep()
    assert set(StudyMatch.objects.values_list("study", flat=True)) == {by_number.pk, by_uid.pk}
    assert not ReconciliationCase.objects.filter(state="OPEN").exists()


def test_one_that_cannot_be_compared_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper, "_AGES_SECONDS", 0.0)
    bad, good = waiting(accession="A1"), waiting(accession="A1", uid="1.2.3")
    place(group(accession="A1", uid="1.2.3"))
    recheck = cases.recheck

    def fail(study: Any, unit: Any) -> Any:
        if study == bad.pk:
            raise RuntimeError("for the test")
        return recheck(study, unit)

    monkeypatch.setattr(cases, "recheck", fail)
    sweeper.Sweeper().sweep()
    assert StudyMatch.objects.get().study == good
