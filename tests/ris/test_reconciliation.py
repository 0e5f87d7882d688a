"""Studies find their orders when it is sure, and wait for a clerk when it is not."""

import pytest
from django.contrib.auth.models import User

from common.store import unit_of_work
from pacs.models import Study
from ris.commands import Identifier, MergePatients
from ris.errors import DuplicateKey, NotAllowed
from ris.models import ReconciliationCase, RequestedProcedure, ScheduledProcedureStep, StudyMatch
from ris.reconciliation import cases
from ris.services import merging, patients
from tests.ris.making import group, make_study, place, register, who

pytestmark = pytest.mark.django_db


def settle(study: Study) -> StudyMatch | None:
    with unit_of_work(f"study:{study.id}") as unit:
        cases.reconcile(study, unit)
    return StudyMatch.objects.filter(study=study, undone_at__isnull=True).first()


def test_the_study_uid_and_an_agreeing_patient_link():
    place(group(accession="A1", uid="1.2.3"))
    match = settle(make_study(uid="1.2.3", accession="A1"))
    assert match.method == "study_instance_uid"
    assert {e["about"] for e in match.evidence} >= {"patient_id", "patient_name", "study_instance_uid"}


def test_a_perfect_uid_with_another_patient_waits_for_a_clerk():
    place(group(accession="A1", uid="1.2.3"))
    assert settle(make_study(uid="1.2.3", patient_id="9999", name="WINTER^KARL", birth="19801224")) is None
    case = ReconciliationCase.objects.get()
    assert "patient identifier" in case.reason
    assert case.candidates[0]["procedure_id"] == str(RequestedProcedure.objects.get().id)


def test_a_perfect_uid_and_number_with_another_name_waits_for_a_clerk():
    place(group(accession="A1", uid="1.2.3"))
    assert settle(make_study(uid="1.2.3", name="WINTER^KARL")) is None


def test_the_accession_and_an_agreeing_patient_link_a_foreign_uid():
    place(group(accession="A1", uid="1.2.3"))
    match = settle(make_study(accession="A1"))
    assert match.method == "accession_number"


def test_an_accession_of_several_procedures_links_by_modality():
    place(
        group(accession="A1", rp="R1", uid="1.2.1", code="CTHEAD"),
        group(accession="A1", rp="R2", uid="1.2.2", code="MRHEAD", modality="MR"),
    )
    match = settle(make_study(accession="A1", modalities=["MR"]))
    assert match.procedure.requested_procedure_id == "R2"


def test_an_accession_of_several_like_procedures_is_no_guess():
    place(
        group(accession="A1", rp="R1", uid="1.2.1", code="CTHEAD"),
        group(accession="A1", rp="R2", uid="1.2.2", code="CTCHEST"),
    )
    assert settle(make_study(accession="A1")) is None


def test_a_number_of_another_issuer_is_another_patient():
    place(group(accession="A1", uid="1.2.3"))
    assert settle(make_study(uid="1.2.3", issuer="OTHER")) is None


def test_an_alias_of_the_patient_agrees():
    place(group(accession="A1", uid="1.2.3"), patient=who("4711", authoritative=False))
    register(who("5000"))
    with unit_of_work("hl7:5") as unit:
        merging.merge(MergePatients(who("5000"), (Identifier("4711", "HOSP"),)), unit)
    match = settle(make_study(uid="1.2.3", patient_id="4711"))
    assert match is not None
    study = Study.objects.get()
    assert (study.patient_id, study.as_received["patient_id"]) == ("5000", "4711")


def test_images_without_any_order_key_link_when_only_one_order_can_be_meant():
    place(group(accession="A1"))
    assert settle(make_study()).method == "evidence"


def test_images_without_any_order_key_wait_when_two_orders_fit():
    place(group(accession="A1", code="CTHEAD"))
    place(group(accession="A2", code="CTCHEST"))
    assert settle(make_study()) is None
    assert len(ReconciliationCase.objects.get().candidates) == 2


def test_a_mistyped_accession_is_no_match_even_for_the_right_patient():
    place(group(accession="A1"))
    assert settle(make_study(accession="A7")) is None


def test_a_study_of_nobody_waits_without_candidates():
    assert settle(make_study(patient_id="unknown")) is None
    assert ReconciliationCase.objects.get().candidates == []


def test_a_match_corrects_what_differs_and_nothing_else():
    place(group(accession="A1", uid="1.2.3"), patient=who(name="Sommer^Clara^Maria", authoritative=False))
    study = make_study(uid="1.2.3", accession="")
    settle(study)
    study.refresh_from_db()
    assert study.overlay.attributes["PatientName"] == "Sommer^Clara^Maria"
    assert study.overlay.attributes["AccessionNumber"] == "A1"
    assert "PatientBirthDate" not in study.overlay.attributes
    assert study.accession_number == "A1"


def test_a_clerk_links_and_undoes_and_nothing_is_left_behind():
    user = User.objects.create_user("clerk")
    place(group(accession="A1", uid="1.2.3"))
    study = make_study(uid="1.2.3", patient_id="9999", name="WINTER^KARL", birth="19801224")
    settle(study)
    with unit_of_work("user:1") as unit:
        cases.link(study.id, RequestedProcedure.objects.get().id, user, unit)
    study.refresh_from_db()
    assert study.patient_name == "Sommer^Clara"
    assert ReconciliationCase.objects.get().state == "SOLVED"
    with pytest.raises(DuplicateKey), unit_of_work("user:1") as unit:
        cases.link(study.id, RequestedProcedure.objects.get().id, user, unit)
    with unit_of_work("user:1") as unit:
        cases.unlink(study.id, user, unit)
    study.refresh_from_db()
    assert (study.patient_name, study.patient_id, study.as_received) == ("WINTER^KARL", "9999", {})
    assert ReconciliationCase.objects.get().state == "OPEN"
    with pytest.raises(NotAllowed), unit_of_work("user:1") as unit:
        cases.unlink(study.id, user, unit)


def test_an_undone_link_is_not_made_again_by_itself():
    user = User.objects.create_user("clerk")
    place(group(accession="A1", uid="1.2.3"))
    study = make_study(uid="1.2.3", accession="A1")
    assert settle(study) is not None
    with unit_of_work("user:1") as unit:
        cases.unlink(study.id, user, unit)
    assert settle(study) is None


def test_an_order_that_comes_after_its_images_takes_them():
    study = make_study(uid="1.2.3", accession="A1")
    assert settle(study) is None
    assert cases.due_again() == []
    place(group(accession="A1", uid="1.2.3"))
    assert cases.due_again() == [study.id]
    with unit_of_work("system:recheck") as unit:
        assert cases.recheck(study.id, unit) is not None
    assert cases.due_again() == []
    assert ReconciliationCase.objects.get().state == "SOLVED"


def test_images_complete_a_step_that_no_scanner_reports_on():
    place(group(accession="A1", uid="1.2.3"))
    settle(make_study(uid="1.2.3"))
    assert ScheduledProcedureStep.objects.get().status == "COMPLETED"


def test_a_patients_new_name_reaches_linked_studies():
    place(group(accession="A1", uid="1.2.3"))
    study = make_study(uid="1.2.3")
    settle(study)
    with unit_of_work("hl7:8") as unit:
        patients.register(who(name="Sommer-Berg^Clara"), unit)
    study.refresh_from_db()
    assert study.patient_name == "Sommer-Berg^Clara"


def test_a_merge_reaches_linked_studies_and_its_undoing_too():
    place(group(accession="A1", uid="1.2.3"), patient=who("2", authoritative=False))
    study = make_study(uid="1.2.3", patient_id="2")
    settle(study)
    register(who("1"))
    with unit_of_work("hl7:9") as unit:
        merging.merge(MergePatients(who("1"), (Identifier("2", "HOSP"),)), unit)
    study.refresh_from_db()
    assert study.patient_id == "1"
    from ris.models import PatientMerge

    with unit_of_work("user:1") as unit:
        merging.unmerge(PatientMerge.objects.get().id, unit)
    study.refresh_from_db()
    assert study.patient_id == "2"
