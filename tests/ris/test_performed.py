"""Performed steps a person must look at: their problems, their images, and moving them to the right order."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from common import metrics
from common.clock import now
from common.models import Alert, Site
from common.store import unit_of_work
from integration import sweeper
from integration.models import Destination, OutboxItem
from pacs.events import StudySettled
from pacs.models import Instance, Series, Study
from ris import selectors
from ris.commands import Identifier, OrderKeys, PerformedFacts
from ris.errors import BadValue, Missing, NotAllowed, UnknownKey
from ris.models import (
    ImagingServiceRequest,
    PerformedProcedureStep,
    ScheduledProcedureStep,
    StudyMatch,
)
from ris.services import images, performed, steps
from tests.ris.making import NOW, group, place, register, who

pytestmark = pytest.mark.django_db

RIGHT, WRONG = "1.2.3.1", "1.2.3.2"


@pytest.fixture
def orders() -> None:
    """Two patients with a CT each: Clara's order RIGHT, Ruth's order WRONG."""
    for number, name, uid, accession, sps in (
        ("4711", "Sommer^Clara", RIGHT, "A1", "S1"),
        ("4714", "Keller^Ruth", WRONG, "A2", "S2"),
    ):
        register(who(number, name=name))
        place(
            group(accession=accession, uid=uid, sps=sps),
            patient=who(number, name=name, authoritative=False),
        )


def report(
    status: str = "IN PROGRESS",
    *,
    create: bool = True,
    study: str = WRONG,
    sps: str = "S2",
    number: str = "4714",
    name: str = "KELLER^RUTH",
    uid: str = "1.9.1",
    series: list[dict[str, Any]] | None = None,
    **values: Any,
) -> PerformedProcedureStep:
    """What a scanner says: by default that it examined Ruth."""
    facts = PerformedFacts(
        sop_instance_uid=uid,
        status=status,
        steps=(OrderKeys(study_instance_uid=study, scheduled_procedure_step_id=sps),) if create else (),
        patient_identifiers=(Identifier(number, "HOSP"),),
        patient_name=name,
        values={
            "study_instance_uids": [study],
            "modality": "CT",
            **({"series": series} if series is not None else {}),
            **values,
        },
    )
    with unit_of_work(f"mpps:{uid}") as unit:
        return steps.perform(facts, unit, create=create)


def made(*uids: str, series: str = "1.7.1") -> list[dict[str, Any]]:
    return [{"series_instance_uid": series, "protocol_name": "Head", "sop_instance_uids": list(uids)}]


def arrive(
    study_uid: str, *uids: str, series: str = "1.7.1", number: str = "4714", name: str = "KELLER^RUTH"
) -> Study:
    """These images come, and the study settles."""
    study, _ = Study.objects.get_or_create(
        study_instance_uid=study_uid,
        defaults={
            "patient_id": number,
            "issuer_of_patient_id": "HOSP",
            "patient_name": name,
            "patient_birth_date": "19600512",
            "modalities_in_study": ["CT"],
            "received_at": NOW,
            "last_instance_at": NOW,
            "calling_ae": "CT01",
        },
    )
    row, _ = Series.objects.get_or_create(
        study=study, series_instance_uid=series, defaults={"modality": "CT", "received_at": NOW}
    )
    for uid in uids:
        Instance.objects.create(
            series=row,
            sop_instance_uid=uid,
            sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            path=uid,
            size=1,
            data_set_offset=0,
            sha256="0" * 64,
            received_at=NOW,
        )
    with unit_of_work(f"study:{study.pk}") as unit:
        unit.publish(StudySettled(study=study, grown=False))
    return study


def row(uid: str = "1.9.1") -> PerformedProcedureStep:
    return PerformedProcedureStep.objects.get(sop_instance_uid=uid)


def status(sps: str) -> str:
    return ScheduledProcedureStep.objects.get(scheduled_procedure_step_id=sps).status


def linked(study: Study) -> str:
    """The accession number of the order that a study is linked to."""
    match = StudyMatch.objects.filter(study=study, undone_at__isnull=True).first()
    return match.procedure.request.accession_number if match else ""


def waiting(name: str) -> int:
    return sum(w.count for q in metrics.queues() if q.name == name for w in q.states())


def assign(sps: str = "S1") -> PerformedProcedureStep:
    step = ScheduledProcedureStep.objects.get(scheduled_procedure_step_id=sps)
    with unit_of_work("user:7") as unit:
        return performed.assign(row().pk, [step.pk], None, unit)


def undo() -> None:
    with unit_of_work("user:7") as unit:
        performed.undo(row().pk, None, unit)


# -- images


def test_a_study_is_short_until_every_image_that_the_scanner_made_has_come(orders: None) -> None:
    report()
    assert row().images_expected is None  # it goes on
    arrive(WRONG, "1.8.1", "1.8.2")
    report("COMPLETED", create=False, series=made("1.8.1", "1.8.2", "1.8.3"))
    assert (row().images_expected, row().images_missing, row().is_short) == (3, 1, True)
    assert waiting("short_of_images") == 1
    assert [(s.name, s.expected, s.held) for s in images.by_series(row())] == [("Head", 3, 2)]
    arrive(WRONG, "1.8.3")
    assert (row().images_expected, row().images_missing, row().is_short) == (3, 0, False)
    assert waiting("short_of_images") == 0


def test_a_series_that_names_no_instance_is_there_with_its_first(orders: None) -> None:
    report()
    report("COMPLETED", create=False, series=[*made("1.8.1"), *made(series="1.7.2")])
    assert (row().images_expected, row().images_missing) == (2, 2)
    arrive(WRONG, "1.8.1")
    arrive(WRONG, "1.8.77", series="1.7.2")
    assert row().images_missing == 0


def test_still_short_after_the_site_s_time_raises_an_alert_that_recovers(orders: None) -> None:
    Site.objects.update_or_create(
        pk=1, defaults={"settings": {"alert_after_minutes": {"short_of_images": 10}}}
    )
    report()
    report("COMPLETED", create=False, series=made("1.8.1"))
    key = "age:short_of_images:examinations"
    sweeper.check_ages()
    assert not Alert.objects.filter(key=key).exists()
    PerformedProcedureStep.objects.update(images_since=now() - timedelta(minutes=11))
    sweeper.check_ages()
    assert Alert.objects.filter(key=key, recovered_at=None).count() == 1
    arrive(WRONG, "1.8.1")
    sweeper.check_ages()
    assert not Alert.objects.filter(key=key, recovered_at=None).exists()


def test_a_person_may_say_that_no_more_will_come(orders: None) -> None:
    report()
    with pytest.raises(NotAllowed), unit_of_work("user:7") as unit:
        images.accept(row().pk, unit)
    report("DISCONTINUED", create=False, series=made("1.8.1"))
    with unit_of_work("user:7") as unit:
        images.accept(row().pk, unit)
    assert waiting("short_of_images") == 0 and row().images_accepted == "user:7"


def test_images_of_which_no_news_came_are_found_by_counting_again(orders: None) -> None:
    report()
    report("COMPLETED", create=False, series=made("1.8.1"))
    arrive(WRONG, "1.8.1")
    PerformedProcedureStep.objects.update(images_missing=1)
    assert images.count_again() == 1
    assert row().images_missing == 0 and images.count_again() == 0


def test_hidden_images_are_not_there(orders: None) -> None:
    report()
    arrive(WRONG, "1.8.1")
    Instance.objects.update(hidden=True)
    report("COMPLETED", create=False, series=made("1.8.1"))
    assert row().images_missing == 1


# -- problems


@pytest.mark.parametrize(
    ("said", "trouble"),
    [
        ({"study": "1.2.404", "sps": "S9"}, "unknown"),
        ({"study": "1.2.404", "sps": ""}, "unscheduled"),
        ({"number": "9999"}, "patient"),
        ({"name": "SOMMER^CLARA"}, "patient"),
    ],
)
def test_what_contradicts_the_order_stands_on_the_list(
    orders: None, said: dict[str, str], trouble: str
) -> None:
    report(**said)  # type: ignore[arg-type]
    assert row().trouble == trouble and row().needs_a_person
    assert waiting("performed") == 1
    assert status("S2") == "SCHEDULED"
    PerformedProcedureStep.objects.update(updated_at=now() - timedelta(minutes=2))
    sweeper.check_ages()
    assert Alert.objects.filter(key="age:performed:steps", recovered_at=None).count() == 1
    with pytest.raises(Missing), unit_of_work("user:7") as unit:
        performed.solve(row().pk, " ", unit)
    with unit_of_work("user:7") as unit:
        performed.solve(row().pk, "Two numbers of one patient", unit)
    sweeper.check_ages()
    assert not Alert.objects.filter(key="age:performed:steps", recovered_at=None).exists()
    with pytest.raises(NotAllowed), unit_of_work("user:7") as unit:
        performed.solve(row().pk, "again", unit)
    with unit_of_work("user:7") as unit:
        performed.reopen(row().pk, unit)
    assert waiting("performed") == 1


@pytest.mark.parametrize("state", ["CANCELED", "DISCONTINUED"])
def test_a_step_that_had_ended_is_not_revived_and_a_clerk_hears_of_it(orders: None, state: str) -> None:
    ScheduledProcedureStep.objects.filter(scheduled_procedure_step_id="S2").update(status=state)
    report()
    assert (row().trouble, status("S2")) == ("state", state)
    assert row().steps.count() == 1


def test_a_report_that_went_well_is_on_no_list(orders: None) -> None:
    report()
    report("COMPLETED", create=False)
    assert not row().needs_a_person and waiting("performed") == 0


def test_news_of_a_new_problem_puts_a_solved_one_back(orders: None) -> None:
    report(number="9999")
    with unit_of_work("user:7") as unit:
        performed.solve(row().pk, "It is her other number", unit)
    facts = PerformedFacts("1.9.1", "COMPLETED", problems=("Ended without any performed series.",))
    with unit_of_work("mpps:1.9.1") as unit:
        steps.perform(facts, unit, create=False)
    assert row().needs_a_person and "series" in row().problem


# -- the wrong worklist entry


def test_a_wrong_pick_is_moved_with_its_images_and_undone(orders: None) -> None:
    """Clara lay on the table, but Ruth's entry was picked: everything says Ruth."""
    his = Destination.objects.create(name="his", host="127.0.0.1", port=9, messages=["ORM"])
    report()
    study = arrive(WRONG, "1.8.1")
    report("COMPLETED", create=False, series=made("1.8.1"))
    assert linked(study) == "A2" and status("S2") == "COMPLETED"
    told = OutboxItem.objects.filter(destination=his).count()

    assign("S1")
    assert (status("S1"), status("S2")) == ("COMPLETED", "SCHEDULED")
    assert linked(study) == "A1"
    study.refresh_from_db()
    assert (study.patient_id, study.patient_name) == ("4711", "Sommer^Clara")
    assert row().patient_id == ImagingServiceRequest.objects.get(accession_number="A1").patient_id
    assert row().solved_cause == "user:7"
    assert ImagingServiceRequest.objects.get(accession_number="A2").status == "ACTIVE"
    assert OutboxItem.objects.filter(destination=his).count() > told  # the HIS hears of both orders
    own = ScheduledProcedureStep.objects.filter(scheduled_procedure_step_id="S1")
    assert selectors.performed_for(list(own)) == [row()]

    undo()
    assert (status("S1"), status("S2")) == ("SCHEDULED", "COMPLETED")
    assert linked(study) == "A2"
    study.refresh_from_db()
    assert (study.patient_id, study.patient_name.upper()) == ("4714", "KELLER^RUTH")
    assert row().correction == {} and row().solved_at is None
    with pytest.raises(NotAllowed):
        undo()


def test_a_scan_that_goes_on_is_followed_by_the_right_step(orders: None) -> None:
    report()
    assign("S1")
    assert (status("S1"), status("S2")) == ("STARTED", "SCHEDULED")
    report("COMPLETED", create=False, series=made("1.8.1"))
    assert (status("S1"), status("S2")) == ("COMPLETED", "SCHEDULED")


def test_images_that_come_after_the_correction_go_to_the_right_order(orders: None) -> None:
    report()
    report("COMPLETED", create=False, series=made("1.8.1"))
    assign("S1")
    study = arrive(WRONG, "1.8.1")
    assert linked(study) == "A1"
    undo()
    assert linked(study) == "A2"


def test_an_unscheduled_scan_finds_its_order_by_a_person(orders: None) -> None:
    report(study="1.2.404", sps="", number="4711", name="SOMMER^CLARA")
    study = arrive("1.2.404", "1.8.1", number="999", name="DOE^JOHN")
    assert linked(study) == ""
    assign("S1")
    assert (status("S1"), linked(study), row().needs_a_person) == ("STARTED", "A1", False)
    undo()
    assert (status("S1"), linked(study), row().needs_a_person) == ("SCHEDULED", "", True)


def test_moved_twice_and_undone_once_it_is_where_the_scanner_had_put_it(orders: None) -> None:
    register(who("4713", name="Ito^Hana"))
    place(
        group(accession="A3", uid="1.2.3.3", sps="S3"),
        patient=who("4713", name="Ito^Hana", authoritative=False),
    )
    report()
    study = arrive(WRONG, "1.8.1")
    assign("S1")
    assign("S3")
    assert [status(s) for s in ("S1", "S2", "S3")] == ["SCHEDULED", "SCHEDULED", "STARTED"]
    assert linked(study) == "A3"
    undo()
    assert [status(s) for s in ("S1", "S2", "S3")] == ["SCHEDULED", "STARTED", "SCHEDULED"]
    assert linked(study) == "A2"


def test_what_somebody_did_since_stays_when_a_correction_is_undone(orders: None) -> None:
    report()
    assign("S1")
    step = ScheduledProcedureStep.objects.get(scheduled_procedure_step_id="S2")
    with unit_of_work("user:8") as unit:
        steps.move(step.pk, "CANCELED", "clerk", unit)
    undo()
    assert (status("S1"), status("S2")) == ("SCHEDULED", "CANCELED")


def test_a_step_that_another_scan_has_performed_too_stays_done(orders: None) -> None:
    report()
    report("COMPLETED", create=False)
    report(uid="1.9.2")
    report("COMPLETED", create=False, uid="1.9.2")
    assign("S1")
    assert (status("S1"), status("S2")) == ("COMPLETED", "COMPLETED")


def test_a_study_that_another_scan_shares_stays_where_it_is(orders: None) -> None:
    report()
    study = arrive(WRONG, "1.8.1")
    arrive(WRONG, "1.8.2", series="1.7.2")
    report("COMPLETED", create=False, series=made("1.8.1"))
    report(uid="1.9.2")
    report("COMPLETED", create=False, uid="1.9.2", series=made("1.8.2", series="1.7.2"))
    assign("S1")
    assert linked(study) == "A2"


def test_what_makes_no_sense_is_refused(orders: None) -> None:
    report()
    first = ScheduledProcedureStep.objects.get(scheduled_procedure_step_id="S1")
    second = ScheduledProcedureStep.objects.get(scheduled_procedure_step_id="S2")
    with pytest.raises(NotAllowed):
        assign("S2")
    with pytest.raises(UnknownKey), unit_of_work("user:7") as unit:
        performed.assign(row().pk, [UUID(int=1)], None, unit)
    with pytest.raises(BadValue), unit_of_work("user:7") as unit:
        performed.assign(row().pk, [first.pk, second.pk], None, unit)
    with pytest.raises(UnknownKey), unit_of_work("user:7") as unit:
        performed.assign(UUID(int=1), [first.pk], None, unit)
