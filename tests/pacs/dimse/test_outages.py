"""PostgreSQL away, a volume that cannot be written, objects of any size: kept or refused, over when it is over."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE

from common.models import Alert
from pacs import indexing
from pacs.dimse import sender
from pacs.dimse.errors import AssociationRefused, Ended
from pacs.models import Instance
from pacs.services.find import STUDY_ROOT
from pacs.storage import spool
from pacs.storage.part10 import Origin
from tests.engine import Engine
from tests.pacs.dimse.conftest import engine_for_scanner
from tests.pacs.dimse.test_store import CT, EXPLICIT, made
from tests.pacs.storage.conftest import data_dir, spooled  # noqa: F401
from tests.pacs.storage.test_faults import Receiver, receiver  # noqa: F401


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Engine]:
    with engine_for_scanner(tmp_path) as engine:
        yield engine


def test_while_the_database_is_away_images_are_kept_or_refused_and_all_are_indexed_after(
    running: Engine,
) -> None:
    there = sender.Destination("127.0.0.1", running.port("dicom"), "ORDERLY", "SCANNER")
    kept: list[str] = []

    def send(number: int) -> None:
        origin, data = made(1000, f"1.2.3.{number}")
        try:
            with sender.associate(there, sender.contexts_of([origin])) as assoc:
                status = assoc.store(origin, data)
            assert status in (0, 0xA700)
            if status == 0:
                kept.append(origin.sop_instance_uid)
        except (AssociationRefused, Ended):
            pass  # said so, in the protocol's words or by the end of the connection

    def found() -> int:
        ae = AE(ae_title="SCANNER")
        ae.add_requested_context(STUDY_ROOT)
        assoc = ae.associate("127.0.0.1", running.port("dicom"), ae_title="ORDERLY")
        if not assoc.is_established:
            return 0xA700
        ds = Dataset()
        ds.QueryRetrieveLevel, ds.StudyInstanceUID = "STUDY", "1.2.3"
        last = [status.get("Status") for status, _ in assoc.send_c_find(ds, STUDY_ROOT)][-1]
        assoc.release()
        return int(last or 0)

    for number in range(1, 6):
        send(number)
    assert len(kept) == 5
    running.wait_for(lambda: found() == 0)
    database = running.pid("database")
    running.kill("database")
    statuses = {found()}
    for number in range(6, 40):
        send(number)
    assert statuses <= {0, 0xA700}  # it may be back so soon
    running.wait_for(lambda: running.pid("database") not in (None, database))
    running.wait_ready()
    send(40)
    assert "1.2.3.40" in kept

    def indexed() -> bool:
        rows = running.rows("SELECT sop_instance_uid FROM pacs_instance")
        return {row[0] for row in rows} == set(kept)

    running.wait_for(indexed, 120)
    assert found() == 0


def test_a_refused_caller_stands_in_the_audit_trail(running: Engine) -> None:
    nobody = sender.Destination("127.0.0.1", running.port("dicom"), "ORDERLY", "NOBODY")
    other = sender.Destination("127.0.0.1", running.port("dicom"), "OTHER", "SCANNER")
    for there, reason in ((nobody, "calling AE title"), (other, "called AE title")):
        with pytest.raises(AssociationRefused, match=reason):
            sender.associate(there, [(CT, (EXPLICIT,))])

    def rows() -> Any:
        return running.rows(
            "SELECT actor, what, host(address) FROM common_auditevent WHERE action = 'refuse' ORDER BY id"
        )

    running.wait_for(lambda: len(rows()) == 2)
    assert {row[0] for row in rows()} == {"ae:NOBODY", "ae:SCANNER"}
    assert {row[1] for row in rows()} == {"association"}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EIO])
def test_a_volume_that_cannot_be_written_keeps_everything_in_the_spool_until_it_can(
    spooled: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    sent = {f"1.2.3.1.{n}": spooled(pixels=10 ** (n + 2), SOPInstanceUID=f"1.2.3.1.{n}") for n in range(1, 5)}
    real = os.fsync

    def fail(fd: int) -> None:
        if "/volume" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(number, os.strerror(number))
        real(fd)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        for _ in range(3):
            with pytest.raises(OSError, match=os.strerror(number)):
                indexing.index_once()
            assert not Instance.objects.exists()
    while indexing.index_once():
        pass
    assert set(Instance.objects.values_list("sop_instance_uid", flat=True)) == set(sent)
    assert spool.oldest()[0] == 0


@pytest.mark.django_db(transaction=True)
def test_an_indexer_that_cannot_go_on_raises_an_alert_and_takes_it_back(
    spooled: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from common.process import Context

    monkeypatch.setattr(indexing, "RETRY_SECONDS", (0.01,))
    monkeypatch.setattr(os, "nice", lambda by: 0)
    spooled()
    ctx = Context("indexer")
    real, calls = indexing.index_once, []

    def read_only() -> int:
        calls.append(1)
        if len(calls) < 6:
            raise OSError(errno.EROFS, "Read-only file system")
        if Alert.objects.filter(key="indexer", recovered_at=None).exists() and len(calls) > 8:
            ctx.stopping.set()  # it never recovers: the assertion below says so
        if Instance.objects.exists():
            ctx.stopping.set()
        return real()

    monkeypatch.setattr(indexing, "index_once", read_only)
    indexing.main(ctx)
    assert Instance.objects.count() == 1
    alert = Alert.objects.get(key="indexer")
    assert alert.recovered_at is not None


def test_memory_of_a_receiver_does_not_grow_with_the_object(receiver: Any) -> None:  # noqa: F811
    one: Receiver = receiver()
    head = made(0)[1][:-12]
    size = 400 * 1024 * 1024
    piece = bytes(1024 * 1024)
    pixels = b"\xe0\x7f\x10\x00OW\0\0" + size.to_bytes(4, "little")
    with sender.associate(one.destination, [(CT, (EXPLICIT,))]) as assoc:
        assert assoc.store(*made(1000, "1.2.3.9")) == 0  # what grows at first use has grown
        before = peak(one.child.pid)
        pieces = [head, pixels, *[piece] * (size // len(piece))]
        assert assoc.store(Origin(CT, "1.2.3.4", EXPLICIT), pieces) == 0
        assert peak(one.child.pid) - before < 20 * 1024 * 1024


def peak(pid: int) -> int:
    """The most memory that a process ever held, in bytes."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
