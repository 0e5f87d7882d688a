"""The power of a real ext4 goes while receivers and indexers are at work on it, or it is full, or takes nothing.

What may be lost beyond that (a disk that keeps nothing it was not told to flush, a file system that keeps no order of
names) is the model's part: test_power_cut.py. The database lies elsewhere: its own durability is not asked about.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from pacs.dimse import sender
from pacs.dimse.errors import AssociationRefused, Ended
from pacs.models import Instance, SetAside, Study
from pacs.storage.part10 import Origin
from pacs.storage.spool import SEGMENT_BYTES
from tests.pacs.storage.conftest import CT, EXPLICIT, data_set, encoded
from tests.pacs.storage.loop_disk import LoopDisk, hindrance
from tests.pacs.storage.test_faults import FIRST_POINTS, LARGE_POINTS, MEDIUM_POINTS, SMALL_POINTS
from tests.pacs.storage.test_kills import SIZES, Nursery, Senders, wait_for
from tests.pacs.storage.test_power_cut import check_rows, index_all

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(bool(hindrance()), reason=f"a disk whose power is cut {hindrance()}"),
]

INDEXER_POINTS = (
    "volume.file_synced:2", "volume.synced", "indexer.placed", "indexer.before_commit", "indexer.committed",
    "indexer.freed",
)  # fmt: skip


@dataclass
class Ward:
    """The disk, those who work on it, and what its senders know."""

    disk: LoopDisk
    nursery: Nursery
    kept: dict[str, str] = field(default_factory=dict)  #: answered with Success: UID → SHA-256
    sent: dict[str, str] = field(default_factory=dict)
    studies: int = 0

    def begin(self, *, spare: bool = False) -> None:
        """An empty archive; with a `spare` segment, its blocks on the disk, for the receiver to write over."""
        self.disk.make()
        for model in (SetAside, Study):
            model.objects.all().delete()
        self.kept, self.sent = {}, {}
        if spare:
            file = self.disk.root / "spool" / "spare" / "0123456789abcdef.seg"
            file.parent.mkdir(parents=True)
            file.write_bytes(bytes(SEGMENT_BYTES))
            self.disk.restart()  # unmounting writes everything out
            # Known to the system for a while, as one that an indexer has just read: ext4 would commit whatever has
            # happened since a file was first looked at along with its first sync.
            file.stat()

    def send(self, port: int, *sizes: int) -> list[int]:
        """One object of each size, one after the other, until the receiver dies; notes and gives what was answered."""
        answers: list[int] = []
        self.studies += 1
        study = f"1.2.{self.studies}"
        try:
            with sender.associate(
                sender.Destination("127.0.0.1", port, "ORDERLY", "CT01"), [(CT, (EXPLICIT,))]
            ) as assoc:
                for number, size in enumerate(sizes, 1):
                    uid = f"{study}.1.{number}"
                    ds = data_set(size, StudyInstanceUID=study, SeriesInstanceUID=f"{study}.1")
                    ds.SOPInstanceUID = uid
                    data = encoded(ds)
                    self.sent[uid] = sha256(data).hexdigest()
                    answers.append(assoc.store(Origin(CT, uid, EXPLICIT), data))
                    if answers[-1] == 0:
                        self.kept[uid] = self.sent[uid]
        except (Ended, AssociationRefused):
            pass
        return answers

    def cut(self) -> None:
        """The power goes, everybody dies, the power comes back.

        Killed just before, and not waited for: what they are at goes on in the kernel and is cut short there, but
        none of them comes back to say anything. A sync that fails for the cut may say that it went well (ext4 does,
        when its journal ends in the middle of a commit): nobody could have heard that from a machine without power.
        """
        for pid in self.nursery.children:
            os.kill(pid, signal.SIGKILL)
        self.disk.cut()
        for pid in self.nursery.children:
            wait_for(lambda: not Path(f"/proc/{pid}").exists())  # noqa: B023
        self.nursery.children.clear()
        self.disk.restart()

    def check(self) -> None:
        """Every row has its file, every file its row, and what was answered for is among them."""
        check_rows(self.sent)
        index_all()
        check_rows(self.sent)
        rows = dict(Instance.objects.values_list("sop_instance_uid", "path"))
        assert set(self.kept) <= set(rows), "an answered object is lost"
        assert not SetAside.objects.filter(sop_instance_uid__in=self.kept).exists()
        assert not SetAside.objects.filter(reason=SetAside.Reason.UID_TAKEN).exists()
        volume = self.disk.root / "volume"
        files = {str(path.relative_to(volume)) for path in volume.rglob("*") if path.is_file()}
        assert files == set(rows.values()), "a file without a row"
        assert not list((self.disk.root / "spool").rglob("*.part"))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopDisk]:
    one = LoopDisk(tmp_path_factory.mktemp("disk"))
    try:
        yield one
    finally:
        one.close()


@pytest.fixture(scope="module")
def nursery(disk: LoopDisk, django_db_setup: None) -> Iterator[Nursery]:
    one = Nursery(disk.root)
    try:
        yield one
    finally:
        one.close()


@pytest.fixture
def ward(disk: LoopDisk, nursery: Nursery, settings: Any) -> Iterator[Ward]:
    settings.DATA_DIR = disk.root
    yield Ward(disk, nursery)
    for pid in list(nursery.children):
        nursery.kill(pid)


def died(nursery: Nursery, pid: int) -> None:
    """Return when a process has died by itself."""
    wait_for(lambda: not Path(f"/proc/{pid}").exists())
    nursery.children.discard(pid)


def test_a_power_cut_at_any_point_of_the_way_in_loses_nothing_that_was_answered_for(ward: Ward) -> None:
    ways = [
        *((size, point) for size, points in zip((100, 300_000, 1_200_000), (SMALL_POINTS, MEDIUM_POINTS, LARGE_POINTS),
                                                strict=True) for point in points),
    ]  # fmt: skip
    for spare in (False, True):
        ward.begin(spare=spare)
        for size, point in ways:
            pid, port = ward.nursery.start(f"receiver {point}:3")
            before = len(ward.kept)
            ward.send(port, *[size] * 5)
            died(ward.nursery, pid)
            assert len(ward.kept) == before + 2
            ward.cut()
            ward.check()
        for point in FIRST_POINTS:
            ward.begin(spare=spare)
            pid, port = ward.nursery.start(f"receiver {point}")
            ward.send(port, 100)
            died(ward.nursery, pid)
            assert not ward.kept
            ward.cut()
            ward.check()


def test_a_power_cut_at_any_point_of_indexing_leaves_no_row_without_file_and_no_file_without_row(
    ward: Ward,
) -> None:
    ward.begin()
    for point in INDEXER_POINTS:
        _, port = ward.nursery.start("receiver")
        ward.send(port, *SIZES, *SIZES)
        pid, _ = ward.nursery.start(f"indexer~eager {point}")
        died(ward.nursery, pid)
        ward.cut()
        ward.check()
    assert len(ward.kept) == len(INDEXER_POINTS) * 2 * len(SIZES)


@pytest.mark.parametrize("cuts", [6, pytest.param(150, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_a_power_cut_at_any_moment_under_load_loses_nothing_that_was_answered_for(
    ward: Ward, cuts: int
) -> None:
    chance = random.Random(20260310)
    answered = 0
    for number in range(cuts):
        if number % 6 == 0:
            answered += len(ward.kept)
            ward.begin(spare=number % 12 == 0)
        ward.nursery.start("indexer~eager")
        _, port = ward.nursery.start("receiver")
        senders = Senders(4, f"1.2.{number + 1}")
        senders.port = port
        try:
            wanted = chance.randint(1, 60)
            wait_for(lambda: len(senders.succeeded) >= wanted)  # noqa: B023
            time.sleep(chance.uniform(0, 0.03))  # anywhere within an object, a sync, a batch
            ward.cut()
        finally:
            senders.stop()
        ward.kept |= senders.succeeded
        ward.sent |= senders.sent
        ward.check()
    assert answered + len(ward.kept) > cuts


# -- a disk that takes nothing


@pytest.mark.parametrize("size", [100, 300_000, 1_200_000])
def test_a_full_disk_refuses_keeps_nothing_half_and_goes_on_when_there_is_room(ward: Ward, size: int) -> None:
    ward.begin()
    pid, port = ward.nursery.start("receiver~no_reserve")
    assert ward.send(port, size) == [0]
    ballast = ward.disk.fill(but=10 * size if size > 4096 else 0)
    answers = ward.send(port, *[size] * 20)
    assert len(answers) == 20 and set(answers[-5:]) == {0xA700} and set(answers) <= {0, 0xA700}
    ballast.unlink()
    assert ward.send(port, size, size) == [0, 0]
    ward.check()
    assert Instance.objects.count() == len(ward.kept)
    assert Path(f"/proc/{pid}").exists()


def test_a_read_only_disk_refuses_and_goes_on_when_it_is_not(ward: Ward) -> None:
    ward.begin()
    ward.disk.remount("ro")
    pid, port = ward.nursery.start("receiver")
    assert ward.send(port, *SIZES) == [0xA700] * len(SIZES)
    ward.disk.remount("rw")
    assert ward.send(port, *SIZES) == [0] * len(SIZES)
    ward.check()
    assert Path(f"/proc/{pid}").exists()


def test_on_a_disk_that_gives_up_nothing_is_answered_with_success_until_it_is_back(
    ward: Ward,
) -> None:
    ward.begin()
    pid, port = ward.nursery.start("receiver")
    assert ward.send(port, *SIZES) == [0] * len(SIZES)
    ward.disk.remount("abort")
    assert set(ward.send(port, *SIZES)) <= {0xA700}
    ward.nursery.kill(pid)
    ward.disk.restart()
    _, port = ward.nursery.start("receiver")
    assert ward.send(port, *SIZES) == [0] * len(SIZES)
    ward.check()


# -- builds that leave something out must fail the check above


ATTEMPTS = 5  #: somebody's `sync` of all disks, just then, saves a build that does not sync by itself


def lost_by(
    ward: Ward,
    receiver: str = "receiver",
    indexer: str = "",
    *,
    spare: bool,
    sizes: tuple[int, ...] = SIZES,
) -> None:
    """Receive, perhaps index, and cut: raises the AssertionError of `Ward.check` if anything is wrong."""
    for _ in range(ATTEMPTS):
        ward.begin(spare=spare)
        _, port = ward.nursery.start(receiver)
        ward.send(port, *sizes)
        assert len(ward.kept) == len(sizes)
        if indexer:
            ward.nursery.start(indexer)
            wait_for(lambda: Instance.objects.count() == len(sizes))
        ward.cut()
        ward.check()


@pytest.mark.parametrize("spare", [False, True])
def test_the_check_holds_for_a_build_that_leaves_nothing_out(ward: Ward, spare: bool) -> None:
    lost_by(ward, indexer="indexer~eager", spare=spare)


@pytest.mark.parametrize("spare", [False, True])
def test_a_receiver_that_does_not_sync_its_files_fails(ward: Ward, spare: bool) -> None:
    with pytest.raises(AssertionError, match="an answered object is lost"):
        lost_by(ward, "receiver~no_file_sync", spare=spare)


def test_a_receiver_that_does_not_sync_its_folders_fails(ward: Ward) -> None:
    """Where it writes over blocks that are there: a sync of a new file makes its name durable too, on ext4, and every
    name that was given before. That no file system need do so is shown with the model."""
    with pytest.raises(AssertionError, match="an answered object is lost"):
        lost_by(
            ward, "receiver~no_folder_sync", spare=True, sizes=SIZES[:3]
        )  # the last has a file of its own


def test_an_indexer_that_writes_rows_before_the_file_is_safe_fails(ward: Ward) -> None:
    with pytest.raises(AssertionError, match="a row without its file|a row with other bytes"):
        lost_by(ward, indexer="indexer~index_before_file", spare=False)
