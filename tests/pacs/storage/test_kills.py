"""Receivers and indexers killed at random under load, again and again: what was answered for is there, once."""

from __future__ import annotations

import itertools
import os
import random
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
from django.conf import settings
from django.db import connection

from pacs.dimse import sender
from pacs.dimse.errors import AssociationRefused, Ended
from pacs.models import Instance, Series, Study
from pacs.storage.part10 import Origin
from tests.pacs.storage.conftest import CT, EXPLICIT, data_set, encoded
from tests.pacs.storage.test_faults import check_all_there

pytestmark = pytest.mark.django_db(transaction=True)

SIZES = (100, 70_000, 300_000, 1_200_000)


class Nursery:
    """Where receivers and indexers come from: see nursery.py."""

    def __init__(self, data_dir: Path) -> None:
        words = [
            sys.executable,
            "-m",
            "tests.pacs.storage.nursery",
            connection.settings_dict["NAME"],
            str(data_dir),
        ]
        self.popen = subprocess.Popen(
            words,
            cwd=settings.BASE_DIR,
            env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.children: set[int] = set()
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.popen.stdout
        return self.popen.stdout.readline().strip()

    def start(self, what: str) -> tuple[int, int]:
        """A new `receiver` or `indexer`, perhaps with a crash point behind it: its process id and port."""
        assert self.popen.stdin
        self.popen.stdin.write(f"{what}\n")
        self.popen.stdin.flush()
        pid, port = map(int, self._line().split())
        self.children.add(pid)
        return pid, port

    def kill(self, pid: int) -> None:
        """kill -9, and wait until it is gone."""
        os.kill(pid, signal.SIGKILL)
        self.children.discard(pid)
        wait_for(lambda: not Path(f"/proc/{pid}").exists())

    def close(self) -> None:
        for pid in list(self.children):
            self.kill(pid)
        for stream in (self.popen.stdin, self.popen.stdout):
            if stream:
                stream.close()
        self.popen.wait(20)


def wait_for(what: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def nursery(data_dir: Path) -> Iterator[Nursery]:
    one = Nursery(data_dir)
    yield one
    one.close()


class Senders:
    """Threads that send without end to whichever receiver there is; they know what was answered with Success.

    What they send has UIDs that begin with `root`.
    """

    def __init__(self, count: int, root: str = "1.2") -> None:
        self.succeeded: dict[str, str] = {}  # SOP Instance UID → SHA-256 of what was sent
        self.sent: dict[str, str] = {}
        self._root = root
        self.port = 0
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def _send(self, number: int) -> None:
        count = itertools.count(1)
        while not self._stopping.is_set():
            try:
                destination = sender.Destination("127.0.0.1", self.port, "ORDERLY", "CT01")
                with sender.associate(destination, [(CT, (EXPLICIT,))]) as assoc:
                    while not self._stopping.is_set():
                        self._send_one(assoc, number, next(count))
            except (Ended, AssociationRefused):
                time.sleep(0.01)  # dead; the next one comes

    def _send_one(self, assoc: sender.RequestedAssociation, number: int, count: int) -> None:
        study = f"{self._root}.{number + 1}"
        series = f"{study}.{count // 50 + 1}"
        uid = f"{series}.{count}"
        size = SIZES[number % len(SIZES)]
        ds = data_set(size, StudyInstanceUID=study, SeriesInstanceUID=series, SOPInstanceUID=uid)
        data = encoded(ds)
        self.sent[uid] = sha256(data).hexdigest()
        if assoc.store(Origin(CT, uid, EXPLICIT), data) == 0:
            self.succeeded[uid] = self.sent[uid]

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()


@pytest.mark.parametrize(
    "point",
    [
        "volume.file_synced:2",
        "volume.synced",
        "indexer.placed",
        "indexer.before_commit",
        "indexer.committed",
        "indexer.freed",
    ],
)
def test_an_indexer_killed_at_any_point_is_followed_by_one_that_finds_everything(
    nursery: Nursery, data_dir: Path, spooled: Any, point: str
) -> None:
    sent = {}
    for number, size in enumerate((*SIZES, *SIZES)):
        uid = f"1.2.3.1.{number + 1}"
        sent[uid] = spooled(pixels=size, SOPInstanceUID=uid, InstanceNumber=number + 1)
    pid, _ = nursery.start(f"indexer {point}")
    wait_for(lambda: not Path(f"/proc/{pid}").exists())
    nursery.children.discard(pid)
    check_all_there(data_dir, sent, set(sent))
    assert Study.objects.get().number_of_study_related_instances == len(sent)


@pytest.mark.parametrize("kills", [6, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_every_success_is_there_once_however_often_receiver_and_indexer_are_killed(
    nursery: Nursery, data_dir: Path, kills: int
) -> None:
    """`kills` deaths of each."""
    chance = random.Random(20260310)
    indexer, _ = nursery.start("indexer")
    receiver, port = nursery.start("receiver")
    senders = Senders(4)
    senders.port = port
    try:
        for number in range(2 * kills):
            wanted = len(senders.succeeded) + chance.randint(0, 12)
            wait_for(lambda: len(senders.succeeded) >= wanted)  # noqa: B023
            time.sleep(chance.uniform(0, 0.03))  # anywhere within an object, a sync, a batch
            if number % 2:
                nursery.kill(indexer)
                indexer, _ = nursery.start("indexer")
            else:
                nursery.kill(receiver)
                receiver, senders.port = nursery.start("receiver")
    finally:
        senders.stop()
    nursery.kill(receiver)
    nursery.kill(indexer)
    check_all_there(data_dir, {}, set(senders.sent))
    stored = dict(Instance.objects.values_list("sop_instance_uid", "sha256"))
    assert {uid: stored.get(uid) for uid in senders.succeeded} == senders.succeeded
    assert len(senders.succeeded) > kills
    for study in Study.objects.all():
        instances = Instance.objects.filter(series__study=study)
        assert study.number_of_study_related_instances == instances.count()
        assert study.number_of_study_related_series == study.series.count()
        assert study.size == sum(instances.values_list("size", flat=True))
    for series in Series.objects.all():
        assert series.number_of_series_related_instances == series.instances.count()
