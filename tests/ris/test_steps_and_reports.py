"""Performed steps move scheduled ones; signed reports are versions that never change."""

import pytest
from django.contrib.auth.models import User
from django.db import DatabaseError, transaction

from common import events
from common.store import unit_of_work
from ris.commands import Identifier, OrderKeys, PerformedFacts
from ris.errors import DuplicateKey, Missing, NotAllowed, Stale, UnknownKey
from ris.events import ReportSigned, StepMoved
from ris.models import (
    PerformedProcedureStep,
    Report,
    ReportVersion,
    RequestedProcedure,
    ScheduledProcedureStep,
)
from ris.services import reports, schedule, steps
from tests.ris.making import NOW, group, place

pytestmark = pytest.mark.django_db


def heard(monkeypatch, event_type):
    """Everything of this type that is published from now on."""
    news: list = []
    monkeypatch.setitem(events._handlers, event_type, [lambda event, unit: news.append(event)])
    return news


def perform(status="IN PROGRESS", *, create=True, uid="1.9.1", sps="S1", number="4711", values=None):
    facts = PerformedFacts(
        sop_instance_uid=uid,
        status=status,
        steps=(
            OrderKeys(study_instance_uid="1.2.3", accession_number="A1", scheduled_procedure_step_id=sps),
        ),
        patient_identifiers=(Identifier(number, "HOSP"),),
        patient_name="SOMMER^CLARA",
        values=values or {},
    )
    with unit_of_work(f"mpps:{uid}") as unit:
        return steps.perform(facts, unit, create=create)


def test_mpps_starts_and_completes_its_step_and_says_so(monkeypatch):
    place(group(accession="A1", uid="1.2.3", sps="S1"))
    moved = heard(monkeypatch, StepMoved)
    perform()
    assert ScheduledProcedureStep.objects.get().status == "STARTED"
    perform("COMPLETED", create=False, values={"ended_at": NOW})
    assert ScheduledProcedureStep.objects.get().status == "COMPLETED"
    assert [(m.before, m.actor) for m in moved] == [("SCHEDULED", "scanner"), ("STARTED", "scanner")]
    assert PerformedProcedureStep.objects.get().ended_at == NOW


def test_mpps_twice_unknown_or_after_the_end_is_refused():
    place(group(accession="A1", uid="1.2.3", sps="S1"))
    perform()
    with pytest.raises(DuplicateKey):
        perform()
    with pytest.raises(UnknownKey):
        perform("COMPLETED", create=False, uid="1.9.404")
    perform("COMPLETED", create=False)
    with pytest.raises(NotAllowed):
        perform("COMPLETED", create=False)


def test_mpps_of_another_patient_is_kept_with_its_problem_and_moves_nothing():
    place(group(accession="A1", uid="1.2.3", sps="S1"))
    row = perform(number="9999")
    assert "identifier" in row.problem
    assert ScheduledProcedureStep.objects.get().status == "SCHEDULED"


def test_mpps_without_a_known_step_is_kept_with_its_problem():
    assert "not known" in perform().problem


def test_discontinued_for_a_wrong_entry_puts_the_step_back():
    place(group(accession="A1", uid="1.2.3", sps="S1"))
    perform()
    perform("DISCONTINUED", create=False, values={"discontinuation_reason": {"code_value": "110514"}})
    assert ScheduledProcedureStep.objects.get().status == "SCHEDULED"
    assert "wrong worklist entry" in PerformedProcedureStep.objects.get().problem


def test_the_table_forbids_a_scanner_to_revive_a_canceled_step():
    place(group(accession="A1", uid="1.2.3", sps="S1"))
    ScheduledProcedureStep.objects.update(status="CANCELED")
    with pytest.raises(NotAllowed), unit_of_work("mpps:1") as unit:
        steps.move(ScheduledProcedureStep.objects.get().id, "STARTED", "scanner", unit)
    perform()
    assert ScheduledProcedureStep.objects.get().status == "CANCELED"


def test_a_clerk_schedules_a_waiting_step():
    place(group(accession="A1", start=None))
    with unit_of_work("user:1") as unit:
        schedule.place(ScheduledProcedureStep.objects.get().id, NOW, unit, minutes=45)
    step = ScheduledProcedureStep.objects.get()
    assert (step.start, step.minutes, step.cause) == (NOW, 45, "user:1")


@pytest.fixture
def radiologist():
    return User.objects.create_user("reader", first_name="Ada", last_name="Stone")


@pytest.fixture
def report(radiologist):
    place(group(accession="A1", uid="1.2.3"))
    with unit_of_work("user:1") as unit:
        return reports.open_draft(RequestedProcedure.objects.get().id, radiologist, unit)


def save(report, version, text, user):
    with unit_of_work("user:1") as unit:
        return reports.save_draft(report.id, version, text, "Normal.", user, unit)


def test_a_stale_save_is_refused(report, radiologist):
    save(report, 0, "first", radiologist)
    with pytest.raises(Stale):
        save(report, 0, "second", radiologist)
    assert Report.objects.get().findings == "first"


def test_signing_makes_a_version_and_tells_everything(report, radiologist, monkeypatch):
    news = heard(monkeypatch, ReportSigned)
    save(report, 0, "Clear lungs.", radiologist)
    with unit_of_work("user:1") as unit:
        version = reports.sign(report.id, radiologist, unit)
    assert (version.number, version.status, version.signer_name) == (1, "FINAL", "Stone^Ada")
    assert ReportVersion.objects.get().sha256 == reports.digest(ReportVersion.objects.get())
    (event,) = news
    assert (event.request.accession_number, event.identifiers[0].value) == ("A1", "4711")
    with pytest.raises(NotAllowed):
        save(report, 1, "changed", radiologist)


def test_an_addendum_is_a_new_version_and_the_old_one_stays(report, radiologist):
    save(report, 0, "Clear lungs.", radiologist)
    with unit_of_work("user:1") as unit:
        reports.sign(report.id, radiologist, unit)
    with unit_of_work("user:1") as unit:
        reports.addend(report.id, "Small nodule.", radiologist, unit)
    first, second = ReportVersion.objects.order_by("number")
    assert (first.status, first.addendum) == ("FINAL", "")
    assert (second.status, second.addendum, second.findings) == ("ADDENDED", "Small nodule.", "Clear lungs.")


def test_an_empty_report_is_not_signed(report, radiologist):
    with pytest.raises(Missing), unit_of_work("user:1") as unit:
        reports.sign(report.id, radiologist, unit)


def test_the_database_itself_refuses_to_change_a_signed_version(report, radiologist):
    save(report, 0, "Clear lungs.", radiologist)
    with unit_of_work("user:1") as unit:
        reports.sign(report.id, radiologist, unit)
    with pytest.raises(DatabaseError), transaction.atomic():
        ReportVersion.objects.update(findings="forged")
    with pytest.raises(DatabaseError), transaction.atomic():
        ReportVersion.objects.all().delete()
