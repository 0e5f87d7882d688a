"""The inbox through the real socket: applied before AA, once, refused by place, and on a list."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection, connections

from integration import inbox, solving, sources
from integration.hl7v2.errors import Refused
from integration.hl7v2.reading import parse
from integration.inbox import Peer, receive
from integration.models import Message, MessageIdentity, Source
from ris.models import Change, ImagingServiceRequest, Patient, ScheduledProcedureStep
from ris.services import lanes
from tests.integration.hl7v2.conftest import holding
from tests.integration.hl7v2.making import adt, group, merge, message, msh, next_id, orm, pid

PEER = Peer("127.0.0.1", 1)
pytestmark = pytest.mark.django_db(transaction=True)


def code_of(ack):
    return ack.first("MSA").value(1)


def error_of(ack):
    err = ack.first("ERR")
    return err.field(2), err.value(3)


def test_an_order_is_applied_when_its_aa_arrives(door, connect):
    raw = orm(control_id="C1", accession="A1")
    ack = connect(door).send(raw)
    assert (code_of(ack), ack.first("MSA").value(2)) == ("AA", "C1")
    row = Message.objects.get()
    assert bytes(row.raw) == raw
    assert (row.state, row.message_type, row.trigger_event, row.ack_code) == ("applied", "ORM", "O01", "AA")
    request = ImagingServiceRequest.objects.get(accession_number="A1")
    assert row.request_ids == [request.id]
    assert row.patient_ids == [request.patient_id]
    assert row.accession_numbers == ["A1"]
    assert ScheduledProcedureStep.objects.get().modality == "CT"
    assert set(Change.objects.values_list("cause", flat=True)) == {f"hl7:{row.id}"}


def test_an_accepted_message_again_gets_its_stored_ack_and_changes_nothing(door, connect):
    raw, client = adt(), connect(door)
    client.write(b"\x0b" + raw + b"\x1c\r")
    first = client.read_raw()
    before = Change.objects.count()
    client.write(b"\x0b" + raw + b"\x1c\r")
    assert client.read_raw() == first
    assert (Message.objects.count(), Change.objects.count()) == (1, before)


@pytest.mark.parametrize(
    ("sent", "known_as"),
    [
        ("A.1-b_2", "A.1-b_2"), ("A B", "A B"), (" A1 ", "A1"), ("A\\T\\1", "A&1"), ("Ä1", "Ä1"),
        ("A~B", "A"), ("A1&B", "A1"), ("#7", "#7"),
    ],
)  # fmt: skip
def test_a_message_is_known_again_by_any_control_id(any_source, sent, known_as):
    """Whether its identity can be asked for before it is parsed, or only then."""
    raw = adt(control_id="PLACE").replace(b"PLACE", sent.encode())
    first = inbox.receive(raw, Peer("127.0.0.1"))
    again = inbox.receive(raw, Peer("127.0.0.1"))
    assert (first.code, again.duplicate, again.ack) == ("AA", True, first.ack)
    assert Message.objects.get().control_id == known_as


def test_a_refused_message_is_stored_answered_by_place_and_stands_on_the_list(door, connect):
    ack = connect(door).send(adt(identifier=""))
    assert code_of(ack) == "AE"
    assert error_of(ack) == ("PID^1^3", "101")
    row = Message.objects.get()
    assert (row.state, row.ack_code, row.solved_at) == ("refused", "AE", None)
    assert row.state in Message.OPEN_STATES
    assert row.errors[0]["place"] == "PID^1^3"
    assert Patient.objects.count() == 0


def test_a_refused_message_again_is_tried_again_on_its_row(door, connect):
    client = connect(door)
    cancel = orm(control="CA", accession="A1", control_id="C2")
    assert code_of(client.send(cancel)) == "AE"
    assert code_of(client.send(orm(accession="A1"))) == "AA"
    assert code_of(client.send(cancel)) == "AA"
    row = Message.objects.get(control_id="C2")
    assert (row.state, row.attempts, row.errors) == ("applied", 2, [])
    assert ScheduledProcedureStep.objects.get().status == "CANCELED"


def test_the_same_control_id_with_other_content_is_applied_with_a_warning(door, connect):
    client = connect(door)
    assert code_of(client.send(adt(control_id="X", identifier="P1^^^HOSP"))) == "AA"
    assert code_of(client.send(adt(control_id="X", identifier="P2^^^HOSP"))) == "AA"
    assert Patient.objects.count() == 2
    assert "MSH^1^10" in Message.objects.latest("id").warnings[0]


def test_a_source_may_refuse_a_reused_control_id(open_door, connect):
    Source.objects.create(name="strict", profile={"reused_control_id": "refuse"})
    client = connect(open_door())
    assert code_of(client.send(adt(control_id="X", identifier="P1^^^HOSP"))) == "AA"
    ack = client.send(adt(control_id="X", identifier="P2^^^HOSP"))
    assert (code_of(ack), error_of(ack)) == ("AE", ("MSH^1^10", "205"))


def test_the_same_bytes_from_another_sender_are_another_message(any_source):
    one = adt(control_id="X")
    other = one.replace(b"|HIS|", b"|PAS|")
    assert receive(one, PEER).message_id != receive(other, PEER).message_id
    assert Message.objects.count() == 2


def test_an_unknown_sender_is_rejected_and_seen(open_door, connect):
    Source.objects.create(name="his", application="HIS", facility="OTHER")
    ack = connect(open_door()).send(adt())
    assert (code_of(ack), error_of(ack)) == ("AR", ("MSH^1^3", "103"))
    assert Message.objects.get().state == "rejected"
    assert Patient.objects.count() == 0


def test_a_flood_from_an_unknown_sender_leaves_few_rows(transactional_db, fresh_memory):
    for _ in range(inbox._STRANGERS_A_MINUTE + 20):
        assert receive(adt(), PEER).code == "AR"
    assert Message.objects.count() == inbox._STRANGERS_A_MINUTE


@pytest.mark.parametrize("raw", [b"hello", b"\x00\x01\x02", b"<xml/>", b"MSH", b"MSH||||", b"PID|1\r"])
def test_what_is_no_hl7_is_rejected_stored_and_the_connection_lives(door, connect, raw):
    client = connect(door)
    ack = client.send(raw)
    assert (code_of(ack), ack.first("MSA").value(2)) == ("AR", "")
    assert bytes(Message.objects.get().raw) == raw
    assert Message.objects.get().state == "fault"
    assert code_of(client.send(adt())) == "AA"


@pytest.mark.parametrize(
    ("change", "code", "place", "error"),
    [
        (("ADT^A04", ""), "AR", "MSH^1^9", "200"),
        (("T000", ""), "AE", "MSH^1^10", "101"),
        (("|P|", "|Q|"), "AR", "MSH^1^11", "202"),
        (("2.5.1", "3.0"), "AR", "MSH^1^12", "203"),
        (("19700102", "19701302"), "AE", "PID^1^7", "102"),
    ],
)
def test_a_header_or_value_that_cannot_be_is_refused_at_its_place(any_source, change, code, place, error):
    raw = adt(control_id="T000").decode().replace(*change).encode()

    ack = parse(receive(raw, PEER).ack)
    assert (code_of(ack), error_of(ack)) == (code, (place, error))


def test_a_training_message_is_refused_where_the_site_is_live(any_source):
    from common.models import Site

    Site.objects.create(live=True)
    assert receive(adt().replace(b"|P|2.5.1", b"|T|2.5.1"), PEER).code == "AR"
    assert receive(adt(), PEER).code == "AA"


def test_a_type_we_do_not_apply_is_kept_or_refused_by_policy(any_source):
    raw = message(msh("BAR^P01"), pid())
    assert receive(raw, PEER).code == "AA"
    assert Message.objects.get().state == "kept"
    Source.objects.update(profile={"unknown_type": "refuse"})
    sources.forget()
    assert receive(message(msh("BAR^P01"), pid()), PEER).code == "AR"
    assert receive(message(msh("ADT^A17"), pid()), PEER).code == "AR"


def test_an_order_without_pid_is_refused_at_pid(door, connect):
    ack = connect(door).send(message(msh("ORM^O01"), *group()))
    assert (code_of(ack), error_of(ack)) == ("AE", ("PID^1", "100"))


def test_a_refusal_of_a_group_names_its_segment(door, connect):
    segments = [*group("PL1", accession="A1"), *group("PL2", accession="A" * 17)]
    ack = connect(door).send(orm(*segments))
    assert (code_of(ack), error_of(ack)) == ("AE", ("OBR^2^18", "102"))
    assert ImagingServiceRequest.objects.count() == 0


def test_all_or_none_of_a_message_is_applied(door, connect):
    client = connect(door)
    assert code_of(client.send(orm(*group("PL1"), *group("PLX", control="CA")))) == "AE"
    assert (ImagingServiceRequest.objects.count(), Patient.objects.count()) == (0, 0)


def test_twins_at_once_are_applied_once_and_both_get_the_same_ack(any_source):
    raw = orm(control_id="TWIN", accession="A1")
    start = threading.Barrier(6)

    def send(_):
        start.wait()
        try:
            return receive(raw, PEER).ack
        finally:
            connections.close_all()

    with ThreadPoolExecutor(6) as pool:
        acks = list(pool.map(send, range(6)))
    assert len(set(acks)) == 1
    assert (Message.objects.count(), ImagingServiceRequest.objects.count()) == (1, 1)


def test_a_twin_that_stays_in_flight_is_waited_for_a_while_and_then_told_to_come_again(
    any_source, monkeypatch
):
    monkeypatch.setattr(inbox, "_WAIT_MS", 200)
    raw = adt(control_id="TWIN")
    digest = hashlib.sha256(raw).hexdigest()
    at_work = MessageIdentity(sender="HIS|HOSP", control_id="TWIN", sha256=digest)
    with holding(at_work.save):
        reply = receive(raw, PEER)
        assert (reply.code, b"|207^" in reply.ack, Message.objects.count()) == ("AR", True, 0)
    MessageIdentity.objects.all().delete()
    assert receive(raw, PEER).code == "AA"


def test_many_messages_about_one_new_patient_at_once_make_one_patient(any_source):
    start = threading.Barrier(8)

    def send(number):
        start.wait()
        try:
            return receive(orm(placer=f"PL{number}", accession=f"A{number}"), PEER).code
        finally:
            connections.close_all()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(send, range(8))) == ["AA"] * 8
    assert Patient.objects.count() == 1
    assert ImagingServiceRequest.objects.count() == 8


def test_crossing_merges_and_updates_end_without_a_lost_message(any_source):
    for number in range(4):
        assert receive(adt(identifier=f"P{number}^^^HOSP"), PEER).code == "AA"
    start = threading.Barrier(6)
    work = [
        merge("P0^^^HOSP", "P1^^^HOSP"),
        merge("P2^^^HOSP", "P3^^^HOSP"),
        *(adt("A08", identifier=f"P{n}^^^HOSP", sent="20260301140000+0000") for n in range(4)),
    ]

    def send(raw):
        start.wait()
        try:
            return receive(raw, PEER).code
        finally:
            connections.close_all()

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(send, work)) == ["AA"] * 6
    assert Patient.objects.filter(merged_into=None).count() == 2


def test_a_message_that_cannot_get_its_lane_is_answered_ar_206_and_can_be_sent_again(any_source, monkeypatch):
    monkeypatch.setattr(inbox, "_WAIT_MS", 200)
    raw = adt(identifier="P1^^^HOSP")
    with holding(lambda: lanes.lock(["P1"])):
        reply = receive(raw, PEER)
    assert reply.code == "AR"
    assert b"206" in reply.ack
    assert Message.objects.get().state == "rejected"
    assert receive(raw, PEER).code == "AA"
    assert Message.objects.get().state == "applied"


def test_a_fault_of_ours_is_ar_207_on_the_list_and_says_no_value(any_source, monkeypatch, caplog):
    def broken(command, unit):
        raise RuntimeError(command.values["patient_name"])

    monkeypatch.setitem(inbox._SERVICES, type(_register_command()), broken)
    reply = receive(adt(name="SECRET^NAME"), PEER)
    assert reply.code == "AR"
    assert b"207" in reply.ack
    assert Message.objects.get().state == "rejected"
    assert "SECRET" not in caplog.text
    assert "could not be applied" in caplog.text


def _register_command():
    from ris.commands import RegisterPatient

    return RegisterPatient(identifiers=())


def test_when_the_database_is_away_the_answer_is_ar_and_later_the_message_is_taken(any_source, monkeypatch):
    raw = adt()
    sources.all_sources()

    def away(*_):
        from django.db import OperationalError

        raise OperationalError("the connection is lost")

    with monkeypatch.context() as patch:
        patch.setattr(inbox, "ask_identities", away)
        reply = receive(raw, PEER)
        assert (reply.code, reply.message_id) == ("AR", None)
    assert Message.objects.count() == 0
    assert receive(raw, PEER).code == "AA"


def test_a_connection_that_the_server_dropped_costs_nothing(any_source):
    assert receive(adt(), PEER).code == "AA"
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        backend = cursor.fetchone()[0]

    def kill():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s)", [backend])
        connections.close_all()

    killer = threading.Thread(target=kill)
    killer.start()
    killer.join()
    assert receive(adt(identifier="P2^^^HOSP"), PEER).code == "AA"
    assert Patient.objects.count() == 2


def test_a_batch_is_applied_message_by_message(door, connect):
    one, two = adt(control_id="B1", identifier="P1^^^HOSP"), adt(control_id="B2", identifier="")
    batch = b"BHS|^~\\&|HIS|HOSP|RIS|RAD|2026||||BATCH1\r" + one + two + b"BTS|2\r"
    client = connect(door)
    client.write(b"\x0b" + batch + b"\x1c\r")
    raw = client.read_raw()
    assert raw is not None and raw.startswith(b"BHS|")
    assert b"MSA|AA|B1" in raw and b"MSA|AE|B2" in raw
    assert sorted(Message.objects.values_list("control_id", "state")) == [
        ("B1", "applied"),
        ("B2", "refused"),
    ]


def test_enhanced_mode_gets_the_commit_code(any_source):
    asked = adt().replace(b"|P|2.5.1||||||", b"|P|2.5.1|||AL|NE||")
    reply = receive(asked, PEER)
    assert (reply.code, reply.later) == ("CA", b"")
    never = adt(identifier="").replace(b"|P|2.5.1||||||", b"|P|2.5.1|||NE|NE||")
    reply = receive(never, PEER)
    assert (reply.ack, reply.later) == (b"", b"")
    assert Message.objects.latest("id").state == "refused"


def test_both_answers_of_enhanced_mode_come_and_come_again_for_a_repeated_message(door, connect):
    raw = adt().replace(b"|P|2.5.1||||||", b"|P|2.5.1|||AL|AL||")
    client = connect(door)
    for _ in range(2):
        commit, application = client.send(raw), client.read(20)
        assert [code_of(commit), code_of(application)] == ["CA", "AA"]
        control_id = parse(raw).control_id
        assert {a.first("MSA").value(2) for a in (commit, application)} == {control_id}
    assert Message.objects.count() == 1
    refused = adt(identifier="").replace(b"|P|2.5.1||||||", b"|P|2.5.1|||AL|ER||")
    assert [code_of(client.send(refused)), code_of(client.read(20))] == ["CE", "AE"]


def test_who_asks_for_an_orders_state_is_told(any_source):
    """ORC-1 SS is answered by SR with ORC-5, whatever the source's policy for answers; an unknown order by UA."""

    def asked(number="PL1"):
        answer = parse(receive(orm(f"ORC|SS|{number}"), PEER).ack)
        orc = answer.first("ORC")
        return answer.header.field(9), code_of(answer), orc.value(1), orc.value(2), orc.value(5)

    assert asked() == ("ORR^O02^ORR_O02", "AE", "UA", "PL1", "")
    receive(orm(accession="A1", filler="F1"), PEER)
    assert asked() == ("ORR^O02^ORR_O02", "AA", "SR", "PL1", "SC")
    for status, expected in (("STARTED", "IP"), ("COMPLETED", "CM"), ("CANCELED", "CA"), ("HELD", "HD"),
                             ("DISCONTINUED", "DC")):  # fmt: skip
        ScheduledProcedureStep.objects.update(status=status)
        assert asked()[4] == expected
        assert ScheduledProcedureStep.objects.get().status == status


def test_nul_and_other_control_characters_in_values_do_no_harm(any_source):
    raw = adt(name="DO\\X00\\E^JA\x01NE\x7f")
    assert receive(raw, PEER).code == "AA"
    assert Patient.objects.get().patient_name == "DO E^JA NE"
    assert bytes(Message.objects.get().raw) == raw


def test_a_control_id_longer_than_the_column_is_refused(any_source):
    assert receive(adt(control_id="X" * 500), PEER).code == "AE"
    assert len(Message.objects.get().control_id) <= 199


def test_stored_messages_are_acknowledged_first_and_applied_in_order_each_in_its_lane(
    transactional_db, fresh_memory
):
    Source.objects.create(name="slow", profile={"policy": "stored"})
    first = adt("A04", identifier="P1^^^HOSP", name="FIRST^X", sent="20260301120000+0000")
    broken = adt("A08", identifier="P2^^^HOSP", birth="19701399")
    behind = adt("A08", identifier="P2^^^HOSP")
    second = adt("A08", identifier="P1^^^HOSP", name="SECOND^X", sent="20260301130000+0000")
    for raw in (first, broken, behind, second):
        assert receive(raw, PEER).code == "AA"
    assert Patient.objects.count() == 0
    assert sorted(Message.objects.values_list("state", flat=True)) == [
        "parked",
        "waiting",
        "waiting",
        "waiting",
    ]
    assert inbox.apply_waiting() == 2
    assert Patient.objects.get().patient_name == "SECOND^X"
    assert list(Message.objects.order_by("id").values_list("state", flat=True)) == [
        "applied", "parked", "waiting", "applied",
    ]  # fmt: skip
    parked = Message.objects.get(state="parked")
    assert parked.errors[0]["place"] == "PID^1^7"
    Message.objects.filter(pk=parked.pk).update(state="skipped")
    assert inbox.apply_waiting() == 1
    assert Patient.objects.count() == 2


def test_the_identity_outlives_the_message(any_source):
    raw = adt()
    first = receive(raw, PEER)
    Message.objects.all().delete()
    again = receive(raw, PEER)
    assert (again.ack, again.duplicate) == (first.ack, True)
    assert (Message.objects.count(), MessageIdentity.objects.count()) == (0, 1)


def test_a_message_in_a_log_is_its_id(any_source, caplog):
    caplog.set_level("DEBUG")
    receive(adt(name="SECRETNAME^X", identifier="SECRETID^^^HOSP"), PEER)
    receive(adt(name="SECRETNAME^X", identifier="", control_id=next_id()), PEER)
    assert "SECRET" not in "".join(
        r.getMessage() for r in caplog.records if not r.name.startswith("django.db")
    )


def test_a_refused_message_can_be_applied_by_hand_once_its_reason_is_gone(any_source):
    cancel = orm(control="CA", accession="A1", control_id="HAND")
    refused = receive(cancel, PEER)
    assert refused.code == "AE"
    with pytest.raises(Refused):
        solving.apply_again(refused.message_id, "user:1", "")
    assert receive(orm(accession="A1"), PEER).code == "AA"
    solving.apply_again(refused.message_id, "user:1", "the order is here now")
    row = Message.objects.get(pk=refused.message_id)
    assert (row.state, row.solved_by, row.attempts) == ("applied", "user:1", 2)
    assert ScheduledProcedureStep.objects.get().status == "CANCELED"
    again = receive(cancel, PEER)
    assert again.duplicate and b"MSA|AA|HAND" in again.ack
    with pytest.raises(solving.NotOpen):
        solving.apply_again(refused.message_id, "user:2", "")


def test_a_skipped_message_leaves_the_list_and_may_be_sent_again(any_source):
    raw = adt(identifier="")
    refused = receive(raw, PEER)
    solving.skip(refused.message_id, "user:1", "a test of the HIS")
    row = Message.objects.get(pk=refused.message_id)
    assert (row.state, row.solved_reason) == ("skipped", "a test of the HIS")
    assert receive(raw, PEER).code == "AE"
    assert Message.objects.get(pk=refused.message_id).solved_at is None


def test_a_source_that_wants_full_answers_gets_the_controls_of_the_table(transactional_db, fresh_memory):
    Source.objects.create(name="his", profile={"order_answers": "full"})

    def answered(raw):
        answer = parse(receive(raw, PEER).ack)
        orc = answer.first("ORC")
        return answer.header.field(9), code_of(answer), orc.value(1), orc.value(2), orc.value(3)

    assert answered(orm(accession="A1")) == ("ORR^O02^ORR_O02", "AA", "OK", "PL1", "")
    assert answered(orm(control="XO", accession="A1"))[2] == "XR"
    assert answered(orm(control="CA", accession="A1"))[2] == "CR"
    assert answered(orm(control="CA", placer="NOBODY"))[1:3] == ("AE", "UC")
    announced = answered(orm("ORC|SN||F7^RIS2", "OBR|1||F7^RIS2|CT^CT^L"))
    request = ImagingServiceRequest.objects.get(filler_order_number="F7")
    assert announced[1:] == ("AA", "NA", request.accession_number, "F7")
    assert request.placer_order_number == request.accession_number
    assert parse(receive(adt(), PEER).ack).header.field(9) == "ACK^A04^ACK"
