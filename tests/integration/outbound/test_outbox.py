"""What is queued with which fact, for whom, and what is frozen in it."""

import pytest
from django.conf import settings
from django.db import transaction

from common.store import unit_of_work
from integration.destinations import described
from integration.models import Destination, OutboxItem
from integration.outbox import new_control_id
from ris.models import ScheduledProcedureStep
from ris.services import steps
from tests.integration.outbound.making import (
    addended,
    fhir_destination,
    hl7_destination,
    imaged,
    moved,
    ordered,
    signed,
    states,
)
from tests.ris.making import group, place, register, who

pytestmark = pytest.mark.django_db


def items(kind: str = "") -> list[OutboxItem]:
    """What is queued, in order."""
    return list(OutboxItem.objects.filter(kind__startswith=kind).order_by("id"))


def codes() -> list[str]:
    """The order statuses that are queued, in order."""
    return [i.facts["status"] for i in items("ORM")]


def test_a_signature_queues_one_result_for_each_destination_that_takes_them() -> None:
    hl7_destination(1, "his")
    hl7_destination(1, "ward", messages=("ORU",))
    hl7_destination(1, "billing", messages=("ORM",))
    Destination.objects.create(name="off", host="x", port=1, messages=["ORU"], enabled=False)
    version = signed(ordered())
    found = items("ORU")
    assert [i.destination.name for i in found] == ["his", "ward"]
    assert {i.subject for i in found} == {f"report_version:{version.id}"}
    assert len({i.control_id for i in found}) == 2 and all(len(i.control_id) == 20 for i in found)


def test_the_facts_are_those_of_the_signature_whatever_changes_later() -> None:
    hl7_destination(1)
    procedure = ordered()
    imaged(procedure)
    signed(procedure, "Text one.", "Done.")
    register(who(name="Other^Name"))
    facts = items("ORU")[0].facts
    assert facts["patient"]["name"] == "Sommer^Clara"
    assert facts["patient"]["identifiers"][0]["namespace"] == "HOSP"
    assert facts["report"]["findings"] == "Text one." and facts["report"]["signer_id"] == "R77"
    assert facts["order"]["accession"] == "A100" and facts["modality"] == "CT"
    assert facts["study_instance_uids"] == [procedure.study_instance_uid]
    assert facts["started"].startswith("2026-03-02T09:30")


def test_an_addendum_carries_all_versions_before_it() -> None:
    hl7_destination(1)
    procedure = ordered()
    signed(procedure)
    addended(procedure, "One more thing.")
    last = items("ORU")[-1].facts
    assert last["report"]["status"] == "ADDENDED" and [v["number"] for v in last["previous"]] == [1]


def test_a_fact_that_is_rolled_back_leaves_no_message() -> None:
    hl7_destination(1)
    procedure = ordered()
    step = ScheduledProcedureStep.objects.get(procedure=procedure)
    with pytest.raises(RuntimeError), transaction.atomic():
        with unit_of_work("mpps:1") as unit:
            steps.move(step.id, "STARTED", "scanner", unit)
        raise RuntimeError
    assert items() == []


def test_a_scanner_s_progress_is_told_as_in_progress_and_completed() -> None:
    hl7_destination(1)
    procedure = ordered()
    moved(procedure, "STARTED")
    moved(procedure, "COMPLETED")
    assert codes() == ["IP", "CM"]
    assert {i.lane for i in items()} == {f"order:{procedure.request_id}"}


def test_what_the_his_asked_for_itself_is_not_echoed() -> None:
    hl7_destination(1)
    procedure = ordered()
    moved(procedure, "CANCELED", "order")
    assert items() == []


def test_a_procedure_of_two_steps_is_completed_by_its_last() -> None:
    hl7_destination(1)
    register(who())
    place(
        group(accession="A2", rp="RP1", sps="S1", uid="1.2.3"),
        group(accession="A2", rp="RP1", sps="S2", uid="1.2.3"),
    )
    one, two = ScheduledProcedureStep.objects.order_by("scheduled_procedure_step_id")
    assert one.procedure_id == two.procedure_id
    for step, status in ((one, "STARTED"), (two, "STARTED"), (one, "COMPLETED"), (two, "DISCONTINUED")):
        with unit_of_work("mpps:1") as unit:
            steps.move(step.id, status, "scanner", unit)
    assert codes() == ["IP", "CM"]


def test_a_clerk_s_cancel_and_its_undoing_are_told() -> None:
    hl7_destination(1)
    procedure = ordered()
    for status in ("CANCELED", "SCHEDULED", "HELD", "SCHEDULED", "DISCONTINUED"):
        moved(procedure, status, "clerk")
    assert codes() == ["CA", "SC", "HD", "SC", "DC"]


def test_a_destination_may_leave_a_status_out() -> None:
    hl7_destination(1, order_status={"IP": ""})
    procedure = ordered()
    moved(procedure, "STARTED")
    moved(procedure, "COMPLETED")
    assert codes() == ["CM"]


def test_images_of_a_step_without_mpps_complete_the_order_at_the_his() -> None:
    hl7_destination(1)
    imaged(ordered())
    assert codes() == ["CM"]


def test_a_matched_study_and_a_signed_report_are_queued_for_the_mirror() -> None:
    destination = fhir_destination("http://127.0.0.1:1")
    procedure = ordered()
    study = imaged(procedure)
    version = signed(procedure)
    subjects = [i.subject for i in items("FHIR")]
    assert f"ImagingStudy/{study.id}" in subjects and f"DiagnosticReport/{version.report_id}" in subjects
    assert {i.lane for i in items("FHIR")} == {f"patient:{procedure.request.patient_id}"}
    assert len(states(destination)) == len(subjects)


def test_a_patient_nobody_was_told_of_is_not_mirrored() -> None:
    fhir_destination("http://127.0.0.1:1")
    register(who())
    register(who(name="Sommer^Klara"))
    assert items() == []


def test_a_changed_patient_is_told_again_to_a_server_that_waits_for_it() -> None:
    fhir_destination("http://127.0.0.1:1")
    procedure = ordered()
    imaged(procedure)
    OutboxItem.objects.exclude(kind="FHIR:ImagingStudy").delete()
    register(who(name="Sommer^Klara"))
    assert f"Patient/{procedure.request.patient_id}" in [i.subject for i in items("FHIR:Patient")]


def test_a_destination_may_want_everything_in_one_lane() -> None:
    hl7_destination(1, lane="destination")
    signed(ordered("A1"))
    signed(ordered("A2", patient="4712"))
    assert {i.lane for i in items("ORU")} == {"all"}


def test_control_ids_are_unique_and_sort_by_time() -> None:
    made = [new_control_id() for _ in range(2000)]
    assert len(set(made)) == 2000
    assert all(len(one) == 20 for one in made)
    assert made[0][:9] <= made[-1][:9]


def test_every_setting_of_a_destination_is_described() -> None:
    page = (settings.BASE_DIR / "docs" / "destinations.md").read_text()
    missing = [key for key in described() if f"| `{key}` |" not in page]
    assert not missing
