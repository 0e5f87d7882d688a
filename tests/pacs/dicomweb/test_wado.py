"""WADO-RS: objects, metadata, frames, bulk data and pictures, in the shapes that viewers take."""

from __future__ import annotations

import base64
import email
import email.policy
import gzip
import json
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from django.test import Client
from PIL import Image
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EncapsulatedPDFStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from common.models import AuditEvent
from common.store import unit_of_work
from pacs import overlay
from pacs.models import Instance, Study
from pacs.storage.part10 import read_prefix
from pacs.storage.volume import Volume
from tests.conftest import sample
from tests.pacs.dicomweb.conftest import Archive


def image(frames: int = 1, **more: Any) -> Dataset:
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.SOPClassUID, ds.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3.4"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.InstanceNumber = "1.2.3", "1.2.3.1", 1
    ds.PatientName, ds.PatientID, ds.Modality = "Müller^Anna", "P1", "OT"
    ds.AccessionNumber = ""
    ds.Rows, ds.Columns, ds.SamplesPerPixel = 8, 6, 1
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.NumberOfFrames = frames
    ds.PixelData = np.arange(48 * frames, dtype="<u2").tobytes()
    ds["PixelData"].VR = "OW"
    for keyword, value in more.items():
        setattr(ds, keyword, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def url(row: Instance, rest: str = "") -> str:
    series = row.series
    return (
        f"/dicomweb/studies/{series.study.study_instance_uid}/series/{series.series_instance_uid}"
        f"/instances/{row.sop_instance_uid}{rest}"
    )


def body(response: Any) -> bytes:
    return b"".join(response.streaming_content) if response.streaming else response.content


def parts(response: Any) -> list[tuple[str, bytes]]:
    """(content type, bytes) of a multipart answer, read by the standard library's mail parser."""
    assert response.status_code == 200, response.content
    head = b"Content-Type: " + response["Content-Type"].encode() + b"\r\n\r\n"
    message = email.message_from_bytes(head + body(response), policy=email.policy.HTTP)
    found = []
    for part in message.iter_parts():
        payload = part.get_payload(decode=True)
        assert isinstance(payload, bytes)
        found.append((str(part["Content-Type"]).replace('"', ""), payload))
    return found


class TestObjects:
    def test_a_study_comes_as_parts_with_its_corrections(self, archive: Archive, reader: Client) -> None:
        archive.add(image())
        archive.add(image(SOPInstanceUID="1.2.3.5", InstanceNumber=2))
        with unit_of_work("test:1") as unit:
            overlay.correct(Study.objects.get(), {"PatientName": "Right^Name"}, unit)
        received = parts(reader.get("/dicomweb/studies/1.2.3"))
        assert [kind for kind, _ in received] == [
            "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"
        ] * 2
        for (_, raw), uid in zip(received, ("1.2.3.4", "1.2.3.5"), strict=True):
            ds = dcmread(BytesIO(raw))
            assert (ds.SOPInstanceUID, ds.PatientName) == (uid, "Right^Name")
            assert ds.PixelData == image().PixelData

    def test_one_object_comes_alone_where_that_is_asked_for(self, archive: Archive, reader: Client) -> None:
        row = archive.add(image())
        response = reader.get(url(row), headers={"accept": "application/dicom"})
        assert response["Content-Type"] == "application/dicom"
        assert "attachment" in response["Content-Disposition"]
        assert dcmread(BytesIO(body(response))).PatientID == "P1"

    def test_an_object_that_nobody_corrected_is_byte_identical(
        self, archive: Archive, reader: Client
    ) -> None:
        path = sample("dicom", "ts", "JPEG_2000_Image_Compression.dcm")
        row = archive.add_file(path.read_bytes())
        received = body(reader.get(url(row), headers={"accept": "application/dicom"}))
        _, offset = read_prefix(path.read_bytes())
        assert received[row.data_set_offset :] == path.read_bytes()[offset:]
        assert dcmread(BytesIO(received)) == dcmread(path)

    def test_explicit_little_endian_is_made_when_asked_for(self, archive: Archive, reader: Client) -> None:
        ds = image()
        ds.compress(RLELossless, generate_instance_uid=False)
        row = archive.add(ds)
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.1'
        [(kind, raw)] = parts(reader.get(url(row), headers={"accept": accept}))
        assert kind.endswith("transfer-syntax=1.2.840.10008.1.2.1")
        assert dcmread(BytesIO(raw)).PixelData == image().PixelData

    @pytest.mark.parametrize(
        "path", ["studies/1.9", "studies/1.2.3/series/1.9", "studies/1.2.3/series/1.2.3.1/instances/1.9"]
    )
    def test_what_is_not_there_is_404(self, archive: Archive, reader: Client, path: str) -> None:
        archive.add(image())
        assert reader.get(f"/dicomweb/{path}").status_code == 404
        assert reader.get(f"/dicomweb/{path}/metadata").status_code == 404

    def test_what_the_client_does_not_take_is_406(self, archive: Archive, reader: Client) -> None:
        row = archive.add(image())
        assert reader.get(url(row), headers={"accept": "text/html"}).status_code == 406
        assert reader.get(url(row, "/metadata"), headers={"accept": "text/html"}).status_code == 406

    @pytest.mark.parametrize("role", ["referrer", "analyst"])
    def test_a_referrer_and_an_analyst_get_nothing_of_a_plain_archive(
        self, archive: Archive, browser: Callable[..., Client], role: str
    ) -> None:
        row = archive.add(image())
        client = browser(role)
        for rest in ("", "/metadata", "/frames/1", "/rendered", "/thumbnail", "/bulkdata/7FE00010"):
            assert client.get(url(row, rest)).status_code in (403, 404), rest

    def test_a_uid_of_other_characters_is_no_path(self, archive: Archive, reader: Client) -> None:
        for uid in ("..%2f..%2fetc", "1.2;3", "a.b", "1" * 65):
            assert reader.get(f"/dicomweb/studies/{uid}/metadata").status_code == 404


class TestMetadata:
    def metadata(self, client: Client, row: Instance) -> dict[str, Any]:
        response = client.get(url(row, "/metadata"), headers={"accept": "application/dicom+json"})
        assert response.status_code == 200
        assert response["Content-Type"] == "application/dicom+json"
        [document] = response.json()
        assert isinstance(document, dict)
        return document

    def test_pixels_are_named_by_a_root_relative_uri_that_gives_them(
        self, archive: Archive, reader: Client
    ) -> None:
        row = archive.add(image())
        document = self.metadata(reader, row)
        assert document["7FE00010"] == {"vr": "OW", "BulkDataURI": url(row, "/bulkdata/7FE00010")}
        assert reader.get(document["7FE00010"]["BulkDataURI"]).content == image().PixelData

    def test_empty_attributes_are_left_out_and_the_transfer_syntax_is_told(
        self, archive: Archive, reader: Client
    ) -> None:
        document = self.metadata(reader, archive.add(image()))
        assert "00080050" not in document
        assert document["00083002"]["Value"] == [ExplicitVRLittleEndian]
        assert document["00080005"]["Value"] == ["ISO_IR 192"]
        assert document["00100010"]["Value"] == [{"Alphabetic": "Müller^Anna"}]
        assert not any(tag.startswith("0002") for tag in document)

    def test_large_binary_values_inside_sequences_are_fetched_by_their_path(
        self, archive: Archive, reader: Client
    ) -> None:
        wave = Dataset()
        wave.WaveformBitsAllocated = 16
        wave.WaveformData = bytes(range(256)) * 8
        wave["WaveformData"].VR = "OW"
        row = archive.add(image(WaveformSequence=[Dataset(), wave]))
        document = self.metadata(reader, row)
        named = document["54000100"]["Value"][1]["54001010"]
        assert named["BulkDataURI"] == url(row, "/bulkdata/54000100/2/54001010")
        assert reader.get(named["BulkDataURI"]).content == wave.WaveformData

    def test_small_binary_values_are_inline(self, archive: Archive, reader: Client) -> None:
        row = archive.add(image(ICCProfile=b"\1\2\3\4"))
        assert base64.b64decode(self.metadata(reader, row)["00282000"]["InlineBinary"]) == b"\1\2\3\4"

    def test_an_unreadable_number_does_not_spoil_the_rest(self, archive: Archive, reader: Client) -> None:
        raw = archive_bytes(image(SliceThickness="5.5"))
        row = archive.add_file(raw.replace(b"DS\x04\x005.5 ", b"DS\x04\x005,5x"))
        document = self.metadata(reader, row)
        assert document["00180050"] == {"vr": "DS", "Value": ["5,5x"]}
        assert document["00100020"]["Value"] == ["P1"]

    def test_it_is_compressed_for_those_who_take_that(self, archive: Archive, reader: Client) -> None:
        row = archive.add(image(PatientComments="x" * 2000))
        response = reader.get(url(row, "/metadata"), headers={"accept-encoding": "gzip"})
        assert response["Content-Encoding"] == "gzip"
        assert json.loads(gzip.decompress(response.content))

    def test_corrections_are_shown(self, archive: Archive, reader: Client) -> None:
        row = archive.add(image())
        with unit_of_work("test:1") as unit:
            overlay.correct(Study.objects.get(), {"PatientName": "山田^太郎", "PatientID": "P2"}, unit)
        document = self.metadata(reader, row)
        assert document["00100010"]["Value"] == [{"Alphabetic": "山田^太郎"}]
        assert document["00100020"]["Value"] == ["P2"]

    def test_nesting_without_end_is_refused(self, archive: Archive, reader: Client) -> None:
        nest = b"\x08\x00\x32\x10\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
        ds = image()
        ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        raw = archive_bytes(ds)
        at = raw.index(b"\x10\x00\x10\x00")
        row = archive.add(ds)
        Volume("files").place(row.path, raw[:at] + nest * 3000 + raw[at:])
        assert reader.get(url(row, "/metadata")).status_code == 422


def archive_bytes(ds: Dataset) -> bytes:
    buffer = BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


OHIF = "multipart/related; type=application/octet-stream; transfer-syntax=*"


class TestFrames:
    def test_native_frames_are_explicit_little_endian(self, archive: Archive, reader: Client) -> None:
        row = archive.add(image(frames=3))
        received = parts(reader.get(url(row, "/frames/1,3"), headers={"accept": OHIF}))
        assert [kind for kind, _ in received] == [
            "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1"
        ] * 2
        pixels = image(frames=3).PixelData
        assert [content for _, content in received] == [pixels[:96], pixels[192:]]

    def test_a_list_with_an_encoded_comma_is_a_list(self, archive: Archive, reader: Client) -> None:
        row = archive.add(image(frames=3))
        assert len(parts(reader.get(url(row, "/frames/1%2C2"), headers={"accept": OHIF}))) == 2

    @pytest.mark.parametrize(
        "syntax",
        [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
        ids=lambda uid: uid.name,
    )
    def test_other_byte_orders_and_deflated_objects_give_the_same_frames(
        self, archive: Archive, reader: Client, syntax: str
    ) -> None:
        ds = image(frames=2)
        if syntax == ExplicitVRBigEndian:
            ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
        ds.file_meta.TransferSyntaxUID = syntax
        row = archive.add(ds)
        [(_, content)] = parts(reader.get(url(row, "/frames/2"), headers={"accept": OHIF}))
        assert content == image(frames=2).PixelData[96:]

    def test_compressed_frames_come_as_they_are_stored(self, archive: Archive, reader: Client) -> None:
        ds = image(frames=2)
        ds.compress(RLELossless, generate_instance_uid=False)
        row = archive.add(ds)
        response = reader.get(url(row, "/frames/2"), headers={"accept": OHIF})
        assert 'type="image/dicom-rle"' in response["Content-Type"]
        [(kind, content)] = parts(response)
        assert kind == "image/dicom-rle; transfer-syntax=1.2.840.10008.1.2.5"
        assert content in ds.PixelData

    def test_compressed_frames_are_decoded_for_those_who_take_octets_only(
        self, archive: Archive, reader: Client
    ) -> None:
        ds = image(frames=2)
        ds.compress(RLELossless, generate_instance_uid=False)
        row = archive.add(ds)
        accept = 'multipart/related; type="application/octet-stream"'
        [(kind, content)] = parts(reader.get(url(row, "/frames/2"), headers={"accept": accept}))
        assert kind == "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1"
        assert content == image(frames=2).PixelData[96:]

    def test_single_bits_are_cut_out_of_their_bytes(self, archive: Archive, reader: Client) -> None:
        bits = np.random.default_rng(1).integers(0, 2, (3, 3, 5)).astype(np.uint8)
        ds = image(frames=3, Rows=3, Columns=5, BitsAllocated=1, BitsStored=1, HighBit=0)
        ds.PixelData = np.packbits(bits.reshape(-1), bitorder="little").tobytes()
        ds["PixelData"].VR = "OB"
        row = archive.add(ds)
        [(_, content)] = parts(reader.get(url(row, "/frames/2"), headers={"accept": OHIF}))
        shown = np.unpackbits(np.frombuffer(content, np.uint8), bitorder="little")[:15]
        assert (shown.reshape(3, 5) == bits[1]).all()

    @pytest.mark.parametrize("number", ["0", "4", "999999999"])
    def test_a_frame_that_is_not_there_is_404(self, archive: Archive, reader: Client, number: str) -> None:
        row = archive.add(image(frames=3))
        assert reader.get(url(row, f"/frames/{number}")).status_code == 404

    def test_every_sample_of_others_gives_a_frame_or_says_why_not(
        self, archive: Archive, reader: Client
    ) -> None:
        for path in sorted(sample("dicom", "ts").glob("*.dcm")):
            row = archive.add_file(path.read_bytes())
            response = reader.get(url(row, "/frames/1"), headers={"accept": OHIF})
            expected = 404 if path.name == "Explicit_VR_Little_Endian.dcm" else 200
            assert response.status_code == expected, path.name
            Study.objects.all().delete()  # some are one image in several transfer syntaxes


class TestPictures:
    def picture(self, client: Client, address: str, **headers: str) -> Image.Image:
        response = client.get(address, headers=headers)
        assert response.status_code == 200, response.content
        return Image.open(BytesIO(response.content))

    def test_an_instance_is_rendered_as_jpeg_or_png(self, archive: Archive, reader: Client) -> None:
        row = archive.add(image())
        assert self.picture(reader, url(row, "/rendered")).format == "JPEG"
        assert self.picture(reader, url(row, "/rendered"), accept="image/png").format == "PNG"
        assert self.picture(reader, url(row, "/rendered?accept=image/png")).format == "PNG"
        assert reader.get(url(row, "/rendered"), headers={"accept": "image/gif"}).status_code == 406

    def test_the_window_asked_for_wins(self, archive: Archive, reader: Client) -> None:
        row = archive.add(image(WindowCenter="24", WindowWidth="48"))
        asked = self.picture(reader, url(row, "/rendered?window=10,2"), accept="image/png")
        levels = np.asarray(asked).reshape(-1)
        assert levels[9] == 0
        assert levels[11] == 255

    def test_a_viewport_scales_and_keeps_the_proportions(self, archive: Archive, reader: Client) -> None:
        row = archive.add(image())
        assert self.picture(reader, url(row, "/rendered?viewport=60,60")).size == (45, 60)

    def test_a_thumbnail_is_made_of_the_middle_of_a_series(self, archive: Archive, reader: Client) -> None:
        for at, level in enumerate((0, 1000, 4000)):
            ds = image(SOPInstanceUID=f"1.2.3.{at}", InstanceNumber=at)
            ds.PixelData = np.full(48, level, "<u2").tobytes()
            ds.WindowCenter, ds.WindowWidth = 1000, 500
            row = archive.add(ds)
        series = url(row).rpartition("/instances")[0]
        small = self.picture(reader, f"{series}/thumbnail?viewport=4,4")
        assert max(small.size) <= 4
        assert 100 < np.asarray(small).mean() < 150
        assert self.picture(reader, "/dicomweb/studies/1.2.3/thumbnail").size == (6, 8)

    def test_frames_are_rendered_one_by_one(self, archive: Archive, reader: Client) -> None:
        row = archive.add(image(frames=3, WindowCenter="72", WindowWidth="144"))
        levels = [
            np.asarray(self.picture(reader, url(row, f"/frames/{n}/rendered"))).mean() for n in (1, 2, 3)
        ]
        assert levels == sorted(levels)
        assert reader.get(url(row, "/frames/4/rendered")).status_code == 404

    def test_a_picture_is_not_sent_again_to_who_has_it(self, archive: Archive, reader: Client) -> None:
        row = archive.add(image())
        tag = reader.get(url(row, "/rendered"))["ETag"]
        again = reader.get(url(row, "/rendered"), headers={"if-none-match": tag})
        assert (again.status_code, again.content) == (304, b"")
        other = reader.get(url(row, "/rendered?window=1,2"), headers={"if-none-match": tag})
        assert other.status_code == 200

    def test_a_pdf_is_shown_as_itself_and_runs_nothing(self, archive: Archive, reader: Client) -> None:
        ds = image(SOPClassUID=EncapsulatedPDFStorage)
        del ds.PixelData
        ds.EncapsulatedDocument, ds.EncapsulatedDocumentLength = b"%PDF-1.4 x\0", 10
        row = archive.add(ds)
        accept = "text/html,application/xhtml+xml,*/*;q=0.8"
        response = reader.get(url(row, "/rendered"), headers={"accept": accept})
        assert (response["Content-Type"], response.content) == ("application/pdf", b"%PDF-1.4 x")
        assert response["X-Frame-Options"] == "SAMEORIGIN"
        assert "sandbox" in response["Content-Security-Policy"]

    def test_a_video_is_sent_in_ranges(self, archive: Archive, reader: Client) -> None:
        film = bytes(range(250))
        ds = image()
        ds.PixelData = encapsulate([film[:100], film[100:]], has_bot=False)
        ds["PixelData"].is_undefined_length = True
        ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"
        row = archive.add(ds)
        whole = reader.get(url(row, "/rendered"))
        assert (whole.status_code, whole["Content-Type"], whole.content) == (200, "video/mp4", film)
        some = reader.get(url(row, "/rendered"), headers={"range": "bytes=90-109"})
        assert (some.status_code, some.content) == (206, film[90:110])
        assert some["Content-Range"] == "bytes 90-109/250"
        assert reader.get(url(row, "/rendered"), headers={"range": "bytes=900-"}).status_code == 416

    def test_what_is_no_picture_says_so(self, archive: Archive, reader: Client) -> None:
        ds = image()
        del ds.PixelData
        del ds.Rows
        row = archive.add(ds)
        assert reader.get(url(row, "/rendered")).status_code == 404
        assert reader.get("/dicomweb/studies/1.2.3/thumbnail").status_code == 404

    @pytest.mark.parametrize("query", ["window=a,b", "window=1,0", "viewport=0,1", "viewport=99999,1"])
    def test_a_malformed_parameter_is_refused(self, archive: Archive, reader: Client, query: str) -> None:
        row = archive.add(image())
        assert reader.get(url(row, f"/rendered?{query}")).status_code == 400

    def test_fetching_many_pictures_of_a_study_is_one_access_of_one_actor(
        self, archive: Archive, reader: Client, browser: Callable[..., Client]
    ) -> None:
        row = archive.add(image(frames=3))
        for number in (1, 2, 3):
            reader.get(url(row, f"/frames/{number}/rendered"))
        assert AuditEvent.objects.filter(action="read").count() == 1
        browser("technologist").get(url(row, "/rendered"))
        assert AuditEvent.objects.filter(action="read").count() == 2
        assert AuditEvent.objects.first().object_ids == [str(row.series.study_id)]  # type: ignore[union-attr]
