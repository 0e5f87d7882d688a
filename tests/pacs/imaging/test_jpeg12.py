"""The decoder for JPEG of 12 bits, beside DCMTK's and against bytes that are none."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import get_frame

from pacs.jpeg12 import BadJpeg, decode, precision
from tests.conftest import require_peer, sample
from tests.pacs.imaging.test_rendering import stored

NAME = "JPEG_Extended_Process_2_and_4_.dcm"


def frame() -> bytes:
    return get_frame(dcmread(sample("dicom", "ts", NAME)).PixelData, 0, number_of_frames=1)


def test_dcmtk_decodes_the_same_pixels(tmp_path: Path) -> None:
    plain = tmp_path / "plain.dcm"
    subprocess.run(
        [require_peer("dcmdjpeg"), sample("dicom", "ts", NAME), plain], check=True, capture_output=True
    )
    theirs = dcmread(plain).pixel_array.astype(int)
    ours = decode(frame()).astype(int)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1  # rounding of the transform is left to the decoder (T.81 A.3.3)


def test_an_image_that_dcmtk_encoded_comes_back(tmp_path: Path) -> None:
    """A smooth picture of odd size at full quality differs by little from what was encoded."""
    rows, columns = np.mgrid[0:37, 0:53]
    original = (2048 + 1900 * np.sin(rows / 9) * np.cos(columns / 13)).astype(np.uint16)
    path = stored(tmp_path, original, BitsStored=12, HighBit=11)
    packed = tmp_path / "packed.dcm"
    subprocess.run(
        [require_peer("dcmcjpeg"), "+ee", "+q", "100", path, packed], check=True, capture_output=True
    )
    ds = dcmread(packed)
    assert ds.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.51"
    raw = get_frame(ds.PixelData, 0, number_of_frames=1)
    assert precision(raw) == 12
    lifted = int(original.min())  # the encoder lets the values begin at zero
    assert np.abs(decode(raw).astype(int) + lifted - original).max() <= 8


@pytest.mark.parametrize("cut", [0, 1, 2, 20, 200])
def test_what_ends_before_its_scan_is_refused(cut: int) -> None:
    with pytest.raises(BadJpeg):
        decode(frame()[:cut])


def test_damaged_bytes_are_refused_or_decoded_but_never_hang_or_raise_otherwise() -> None:
    whole = frame()
    rng = random.Random(5)
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            decode(bytes(damaged))
        except BadJpeg:
            pass
