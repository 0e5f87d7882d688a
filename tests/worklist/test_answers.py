"""Answers as bytes: what a step is told as, in every transfer syntax, trimmed to what was asked."""

from __future__ import annotations

import pytest
from pydicom import Dataset

from pacs.dimse.registry import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)
from tests.ris.making import NOW, group, place, who
from tests.worklist.asking import ask, query, request_for
from worklist import scp
from worklist.attributes import ALL, INNER, OUTER, snake_case
from worklist.models import WorklistItem

pytestmark = pytest.mark.django_db

SYNTAXES = [EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN]


def everything() -> Dataset:
    """A query for every attribute of the table."""
    ds = Dataset()
    for entry in OUTER:
        setattr(ds, entry.keyword, [] if entry.vr == "SQ" else None if entry.vr == "US" else "")
    item = Dataset()
    for entry in INNER:
        setattr(item, entry.keyword, [] if entry.vr == "SQ" else "")
    ds.ScheduledProcedureStepSequence = [item]
    return ds


def rich() -> None:
    place(
        group(
            accession="A1",
            placer="P1",
            filler="F1",
            rp="RP1",
            uid="1.2.3.4",
            sps="S1",
            scheduled_station_ae_titles=["CT01", "CT02"],
            scheduled_station_names=["Tunnel"],
            scheduled_procedure_step_location="Room 4",
            scheduled_performing_physician_name="Vogt^Ada",
            scheduled_procedure_step_description="Head without contrast",
            protocol_codes=[
                {"code_value": "CTH", "coding_scheme_designator": "99SITE", "code_meaning": "Head"}
            ],
            comments="Bring\nold films",
        ),
        patient=who(
            name="Müller^Jürgen",
            values={"pregnancy_status": "4", "medical_alerts": "Pacemaker", "patient_weight": "71.5"},
        ),
    )


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_every_attribute_is_told_in_every_transfer_syntax(syntax: str) -> None:
    rich()
    (answer,) = ask(everything(), syntax=syntax)
    assert set(answer.keys()) == {e.tag for e in OUTER} | {0x00400100, 0x00080005}
    (step,) = answer.ScheduledProcedureStepSequence
    assert set(step.keys()) == {e.tag for e in INNER}
    assert answer.SpecificCharacterSet == "ISO_IR 192"
    assert answer.PatientName == "Müller^Jürgen"
    assert (answer.PatientID, answer.IssuerOfPatientID) == ("4711", "HOSP")
    assert (answer.PatientBirthDate, answer.PatientSex) == ("19600512", "F")
    assert answer.PregnancyStatus == 4
    assert answer.PatientWeight == 71.5
    assert answer.MedicalAlerts == "Pacemaker"
    assert (answer.AccessionNumber, answer.RequestedProcedureID) == ("A1", "RP1")
    assert answer.StudyInstanceUID == "1.2.3.4"
    assert answer.RequestedProcedureCodeSequence[0].CodeValue == "CTHEAD"
    assert answer.RequestedProcedureCodeSequence[0].CodeMeaning == "CTHEAD exam"
    assert answer.ReferencedStudySequence == []
    assert list(step.ScheduledStationAETitle) == ["CT01", "CT02"]
    assert step.ScheduledStationName == "Tunnel"
    assert (step.ScheduledProcedureStepStartDate, step.ScheduledProcedureStepStartTime) == (
        "20260302",
        "090000",
    )
    assert step.ScheduledProtocolCodeSequence[0].CodingSchemeDesignator == "99SITE"
    assert step.CommentsOnTheScheduledProcedureStep == "Bring\r\nold films"
    assert step.ScheduledProcedureStepStatus == "SCHEDULED"


def test_values_are_padded_as_their_vr_wants() -> None:
    rich()
    ((_, data),) = scp.find(request_for(query(StudyInstanceUID="")))
    assert b"UI\x08\x001.2.3.4\0" in data
    ((_, data),) = scp.find(request_for(query(PatientSex="")))
    assert b"CS\x02\0F " in data


def test_only_what_was_asked_is_returned_and_what_is_unknown_comes_back_empty() -> None:
    rich()
    ds = query(PatientBirthDate="", RequestedContrastAgent="", step={"Modality": ""})
    (answer,) = ask(ds)
    assert [e.keyword for e in answer] == [
        "SpecificCharacterSet",
        "AccessionNumber",
        "PatientName",
        "PatientBirthDate",
        "RequestedContrastAgent",
        "ScheduledProcedureStepSequence",
    ]
    assert answer.RequestedContrastAgent == ""
    (step,) = answer.ScheduledProcedureStepSequence
    assert [e.keyword for e in step] == ["Modality", "ScheduledProcedureStepID"]


def test_an_empty_step_sequence_asks_for_the_whole_step_and_none_for_nothing_of_it() -> None:
    rich()
    ds = query(step=None)
    assert "ScheduledProcedureStepSequence" not in ask(ds)[0]
    ds.ScheduledProcedureStepSequence = []
    assert len(ask(ds)[0].ScheduledProcedureStepSequence[0]) == len(INNER)
    ds.ScheduledProcedureStepSequence = [Dataset()]
    assert len(ask(ds)[0].ScheduledProcedureStepSequence[0]) == len(INNER)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_the_items_of_a_code_sequence_are_trimmed_too(syntax: str) -> None:
    rich()
    item = Dataset()
    item.CodeValue = item.CodingSchemeDesignator = ""
    (answer,) = ask(query(RequestedProcedureCodeSequence=[item]), syntax=syntax)
    assert [e.keyword for e in answer.RequestedProcedureCodeSequence[0]] == [
        "CodeValue",
        "CodingSchemeDesignator",
    ]


def test_texts_are_cut_at_a_word_and_noted_and_names_lose_their_last_components() -> None:
    place(
        group(scheduled_procedure_step_description="Computed tomography of the head " * 4),
        patient=who(name="A" * 40 + "^" + "B" * 20 + "^" + "C" * 20),
    )
    ds = query(step={"ScheduledProcedureStepDescription": ""})
    (answer,) = ask(ds)
    said = answer.ScheduledProcedureStepSequence[0].ScheduledProcedureStepDescription
    assert said == ("Computed tomography of the head " * 2).strip()
    assert str(answer.PatientName) == "A" * 40 + "^" + "B" * 20
    item = WorklistItem.objects.get()
    assert set(item.adapted) == {"ScheduledProcedureStepDescription", "PatientName"}


def test_an_identifier_that_does_not_fit_keeps_the_item_off_with_the_reason() -> None:
    place(group(accession="B1"), patient=who("9" * 70))
    assert ask(query()) == []
    item = WorklistItem.objects.get()
    assert "PatientID has 70 characters; LO holds 64" in item.withheld
    assert not item.waiting


def test_a_step_without_a_start_waits_to_be_scheduled() -> None:
    place(group(accession="B2", start=None))
    assert ask(query()) == []
    assert "waits to be scheduled" in WorklistItem.objects.get().withheld


def test_a_backslash_in_a_text_does_not_become_two_values() -> None:
    place(group(scheduled_procedure_step_description="a\\b\x07c"))
    (answer,) = ask(query(step={"ScheduledProcedureStepDescription": ""}))
    assert answer.ScheduledProcedureStepSequence[0].ScheduledProcedureStepDescription == "a/b c"


def test_when_only_the_day_is_known_the_time_is_midnight() -> None:
    place(group(start=NOW.replace(hour=0), start_has_time=False))
    (answer,) = ask(query(step={"ScheduledProcedureStepStartTime": ""}))
    assert answer.ScheduledProcedureStepSequence[0].ScheduledProcedureStepStartTime == "000000"


def test_a_step_without_a_station_is_offered_as_the_caller_s_own() -> None:
    place(group())
    (answer,) = ask(query(step={"ScheduledStationAETitle": ""}), ae="MR07")
    assert answer.ScheduledProcedureStepSequence[0].ScheduledStationAETitle == "MR07"


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_lengths_of_a_scanner_shorten_its_texts_and_keep_off_what_it_cannot_identify(syntax: str) -> None:
    place(group(accession="LONGACCESSION1", code="CTABDOMEN"))
    options = {"worklist": {"lengths": {"RequestedProcedureDescription": 5, "PatientName": 8}}}
    ds = query(RequestedProcedureDescription="")
    (answer,) = ask(ds, options=options, syntax=syntax)
    assert answer.RequestedProcedureDescription == "CTABD"
    assert str(answer.PatientName) == "Sommer"
    assert answer.AccessionNumber == "LONGACCESSION1"
    options["worklist"]["lengths"] = {"AccessionNumber": 8}
    assert ask(ds, options=options, syntax=syntax) == []


def test_every_attribute_has_its_columns_and_no_two_share_a_tag() -> None:
    columns = {f.name for f in WorklistItem._meta.get_fields()}
    for entry in ALL:
        assert set(entry.columns) <= columns, entry.keyword
        for item in entry.items:
            assert set(item.columns) <= columns, item.keyword
    assert len({e.tag for e in ALL}) == len(ALL)


def test_keywords_are_spelled_as_the_house_spells_attributes() -> None:
    assert snake_case("IssuerOfPatientID") == "issuer_of_patient_id"
    assert snake_case("ScheduledStationAETitle") == "scheduled_station_ae_title"
    assert snake_case("OtherPatientIDsSequence") == "other_patient_ids_sequence"
