"""MPPS told on: to another maker's SCP, in order for each performed step, also when it is away at first."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import ModalityPerformedProcedureStep  # type: ignore[attr-defined]

from common.models import Alert
from common.servers import free_port
from config import site
from integration import delivery, sweeper
from integration.models import Destination, OutboxItem
from tests.integration.outbound.making import FAST, states
from tests.ris.making import group, place, register, who
from tests.worklist.test_mpps import UID, begun, ended, send

pytestmark = pytest.mark.django_db


@dataclass
class Heard:
    """What a receiver was told, and what it answers."""

    port: int = 0
    said: list[tuple[str, str, Dataset]] = field(default_factory=list)
    """Command, SOP Instance UID, attributes."""
    answers: list[int] = field(default_factory=list)
    """Statuses to answer with, in turn; then Success."""

    def status(self) -> int:
        return self.answers.pop(0) if self.answers else 0x0000


@contextmanager
def receiver(port: int = 0, *answers: int, title: str = "OTHER") -> Iterator[Heard]:
    """pynetdicom as MPPS SCP."""
    heard = Heard(answers=list(answers))

    def create(event: Any) -> tuple[int, Dataset]:
        heard.said.append(("N-CREATE", str(event.request.AffectedSOPInstanceUID), event.attribute_list))
        return heard.status(), event.attribute_list

    def change(event: Any) -> tuple[int, Dataset]:
        heard.said.append(("N-SET", str(event.request.RequestedSOPInstanceUID), event.modification_list))
        return heard.status(), event.modification_list

    ae = AE(title)
    ae.require_called_aet = True
    ae.add_supported_context(ModalityPerformedProcedureStep)
    server = ae.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_N_CREATE, create), (evt.EVT_N_SET, change)]
    )
    heard.port = server.server_address[1]
    try:
        yield heard
    finally:
        server.shutdown()


def destination(port: int, **settings: Any) -> Destination:
    return Destination.objects.create(
        name="other",
        kind=Destination.Kind.MPPS,
        host="127.0.0.1",
        port=port,
        settings={**FAST, "called_ae": "OTHER", **settings},
    )


def drain(to: Destination) -> None:
    """Deliver, waiting out the short pauses, until nothing is queued."""
    deadline = time.monotonic() + 60
    while OutboxItem.objects.filter(destination=to, state="queued").exists():
        assert time.monotonic() < deadline, states(to)
        delivery.drain(to.id)
        time.sleep(0.02)


@pytest.fixture
def order() -> None:
    register(who("4711"))
    place(group(accession="A1", rp="RP1", sps="S1", uid="1.2.3.4"), patient=who("4711", authoritative=False))


def test_what_a_scanner_said_is_told_on_as_it_was_said_and_in_order(order: None) -> None:
    with receiver() as other:
        to = destination(other.port)
        send("N-CREATE", begun(PatientName="Sömmer^Çlara=山田^太郎", SpecificCharacterSet="ISO_IR 192"))
        send("N-SET", ended())
        drain(to)
    assert [(command, uid) for command, uid, _ in other.said] == [("N-CREATE", UID), ("N-SET", UID)]
    first, last = other.said[0][2], other.said[1][2]
    assert str(first.PatientName) == "Sömmer^Çlara=山田^太郎"
    assert first.ScheduledStepAttributesSequence[0].StudyInstanceUID == "1.2.3.4"
    assert first.PerformedProcedureStepStatus == "IN PROGRESS"
    assert last.PerformedProcedureStepStatus == "COMPLETED"
    assert "PatientName" not in last and "Modality" not in last  # an N-SET's own attributes, no more
    image = last.PerformedSeriesSequence[0].ReferencedImageSequence[0]
    assert image.ReferencedSOPInstanceUID == "1.2.9.1"
    assert states(to) == ["delivered", "delivered"]


def test_a_receiver_that_is_away_gets_everything_in_order_when_it_is_back(order: None) -> None:
    to = destination(free_port())
    send("N-CREATE", begun())
    send("N-SET", ended())
    deadline = time.monotonic() + 60
    while not Alert.objects.filter(key="destination:other").exists():
        assert time.monotonic() < deadline
        delivery.drain(to.id)
        time.sleep(0.02)
    assert states(to) == ["queued", "queued"]
    assert OutboxItem.objects.order_by("id").last().attempts == 0  # type: ignore[union-attr]
    assert Alert.objects.filter(key="destination:other", recovered_at=None).count() == 1
    with receiver(to.port or 0) as other:
        drain(to)
    assert [command for command, _, _ in other.said] == ["N-CREATE", "N-SET"]
    assert not Alert.objects.filter(key="destination:other", recovered_at=None).exists()


def test_one_performed_step_that_is_refused_holds_up_no_other(order: None) -> None:
    with receiver(0, 0x0106) as other:
        to = destination(other.port)
        send("N-CREATE", begun())
        send("N-CREATE", begun(), uid="1.2.826.0.1.5.2")
        drain(to)
        assert states(to) == ["parked", "delivered"]
        sweeper.check_ages()
        assert Alert.objects.filter(key="parked:other", recovered_at=None).count() == 1
        parked = OutboxItem.objects.get(state="parked")
        assert "0106" in parked.last_error
        delivery.send_again(parked)
        drain(to)
    assert states(to) == ["delivered", "delivered"]


def test_a_failure_of_the_moment_is_tried_again_and_ends(order: None) -> None:
    with receiver(0, 0x0213, 0x0110) as other:
        to = destination(other.port)
        send("N-CREATE", begun())
        drain(to)
        assert states(to) == ["delivered"] and len(other.said) == 3
        other.answers[:] = [0x0213] * 99
        Destination.objects.update(settings={**to.settings, "rejections_most": 3})
        send("N-SET", ended())
        drain(to)
    assert states(to) == ["delivered", "parked"]
    assert [command for command, _, _ in other.said] == ["N-CREATE"] * 3 + ["N-SET"] * 3


def test_one_that_arrived_although_its_answer_was_lost_counts_as_delivered(order: None) -> None:
    with receiver(0, 0x0111) as other:
        to = destination(other.port)
        send("N-CREATE", begun())
        drain(to)
    assert states(to) == ["delivered"]
    assert "0111" in bytes(OutboxItem.objects.get().answer or b"").decode()


def test_what_is_no_receiver_of_ours_is_told_nothing(order: None) -> None:
    to = destination(1, stations=["MR01"])
    off = Destination.objects.create(name="off", kind="mpps", host="127.0.0.1", port=1, enabled=False)
    send("N-CREATE", begun())
    assert states(to) == states(off) == []


def test_a_receiver_without_title_waits_and_says_why(order: None) -> None:
    to = destination(1, called_ae="")
    send("N-CREATE", begun())
    delivery.drain(to.id)
    assert "called_ae" in OutboxItem.objects.get().last_error and states(to) == ["queued"]


def test_a_receiver_comes_from_the_site_file(tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_text(
        '[[destination]]\nname = "other"\nkind = "mpps"\nhost = "10.0.0.9"\nport = 104\n'
        'messages = ["MPPS"]\ncalled_ae = "OTHER"\nstations = ["CT01"]\n'
    )
    site.load(file)
    row = Destination.objects.get(name="other")
    assert (row.kind, row.settings) == ("mpps", {"called_ae": "OTHER", "stations": ["CT01"]})
    assert 'kind = "mpps"' in site.dump()


@pytest.mark.parametrize("kind", ["ORM", "OMG"])
def test_the_his_hears_of_what_the_scanner_reports(order: None, kind: str) -> None:
    his = Destination.objects.create(name="his", host="127.0.0.1", port=9, messages=[kind])

    def told() -> list[str]:
        items = OutboxItem.objects.filter(destination=his, kind=kind).order_by("id")
        return [item.facts["status"] for item in items]

    send("N-CREATE", begun())
    assert told() == ["IP"]
    send("N-SET", ended())
    assert told() == ["IP", "CM"]
    reason = Dataset()
    reason.CodeValue, reason.CodingSchemeDesignator, reason.CodeMeaning = "110513", "DCM", "Patient died"
    place(group(accession="A2", rp="RP2", sps="S2", uid="1.2.3.5"), patient=who("4711", authoritative=False))
    second = begun()
    second.ScheduledStepAttributesSequence[0].StudyInstanceUID = "1.2.3.5"
    second.ScheduledStepAttributesSequence[0].ScheduledProcedureStepID = "S2"
    send("N-CREATE", second, uid="1.2.826.0.1.5.2")
    stopped = ended("DISCONTINUED", PerformedProcedureStepDiscontinuationReasonCodeSequence=[reason])
    send("N-SET", stopped, uid="1.2.826.0.1.5.2")
    assert told() == ["IP", "CM", "IP", "DC"]
