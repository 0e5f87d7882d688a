"""The overlay over bytes: exactly its differences, in every transfer syntax, and nothing of the pixels."""

from __future__ import annotations

import struct
import subprocess
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from pacs.header import CutOff, HeaderError, TooMuch
from pacs.overlay import (
    NotCorrectable,
    apply_dataset,
    apply_json,
    check,
    dataset_of,
    json_of,
    pieces,
    splice,
)
from tests.conftest import require_peer, sample

SYNTAXES = [
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
]
CORRECTION = {
    "PatientName": "Right^Name",
    "PatientID": "P-2",
    "AccessionNumber": "",
    "OtherPatientIDsSequence": [{"PatientID": "OLD", "IssuerOfPatientID": "CLINIC"}],
}


def image(character_set: str | list[str] = "ISO_IR 100") -> Dataset:
    ds = Dataset()
    ds.SpecificCharacterSet = character_set
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = "1.2.3.4"
    ds.AccessionNumber = "A1"
    ds.ReferringPhysicianName = "Müller^Jörg" if character_set == "ISO_IR 100" else "Yamada^Tarou"
    item = Dataset()
    item.CodeMeaning = "Schädel" if character_set == "ISO_IR 100" else "Head"
    inner = Dataset()
    inner.CodeMeaning = "tief" if character_set == "ISO_IR 100" else "deep"
    item.ProcedureCodeSequence = [inner]
    ds.ProcedureCodeSequence = [item]
    ds.PatientName = "Wrong^Name"
    ds.PatientID = "P-1"
    ds.PatientBirthDate = "19700101"
    ds.StudyInstanceUID = "1.2.3"
    ds.SeriesInstanceUID = "1.2.3.1"
    ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 4, 4, 16, 12, 11
    ds.SamplesPerPixel, ds.PixelRepresentation, ds.PhotometricInterpretation = 1, 0, "MONOCHROME2"
    ds.PixelData = bytes(range(32))
    ds["PixelData"].VR = "OW"
    return ds


def stored(ds: Dataset, syntax: str, *, undefined: bool = False) -> tuple[bytes, int]:
    """A Part 10 file and the offset of its data set."""
    if undefined:
        for elem in ds.iterall():
            if elem.VR == "SQ":
                elem.is_undefined_length = True
                for item in elem.value:
                    item.is_undefined_length_sequence_item = True
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    buffer = BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    raw = buffer.getvalue()
    (group_length,) = struct.unpack_from("<I", raw, 140)
    return raw, 144 + group_length


def corrected(raw: bytes, offset: int, syntax: str, attributes: dict[str, Any]) -> Dataset:
    return dcmread(BytesIO(b"".join(pieces(raw, offset, syntax, attributes, size=7))))


def differences(one: Dataset, other: Dataset) -> set[str]:
    keys = {elem.keyword for ds in (one, other) for elem in ds}
    return {key for key in keys if one.get(key) != other.get(key)}


@pytest.mark.parametrize("undefined", [False, True], ids=["defined", "undefined"])
@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.name)
def test_only_the_overlay_differs_in_every_transfer_syntax(syntax: str, undefined: bool) -> None:
    raw, offset = stored(image(), syntax, undefined=undefined)
    before, after = dcmread(BytesIO(raw)), corrected(raw, offset, syntax, CORRECTION)
    assert differences(before, after) == set(CORRECTION)
    assert after.PatientName == "Right^Name"
    assert after.AccessionNumber == ""
    assert after.OtherPatientIDsSequence[0].IssuerOfPatientID == "CLINIC"
    assert [int(elem.tag) for elem in after] == sorted(int(elem.tag) for elem in after)


@pytest.mark.parametrize("undefined", [False, True], ids=["defined", "undefined"])
@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.name)
def test_text_that_the_character_set_cannot_hold_makes_all_of_it_unicode(
    syntax: str, undefined: bool
) -> None:
    raw, offset = stored(image(), syntax, undefined=undefined)
    before = dcmread(BytesIO(raw))
    after = corrected(raw, offset, syntax, {"PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう"})
    assert after.SpecificCharacterSet == "ISO_IR 192"
    assert str(after.PatientName) == "Yamada^Tarou=山田^太郎=やまだ^たろう"
    assert after.ReferringPhysicianName == before.ReferringPhysicianName == "Müller^Jörg"
    assert after.ProcedureCodeSequence[0].CodeMeaning == "Schädel"
    assert after.ProcedureCodeSequence[0].ProcedureCodeSequence[0].CodeMeaning == "tief"
    assert after.PixelData == before.PixelData


def test_text_that_the_character_set_holds_leaves_it_alone() -> None:
    raw, offset = stored(image(), ExplicitVRLittleEndian)
    after = corrected(raw, offset, ExplicitVRLittleEndian, {"PatientName": "Größe^Ü"})
    assert after.SpecificCharacterSet == "ISO_IR 100"
    assert after.PatientName == "Größe^Ü"


def test_japanese_of_iso_2022_becomes_unicode_with_all_groups() -> None:
    ds = image(["", "ISO 2022 IR 87"])
    ds.PatientName = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    raw, offset = stored(ds, ExplicitVRLittleEndian)
    after = corrected(raw, offset, ExplicitVRLittleEndian, {"ReferringPhysicianName": "Βασίλης^Ω"})
    assert after.SpecificCharacterSet == "ISO_IR 192"
    assert str(after.PatientName) == "Yamada^Tarou=山田^太郎=やまだ^たろう"
    assert str(after.ReferringPhysicianName) == "Βασίλης^Ω"


def test_an_item_with_a_character_set_of_its_own_is_read_by_it() -> None:
    ds = image()
    item = Dataset()
    item.SpecificCharacterSet = "ISO_IR 144"
    item.CodeMeaning = "Голова"
    ds.ProcedureCodeSequence.append(item)
    raw, offset = stored(ds, ExplicitVRLittleEndian)
    after = corrected(raw, offset, ExplicitVRLittleEndian, {"PatientID": "№"})
    assert after.ProcedureCodeSequence[1].CodeMeaning == "Голова"
    assert after.ProcedureCodeSequence[0].CodeMeaning == "Schädel"


def test_without_a_character_set_only_ascii_fits() -> None:
    ds = image("ISO_IR 192")
    del ds.SpecificCharacterSet
    ds.ReferringPhysicianName = "Plain^Name"
    raw, offset = stored(ds, ExplicitVRLittleEndian)
    assert "SpecificCharacterSet" not in corrected(raw, offset, ExplicitVRLittleEndian, {"PatientID": "X"})
    after = corrected(raw, offset, ExplicitVRLittleEndian, {"PatientName": "Jörg"})
    assert after.SpecificCharacterSet == "ISO_IR 192"
    assert after.PatientName == "Jörg"


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian], ids=lambda uid: uid.name)
def test_group_lengths_follow(syntax: str) -> None:
    implicit = syntax == ImplicitVRLittleEndian
    order = "<" if implicit else ">"

    def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
        if implicit:
            return struct.pack("<HHI", group, number, len(value)) + value
        return struct.pack(">HH2sH", group, number, vr, len(value)) + value

    names = element(0x10, 0x10, b"PN", b"Wrong^Name") + element(0x10, 0x20, b"LO", b"P1")
    raw = element(0x10, 0, b"UL", struct.pack(order + "I", len(names))) + names
    raw += element(0x20, 0x0D, b"UI", b"1.2.3\0")
    spliced = splice(raw, 0, syntax, {"PatientName": "A^Much^Longer^Name"})
    whole = spliced.head + raw[spliced.resume :]
    ds = read_dataset(BytesIO(whole), implicit, order == "<")
    assert ds[0x00100000].value == sum(
        len(element(0x10, 0, b"PN", value)) for value in (b"A^Much^Longer^Name", b"P1")
    )
    assert ds.StudyInstanceUID == "1.2.3"


def test_bytes_behind_the_last_group_of_the_overlay_are_not_even_read() -> None:
    raw, offset = stored(image(), ExplicitVRLittleEndian)
    spliced = splice(raw, offset, ExplicitVRLittleEndian, {"PatientID": "X"})
    assert raw[spliced.resume : spliced.resume + 4] == b"\x20\x00\x0d\x00"


def test_an_empty_overlay_changes_no_byte() -> None:
    raw, offset = stored(image(), ExplicitVRLittleEndian)
    assert b"".join(pieces(raw, offset, ExplicitVRLittleEndian, {})) == raw


def test_a_deflated_data_set_has_even_length() -> None:
    raw, offset = stored(image(), DeflatedExplicitVRLittleEndian)
    spliced = splice(raw, offset, DeflatedExplicitVRLittleEndian, {"PatientID": "P-22"})
    assert len(spliced.head) % 2 == 0
    assert zlib.decompressobj(-15).decompress(spliced.head)


@pytest.mark.parametrize(
    "cut",
    [b"\x10\x00", b"\x10\x00\x10\x00PN\xff\xff", b"\x10\x00\x10\x00??\x02\x00AB"],
    ids=["header", "value", "vr"],
)
def test_bytes_that_are_no_data_set_are_refused(cut: bytes) -> None:
    with pytest.raises(HeaderError):
        splice(cut, 0, ExplicitVRLittleEndian, {"PatientID": "X"})


def test_endless_nesting_is_refused_before_the_stack_ends() -> None:
    nest = b"\x08\x00\x32\x10\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    with pytest.raises((TooMuch, CutOff)):
        splice(nest * 5_000, 0, ImplicitVRLittleEndian, {"PatientID": "X"})


def test_uids_pixels_and_unknown_keywords_are_never_corrected() -> None:
    for attributes in (
        {"StudyInstanceUID": "1.2"},
        {"ReferencedStudySequence": [{"ReferencedSOPInstanceUID": "1.2"}]},
        {"Rows": "512"},
        {"NoSuchKeyword": "x"},
        {"PatientName": 7},
    ):
        with pytest.raises(NotCorrectable):
            check(attributes)


def test_dicom_json_shows_the_correction_and_leaves_emptied_attributes_out() -> None:
    document = image().to_json_dict()
    shown = apply_json(document, json_of(CORRECTION))
    assert shown["00100010"] == {"vr": "PN", "Value": [{"Alphabetic": "Right^Name"}]}
    assert "00080050" not in shown
    assert document["00100020"]["Value"] == ["P-1"]
    assert list(shown) == sorted(shown)


def test_a_decoded_data_set_takes_the_correction_and_a_wider_character_set() -> None:
    ds = image()
    apply_dataset(ds, {"PatientName": "山田"})
    assert ds.SpecificCharacterSet == "ISO_IR 192"
    assert ds.PatientName == "山田"


def test_a_malformed_value_is_carried_without_a_warning_that_would_tell_it() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        over = dataset_of({"PatientBirthDate": "1970-13-45", "PatientID": "x" * 100})
        assert over.PatientID == "x" * 100


def test_dcmtk_reads_what_was_spliced(tmp_path: Path) -> None:
    dcmdump = require_peer("dcmdump")
    for syntax in SYNTAXES:
        raw, offset = stored(image(), syntax, undefined=True)
        path = tmp_path / "spliced.dcm"
        path.write_bytes(b"".join(pieces(raw, offset, syntax, {**CORRECTION, "PatientName": "山田^太郎"})))
        dumped = subprocess.run([dcmdump, path], capture_output=True, text=True, check=True)
        assert "[P-2]" in dumped.stdout
        assert "山田^太郎" in dumped.stdout
        assert "W:" not in dumped.stderr
        assert "E:" not in dumped.stderr


def test_every_sample_of_others_keeps_its_pixels_and_shows_the_correction() -> None:
    for path in sorted(sample("dicom", "ts").glob("*.dcm")):
        raw = path.read_bytes()
        before = dcmread(BytesIO(raw))
        (group_length,) = struct.unpack_from("<I", raw, 140)
        syntax = before.file_meta.TransferSyntaxUID
        after = corrected(raw, 144 + group_length, syntax, {"PatientName": "山田^太郎", "PatientID": "P-2"})
        changed = differences(before, after) - {"SpecificCharacterSet"}
        assert changed == {"PatientName", "PatientID"}, path.name
        assert after.get("PixelData") == before.get("PixelData"), path.name
