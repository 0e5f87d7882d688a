"""A unit of work writes everything it collected in one round trip, or nothing."""

from datetime import UTC, datetime

import pytest
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext

from common import events, wire
from common.models import Alert
from common.store import Unit, hydrate, unit_of_work
from common.uids import uuid7
from integration.models import Message
from ris.models import AssigningAuthority, Patient, PatientIdentifier

AT = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)


def patient(name: str = "Sommer^Clara") -> Patient:
    return Patient(
        patient_name=name, created_at=AT, updated_at=AT, cause="hl7:1", details={"allergies": ["ä", '"']}
    )


@pytest.mark.django_db
def test_rows_of_many_models_go_in_one_round_trip_whatever_their_order(monkeypatch):
    run: list[int] = []
    really = wire._send
    monkeypatch.setattr(
        wire, "_send", lambda answers, *rest: (run.append(len(answers)), really(answers, *rest))[1]
    )
    authority = AssigningAuthority(namespace="HOSP")
    someone = patient()
    number = PatientIdentifier(patient=someone, value="4711", authority=authority)
    with CaptureQueriesContext(connection) as queries, unit_of_work("hl7:1") as unit:
        for row in (number, someone, authority):
            unit.save(row)
    assert run == [3] and not [q for q in queries if "INSERT" in q["sql"]]
    assert PatientIdentifier.objects.get().patient.details == {"allergies": ["ä", '"']}


@pytest.mark.django_db
def test_bytes_arrays_and_own_keys_survive():
    raw = bytes(range(256))
    with unit_of_work("hl7:1") as unit:
        for number in (1, 2):
            unit.save(
                Message(
                    received_at=AT,
                    peer="127.0.0.1",
                    raw=raw,
                    state="applied",
                    lanes=["a", 'b"{}', ""],
                    control_id=str(number),
                )
            )
    first, second = Message.objects.order_by("id")
    assert bytes(first.raw) == raw
    assert first.lanes == ["a", 'b"{}', ""]
    assert (first.control_id, second.control_id) == ("1", "2")


@pytest.mark.django_db(transaction=True)
def test_units_of_one_transaction_are_written_together():
    rung: list[str] = []

    def bell() -> None:
        rung.append("once")

    with transaction.atomic():
        first, second = Unit("hl7:1"), Unit("hl7:2")
        for unit, name in ((first, "Sommer^Clara"), (second, "Winter^Clara")):
            unit.save(patient(name))
            unit.ring(bell)
        first.join(second)
        second.flush()
        assert not Patient.objects.exists()
        first.commit()
    assert (Patient.objects.count(), rung) == (2, ["once"])


@pytest.mark.django_db
def test_a_saved_row_again_replaces_what_was_there():
    someone = patient()
    with unit_of_work("hl7:1") as unit:
        unit.save(someone)
    again = Patient.objects.get()
    again.patient_name = "Winter^Clara"
    with unit_of_work("hl7:2") as unit:
        unit.save(again)
        unit.save(again)
    assert Patient.objects.get().patient_name == "Winter^Clara"


@pytest.mark.django_db(transaction=True)
def test_a_failure_takes_fact_news_and_doorbell_with_it(monkeypatch):
    rung: list[str] = []

    class Fact:
        pass

    def hear(event, unit):
        unit.save(Alert(key="heard", summary="heard", started_at=AT))

    monkeypatch.setitem(events._handlers, Fact, [hear])
    with pytest.raises(RuntimeError), unit_of_work("hl7:1") as unit:
        unit.publish(Fact())
        unit.ring(lambda: rung.append("late"))
        unit.flush()
        assert Alert.objects.count() == 1
        raise RuntimeError("after the flush")
    assert (Alert.objects.count(), rung) == (0, [])
    with unit_of_work("hl7:1") as unit:
        unit.publish(Fact())
        unit.ring(lambda: rung.append("in time"))
    assert (Alert.objects.count(), rung) == (1, ["in time"])


@pytest.mark.django_db(transaction=True)
def test_a_doorbell_that_fails_is_not_answered_to_anyone():
    def broken() -> None:
        raise RuntimeError("no worker")

    with unit_of_work("hl7:1") as unit:
        unit.save(patient())
        unit.ring(broken)
    assert Patient.objects.count() == 1


@pytest.mark.django_db
def test_a_broken_key_is_refused_by_the_database():
    authority = AssigningAuthority(namespace="HOSP")
    with pytest.raises(IntegrityError), transaction.atomic(), unit_of_work("hl7:1") as unit:
        unit.save(authority)
        unit.save(AssigningAuthority(namespace="HOSP"))


@pytest.mark.django_db(transaction=True)
def test_commit_writes_commits_and_rings_in_one_go():
    rung: list[int] = []
    with transaction.atomic():
        unit = Unit("hl7:1")
        unit.save(patient())
        unit.ring(lambda: rung.append(Patient.objects.count()))
        unit.commit()
        assert not rung
    assert rung == [1]
    assert not connection.in_atomic_block and connection.get_autocommit()
    with connection.cursor() as cursor:  # the connection is as good as new
        cursor.execute("SELECT count(*) FROM ris_patient")
        assert cursor.fetchone() == (1,)


@pytest.mark.django_db(transaction=True)
def test_what_fails_in_the_statement_or_at_commit_is_raised_and_nothing_is_kept():
    for broken in (
        [AssigningAuthority(namespace="HOSP"), AssigningAuthority(namespace="HOSP")],  # unique: at once
        [
            PatientIdentifier(patient_id=uuid7(), value="4711", authority_id=uuid7())
        ],  # foreign keys: at COMMIT
    ):
        with pytest.raises(IntegrityError), transaction.atomic():
            unit = Unit("hl7:1")
            for row in (patient(), *broken):
                unit.save(row)
            unit.commit()
        assert Patient.objects.count() == 0
        assert not connection.in_atomic_block and connection.get_autocommit()


@pytest.mark.django_db(transaction=True)
def test_within_another_transaction_commit_only_writes():
    with pytest.raises(RuntimeError), transaction.atomic():
        with transaction.atomic():
            unit = Unit("hl7:1")
            unit.save(patient())
            unit.commit()
        assert Patient.objects.count() == 1
        raise RuntimeError("the outer one fails")
    assert Patient.objects.count() == 0


@pytest.mark.django_db
def test_a_row_read_as_json_is_the_row():
    with unit_of_work("hl7:1") as unit:
        unit.save(patient())
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_jsonb(p)::text FROM ris_patient p")
        import json

        row = hydrate(Patient, json.loads(cursor.fetchone()[0]))
    stored = Patient.objects.get()
    assert row == stored
    for field in Patient._meta.concrete_fields:
        assert getattr(row, field.attname) == getattr(stored, field.attname), field.name
    assert row.changes() == {}
    row.patient_name = "Winter^Clara"
    assert row.changes() == {"patient_name": ("Sommer^Clara", "Winter^Clara")}
