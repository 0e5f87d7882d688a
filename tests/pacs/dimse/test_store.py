"""C-STORE: data sets arrive unchanged, or not at all."""

from __future__ import annotations

import subprocess
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset

from pacs.dimse import errors, sender
from pacs.dimse.command import CODES
from pacs.storage import spool
from pacs.storage.part10 import Origin, origin_of, read_prefix
from tests.conftest import require_peer, sample
from tests.pacs.dimse.conftest import Served

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"


def made(size: int = 100, uid: str = "1.2.3.4", **more: object) -> tuple[Origin, bytes]:
    """A small CT with `size` bytes of pixel data, and where it comes from."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CT, uid
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3", "1.2.3.1"
    ds.PatientName, ds.PatientID = "Doe^Jane", "P1"
    for keyword, value in more.items():
        setattr(ds, keyword, value)
    ds.add_new(0x7FE00010, "OW", bytes(range(256)) * (size // 256) + bytes(size % 256))
    buffer = BytesIO()
    ds.save_as(buffer, implicit_vr=False, little_endian=True)
    return Origin(CT, uid, EXPLICIT), buffer.getvalue()


def send(served: Served, origin: Origin, data: bytes) -> int:
    with sender.associate(served.destination(), sender.contexts_of([origin])) as assoc:
        return assoc.store(origin, data)


def data_set_of(part10: bytes) -> bytes:
    return part10[read_prefix(part10)[1] :]


@pytest.mark.parametrize("size", [0, 100, 60_000, 70_000, 300_000, 3_000_000])
def test_a_data_set_lies_in_the_spool_as_it_was_sent_whatever_its_size(served: Served, size: int) -> None:
    origin, data = made(size)
    assert send(served, origin, data) == 0
    (file,) = served.files()
    assert data_set_of(file) == data
    (entry,) = served.entries()
    assert entry.sha256 == sha256(data).hexdigest()
    assert entry.size == len(file)
    kept = origin_of(read_prefix(file)[0])
    assert kept == Origin(CT, "1.2.3.4", EXPLICIT, "SCANNER", "ORDERLY")


def test_many_objects_on_one_association_all_arrive(served: Served) -> None:
    sent = {}
    with sender.associate(served.destination(), [(CT, (EXPLICIT,))]) as assoc:
        for number in range(40):
            origin, data = made(1000 if number % 2 else 90_000, f"1.2.3.{number + 1}")
            assert assoc.store(origin, data) == 0
            sent[origin.sop_instance_uid] = data
    got = {origin_of(read_prefix(f)[0]).sop_instance_uid: data_set_of(f) for f in served.files()}
    assert got == sent


def every_test_file() -> list[Path]:
    """The samples' files and pydicom's own that a sender can announce: with meta header and SOP UIDs."""
    found = sorted(sample("dicom", "ts").glob("*.dcm"))
    own = Path(pydicom.__file__).parent / "data" / "test_files"
    return found + sorted(own.rglob("*.dcm"))


def test_samples_and_pydicoms_test_files_arrive_with_their_bytes_unchanged(served: Served) -> None:
    sent, refused = {}, {}
    for path in every_test_file():
        try:
            with sender.part10(path) as (origin, view):
                data = bytes(view)
        except ValueError:
            continue  # no Part 10 file: nobody could announce it
        if origin.sop_class_uid not in _storage_classes() or not origin.sop_instance_uid:
            continue
        status = send(served, origin, data)
        if status == 0:
            sent.setdefault(sha256(data).hexdigest(), data)
        else:
            refused[path.name] = hex(status)
    got = {
        entry.sha256: data_set_of(file) for entry, file in zip(served.entries(), served.files(), strict=True)
    }
    assert got == sent
    assert len(sent) > 60
    assert set(refused) <= {"MR_truncated.dcm", "rtplan_truncated.dcm"} | _announced_as_another(), refused


def _storage_classes() -> frozenset[str]:
    from pacs.services.store import storage_classes

    return storage_classes()


def _announced_as_another() -> set[str]:
    """Files whose meta header names another object than their data set."""
    found = set()
    for path in every_test_file():
        try:
            ds = dcmread(path, stop_before_pixels=True)
        except Exception:
            continue
        meta = ds.file_meta
        same_class = ds.get("SOPClassUID", "") in ("", meta.get("MediaStorageSOPClassUID"))
        same_uid = ds.get("SOPInstanceUID", "") in ("", meta.get("MediaStorageSOPInstanceUID"))
        if not (same_class and same_uid):
            found.add(path.name)
    return found


def test_storescu_sends_every_transfer_syntax_of_the_samples(served: Served) -> None:
    storescu = require_peer("storescu")
    options = {
        "JPEG_Lossless": "-xs",
        "JPEG_Extended": "-xx",
        "JPEG_Baseline": "-xy",
        "JPEG_2000_Image_Compression_L": "-xv",
        "JPEG_2000_Image_Compression.": "-xw",
        "JPEG_LS": "-xt",
        "RLE": "-xr",
        "Deflated": "-xd",
        "Explicit_VR_Big": "-xb",
        "Explicit_VR_Little": "-xe",
        "Implicit": "-xi",
    }
    count = 0
    for path in sorted(sample("dicom", "ts").glob("*.dcm")):
        option = next((flag for start, flag in options.items() if path.name.startswith(start)), None)
        if option is None:
            continue  # a syntax that DCMTK 3.6.7 does not know
        subprocess.run(
            [storescu, option, "-aec", "ORDERLY", "127.0.0.1", str(served.port), str(path)],
            check=True,
            timeout=60,
        )
        count += 1
    assert count == 11
    assert len(served.entries()) == count


def test_dcmsend_sends_a_folder(served: Served, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(5):
        origin, data = made(200_000, f"1.2.3.{number + 1}")
        write_part10(folder / f"{number}.dcm", data)
    subprocess.run(
        [require_peer("dcmsend"), "-aet", "SCANNER", "-aec", "ORDERLY", "127.0.0.1", str(served.port),
         "+sd", str(folder)], check=True, timeout=60,
    )  # fmt: skip
    assert len(served.entries()) == 5


def write_part10(path: Path, data: bytes) -> None:
    """A data set in explicit little endian as a file that pydicom wrote."""
    from pydicom.filebase import DicomBytesIO
    from pydicom.filereader import read_dataset

    ds = read_dataset(BytesIO(data), False, True)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = EXPLICIT
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    buffer = DicomBytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    path.write_bytes(buffer.getvalue())


@pytest.mark.parametrize(
    "uid", ["../../etc/passwd", "1.2.3\0", "1." + "2" * 64, "", "1.2.3;rm -rf", "１.２", "a.b.c", "1/2"]
)
def test_an_instance_uid_of_other_characters_is_refused_and_leaves_nothing(served: Served, uid: str) -> None:
    origin, data = made(uid="1.2.3.4")
    with sender.associate(served.destination(), sender.contexts_of([origin])) as assoc:
        command = {
            "AffectedSOPClassUID": CT,
            "AffectedSOPInstanceUID": uid or None,
            "CommandField": CODES["C-STORE"],
            "Priority": 0,
        }
        context = assoc.context_for(CT)
        assert context is not None
        response = assoc.exchange(context, command, data)
        # A trailing NUL is padding (PS3.5 section 9.1): that one is another UID than the data set's.
        assert response.status == (0xA900 if uid == "1.2.3\0" else 0x0117)
        assert assoc.store(origin, data) == 0
    assert len(served.entries()) == 1


def test_a_data_set_that_ends_early_is_refused_at_whatever_byte_it_ends(served: Served) -> None:
    origin, data = made(300)
    statuses = {}
    with sender.associate(served.destination(), sender.contexts_of([origin])) as assoc:
        for length in range(2, len(data)):
            statuses[length] = assoc.store(origin, data[:length])
    whole = {length for length, status in statuses.items() if status == 0}
    # Where an element ends exactly, what is left is a whole data set of fewer elements.
    assert whole == {length for length in whole if _reads_whole(data[:length])}
    assert len(whole) < 10
    assert len(served.entries()) == len(whole)
    assert not served.leftovers()


def _reads_whole(data: bytes) -> bool:
    from pacs import header

    return header.walk(data, EXPLICIT).whole


def test_compressed_pixel_data_without_its_end_is_refused(served: Served) -> None:
    path = sample("dicom", "ts", "RLE_Lossless.dcm")
    with sender.part10(path) as (origin, view):
        data = bytes(view)
    assert send(served, origin, data) == 0
    assert send(served, origin, data[:-8]) == 0xC000
    assert send(served, origin, data[: len(data) // 2]) == 0xC000
    path = sample("dicom", "ts", "Deflated_Explicit_VR_Little_Endian.dcm")
    with sender.part10(path) as (origin, view):
        data = bytes(view)
    assert send(served, origin, data[: len(data) // 2]) == 0xC000
    assert len(served.entries()) == 1


def test_a_data_set_that_is_another_object_than_announced_is_refused(served: Served) -> None:
    origin, data = made(uid="1.2.3.4")
    assert send(served, Origin(CT, "1.2.3.5", EXPLICIT), data) == 0xA900
    assert served.entries() == []


def test_an_association_that_ends_within_a_data_set_leaves_nothing(served: Served) -> None:
    origin, data = made(1_000_000)
    assoc = sender.associate(served.destination(), sender.contexts_of([origin]))
    buffers = assoc.encoded(
        next(iter(assoc.contexts.values())),
        {"AffectedSOPClassUID": CT, "AffectedSOPInstanceUID": "1.2.3.4", "CommandField": 1, "MessageID": 1,
         "Priority": 0, "CommandDataSetType": 1},
        data,
    )  # fmt: skip
    assoc.wire.write(*buffers[:-2])
    assoc.abort()
    # A further association is served after the first was cleaned up, or beside it: ask until it was.
    for _ in range(100):
        assert sender.echo(served.destination()) == 0
        if not served.leftovers():
            break
    assert served.entries() == []
    assert not served.leftovers()


def test_without_room_an_object_is_refused_with_a700_and_the_association_goes_on(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin, data = made(200_000)
    with sender.associate(served.destination(), sender.contexts_of([origin])) as assoc:
        with monkeypatch.context() as patched:
            patched.setattr(spool, "RESERVE_BYTES", 1 << 62)
            assert assoc.store(origin, data) == 0xA700
        assert assoc.store(origin, data) == 0
    assert len(served.entries()) == 1


@pytest.mark.parametrize("size", [100, 200_000])
def test_after_a_failed_sync_nothing_is_answered_with_success(
    served: Served, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    origin, data = made(size)
    with sender.associate(served.destination(), sender.contexts_of([origin])) as assoc:
        assert assoc.store(origin, data) == 0
        with monkeypatch.context() as patched:
            patched.setattr("pacs.storage.spool.os.fsync", fail)
            patched.setattr("pacs.storage.spool.os.fdatasync", fail)
            assert assoc.store(origin, data) == 0xA700
        assert spool.broken()
        with pytest.raises(errors.Ended):  # the process lets its associations end, to be started afresh
            assoc.store(origin, data)
