"""The mirror over a real socket: in the order of references, once, and never an older state over a newer one."""

import threading
import time
from typing import Any

import pytest

from common.clock import now
from common.store import unit_of_work
from integration import delivery
from integration.models import Destination, MirrorState, OutboxItem
from pacs.models import Study
from ris.commands import Identifier, MergePatients
from ris.events import StudyGrew
from ris.models import StudyMatch
from ris.reconciliation import cases
from ris.services import merging
from tests.integration.outbound.making import (
    addended,
    fhir_destination,
    imaged,
    moved,
    ordered,
    reader,
    signed,
    states,
)
from tests.peers.fhir_server import FhirReceiver, Scripted
from tests.ris.making import register, who

pytestmark = pytest.mark.django_db


def drain(destination: Destination) -> None:
    """Until nothing is queued."""
    end = time.monotonic() + 20
    while OutboxItem.objects.filter(destination=destination, state="queued").exists():
        assert time.monotonic() < end, f"still queued: {states(destination)}"
        delivery.drain(destination.id)
        time.sleep(0.02)


def settled(procedure: Any) -> Study:
    """A matched study that the archive has settled."""
    study = imaged(procedure)
    Study.objects.filter(pk=study.pk).update(settled_at=study.received_at)
    study.refresh_from_db()
    return study


def test_a_report_arrives_after_everything_it_refers_to() -> None:
    with FhirReceiver() as server:
        destination = fhir_destination(server.url)
        procedure = ordered()
        study = settled(procedure)
        version = signed(procedure)
        drain(destination)
        kinds = [put.partition("/")[0] for put in server.puts]
        assert kinds == ["Patient", "Endpoint", "ServiceRequest", "ImagingStudy", "DiagnosticReport"]
        assert server.unresolved == []
        report = server.resources[f"DiagnosticReport/{version.report_id}"]
        assert report["imagingStudy"] == [{"reference": f"ImagingStudy/{study.id}", "type": "ImagingStudy"}]
        assert report["status"] == "final" and report["conclusion"] == "Normal."
        assert set(states(destination)) == {"delivered"}


def test_a_repeat_changes_nothing() -> None:
    with FhirReceiver() as server:
        destination = fhir_destination(server.url)
        procedure = ordered()
        settled(procedure)
        signed(procedure)
        drain(destination)
        before = list(server.puts)
        for item in OutboxItem.objects.all():
            delivery.send_again(item)
        drain(destination)
        assert server.puts == before
        assert set(OutboxItem.objects.values_list("tries__outcome", flat=True)) == {"delivered", "unchanged"}


def test_a_study_that_grows_is_told_again_and_nothing_else_is() -> None:
    with FhirReceiver() as server:
        destination = fhir_destination(server.url)
        study = settled(ordered())
        drain(destination)
        server.puts.clear()
        Study.objects.filter(pk=study.pk).update(number_of_study_related_instances=77)
        with unit_of_work("study:x") as unit:
            unit.publish(StudyGrew(study=study, match=StudyMatch.objects.get()))
        drain(destination)
        assert server.puts == [f"ImagingStudy/{study.id}"]
        assert server.of("ImagingStudy")[0]["numberOfInstances"] == 77


def test_an_addendum_and_a_changed_name_reach_the_server() -> None:
    with FhirReceiver() as server:
        destination = fhir_destination(server.url)
        procedure = ordered()
        settled(procedure)
        signed(procedure)
        drain(destination)
        server.puts.clear()
        addended(procedure, "One more.")
        register(who(name="Sommer^Klara"))
        drain(destination)
        assert server.of("DiagnosticReport")[0]["status"] == "appended"
        assert server.of("Patient")[0]["name"][0]["given"] == ["Klara"]
        assert [p.partition("/")[0] for p in server.puts].count("Patient") == 1


def test_an_order_that_is_over_is_told_again() -> None:
    with FhirReceiver() as server:
        destination = fhir_destination(server.url)
        procedure = ordered()
        settled(procedure)
        drain(destination)
        assert server.of("ServiceRequest")[0]["status"] == "completed"
        moved(procedure, "SCHEDULED", "clerk")
        drain(destination)
        assert server.of("ServiceRequest")[0]["status"] == "active"


def test_a_merge_moves_the_study_and_links_both_patients() -> None:
    with FhirReceiver() as server:
        destination = fhir_destination(server.url)
        procedure = ordered()
        old = procedure.request.patient_id
        settled(procedure)
        signed(procedure)
        drain(destination)
        with unit_of_work("hl7:9") as unit:
            survivor = merging.merge(MergePatients(who("9999"), (Identifier("4711", "HOSP"),)), unit)
        new = survivor.patient_ids[0]
        drain(destination)
        subjects = {r["subject"]["reference"] for kind in ("ImagingStudy", "DiagnosticReport", "ServiceRequest")
                    for r in server.of(kind)}  # fmt: skip
        assert subjects == {f"Patient/{new}"}
        assert server.resources[f"Patient/{old}"]["active"] is False
        links = {name: r["link"] for name, r in server.resources.items() if name.startswith("Patient/")}
        assert links[f"Patient/{old}"] == [{"other": {"reference": f"Patient/{new}"}, "type": "replaced-by"}]
        assert links[f"Patient/{new}"] == [{"other": {"reference": f"Patient/{old}"}, "type": "replaces"}]
        assert server.unresolved == []


def test_a_link_undone_by_a_clerk_takes_the_patient_off_the_study() -> None:
    with FhirReceiver() as server:
        destination = fhir_destination(server.url)
        procedure = ordered()
        study = settled(procedure)
        drain(destination)
        with unit_of_work("user:1") as unit:
            cases.unlink(study.id, reader(), unit)
        drain(destination)
        told = server.of("ImagingStudy")[0]
        assert "reference" not in told["subject"] and "basedOn" not in told


@pytest.mark.parametrize("status", [409, 412, 429, 500, 503])
def test_what_may_pass_is_tried_again(status: int) -> None:
    with FhirReceiver(script=[Scripted(status, {"Retry-After": "0"})]) as server:
        destination = fhir_destination(server.url)
        settled(ordered())
        drain(destination)
        assert set(states(destination)) == {"delivered"} and len(server.of("ImagingStudy")) == 1


def test_a_resource_the_server_does_not_want_is_parked_with_its_answer() -> None:
    with FhirReceiver(script=[Scripted(422)]) as server:
        destination = fhir_destination(server.url)
        settled(ordered())
        drain(destination)
        item = OutboxItem.objects.filter(state="parked").get()
        assert b"OperationOutcome" in bytes(item.answer or b"") and "422" in item.last_error


def test_a_wrong_token_parks_nothing() -> None:
    with FhirReceiver(token="right") as server:
        destination = fhir_destination(server.url, token="wrong")
        settled(ordered())
        delivery.drain(destination.id)
        assert "parked" not in states(destination) and not server.resources
        Destination.objects.filter(pk=destination.pk).update(
            settings={**destination.settings, "token": "right"}
        )
        drain(destination)
        assert len(server.of("ImagingStudy")) == 1


def test_an_answer_that_never_came_leaves_the_resource_in_doubt_and_it_is_sent_again() -> None:
    with FhirReceiver(script=[Scripted(200, seconds=0.6, keeps=True)]) as server:
        destination = fhir_destination(server.url, ack_seconds=0.3, retry_seconds=600, retry_seconds_most=600)
        settled(ordered())
        OutboxItem.objects.exclude(kind="FHIR:ImagingStudy").delete()
        delivery.drain(destination.id)
        patient = MirrorState.objects.get(resource__startswith="Patient/")
        assert patient.sha256 == ""
        Destination.objects.update(settings={**destination.settings, "ack_seconds": 10})
        OutboxItem.objects.update(due_at=now())
        drain(destination)
        patient.refresh_from_db()
        assert patient.sha256 and len(server.of("Patient")) == 1


@pytest.mark.django_db(transaction=True)
def test_what_changes_while_it_is_sent_is_sent_as_it_is_now() -> None:
    with FhirReceiver(script=[Scripted(200, seconds=0.5, keeps=True)]) as server:
        destination = fhir_destination(server.url, ack_seconds=5)
        procedure = ordered()
        settled(procedure)
        OutboxItem.objects.exclude(kind="FHIR:ImagingStudy").delete()

        def rename() -> None:
            time.sleep(0.2)
            register(who(name="Sommer^Klara"))
            OutboxItem.objects.filter(kind="FHIR:Patient").delete()  # even if no item were queued for it

        other = threading.Thread(target=rename)
        other.start()
        delivery.drain(destination.id)
        other.join()
        assert server.of("Patient")[0]["name"][0]["given"] == ["Klara"]


def test_a_destination_with_an_unusable_url_waits_with_its_circuit_open() -> None:
    destination = fhir_destination("ftp://example.org")
    settled(ordered())
    for _ in range(4):
        delivery.drain(destination.id)
        time.sleep(0.06)
    destination.refresh_from_db()
    assert destination.failures >= 3 and "parked" not in states(destination)
