"""One examination through the whole engine: ordered, found on the worklist, begun, ended, its images come one late.

A second MPPS receiver is away until the end. Everything is seen from outside: over the sockets, and in the database.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    CTImageStorage,
    ModalityPerformedProcedureStep,
    ModalityWorklistInformationFind,
)

from common.servers import free_port
from integration.hl7v2.framing import STOP, encode
from tests.engine import Engine
from tests.integration.outbound.test_mpps_receivers import receiver
from tests.worklist.asking import query
from tests.worklist.test_mpps import begun, ended

STUDY, SERIES, IMAGES = "1.2.826.0.1.77", "1.2.826.0.1.77.1", ["1.2.826.0.1.77.1.1", "1.2.826.0.1.77.1.2"]
SITE = """
[site]
name = "One"
timezone = "UTC"

[[source]]
name = "his"
application = "HIS"

[[ae]]
title = "CT01"
host = "*"
services = ["echo", "store", "worklist", "mpps"]
worklist = {{ see = "own" }}

[[station]]
name = "CT 1"
ae = "CT01"
modality = "CT"

[[procedure]]
code = "CTHEAD"
name = "CT of the head"
modality = "CT"
stations = ["CT 1"]

[[destination]]
name = "other"
kind = "mpps"
host = "127.0.0.1"
port = {port}
messages = ["MPPS"]
called_ae = "OTHER"
retry_seconds = 0.2
retry_seconds_most = 1.0
"""
ORDER = (
    "MSH|^~\\&|HIS|HOSP|ORDERLY|SITE|20260302080000||ORM^O01|C1|P|2.3.1\r"
    "PID|1||4711^^^HOSP^MR||Sommer^Clara||19600512|F\r"
    "ORC|NW|P1|||SC||1^^^20260302090000^^R\r"
    "OBR|1|P1||CTHEAD^Head^L||||||||||||||A1|RP1|S1\r"
    f"ZDS|{STUDY}^HIS^Application^DICOM\r"
)


def told(port: int, message: str) -> bytes:
    """The ACK of one message."""
    with socket.create_connection(("127.0.0.1", port), 60) as sock:
        sock.sendall(encode(message.encode()))
        answer = b""
        while not answer.endswith(STOP):
            more = sock.recv(65536)
            assert more, answer
            answer += more
        return answer


def image(uid: str) -> FileDataset:
    """A small CT slice as the scanner writes it."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    values: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": uid,
        "StudyInstanceUID": STUDY,
        "SeriesInstanceUID": SERIES,
        "PatientName": "SOMMER^CLARA",
        "PatientID": "4711",
        "PatientBirthDate": "19600512",
        "AccessionNumber": "A1",
        "Modality": "CT",
        "StudyDate": "20260302",
        "InstanceNumber": uid[-1],
    }
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def end_of_scan() -> Dataset:
    """An N-SET that names both images."""
    ds = ended()
    series = ds.PerformedSeriesSequence[0]
    series.SeriesInstanceUID = SERIES
    references = []
    for uid in IMAGES:
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = CTImageStorage, uid
        references.append(reference)
    series.ReferencedImageSequence = references
    return ds


def test_from_the_order_to_the_last_image(engine: Engine, tmp_path: Path) -> None:
    away = free_port()
    engine.site = tmp_path / "site.toml"
    engine.site.write_text(SITE.format(port=away))
    engine.start()
    assert b"MSA|AA" in told(engine.port("mllp"), ORDER)

    ae = AE("CT01")
    for uid in (ModalityWorklistInformationFind, ModalityPerformedProcedureStep):
        ae.add_requested_context(uid)
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    assoc = ae.associate("127.0.0.1", engine.port("dicom"), ae_title="ORDERLY")
    assert assoc.is_established
    asked = query(step={"Modality": "CT", "ScheduledStationAETitle": "CT01"})
    found = [ds for _, ds in assoc.send_c_find(asked, ModalityWorklistInformationFind) if ds is not None]
    assert [str(ds.AccessionNumber) for ds in found] == ["A1"]

    start = begun()
    start.ScheduledStepAttributesSequence[0].StudyInstanceUID = STUDY
    status, _ = assoc.send_n_create(start, ModalityPerformedProcedureStep, "1.2.826.0.1.78")
    assert status.Status == 0x0000
    assert assoc.send_c_store(image(IMAGES[0])).Status == 0x0000
    status, _ = assoc.send_n_set(end_of_scan(), ModalityPerformedProcedureStep, "1.2.826.0.1.78")
    assert status.Status == 0x0000

    def missing() -> int | None:
        ((count,),) = engine.rows("SELECT images_missing FROM ris_performedprocedurestep")
        return count

    engine.wait_for(lambda: missing() == 1, 120)
    assert engine.rows("SELECT status FROM ris_scheduledprocedurestep") == [("COMPLETED",)]
    assert assoc.send_c_store(image(IMAGES[1])).Status == 0x0000
    engine.wait_for(lambda: missing() == 0, 120)
    assoc.release()

    with receiver(away) as other:
        engine.wait_for(lambda: len(other.said) == 2, 120)
        engine.wait_for(
            lambda: engine.rows("SELECT DISTINCT state FROM integration_outboxitem") == [("delivered",)], 60
        )
    assert [command for command, _, _ in other.said] == ["N-CREATE", "N-SET"]
    assert {uid for _, uid, _ in other.said} == {"1.2.826.0.1.78"}
    assert engine.rows("SELECT count(*) FROM ris_studymatch WHERE undone_at IS NULL") == [(1,)]
