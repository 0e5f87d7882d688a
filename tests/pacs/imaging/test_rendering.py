"""Pictures: windows, look-up tables, colour and scaling, made in children that may die without harm."""

from __future__ import annotations

import os
import signal
import threading
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from pacs import rendering
from pacs.rendering import Picture, RenderingError, Window, apply_window, decompressed, native_frame, render
from tests.conftest import sample


def stored(folder: Path, pixels: np.ndarray, **more: Any) -> str:
    """A file with these pixels: (rows, columns), (frames, rows, columns) or (rows, columns, 3)."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    colour = pixels.ndim == 3 and pixels.shape[2] == 3
    ds.SamplesPerPixel = 3 if colour else 1
    ds.Rows, ds.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    ds.NumberOfFrames = pixels.shape[0] if pixels.ndim == 3 and not colour else 1
    ds.BitsAllocated = pixels.dtype.itemsize * 8
    ds.BitsStored, ds.HighBit = ds.BitsAllocated, ds.BitsAllocated - 1
    ds.PixelRepresentation = 1 if pixels.dtype.kind == "i" else 0
    ds.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        ds.PlanarConfiguration = 0
    raw = pixels.tobytes()
    ds.PixelData = raw + b"\0" * (len(raw) % 2)
    ds["PixelData"].VR = "OW" if ds.BitsAllocated > 8 else "OB"
    for keyword, value in more.items():
        setattr(ds, keyword, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path = folder / "image.dcm"
    dcmwrite(path, ds, enforce_file_format=True)
    return str(path)


def levels(path: str, **more: Any) -> np.ndarray:
    made = render(Picture(path, media_type="image/png", **more))
    return np.asarray(Image.open(BytesIO(made.body)))


RAMP = np.arange(-1000, 1000, dtype=np.int16).reshape(40, 50)


class TestWindows:
    def test_the_linear_function_is_that_of_the_standard(self) -> None:
        # PS3.3 C.11.2.1.2.1: below or at c - 0.5 - (w-1)/2 black, above c - 0.5 + (w-1)/2 white.
        values = np.array([-1, 0, 1, 127, 128, 254, 255, 256], np.float32)
        shown = apply_window(values, Window(128, 256))
        assert shown[0] == shown[1] == 0
        assert shown[-1] == shown[-2] == 1
        assert shown[3] == pytest.approx(127 / 255, abs=1e-6)

    def test_a_width_of_one_is_a_threshold(self) -> None:
        shown = apply_window(np.array([9, 10, 11], np.float32), Window(10.5, 1))
        assert shown.tolist() == [0, 0, 1]

    def test_sigmoid_is_half_at_its_centre(self) -> None:
        shown = apply_window(np.array([-1e6, 40, 1e6], np.float32), Window(40, 80, "SIGMOID"))
        assert shown.tolist() == pytest.approx([0, 0.5, 1])

    def test_the_window_asked_for_wins_over_the_objects_own_and_is_told(self, tmp_path: Path) -> None:
        path = stored(tmp_path, RAMP, WindowCenter="0", WindowWidth="2000")
        own = render(Picture(path))
        asked = render(Picture(path, window=Window(500, 10)))
        assert own.window == Window(0, 2000)
        assert asked.window == Window(500, 10)
        assert (levels(path, window=Window(500, 10)).reshape(-1)[:1480] == 0).all()

    def test_the_first_of_several_windows_is_used(self, tmp_path: Path) -> None:
        path = stored(tmp_path, RAMP, WindowCenter=["10", "500"], WindowWidth=["20", "30"])
        assert render(Picture(path)).window == Window(10, 20)

    def test_without_a_window_the_percentiles_make_one(self, tmp_path: Path) -> None:
        shown = levels(stored(tmp_path, RAMP)).reshape(-1)
        assert shown[0] == 0
        assert shown[-1] == 255
        assert 120 < shown[1000] < 135

    def test_padding_does_not_count_for_the_percentiles(self, tmp_path: Path) -> None:
        pixels = np.full((40, 50), -2000, np.int16)
        pixels[10:30, 10:40] = np.arange(600).reshape(20, 30)
        made = render(Picture(stored(tmp_path, pixels, PixelPaddingValue=-2000)))
        assert made.window is not None
        assert 250 < made.window.center < 350

    def test_eight_bits_without_a_window_are_shown_as_they_are(self, tmp_path: Path) -> None:
        pixels = np.arange(50, 150, dtype=np.uint8).reshape(10, 10)
        assert (levels(stored(tmp_path, pixels)) == pixels).all()

    def test_stored_values_become_modality_units_first(self, tmp_path: Path) -> None:
        path = stored(tmp_path, RAMP, RescaleSlope="2", RescaleIntercept="-100")
        shown = levels(path, window=Window(0, 2)).reshape(-1)
        assert shown[1049] == 0
        assert shown[1051] == 255

    def test_monochrome1_is_inverted(self, tmp_path: Path) -> None:
        pixels = np.array([[0, 255]], np.uint8)
        assert levels(stored(tmp_path, pixels, PhotometricInterpretation="MONOCHROME1")).tolist() == [
            [255, 0]
        ]

    def test_a_voi_lut_is_looked_up(self, tmp_path: Path) -> None:
        lut = Dataset()
        lut.LUTDescriptor = [4, 0, 8]
        lut.add_new("LUTData", "US", [255, 0, 128, 64])
        pixels = np.array([[0, 1, 2, 3]], np.uint16)
        made = levels(stored(tmp_path, pixels, VOILUTSequence=[lut], BitsStored=12, HighBit=11))
        assert made.tolist() == [[255, 0, 128, 64]]

    def test_frames_of_an_enhanced_object_have_windows_of_their_own(self, tmp_path: Path) -> None:
        groups = []
        for center in (10, 500):
            voi, item = Dataset(), Dataset()
            voi.WindowCenter, voi.WindowWidth = center, 100
            item.FrameVOILUTSequence = [voi]
            groups.append(item)
        path = stored(tmp_path, np.stack([RAMP, RAMP]), PerFrameFunctionalGroupsSequence=groups)
        assert render(Picture(path, frame=2)).window == Window(500, 100)


class TestColour:
    def test_rgb_stays_as_it_is(self, tmp_path: Path) -> None:
        pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
        path = stored(tmp_path, pixels)
        assert (levels(path) == pixels).all()
        assert render(Picture(path)).window is None

    def test_a_palette_of_sixteen_bits_is_looked_up(self, tmp_path: Path) -> None:
        table = np.array([0, 0x8000, 0xFFFF], "<u2").tobytes()
        more = {f"{c}PaletteColorLookupTableDescriptor": [3, 0, 16] for c in ("Red", "Green", "Blue")}
        data = {f"{c}PaletteColorLookupTableData": table for c in ("Red", "Green", "Blue")}
        path = stored(
            tmp_path,
            np.array([[0, 1, 2]], np.uint8),
            PhotometricInterpretation="PALETTE COLOR",
            **more,
            **data,
        )
        assert levels(path)[0].tolist() == [[0] * 3, [128] * 3, [255] * 3]


class TestSizes:
    def test_a_picture_fits_its_viewport_and_is_only_enlarged_when_wanted(self, tmp_path: Path) -> None:
        path = stored(tmp_path, RAMP)
        assert levels(path, viewport=(100, 100)).shape == (80, 100)
        assert levels(path, viewport=(100, 100), enlarge=False).shape == (40, 50)
        assert levels(path, viewport=(10, 100)).shape == (8, 10)

    def test_pixels_that_are_not_square_are_made_so(self, tmp_path: Path) -> None:
        path = stored(tmp_path, RAMP, PixelSpacing=["2", "1"])
        assert levels(path, viewport=(80, 80)).shape == (80, 50)

    def test_no_frame_named_means_the_middle_one(self, tmp_path: Path) -> None:
        frames = np.stack([np.full((4, 4), level, np.uint8) for level in (10, 90, 200)])
        assert levels(stored(tmp_path, frames), frame=None)[0, 0] == 90


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"Rows": 65535, "Columns": 65535, "SamplesPerPixel": 3}, "too_large"),
            ({"PixelData": b"\0\0"}, "broken"),
            ({"PhotometricInterpretation": "PALETTE COLOR"}, "broken"),
        ],
    )
    def test_what_cannot_be_decoded_is_named(
        self, tmp_path: Path, change: dict[str, Any], reason: str
    ) -> None:
        path = stored(tmp_path, RAMP, **change)
        with pytest.raises(RenderingError) as refused:
            render(Picture(path))
        assert refused.value.reason == reason

    def test_a_missing_frame_a_missing_file_and_no_pixels_are_told_apart(self, tmp_path: Path) -> None:
        path = stored(tmp_path, RAMP)
        for picture, reason in (
            (Picture(path, frame=2), "no_such_frame"),
            (Picture(path, frame=0), "no_such_frame"),
            (Picture(str(tmp_path / "none.dcm")), "gone"),
            (Picture(path, media_type="text/html"), "not_an_image"),
        ):
            with pytest.raises(RenderingError) as refused:
                render(picture)
            assert refused.value.reason == reason

    def test_bytes_that_are_no_file_are_broken_and_the_next_picture_is_made(self, tmp_path: Path) -> None:
        garbage = tmp_path / "garbage.dcm"
        garbage.write_bytes(b"\0" * 128 + b"DICM" + os.urandom(4000))
        with pytest.raises(RenderingError):
            render(Picture(str(garbage)))
        assert render(Picture(stored(tmp_path, RAMP))).body

    def test_a_child_that_hangs_is_replaced(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = stored(tmp_path, RAMP)
        pool = rendering._Pool(1)
        monkeypatch.setattr(rendering, "_current", pool)
        try:
            assert render(Picture(path)).body
            [child] = pool.running
            child.process.send_signal(signal.SIGSTOP)
            monkeypatch.setattr(rendering, "SECONDS", 0.3)
            with pytest.raises(RenderingError) as refused:
                render(Picture(path))
            assert refused.value.reason == "too_slow"
            assert child.process.poll() is not None
            monkeypatch.setattr(rendering, "SECONDS", 20.0)
            assert render(Picture(path)).body
        finally:
            pool.end()

    def test_a_child_that_dies_takes_only_its_own_frame_along(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = stored(tmp_path, RAMP)
        pool = rendering._Pool(1)
        monkeypatch.setattr(rendering, "_current", pool)
        try:
            assert render(Picture(path)).body
            [child] = pool.running
            child.process.send_signal(signal.SIGSTOP)
            threading.Timer(0.2, child.process.kill).start()
            with pytest.raises(RenderingError) as refused:
                render(Picture(path))
            assert refused.value.reason == "broken"
            assert render(Picture(path)).body
        finally:
            pool.end()

    def test_children_end_with_their_parent(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        pool = rendering._Pool(1)
        monkeypatch.setattr(rendering, "_current", pool)
        assert render(Picture(stored(tmp_path, RAMP))).body
        [child] = pool.running
        assert child.process.stdin is not None
        child.process.stdin.close()
        deadline = time.monotonic() + 10
        while child.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert child.process.poll() == 0
        pool.end()


UNDECODABLE = {"Explicit_VR_Little_Endian.dcm": "not_an_image"}  # a CT without pixels


def test_every_transfer_syntax_of_the_samples_is_rendered_or_refused_by_name() -> None:
    paths = sorted(sample("dicom", "ts").glob("*.dcm"))
    assert len(paths) == 12
    for path in paths:
        if path.name in UNDECODABLE:
            with pytest.raises(RenderingError) as refused:
                render(Picture(str(path)))
            assert refused.value.reason == UNDECODABLE[path.name]
            continue
        picture = Image.open(BytesIO(render(Picture(str(path))).body))
        ds = dcmread(path, stop_before_pixels=True)
        assert picture.size == (ds.Columns, ds.Rows), path.name


def test_the_twins_of_the_samples_look_the_same() -> None:
    """One image in several lossless syntaxes is one picture."""
    twins = [
        ("JPEG_LS_Lossless_Image_Compression", "JPEG_2000_Image_Compression_Lossless_Only_"),
        ("RLE_Lossless", "JPEG_Lossless_Non_Hierarchical_First_Order_Prediction_Proces"),
    ]
    for one, other in twins:
        pictures = [levels(str(sample("dicom", "ts", f"{name}.dcm"))) for name in (one, other)]
        assert (pictures[0] == pictures[1]).all()


@pytest.mark.parametrize(
    "name",
    [
        "RLE_Lossless",
        "JPEG_LS_Lossless_Image_Compression",
        "JPEG_Extended_Process_2_and_4_",
        "Explicit_VR_Big_Endian",
        "1.2.840.10008.1.2.8.1",
    ],
)
def test_a_decompressed_object_has_the_same_pixels(name: str) -> None:
    path = str(sample("dicom", "ts", f"{name}.dcm"))
    plain = dcmread(BytesIO(decompressed(path)))
    assert plain.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    pixels = plain.pixel_array if int(plain.get("NumberOfFrames") or 1) == 1 else plain.pixel_array[0]
    assert native_frame(path, 1) == pixels.tobytes()
