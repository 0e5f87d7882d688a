"""C-FIND of studies, series, instances and patients, asked by findscu, by our own sender and by pynetdicom."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from datetime import date, time, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.sop_class import (
    PatientRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelFind,
)

from common.clock import now
from common.models import AuditEvent
from pacs.dimse.admission import Known
from pacs.matching import name_keys
from pacs.models import Instance, Overlay, Series, Study
from pacs.services import find
from tests.conftest import require_peer
from tests.pacs.dimse.conftest import ALL, Served

pytestmark = pytest.mark.django_db(transaction=True)


def study(uid: str, **columns: Any) -> Study:
    values = {
        "patient_id": "P1", "patient_name": "Doe^Jane", "patient_birth_date": "19700102", "patient_sex": "F",
        "accession_number": f"A{uid}", "study_date": date(2026, 3, 10), "study_time": time(10, 15),
        "study_description": "CT HEAD", "modalities_in_study": ["CT"], "number_of_study_related_series": 1,
        "number_of_study_related_instances": 2, "received_at": now(), "last_instance_at": now(),
    } | columns  # fmt: skip
    keys = name_keys(str(values["patient_name"]))
    values |= {
        "patient_name_search": keys[0],
        "patient_name_ideographic_search": keys[1],
        "patient_name_phonetic_search": keys[2],
    }
    return Study.objects.create(study_instance_uid=uid, **values)


def with_images(one: Study, count: int = 2, **columns: Any) -> Series:
    uid = f"{one.study_instance_uid}.1"
    series = Series.objects.create(
        study=one,
        series_instance_uid=uid,
        series_number=1,
        received_at=now(),
        **{"modality": "CT", **columns},
    )
    for number in range(1, count + 1):
        Instance.objects.create(
            series=series, sop_instance_uid=f"{uid}.{number}", sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
            transfer_syntax_uid="1.2.840.10008.1.2.1", instance_number=number, rows=512, path="", size=1,
            data_set_offset=0, sha256="", received_at=now(),
        )  # fmt: skip
    return series


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    return serve(register=find.register, known=[Known("*", "*", ALL)])


def ask(
    served: Served, level: str, model: Any = StudyRootQueryRetrieveInformationModelFind, syntax: str | None = None,
    **keys: Any,
) -> tuple[list[Dataset], int]:  # fmt: skip
    """All answers and the final status, by pynetdicom."""
    ae = AE(ae_title="QUERY")
    ae.add_requested_context(model, syntax)
    assoc = ae.associate("127.0.0.1", served.port, ae_title="ORDERLY")
    assert assoc.is_established
    ds = Dataset()
    ds.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(ds, keyword, value)
    answers, last = [], None
    for status, identifier in assoc.send_c_find(ds, model):
        last = status.Status
        if identifier is not None and status.Status in (0xFF00, 0xFF01):
            answers.append(identifier)
    assoc.release()
    assert last is not None
    return answers, last


def uids(answers: list[Dataset]) -> set[str]:
    return {str(answer.StudyInstanceUID) for answer in answers}


def test_studies_are_found_by_each_kind_of_key(served: Served) -> None:
    study("1.1", patient_id="P1", patient_name="Doe^Jane")
    study(
        "1.2",
        patient_id="P2",
        patient_name="Müller^Jürgen",
        study_date=date(2026, 3, 11),
        modalities_in_study=["MR"],
    )
    study(
        "1.3", patient_id="P_3", patient_name="Yamada^Tarou=山田^太郎", study_date=None, accession_number=""
    )
    study("1.4", hidden=True)
    every = {"1.1", "1.2", "1.3"}
    for keys, expected in (
        ({}, every),
        ({"PatientID": "P1"}, {"1.1"}),
        ({"PatientID": "P?3"}, {"1.3"}),
        ({"PatientID": "P_*"}, {"1.3"}),
        ({"PatientName": "muller*"}, {"1.2"}),
        ({"PatientName": "DOE^JANE"}, {"1.1"}),
        ({"StudyDate": "20260310-20260310"}, {"1.1"}),
        ({"StudyDate": "20260311-"}, {"1.2"}),
        ({"StudyDate": "-"}, None),
        ({"ModalitiesInStudy": "MR"}, {"1.2"}),
        ({"AccessionNumber": "A1.1"}, {"1.1"}),
        ({"StudyInstanceUID": ["1.1", "1.2"]}, {"1.1", "1.2"}),
        ({"NumberOfStudyRelatedInstances": "2", "PatientID": "*"}, every),
        ({"StudyDescription": "CT*", "StudyTime": "1000-1100"}, every),
    ):  # fmt: skip
        answers, status = ask(served, "STUDY", **keys)
        if expected is None:
            assert (answers, status) == ([], 0xA900)
        else:
            assert (uids(answers), status) == (expected, 0), keys


def test_only_what_was_asked_for_is_returned_in_every_transfer_syntax(served: Served) -> None:
    study("1.1", study_description="Kopf nativ")
    for syntax in (
        "1.2.840.10008.1.2",
        "1.2.840.10008.1.2.1",
        "1.2.840.10008.1.2.2",
        "1.2.840.10008.1.2.1.99",
    ):
        (answer,), _ = ask(
            served, "STUDY", syntax=syntax, StudyDescription="", PatientSex="", StudyTime="", PatientComments="",
            NumberOfStudyRelatedSeries="",
        )  # fmt: skip
        assert {element.keyword for element in answer} == {
            "QueryRetrieveLevel", "RetrieveAETitle", "StudyInstanceUID", "StudyDescription", "PatientSex",
            "StudyTime", "PatientComments", "NumberOfStudyRelatedSeries",
        }  # fmt: skip
        assert answer.StudyDescription == "Kopf nativ"
        assert (answer.PatientSex, answer.StudyTime, answer.PatientComments) == ("F", "101500", "")
        assert answer.NumberOfStudyRelatedSeries == 1
        assert answer.RetrieveAETitle == "ORDERLY"


def test_series_and_instances_are_found_and_levels_above_may_be_asked_for(served: Served) -> None:
    with_images(study("1.1"), body_part_examined="HEAD")
    with_images(study("1.2", patient_id="P2"), modality="MR")
    answers, _ = ask(
        served, "SERIES", StudyInstanceUID="1.1", Modality="", BodyPartExamined="", SeriesInstanceUID=""
    )
    assert [(a.Modality, a.BodyPartExamined, a.SeriesInstanceUID) for a in answers] == [
        ("CT", "HEAD", "1.1.1")
    ]
    answers, _ = ask(served, "SERIES", PatientID="P2", SeriesInstanceUID="")
    assert [a.SeriesInstanceUID for a in answers] == ["1.2.1"]
    answers, _ = ask(
        served, "IMAGE", StudyInstanceUID="1.1", SeriesInstanceUID="1.1.1", InstanceNumber="2", SOPInstanceUID="",
        SOPClassUID="", Rows="",
    )  # fmt: skip
    (image,) = answers
    assert (image.SOPInstanceUID, image.InstanceNumber, image.Rows) == ("1.1.1.2", 2, 512)
    Instance.objects.filter(sop_instance_uid="1.1.1.2").update(hidden=True)
    answers, _ = ask(served, "IMAGE", StudyInstanceUID="1.1", SOPInstanceUID="")
    assert [a.SOPInstanceUID for a in answers] == ["1.1.1.1"]


def test_a_patient_is_one_answer_with_its_counts(served: Served) -> None:
    study("1.1")
    study("1.2", number_of_study_related_instances=5)
    study("1.3", patient_id="P2", patient_name="Roe^Richard")
    model = PatientRootQueryRetrieveInformationModelFind
    keys = {"PatientID": "", "PatientName": "", "NumberOfPatientRelatedStudies": "",
            "NumberOfPatientRelatedInstances": ""}  # fmt: skip
    answers, status = ask(served, "PATIENT", model, **keys)
    got = {
        a.PatientID: (str(a.PatientName), a.NumberOfPatientRelatedStudies, a.NumberOfPatientRelatedInstances)
        for a in answers
    }
    assert got == {"P1": ("Doe^Jane", 2, 7), "P2": ("Roe^Richard", 1, 2)}
    assert status == 0
    assert ask(served, "PATIENT", PatientID="P1") == ([], 0xA900)  # not a level of Study Root


def test_names_come_back_in_a_character_set_that_holds_them(served: Served) -> None:
    study("1.1", patient_name="Müller^Jürgen")
    study("1.2", patient_name="Yamada^Tarou=山田^太郎")
    answers, _ = ask(served, "STUDY", SpecificCharacterSet="ISO_IR 100", PatientName="MÜLLER*")
    assert (answers[0].SpecificCharacterSet, str(answers[0].PatientName)) == ("ISO_IR 100", "Müller^Jürgen")
    answers, _ = ask(served, "STUDY", SpecificCharacterSet="ISO_IR 192", PatientName="*=山田*")
    assert (answers[0].SpecificCharacterSet, str(answers[0].PatientName)) == (
        "ISO_IR 192",
        "Yamada^Tarou=山田^太郎",
    )
    answers, _ = ask(served, "STUDY", PatientName="", StudyInstanceUID="1.2")
    assert (answers[0].SpecificCharacterSet, str(answers[0].PatientName)) == (
        "ISO_IR 192",
        "Yamada^Tarou=山田^太郎",
    )


def test_the_overlay_shows_in_answers_and_other_attributes_come_from_the_index(served: Served) -> None:
    one = study("1.1", issuer_of_accession_number="HIS", attributes={
        "00101030": {"vr": "DS", "Value": [70.5]},
        "00081032": {"vr": "SQ", "Value": [{"00080100": {"vr": "SH", "Value": ["CTHEAD"]}}]},
    })  # fmt: skip
    with_images(one, scheduled_procedure_step_id="S1", requested_procedure_id="R1")
    Overlay.objects.create(
        study=one,
        attributes={"PatientComments": "geändert", "PatientWeight": "71"},
        cause="user:1",
        updated_at=now(),
    )
    keys = {"PatientComments": "", "PatientWeight": "", "ProcedureCodeSequence": [], "StudyInstanceUID": "1.1",
            "IssuerOfAccessionNumberSequence": [], "RequestAttributesSequence": []}  # fmt: skip
    (answer,), _ = ask(served, "SERIES", **keys)
    assert (answer.PatientComments, answer.PatientWeight) == ("geändert", 71)
    assert answer.ProcedureCodeSequence[0].CodeValue == "CTHEAD"
    assert answer.IssuerOfAccessionNumberSequence[0].LocalNamespaceEntityID == "HIS"
    assert answer.RequestAttributesSequence[0].ScheduledProcedureStepID == "S1"


def test_keys_that_are_not_matched_are_said_so_and_a_bad_level_is_refused(served: Served) -> None:
    study("1.1")
    ae = AE(ae_title="QUERY")
    ae.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
    assoc = ae.associate("127.0.0.1", served.port, ae_title="ORDERLY")
    ds = Dataset()
    ds.QueryRetrieveLevel = "STUDY"
    ds.PatientComments = "x"
    codes = [status.Status for status, _ in assoc.send_c_find(ds, StudyRootQueryRetrieveInformationModelFind)]
    assert codes == [0xFF01, 0]
    ds.QueryRetrieveLevel = "HOSPITAL"
    ((status, _),) = assoc.send_c_find(ds, StudyRootQueryRetrieveInformationModelFind)
    assert (status.Status, status.OffendingElement) == (0xA900, 0x00080052)
    assoc.release()


def test_a_query_can_be_cancelled_and_is_audited(served: Served) -> None:
    Study.objects.bulk_create(
        Study(
            study_instance_uid=f"1.{n}", study_description="x" * 60, received_at=now(), last_instance_at=now()
        )
        for n in range(1, 1001)
    )
    ae = AE(ae_title="QUERY")
    ae.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
    assoc = ae.associate("127.0.0.1", served.port, ae_title="ORDERLY")
    ds = Dataset()
    ds.QueryRetrieveLevel, ds.StudyDescription = "STUDY", ""
    codes = []
    for status, _ in assoc.send_c_find(ds, StudyRootQueryRetrieveInformationModelFind, msg_id=7):
        codes.append(status.Status)
        if len(codes) == 1:
            assoc.send_c_cancel(7, None, StudyRootQueryRetrieveInformationModelFind)
    assoc.release()
    assert codes[-1] in (0xFE00, 0x0000)  # all may have been on the wire before the cancel came
    event = AuditEvent.objects.get()
    assert (event.actor, event.action, event.detail["level"]) == ("ae:QUERY", "search", "STUDY")
    assert len(event.object_ids) == 100


def test_a_limit_of_answers_is_told(serve: Callable[..., Served]) -> None:
    served = serve(register=find.register, known=[Known("QUERY", "*", ALL, options={"find_limit": 2})])
    for number in range(3):
        study(f"1.{number}")
    answers, status = ask(served, "STUDY")
    assert (len(answers), status) == (2, 0xB001)


def test_a_caller_without_the_right_gets_no_context_for_queries(serve: Callable[..., Served]) -> None:
    served = serve(register=find.register, known=[Known("QUERY", "*", frozenset(("echo", "store")))])
    ae = AE(ae_title="QUERY")
    ae.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
    ae.add_requested_context("1.2.840.10008.1.1")
    assoc = ae.associate("127.0.0.1", served.port, ae_title="ORDERLY")
    assert [str(context.abstract_syntax) for context in assoc.accepted_contexts] == ["1.2.840.10008.1.1"]
    assert [context.result for context in assoc.rejected_contexts] == [1]
    assoc.release()
    assert served.refusals and "no right" in served.refusals[0][2]


def test_findscu_gets_the_same(served: Served, tmp_path: Path) -> None:
    study("1.1", study_date=date.today() - timedelta(days=1))
    done = subprocess.run(
        [require_peer("findscu"), "-S", "-aec", "ORDERLY", "-X", "-od", str(tmp_path), "-k", "QueryRetrieveLevel=STUDY",
         "-k", "PatientName=doe*", "-k", "StudyInstanceUID", "-k", "ModalitiesInStudy", "127.0.0.1", str(served.port)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("rsp*.dcm")
    ds = dcmread(path)
    assert (ds.StudyInstanceUID, ds.PatientName, ds.ModalitiesInStudy) == ("1.1", "Doe^Jane", "CT")
