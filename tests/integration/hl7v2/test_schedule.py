"""Appointments (SIU) against the schedule: a booking moves the order's step, a cancelled one gives its time back."""

from datetime import UTC, datetime

import pytest

from integration.inbox import Peer, receive
from integration.models import Message
from ris.models import Patient, ScheduledProcedureStep, Station
from ris.services import catalogue
from tests.integration.hl7v2.making import message, msh, orm, pid

pytestmark = pytest.mark.django_db(transaction=True)
PEER = Peer("127.0.0.1", 1)


def siu(event, *more, placer="PL1", start="202603051030+0000", patient=None, sent="20260301130000+0000"):
    sch = f"SCH|APT1|APT1||||||||||||||||||||||||{placer}"
    ais = f"AIS|1|A|CTHEAD^CT Head^L|{start}|||40|min"
    return message(msh(f"SIU^{event}^SIU_S12", sent=sent), sch, patient or pid(), "RGS|1", ais, *more)


@pytest.fixture
def step(any_source):
    assert receive(orm(accession="A1", start=""), PEER).code == "AA"
    return ScheduledProcedureStep.objects.get()


@pytest.mark.parametrize("event", ["S12", "S13", "S14"])
def test_a_booking_gives_the_step_its_time_length_and_room(step, event):
    Station.objects.create(name="CT 2", ae_title="CT02", modality="CT")
    catalogue.forget()
    assert receive(siu(event, "AIL|1|A|RAD^CT 2"), PEER).code == "AA"
    step.refresh_from_db()
    assert step.start == datetime(2026, 3, 5, 10, 30, tzinfo=UTC)
    assert (step.minutes, step.scheduled_station_names, step.scheduled_station_ae_titles) == (
        40,
        ["CT 2"],
        ["CT02"],
    )
    assert Message.objects.latest("id").request_ids == [step.procedure.request_id]


@pytest.mark.parametrize("event", ["S15", "S16", "S17", "S26"])
def test_an_appointment_that_falls_away_gives_the_time_back_and_keeps_the_order(step, event):
    assert receive(siu("S12"), PEER).code == "AA"
    assert receive(siu(event, sent="20260301140000+0000"), PEER).code == "AA"
    step.refresh_from_db()
    assert (step.start, step.status) == (None, "SCHEDULED")
    assert bool(step.comments) == (event == "S26")


@pytest.mark.parametrize("status", ["STARTED", "DEPARTED", "COMPLETED", "DISCONTINUED"])
@pytest.mark.parametrize("event", ["S15", "S26"])
def test_an_examination_that_has_begun_keeps_its_time(step, event, status):
    assert receive(siu("S12"), PEER).code == "AA"
    ScheduledProcedureStep.objects.update(status=status)
    assert receive(siu(event, sent="20260301140000+0000"), PEER).code == "AA"
    step.refresh_from_db()
    assert (step.start, step.status, step.comments) == (
        datetime(2026, 3, 5, 10, 30, tzinfo=UTC),
        status,
        "",
    )
    assert "keeps the time it had" in Message.objects.latest("id").warnings[0]


def test_an_older_appointment_does_not_move_a_newer_one(step):
    assert receive(siu("S13", start="202603061100+0000", sent="20260301150000+0000"), PEER).code == "AA"
    assert receive(siu("S12"), PEER).code == "AA"
    assert receive(siu("S15", sent="20260301140000+0000"), PEER).code == "AA"
    step.refresh_from_db()
    assert step.start == datetime(2026, 3, 6, 11, 0, tzinfo=UTC)


def test_an_appointment_for_no_order_here_changes_nothing_and_makes_nobody(step):
    raw = siu("S12", placer="OTHER", patient=pid("P9^^^HOSP"))
    assert receive(raw, PEER).code == "AA"
    row = Message.objects.latest("id")
    assert (row.state, len(row.warnings)) == ("kept", 1)
    assert Patient.objects.count() == 1


def test_an_appointment_that_names_the_order_of_another_patient_is_refused(step):
    assert receive(orm(placer="PL2", patient=pid("P2^^^HOSP")), PEER).code == "AA"
    assert receive(siu("S12", patient=pid("P2^^^HOSP")), PEER).code == "AE"
    step.refresh_from_db()
    assert step.start is None


def test_an_appointment_without_a_number_is_refused(any_source):
    raw = message(msh("SIU^S12"), "SCH|", pid(), "AIS|1|A||202603051030")
    reply = receive(raw, PEER)
    assert b"SCH^1^26" in reply.ack and reply.code == "AE"
