"""A study waits for its order, is linked to it, and goes on to another node with what the order corrects in it.

Seen at a real storescp: in the files it keeps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage  # type: ignore[attr-defined]

from common.servers import connects, free_port, serving
from tests.conftest import require_peer
from tests.engine import Engine
from tests.journeys.test_examination import ORDER, STUDY, image, told

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
services = ["echo", "store"]

[[ae]]
title = "WORKSTATION"
host = "127.0.0.1"
port = {port}
services = ["echo"]

[[procedure]]
code = "CTHEAD"
name = "CT of the head"
modality = "CT"

[[route]]
name = "CT to the workstation"
destination = "WORKSTATION"
modalities = ["CT"]
after_match = true
"""
PIXELS = bytes(range(256)) * 8
OTHER = "1.2.826.0.1.79"


def sent(engine: Engine, *numbers: int, study: str = STUDY, **changed: Any) -> None:
    """The scanner sends images of a study, as it knows the patient: spelt in its own way, the sex left out."""
    ae = AE("CT01")
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    assoc = ae.associate("127.0.0.1", engine.port("dicom"), ae_title="ORDERLY")
    assert assoc.is_established
    for number in numbers:
        ds = image(f"{study}.1.{number}")
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study, f"{study}.1"
        ds.Rows, ds.Columns, ds.BitsAllocated, ds.PixelData = 32, 32, 16, PIXELS
        for keyword, value in changed.items():
            setattr(ds, keyword, value)
        assert assoc.send_c_store(ds).Status == 0
    assoc.release()


def states(engine: Engine) -> dict[str, str]:
    """Study Instance UID → how far its forwarding is."""
    return dict(
        engine.rows(
            "SELECT s.study_instance_uid, f.state FROM pacs_forwarding f JOIN pacs_study s ON s.id = f.study_id"
        )
    )


def test_a_study_goes_on_once_it_is_linked_with_what_its_order_corrects(
    engine: Engine, tmp_path: Path
) -> None:
    port, folder = free_port(), tmp_path / "workstation"
    folder.mkdir()
    engine.site = tmp_path / "site.toml"
    engine.site.write_text(SITE.format(port=port))
    engine.environment["ORDERLY_SETTLE_SECONDS"] = "1"
    engine.start()

    def arrived() -> dict[str, Any]:
        found = [dcmread(path) for path in folder.iterdir() if path.is_file()]
        return {str(ds.SOPInstanceUID): ds for ds in found}

    words = [require_peer("storescp"), "-aet", "WORKSTATION", "-od", str(folder), str(port)]
    with serving(words, lambda: connects(port)):
        sent(engine, 1, 2)
        sent(engine, 1, study=OTHER, PatientID="9999", PatientName="Nobody^Known", AccessionNumber="A9")
        engine.wait_for(lambda: states(engine) == {STUDY: "held", OTHER: "held"}, 120)
        assert not arrived()

        assert b"MSA|AA" in told(engine.port("mllp"), ORDER)
        engine.wait_for(lambda: states(engine).get(STUDY) == "sent", 120)
        got = arrived()
        assert set(got) == {f"{STUDY}.1.1", f"{STUDY}.1.2"}
        ((overlay,),) = engine.rows("SELECT attributes FROM pacs_overlay")
        assert overlay["PatientSex"] == "F"
        for ds in got.values():
            assert {keyword: ds.get(keyword) for keyword in overlay} == overlay
            assert ds.PixelData == PIXELS

        sent(engine, 3)  # what comes later goes as well, corrected too
        engine.wait_for(lambda: f"{STUDY}.1.3" in arrived(), 120)
        assert arrived()[f"{STUDY}.1.3"].PatientSex == "F"
        engine.wait_for(lambda: states(engine) == {STUDY: "sent", OTHER: "held"}, 60)
        assert len(arrived()) == 3
