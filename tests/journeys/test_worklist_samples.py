"""The worklist, end to end: orders of others come in over MLLP, and DCMTK's findscu finds them in its next query."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread

from config import site
from integration import sources
from integration.hl7v2.framing import encode
from integration.hl7v2.listener import Limits
from ris.models import ScheduledProcedureStep
from tests.conftest import require_peer, sample
from tests.integration.hl7v2.conftest import Client, Door
from tests.worklist.asking import door as dicom_door

pytestmark = pytest.mark.django_db(transaction=True)

NUMBERS = range(1, 11)
QUERIES = range(13)

# The items are dated 1993 to 1996: no day window. The ORM form names no AE title: stations by modality.
SITE = """
[site]
name = "Samples"
timezone = "UTC"

[[source]]
name = "oracle"
application = "ORACLE"

[[ae]]
title = "*"
host = "*"
services = ["echo", "worklist"]

[[station]]
name = "MR-A"
ae = "AA32"
modality = "MR"

[[station]]
name = "CT-A"
ae = "AA33"
modality = "CT"

[[station]]
name = "CR-A"
ae = "CC56"
modality = "CR"

[[station]]
name = "US-A"
ae = "US01"
modality = "US"

[[station]]
name = "NM-A"
ae = "AZ01"
modality = "NM"
"""


@pytest.fixture
def mllp(tmp_path: Path) -> Iterator[Client]:
    """A connection to a listener of a site that has just been set up."""
    sources.forget()
    file = tmp_path / "site.toml"
    file.write_text(SITE)
    site.load(file)
    listener = Door(Limits())
    client = Client(listener.port)
    yield client
    client.socket.close()
    listener.stop()


def send(mllp: Client, message: bytes) -> str:
    """Send one message and wait for its acknowledgement: MSA-1."""
    mllp.write(encode(message))
    ack = mllp.read_raw()
    assert ack is not None
    return next(s for s in ack.split(b"\r") if s.startswith(b"MSA")).split(b"|")[1].decode()


def ask(port: int, query: Path, tmp_path: Path) -> list[str]:
    """What findscu is answered: of each response its step ID, else procedure ID, else patient name."""
    folder = tmp_path / f"answers-{query.stem}"
    folder.mkdir()
    encoded = folder / "query.dcm"
    subprocess.run([require_peer("dump2dcm"), "-q", "+E", str(query), str(encoded)], check=True)
    done = subprocess.run(
        [
            *(require_peer("findscu"), "-W", "-X", "-od", str(folder), "-aec", "ORDERLY", "-aet", "FINDSCU"),
            *("127.0.0.1", str(port), str(encoded)),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said = []
    for path in sorted(folder.glob("rsp*.dcm")):
        answer = dcmread(path, force=True)
        step = answer.get("ScheduledProcedureStepSequence", [{}])[0]
        said.append(
            str(
                step.get("ScheduledProcedureStepID")
                or answer.get("RequestedProcedureID")
                or answer.get("PatientName")
            )
        )
    return sorted(said)


@pytest.mark.parametrize("form", ["omi", "orm"])
def test_the_ten_sample_items_are_answered_as_by_two_other_servers(
    mllp: Client, tmp_path: Path, form: str
) -> None:
    expected = json.loads(sample("mwl", "expected", "oracle.OFFIS.json").read_text())
    for number in NUMBERS:
        assert send(mllp, sample("mwl", f"wklist{number}.{form}.hl7").read_bytes()) == "AA"
    assert ScheduledProcedureStep.objects.count() == 10
    assert not ScheduledProcedureStep.objects.filter(scheduled_station_ae_titles=[]).exists()
    with dicom_door() as port:
        for number in QUERIES:
            query = sample("mwl", "queries", f"wlistqry{number}.dump")
            wanted = sorted(expected[f"dcmtk.wlistqry{number}"]["wlmscpfs"])
            assert ask(port, query, tmp_path) == wanted, query.name


KEYED = """
(0008,0050) SH []
(0010,0010) PN [{name}]
(0010,0020) LO [{patient_id}]
(0040,0100) SQ
(fffe,e000) -
(0008,0060) CS [{modality}]
(0040,0001) AE [{ae}]
(0040,0002) DA [{date}]
(0040,0003) TM [{time}]
(0040,0009) SH []
(fffe,e00d) -
(fffe,e0dd) -
"""


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({}, True),
        ({"patient_id": "AV35674"}, True),
        ({"patient_id": "AV3567"}, False),
        ({"name": "viv*"}, True),
        ({"name": "VIVALDI^ANTONI?"}, True),
        ({"modality": "MR", "ae": "AA32"}, True),
        ({"modality": "MR", "ae": "AA33"}, True),
        ({"modality": "CT"}, False),
        ({"date": "19951015"}, True),
        ({"date": "19951014-19951016", "time": "085606-085608"}, True),
        ({"date": "19951015-19951016", "time": "085608-235959"}, False),
        ({"time": "085607"}, True),
    ],
)
def test_an_order_is_found_in_the_very_next_query_after_its_acknowledgement(
    mllp: Client, tmp_path: Path, keys: dict[str, str], found: bool
) -> None:
    blank = dict.fromkeys(("name", "patient_id", "modality", "ae", "date", "time"), "")
    query = tmp_path / "query.dump"
    query.write_text(KEYED.format(**{**blank, **keys}))
    with dicom_door() as port:
        assert send(mllp, sample("mwl", "wklist1.omi.hl7").read_bytes()) == "AA"
        assert ask(port, query, tmp_path) == (["SPD3445"] if found else [])


def test_a_cancelled_order_is_gone_in_the_next_query(mllp: Client, tmp_path: Path) -> None:
    order = sample("mwl", "wklist1.omi.hl7").read_bytes()
    query = sample("mwl", "queries", "wlistqry3.dump")
    with dicom_door() as port:
        assert send(mllp, order) == "AA"
        cancel = order.replace(b"ORC|NW|", b"ORC|CA|").replace(b"|OFFIS0001|P", b"|OFFIS0001C|P")
        assert send(mllp, cancel.replace(b"||SC||", b"||CA||")) == "AA"
        assert ask(port, query, tmp_path) == []
