"""QIDO-RS: what is found, in which shape, and by whom."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from django.test import Client
from pydicom.dataset import Dataset

from common.models import AuditEvent
from common.store import unit_of_work
from integration.rehearsal.phantoms import Protocol, scan
from pacs import overlay
from pacs.models import Study
from tests.pacs.dicomweb.conftest import Archive


def images(
    name: str, patient: str, study: str, modality: str = "CT", at: int = 1, **more: str
) -> list[Dataset]:
    answer = Dataset()
    answer.SpecificCharacterSet = "ISO_IR 192"
    answer.PatientName, answer.PatientID, answer.StudyInstanceUID = name, patient, study
    answer.PatientBirthDate, answer.PatientSex = "19700101", "F"
    answer.AccessionNumber = f"A-{patient}"
    for keyword, value in more.items():
        setattr(answer, keyword, value)
    step = Dataset()
    step.Modality, step.ScheduledProcedureStepID = modality, f"SPS-{patient}"
    answer.ScheduledProcedureStepSequence = [step]
    moment = datetime(2026, 3, at, 9, 30)
    return scan(answer, at=moment, protocol=Protocol(slices=2, size=32, frames=2)).images


@pytest.fixture
def filled(archive: Archive) -> Archive:
    for ds in (
        images("Müller^Anna", "P1", "1.2.1", "CT", 1)
        + images("Yamada^Tarou=山田^太郎=やまだ^たろう", "P2", "1.2.2", "MR", 2)
        + images("MULLER^Otto", "P3", "1.2.3", "US", 3)
    ):
        archive.add(ds)
    return archive


def found(client: Client, query: str) -> list[dict[str, Any]]:
    response = client.get(f"/dicomweb/{query}", headers={"accept": "application/dicom+json"})
    assert response.status_code == 200, response.content
    assert response["Content-Type"] == "application/dicom+json"
    assert response["X-Content-Type-Options"] == "nosniff"
    documents: list[dict[str, Any]] = response.json()
    return documents


def uids(client: Client, query: str) -> list[str]:
    return [document["0020000D"]["Value"][0] for document in found(client, query)]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ["1.2.3", "1.2.2", "1.2.1"]),
        ("?PatientName=müller*", ["1.2.3", "1.2.1"]),
        ("?PatientName=M%C3%BCller%5EAnna", ["1.2.1"]),
        ("?PatientName=山田*", ["1.2.2"]),
        ("?PatientName=anna&fuzzymatching=true", ["1.2.1"]),
        ("?00100020=*2*", ["1.2.2"]),
        ("?PatientID=p1", []),
        ("?PatientID=P%25", []),
        ("?AccessionNumber=A-P3", ["1.2.3"]),
        ("?ModalitiesInStudy=CT%5CMR", ["1.2.2", "1.2.1"]),
        ("?ModalitiesInStudy=CT,US", ["1.2.3", "1.2.1"]),
        ("?StudyDate=20260302-20260303", ["1.2.3", "1.2.2"]),
        ("?StudyDate=20260301-20260303&StudyTime=1000-0900", ["1.2.2"]),
        ("?StudyInstanceUID=1.2.1%5C1.2.3", ["1.2.3", "1.2.1"]),
        ("?StudyInstanceUID=1.2.1,1.2.3", ["1.2.3", "1.2.1"]),
        ("?PatientBirthDate=-19691231", []),
        ("?limit=1&offset=1", ["1.2.2"]),
        ("?PatientName=*", ["1.2.3", "1.2.2", "1.2.1"]),
        (
            "?limit=101&offset=0&fuzzymatching=true&includefield=00081030%2C00080060",
            ["1.2.3", "1.2.2", "1.2.1"],
        ),
    ],
)
def test_studies_are_found_by_their_attributes(
    filled: Archive, reader: Client, query: str, expected: list[str]
) -> None:
    assert uids(reader, f"studies{query}") == expected


def test_a_study_carries_what_viewers_ask_for_and_nothing_empty(filled: Archive, reader: Client) -> None:
    document = found(reader, "studies?PatientID=P2")[0]
    assert document["00080061"] == {"vr": "CS", "Value": ["MR"]}
    assert document["00100010"]["Value"][0] == {
        "Alphabetic": "Yamada^Tarou",
        "Ideographic": "山田^太郎",
        "Phonetic": "やまだ^たろう",
    }
    assert document["00201206"]["Value"] == [2]
    assert document["00201208"]["Value"] == [4]
    assert document["00080020"]["Value"] == ["20260302"]
    assert document["00080030"]["Value"] == ["093000"]
    assert document["00081190"]["Value"] == ["http://testserver/dicomweb/studies/1.2.2"]
    assert all(element.get("Value") for element in document.values())
    assert list(document) == sorted(document)


def test_series_and_instances_of_a_study(filled: Archive, reader: Client) -> None:
    series = found(reader, "studies/1.2.2/series?includefield=00080021%2C00200011")
    assert [document["00200011"]["Value"][0] for document in series] == [2, 3]
    assert series[0]["00400275"]["Value"][0]["00400009"]["Value"] == ["SPS-P2"]
    uid = series[1]["0020000E"]["Value"][0]
    assert len(found(reader, f"studies/1.2.2/series/{uid}/instances")) == 2
    instances = found(reader, "studies/1.2.2/instances?InstanceNumber=2")
    assert [document["00200013"]["Value"] for document in instances] == [[2], [2]]
    assert instances[0]["00083002"]["Value"] == ["1.2.840.10008.1.2.1"]
    assert "00100020" not in instances[0]


def test_series_of_all_studies_carry_their_study(filled: Archive, reader: Client) -> None:
    series = found(reader, "series?Modality=US")
    assert series[0]["00100020"]["Value"] == ["P3"]
    assert len(found(reader, "instances?SOPClassUID=1.2.840.10008.5.1.4.1.1.3.1")) == 1


def test_a_sequence_is_matched_by_its_item(filled: Archive, reader: Client) -> None:
    query = "series?RequestAttributesSequence.ScheduledProcedureStepID=SPS-P1"
    assert uids(reader, query) == ["1.2.1"]
    assert uids(reader, "series?00400275.00400009=SPS-P3") == ["1.2.3"]


def test_the_same_series_uid_in_two_studies_is_kept_apart(archive: Archive, reader: Client) -> None:
    for study, ds in zip(("1.2.8", "1.2.9"), images("A", "P", "1"), strict=True):
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study, "1.2.7"
        archive.add(ds)
    for study in ("1.2.8", "1.2.9"):
        assert uids(reader, f"studies/{study}/series/1.2.7/instances") == [study]


def test_a_corrected_study_is_found_and_shown_by_its_correction(filled: Archive, reader: Client) -> None:
    study = Study.objects.get(study_instance_uid="1.2.1")
    with unit_of_work("test:1") as unit:
        overlay.correct(
            study, {"PatientName": "Schmidt^Eva", "PatientID": "P9", "InstitutionName": "North"}, unit
        )
    assert uids(reader, "studies?PatientName=schmidt*") == ["1.2.1"]
    assert uids(reader, "studies?PatientName=M%C3%BCller%5EAnna") == []
    document = found(reader, "studies?PatientID=P9&includefield=InstitutionName")[0]
    assert document["00100010"]["Value"] == [{"Alphabetic": "Schmidt^Eva"}]
    assert document["00080080"]["Value"] == ["North"]
    with unit_of_work("test:2") as unit:
        overlay.correct(study, {}, unit)
    assert uids(reader, "studies?PatientName=M%C3%BCller%5EAnna") == ["1.2.1"]


def test_hidden_studies_and_objects_are_not_found(filled: Archive, reader: Client) -> None:
    study = Study.objects.get(study_instance_uid="1.2.1")
    instance = study.series.get().instances.first()
    assert instance is not None
    instance.hidden = True
    instance.save()
    assert len(found(reader, "studies/1.2.1/instances")) == 1
    Study.objects.filter(pk=study.pk).update(hidden=True)
    assert uids(reader, "studies") == ["1.2.3", "1.2.2"]
    assert found(reader, "studies/1.2.1/series") == []


@pytest.mark.parametrize(
    "query", ["studies?StudyDate=yesterday", "studies?limit=many", "instances?InstanceNumber=1;DROP"]
)
def test_a_malformed_key_is_refused_without_repeating_it(filled: Archive, reader: Client, query: str) -> None:
    response = reader.get(f"/dicomweb/{query}")
    assert response.status_code == 400
    for word in (b"yesterday", b"many", b"DROP"):
        assert word not in response.content


def test_a_key_that_is_not_matched_is_said_in_a_warning(filled: Archive, reader: Client) -> None:
    response = reader.get("/dicomweb/studies?PatientComments=x&NoSuchThing=y")
    assert response.status_code == 200
    assert "299" in response["Warning"]


@pytest.mark.parametrize("role", ["referrer", "analyst"])
def test_an_archive_without_orders_shows_a_referrer_and_an_analyst_nothing(
    filled: Archive, browser: Callable[..., Client], role: str
) -> None:
    response = browser(role).get("/dicomweb/studies")
    assert response.status_code == 403 or response.json() == []


def test_nobody_comes_in_without_a_login_and_a_token_opens_the_door(filled: Archive, token: str) -> None:
    assert Client().get("/dicomweb/studies").status_code == 401
    assert Client().get("/dicomweb/studies", headers={"authorization": "Bearer wrong"}).status_code in (
        401,
        403,
    )
    allowed = Client(headers={"authorization": f"Bearer {token}"})
    assert uids(allowed, "studies") == ["1.2.3", "1.2.2", "1.2.1"]


def test_each_search_leaves_an_audit_row_without_health_data(filled: Archive, reader: Client) -> None:
    found(reader, "studies?PatientName=muller*")
    row = AuditEvent.objects.get(action="search")
    assert (row.action, row.what, len(row.object_ids)) == ("search", "study", 2)
    assert "muller" not in str(row.detail).lower()
