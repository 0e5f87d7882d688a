"""Delivery over real sockets: done by the ACK that names the message, in order, and never at another's expense."""

import threading
import time
from datetime import timedelta

import pytest
from django.db import connections

from common.clock import now
from common.models import Alert, AuditEvent
from integration import delivery, sweeper
from integration.models import DeliveryAttempt, Destination, OutboxItem
from tests.integration.outbound.making import hl7_destination, moved, ordered, signed, states
from tests.peers.his import His, ack, dead_port, garbage, late, silence

pytestmark = pytest.mark.django_db


def outcomes(destination: Destination) -> list[str]:
    """The outcome of every attempt, in order."""
    found = DeliveryAttempt.objects.filter(item__destination=destination).order_by("id")
    return list(found.values_list("outcome", flat=True))


def drain(destination: Destination, until: str = "") -> None:
    """Drain as worker and sweeper would, waiting out the short pauses, until nothing is queued."""
    deadline = time.monotonic() + 60
    while OutboxItem.objects.filter(destination=destination, state="queued").exists():
        assert time.monotonic() < deadline, f"still queued: {states(destination)} {outcomes(destination)}"
        delivery.drain(destination.id)
        if until and until in outcomes(destination):
            return
        time.sleep(0.02)


def test_a_report_is_delivered_by_the_ack_that_names_it() -> None:
    with His() as his:
        destination = hl7_destination(his.port)
        signed(ordered())
        drain(destination)
        item = OutboxItem.objects.get(kind="ORU")
        assert item.state == "delivered" and his.ids() == [item.control_id]
        assert his.received[0].raw == bytes(item.payload or b"")
        assert b"MSA|AA|" in bytes(item.answer or b"") and item.delivered_at
        assert his.received[0].field("OBR", 18) == "A100"
        row = AuditEvent.objects.get(action="send")
        assert row.patient_ids == [str(item.patient_id)] and row.detail["destination"] == "his"


def test_status_and_report_of_one_order_arrive_in_their_order_on_one_connection() -> None:
    with His() as his:
        destination = hl7_destination(his.port)
        procedure = ordered()
        moved(procedure, "STARTED")
        moved(procedure, "COMPLETED")
        signed(procedure)
        drain(destination)
        kinds = [(r.field("MSH", 8), r.field("ORC", 5)) for r in his.received]
        assert kinds == [("ORM^O01^ORM_O01", "IP"), ("ORM^O01^ORM_O01", "CM"), ("ORU^R01^ORU_R01", "CM")]
        assert {r.connection for r in his.received} == {1}


def test_retries_send_the_same_bytes_with_the_same_control_id() -> None:
    with His(script=[ack("AR", error="207"), silence, garbage]) as his:
        destination = hl7_destination(his.port, ack_seconds=0.3)
        signed(ordered())
        Destination.objects.filter(pk=destination.pk).update(
            name="renamed", settings={**destination.settings}
        )
        drain(destination)
        assert outcomes(destination) == ["rejected", "timeout", "timeout", "delivered"]
        assert len({r.raw for r in his.received}) == 1


def test_an_ack_of_another_message_is_none_and_the_connection_is_given_up() -> None:
    with His(script=[ack(of="SOMEBODY-ELSE")]) as his:
        destination = hl7_destination(his.port, ack_seconds=0.3)
        signed(ordered())
        drain(destination)
        assert outcomes(destination) == ["timeout", "delivered"]
        assert [r.connection for r in his.received] == [1, 2]


def test_a_late_ack_is_not_credited_to_the_next_message() -> None:
    with His(script=[late(0.6), silence]) as his:
        destination = hl7_destination(his.port, ack_seconds=0.3)
        signed(ordered("A1"))
        signed(ordered("A2", patient="4712"))
        drain(destination, until="delivered")
        drain(destination)
        for received in his.received:
            item = OutboxItem.objects.get(control_id=received.control_id)
            assert bytes(item.payload or b"") == received.raw
        for item in OutboxItem.objects.all():
            assert f"MSA|AA|{item.control_id}".encode() in bytes(item.answer or b"")


def test_a_refused_message_is_parked_and_its_lane_goes_on() -> None:
    with His(script=[ack("AE", error="101")]) as his:
        destination = hl7_destination(his.port)
        procedure = ordered()
        moved(procedure, "STARTED")
        moved(procedure, "COMPLETED")
        drain(destination)
        assert states(destination) == ["parked", "delivered"]
        assert len(his.received) == 2
        parked = OutboxItem.objects.get(state="parked")
        assert parked.last_error.startswith("refused: AE") and parked.answer


@pytest.mark.parametrize("code", ["200", "201", "202", "203"])
def test_a_rejection_that_can_never_change_is_parked_at_once(code: str) -> None:
    with His(otherwise=ack("AR", error=code)) as his:
        destination = hl7_destination(his.port)
        signed(ordered())
        drain(destination)
        assert states(destination) == ["parked"] and len(his.received) == 1


def test_a_rejection_that_goes_on_ends_parked() -> None:
    with His(otherwise=ack("AR")) as his:
        destination = hl7_destination(his.port, rejections_most=3)
        signed(ordered())
        drain(destination)
        assert states(destination) == ["parked"] and len(his.received) == 3


def test_a_parked_message_is_sent_again_when_a_person_says_so() -> None:
    with His(script=[ack("AE")]) as his:
        destination = hl7_destination(his.port)
        signed(ordered())
        drain(destination)
        item = OutboxItem.objects.get()
        delivery.send_again(item)
        drain(destination)
        assert states(destination) == ["delivered"] and len({r.raw for r in his.received}) == 1


def test_a_message_that_cannot_be_composed_is_parked_and_signing_did_not_wait_for_it() -> None:
    with His() as his:
        destination = hl7_destination(his.port, charset="KLINGON")
        procedure = ordered()
        signed(procedure)
        drain(destination)
        item = OutboxItem.objects.get()
        assert item.state == "parked" and item.last_error.startswith("compose:") and not his.received
        sweeper.check_ages()
        assert Alert.objects.filter(key=f"parked:{destination.name}", recovered_at=None).count() == 1
        Destination.objects.filter(pk=destination.pk).update(settings={"charset": "8859/1"})
        delivery.compose_again(item)
        drain(destination)
        assert states(destination) == ["delivered"]
        sweeper.check_ages()
        assert not Alert.objects.filter(recovered_at=None).exists()


def test_a_dead_destination_waits_with_one_alert_and_recovers_with_none_lost() -> None:
    port = dead_port()
    destination = hl7_destination(port, circuit_after=2)
    signed(ordered("A1"))
    signed(ordered("A2", patient="4712"))
    for _ in range(12):
        delivery.drain(destination.id)
        time.sleep(0.03)
    assert set(outcomes(destination)) == {"transport"} and states(destination) == ["queued", "queued"]
    assert Alert.objects.filter(key=f"destination:{destination.name}").count() == 1
    destination.refresh_from_db()
    assert destination.circuit_open_until is not None
    with His() as his:
        Destination.objects.filter(pk=destination.pk).update(port=his.port)
        drain(destination)
        assert states(destination) == ["delivered", "delivered"]
    destination.refresh_from_db()
    assert destination.circuit_open_until is None and destination.failures == 0
    assert not Alert.objects.filter(recovered_at=None).exists()


def test_while_the_circuit_is_open_nothing_is_tried() -> None:
    with His() as his:
        destination = hl7_destination(his.port)
        Destination.objects.filter(pk=destination.pk).update(
            circuit_open_until=now() + timedelta(minutes=5), failures=3
        )
        signed(ordered())
        assert delivery.drain(destination.id) == (0, False) and not his.received


def test_a_failing_lane_does_not_stop_the_others() -> None:
    with His(otherwise=ack()) as his:
        slow = {"retry_seconds": 60, "retry_seconds_most": 60}
        destination = hl7_destination(his.port, ack_seconds=0.2, circuit_after=99, **slow)
        signed(ordered("A1"))
        first = OutboxItem.objects.get()
        his.script.append(silence)
        signed(ordered("A2", patient="4712"))
        signed(ordered("A3", patient="4713"))
        delivery.drain(destination.id)
        assert states(destination) == ["queued", "delivered", "delivered"]
        assert his.ids()[0] == first.control_id


def test_a_message_that_could_not_be_sent_for_too_long_is_parked() -> None:
    destination = hl7_destination(dead_port(), give_up_hours=1)
    signed(ordered())
    OutboxItem.objects.update(created_at=now() - timedelta(hours=2))
    delivery.drain(destination.id)
    assert states(destination) == ["parked"]


def test_nothing_is_settled_by_a_worker_that_lost_its_lease() -> None:
    with His() as his:
        destination = hl7_destination(his.port)
        signed(ordered())
        slow = delivery.claim(destination.id)
        assert slow is not None
        OutboxItem.objects.update(lease_until=now() - timedelta(seconds=1))
        other = delivery.claim(destination.id)
        assert other is not None and other.lease_owner != slow.lease_owner
        assert not delivery.settle(slow, delivery.Outcome("refused"), now(), 1.0)
        transport = delivery.open_transport(destination)
        assert delivery.attempt(other, transport).done
        transport.close()
        assert states(destination) == ["delivered"]


def test_an_item_that_keeps_killing_its_worker_is_parked() -> None:
    destination = hl7_destination(dead_port())
    signed(ordered())
    for _ in range(6):
        OutboxItem.objects.update(lease_until=now() - timedelta(seconds=1))
        claimed = delivery.claim(destination.id)
        assert claimed is not None
    transport = delivery.open_transport(destination)
    assert delivery.attempt(claimed, transport).name == "compose"
    assert states(destination) == ["parked"]


def test_pauses_double_up_to_the_longest_and_half_of_each_is_chance() -> None:
    destination = hl7_destination(1, retry_seconds=2, retry_seconds_most=60)
    for failures, whole in ((1, 2), (2, 4), (3, 8), (6, 60), (1000, 60)):
        pauses = {delivery.backoff(destination, failures) for _ in range(50)}
        assert whole / 2 <= min(pauses) < max(pauses) <= whole
        assert len(pauses) > 40


@pytest.mark.django_db(transaction=True)
def test_many_workers_at_once_keep_the_order_of_each_lane() -> None:
    with His(otherwise=late(0.01)) as his:
        destination = hl7_destination(his.port, connections=4)
        lanes = 5
        for number in range(40):
            OutboxItem.objects.create(
                destination=destination,
                lane=f"lane:{number % lanes}",
                kind="ORU",
                subject="x",
                control_id=f"C{number:03}",
                payload=f"MSH|^~\\&|A|B|C|D|2026||ORU^R01|C{number:03}|P|2.5.1\r".encode(),
                due_at=now(),
                created_at=now(),
                cause="test",
            )

        def work() -> None:
            try:
                delivery.drain(destination.id)
            finally:
                connections.close_all()

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        drain(destination)
        sent = [int(i[1:]) for i in his.ids()]
        assert sorted(sent) == list(range(40))
        for lane in range(lanes):
            of_lane = [n for n in sent if n % lanes == lane]
            assert of_lane == sorted(of_lane)
