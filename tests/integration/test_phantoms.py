"""The rehearsal's scanners make images that look like their modality and carry the worklist's identity."""

from __future__ import annotations

import subprocess
from datetime import datetime
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset

from integration.rehearsal.phantoms import PhantomStudy, Protocol, region_of, scan
from tests.conftest import require_peer

AT = datetime(2026, 11, 21, 9, 30)
SMALL = Protocol(slices=6, size=128, frames=3)


def answer(modality: str, description: str = "") -> Dataset:
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.PatientName = "Größe^Anna"
    ds.PatientID = "P-77"
    ds.IssuerOfPatientID = "HOSPITAL"
    ds.PatientBirthDate = "19700101"
    ds.PatientSex = "F"
    ds.AccessionNumber = "ACC-5"
    ds.StudyInstanceUID = "1.2.3.4.5"
    ds.RequestedProcedureID = "RP-5"
    ds.RequestedProcedureDescription = description
    ds.ReferringPhysicianName = "Arzt^Otto"
    step = Dataset()
    step.Modality = modality
    step.ScheduledProcedureStepID = "SPS-5"
    step.ScheduledProcedureStepDescription = description
    step.ScheduledStationName = "ROOM1"
    ds.ScheduledProcedureStepSequence = [step]
    return ds


def scanned(modality: str, description: str = "", *, seed: int = 3, lesion: bool = True) -> PhantomStudy:
    numbers = count(1)
    return scan(
        answer(modality, description),
        at=AT,
        seed=seed,
        lesion=lesion,
        protocol=SMALL,
        uid=lambda: f"1.2.99.{next(numbers)}",
    )


MODALITIES = [
    ("CT", "CT head"),
    ("CT", "CT chest"),
    ("CT", "CT abdomen"),
    ("MR", "MR brain"),
    ("CR", "Chest X-ray"),
    ("DX", "Knee"),
    ("MG", "Mammography"),
    ("US", "Abdomen"),
    ("NM", "Bone scan"),
]


@pytest.mark.parametrize(("modality", "description"), MODALITIES)
def test_images_carry_the_identity_of_the_worklist_answer(modality: str, description: str) -> None:
    study = scanned(modality, description)
    assert study.images
    for ds in study.images:
        assert ds.PatientName == "Größe^Anna"
        assert (ds.PatientID, ds.IssuerOfPatientID, ds.AccessionNumber) == ("P-77", "HOSPITAL", "ACC-5")
        assert ds.StudyInstanceUID == "1.2.3.4.5"
        assert ds.Modality == modality
        item = ds.RequestAttributesSequence[0]
        assert (item.RequestedProcedureID, item.ScheduledProcedureStepID) == ("RP-5", "SPS-5")
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
    uids = [ds.SOPInstanceUID for ds in study.images]
    assert len(set(uids)) == len(uids)


@pytest.mark.parametrize(("modality", "description"), MODALITIES)
def test_images_survive_a_file_and_hold_the_pixels_they_promise(
    modality: str, description: str, tmp_path: Path
) -> None:
    for ds in scanned(modality, description).images:
        dcmwrite(tmp_path / "image.dcm", ds, enforce_file_format=True)
        pixels = dcmread(tmp_path / "image.dcm").pixel_array
        frames = int(ds.get("NumberOfFrames", 1))
        assert pixels.shape == ((frames, ds.Rows, ds.Columns) if frames > 1 else (ds.Rows, ds.Columns))
        assert pixels.std() > 1


def test_slices_of_a_volume_stand_exactly_one_thickness_apart() -> None:
    images = scanned("CT", "head").images
    heights = [float(ds.ImagePositionPatient[2]) for ds in images]
    assert np.allclose(np.diff(heights), float(images[0].SliceThickness), atol=1e-3)
    assert len({ds.FrameOfReferenceUID for ds in images}) == 1
    assert [ds.InstanceNumber for ds in images] == list(range(1, len(images) + 1))


def test_a_head_has_the_densities_of_a_head() -> None:
    pixels = np.stack([ds.pixel_array for ds in scanned("CT", "head", lesion=False).images])
    assert pixels.min() < -950
    assert 850 < np.percentile(pixels, 99.5) < 960
    middle = pixels[3, 40:88, 55:73]
    assert 0 < np.median(middle) < 45


def test_the_lesion_is_where_the_healthy_phantom_differs() -> None:
    sick, healthy = scanned("CT", "head"), scanned("CT", "head", lesion=False)
    assert sick.lesion is not None
    assert healthy.lesion is None
    changed = np.stack([ds.pixel_array for ds in sick.images]).astype(int)
    changed -= np.stack([ds.pixel_array for ds in healthy.images])
    spot = changed > 20
    assert 0 < spot.sum() < 0.02 * spot.size
    where = np.argwhere(spot)[:, 2].mean()
    assert (where > 63.5) == sick.lesion.site.startswith("left")


def test_both_series_of_an_mr_show_one_anatomy() -> None:
    images = scanned("MR", "brain").images
    assert len({ds.SeriesInstanceUID for ds in images}) == 2
    t1, t2 = images[3].pixel_array, images[len(images) // 2 + 3].pixel_array
    ventricles = t2 > 850
    assert ventricles.sum() > 20
    assert np.median(t1[ventricles]) < 300


def test_the_same_seed_makes_the_same_pixels_and_another_seed_does_not() -> None:
    one, same, other = (scanned("CT", "chest", seed=seed).images[2] for seed in (3, 3, 4))
    assert one.PixelData == same.PixelData
    assert one.PixelData != other.PixelData


def test_a_cine_moves_and_is_calibrated() -> None:
    ds = scanned("US").images[0]
    frames = ds.pixel_array
    assert frames.shape[0] == SMALL.frames
    assert np.abs(frames[0].astype(int) - frames[1]).mean() > 1
    assert ds.SequenceOfUltrasoundRegions[0].PhysicalDeltaX > 0


def test_words_of_a_procedure_name_its_region() -> None:
    assert region_of("MR Schädel nativ", "MR") == "HEAD"
    assert region_of("Röntgen Thorax", "CR") == "CHEST"
    assert region_of("", "MG") == "BREAST"


@pytest.mark.parametrize(("modality", "description"), MODALITIES)
def test_a_validator_of_others_finds_no_error(modality: str, description: str, tmp_path: Path) -> None:
    validator = require_peer("dciodvfy")
    path = tmp_path / "image.dcm"
    dcmwrite(path, scanned(modality, description).images[0], enforce_file_format=True)
    told = subprocess.run([validator, "-new", path], capture_output=True, text=True).stderr
    assert [line for line in told.splitlines() if line.startswith("Error")] == []
