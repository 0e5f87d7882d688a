"""Old messages go batch by batch; what is open or held stays, and identities outlive what they name."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from common.clock import now
from common.models import AuditEvent
from integration import inbox, retention, search
from integration.models import (
    Destination,
    Message,
    MessageDeed,
    MessageIdentity,
    MessageText,
    OutboxItem,
    Source,
)
from ris.models import Patient, PatientIdentifier
from tests.integration.hl7v2.making import adt, merge, message, msh, orm, pid

pytestmark = pytest.mark.django_db

Send = Callable[[bytes], Message]


def old(*rows: Message) -> None:
    Message.objects.filter(pk__in=[r.pk for r in rows]).update(received_at=now() - timedelta(days=40))


def test_nothing_goes_until_somebody_says_how_long(send: Send):
    old(send(adt("A04")))
    assert retention.prune() == (0, 0)
    with pytest.raises(retention.NotAllowed):
        retention.keep_for(3, 0)


def test_old_settled_messages_go_with_their_words_and_their_identity_stays(send: Send):
    raw = adt("A04", "OLD1")
    gone, young = send(raw), send(adt("A04", "NEW1"))
    search.index_new()
    old(gone)
    retention.keep_for(30, 0)
    assert retention.prune() == (1, 0)
    assert list(Message.objects.values_list("pk", flat=True)) == [young.pk]
    assert not MessageText.objects.filter(message_id=gone.pk).exists()
    assert MessageIdentity.objects.filter(control_id="OLD1", accepted=True).exists()
    again = inbox.receive(raw, inbox.Peer("127.0.0.1", 1))
    assert again.duplicate and b"MSA|AA|OLD1" in again.ack
    assert Patient.objects.exists()
    assert AuditEvent.objects.get(action="prune").detail == {"messages": 1, "deliveries": 0}


def test_an_open_message_stays_however_old_it_is(send: Send):
    refused = send(orm(placer="NOBODY", control="CA"))
    old(refused)
    retention.keep_for(30, 0)
    assert refused.state == "refused" and retention.prune() == (0, 0)


def test_batches_end_when_nothing_is_due(send: Send, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retention, "BATCH", 2)
    old(*[send(adt("A04")) for _ in range(5)])
    retention.keep_for(30, 0)
    assert retention.prune(seconds=20) == (5, 0)


def test_a_hold_on_a_patient_keeps_what_touched_and_what_only_names_the_patient(send: Send):
    mine = send(adt("A04", identifier="P1^^^HOSP^MR"))
    kept = send(message(msh("ZZZ^Z01"), pid("P1^^^HOSP^MR")))
    other = send(adt("A04", identifier="P2^^^HOSP^MR"))
    search.index_new()
    old(mine, kept, other)
    retention.keep_for(30, 0)
    hold = retention.place_hold("patient", "P1", "a claim", "user:1")
    assert retention.prune() == (1, 0)
    assert set(Message.objects.values_list("pk", flat=True)) == {mine.pk, kept.pk}
    retention.lift_hold(hold.pk, "user:1")
    assert retention.prune() == (2, 0)


def test_holds_on_an_accession_a_source_and_everything(send: Send, his: Source):
    order, other = send(orm(placer="PL1", accession="A1")), send(orm(placer="PL2", accession="A2"))
    old(order, other)
    retention.keep_for(30, 0)
    for about, value in (("source", "HIS"), ("all", "")):
        hold = retention.place_hold(about, value, "a claim", "user:1")
        assert retention.prune() == (0, 0)
        retention.lift_hold(hold.pk, "user:1")
    retention.place_hold("accession", "A1", "a claim", "user:1")
    assert retention.prune() == (1, 0)
    assert Message.objects.get().pk == order.pk


@pytest.mark.parametrize(("about", "value"), [("patient", "P1"), ("patient", "P0"), ("accession", "A1")])
def test_a_hold_keeps_what_was_sent_about_the_patient_also_before_a_merge(send: Send, about: str, value: str):
    destination = Destination.objects.create(name="gp", host="127.0.0.1", port=9)
    for number in (0, 1, 2):
        send(orm(placer=f"PL{number}", accession=f"A{number}", patient=pid(f"P{number}^^^HOSP^MR")))
    for row in Patient.objects.all():
        then = now() - timedelta(days=40)
        OutboxItem.objects.create(
            destination=destination, lane="x", kind="ORU", subject="x", patient_id=row.pk, state="delivered",
            due_at=then, created_at=then, cause="system:test",
        )  # fmt: skip
    send(merge("P1^^^HOSP^MR", "P0^^^HOSP^MR"))
    retention.keep_for(0, 30)
    retention.place_hold(about, value, "a claim", "user:1")
    assert retention.prune() == (0, 1)
    kept = PatientIdentifier.objects.filter(value__in=["P0", "P1"]).values_list("patient_id", flat=True)
    merged = Patient.objects.filter(merged_into__in=kept).values_list("pk", flat=True)
    assert set(OutboxItem.objects.values_list("patient_id", flat=True)) == {*kept, *merged}


@pytest.mark.parametrize(
    ("about", "value", "why"), [("patient", "NONE", "x"), ("source", "NONE", "x"), ("all", "", " ")]
)
def test_a_hold_that_means_nothing_is_refused(db: None, about: str, value: str, why: str):
    with pytest.raises(retention.NotAllowed):
        retention.place_hold(about, value, why, "user:1")


def test_deeds_go_with_their_message(send: Send):
    row = send(adt("A04"))
    MessageDeed.objects.create(message=row, at=now(), by="user:1", what="replayed")
    old(row)
    retention.keep_for(30, 0)
    assert retention.prune() == (1, 0)
