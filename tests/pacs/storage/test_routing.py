"""Routing: settled studies reach the nodes that rules name; all of them, once, and after trouble too."""

from __future__ import annotations

import socket
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from common import cause, events
from common.clock import now
from common.models import Alert
from common.store import unit_of_work
from pacs import indexing, routing
from pacs.events import StudySettled
from pacs.models import ApplicationEntity, Forwarding, Instance, Overlay, RoutingRule, Study
from tests.pacs.dimse.test_retrieve import Receiver, index, receiving
from tests.pacs.dimse.test_store import CT, EXPLICIT
from tests.pacs.storage.test_kills import Nursery, wait_for

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def nobody_above(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(events._handlers, StudySettled, [])


def settle() -> None:
    index()
    Study.objects.filter(settled_at=None).update(last_instance_at=now() - timedelta(minutes=1))
    indexing.settle_once()


def drain(title: str = "RECEIVER") -> int:
    return routing.drain(title, threading.Event())


def rule(destination: str = "RECEIVER", **conditions: Any) -> RoutingRule:
    ae = ApplicationEntity.objects.get(title=destination)
    return RoutingRule.objects.create(name=f"to {destination} {conditions}", destination=ae, **conditions)


def test_a_study_that_a_rule_is_about_is_sent_on_with_its_overlay_and_again_when_it_grows(
    spooled: Any,
) -> None:
    with receiving(EXPLICIT, classes=[CT]) as receiver:
        rule(modalities=["CT"], calling_aes=["CT01"], description="head")
        sent = {
            f"1.2.3.1.{n}": spooled(SOPInstanceUID=f"1.2.3.1.{n}", StudyDescription="CT Head") for n in (1, 2)
        }
        settle()
        assert drain() == 1
        assert {uid: data for uid, (_, data) in receiver.got.items()} == sent
        receiver.got.clear()
        assert drain() == 0
        Overlay.objects.create(
            study=Study.objects.get(), attributes={"PatientID": "N1"}, cause="user:1", updated_at=now()
        )
        spooled(SOPInstanceUID="1.2.3.1.3", StudyDescription="CT Head")
        settle()
        assert drain() == 1
        assert set(receiver.got) == {"1.2.3.1.3"}
        assert b"N1" in receiver.got["1.2.3.1.3"][1]
    row = Forwarding.objects.get()
    assert (row.state, len(row.sent), row.attempts) == ("sent", 3, 0)


@pytest.mark.parametrize(
    "conditions",
    [{"modalities": ["MR"]}, {"calling_aes": ["MR01"]}, {"description": "spine"}, {"enabled": False}],
)
def test_a_study_that_no_rule_is_about_stays_here(spooled: Any, conditions: dict[str, Any]) -> None:
    ApplicationEntity.objects.create(title="RECEIVER", host="127.0.0.1", port=104)
    rule(**conditions)
    spooled(StudyDescription="CT Head")
    settle()
    assert not Forwarding.objects.exists()


def test_a_rule_may_wait_until_the_study_is_linked_to_its_order(spooled: Any) -> None:
    with receiving(EXPLICIT, classes=[CT]) as receiver:
        rule(after_match=True)
        spooled()
        settle()
        assert drain() == 0 and not receiver.got
        assert Forwarding.objects.get().state == "held"
        study = Study.objects.get()
        with unit_of_work(cause.system("test")) as unit:
            routing.linked(study, True, unit)
        with unit_of_work(cause.system("test")) as unit:
            routing.linked(study, False, unit)  # unlinked before it went
        assert drain() == 0 and not receiver.got
        with unit_of_work(cause.system("test")) as unit:
            routing.linked(study, True, unit)
        assert drain() == 1 and len(receiver.got) == 1
        with unit_of_work(cause.system("test")) as unit:
            routing.linked(study, False, unit)
    assert Forwarding.objects.get().state == "sent"


def test_what_a_rule_held_back_goes_when_it_holds_nothing_back_any_more(spooled: Any) -> None:
    with receiving(EXPLICIT, classes=[CT]) as receiver:
        waits = rule(after_match=True)
        spooled()
        settle()
        assert drain() == 0
        waits.after_match = False
        waits.save()
        assert drain() == 1 and len(receiver.got) == 1
    assert Forwarding.objects.get().state == "sent"


def test_what_the_match_says_while_the_study_settles_counts_at_once(
    spooled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row that settling has just made is not written yet when the study is linked."""
    ApplicationEntity.objects.create(title="RECEIVER", host="127.0.0.1", port=104)
    rule(after_match=True)

    def link(event: StudySettled, unit: Any) -> None:
        routing.linked(event.study, True, unit)

    monkeypatch.setitem(events._handlers, StudySettled, [link])
    spooled()
    settle()
    assert Forwarding.objects.get().state == "waiting"


def test_a_node_that_is_away_is_tried_later_raises_an_alert_and_gets_everything_in_the_end(
    spooled: Any,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    ae = ApplicationEntity.objects.create(title="RECEIVER", host="127.0.0.1", port=port)
    rule()
    spooled()
    settle()
    for attempt in range(1, 4):
        assert drain() == 0
        row = Forwarding.objects.get()
        assert (row.state, row.attempts) == ("waiting", attempt)
        assert row.next_attempt_at is not None and row.next_attempt_at > now()
        assert drain() == 0 and Forwarding.objects.get().attempts == attempt  # not before its time
        Forwarding.objects.update(next_attempt_at=now())
    assert Alert.objects.filter(key="routing:RECEIVER", recovered_at=None).count() == 1
    receiver = Receiver(EXPLICIT, classes=[CT])
    try:
        ae.port = receiver.port
        ae.save()
        assert drain() == 1
    finally:
        receiver.stop()
    assert len(receiver.got) == 1
    assert not Alert.objects.filter(recovered_at=None).exists()


def test_what_has_arrived_is_not_sent_again_after_a_refusal(spooled: Any) -> None:
    with receiving(EXPLICIT, classes=[CT]) as receiver:
        rule()
        for number in range(1, 5):
            spooled(SOPInstanceUID=f"1.2.3.1.{number}", InstanceNumber=number)
        settle()
        count = 0
        keep = receiver._store

        def refuse_the_third(event: Any) -> int:
            nonlocal count
            count += 1
            if count == 3:
                return 0xA700
            return keep(event)

        receiver.server.unbind(__import__("pynetdicom").evt.EVT_C_STORE, receiver._store)
        receiver.server.bind(__import__("pynetdicom").evt.EVT_C_STORE, refuse_the_third)
        assert drain() == 0
        row = Forwarding.objects.get()
        assert len(row.sent) == 3 and "A700" in row.detail
        receiver.got.clear()
        Forwarding.objects.update(next_attempt_at=now())
        assert drain() == 1
        assert set(receiver.got) == {"1.2.3.1.3"}


def test_a_router_that_is_killed_midway_is_followed_by_one_that_sends_the_rest(
    spooled: Any, data_dir: Path
) -> None:
    nursery = Nursery(data_dir)
    try:
        with receiving(EXPLICIT, classes=[CT]) as receiver:
            rule()
            sent = {f"1.2.3.1.{n}": spooled(SOPInstanceUID=f"1.2.3.1.{n}") for n in range(1, 9)}
            settle()
            pid, _ = nursery.start("router routing.sent:4")
            wait_for(lambda: not Path(f"/proc/{pid}").exists())
            nursery.children.discard(pid)
            assert len(receiver.got) == 4 and Forwarding.objects.get().state == "waiting"
            nursery.start("router")
            wait_for(lambda: Forwarding.objects.get().state == "sent")
            assert {uid: data for uid, (_, data) in receiver.got.items()} == sent
    finally:
        nursery.close()


def test_after_many_attempts_a_study_is_parked_until_a_person_sends_it_again(spooled: Any) -> None:
    ApplicationEntity.objects.create(title="RECEIVER", host="*", port=None)  # nowhere to go
    rule()
    spooled()
    settle()
    Forwarding.objects.update(attempts=routing.PARKED_AFTER - 1)
    assert drain() == 0
    row = Forwarding.objects.get()
    assert (row.state, row.detail) == ("parked", "the destination has no address and port")
    assert not routing.due().exists()
    routing.again(row)
    assert routing.due().exists()


def test_a_dead_node_holds_up_no_other(spooled: Any) -> None:
    silent = socket.create_server(("127.0.0.1", 0))  # takes connections, and says nothing
    ApplicationEntity.objects.create(title="SILENT", host="127.0.0.1", port=silent.getsockname()[1])
    stopping = threading.Event()
    try:
        with receiving(EXPLICIT, classes=[CT]) as receiver:
            rule("SILENT")
            rule("RECEIVER")
            spooled()
            settle()
            router = routing.Router(stopping)
            router.tend()
            router._threads["RECEIVER"].join(30)
            assert set(receiver.got) == {Instance.objects.get().sop_instance_uid}
            assert router._threads["SILENT"].is_alive()
    finally:
        stopping.set()
        silent.close()
        router.join(60)


def test_a_parked_study_stands_at_the_desk_and_is_sent_again_by_a_click(spooled: Any, client: Any) -> None:
    from django.contrib.auth import get_user_model

    ApplicationEntity.objects.create(title="RECEIVER", host="*", port=None)
    rule()
    spooled()
    settle()
    Forwarding.objects.update(attempts=routing.PARKED_AFTER - 1)
    drain()
    row = Forwarding.objects.get()
    client.force_login(get_user_model().objects.create_superuser("root", password="x"))
    for address in ("/admin/pacs/forwarding/", "/admin/pacs/routingrule/", "/admin/pacs/routingrule/add/"):
        assert client.get(address).status_code == 200
    page = client.get(f"/admin/pacs/forwarding/{row.pk}/change/")
    assert page.status_code == 200 and "has no address and port" in page.content.decode()
    assert client.post(f"/admin/pacs/forwarding/{row.pk}/again/").status_code == 302
    assert Forwarding.objects.get().state == "waiting"
