"""MPPS: what scanners report, the codes they are answered with, and what becomes of the scheduled steps."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connections
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pynetdicom import AE

from common.models import AuditEvent
from pacs.dimse import status
from pacs.dimse.registry import EXPLICIT_VR_BIG_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN, Outcome, Refused
from ris.models import PerformedProcedureStep, ScheduledProcedureStep
from tests.ris.making import group, place, who
from tests.worklist.asking import decode, door, found, query, request_for
from worklist import mpps

UID = "1.2.826.0.1.5.1"
TYPE_1 = [
    "ScheduledStepAttributesSequence",
    "PerformedProcedureStepID",
    "PerformedStationAETitle",
    "PerformedProcedureStepStartDate",
    "PerformedProcedureStepStartTime",
    "PerformedProcedureStepStatus",
    "Modality",
]


def begun(**changes: Any) -> Dataset:
    """A complete N-CREATE for the order A1; a change to None takes an attribute out."""
    scheduled = Dataset()
    scheduled.StudyInstanceUID = "1.2.3.4"
    scheduled.AccessionNumber = "A1"
    scheduled.RequestedProcedureID = "RP1"
    scheduled.ScheduledProcedureStepID = "S1"
    ds = Dataset()
    values = {
        "ScheduledStepAttributesSequence": [scheduled],
        "PatientName": "Sommer^Clara",
        "PatientID": "4711",
        "IssuerOfPatientID": "HOSP",
        "PatientBirthDate": "19600512",
        "PatientSex": "F",
        "ReferencedPatientSequence": [],
        "PerformedProcedureStepID": "PPS1",
        "PerformedStationAETitle": "CT01",
        "PerformedStationName": "",
        "PerformedLocation": "",
        "PerformedProcedureStepStartDate": "20260302",
        "PerformedProcedureStepStartTime": "091500",
        "PerformedProcedureStepStatus": "IN PROGRESS",
        "PerformedProcedureStepDescription": "Head",
        "PerformedProcedureTypeDescription": "",
        "ProcedureCodeSequence": [],
        "Modality": "CT",
        "StudyID": "",
        "PerformedProtocolCodeSequence": [],
        "PerformedProcedureStepEndDate": "",
        "PerformedProcedureStepEndTime": "",
        "PerformedSeriesSequence": [],
        **changes,
    }
    for keyword, value in values.items():
        if value is not None:
            setattr(ds, keyword, value)
    return ds


def ended(said: str = "COMPLETED", **changes: Any) -> Dataset:
    """A complete final N-SET."""
    image = Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.9.1"
    series = Dataset()
    series.SeriesInstanceUID, series.ProtocolName = "1.2.9", "Head routine"
    series.ReferencedImageSequence = [image]
    ds = Dataset()
    values = {
        "PerformedProcedureStepStatus": said,
        "PerformedProcedureStepEndDate": "20260302",
        "PerformedProcedureStepEndTime": "093000",
        "PerformedSeriesSequence": [series],
        **changes,
    }
    for keyword, value in values.items():
        if value is not None:
            setattr(ds, keyword, value)
    return ds


def send(command: str, ds: Dataset, *, uid: str = UID, strict: bool = False, **kwargs: Any) -> Outcome:
    """One request, straight to the service."""
    handlers: dict[str, Callable[..., Outcome]] = {
        "N-CREATE": mpps.create,
        "N-SET": mpps.set_,
        "N-GET": mpps.get,
    }
    options = {"mpps": {"strict": strict}}
    return handlers[command](request_for(ds, command=command, uid=uid, options=options, **kwargs))


def refusal(command: str, ds: Dataset, **kwargs: Any) -> Refused:
    """The refusal of one request."""
    with pytest.raises(Refused) as caught:
        send(command, ds, **kwargs)
    return caught.value


@pytest.fixture
def order(db: None) -> None:
    place(group(accession="A1", rp="RP1", sps="S1", uid="1.2.3.4"), patient=who("4711"))


def step() -> ScheduledProcedureStep:
    return ScheduledProcedureStep.objects.get(scheduled_procedure_step_id="S1")


def performed() -> PerformedProcedureStep:
    return PerformedProcedureStep.objects.get()


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpps, "WAITS_FOR_CREATE", (0.0,))


# -- the course of a step


@pytest.mark.parametrize("syntax", [EXPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN])
def test_the_step_follows_its_scanner_and_leaves_the_worklist(order: None, syntax: str) -> None:
    assert found(query()) == ["A1"]
    assert send("N-CREATE", begun(), syntax=syntax).status == status.SUCCESS
    assert step().status == "STARTED"
    assert found(query()) == []
    row = performed()
    assert (row.status, row.problem, row.modality) == ("IN PROGRESS", "", "CT")
    assert row.started_at is not None and row.started_at.isoformat() == "2026-03-02T09:15:00+00:00"
    assert list(row.steps.all()) == [step()]
    send("N-SET", ended(), syntax=syntax)
    row = performed()
    assert (row.status, step().status) == ("COMPLETED", "COMPLETED")
    assert row.series[0]["series_instance_uid"] == "1.2.9"
    assert row.series[0]["sop_instance_uids"] == ["1.2.9.1"]
    assert row.ended_at is not None
    assert row.attributes["00400253"]["Value"] == ["PPS1"]
    assert row.attributes["00400252"]["Value"] == ["COMPLETED"]
    assert AuditEvent.objects.filter(what="performed step", actor="ae:CT01").count() == 2


def test_a_discontinued_step_keeps_its_reason(order: None) -> None:
    send("N-CREATE", begun())
    reason = Dataset()
    reason.CodeValue, reason.CodingSchemeDesignator, reason.CodeMeaning = "110501", "DCM", "Equipment failure"
    send("N-SET", ended("DISCONTINUED", PerformedProcedureStepDiscontinuationReasonCodeSequence=[reason]))
    assert step().status == "DISCONTINUED"
    assert performed().discontinuation_reason["code_value"] == "110501"


def test_the_wrong_worklist_entry_puts_its_step_back_on_the_list(order: None) -> None:
    send("N-CREATE", begun())
    reason = Dataset()
    reason.CodeValue, reason.CodingSchemeDesignator, reason.CodeMeaning = "110514", "DCM", "Incorrect entry"
    send("N-SET", ended("DISCONTINUED", PerformedProcedureStepDiscontinuationReasonCodeSequence=[reason]))
    assert step().status == "SCHEDULED"
    assert found(query()) == ["A1"]
    assert "wrong worklist entry" in performed().problem


def test_a_group_of_steps_moves_together(order: None) -> None:
    place(group(accession="A1", rp="RP2", sps="S2", uid="1.2.3.5", code="CTNECK"), patient=who("4711"))
    ds = begun()
    second = Dataset()
    second.StudyInstanceUID, second.AccessionNumber, second.ScheduledProcedureStepID = "1.2.3.5", "A1", "S2"
    ds.ScheduledStepAttributesSequence.append(second)
    send("N-CREATE", ds)
    assert set(ScheduledProcedureStep.objects.values_list("status", flat=True)) == {"STARTED"}
    assert performed().study_instance_uids == ["1.2.3.4", "1.2.3.5"]


def test_a_second_performed_step_for_a_finished_one_is_taken(order: None) -> None:
    send("N-CREATE", begun())
    send("N-SET", ended())
    send("N-CREATE", begun(PerformedProcedureStepID="PPS2"), uid=UID + ".2")
    assert PerformedProcedureStep.objects.count() == 2


def test_an_unscheduled_examination_is_kept_for_a_clerk(db: None) -> None:
    item = Dataset()
    item.StudyInstanceUID, item.AccessionNumber, item.ScheduledProcedureStepID = "1.2.77", "", ""
    send("N-CREATE", begun(ScheduledStepAttributesSequence=[item]))
    assert "Unscheduled" in performed().problem


def test_the_scanner_s_patient_never_overwrites_the_order_s(order: None) -> None:
    send("N-CREATE", begun(PatientName="Winter^Karl", PatientID="99"))
    assert "patient" in performed().problem
    assert step().procedure.request.patient.patient_name == "Sommer^Clara"


def test_without_a_uid_we_make_one_and_say_it(order: None) -> None:
    outcome = send("N-CREATE", begun(), uid="")
    assert outcome.elements["AffectedSOPInstanceUID"] == performed().sop_instance_uid


# -- what is refused, with which code


@pytest.mark.parametrize("keyword", TYPE_1)
def test_a_missing_attribute_of_type_1_is_named(order: None, keyword: str) -> None:
    refused = refusal("N-CREATE", begun(**{keyword: None}))
    assert refused.status == status.MISSING_ATTRIBUTE
    assert refused.elements["AttributeIdentifierList"] == [tag_for_keyword(keyword)]


@pytest.mark.parametrize("keyword", TYPE_1)
def test_an_empty_attribute_of_type_1_is_named(order: None, keyword: str) -> None:
    empty: Any = [] if keyword.endswith("Sequence") else ""
    assert refusal("N-CREATE", begun(**{keyword: empty})).status == status.MISSING_ATTRIBUTE_VALUE
    assert not PerformedProcedureStep.objects.exists()
    assert step().status == "SCHEDULED"


def test_a_step_begins_in_progress_with_a_study_uid(order: None) -> None:
    code = status.INVALID_ATTRIBUTE_VALUE
    assert refusal("N-CREATE", begun(PerformedProcedureStepStatus="COMPLETED")).status == code
    item = Dataset()
    item.AccessionNumber = "A1"
    assert refusal("N-CREATE", begun(ScheduledStepAttributesSequence=[item])).status == code


def test_a_missing_attribute_of_type_2_is_refused_to_a_strict_scanner_only(order: None) -> None:
    ds = begun(PatientSex=None, StudyID=None)
    assert refusal("N-CREATE", ds, strict=True).status == status.MISSING_ATTRIBUTE
    assert send("N-CREATE", ds).status == status.SUCCESS


def test_a_data_set_without_anything_begins_nothing_and_changes_nothing(order: None) -> None:
    assert refusal("N-CREATE", Dataset()).status == status.MISSING_ATTRIBUTE
    send("N-CREATE", begun())
    assert send("N-SET", Dataset()).status == status.SUCCESS
    assert performed().status == "IN PROGRESS"


def test_uids_are_checked(order: None, no_waiting: None) -> None:
    send("N-CREATE", begun())
    assert refusal("N-CREATE", begun()).status == status.DUPLICATE_SOP_INSTANCE
    assert refusal("N-SET", ended(), uid="1.2.3.999").status == status.NO_SUCH_SOP_INSTANCE
    assert refusal("N-CREATE", begun(), uid="../etc").status == status.INVALID_OBJECT_INSTANCE


def test_after_its_end_a_step_may_no_longer_be_updated(order: None) -> None:
    send("N-CREATE", begun())
    send("N-SET", ended())
    refused = refusal("N-SET", ended("DISCONTINUED"))
    assert refused.status == status.PROCESSING_FAILURE
    assert refused.elements["ErrorID"] == 0xA710
    assert "may no longer be updated" in refused.comment
    assert performed().status == "COMPLETED"


def test_a_set_has_no_patient_and_no_unknown_status(order: None) -> None:
    send("N-CREATE", begun())
    assert refusal("N-SET", ended(PatientName="X^Y")).status == status.NO_SUCH_ATTRIBUTE
    assert refusal("N-SET", ended(ScheduledStepAttributesSequence=[])).status == status.NO_SUCH_ATTRIBUTE
    assert refusal("N-SET", ended("FINISHED")).status == status.INVALID_ATTRIBUTE_VALUE
    assert refusal("N-SET", ended("")).status == status.MISSING_ATTRIBUTE_VALUE
    assert performed().status == "IN PROGRESS"


def test_what_a_scanner_merely_leaves_out_at_the_end_is_taken_and_shown(order: None) -> None:
    send("N-CREATE", begun())
    lacking = ended(PerformedSeriesSequence=None, PerformedProcedureStepEndTime="")
    assert refusal("N-SET", lacking, strict=True).status == status.MISSING_ATTRIBUTE_VALUE
    assert send("N-SET", lacking).status == status.SUCCESS
    row = performed()
    assert row.status == "COMPLETED"
    assert "without any performed series" in row.problem and "without an end" in row.problem


def test_an_impossible_date_is_taken_and_shown(order: None) -> None:
    send("N-CREATE", begun(PerformedProcedureStepStartDate="20260231"))
    row = performed()
    assert row.started_at is None
    assert "impossible" in row.problem
    assert row.attributes["00400244"]["Value"] == ["20260231"]


# -- retrieval


def test_what_is_held_can_be_asked_for(order: None) -> None:
    send("N-CREATE", begun(PerformedProcedureStepDescription="Schädel", SpecificCharacterSet="ISO_IR 100"))
    data = send("N-GET", Dataset()).data
    assert data is not None
    held = decode(data)
    assert held.PerformedProcedureStepDescription == "Schädel"
    assert held.PerformedProcedureStepStatus == "IN PROGRESS"
    assert refusal("N-GET", Dataset(), uid="1.2.3").status == status.NO_SUCH_SOP_INSTANCE


# -- over the wire


@pytest.mark.django_db(transaction=True)
def test_a_scanner_of_another_maker_reports_over_the_network() -> None:
    place(group(accession="A1", rp="RP1", sps="S1", uid="1.2.3.4"), patient=who("4711"))
    with door() as port:
        ae = AE("CT01")
        ae.add_requested_context(mpps.MPPS)
        assoc = ae.associate("127.0.0.1", port, ae_title="ORDERLY")
        assert assoc.is_established
        answer, _ = assoc.send_n_create(begun(PerformedStationAETitle=""), mpps.MPPS, UID)
        assert (answer.Status, answer.ErrorComment) == (0x0121, "empty: PerformedStationAETitle")
        answer, _ = assoc.send_n_create(begun(), mpps.MPPS, UID)
        assert answer.Status == 0x0000
        answer, _ = assoc.send_n_create(begun(), mpps.MPPS, UID)
        assert answer.Status == 0x0111
        answer, _ = assoc.send_n_set(ended(), mpps.MPPS, UID)
        assert answer.Status == 0x0000
        answer, _ = assoc.send_n_set(ended(), mpps.MPPS, UID)
        assert (answer.Status, answer.ErrorID) == (0x0110, 0xA710)
        assoc.release()
    assert step().status == "COMPLETED"


@pytest.mark.django_db(transaction=True)
def test_two_scanners_that_begin_one_step_under_one_uid_get_one_success() -> None:
    place(group(accession="A1", rp="RP1", sps="S1", uid="1.2.3.4"), patient=who("4711"))
    codes: list[int] = []

    def begin() -> None:
        try:
            codes.append(send("N-CREATE", begun()).status)
        except Refused as refused:
            codes.append(refused.status)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [0x0000, 0x0111, 0x0111, 0x0111]


@pytest.mark.django_db(transaction=True)
def test_a_set_that_overtakes_its_create_waits_for_it() -> None:
    place(group(accession="A1", rp="RP1", sps="S1", uid="1.2.3.4"), patient=who("4711"))
    outcomes: list[int] = []

    def finish() -> None:
        try:
            outcomes.append(send("N-SET", ended()).status)
        finally:
            connections.close_all()

    thread = threading.Thread(target=finish)
    thread.start()
    send("N-CREATE", begun())
    thread.join()
    assert outcomes == [0x0000]
    assert performed().status == "COMPLETED"
