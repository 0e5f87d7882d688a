"""The dicomweb-client library as a client over HTTP: it finds, reads and stores."""

from __future__ import annotations

from datetime import datetime
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from dicomweb_client import DICOMwebClient
from dicomweb_client.session_utils import create_session
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from common.roles import create_token
from integration.rehearsal.phantoms import Protocol, scan
from tests.pacs.dicomweb.conftest import Archive


@pytest.fixture
def images(transactional_db: None, archive: Archive) -> list[Dataset]:
    answer = Dataset()
    answer.SpecificCharacterSet = "ISO_IR 192"
    answer.PatientName, answer.PatientID, answer.StudyInstanceUID = "Yamada^Tarou=山田^太郎", "P1", "1.2.7"
    step = Dataset()
    step.Modality = "CT"
    answer.ScheduledProcedureStepSequence = [step]
    made = scan(answer, at=datetime(2026, 3, 1, 9, 30), protocol=Protocol(slices=3, size=64)).images
    made[2].compress(RLELossless, generate_instance_uid=False)
    for ds in made:
        archive.add(ds)
    return made


@pytest.fixture
def client(live_server: Any, transactional_db: None) -> DICOMwebClient:
    session = create_session()
    session.headers["Authorization"] = f"Bearer {create_token('peer', 'technologist')}"
    return DICOMwebClient(url=f"{live_server.url}/dicomweb", session=session)


def test_it_searches_on_every_level(images: list[Dataset], client: DICOMwebClient) -> None:
    [study] = client.search_for_studies(
        search_filters={"PatientName": "yamada*"}, fields=["StudyDescription"], fuzzymatching=True
    )
    assert Dataset.from_json(study).PatientName.ideographic == "山田^太郎"
    [series] = client.search_for_series("1.2.7")
    instances = client.search_for_instances("1.2.7", Dataset.from_json(series).SeriesInstanceUID)
    assert {Dataset.from_json(one).SOPInstanceUID for one in instances} == {
        ds.SOPInstanceUID for ds in images
    }
    assert client.search_for_studies(search_filters={"PatientID": "nobody"}) == []


def test_it_reads_metadata_objects_and_frames(images: list[Dataset], client: DICOMwebClient) -> None:
    metadata = [Dataset.from_json(one) for one in client.retrieve_study_metadata("1.2.7")]
    assert [ds.InstanceNumber for ds in metadata] == [1, 2, 3]
    assert metadata[0].ImagePositionPatient == images[0].ImagePositionPatient
    retrieved = client.retrieve_study("1.2.7")
    for ds, original in zip(retrieved, images, strict=True):
        assert np.array_equal(ds.pixel_array, original.pixel_array)
    for original in images:
        [frame] = client.retrieve_instance_frames(
            "1.2.7",
            original.SeriesInstanceUID,
            original.SOPInstanceUID,
            frame_numbers=[1],
            media_types=("application/octet-stream",),
        )
        assert frame == original.pixel_array.astype("<i2").tobytes()


def test_it_reads_compressed_frames_as_they_are(images: list[Dataset], client: DICOMwebClient) -> None:
    compressed = images[2]
    [frame] = client.retrieve_instance_frames(
        "1.2.7",
        compressed.SeriesInstanceUID,
        compressed.SOPInstanceUID,
        frame_numbers=[1],
        media_types=(("image/dicom-rle", "1.2.840.10008.1.2.5"),),
    )
    assert frame in compressed.PixelData


def test_it_reads_pictures_and_bulk_data(
    images: list[Dataset], client: DICOMwebClient, live_server: Any
) -> None:
    one = images[0]
    picture = client.retrieve_instance_rendered("1.2.7", one.SeriesInstanceUID, one.SOPInstanceUID)
    assert Image.open(BytesIO(picture)).size == (64, 64)
    metadata = client.retrieve_instance_metadata("1.2.7", one.SeriesInstanceUID, one.SOPInstanceUID)
    uri = metadata["7FE00010"]["BulkDataURI"]
    [bulk] = client.retrieve_bulkdata(f"{live_server.url}{uri}")
    assert bulk == one.PixelData


def test_it_stores(images: list[Dataset], client: DICOMwebClient, archive: Archive) -> None:
    fresh = images[0]
    fresh.SOPInstanceUID = fresh.file_meta.MediaStorageSOPInstanceUID = "1.2.7.99"
    told = client.store_instances([fresh])
    assert told.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.7.99"
    archive.index()
    assert len(client.search_for_instances("1.2.7")) == 4


def test_without_a_token_it_gets_nothing(images: list[Dataset], live_server: Any) -> None:
    stranger = DICOMwebClient(url=f"{live_server.url}/dicomweb")
    with pytest.raises(OSError, match="40[13]"):
        stranger.search_for_studies()
