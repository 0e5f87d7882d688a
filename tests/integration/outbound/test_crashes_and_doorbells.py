"""Killed in the middle, rung by the broker, found by the sweeper: with real processes where it matters."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from django.conf import settings
from django.core import mail
from django.db import connection, connections
from django.test import Client

from common import alerts
from common.clock import now
from common.models import Alert, Site
from common.process import Context
from common.roles import Role
from integration import delivery, leases, sweeper, tasks
from integration.models import Destination, Message, OutboxItem
from tests import factories as make
from tests.integration.outbound.making import hl7_destination, ordered, signed, states
from tests.peers.his import His, ack

DRAIN = """
import sys, django
from django.conf import settings
django.setup()
settings.DATABASES["default"]["NAME"] = sys.argv[1]
from integration import delivery
delivery.drain(int(sys.argv[2]))
"""
WORK = """
import sys, django
from django.conf import settings
django.setup()
settings.DATABASES["default"]["NAME"] = sys.argv[1]
from common.process import Context
from common.roles import Role
from integration import tasks
ctx = Context("worker")
ctx.stop_on_signals()
tasks.main(ctx)
"""


def drain_in_a_process(destination: Destination, crashpoint: str) -> int:
    """Drain in another process that dies at the crash point; its exit status."""
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "ORDERLY_CRASHPOINT": crashpoint}
    words = [sys.executable, "-c", DRAIN, connection.settings_dict["NAME"], str(destination.id)]
    return subprocess.run(words, cwd=settings.BASE_DIR, env=environment, timeout=60).returncode


def wait_for(what: Callable[[], Any], seconds: float = 20) -> None:
    """Until it is true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("point", "copies"), [("delivery.before_send", 1), ("delivery.between_send_and_settle", 2)]
)
def test_a_worker_killed_in_the_middle_loses_nothing_and_repeats_only_the_same_bytes(
    point: str, copies: int
) -> None:
    with His() as his:
        destination = hl7_destination(his.port)
        procedure = ordered()
        signed(procedure)
        assert drain_in_a_process(destination, point) == -signal.SIGKILL
        assert states(destination) == ["queued"]
        OutboxItem.objects.update(lease_until=now() - timedelta(seconds=1))  # as after its time
        assert drain_in_a_process(destination, "") == 0
        assert states(destination) == ["delivered"]
        assert len(his.received) == copies and len({r.raw for r in his.received}) == 1


@pytest.mark.django_db(transaction=True)
def test_the_next_worker_takes_over_what_a_killed_one_held_and_does_not_wait_for_the_lease() -> None:
    with His() as his:
        destination = hl7_destination(his.port, ack_seconds=600.0)
        signed(ordered())
        assert drain_in_a_process(destination, "delivery.before_send") == -signal.SIGKILL
        held = OutboxItem.objects.get()
        assert held.lease_until and held.lease_until > now() + timedelta(minutes=9)
        words = [sys.executable, "-c", WORK, connection.settings_dict["NAME"]]
        environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"}
        worker = subprocess.Popen(words, cwd=settings.BASE_DIR, env=environment)
        try:
            # The worker frees it when it starts; as a sweeper would, we ring when it is due.
            wait_for(lambda: OutboxItem.objects.get().lease_owner == "", 60)
            wait_for(lambda: tasks.ring(destination.id) and states(destination) == ["delivered"], 60)
        finally:
            worker.terminate()
            worker.wait(60)
        assert his.ids() == [held.control_id]


@pytest.mark.django_db(transaction=True)
def test_the_sweeper_frees_the_leases_of_dead_workers_of_this_machine_alone() -> None:
    destination = hl7_destination(1, retry_seconds=600, retry_seconds_most=600)
    signed(ordered())
    assert drain_in_a_process(destination, "delivery.before_send") == -signal.SIGKILL
    owner = OutboxItem.objects.get().lease_owner
    machine, pid, start, token = owner.split(":")
    assert leases.is_dead(owner) and not leases.is_dead(leases.name())
    mine = leases.name().split(":")
    others = {
        f"{'0' * 12}:{pid}:{start}:{token}": False,  # another machine, or this one before it was restarted
        f"{mine[0]}:{mine[1]}:{int(mine[2]) - 1}:{token}": True,  # its process id is used again
        f"{mine[0]}:{mine[1]}:{mine[2]}:{token}": False,
        f"{mine[0]}:1:0:{token}": False,
        token: False,
    }
    for other, dead in others.items():
        OutboxItem.objects.update(lease_owner=other, due_at=now())
        assert (other, delivery.free_dead_leases()) == (other, int(dead))
        held = OutboxItem.objects.get().lease_until is not None
        assert held is not dead
        OutboxItem.objects.update(lease_until=now() + timedelta(minutes=9))
    OutboxItem.objects.update(lease_owner=owner)
    sweeper.Sweeper().sweep()
    item = OutboxItem.objects.get()
    assert (item.lease_owner, item.lease_until, item.state) == ("", None, "queued") and item.due_at > now()


@pytest.mark.django_db(transaction=True)
def test_a_signature_rings_and_the_worker_delivers() -> None:
    with His() as his:
        destination = hl7_destination(his.port)
        ctx = Context("worker")
        worker = threading.Thread(target=tasks.main, args=(ctx,))
        worker.start()
        try:
            signed(ordered())
            wait_for(lambda: states(destination) == ["delivered"])
        finally:
            ctx.stopping.set()
            worker.join(30)
            tasks.stopping.clear()
        assert not worker.is_alive() and len(his.received) == 1


@pytest.mark.django_db(transaction=True)
def test_without_any_broker_the_sweeper_delivers_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(destination_id: int) -> bool:
        return False

    monkeypatch.setattr(tasks, "ring", broken)
    with His() as his:
        destination = hl7_destination(his.port)
        signed(ordered())
        sweep = sweeper.Sweeper()
        sweep.sweep()
        wait_for(lambda: states(destination) == ["delivered"])
        sweep.close()
        tasks.stopping.clear()
        assert len(his.received) == 1
    connections.close_all()


@pytest.mark.django_db
def test_the_sweeper_rings_only_for_what_is_due_and_free(monkeypatch: pytest.MonkeyPatch) -> None:
    due, later, held, dark = (hl7_destination(1, name) for name in ("due", "later", "held", "dark"))
    signed(ordered())
    OutboxItem.objects.filter(destination=later).update(due_at=now() + timedelta(minutes=1))
    OutboxItem.objects.filter(destination=held).update(lease_until=now() + timedelta(minutes=1))
    Destination.objects.filter(pk=dark.pk).update(circuit_open_until=now() + timedelta(minutes=1))
    rung: list[int] = []
    monkeypatch.setattr(tasks, "ring", lambda pk: rung.append(pk) or True)
    sweep = sweeper.Sweeper()
    sweep.ring_due()
    sweep.ring_due()
    assert rung == [due.id]


@pytest.mark.django_db
def test_what_waits_too_long_raises_one_alert_and_recovers() -> None:
    destination = hl7_destination(1)
    Site.objects.create(settings={"alert_after_minutes": {"outbox": 5}})
    signed(ordered())
    sweeper.check_ages()
    assert not Alert.objects.filter(key__startswith="age:outbox").exists()
    OutboxItem.objects.update(created_at=now() - timedelta(minutes=6))
    sweeper.check_ages()
    sweeper.check_ages()
    alert = Alert.objects.get(key=f"age:outbox:{destination.name}")
    assert alert.recovered_at is None and "4711" not in alert.summary
    OutboxItem.objects.update(state="delivered")
    sweeper.check_ages()
    alert.refresh_from_db()
    assert alert.recovered_at is not None


@pytest.mark.django_db
def test_a_parked_message_raises_an_alert_until_somebody_sees_to_it(client: Client) -> None:
    with His(otherwise=ack("AE")) as his:
        destination = hl7_destination(his.port)
        signed(ordered())
        tasks.delivery.drain(destination.id)
        sweeper.check_ages()
        assert Alert.objects.filter(key="parked:his", recovered_at=None).count() == 1
        link = Alert.objects.get(key="parked:his").link
        client.force_login(make.user("ines", Role.ANALYST))
        assert str(OutboxItem.objects.get().control_id) in client.get(link).content.decode()
        tasks.delivery.skip(OutboxItem.objects.get())
        sweeper.check_ages()
        assert not Alert.objects.filter(recovered_at=None).exists()


@pytest.mark.django_db
def test_a_refused_inbound_message_that_waits_is_an_alert_that_leads_to_it(client: Client) -> None:
    Message.objects.create(received_at=now() - timedelta(hours=5), peer="x", raw=b"x", state="refused")
    sweeper.check_ages()
    link = Alert.objects.get(key="age:inbox:refused").link
    client.force_login(make.user("ines", Role.ANALYST))
    page = client.get(link)
    assert page.status_code == 200 and "Refused" in page.content.decode()


class Hook:
    """A webhook's receiver."""

    def __init__(self, status: int = 200) -> None:
        self.bodies: list[bytes] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hook.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"


@pytest.mark.django_db
def test_people_are_told_once_at_the_start_and_once_at_recovery() -> None:
    hook = Hook()
    Site.objects.create(
        name="St. Ann", settings={"alert_mail": ["desk@example.org"], "alert_webhook": hook.url}
    )
    alerts.raise_alert("destination:his", "his does not answer")
    for _ in range(3):
        sweeper.tell()
    assert [m.subject for m in mail.outbox] == ["[St. Ann] Warning: his does not answer"]
    assert len(hook.bodies) == 1 and b'"started"' in hook.bodies[0]
    alerts.recover("destination:his")
    for _ in range(3):
        sweeper.tell()
    assert len(mail.outbox) == 2 and "Recovered" in mail.outbox[1].subject
    assert len(hook.bodies) == 2 and b'"recovered"' in hook.bodies[1]


@pytest.mark.django_db
def test_an_alert_that_no_channel_took_is_told_again() -> None:
    hook = Hook(status=500)
    Site.objects.create(settings={"alert_webhook": hook.url})
    alerts.raise_alert("x", "something")
    assert sweeper.tell() == 0 and sweeper.tell() == 0
    assert len(hook.bodies) == 2


@pytest.mark.django_db
def test_the_broker_is_chosen_by_a_setting() -> None:
    from dramatiq.brokers.stub import StubBroker

    assert isinstance(tasks.make_broker("stub"), StubBroker)
    assert type(tasks.make_broker("postgres")).__mro__[1].__name__ == "PostgresBroker"
    with pytest.raises(ValueError, match="ORDERLY_BROKER"):
        tasks.make_broker("carrier-pigeon")
