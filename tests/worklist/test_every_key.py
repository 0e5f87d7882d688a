"""Every attribute of PS3.4 table K.6-1 as return key and, where it is one, as matching key: asked one by one."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom import Dataset

from pacs.matching import Matching
from ris.models import Visit
from tests.worklist.asking import ask, request_for
from tests.worklist.test_answers import everything
from worklist import projection, scp
from worklist.attributes import INNER, OUTER, Entry
from worklist.benches.worklist import facts
from worklist.models import WorklistItem

pytestmark = pytest.mark.django_db

_KEYS = """
    ScheduledStationAETitle ScheduledProcedureStepStartDate ScheduledProcedureStepStartTime Modality
    ScheduledPerformingPhysicianName PatientName PatientID
"""
_RETURNS = """
    ScheduledProcedureStepDescription ScheduledStationName ScheduledProcedureStepLocation
    ScheduledProtocolCodeSequence PreMedication ScheduledProcedureStepID RequestedContrastAgent RequestedProcedureID
    RequestedProcedureDescription RequestedProcedureCodeSequence StudyInstanceUID ReferencedStudySequence
    RequestedProcedurePriority PatientTransportArrangements AccessionNumber RequestingPhysician
    ReferringPhysicianName AdmissionID CurrentPatientLocation ReferencedPatientSequence PatientBirthDate PatientSex
    PatientWeight ConfidentialityConstraintOnPatientDataDescription PatientState PregnancyStatus MedicalAlerts
    Allergies SpecialNeeds
"""
REQUIRED_KEYS = tuple(_KEYS.split())
"""Matching key type R of the table."""
REQUIRED_RETURNS = tuple(_RETURNS.split())
"""Return key types 1, 1C, 2 and 2C of the table, beside the required matching keys."""

_BY_VR = {
    "DA": "20010203",
    "TM": "040506",
    "US": "4",
    "DS": "71.5",
    "CS": "CODE7",
    "UI": "1.2.77",
    "PN": "Other^Person",
}
_ELSE = {"DA": "19990101", "TM": "235959", "US": 1, "DS": "9", "CS": "NONE", "UI": "9.9", "PN": "Nobody^Else"}
# A value that means something else: a priority or status must be one, a modality a known code.
_ELSE_OF = {"ScheduledProcedureStepStatus": "CANCELED"}

KEYS = [entry for entry in (*OUTER, *INNER) if entry.vr != "SQ"]


@pytest.fixture
def item() -> WorklistItem:
    """One item in which every attribute has a value of its own."""
    one = facts(7)
    one.step.pre_medication, one.step.requested_contrast_agent = "Diazepam", "Gadolinium"
    one.step.comments, one.request.institution_name = "Bring films", "St. Brigid"
    one.procedure.reason_for_the_requested_procedure = "Headache"
    one.procedure.patient_transport_arrangements = "Wheelchair"
    one.procedure.requested_procedure_comments = "Thin slices"
    one.request.imaging_service_request_comments = "By telephone"
    visit = Visit(
        patient=one.patient, admission_id="V88", issuer_of_admission_id="HOSP", current_patient_location="W3"
    )
    details = {
        e.name: _BY_VR.get(e.vr, f"Value {n}") for n, e in enumerate(OUTER) if e.detail and e.vr != "SQ"
    }
    one.procedure.details = details
    made = projection.item_of(
        type(one)(one.step, one.procedure, one.request, one.patient, one.identifiers, visit)
    )
    made.save()
    return made


def asked(entry: Entry, value: Any) -> tuple[list[Dataset], list[int]]:
    """The answers, and their statuses, to a query with one key."""
    ds, step = Dataset(), Dataset()
    setattr(step if entry in INNER else ds, entry.keyword, value)
    ds.ScheduledProcedureStepSequence = [step]
    statuses = [code for code, _ in scp.find(request_for(ds))]
    return ask(ds), statuses


def value_of(entry: Entry) -> Any:
    (answer,) = ask(everything())
    place = answer.ScheduledProcedureStepSequence[0] if entry in INNER else answer
    value = place[entry.tag].value
    return value[0] if type(value).__name__ == "MultiValue" else value


def test_the_table_has_every_attribute_that_the_standard_requires() -> None:
    known = {entry.keyword: entry for entry in (*OUTER, *INNER)}
    assert [name for name in (*REQUIRED_KEYS, *REQUIRED_RETURNS) if name not in known] == []
    assert [name for name in REQUIRED_KEYS if known[name].kind == Matching.NONE] == []


@pytest.mark.parametrize("entry", KEYS, ids=lambda e: e.keyword)
def test_a_key_finds_its_own_value_and_no_other(item: WorklistItem, entry: Entry) -> None:
    value = value_of(entry)
    if value in (None, ""):
        assert entry.kind == Matching.NONE, "a matching key without a value in this test proves nothing"
        value = _BY_VR.get(entry.vr, "anything")
    answers, statuses = asked(entry, value)
    assert len(answers) == 1
    if entry.kind == Matching.NONE:  # an optional key that is not matched: said so, and ignored
        assert statuses == [0xFF01]
        return
    assert statuses == [0xFF00]
    other = _ELSE_OF.get(entry.keyword) or _ELSE.get(entry.vr, "Something else")
    assert asked(entry, other)[0] == []


@pytest.mark.parametrize(
    "entry", [e for e in KEYS if e.kind == Matching.WILDCARD and e.vr != "DS"], ids=lambda e: e.keyword
)
def test_a_text_key_takes_wildcards(item: WorklistItem, entry: Entry) -> None:
    value = str(value_of(entry))
    assert len(asked(entry, f"{value[0]}*")[0]) == 1
    assert len(asked(entry, f"?{value[1:]}")[0]) == 1
    assert asked(entry, f"{value}?")[0] == []


def test_an_empty_key_matches_everything(item: WorklistItem) -> None:
    for entry in KEYS:
        assert len(asked(entry, None if entry.vr == "US" else "")[0]) == 1, entry.keyword
