"""Orders: joined or kept apart by their keys, made whole where a sender leaves gaps, never lost."""

from dataclasses import replace
from datetime import timedelta

import pytest

from ris.commands import Identifier, OrderAction, OrderPolicy
from ris.errors import BadValue, DuplicateKey, Missing, NotAllowed, UnknownKey
from ris.models import (
    Change,
    ImagingServiceRequest,
    Patient,
    ProcedureDefinition,
    RequestedProcedure,
    ScheduledProcedureStep,
    Station,
)
from tests.ris.making import NOW, group, place, register, who

pytestmark = pytest.mark.django_db


def test_a_new_order_makes_request_procedure_and_step():
    applied = place(group(accession="A1", placer="P1", rp="R1", uid="1.2.3", sps="S1"))
    request = ImagingServiceRequest.objects.get()
    procedure = request.procedures.get()
    step = procedure.steps.get()
    assert (request.accession_number, request.placer_order_number, request.status) == ("A1", "P1", "ACTIVE")
    assert (procedure.requested_procedure_id, procedure.study_instance_uid) == ("R1", "1.2.3")
    assert (step.scheduled_procedure_step_id, step.status, step.modality) == ("S1", "SCHEDULED", "CT")
    assert applied.accession_numbers == ["A1"]
    assert applied.request_ids == [request.id]
    assert Patient.objects.get().patient_name == "Sommer^Clara"
    assert Change.objects.filter(what="scheduledprocedurestep", cause="hl7:1").count() == 1


def test_the_same_order_again_changes_nothing():
    for _ in range(2):
        place(group(accession="A1", rp="R1", uid="1.2.3", sps="S1"))
    assert ImagingServiceRequest.objects.count() == 1
    assert RequestedProcedure.objects.count() == 1
    assert ScheduledProcedureStep.objects.count() == 1
    assert not Change.objects.filter(what="scheduledprocedurestep").exclude(values={"created": True}).exists()


def test_what_a_sender_leaves_out_is_made_and_kept_for_every_update():
    place(group(placer="P1"))
    first = RequestedProcedure.objects.get()
    place(group(OrderAction.CHANGE, placer="P1", modality="MR"))
    again = RequestedProcedure.objects.get()
    assert first.study_instance_uid == again.study_instance_uid
    assert first.requested_procedure_id == again.requested_procedure_id
    assert ImagingServiceRequest.objects.get().accession_number.startswith("OA")
    assert ScheduledProcedureStep.objects.get().modality == "MR"


def test_numbers_that_we_made_give_way_to_the_senders_own():
    place(group(placer="P1"))
    place(group(placer="P1", accession="A9", rp="R9", uid="1.2.9", sps="S9"))
    request = ImagingServiceRequest.objects.get()
    procedure = request.procedures.get()
    assert request.accession_number == "A9"
    assert (procedure.requested_procedure_id, procedure.study_instance_uid) == ("R9", "1.2.9")
    assert procedure.steps.get().scheduled_procedure_step_id == "S9"


def test_groups_with_one_accession_are_one_request_with_a_procedure_each():
    place(
        group(accession="A1", placer="P1", rp="R1", uid="1.2.1", sps="S1", code="CTHEAD"),
        group(accession="A1", placer="P2", rp="R2", uid="1.2.2", sps="S2", code="CTCHEST"),
    )
    request = ImagingServiceRequest.objects.get()
    assert {p.requested_procedure_id for p in request.procedures.all()} == {"R1", "R2"}
    assert {p.placer_order_number for p in request.procedures.all()} == {"P1", "P2"}


def test_groups_with_one_procedure_id_are_one_procedure_with_a_step_each():
    place(
        group(accession="A1", rp="R1", uid="1.2.1", sps="S1"),
        group(accession="A1", rp="R1", uid="1.2.1", sps="S2"),
    )
    procedure = RequestedProcedure.objects.get()
    assert {s.scheduled_procedure_step_id for s in procedure.steps.all()} == {"S1", "S2"}


def test_groups_with_different_accessions_are_kept_apart():
    place(group(accession="A1", placer="P1", uid="1.2.1"), group(accession="A2", placer="P2", uid="1.2.2"))
    assert set(ImagingServiceRequest.objects.values_list("accession_number", flat=True)) == {"A1", "A2"}


def test_a_group_without_procedure_keys_is_known_again_by_its_code():
    place(group(accession="A1", code="CTHEAD"), group(accession="A1", code="CTCHEST"))
    place(group(OrderAction.CHANGE, accession="A1", code="CTCHEST", modality="MR"))
    modalities = {p.code_value: p.steps.get().modality for p in RequestedProcedure.objects.all()}
    assert modalities == {"CTHEAD": "CT", "CTCHEST": "MR"}


def test_a_cancel_by_placer_number_alone_ends_its_own_group_only():
    place(
        group(accession="A1", placer="P1", rp="R1", sps="S1"),
        group(accession="A1", placer="P2", rp="R2", sps="S2", code="CTCHEST"),
    )
    place(group(OrderAction.CANCEL, placer="P2", detail=False))
    assert ScheduledProcedureStep.objects.get(scheduled_procedure_step_id="S1").status == "SCHEDULED"
    assert ScheduledProcedureStep.objects.get(scheduled_procedure_step_id="S2").status == "CANCELED"
    assert ImagingServiceRequest.objects.get().status == "ACTIVE"


def test_a_cancel_of_a_started_examination_is_refused_with_its_place():
    place(group(accession="A1", sps="S1"))
    ScheduledProcedureStep.objects.update(status="STARTED")
    with pytest.raises(NotAllowed) as refusal:
        place(group(OrderAction.CANCEL, accession="A1"))
    assert (refusal.value.attribute, refusal.value.group) == ("order_control", 0)
    assert ScheduledProcedureStep.objects.get().status == "STARTED"


@pytest.mark.parametrize(
    ("action", "status"),
    [
        (OrderAction.CANCEL, "COMPLETED"),
        (OrderAction.HOLD, "CANCELED"),
        (OrderAction.DISCONTINUE, "COMPLETED"),
        (OrderAction.HOLD, "STARTED"),
        (OrderAction.HOLD, "COMPLETED"),
        (OrderAction.REPLACED, "COMPLETED"),
    ],
)
def test_what_cannot_be_done_any_more_is_refused_and_not_said_to_be_done(action: OrderAction, status: str):
    place(group(accession="A1", sps="S1"))
    ScheduledProcedureStep.objects.update(status=status)
    with pytest.raises(NotAllowed) as refusal:
        place(group(action, accession="A1", detail=False), at=NOW + timedelta(minutes=2))
    assert (refusal.value.attribute, refusal.value.group) == ("order_control", 0)
    assert ScheduledProcedureStep.objects.get().status == status


def test_a_cancel_leaves_what_is_done_and_cancels_the_rest():
    place(group(accession="A1", rp="R1", sps="S1"), group(accession="A1", rp="R1", sps="S2"))
    ScheduledProcedureStep.objects.filter(scheduled_procedure_step_id="S1").update(status="COMPLETED")
    applied = place(group(OrderAction.CANCEL, accession="A1", detail=False), at=NOW + timedelta(minutes=2))
    found = ScheduledProcedureStep.objects.values_list("scheduled_procedure_step_id", "status")
    assert dict(found) == {"S1": "COMPLETED", "S2": "CANCELED"} and applied.warnings


def test_a_cancel_again_is_no_fault():
    place(group(accession="A1", sps="S1"))
    for minutes in (2, 3):
        place(group(OrderAction.CANCEL, accession="A1", detail=False), at=NOW + timedelta(minutes=minutes))
    assert ScheduledProcedureStep.objects.get().status == "CANCELED"


def test_a_release_of_what_goes_on_changes_nothing():
    place(group(accession="A1", sps="S1"))
    ScheduledProcedureStep.objects.update(status="STARTED")
    place(group(OrderAction.RELEASE, accession="A1", detail=False), at=NOW + timedelta(minutes=2))
    assert ScheduledProcedureStep.objects.get().status == "STARTED"


def test_a_late_status_does_not_reopen_a_canceled_order():
    place(group(accession="A1", sps="S1"))
    place(group(OrderAction.CANCEL, accession="A1"), at=NOW + timedelta(minutes=2))
    applied = place(group(OrderAction.STATUS, accession="A1", status="SCHEDULED", sps="S1"), at=NOW)
    assert ScheduledProcedureStep.objects.get().status == "CANCELED"
    assert applied.warnings


def test_a_newer_new_order_reopens_a_canceled_one():
    place(group(accession="A1", sps="S1"))
    place(group(OrderAction.CANCEL, accession="A1"), at=NOW + timedelta(minutes=2))
    place(group(accession="A1", sps="S1"), at=NOW + timedelta(minutes=5))
    assert ScheduledProcedureStep.objects.get().status == "SCHEDULED"


def test_older_facts_do_not_overwrite_newer_ones():
    place(group(accession="A1", sps="S1", modality="MR"), at=NOW + timedelta(minutes=5))
    applied = place(group(OrderAction.CHANGE, accession="A1", sps="S1", modality="CT"), at=NOW)
    assert ScheduledProcedureStep.objects.get().modality == "MR"
    assert any("older" in w for w in applied.warnings)


def late(*groups, **request):
    """A message an hour older than the last one."""
    given = [replace(g, request=request) for g in groups]
    return place(*given, at=NOW - timedelta(hours=1))


def newest(*groups, **request):
    given = [replace(g, request=request) for g in groups]
    return place(*given, at=NOW)


def test_what_only_an_older_message_says_is_not_lost():
    newest(replace(group(accession="A1", rp="R1", sps="S1", modality="MR"), procedure={}))
    late(
        group(accession="A1", placer="P1", filler="F1", rp="R1", sps="S1", code="CTHEAD", modality="CT",
              scheduled_performing_physician_name="Berg^Ada"),
        requesting_physician="Ahrens^Jonas", requesting_physician_id="P100", medical_alerts="Latex",
    )  # fmt: skip
    request, step = ImagingServiceRequest.objects.get(), ScheduledProcedureStep.objects.get()
    assert (request.placer_order_number, request.filler_order_number) == ("P1", "F1")
    assert (request.requesting_physician, request.requesting_physician_id) == ("Ahrens^Jonas", "P100")
    assert request.details["medical_alerts"] == "Latex"
    assert step.procedure.code_value == "CTHEAD"
    assert (step.modality, step.scheduled_performing_physician_name) == ("MR", "Berg^Ada")
    assert request.facts_at == NOW


def test_of_what_is_one_statement_an_older_message_adds_no_part():
    newest(
        group(accession="A1", rp="R1", sps="S1", code="MRHEAD", start=None), requesting_physician="Berg^Ada"
    )
    RequestedProcedure.objects.update(code_meaning="")
    late(
        group(accession="A1", rp="R1", sps="S1", code="CTHEAD", start=NOW, start_has_time=False),
        requesting_physician="Ahrens^Jonas", requesting_physician_id="P100",
    )  # fmt: skip
    request, step = ImagingServiceRequest.objects.get(), ScheduledProcedureStep.objects.get()
    assert (request.requesting_physician, request.requesting_physician_id) == ("Berg^Ada", "")
    assert (step.procedure.code_value, step.procedure.code_meaning) == ("MRHEAD", "")
    assert (step.start, step.start_has_time) == (NOW, False)


def test_what_was_emptied_stays_empty_until_a_newer_message_fills_it():
    newest(group(accession="A1"), medical_alerts="", institution_name="")
    late(group(OrderAction.CHANGE, accession="A1"), medical_alerts="Latex", institution_name="Old")
    request = ImagingServiceRequest.objects.get()
    assert "medical_alerts" not in request.details and request.institution_name == ""
    given = replace(group(OrderAction.CHANGE, accession="A1"), request={"medical_alerts": "None"})
    place(given, at=NOW + timedelta(hours=1))
    late(group(OrderAction.CHANGE, accession="A1"), medical_alerts="Latex", institution_name="Old")
    request.refresh_from_db()
    assert (request.details["medical_alerts"], request.institution_name) == ("None", "")


def test_an_older_message_adds_the_procedure_and_step_that_only_it_names():
    newest(group(accession="A1", rp="R1", sps="S1"))
    late(
        group(accession="A1", rp="R1", sps="S1"),
        group(accession="A1", rp="R1", sps="S2"),
        group(accession="A1", rp="R2", sps="S3", code="CTCHEST"),
    )
    found = {s.scheduled_procedure_step_id: s.procedure.requested_procedure_id
             for s in ScheduledProcedureStep.objects.all()}  # fmt: skip
    assert found == {"S1": "R1", "S2": "R1", "S3": "R2"}


def test_procedures_of_two_ids_are_two_though_they_have_one_code_and_no_study():
    place(group(accession="A1", rp="R1", sps="S1"), group(accession="A1", rp="R2", sps="S2"))
    place(group(accession="A2", rp="R1"))
    place(group(accession="A2", rp="R2"), at=NOW + timedelta(minutes=1))
    for accession in ("A1", "A2"):
        found = RequestedProcedure.objects.filter(request__accession_number=accession)
        assert sorted(p.requested_procedure_id for p in found) == ["R1", "R2"]
        assert len({p.study_instance_uid for p in found}) == 2
        assert all(p.steps.count() == 1 for p in found)


def test_an_older_message_adds_nothing_unsure_and_to_an_order_that_was_cancelled_only_what_is_cancelled():
    newest(group(accession="A1", code="MRHEAD"))  # ids of our own: another code may be the same exam, changed
    late(group(accession="A1", code="CTHEAD"))
    assert RequestedProcedure.objects.get().code_value == "MRHEAD"
    newest(group(accession="A2", rp="R1", sps="S1"))
    place(group(OrderAction.CANCEL, accession="A2", detail=False), at=NOW)
    late(group(accession="A2", rp="R2", sps="S2"))
    second = ScheduledProcedureStep.objects.filter(procedure__request__accession_number="A2")
    assert sorted((s.scheduled_procedure_step_id, s.status) for s in second) == [
        ("S1", "CANCELED"), ("S2", "CANCELED"),
    ]  # fmt: skip


def hours(number):
    return NOW + timedelta(hours=number)


def test_a_late_new_order_does_not_reopen_what_was_cancelled_after_it():
    place(group(accession="A1", sps="S1"), at=hours(0))
    place(group(OrderAction.CANCEL, accession="A1", detail=False), at=hours(2))
    place(group(accession="A1", sps="S1", modality="MR"), at=hours(1))
    step = ScheduledProcedureStep.objects.get()
    assert (step.status, step.modality) == ("CANCELED", "MR")
    place(group(accession="A1", sps="S1"), at=hours(3))
    step.refresh_from_db()
    assert step.status == "SCHEDULED"


def test_a_late_cancel_does_not_undo_the_order_placed_again_after_it():
    place(group(accession="A1", sps="S1"), at=hours(0))
    place(group(OrderAction.CANCEL, accession="A1", detail=False), at=hours(1))
    place(group(accession="A1", sps="S1"), at=hours(3))
    applied = place(group(OrderAction.CANCEL, accession="A1", detail=False), at=hours(2))
    assert ScheduledProcedureStep.objects.get().status == "SCHEDULED"
    assert any("newer message" in w for w in applied.warnings)


def test_a_cancel_that_comes_after_a_newer_change_is_carried_out():
    place(group(accession="A1", sps="S1"), at=hours(0))
    place(group(OrderAction.CHANGE, accession="A1", sps="S1", modality="MR"), at=hours(3))
    place(group(OrderAction.CANCEL, accession="A1", detail=False), at=hours(2))
    assert ScheduledProcedureStep.objects.get().status == "CANCELED"


def test_a_late_change_of_one_step_is_not_lost_because_another_was_changed_later():
    def change(step, modality, hour):
        place(group(OrderAction.CHANGE, accession="A1", rp="R1", sps=step, modality=modality), at=hours(hour))

    place(group(accession="A1", rp="R1", sps="S1"), group(accession="A1", rp="R1", sps="S2"), at=hours(0))
    change("S1", "MR", 4)
    change("S2", "US", 2)
    change("S2", "XA", 1)
    change("S1", "CR", 3)
    known = {s.scheduled_procedure_step_id: s.modality for s in ScheduledProcedureStep.objects.all()}
    assert known == {"S1": "MR", "S2": "US"}
    change("S2", "NM", 5)
    change("S1", "DX", 4.5)
    change("S2", "MG", 4)
    known = {s.scheduled_procedure_step_id: s.modality for s in ScheduledProcedureStep.objects.all()}
    assert known == {"S1": "DX", "S2": "NM"}


def test_a_late_cancel_of_one_step_is_carried_out_although_another_was_cancelled_later():
    place(group(accession="A1", rp="R1", sps="S1"), group(accession="A1", rp="R1", sps="S2"), at=hours(0))
    place(group(OrderAction.CANCEL, accession="A1", rp="R1", sps="S2"), at=hours(3))
    place(group(OrderAction.CANCEL, accession="A1", rp="R1", sps="S1"), at=hours(2))
    assert {s.status for s in ScheduledProcedureStep.objects.all()} == {"CANCELED"}


def test_an_older_message_moves_no_step():
    newest(group(accession="A1", sps="S1"))
    place(group(OrderAction.HOLD, accession="A1", detail=False), at=NOW)
    late(group(OrderAction.STATUS, accession="A1", sps="S1", status="STARTED"))
    assert ScheduledProcedureStep.objects.get().status == "HELD"


def test_hold_takes_a_step_off_and_release_brings_it_back():
    place(group(accession="A1", sps="S1"))
    place(group(OrderAction.HOLD, accession="A1", detail=False))
    assert ScheduledProcedureStep.objects.get().status == "HELD"
    assert ImagingServiceRequest.objects.get().status == "HELD"
    place(group(OrderAction.RELEASE, accession="A1", detail=False))
    assert ScheduledProcedureStep.objects.get().status == "SCHEDULED"


def test_status_in_progress_and_completed_move_the_step():
    place(group(accession="A1", sps="S1"))
    place(group(OrderAction.STATUS, accession="A1", status="STARTED", detail=False))
    assert ScheduledProcedureStep.objects.get().status == "STARTED"
    place(group(OrderAction.STATUS, accession="A1", status="COMPLETED", detail=False))
    assert ImagingServiceRequest.objects.get().status == "COMPLETED"


def test_an_unknown_order_is_refused_created_or_ignored_by_policy():
    cancel = group(OrderAction.CANCEL, placer="P404", detail=False)
    with pytest.raises(UnknownKey) as refusal:
        place(cancel)
    assert refusal.value.attribute == "placer_order_number"
    assert place(cancel, policy=OrderPolicy(unknown_order="ignore")).warnings
    place(group(OrderAction.CHANGE, placer="P404"), policy=OrderPolicy(unknown_order="create"))
    assert ImagingServiceRequest.objects.get().placer_order_number == "P404"


def test_an_order_of_another_patient_is_refused():
    place(group(accession="A1"))
    with pytest.raises(DuplicateKey) as refusal:
        place(group(accession="A1"), patient=who("0815", name="Winter^Karl", authoritative=False))
    assert refusal.value.attribute == "accession_number"


def test_a_study_uid_of_another_order_is_refused():
    place(group(accession="A1", uid="1.2.3"))
    with pytest.raises(DuplicateKey) as refusal:
        place(group(accession="A2", uid="1.2.3"))
    assert refusal.value.attribute == "study_instance_uid"


@pytest.mark.parametrize(
    ("keys", "attribute"),
    [
        ({"accession": "A" * 17}, "accession_number"),
        ({"accession": "A1", "uid": "1.2/../3"}, "study_instance_uid"),
    ],
)
def test_an_identifier_that_dicom_cannot_hold_is_refused_and_never_cut(keys, attribute):
    with pytest.raises(BadValue) as refusal:
        place(group(**keys))
    assert refusal.value.attribute == attribute


def test_a_step_id_too_long_for_dicom_is_mapped_and_found_again():
    long = "ScheduledProcStepID"
    place(group(accession="A1", sps=long))
    step = ScheduledProcedureStep.objects.get()
    assert len(step.scheduled_procedure_step_id) <= 16
    place(group(OrderAction.CHANGE, accession="A1", sps=long, modality="MR"))
    assert ScheduledProcedureStep.objects.get().modality == "MR"


def test_a_missing_accession_is_what_the_policy_says():
    with pytest.raises(Missing) as refusal:
        place(group(placer="P1"), policy=OrderPolicy(accession_number="refuse"))
    assert refusal.value.attribute == "accession_number"
    place(group(placer="P1"), policy=OrderPolicy(accession_number="placer"))
    assert ImagingServiceRequest.objects.get().accession_number == "P1"


def test_a_missing_start_waits_for_a_clerk_or_is_now_by_policy():
    place(group(accession="A1", start=None))
    assert ScheduledProcedureStep.objects.get().start is None
    place(group(accession="A2", start=None), policy=OrderPolicy(start="now"))
    assert ScheduledProcedureStep.objects.get(procedure__request__accession_number="A2").start is not None


def test_the_catalogue_makes_the_steps_and_the_station_table_the_ae_titles():
    ProcedureDefinition.objects.create(
        code="PETCT", name="PET-CT", modality="PT", steps=[{"name": "CT", "modality": "CT"}, {"name": "PET"}]
    )
    Station.objects.create(name="CT1", ae_title="CT01", modality="CT")
    Station.objects.create(name="PET1", ae_title="PT01", modality="PT")
    place(group(accession="A1", code="PETCT", modality=""))
    steps = {s.scheduled_procedure_step_description: s for s in ScheduledProcedureStep.objects.all()}
    assert steps["CT"].scheduled_station_ae_titles == ["CT01"]
    assert steps["PET"].scheduled_station_ae_titles == ["PT01"]


def test_an_order_does_not_change_what_an_adt_said_of_the_patient():
    register(who(name="Sommer^Clara"))
    place(group(accession="A1"), patient=who(name="SOMMER^C", authoritative=False))
    assert Patient.objects.get().patient_name == "Sommer^Clara"


def test_number_assigned_is_kept_with_the_order():
    place(group(filler="F1", accession="A1"))
    place(
        group(OrderAction.NUMBER_ASSIGNED, filler="F1", placer="P7", detail=False),
        patient=who(authoritative=False),
    )
    assert ImagingServiceRequest.objects.get().placer_order_number == "P7"


def test_an_order_by_an_alias_reaches_the_patient():
    register(who("4711", Identifier("SSN1", "NHS", type_code="SS")))
    place(group(accession="A1"), patient=who("4711", authoritative=False))
    assert Patient.objects.count() == 1
