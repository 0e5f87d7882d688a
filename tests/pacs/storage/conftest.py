"""A data directory of the test's own, and objects in its spool."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from pacs.storage import spool
from pacs.storage.part10 import Origin

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"


def data_set(pixels: int = 100, **attributes: Any) -> Dataset:
    """A small CT image; keyword arguments replace its attributes, None removes one."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CT, "1.2.3.1.1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3", "1.2.3.1"
    ds.StudyDate, ds.StudyTime, ds.AccessionNumber = "20260310", "101530", "A1"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Doe^Jane", "P1", "19700102", "F"
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "CT", 1, 1
    ds.Rows, ds.Columns, ds.BitsAllocated = 10, 10, 16
    for keyword, value in attributes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    ds.add_new(0x7FE00010, "OW", bytes(pixels))
    return ds


def encoded(ds: Dataset) -> bytes:
    buffer = BytesIO()
    ds.save_as(buffer, implicit_vr=False, little_endian=True)
    return buffer.getvalue()


@pytest.fixture
def data_dir(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ORDERLY_DATA_DIR, empty."""
    settings.DATA_DIR = tmp_path
    monkeypatch.setattr(spool, "_mine", None)
    return tmp_path


@pytest.fixture
def spooled(data_dir: Path) -> Callable[..., bytes]:
    """Put a data set into the spool, as a receiver does; gives its bytes."""

    def put(
        ds: Dataset | bytes | None = None, calling: str = "CT01", uid: str = "", **attributes: Any
    ) -> bytes:
        ds = data_set(**attributes) if ds is None else ds
        data = ds if isinstance(ds, bytes) else encoded(ds)
        if not uid and isinstance(ds, Dataset):
            uid = str(ds.get("SOPInstanceUID", ""))
        incoming = spool.mine().begin(Origin(CT, uid or "1.2.3.1.1", EXPLICIT, calling, "ORDERLY"))
        incoming.write(data)
        incoming.commit()
        return data

    return put
