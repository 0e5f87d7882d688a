"""Processes killed at every point of the way in: what was answered with Success is there, and nothing half."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from pacs import indexing
from pacs.dimse import sender
from pacs.dimse.errors import AssociationRefused, Ended
from pacs.models import Instance, SetAside
from pacs.storage import spool
from pacs.storage.part10 import Origin
from pacs.storage.volume import open_file
from tests.conftest import REPOSITORY
from tests.pacs.storage.conftest import CT, EXPLICIT, data_set, encoded

pytestmark = pytest.mark.django_db(transaction=True)

SMALL_POINTS = ("spool.before_append", "spool.appended", "spool.synced")
MEDIUM_POINTS = (*SMALL_POINTS, "spool.half_appended")
FIRST_POINTS = ("spool.segment_named", "spool.segment_begun")
LARGE_POINTS = ("spool.before_rename", "spool.renamed", "spool.file_synced", "spool.folder_synced")


class Receiver:
    """A receiving process of our own, which may die at a crash point."""

    def __init__(self, data_dir: Path, crashpoint: str = "") -> None:
        environment = {
            **os.environ,
            "ORDERLY_DATA_DIR": str(data_dir),
            "ORDERLY_CRASHPOINT": crashpoint,
            "ORDERLY_HEADLESS": "1",
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",  # receiving needs no database
        }
        self.child = subprocess.Popen(
            [sys.executable, "-m", "tests.pacs.storage.receiver"],
            cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.child.stdout is not None
        self.destination = sender.Destination(
            "127.0.0.1", int(self.child.stdout.readline()), "ORDERLY", "CT01"
        )

    def kill(self) -> None:
        self.child.send_signal(signal.SIGKILL)
        self.child.wait(20)


@pytest.fixture
def receiver(data_dir: Path) -> Iterator[Callable[..., Receiver]]:
    started: list[Receiver] = []

    def start(crashpoint: str = "") -> Receiver:
        started.append(Receiver(data_dir, crashpoint))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def send_until_it_dies(one: Receiver, made: Iterator[tuple[str, bytes]], succeeded: dict[str, bytes]) -> None:
    """Send one object after the other; note each that was answered with Success."""
    try:
        with sender.associate(one.destination, [(CT, (EXPLICIT,))]) as assoc:
            for uid, data in made:
                if assoc.store(Origin(CT, uid, EXPLICIT), data) == 0:
                    succeeded[uid] = data
    except (Ended, AssociationRefused):
        return


def objects(pixels: int, prefix: str = "1.2.3.1", count: int = 8) -> Iterator[tuple[str, bytes]]:
    for number in range(1, count + 1):
        uid = f"{prefix}.{number}"
        yield uid, encoded(data_set(pixels, SOPInstanceUID=uid, InstanceNumber=number))


def check_all_there(data_dir: Path, succeeded: dict[str, bytes], sent: set[str]) -> None:
    """After indexing: every success with its bytes, no row of anything that was not sent whole, no stray file."""
    while indexing.index_once():
        pass
    rows = {row.sop_instance_uid: row for row in Instance.objects.all()}
    assert set(succeeded) <= set(rows) <= sent
    for uid, row in rows.items():
        with open_file(row) as file:
            data = file.read()[row.data_set_offset :]
        assert sha256(data).hexdigest() == row.sha256
        assert uid not in succeeded or data == succeeded[uid]
    files = {str(path.relative_to(data_dir / "volume")) for path in (data_dir / "volume").rglob("*.dcm")}
    assert files == {row.path for row in rows.values()}
    assert not SetAside.objects.exists()
    assert not list((data_dir / "spool").rglob("*.part"))
    assert spool.oldest()[0] == 0


@pytest.mark.parametrize(
    ("pixels", "point"),
    [
        *((100, point) for point in SMALL_POINTS),
        *((400_000, point) for point in MEDIUM_POINTS),
        *((1_500_000, point) for point in LARGE_POINTS),
    ],
)
def test_a_receiver_killed_on_the_way_in_loses_nothing_it_answered_for(
    receiver: Callable[..., Receiver], data_dir: Path, pixels: int, point: str
) -> None:
    one = receiver(f"{point}:4")
    succeeded: dict[str, bytes] = {}
    send_until_it_dies(one, objects(pixels), succeeded)
    assert one.child.wait(20) == -signal.SIGKILL
    assert len(succeeded) == 3
    check_all_there(data_dir, succeeded, {uid for uid, _ in objects(pixels)})


@pytest.mark.parametrize("point", FIRST_POINTS)
@pytest.mark.parametrize("spare", [False, True])
def test_a_receiver_killed_as_it_begins_a_segment_leaves_nothing(
    receiver: Callable[..., Receiver], data_dir: Path, point: str, spare: bool
) -> None:
    if spare:  # full of records that were indexed, and deleted since
        one = receiver()
        before: dict[str, bytes] = {}
        send_until_it_dies(one, objects(400_000, "1.2.4.1"), before)
        one.kill()
        (data_dir / "spool" / "spare").mkdir()
        shutil.copy(next((data_dir / "spool").glob("*/*.seg")), data_dir / "spool" / "spare" / "0123.seg")
        check_all_there(data_dir, before, set(before))
        Instance.objects.all().delete()
        for path in (data_dir / "volume").rglob("*.dcm"):
            path.unlink()
    one = receiver(point)
    succeeded: dict[str, bytes] = {}
    send_until_it_dies(one, objects(100), succeeded)
    assert one.child.wait(20) == -signal.SIGKILL
    assert not succeeded
    assert not list((data_dir / "spool").glob("spare/*"))
    check_all_there(data_dir, {}, set())


def test_receivers_killed_at_random_under_load_lose_nothing_they_answered_for(
    receiver: Callable[..., Receiver], data_dir: Path
) -> None:
    chance = random.Random(20260310)
    succeeded: dict[str, bytes] = {}
    sent: set[str] = set()
    for kill in range(4):
        one = receiver()
        threads = []
        for number in range(3):
            made = list(objects((100, 400_000, 1_500_000)[number], f"1.2.{kill}.{number}", 60))
            sent |= {uid for uid, _ in made}
            thread = threading.Thread(target=send_until_it_dies, args=(one, iter(made), succeeded))
            threads.append(thread)
            thread.start()
        until = time.monotonic() + 20
        wanted = len(succeeded) + chance.randint(5, 60)
        while len(succeeded) < wanted and time.monotonic() < until:
            time.sleep(0.005)
        one.kill()
        for thread in threads:
            thread.join(30)
    assert len(succeeded) > 20
    check_all_there(data_dir, succeeded, sent)


def test_a_full_disk_refuses_leaves_nothing_and_is_over_when_it_is_over(
    spooled: Any, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spooled()

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    for pixels, function in (
        (1_200_000, "writev"),
        (5_000_000, "writev"),
        (100, "pwritev"),
        (400_000, "pwritev"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(f"pacs.storage.spool.os.{function}", full)
            with pytest.raises(spool.SpoolFull):
                spooled(pixels=pixels, SOPInstanceUID="1.2.3.1.9")
    spooled(pixels=1_200_000, SOPInstanceUID="1.2.3.1.2")
    spooled(SOPInstanceUID="1.2.3.1.3")
    while indexing.index_once():
        pass
    assert set(Instance.objects.values_list("sop_instance_uid", flat=True)) == {
        "1.2.3.1.1",
        "1.2.3.1.2",
        "1.2.3.1.3",
    }
    assert not spool.broken()


def test_a_record_half_written_when_the_disk_was_full_is_written_over(
    spooled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spooled()
    real = os.pwritev

    def short(fd: int, buffers: Any, offset: int) -> int:
        return real(fd, [b"".join(buffers)[:1000]], offset)

    with monkeypatch.context() as patched:
        patched.setattr("pacs.storage.spool.os.pwritev", short)
        patched.setattr("pacs.storage.spool.os.pwrite", lambda *_: 0)
        with pytest.raises(spool.SpoolFull):
            spooled(SOPInstanceUID="1.2.3.1.9", pixels=20_000)
    spooled(SOPInstanceUID="1.2.3.1.2")
    while indexing.index_once():
        pass
    assert set(Instance.objects.values_list("sop_instance_uid", flat=True)) == {"1.2.3.1.1", "1.2.3.1.2"}


def test_without_the_durable_write_before_success_these_tests_would_fail(
    receiver: Callable[..., Receiver], data_dir: Path
) -> None:
    """A receiver that answers before it keeps: the check above must find what is missing."""
    one = receiver("spool.before_append:3")
    succeeded: dict[str, bytes] = {}
    made = dict(objects(100))
    send_until_it_dies(one, iter(made.items()), succeeded)
    told_too_early = next(uid for uid in made if uid not in succeeded)
    with pytest.raises(AssertionError):
        check_all_there(data_dir, {**succeeded, told_too_early: made[told_too_early]}, set(made))
