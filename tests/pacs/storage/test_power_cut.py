"""The power goes at any moment: what was answered with Success is on the disk, and every row has its file.

The images are those that POSIX allows a disk to hold (disk.py). A build that leaves a sync out must fail here.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as live
from django.db import transaction

from pacs import indexing
from pacs.models import Instance, SetAside, Study
from pacs.storage import spool
from pacs.storage.part10 import Origin
from pacs.storage.volume import open_file
from tests.pacs.storage.conftest import CT, EXPLICIT, data_set, encoded
from tests.pacs.storage.disk import Disk

pytestmark = pytest.mark.django_db(transaction=True)
SLOW = [pytest.mark.slow, pytest.mark.timeout(3600)]

SIZES = (100, 5_000, 70_000, 300_000, 1_200_000)


@pytest.fixture
def disk(data_dir: Path, tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """An empty data directory on a disk that remembers."""
    root = tmp_path / "disk"
    root.mkdir()
    settings.DATA_DIR = root
    with monkeypatch.context() as patch:
        yield Disk(root, patch)


def receive(disk: Disk, threads: int = 3, rounds: int = 1) -> dict[str, str]:
    """Objects of all sizes received by several threads at once; gives their SHA-256 by UID. Each answer is noted."""
    sent: dict[str, str] = {}

    def one(number: int) -> None:
        for round_, size in itertools.product(range(rounds), SIZES):
            uid = f"1.2.{number + 1}.{round_ + 1}.{size}"
            data = encoded(data_set(size, SOPInstanceUID=uid, StudyInstanceUID=f"1.2.{number + 1}"))
            sent[uid] = sha256(data).hexdigest()
            incoming = spool.mine().begin(Origin(CT, uid, EXPLICIT, "CT01", "ORDERLY"))
            for at in range(0, len(data), 100_000):
                incoming.write(data[at : at + 100_000])
            incoming.commit()
            disk.mark(f"kept {uid}")

    working = [threading.Thread(target=one, args=(number,)) for number in range(threads)]
    for thread in working:
        thread.start()
    for thread in working:
        thread.join(120)
        assert not thread.is_alive()
    return sent


def receive_series(disk: Disk, study: str, sizes: Sequence[int]) -> dict[str, str]:
    """Objects of one series, one after the other; gives their SHA-256 by UID. Each answer is noted."""
    sent = {}
    for number, size in enumerate(sizes, 1):
        uid = f"{study}.1.{number}"
        data = encoded(
            data_set(size, StudyInstanceUID=study, SeriesInstanceUID=f"{study}.1", SOPInstanceUID=uid)
        )
        incoming = spool.mine().begin(Origin(CT, uid, EXPLICIT, "CT01", "ORDERLY"))
        incoming.write(data)
        incoming.commit()
        sent[uid] = sha256(data).hexdigest()
        disk.mark(f"kept {uid}")
    return sent


def index_all() -> None:
    for _ in range(100):
        if not indexing.index_once():
            return
    raise AssertionError("the spool is never empty")


def index_and_note(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Index all; the moment of the commit is noted."""
    free = spool.free

    def noted(*args: Any) -> None:
        disk.mark("committed")
        free(*args)

    with monkeypatch.context() as patch:
        patch.setattr(spool, "free", noted)
        index_all()


def check(disk: Disk, image: Path, cut: int, sent: dict[str, str]) -> None:
    """After the power came back: every row has its file, all that was answered for is indexed, nothing half."""
    told = {op.path for op in disk.ops[:cut] if op.kind == "mark"}
    kept = {uid for uid in sent if f"kept {uid}" in told}
    # Not the fixture's: each of its assignments is a layer of its own, and there are thousands.
    live.DATA_DIR = image
    with transaction.atomic():
        if "committed" not in told:
            Study.objects.all().delete()
        check_rows(sent)
        index_all()
        check_rows(sent)
        assert kept <= set(Instance.objects.values_list("sop_instance_uid", flat=True)), (
            "an answered object is lost"
        )
        assert not SetAside.objects.filter(sop_instance_uid__in=kept).exists()
        assert not SetAside.objects.filter(reason="uid_taken").exists()
        files = {str(path.relative_to(image / "volume")) for path in image.glob("volume/*/*/*/*")}
        assert files == set(Instance.objects.values_list("path", flat=True)), "a file without a row"
        transaction.set_rollback(True)
    live.DATA_DIR = disk.root


def check_rows(sent: dict[str, str]) -> None:
    for row in Instance.objects.all():
        try:
            with open_file(row) as file:
                data = file.read()[row.data_set_offset :]
        except FileNotFoundError:
            raise AssertionError("a row without its file") from None
        assert sha256(data).hexdigest() == row.sha256 == sent[row.sop_instance_uid], "a row with other bytes"


def cuts_of(disk: Disk, every: bool, chance: random.Random) -> list[tuple[int, str]]:
    """Where to cut, and what survives: each answer given, with nothing more than was promised; others at random."""
    answers = [at + 1 for at, op in enumerate(disk.ops) if op.kind == "mark"]
    places = range(len(disk.ops) + 1) if every else chance.sample(range(len(disk.ops) + 1), 12)
    found = [(at, "nothing") for at in answers]
    return found + [(at, kind) for at in places for kind in ("nothing", "everything", "chance", "chance")]


def cut_everywhere(disk: Disk, sent: dict[str, str], tmp_path: Path, *, every: bool = False) -> int:
    chance = random.Random(20260310)
    places = cuts_of(disk, every, chance)
    for number, (cut, survives) in enumerate(places):
        image = tmp_path / f"image{number}"
        dice = chance if survives == "chance" else None
        disk.image(image, cut, dice, everything=survives == "everything")
        check(disk, image, cut, sent)
        for path in sorted(image.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    return len(places)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=SLOW)])
def test_a_power_cut_while_objects_come_loses_nothing_that_was_answered_for(
    disk: Disk, tmp_path: Path, every: bool
) -> None:
    sent = receive(disk, rounds=2 if every else 1)
    assert cut_everywhere(disk, sent, tmp_path, every=every) > len(sent)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=SLOW)])
def test_a_power_cut_while_they_are_indexed_leaves_no_row_without_its_file(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: bool
) -> None:
    sent = receive(disk)
    index_and_note(disk, monkeypatch)
    later = receive_series(
        disk, "1.2.9", [0, 40_000, 80_000, 120_000]
    )  # segments that are read are written over
    assert Instance.objects.count() == len(sent)
    cut_everywhere(disk, {**sent, **later}, tmp_path, every=every)


def index_what_is_not_synced(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The indexer comes to objects that their receiver has not synced yet, and has not answered for."""
    disk.deaf = lambda path, is_folder: path.startswith("spool/") and path.endswith((".seg", ".obj"))
    sent = receive_series(disk, "1.2.9", (100, 1_200_000))
    disk.ops = [op for op in disk.ops if op.kind != "mark"]
    disk.deaf = lambda path, is_folder: False
    index_and_note(disk, monkeypatch)
    return sent


def test_a_file_in_the_archive_never_outlives_what_it_was_made_of(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_everywhere(disk, index_what_is_not_synced(disk, monkeypatch), tmp_path, every=True)


Deaf = Callable[[str, bool], bool]
NO_FILE_SYNC: Deaf = lambda path, is_folder: not is_folder  # noqa: E731
NO_FOLDER_SYNC: Deaf = lambda path, is_folder: is_folder  # noqa: E731
INDEX_BEFORE_FILE: Deaf = lambda path, is_folder: path.startswith("volume")  # noqa: E731


@pytest.mark.parametrize("deaf", [NO_FILE_SYNC, NO_FOLDER_SYNC], ids=["no file sync", "no folder sync"])
def test_a_receiver_that_leaves_a_sync_out_fails_the_test_above(
    disk: Disk, tmp_path: Path, deaf: Deaf
) -> None:
    disk.deaf = deaf
    sent = receive(disk)
    with pytest.raises(AssertionError, match="an answered object is lost"):
        cut_everywhere(disk, sent, tmp_path)


def test_an_indexer_that_writes_rows_before_the_file_is_safe_fails_the_test_above(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = receive(disk)
    disk.deaf = INDEX_BEFORE_FILE
    index_and_note(disk, monkeypatch)
    with pytest.raises(AssertionError, match="a row without its file|a row with other bytes"):
        cut_everywhere(disk, sent, tmp_path)


def test_an_indexer_that_does_not_wait_for_the_spool_leaves_a_file_without_a_row(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "sync", lambda entries: None)
    sent = index_what_is_not_synced(disk, monkeypatch)
    with pytest.raises(AssertionError, match="a file without a row"):
        cut_everywhere(disk, sent, tmp_path, every=True)
