"""Connections stay open between drains where the destination lets them, and a late ACK still finds nobody."""

import threading

import pytest

from integration import delivery
from integration.models import DeliveryAttempt, Destination, OutboxItem
from tests.integration.outbound.making import hl7_destination, ordered, signed, states
from tests.integration.outbound.test_crashes_and_doorbells import wait_for
from tests.integration.outbound.test_delivery import drain, outcomes
from tests.peers.his import His, Received, ack

pytestmark = pytest.mark.django_db


def sign_and_drain(destination: Destination, number: int) -> None:
    signed(ordered(f"A{number}", patient=str(4710 + number)))
    drain(destination)


def test_the_next_message_goes_out_on_the_connection_of_the_last() -> None:
    with His() as his:
        destination = hl7_destination(his.port)
        for number in (1, 2, 3):
            sign_and_drain(destination, number)
        assert states(destination) == ["delivered"] * 3
        assert [r.connection for r in his.received] == [1, 1, 1]


def test_a_destination_that_wants_it_closed_has_it_closed() -> None:
    with His() as his:
        destination = hl7_destination(his.port, keep_open_seconds=0)
        sign_and_drain(destination, 1)
        sign_and_drain(destination, 2)
        assert [r.connection for r in his.received] == [1, 2]


def test_changed_settings_take_a_new_connection() -> None:
    with His() as his, His() as other:
        destination = hl7_destination(his.port)
        sign_and_drain(destination, 1)
        Destination.objects.filter(pk=destination.pk).update(port=other.port)
        sign_and_drain(destination, 2)
        assert (len(his.received), len(other.received)) == (1, 1)


@pytest.mark.django_db(transaction=True)
def test_settings_changed_in_the_midst_of_a_drain_count_from_the_next_message_on() -> None:
    with His() as other:

        def moves(received: Received) -> bytes | None:
            Destination.objects.update(port=other.port)
            return ack()(received)

        with His(otherwise=moves) as his:
            destination = hl7_destination(his.port)
            signed(ordered("A1", patient="4711"))
            signed(ordered("A2", patient="4712"))
            drain(destination)
            assert (len(his.received), len(other.received)) == (1, 1)


def test_a_peer_that_let_the_connection_go_costs_no_failed_attempt() -> None:
    with His() as his:
        destination = hl7_destination(his.port)
        sign_and_drain(destination, 1)
        his.hang_up()
        sign_and_drain(destination, 2)
        assert outcomes(destination) == ["delivered", "delivered"]
        assert [r.connection for r in his.received] == [1, 2]


def test_after_a_time_out_no_connection_is_kept_and_the_late_ack_is_nobodys() -> None:
    release = threading.Event()

    def held(received: Received) -> bytes | None:
        release.wait(60)
        return ack()(received)

    with His(script=[held]) as his:
        destination = hl7_destination(his.port, ack_seconds=2.0, retry_seconds=600, retry_seconds_most=600)
        signed(ordered("A1", patient="4711"))
        delivery.drain(destination.id)
        assert outcomes(destination) == ["timeout"]
        release.set()  # the late ACK goes into a closed socket
        signed(ordered("A2", patient="4712"))
        delivery.drain(destination.id)
        assert [r.connection for r in his.received] == [1, 2]
        assert states(destination) == ["queued", "delivered"]
        done = OutboxItem.objects.get(state="delivered")
        assert f"MSA|AA|{done.control_id}".encode() in bytes(done.answer or b"")


def test_what_rests_too_long_is_closed() -> None:
    with His() as his:
        destination = hl7_destination(his.port, keep_open_seconds=0.2)
        sign_and_drain(destination, 1)
        wait_for(delivery.KEPT.close_idle)
        assert delivery.KEPT.close_idle(every=True) == 0
        sign_and_drain(destination, 2)
        assert [r.connection for r in his.received] == [1, 2]
        assert DeliveryAttempt.objects.count() == 2
