"""Patients: known by identifier and authority, brought up to date, merged and truly unmerged."""

from datetime import timedelta

import pytest

from common.store import unit_of_work
from ris.commands import ChangeIdentifier, Identifier, MergePatients, VisitFacts
from ris.errors import DuplicateKey, Missing
from ris.models import ImagingServiceRequest, Patient, PatientIdentifier, PatientMerge, Visit
from ris.services import merging, patients
from tests.ris.making import NOW, group, place, register, who

pytestmark = pytest.mark.django_db


def merge(survivor: str, prior: str) -> None:
    with unit_of_work("hl7:9") as unit:
        merging.merge(MergePatients(who(survivor, name="Sommer^Clara"), (Identifier(prior, "HOSP"),)), unit)


def test_one_number_of_two_authorities_is_two_patients():
    register(who("1"))
    with unit_of_work("hl7:2") as unit:
        patients.register(who("1").__class__(identifiers=(Identifier("1", "OTHER"),), values={}), unit)
    assert Patient.objects.count() == 2


def test_authorities_are_equal_by_universal_id_before_name():
    one = who("1").__class__(identifiers=(Identifier("1", "HOSP", "1.2.3", "ISO"),), values={})
    two = who("1").__class__(identifiers=(Identifier("1", "HOSPITAL", "1.2.3", "ISO"),), values={})
    register(one)
    register(two)
    assert Patient.objects.count() == 1


def test_an_update_sets_what_it_names_and_deletes_what_it_empties():
    register(who(values={"patient_address": "Lane 1", "allergies": "latex"}))
    register(who(name="Sommer-Berg^Clara", values={"patient_address": ""}))
    patient = Patient.objects.get()
    assert patient.patient_name == "Sommer-Berg^Clara"
    assert patient.details == {"allergies": "latex", "emptied": ["patient_address"]}
    assert patient.patient_name_search == "sommer-berg clara"


def test_an_older_update_does_not_overwrite_a_newer_one():
    register(who(name="New^Name", facts_at=NOW))
    applied = register(who(name="Old^Name", facts_at=NOW - timedelta(hours=1)))
    assert Patient.objects.get().patient_name == "New^Name"
    assert applied.warnings


def test_an_older_update_fills_what_was_never_said_and_not_what_was_emptied():
    register(who(facts_at=NOW, birth="", values={"patient_address": ""}))
    older = {"patient_address": "Lane 1", "allergies": "latex"}
    register(who(facts_at=NOW - timedelta(hours=1), birth="19600512", values=older))
    patient = Patient.objects.get()
    assert patient.details == {"allergies": "latex", "emptied": ["patient_address", "patient_birth_date"]}
    assert patient.patient_birth_date == ""
    register(who(facts_at=NOW + timedelta(hours=1), birth="19600512", values={"patient_address": "Lane 2"}))
    patient.refresh_from_db()
    assert (patient.patient_birth_date, patient.details["patient_address"]) == ("19600512", "Lane 2")
    assert "emptied" not in patient.details


def test_a_patient_without_identifier_is_refused():
    with pytest.raises(Missing):
        register(who(""))


def test_a_shared_second_number_does_not_join_two_records():
    shared = Identifier("SSN1", "NHS", type_code="SS")
    register(who("1", shared))
    register(who("2", shared, name="Winter^Karl"))
    assert Patient.objects.count() == 2
    assert PatientIdentifier.objects.filter(value="SSN1").count() == 1


def test_a_second_number_finds_a_patient_whose_first_is_new():
    register(who("").__class__(identifiers=(Identifier("SSN1", "NHS", type_code="SS"),), values={}))
    register(who("1", Identifier("SSN1", "NHS", type_code="SS")))
    assert Patient.objects.count() == 1
    assert PatientIdentifier.objects.get(position=0).value == "1"


def test_the_visit_comes_with_the_patient():
    register(
        who(visit=VisitFacts("V1", "HOSP", {"current_patient_location": "Ward 3", "patient_class": "I"}))
    )
    register(who(visit=VisitFacts("V1", "HOSP", {"current_patient_location": "Ward 4"})))
    visit = Visit.objects.get()
    assert (visit.admission_id, visit.current_patient_location, visit.patient_class) == ("V1", "Ward 4", "I")


def test_a_merge_moves_orders_and_keeps_the_old_number_as_alias():
    register(who("1"))
    place(group(accession="A1"), patient=who("2", authoritative=False))
    merge("1", "2")
    survivor = Patient.objects.get(merged_into__isnull=True)
    assert ImagingServiceRequest.objects.get().patient_id == survivor.id
    assert PatientIdentifier.objects.get(value="2").status == "alias"
    place(group(accession="A2"), patient=who("2", authoritative=False))
    assert ImagingServiceRequest.objects.filter(patient=survivor).count() == 2


def test_a_merge_repeated_changes_nothing():
    register(who("1"))
    register(who("2"))
    merge("1", "2")
    merge("1", "2")
    assert PatientMerge.objects.count() == 1


def test_an_update_of_the_retired_number_does_not_revive_it():
    register(who("1"))
    register(who("2"))
    merge("1", "2")
    register(who("2", name="Sommer^Clara^M"))
    survivor = Patient.objects.get(merged_into__isnull=True)
    assert survivor.patient_name == "Sommer^Clara^M"
    assert PatientIdentifier.objects.get(value="2").status == "alias"


def test_a_merge_of_a_number_nobody_knows_keeps_it_as_alias():
    register(who("1"))
    merge("1", "77")
    register(who("77"))
    assert Patient.objects.count() == 1


def test_a_merge_into_itself_is_refused():
    register(who("1"))
    with pytest.raises(DuplicateKey):
        merge("1", "1")


def test_unmerge_brings_back_exactly_what_moved():
    register(who("1"))
    place(group(accession="A1"), patient=who("2", authoritative=False))
    merge("1", "2")
    place(group(accession="A2"), patient=who("1", authoritative=False))
    with unit_of_work("user:1") as unit:
        merging.unmerge(PatientMerge.objects.get().id, unit)
    owners = {
        r.accession_number: r.patient.identifiers.get().value for r in ImagingServiceRequest.objects.all()
    }
    assert owners == {"A1": "2", "A2": "1"}
    assert not Patient.objects.filter(merged_into__isnull=False).exists()
    assert PatientIdentifier.objects.get(value="2").status == "current"


def test_a_changed_identifier_keeps_the_old_one_as_alias():
    register(who("1"))
    with unit_of_work("hl7:3") as unit:
        merging.change_identifier(ChangeIdentifier(who("9"), Identifier("1", "HOSP")), unit)
    patient = Patient.objects.get()
    assert {i.value: i.status for i in patient.identifiers.all()} == {"1": "alias", "9": "current"}
