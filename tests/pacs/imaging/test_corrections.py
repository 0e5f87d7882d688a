"""Writing an overlay: columns follow, what was received is kept, and taking it back restores everything."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date

import pytest

from common import events
from common.clock import now
from common.store import unit_of_work
from pacs.events import StudyOverlaid
from pacs.models import Overlay, Study
from pacs.overlay import NotCorrectable, attributes_of, correct, received

pytestmark = pytest.mark.django_db


@pytest.fixture
def study() -> Study:
    return Study.objects.create(
        study_instance_uid="1.2.3",
        patient_name="Wrong^Name",
        patient_name_search="wrong^name",
        patient_id="P1",
        study_date=date(2026, 3, 1),
        attributes={"00081040": {"vr": "LO", "Value": ["Radiology"]}},
        received_at=now(),
        last_instance_at=now(),
    )


@pytest.fixture
def heard() -> Iterator[list[StudyOverlaid]]:
    told: list[StudyOverlaid] = []

    def hear(event: StudyOverlaid, unit: object) -> None:
        told.append(event)

    events.subscribe(StudyOverlaid, hear)
    yield told
    events._handlers[StudyOverlaid].remove(hear)


def corrected(study: Study, attributes: dict[str, object], cause: str = "user:1") -> bool:
    with unit_of_work(cause) as unit:
        return correct(study, attributes, unit)


def test_columns_show_the_correction_and_remember_what_was_received(
    study: Study, heard: list[StudyOverlaid]
) -> None:
    assert corrected(study, {"PatientName": "Müller^Anna=山田", "PatientID": "P2", "StudyDate": "20260302"})
    row = Study.objects.get()
    assert (row.patient_name, row.patient_id, row.study_date) == ("Müller^Anna=山田", "P2", date(2026, 3, 2))
    assert (row.patient_name_search, row.patient_name_ideographic_search) == ("muller^anna", "山田")
    assert row.as_received == {"patient_name": "Wrong^Name", "patient_id": "P1", "study_date": "20260301"}
    assert received(row, "PatientID") == "P1"
    assert [event.study.pk for event in heard] == [row.pk]


def test_what_equals_the_received_is_no_correction(study: Study, heard: list[StudyOverlaid]) -> None:
    assert not corrected(study, {"PatientID": "P1", "InstitutionalDepartmentName": "Radiology"})
    assert not Overlay.objects.exists()
    assert heard == []


def test_taking_it_back_restores_every_column(study: Study) -> None:
    before = Study.objects.values().get()
    corrected(study, {"PatientName": "Right^Name", "ReferringPhysicianName": "Arzt^Otto"})
    assert corrected(study, {}, "user:2")
    assert Study.objects.values().get() == before
    overlay = Overlay.objects.get()
    assert (overlay.attributes, overlay.version, overlay.cause) == ({}, 2, "user:2")


def test_a_second_correction_still_knows_the_first_original(study: Study) -> None:
    corrected(study, {"PatientID": "P2"})
    corrected(study, {"PatientID": "P3"})
    row = Study.objects.get()
    assert (row.patient_id, row.as_received) == ("P3", {"patient_id": "P1"})
    assert attributes_of(row) == {"PatientID": "P3"}


def test_two_corrections_in_one_unit_make_one_overlay(study: Study) -> None:
    with unit_of_work("user:1") as unit:
        correct(study, {"PatientID": "P2"}, unit)
        correct(study, {"PatientID": "P4", "AccessionNumber": "A1"}, unit)
    assert Overlay.objects.get().attributes == {"PatientID": "P4", "AccessionNumber": "A1"}
    assert Study.objects.get().accession_number == "A1"


def test_a_uid_is_never_corrected_and_nothing_is_changed(study: Study) -> None:
    with pytest.raises(NotCorrectable):
        corrected(study, {"PatientID": "P2", "StudyInstanceUID": "1.9"})
    assert Study.objects.get().patient_id == "P1"
