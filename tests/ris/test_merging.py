"""Merges and moves: seen beforehand, applied to everything that hangs on a patient, undone exactly."""

from typing import Any
from uuid import UUID

import pytest

from common.store import unit_of_work
from pacs.models import Study
from ris.commands import (
    Identifier,
    MergePatients,
    MoveIdentifiers,
    MoveVisits,
    OrderAction,
    RegisterPatient,
    VisitFacts,
    VisitKey,
)
from ris.errors import DuplicateKey, Missing, NotAllowed
from ris.models import (
    ImagingServiceRequest,
    Patient,
    PatientIdentifier,
    PatientMerge,
    PerformedProcedureStep,
    RequestedProcedure,
    ScheduledProcedureStep,
    Visit,
)
from ris.services import merging, steps
from tests.integration.outbound.making import imaged, ordered, signed
from tests.ris.making import NOW, group, place, register, who
from worklist.models import WorklistItem

pytestmark = pytest.mark.django_db

_PASSING = {"updated_at", "cause", "revision", "changed_at", "encoded_at"}


def state() -> dict[str, list[dict[str, Any]]]:
    """Everything that a merge may touch, without the time and cause of the last change."""
    models = (Patient, PatientIdentifier, Visit, ImagingServiceRequest, PerformedProcedureStep,
              ScheduledProcedureStep, WorklistItem, Study)  # fmt: skip
    return {
        model.__name__: [
            {k: bytes(v) if isinstance(v, memoryview) else v for k, v in row.items() if k not in _PASSING}
            for row in model._default_manager.order_by("pk").values()
        ]
        for model in models
    }


def patient(number: str) -> Patient:
    """Whom an identifier leads to."""
    found = PatientIdentifier.objects.select_related("patient").get(value=number).patient
    while found.merged_into is not None:
        found = found.merged_into
    return found


def owners() -> dict[str, str]:
    """Accession number → the patient's first current identifier."""
    return {
        r.accession_number: r.patient.identifiers.filter(status="current").order_by("position")[0].value
        for r in ImagingServiceRequest.objects.select_related("patient")
    }


def merge(survivor: str, *prior: str, **more: Any) -> None:
    with unit_of_work("hl7:9") as unit:
        command = MergePatients(who(survivor, **more), tuple(Identifier(p, "HOSP") for p in prior))
        merging.merge(command, unit)


def undo() -> PatientMerge:
    with unit_of_work("user:1") as unit:
        return merging.unmerge(PatientMerge.objects.filter(undone_at=None).latest("at").id, unit)


def in_visit(number: str, visit: str, account: str = "", **more: Any) -> RegisterPatient:
    facts = VisitFacts(
        visit, "HOSP", {"account_number": account, "current_patient_location": f"Ward {visit}"}
    )
    return who(number, visit=facts, authoritative=False, **more)


def performed(procedure: RequestedProcedure, uid: str) -> PerformedProcedureStep:
    """The scanner has reported on the procedure's step."""
    row = PerformedProcedureStep.objects.create(
        sop_instance_uid=uid,
        status="IN PROGRESS",
        patient_id=procedure.request.patient_id,
        created_at=NOW,
        updated_at=NOW,
        cause="mpps",
    )
    row.steps.set(procedure.steps.all())
    return row


@pytest.fixture
def two() -> None:
    """Two records of one person: the second with a visit, an open order, and one that is done and reported."""
    ordered("A1", patient="1")
    place(group(accession="B1", placer="P-B1"), patient=in_visit("2", "V2", "ACC2"))
    done = ordered("B2", patient="2")
    imaged(done, patient="2")
    signed(done)
    performed(done, "1.2.3.4")


def test_a_merge_is_applied_to_orders_steps_studies_reports_and_the_worklist(two: None) -> None:
    merge("1", "2")
    survivor = patient("1")
    assert owners() == {"A1": "1", "B1": "1", "B2": "1"}
    assert {v.patient_id for v in Visit.objects.all()} == {survivor.id}
    assert {p.patient_id for p in PerformedProcedureStep.objects.all()} == {survivor.id}
    assert Study.objects.get().patient_id == "1"
    assert {i.patient_id for i in WorklistItem.objects.all()} == {"1"}
    assert PatientIdentifier.objects.get(value="2").status == "alias"


def test_what_is_shown_beforehand_is_what_moves(two: None) -> None:
    survivor, retired = patient("1"), patient("2")
    before = state()
    plan = merging.preview(survivor, retired)
    assert state() == before  # looking changes nothing
    assert (plan.open_steps, plan.studies, plan.reports, plan.performed, plan.why_not) == (1, 1, 1, 1, "")
    merge("1", "2")
    row = PatientMerge.objects.get()
    assert {str(r.id) for r in plan.orders} == set(row.moved["imagingservicerequest"])
    assert {str(v.id) for v in plan.visits} == set(row.moved["visit"])
    assert {str(i.id) for i in plan.identifiers} == set(row.changed["patientidentifier"])
    assert len(row.moved["performedprocedurestep"]) == plan.performed
    assert "merged before" in merging.preview(survivor, Patient.objects.get(pk=retired.pk)).why_not


def test_an_undone_merge_leaves_everything_as_it_was(two: None) -> None:
    before = state()
    with unit_of_work("user:1") as unit:
        merging.merge_by_hand(patient("1").id, patient("2").id, unit)
    assert state() != before
    plan = merging.preview_undo(PatientMerge.objects.get())
    assert {r.accession_number for r in plan.orders} == {"B1", "B2"} and plan.why_not == ""
    undo()
    assert state() == before


def test_a_merge_undone_keeps_what_was_changed_and_what_came_since(two: None) -> None:
    merge("1", "2")
    place(group(OrderAction.CHANGE, accession="B1", modality="MR"), patient=who("1", authoritative=False))
    place(group(accession="A2"), patient=who("1", authoritative=False))
    place(group(accession="B3"), patient=in_visit("2", "V3"))  # the HIS still says the old number
    step = ScheduledProcedureStep.objects.get(procedure__request__accession_number="B1")
    with unit_of_work("mpps:1.2") as unit:
        steps.move(step.id, "STARTED", "scanner", unit)
    plan = merging.preview_undo(PatientMerge.objects.get())
    assert {r.accession_number for r in plan.orders} == {"B1", "B2", "B3"}
    assert {r.accession_number for r in plan.staying} == {"A2"}
    undo()
    assert owners() == {"A1": "1", "A2": "1", "B1": "2", "B2": "2", "B3": "2"}
    assert {v.admission_id: v.patient_id for v in Visit.objects.all()} == dict.fromkeys(
        ("V2", "V3"), patient("2").id
    )
    step.refresh_from_db()
    assert (step.modality, step.status) == ("MR", "STARTED")
    assert Study.objects.get().patient_id == "2"


def test_a_number_that_was_an_alias_before_the_merge_is_one_after_its_undoing(two: None) -> None:
    merge("2", "77")
    merge("1", "2")
    undo()
    assert PatientIdentifier.objects.get(value="77").status == "alias"
    assert PatientIdentifier.objects.get(value="2").status == "current"


def test_merges_upon_merges_are_undone_in_turn(two: None) -> None:
    register(who("0"))
    before = state()
    merge("1", "2")
    merge("0", "1")
    assert set(owners().values()) == {"0"}
    first = PatientMerge.objects.earliest("at")
    with pytest.raises(NotAllowed, match="merged on"), unit_of_work("user:1") as unit:
        merging.unmerge(first.id, unit)
    undo()
    undo()
    assert state() == before


def test_an_order_that_moved_on_stays_where_it_went(two: None) -> None:
    register(who("3"))
    merge("1", "2")
    with unit_of_work("hl7:10") as unit:
        merging.move_visits(
            MoveVisits(
                who("3"), (Identifier("1", "HOSP"),), ((VisitKey("V2", "HOSP"), VisitKey("V2", "HOSP")),)
            ),
            unit,
        )
    assert owners()["B1"] == "3"
    first = PatientMerge.objects.get(kind="merge")
    with unit_of_work("user:1") as unit:
        merging.unmerge(first.id, unit)
    assert owners() == {"A1": "1", "B1": "3", "B2": "2"}


def test_each_prior_patient_is_merged_and_a_shared_second_number_stays_current() -> None:
    shared = Identifier("SSN1", "NHS", type_code="SS")
    register(who("1"))
    register(who("2", shared))
    register(who("3"))
    with unit_of_work("hl7:9") as unit:
        prior = (Identifier("2", "HOSP"), Identifier("3", "HOSP"), Identifier("4", "HOSP"), shared)
        merging.merge(MergePatients(who("1", shared), prior), unit)
    assert Patient.objects.filter(merged_into=None).count() == 1
    known = {i.value: i.status for i in PatientIdentifier.objects.all()}
    assert known == {"1": "current", "2": "alias", "3": "alias", "4": "alias", "SSN1": "current"}
    register(who("4", name="Sommer^Late"))
    assert Patient.objects.filter(merged_into=None).count() == 1
    undo()
    undo()
    assert patient("2").id != patient("3").id and patient("SSN1").id == patient("2").id


def test_a_merge_that_brings_the_visit_of_the_prior_patient_is_no_fault(two: None) -> None:
    visit = VisitFacts("V2", "HOSP", {"current_patient_location": "Ward 9"})
    before = {v.id for v in Visit.objects.all()}
    merge("1", "2", visit=visit)
    order = ImagingServiceRequest.objects.select_related("visit").get(accession_number="B1")
    assert order.visit and order.visit.patient_id == patient("1").id
    assert order.visit.current_patient_location == "Ward 9" and order.visit_id not in before
    undo()
    order.refresh_from_db()
    assert order.visit_id in before and order.patient_id == patient("2").id


def test_by_hand_nobody_is_merged_with_himself_or_twice(two: None) -> None:
    one, other = patient("1").id, patient("2").id
    for pair in ((one, one),):
        with pytest.raises(NotAllowed), unit_of_work("user:1") as unit:
            merging.merge_by_hand(*pair, unit)
    merge("1", "2")
    with pytest.raises(NotAllowed), unit_of_work("user:1") as unit:
        merging.merge_by_hand(one, other, unit)
    with pytest.raises(DuplicateKey):
        merge("1", "1")


# -- moves


def move_identifiers(to: tuple[str, ...], moved: str, *prior: str) -> list[str]:
    with unit_of_work("hl7:20") as unit:
        patient = who(to[0], *(Identifier(n, "HOSP") for n in to[1:]), name="Winter^Eva")
        command = MoveIdentifiers(
            patient, (Identifier(moved, "HOSP"),), tuple(Identifier(p, "HOSP") for p in prior)
        )
        return merging.move_identifiers(command, unit).warnings


def test_a_moved_identifier_takes_along_what_came_in_under_it() -> None:
    """A43: number 12 had been given to the wrong person, who keeps number 1 and what came under that."""
    register(who("9", name="Winter^Eva"))
    register(who("1", Identifier("12", "REF")))
    place(group(accession="A1"), patient=who("1", authoritative=False))
    twelve = RegisterPatient(identifiers=(Identifier("12", "REF"),), values={}, authoritative=False)
    place(group(accession="B1"), patient=twelve)
    before = state()
    with unit_of_work("hl7:20") as unit:
        target = who("9", name="Winter^Eva")
        applied = merging.move_identifiers(
            MoveIdentifiers(target, (Identifier("12", "REF"),), (Identifier("1", "HOSP"),)), unit
        )
    assert set(applied.patient_ids) == {patient("9").id, patient("1").id}
    assert owners() == {"A1": "1", "B1": "9"}
    assert (
        patient("12").id == patient("9").id and PatientIdentifier.objects.get(value="12").status == "current"
    )
    assert {i.patient_id for i in WorklistItem.objects.filter(accession_number="B1")} == {"9"}
    assert PatientMerge.objects.get().kind == "move"
    undo()
    assert state() == before


def test_a_move_repeated_changes_nothing() -> None:
    register(who("9", name="Winter^Eva"))
    register(who("1", Identifier("12", "HOSP")))
    move_identifiers(("9",), "12", "1")
    before = state()
    assert any("nothing moved" in w for w in move_identifiers(("9",), "12", "1"))
    assert state() == before and PatientMerge.objects.count() == 1


def test_a_patient_left_without_a_number_goes_as_a_whole_and_comes_back_as_a_whole() -> None:
    register(who("9", name="Winter^Eva"))
    place(group(accession="B1"), patient=in_visit("2", "V2"))
    wrong = patient("2")
    before = state()
    move_identifiers(("9",), "2")
    assert owners() == {"B1": "9"} and patient("2").id == patient("9").id
    wrong.refresh_from_db()
    assert wrong.merged_into_id == patient("9").id
    undo()
    assert state() == before


def test_a_move_to_nobody_is_refused_and_one_of_an_unknown_number_registers_it() -> None:
    register(who("9"))
    with pytest.raises(Missing):
        move_identifiers(("2",), "2")
    move_identifiers(("9",), "500")
    assert patient("500").id == patient("9").id


def test_an_account_moves_with_its_visits_and_orders() -> None:
    """A44: the account ACC2 was opened for the wrong patient."""
    register(who("9", name="Winter^Eva"))
    place(group(accession="A1"), patient=in_visit("1", "V1", "ACC1"))
    place(group(accession="B1"), patient=in_visit("1", "V2", "ACC2"))
    place(group(accession="B2"), patient=in_visit("1", "V3", "ACC2"))
    performed(RequestedProcedure.objects.get(request__accession_number="B2"), "1.2.3")
    before = state()
    with unit_of_work("hl7:21") as unit:
        merging.move_visits(
            MoveVisits(
                who("9", name="Winter^Eva"), (Identifier("1", "HOSP"),), prior_account="ACC2", account="ACC7"
            ),
            unit,
        )
    assert owners() == {"A1": "1", "B1": "9", "B2": "9"}
    nine = patient("9").id
    assert {v.admission_id: (v.patient_id == nine, v.account_number) for v in Visit.objects.all()} == {
        "V1": (False, "ACC1"), "V2": (True, "ACC7"), "V3": (True, "ACC7"),
    }  # fmt: skip
    assert PerformedProcedureStep.objects.get().patient_id == nine
    items = {i.accession_number: i.patient_id for i in WorklistItem.objects.all()}
    assert items == {"A1": "1", "B1": "9", "B2": "9"}
    undo()
    assert state() == before


def test_a_visit_moves_with_its_orders_and_is_brought_up_to_date() -> None:
    """A45, with PV1 of the visit as it is from now on."""
    register(who("9", name="Winter^Eva"))
    place(group(accession="B1"), patient=in_visit("1", "V2", "ACC2"))
    place(group(accession="A1"), patient=in_visit("1", "V1", "ACC1"))
    facts = VisitFacts("V20", "HOSP", {"current_patient_location": "Ward 9"})
    command = MoveVisits(
        who("9", visit=facts), (Identifier("1", "HOSP"),),
        ((VisitKey("V2"), VisitKey("V20", "HOSP")),), account="ACC9",
    )  # fmt: skip
    with unit_of_work("hl7:21") as unit:
        merging.move_visits(command, unit)
    assert owners() == {"A1": "1", "B1": "9"}
    moved = Visit.objects.get(admission_id="V20")
    assert (moved.patient_id, moved.account_number) == (patient("9").id, "ACC9")
    assert moved.current_patient_location == "Ward 9"
    with unit_of_work("hl7:22") as unit:
        again = merging.move_visits(command, unit)
    assert again.warnings and PatientMerge.objects.count() == 1
    undo()
    assert owners() == {"A1": "1", "B1": "1"}
    moved.refresh_from_db()
    assert (moved.admission_id, moved.account_number) == ("V2", "ACC2")
    assert moved.current_patient_location == "Ward 9"  # said later than it moved: kept


def test_a_visit_merged_into_another_hands_over_its_orders() -> None:
    """A42, within one patient."""
    place(group(accession="A1"), patient=in_visit("1", "V1"))
    place(group(accession="B1"), patient=in_visit("1", "V2"))
    before = state()
    with unit_of_work("hl7:23") as unit:
        merging.move_visits(MoveVisits(who("1"), visits=((VisitKey("V2"), VisitKey("V1", "HOSP")),)), unit)
    visits = {
        r.accession_number: r.visit.admission_id for r in ImagingServiceRequest.objects.all() if r.visit
    }
    assert visits == {"A1": "V1", "B1": "V1"}
    undo()
    assert state() == before


def test_a_visit_that_nobody_here_knows_is_noted_and_moves_nothing() -> None:
    register(who("1"))
    with unit_of_work("hl7:24") as unit:
        applied = merging.move_visits(
            MoveVisits(who("9"), (Identifier("1", "HOSP"),), ((VisitKey("V2"), VisitKey("V2")),)), unit
        )
    assert any("nothing moved" in w for w in applied.warnings)
    assert not PatientMerge.objects.exists() and isinstance(patient("9").id, UUID)
