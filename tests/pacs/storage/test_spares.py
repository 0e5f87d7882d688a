"""Segments that are written over, and the power goes: what was answered for is there, what was there before is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from pacs.models import Instance
from pacs.storage import spool
from tests.pacs.storage.disk import Disk
from tests.pacs.storage.test_power_cut import (  # noqa: F401
    cut_everywhere,
    disk,
    index_all,
    index_and_note,
    receive_series,
)

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_power_cut_while_segments_are_written_over_loses_nothing_and_brings_nothing_back(
    disk: Disk,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spool, "SEGMENT_BYTES", 12 * spool.PAGE)
    monkeypatch.setattr(spool, "BUFFER", 6 * spool.PAGE)
    sizes = [100, 9_000, 20_000, 3_000, 12_000, 15_000, 100, 18_000]
    sent = receive_series(disk, "1.2.1", sizes)
    index_and_note(disk, monkeypatch)
    assert list((disk.root / "spool" / "spare").iterdir())
    sent |= receive_series(disk, "1.2.2", sizes[::-1])
    names = [op.other for op in disk.ops if op.kind == "rename" and op.path.endswith(".seg")]
    assert any(name.startswith("spool/spare/") for name in names)  # so they were written over
    cut_everywhere(disk, sent, tmp_path)
    index_all()
    assert set(Instance.objects.values_list("sop_instance_uid", flat=True)) == set(sent)
