"""The count finds what is lost, wrongly matched or unaccounted for: each fault is made on purpose and must be named."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest

from common.clock import now, to_site
from common.store import unit_of_work
from common.uids import uuid7
from integration import sources
from integration.hl7v2.sender import Answer
from integration.inbox import Peer, receive
from integration.models import Destination, Message, OutboxItem, Source
from integration.rehearsal import facts, stage
from integration.rehearsal.day import Options
from integration.rehearsal.doors import Doors
from integration.rehearsal.facts import Logs, Summary
from integration.rehearsal.his import APPLICATION, AUTHORITY, FACILITY, His, Sent
from integration.rehearsal.receivers import FhirReceiver
from integration.rehearsal.scanners import Scan, ScannerLog, Stored
from integration.rehearsal.script import Visit, write
from integration.rehearsal.trouble import Trouble
from pacs.models import Instance, Study
from ris.models import ImagingServiceRequest, RequestedProcedure, StudyMatch
from ris.reconciliation import cases
from tests.ris.making import make_study

pytestmark = pytest.mark.django_db


class DirectHis(His):
    """A HIS whose messages go to the inbox without a socket."""

    def _try(self, sent: Sent) -> Answer | None:
        sent.attempts += 1
        return Answer(b"", receive(sent.raw, Peer("127.0.0.1")).code, "", ())


@dataclass
class Morning:
    """Two patients who were ordered, scanned and matched; the tests then spoil something."""

    his: DirectHis
    logs: Logs

    @property
    def visits(self) -> list[Visit]:
        return self.logs.script.visits

    def count(self) -> Summary:
        return facts.count(self.logs)


@pytest.fixture
def morning() -> Iterator[Morning]:
    began = now() - timedelta(seconds=1)
    sources.forget()
    Source.objects.create(name=stage.SOURCE, application=APPLICATION, facility=FACILITY, address="127.0.0.1")
    script = write(2, 0, 3, to_site(began), "TESTAG")
    his = DirectHis(Doors(threading.Event(), 5), script.tag)
    log = ScannerLog()
    for visit in script.visits:
        assert visit.exam is not None
        his.register(visit.person, "A04")
        his.order(visit.exam)
        log.scans.append(scanned(visit))
    fhir = FhirReceiver()
    logs = Logs(
        Options(patients=2, trouble=0), script, began, his.log, {"RH_CT1": log}, [], [], [], fhir, [], [], []
    )
    yield Morning(his, logs)
    fhir.close()
    sources.forget()


def scanned(visit: Visit) -> Scan:
    """A scan of one image that lies in the archive, matched by its Study Instance UID."""
    exam = visit.exam
    assert exam is not None
    procedure = RequestedProcedure.objects.get(request__placer_order_number=exam.placer)
    person = visit.person
    study = make_study(
        uid=procedure.study_instance_uid,
        accession=procedure.request.accession_number,
        patient_id=person.number,
        issuer=AUTHORITY,
        name=str(person.name),
        birth=person.birth_date,
        modalities=[exam.station.modality],
    )
    Study.objects.filter(pk=study.pk).update(patient_sex=person.sex)
    study.refresh_from_db()
    with unit_of_work("study:test") as unit:
        cases.reconcile(study, unit)
    series = study.series.get()
    image = Instance.objects.create(
        series=series,
        sop_instance_uid=f"{study.study_instance_uid[:50]}.1",
        sop_class_uid="1.2",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        path="x",
        size=1,
        data_set_offset=0,
        sha256="a" * 64,
        received_at=now(),
    )
    stored = Stored(image.sop_instance_uid, series.series_instance_uid, study.study_instance_uid, "a" * 64, 1)
    stored.stored_at = now()
    return Scan(visit, study.study_instance_uid, [stored], sent_at=now())


def test_a_whole_morning_lacks_only_its_reports(morning: Morning) -> None:
    summary = morning.count()
    assert summary.wrong == []
    assert summary.messages["sent"] == summary.messages["applied"] == 4
    assert summary.orders["found"] == 2
    assert (summary.instances["sent"], summary.instances["stored"]) == (2, 2)
    assert summary.studies["linked_by"] == {"study_instance_uid": 2}
    assert summary.studies["as_the_script_knows"] == 2
    assert not summary.ok
    assert sum("are not signed" in text for text in summary.pending) == 2
    assert any("was not told" in text for text in summary.pending)


def test_a_message_that_is_gone_or_was_applied_twice_is_named(morning: Morning) -> None:
    Message.objects.get(control_id="TESTAG00001").delete()
    twin = Message.objects.get(control_id="TESTAG00002")
    twin.pk = None
    twin.save()
    Message.objects.filter(control_id="TESTAG00003").update(raw=b"MSH|other")
    wrong = morning.count().wrong
    assert "message TESTAG00001 was acknowledged and applied 0 times" in wrong
    assert "message TESTAG00002 was acknowledged and applied 2 times" in wrong
    assert "message TESTAG00003 is stored with other bytes than were sent" in wrong


def test_an_order_with_other_keys_or_of_another_patient_is_named(morning: Morning) -> None:
    exam = morning.visits[0].exam
    assert exam
    RequestedProcedure.objects.filter(request__placer_order_number=exam.placer).update(
        study_instance_uid="1.2.3"
    )
    other = ImagingServiceRequest.objects.exclude(placer_order_number=exam.placer).get()
    ImagingServiceRequest.objects.filter(placer_order_number=exam.placer).update(patient=other.patient)
    summary = morning.count()
    if exam.study_uid:
        assert f"order {exam.placer} has another Study Instance UID than the HIS gave" in summary.wrong
    assert f"order {exam.placer} is not the order of patient {exam.person.number}" in summary.pending


def test_a_lost_image_a_changed_one_and_one_that_nobody_sent_are_named(morning: Morning) -> None:
    first, second = (scan.images[0] for scan in morning.logs.scans)
    extra = Instance.objects.get(sop_instance_uid=second.sop_instance_uid)
    extra.pk, extra.sop_instance_uid = uuid7(), "1.2.3.4.5"
    extra._state.adding = True
    extra.save()
    Instance.objects.filter(sop_instance_uid=first.sop_instance_uid).delete()
    Instance.objects.filter(sop_instance_uid=second.sop_instance_uid).update(sha256="b" * 64)
    summary = morning.count()
    assert f"1 images of study {first.study_instance_uid} are not in the archive" in summary.pending
    assert f"image {second.sop_instance_uid} is stored with other bytes than were sent" in summary.wrong
    assert "image 1.2.3.4.5 is in the archive and no scanner sent it" in summary.wrong
    assert summary.instances["stored"] == 0


def test_a_study_linked_to_another_order_is_named(morning: Morning) -> None:
    first, second = (scan.visit.exam for scan in morning.logs.scans)
    assert first and second
    target = RequestedProcedure.objects.get(request__placer_order_number=second.placer)
    StudyMatch.objects.filter(procedure__request__placer_order_number=first.placer).update(procedure=target)
    summary = morning.count()
    assert (
        f"study {morning.logs.scans[0].study_uid} is wrongly linked to order {second.placer}" in summary.wrong
    )
    assert summary.studies["as_the_script_knows"] == 1


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (Trouble.ACCESSION, "was linked by itself; it should have waited for a clerk"),
        (Trouble.STRANGER, "of a patient nobody knows was linked to an order"),
    ],
)
def test_a_study_that_links_although_it_must_not_is_named(
    morning: Morning, trouble: Trouble, said: str
) -> None:
    morning.visits[0].trouble = trouble
    assert any(said in text for text in morning.count().wrong)


def test_a_cancelled_order_with_a_study_is_named(morning: Morning) -> None:
    visit = morning.visits[0]
    assert visit.exam
    visit.trouble = Trouble.CANCELLED
    wrong = morning.count().wrong
    assert f"order {visit.exam.placer} has no images and was linked to a study" in wrong


def test_a_study_without_its_orders_patient_is_named(morning: Morning) -> None:
    uid = morning.logs.scans[0].study_uid
    Study.objects.filter(study_instance_uid=uid).update(patient_name="Somebody^Else")
    assert f"study {uid} does not carry the patient of its order" in morning.count().pending


def test_a_delivery_that_nobody_acknowledged_and_one_that_is_parked_are_named(morning: Morning) -> None:
    his = Destination.objects.create(name=stage.HIS, host="127.0.0.1", port=1)
    exam = morning.visits[0].exam
    assert exam
    common = {
        "destination": his,
        "lane": "x",
        "kind": "ORM",
        "subject": "s",
        "due_at": now(),
        "created_at": now(),
    }
    for status, state in (("IP", OutboxItem.State.DELIVERED), ("CM", OutboxItem.State.PARKED)):
        said = {"order": {"placer": exam.placer}, "status": status}
        OutboxItem.objects.create(**common, facts=said, control_id=f"C{status}", state=state, cause="test")
    wrong = morning.count().wrong
    assert f"status IP of order {exam.placer} counts as delivered and the HIS never acknowledged it" in wrong
    assert any(text.startswith(f"status CM of order {exam.placer} is parked") for text in wrong)


def test_what_peers_complain_of_is_in_the_summary(morning: Morning) -> None:
    morning.logs.scanners["RH_CT1"].complaints.append("a name is wrong")
    logs = replace(morning.logs, failures=["visit 1: gave up"], complaints=["HTTP 500"])
    assert facts.count(logs).wrong == ["visit 1: gave up", "a name is wrong", "HTTP 500"]


def test_the_summary_says_ok_only_without_any_problem() -> None:
    assert Summary().as_json()["ok"] is True
    assert Summary(wrong=["x"]).as_json()["ok"] is False
    late = Summary(pending=["x"]).as_json()
    assert (late["ok"], late["problems"]) == (False, ["x (not by the end)"])
    many = Summary(wrong=[str(n) for n in range(500)]).as_json()["problems"]
    assert (len(many), many[-1]) == (201, "and 300 more")
