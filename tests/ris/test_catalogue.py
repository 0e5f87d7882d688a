"""The procedure catalogue and the stations as a process remembers them: what was added just now is found."""

from __future__ import annotations

import pytest

from ris.models import ProcedureDefinition, Station
from ris.services import catalogue

pytestmark = pytest.mark.django_db


def test_a_procedure_that_was_added_just_now_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert catalogue.definition("NEW") is None
    ProcedureDefinition.objects.create(code="NEW", name="New", modality="CT")
    monkeypatch.setattr(catalogue, "_RETRY_S", 0.0)
    found = catalogue.definition("NEW")
    assert found is not None and found.modality == "CT"


def test_a_station_that_was_added_just_now_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert catalogue.stations_for((), "", "CT") == []
    Station.objects.create(name="CT 1", ae_title="CT1", modality="CT")
    monkeypatch.setattr(catalogue, "_RETRY_S", 0.0)
    assert [s.ae_title for s in catalogue.stations_for((), "", "CT")] == ["CT1"]
    assert [s.ae_title for s in catalogue.stations_for(("CT 1",), "", "")] == ["CT1"]


def test_a_code_that_nobody_knows_does_not_ask_the_database_each_time(
    django_assert_num_queries: object,
) -> None:
    catalogue.definition("NOBODY")
    with django_assert_num_queries(0):  # type: ignore[operator]
        for _ in range(5):
            assert catalogue.definition("NOBODY") is None
