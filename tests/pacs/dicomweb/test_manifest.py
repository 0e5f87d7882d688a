"""The series manifest: metadata in one read, never older than its objects, never a reason to fail."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from django.test import Client
from pydicom.dataset import Dataset

from common.store import unit_of_work
from integration.rehearsal.phantoms import Protocol, scan
from pacs import indexing, manifest, overlay
from pacs.models import Instance, Series, Study
from tests.pacs.dicomweb.conftest import Archive


@pytest.fixture
def series(archive: Archive) -> Series:
    answer = Dataset()
    answer.PatientName, answer.PatientID, answer.StudyInstanceUID = "Muster^Anna", "P1", "1.2.7"
    step = Dataset()
    step.Modality = "CT"
    answer.ScheduledProcedureStepSequence = [step]
    for ds in scan(answer, at=datetime(2026, 3, 1), protocol=Protocol(slices=6, size=32)).images:
        archive.add(ds)
    return Series.objects.get()


def metadata(client: Client) -> list[dict[str, Any]]:
    response = client.get("/dicomweb/studies/1.2.7/metadata")
    assert response.status_code == 200
    documents: list[dict[str, Any]] = response.json()
    return documents


def no_reading(row: Instance) -> None:
    raise AssertionError("an object's own file was opened")


def test_a_second_reader_opens_no_object(
    series: Series, reader: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = metadata(reader)
    assert [document["00200013"]["Value"] for document in first] == [[n] for n in range(1, 7)]
    assert manifest.path_of(series.pk).exists()
    monkeypatch.setattr(manifest, "read", no_reading)
    assert metadata(reader) == first


def test_corrections_are_laid_over_it(series: Series, reader: Client) -> None:
    metadata(reader)
    with unit_of_work("test:1") as unit:
        overlay.correct(Study.objects.get(), {"PatientID": "P2"}, unit)
    assert {document["00100020"]["Value"][0] for document in metadata(reader)} == {"P2"}
    with unit_of_work("test:2") as unit:
        overlay.correct(Study.objects.get(), {}, unit)
    assert {document["00100020"]["Value"][0] for document in metadata(reader)} == {"P1"}


def test_hidden_objects_are_left_out_and_new_ones_come_in(
    series: Series, reader: Client, archive: Archive
) -> None:
    metadata(reader)
    Instance.objects.filter(instance_number=2).update(hidden=True)
    assert [document["00200013"]["Value"][0] for document in metadata(reader)] == [1, 3, 4, 5, 6]
    Instance.objects.update(hidden=False)
    Instance.objects.filter(instance_number=3).update(sha256="0" * 64)
    manifest_before = manifest.load(series.pk)
    assert len(metadata(reader)) == 6
    assert len(manifest_before) == len(manifest.load(series.pk)) == 6
    assert "0" * 64 in {sha256 for sha256, _ in manifest.load(series.pk).values()}


@pytest.mark.parametrize("damage", [b"", b"no gzip", b"\x1f\x8b\x08\0\0\0\0\0\0\3cut"])
def test_a_damaged_manifest_is_made_anew(series: Series, reader: Client, damage: bytes) -> None:
    first = metadata(reader)
    manifest.path_of(series.pk).write_bytes(damage)
    assert metadata(reader) == first
    assert len(manifest.load(series.pk)) == 6


def test_a_disk_that_takes_nothing_is_no_reason_to_fail(series: Series, reader: Client) -> None:
    manifest.root().write_text("a file where the folder should be")
    assert len(metadata(reader)) == 6


def test_it_is_made_when_a_study_settles(
    series: Series, reader: Client, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.ORDERLY_SETTLE_SECONDS = 0
    monkeypatch.setattr(manifest, "PIECE", 4)
    while indexing.settle_once():
        pass
    pieces = 0
    while manifest.renew_piece():
        pieces += 1
    assert pieces >= 2
    assert len(manifest.load(series.pk)) == 6
    monkeypatch.setattr(manifest, "read", no_reading)
    assert len(metadata(reader)) == 6
