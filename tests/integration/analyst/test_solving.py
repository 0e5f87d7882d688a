"""What people do with messages: replay, edit, park, release, skip; previewed, noted, the original never lost."""

from collections.abc import Callable

import pytest

from integration import inbox, solving, sources
from integration.analyst import preview
from integration.models import Message, MessageDeed, MessageIdentity, Source
from ris.models import Change, ImagingServiceRequest, Patient, ScheduledProcedureStep
from tests.integration.hl7v2.making import adt, message, msh, orm, pid

pytestmark = pytest.mark.django_db

Send = Callable[[bytes], Message]
BY = "user:1"


def configure(source: Source, **profile: object) -> None:
    Source.objects.filter(pk=source.pk).update(profile=profile)
    sources.forget()


def test_a_replay_applies_stored_messages_in_their_order(his: Source, send: Send):
    configure(his, modality="'MR'")
    first, second = send(orm(placer="PL1", accession="A1")), send(orm(placer="PL2", accession="A2"))
    configure(his, modality="OBR-24")
    done = solving.replay([second.pk, first.pk], BY, "the modality was read wrongly")
    assert [(d.message_id, d.state) for d in done] == [(first.pk, "applied"), (second.pk, "applied")]
    assert set(ScheduledProcedureStep.objects.values_list("modality", flat=True)) == {"CT"}
    first.refresh_from_db()
    assert first.attempts == 2 and first.solved_at is None
    deed = MessageDeed.objects.get(message=first)
    assert (deed.what, deed.by, deed.outcome) == ("replayed", BY, "applied → applied")
    assert Change.objects.filter(cause=f"hl7:{first.pk}", what="scheduledprocedurestep").count() == 2


def test_a_replay_ends_at_the_first_that_is_refused_unless_told_to_go_on(his: Source, send: Send):
    configure(his, unknown_order="ignore")
    rows = [send(orm(placer=f"PL{n}", control="CA" if n == 1 else "NW")) for n in range(3)]
    states = [r.state for r in rows]
    configure(his, unknown_order="refuse")
    ids = [r.pk for r in rows]
    assert [d.state for d in solving.replay(ids, BY, "")] == ["applied", "refused"]
    assert [d.state for d in solving.replay(ids, BY, "", go_on=True)] == ["applied", "refused", "applied"]
    assert MessageDeed.objects.filter(message=rows[1]).first().outcome.startswith("refused: ")
    rows[1].refresh_from_db()
    assert rows[1].state == states[1]  # what became of it before stays so


def test_a_preview_shows_each_change_and_keeps_none(his: Source, send: Send):
    configure(his, modality="'MR'")
    row = send(orm(placer="PL1", accession="A1"))
    configure(his, modality="OBR-24")
    seen = preview.preview([row])
    assert seen[0].tried is not None and seen[0].tried.state == "applied"
    assert ("Step", "modality", "MR", "CT") in seen[0].tried.changes
    assert ScheduledProcedureStep.objects.get().modality == "MR"
    assert not MessageDeed.objects.exists()


def test_a_preview_of_several_sees_what_the_earlier_ones_would_make(his: Source, send: Send):
    cancel = send(orm(placer="PL1", control="CA"))
    assert cancel.state == "refused"
    order = send(orm(placer="PL1", accession="A1"))
    assert [p.refused for p in preview.preview([order])] == [False]
    ScheduledProcedureStep.objects.all().delete()
    ImagingServiceRequest.objects.all().delete()
    later = send(orm(placer="PL1", control="CA"))
    seen = preview.preview([later, order, cancel])
    assert [p.message.pk for p in seen] == [cancel.pk, order.pk, later.pk]
    assert [p.refused for p in seen] == [True, False, False]


def test_an_edited_copy_is_applied_and_the_original_stays_as_it_came(his: Source, send: Send):
    configure(his, unknown_order="refuse")
    raw = message(msh("ORM^O01", "E1"), pid(), "ORC|CA|WRONG^HIS", "OBR|1|WRONG^HIS")
    send(orm("ORC|NW|RIGHT^HIS", "OBR|1|RIGHT^HIS||CTHEAD^CT^L"))
    row = send(raw)
    assert row.state == "refused"
    text, codec = solving.text_of(row)
    assert text.startswith("MSH|") and "\n" in text and codec == "utf_8"
    trial = preview.edited(row, solving.bytes_of(row, text.replace("WRONG", "RIGHT")))
    assert not trial.refused
    copy = solving.resubmit(row.pk, text.replace("WRONG", "RIGHT"), BY, "typed wrongly in the HIS")
    row.refresh_from_db()
    assert bytes(row.raw) == raw and row.state == "refused" and row.solved_at is not None
    assert copy.original_id == row.pk and copy.state == "applied" and b"RIGHT^HIS" in bytes(copy.raw)
    assert ImagingServiceRequest.objects.get(placer_order_number="RIGHT").status == "CANCELED"
    assert [d.what for d in row.deeds.all()] == ["edited"]
    again = inbox.receive(bytes(copy.raw), inbox.Peer("127.0.0.1", 1))
    assert again.duplicate and b"MSA|AA|E1" in again.ack
    with pytest.raises(solving.NotOpen):
        solving.resubmit(row.pk, text.replace("WRONG", "RIGHT"), BY, "")


def test_an_edit_that_is_refused_stores_nothing(his: Source, send: Send):
    row = send(message(msh("ORM^O01", "E1"), pid(), "ORC|CA|WRONG^HIS"))
    before = Message.objects.count(), MessageIdentity.objects.count()
    with pytest.raises(solving.Refused):
        solving.resubmit(row.pk, solving.text_of(row)[0].replace("WRONG", "OTHER"), BY, "")
    assert (Message.objects.count(), MessageIdentity.objects.count()) == before
    row.refresh_from_db()
    assert row.solved_at is None


def test_an_edit_keeps_the_character_set_and_refuses_what_it_lacks(his: Source, send: Send):
    latin = message(msh("ADT^A04"), pid(name="MÜLLER^EVA")).decode().replace("UNICODE UTF-8", "8859/1")
    row = send(latin.encode("latin-1"))
    text, codec = solving.text_of(row)
    assert codec == "iso8859_1" and "MÜLLER" in text
    copy = solving.resubmit(row.pk, text.replace("EVA", "ÉVA"), BY, "accent")
    assert "MÜLLER^ÉVA".encode("latin-1") in bytes(copy.raw)
    assert Patient.objects.get().patient_name == "MÜLLER^ÉVA"
    with pytest.raises(solving.Refused) as refused:
        solving.resubmit(row.pk, text.replace("EVA", "日本"), BY, "")
    assert str(refused.value.problem.location) == "MSH^1^18"


def test_a_parked_message_holds_its_lane_until_it_is_released(his: Source, send: Send):
    configure(his, policy="stored")
    first, second = (
        send(orm(placer="PL1", accession="A1")),
        send(orm(placer="PL1", accession="A1", control="CA")),
    )
    other = send(orm(placer="PL9", patient=pid("P9^^^HOSP^MR")))
    assert {first.state, second.state, other.state} == {"waiting"}
    solving.park(first.pk, BY, "ask the HIS")
    inbox.apply_waiting()
    states = {r.pk: r.state for r in Message.objects.all()}
    assert states == {first.pk: "parked", second.pk: "waiting", other.pk: "applied"}
    solving.release(first.pk, BY, "they say it is right")
    inbox.apply_waiting()
    assert set(Message.objects.values_list("state", flat=True)) == {"applied"}
    assert ImagingServiceRequest.objects.get(placer_order_number="PL1").status == "CANCELED"
    assert [d.what for d in first.deeds.order_by("id")] == ["parked", "released"]
    with pytest.raises(solving.NotOpen):
        solving.park(first.pk, BY, "too late")
    with pytest.raises(solving.NotOpen):
        solving.release(second.pk, BY, "not parked")


def test_a_skip_is_noted_with_its_reason(send: Send):
    row = send(adt("A04", identifier=""))
    assert row.state == "refused"
    solving.skip(row.pk, BY, "a test of the sender")
    assert MessageDeed.objects.get().reason == "a test of the sender"
    done = solving.replay([row.pk], BY, "on second thought")
    assert done[0].problem is not None and done[0].state == "refused"
