"""From the spool to files and rows: nothing is lost, doubled or half there."""

from __future__ import annotations

from datetime import date, time, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from django.db import IntegrityError
from pydicom.dataset import Dataset

from common import events
from common.clock import now
from common.models import Alert, AuditEvent
from pacs import indexing
from pacs.events import StudySettled
from pacs.models import Instance, Series, SetAside, Study
from pacs.storage import spool
from pacs.storage.part10 import Origin, read_prefix
from pacs.storage.volume import open_file
from tests.pacs.storage.conftest import CT, EXPLICIT, data_set, encoded

pytestmark = pytest.mark.django_db(transaction=True)


def index_all() -> int:
    total = 0
    while count := indexing.index_once():
        total += count
    return total


def files(data_dir: Path, volume: str = "volume") -> list[Path]:
    return sorted(path for path in (data_dir / volume).rglob("*") if path.is_file())


def bytes_of(instance: Any) -> bytes:
    with open_file(instance) as file:
        return file.read()


@pytest.mark.parametrize("pixels", [100, 500_000])
def test_an_object_gets_its_rows_and_a_plain_file_with_its_data_set_unchanged(
    spooled: Any, data_dir: Path, pixels: int
) -> None:
    data = spooled(pixels=pixels)
    assert indexing.index_once() == 1
    instance = Instance.objects.select_related("series__study").get()
    series, study = instance.series, instance.series.study
    assert bytes_of(instance)[instance.data_set_offset :] == data
    assert instance.sha256 == sha256(data).hexdigest()
    assert instance.size == len(bytes_of(instance))
    assert (instance.sop_instance_uid, instance.instance_number, instance.rows) == ("1.2.3.1.1", 1, 10)
    assert (series.series_instance_uid, series.modality, series.series_number) == ("1.2.3.1", "CT", 1)
    assert (study.study_instance_uid, study.patient_id, study.accession_number) == ("1.2.3", "P1", "A1")
    assert (study.patient_name, study.patient_name_search) == ("Doe^Jane", "doe^jane")
    assert (study.study_date, study.study_time) == (date(2026, 3, 10), time(10, 15, 30))
    assert (study.modalities_in_study, study.number_of_study_related_instances) == (["CT"], 1)
    assert (study.calling_ae, instance.calling_ae) == ("CT01", "CT01")
    assert files(data_dir) == [data_dir / "volume" / instance.path]
    assert spool.oldest()[0] == 0
    audit = AuditEvent.objects.get()
    assert (audit.actor, audit.action, audit.object_ids) == ("ae:CT01", "store", [str(study.pk)])


def test_a_batch_of_several_studies_is_counted_right(spooled: Any) -> None:
    for study in range(3):
        for series in range(2):
            for image in range(4):
                spooled(
                    pixels=70_000 if image == 3 else 10,
                    StudyInstanceUID=f"1.{study + 1}",
                    SeriesInstanceUID=f"1.{study + 1}.{series + 1}",
                    SOPInstanceUID=f"1.{study + 1}.{series + 1}.{image + 1}",
                    Modality="CT" if series else "SR",
                )
    assert index_all() == 24
    assert Study.objects.count() == 3 and Series.objects.count() == 6 and Instance.objects.count() == 24
    for study in Study.objects.all():
        assert study.number_of_study_related_series == 2
        assert study.number_of_study_related_instances == 8
        assert study.modalities_in_study == ["CT", "SR"]
        assert study.size == sum(i.size for i in Instance.objects.filter(series__study=study))
    # More of the same study later, in a batch of its own.
    spooled(StudyInstanceUID="1.1", SeriesInstanceUID="1.1.1", SOPInstanceUID="1.1.1.99")
    index_all()
    assert Study.objects.get(study_instance_uid="1.1").number_of_study_related_instances == 9
    assert Series.objects.get(series_instance_uid="1.1.1").number_of_series_related_instances == 5


def test_the_same_instance_again_changes_nothing(spooled: Any, data_dir: Path) -> None:
    spooled()
    spooled()
    index_all()
    spooled()
    index_all()
    assert Instance.objects.count() == 1
    assert Study.objects.get().number_of_study_related_instances == 1
    assert not SetAside.objects.exists()
    assert len(files(data_dir)) == 1
    assert spool.oldest()[0] == 0


@pytest.mark.parametrize("at_once", [True, False])
def test_the_same_uid_with_other_bytes_is_kept_beside_the_first_and_listed(
    spooled: Any, at_once: bool
) -> None:
    first = spooled()
    if not at_once:
        index_all()
    second = spooled(StudyDescription="Other")
    index_all()
    instance, aside = Instance.objects.get(), SetAside.objects.get()
    assert bytes_of(instance)[instance.data_set_offset :] == first
    kept = bytes_of(aside)
    assert kept[read_prefix(kept)[1] :] == second
    assert (aside.reason, aside.sop_instance_uid, aside.calling_ae) == ("uid_taken", "1.2.3.1.1", "CT01")
    spooled(StudyDescription="Other")
    index_all()
    assert SetAside.objects.count() == 1  # the same again is no further case


@pytest.mark.parametrize(
    ("bad", "detail"),
    [
        (b"this is no data set at all, whatever its sender may think", "header"),
        (b"", "StudyInstanceUID is missing"),
        (encoded(data_set(StudyInstanceUID=None)), "StudyInstanceUID is missing"),
        (encoded(data_set(SeriesInstanceUID="1.2/../3")), "SeriesInstanceUID is no UID"),
        (encoded(data_set())[:200], "cut off"),
        (b"\x08\x00\x05\x10SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 3000, "deeper"),
    ],
)
def test_a_bad_object_is_set_aside_and_never_its_batch(spooled: Any, bad: bytes, detail: str) -> None:
    spooled(SOPInstanceUID="1.2.3.1.2")
    spooled(bad)
    spooled(SOPInstanceUID="1.2.3.1.3", pixels=100_000)
    index_all()
    assert Instance.objects.count() == 2
    aside = SetAside.objects.get()
    assert aside.reason == "unreadable" and detail in aside.detail
    kept = bytes_of(aside)
    assert kept[read_prefix(kept)[1] :] == bad
    assert spool.oldest()[0] == 0


def test_an_object_of_another_patient_in_the_same_study_is_set_aside(spooled: Any) -> None:
    spooled()
    index_all()
    spooled(SOPInstanceUID="1.2.3.1.2", PatientID="P2", PatientName="Roe^Richard")
    spooled(SOPInstanceUID="1.2.3.1.3", PatientID="P2")  # another ID of the same person may be
    index_all()
    assert set(Instance.objects.values_list("sop_instance_uid", flat=True)) == {"1.2.3.1.1", "1.2.3.1.3"}
    assert SetAside.objects.get().reason == "inconsistent"
    assert Study.objects.get().patient_id == "P1"


def test_values_that_fit_no_column_do_not_keep_an_object_out(spooled: Any) -> None:
    ds = data_set(StudyDate=None, StudyTime=None, Rows=None)
    ds.add_new(0x00080020, "LO", "not a date")
    ds.add_new(0x00080030, "LO", "99:99")
    ds.add_new(0x00081030, "UT", "x" * 200)
    ds.add_new(0x00200011, "LO", "999999999999999999999999")
    ds.add_new(0x00100030, "LO", "yesterday, or so")
    spooled(ds)
    index_all()
    study = Study.objects.get()
    assert (study.study_date, study.study_time, study.study_description) == (None, None, "x" * 64)
    assert Series.objects.get().series_number is None


def test_names_are_read_in_their_character_set(spooled: Any) -> None:
    ds = data_set(PatientName=None)
    ds.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    ds.PatientName = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    spooled(ds)
    index_all()
    study = Study.objects.get()
    assert study.patient_name == "Yamada^Tarou=山田^太郎=やまだ^たろう"
    assert study.patient_name_ideographic_search == "山田^太郎"


def test_after_a_crash_anywhere_the_spool_is_indexed_again(
    spooled: Any, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(BaseException):
        pass

    for number, point in enumerate(
        ("indexer.placed", "indexer.before_commit", "indexer.committed", "volume.synced")
    ):
        sent = [
            spooled(SOPInstanceUID=f"1.2.3.1.{number}{image}", pixels=10 ** (image + 3)) for image in range(3)
        ]

        def die(name: str, point: str = point) -> None:
            if name == point:
                raise Died

        with monkeypatch.context() as patched:
            patched.setattr("pacs.indexing.crashpoint", die)
            patched.setattr("pacs.storage.volume.crashpoint", die)
            with pytest.raises(Died):
                indexing.index_once()
        index_all()
        assert Instance.objects.count() == len(sent) * (number + 1)
    assert Study.objects.get().number_of_study_related_instances == 12
    assert len(files(data_dir)) == 12
    assert spool.oldest()[0] == 0
    for instance in Instance.objects.all():
        assert sha256(bytes_of(instance)[instance.data_set_offset :]).hexdigest() == instance.sha256


def test_a_dead_receivers_folder_is_emptied_and_removed(
    spooled: Any, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spooled()
    spooled(SOPInstanceUID="1.2.3.1.2", pixels=300_000)
    folder = spool.mine().folder
    (folder / "00000099.part").write_bytes(b"half an object")
    with next(folder.glob("*.seg")).open("ab") as segment:
        segment.write(b"ORD2 and no more")
    spool.mine().close()
    monkeypatch.setattr(spool, "_mine", None)
    index_all()
    assert Instance.objects.count() == 2
    assert not SetAside.objects.exists()
    assert [path.name for path in folder.iterdir()] == ["lock"]
    monkeypatch.setattr("pacs.storage.spool.time.time", lambda: now().timestamp() + 60)
    index_all()
    assert not folder.exists()


def test_what_the_disk_has_damaged_is_set_aside_not_indexed(
    spooled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spooled()
    spooled(SOPInstanceUID="1.2.3.1.2", pixels=300_000)
    spooled(SOPInstanceUID="1.2.3.1.3")
    folder = spool.mine().folder
    spool.mine().close()
    monkeypatch.setattr(spool, "_mine", None)
    for path in folder.glob("*.seg"):
        raw = bytearray(path.read_bytes())
        raw[600] ^= 1
        path.write_bytes(raw)
    index_all()
    assert set(Instance.objects.values_list("sop_instance_uid", flat=True)) == {"1.2.3.1.2", "1.2.3.1.3"}
    assert SetAside.objects.filter(detail__contains="damaged").count() == 1


def test_a_large_object_that_the_disk_has_damaged_is_set_aside(
    spooled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spooled(pixels=1_500_000)
    folder = spool.mine().folder
    spool.mine().close()
    monkeypatch.setattr(spool, "_mine", None)
    (path,) = folder.glob("*.obj")
    raw = bytearray(path.read_bytes())
    raw[600] ^= 1
    path.write_bytes(raw)
    index_all()
    assert not Instance.objects.exists()
    assert SetAside.objects.filter(detail__contains="damaged").count() == 1


def test_records_behind_a_damaged_header_are_indexed_and_the_damage_is_kept_and_told(
    spooled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 4):
        spooled(SOPInstanceUID=f"1.2.3.1.{number}", pixels=20_000)
    folder = spool.mine().folder
    spool.mine().close()
    monkeypatch.setattr(spool, "_mine", None)
    (path,) = folder.glob("*.seg")
    _, second, third = spool.entries(folder, True)
    assert isinstance(second, spool.Entry) and isinstance(third, spool.Entry)
    raw = bytearray(path.read_bytes())
    raw[second.start - 5] ^= 1  # within the header before it
    path.write_bytes(raw)
    index_all()
    assert set(Instance.objects.values_list("sop_instance_uid", flat=True)) == {"1.2.3.1.1", "1.2.3.1.3"}
    kept = SetAside.objects.get(detail__contains="damaged spool segment")
    with open_file(kept) as file:
        assert second.sha256 and encoded(data_set(20_000, SOPInstanceUID="1.2.3.1.2")) in file.read()
    assert Alert.objects.filter(key__startswith="spool:").exists()
    assert spool.oldest()[0] == 0


def test_a_segment_that_is_read_is_written_over_and_what_it_held_never_comes_back(
    spooled: Any, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "SEGMENT_BYTES", 40 * spool.PAGE)
    monkeypatch.setattr(spool, "BUFFER", 8 * spool.PAGE)
    sent = {}
    for number in range(1, 61):
        uid = f"1.2.3.1.{number}"
        sent[uid] = spooled(SOPInstanceUID=uid, pixels=number * 400, InstanceNumber=number)
        if number % 7 == 0:
            index_all()
    index_all()
    spares = list((data_dir / "spool" / "spare").iterdir())
    assert spares and all(path.stat().st_size <= 40 * spool.PAGE for path in spares)
    segments = len(list(spool.mine().folder.glob("*.seg"))) + len(spares)
    assert segments < 60 * 12_000 / (40 * spool.PAGE)  # fewer files than it would take without
    rows = {row.sop_instance_uid: row for row in Instance.objects.all()}
    assert {uid: bytes_of(row)[row.data_set_offset :] for uid, row in rows.items()} == sent
    # Deleted since: a segment that is begun again must not bring them back, nor when its receiver dies at once.
    Instance.objects.all().delete()
    spooled(SOPInstanceUID="1.2.3.1.99")
    spool.mine().close()
    monkeypatch.setattr(spool, "_mine", None)
    index_all()
    assert list(Instance.objects.values_list("sop_instance_uid", flat=True)) == ["1.2.3.1.99"]
    assert not SetAside.objects.exists()


def test_medium_objects_that_come_at_once_take_buffers_as_far_as_these_go(
    spooled: Any, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "BUFFERS", 3)
    sent, coming = {}, []
    for number in range(1, 8):
        uid = f"1.2.3.1.{number}"
        sent[uid] = encoded(data_set(200_000 + number, SOPInstanceUID=uid))
        coming.append((spool.mine().begin(Origin(CT, uid, EXPLICIT, "CT01", "ORDERLY")), sent[uid]))
    for at in range(0, 250_000, 50_000):
        for incoming, data in coming:
            incoming.write(data[at : at + 50_000])
    for incoming, data in coming:
        with incoming.received() as received:
            assert received == data
        incoming.commit()
    assert len(list(spool.mine().folder.glob("*.obj"))) == 4
    index_all()
    rows = {row.sop_instance_uid: row for row in Instance.objects.all()}
    assert {uid: bytes_of(row)[row.data_set_offset :] for uid, row in rows.items()} == sent


def test_an_object_that_was_given_up_leaves_nothing_and_a_file_of_another_layout_is_left_alone(
    spooled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in (1000, 300_000, 3_000_000):
        given_up = spool.mine().begin(Origin(CT, "1.2.3.1.9", EXPLICIT, "CT01", "ORDERLY"))
        given_up.write(bytes(size))
        given_up.discard()
        given_up.discard()
    spooled(SOPInstanceUID="1.2.3.1.1", pixels=100_000)
    stranger = spool.mine().folder / "00000001.seg"
    stranger.write_bytes(b"ORD1 of an earlier build")
    spool.mine().close()
    monkeypatch.setattr(spool, "_mine", None)
    index_all()
    assert list(Instance.objects.values_list("sop_instance_uid", flat=True)) == ["1.2.3.1.1"]
    assert not SetAside.objects.exists()
    assert sorted(path.name for path in stranger.parent.iterdir()) == ["00000001.seg", "lock"]


def test_spare_segments_are_as_many_as_they_may_be(
    spooled: Any, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "SEGMENT_BYTES", 4 * spool.PAGE)
    monkeypatch.setattr(spool, "SPARES", 3)
    for number in range(1, 31):
        spooled(SOPInstanceUID=f"1.2.3.1.{number}", pixels=4000)
    index_all()
    assert Instance.objects.count() == 30
    assert len(list((data_dir / "spool" / "spare").iterdir())) == 3


def test_an_object_set_aside_can_be_tried_again(spooled: Any, data_dir: Path) -> None:
    spooled()
    index_all()
    data = spooled(SOPInstanceUID="1.2.3.1.2", PatientID="P2", PatientName="Roe^Richard")
    index_all()
    row = SetAside.objects.get()
    assert "another patient" in indexing.try_again(row)
    Study.objects.update(patient_id="P2", patient_name="Roe^Richard")
    assert indexing.try_again(row) == ""
    instance = Instance.objects.get(sop_instance_uid="1.2.3.1.2")
    assert bytes_of(instance)[instance.data_set_offset :] == data
    assert SetAside.objects.get().state == "solved"
    assert files(data_dir, "aside") == []


def test_a_batch_waits_for_company_while_objects_come_but_not_for_long(
    spooled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not indexing._more_are_coming()
    spooled()
    written = spool.waiting().newest
    assert written is not None
    for passed, waits in ((0.0, True), (0.1, True), (1.0, False), (-3600.0, False)):
        monkeypatch.setattr("pacs.indexing.time.time", lambda passed=passed: written + passed)
        assert indexing._more_are_coming() is waits
    # Another one comes all the time: the first has waited long enough.
    monkeypatch.setattr("pacs.indexing.time.time", lambda: written)
    for found, waits in (
        (spool.Waiting(2, written - 1, written, 2), True),
        (spool.Waiting(2, written - indexing.PATIENCE_SECONDS, written, 2), False),
        (spool.Waiting(2, written - 1, written, indexing.COMPANY), False),
    ):
        monkeypatch.setattr("pacs.indexing.spool.waiting", lambda found=found, **_: found)
        assert indexing._more_are_coming() is waits


# -- settling


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[StudySettled]:
    told: list[StudySettled] = []
    monkeypatch.setitem(events._handlers, StudySettled, [lambda event, unit: told.append(event)])
    monkeypatch.setattr(indexing, "_waits", {})
    return told


def test_a_study_is_told_upward_once_when_it_is_quiet_and_again_when_it_grew(
    spooled: Any, heard: list[StudySettled]
) -> None:
    spooled()
    index_all()
    assert indexing.settle_once() == 0
    assert heard == []
    Study.objects.update(last_instance_at=now() - timedelta(minutes=1))
    assert indexing.settle_once() == 1
    assert indexing.settle_once() == 0
    assert [event.grown for event in heard] == [False]
    assert Study.objects.get().settled_at is not None
    spooled()  # the same again is no growth
    index_all()
    assert Study.objects.get().settled_at is not None
    spooled(SOPInstanceUID="1.2.3.1.2")
    index_all()
    assert Study.objects.get().settled_at is None
    Study.objects.update(last_instance_at=now() - timedelta(minutes=1))
    assert indexing.settle_once() == 1
    assert [event.grown for event in heard] == [False, True]


def test_a_study_whose_hearers_fail_holds_up_no_other_and_raises_an_alert(
    spooled: Any, heard: list[StudySettled], monkeypatch: pytest.MonkeyPatch
) -> None:
    spooled(StudyInstanceUID="1.1", SOPInstanceUID="1.1.1")
    spooled(StudyInstanceUID="1.2", SOPInstanceUID="1.2.1")
    index_all()
    Study.objects.update(last_instance_at=now() - timedelta(minutes=1))

    def fail(event: StudySettled, unit: Any) -> None:
        if event.study.study_instance_uid == "1.1":
            raise IntegrityError("no such thing")
        heard.append(event)

    monkeypatch.setitem(events._handlers, StudySettled, [fail])
    assert indexing.settle_once() == 1
    assert indexing.settle_once() == 0  # waits its time
    assert [event.study.study_instance_uid for event in heard] == ["1.2"]
    assert Alert.objects.filter(recovered_at=None, key__startswith="settle:").count() == 1
    assert Study.objects.get(study_instance_uid="1.1").settled_at is None
    monkeypatch.setitem(events._handlers, StudySettled, [lambda event, unit: None])
    indexing._waits.update({key: (0.0, n) for key, (_, n) in indexing._waits.items()})
    assert indexing.settle_once() == 1
    assert not Alert.objects.filter(recovered_at=None).exists()


@pytest.mark.parametrize(
    ("charset", "text"), [("ISO_IR 192", "Schädel nativ, 頭部"), ("ISO_IR 144", "Череп")]
)
def test_texts_inside_sequences_are_read_in_the_character_set_of_the_data_set(
    spooled: Any, charset: str, text: str
) -> None:
    item = Dataset()
    item.RequestedProcedureID, item.RequestedProcedureDescription = "RP1", text
    spooled(SpecificCharacterSet=charset, RequestAttributesSequence=[item])
    assert indexing.index_once() == 1
    kept = Series.objects.get().attributes["00400275"]["Value"][0]
    assert kept["00321060"]["Value"] == [text]
