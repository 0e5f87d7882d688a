"""A second client, of another maker: dcmjs-dimse asks the worklist and reports what it performed."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ris.models import PerformedProcedureStep, ScheduledProcedureStep
from tests.conftest import REPOSITORY, missing, require_peer
from tests.ris.making import group, place, who
from tests.worklist.asking import door

pytestmark = pytest.mark.django_db(transaction=True)

PEER = REPOSITORY / "tests" / "peers" / "dcmjs"
INSTALLED = REPOSITORY / "var" / "peers" / "dcmjs"
"""Outside of the sources, and kept between runs."""


@pytest.fixture(scope="module")
def client() -> Path:
    """The client's folder, with its package installed."""
    require_peer("node")
    npm = require_peer("npm")
    INSTALLED.mkdir(parents=True, exist_ok=True)
    for path in PEER.iterdir():
        shutil.copy(path, INSTALLED)
    if not (INSTALLED / "node_modules" / "dcmjs-dimse").is_dir():
        done = subprocess.run(
            [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"],
            cwd=INSTALLED,
            capture_output=True,
            timeout=240,
        )
        if done.returncode:
            missing("dcmjs-dimse", f"npm install in {PEER.relative_to(REPOSITORY)}")
    return INSTALLED


def ask(client: Path, port: int, keys: dict[str, Any]) -> dict[str, Any]:
    """What the client says: the answers it got, and every final status."""
    done = subprocess.run(
        [require_peer("node"), "ask.js", str(port), "ORDERLY", "CT01", json.dumps(keys)],
        cwd=client,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


KEYS = {
    "PatientName": "",
    "PatientID": "",
    "AccessionNumber": "",
    "StudyInstanceUID": "",
    "RequestedProcedureID": "",
    "step": {"Modality": "CT", "ScheduledProcedureStepID": "", "ScheduledProcedureStepStartDate": "20260302"},
}


def test_it_finds_its_patient_and_reports_the_examination(client: Path) -> None:
    place(group(accession="A1", rp="RP1", sps="S1", uid="1.2.3.4"), patient=who("4711"))
    place(group(accession="A2", rp="RP2", sps="S2", uid="1.2.3.5", modality="MR"), patient=who("4712"))
    with door() as port:
        said = ask(client, port, KEYS)
        assert [answer["AccessionNumber"] for answer in said["answers"]] == ["A1"]
        assert said["statuses"] == [0, 0, 0]
        assert ask(client, port, KEYS)["answers"] == []
    step = ScheduledProcedureStep.objects.get(scheduled_procedure_step_id="S1")
    assert step.status == "COMPLETED"
    performed = PerformedProcedureStep.objects.get()
    assert (performed.status, performed.problem) == ("COMPLETED", "")


def test_a_key_that_cannot_be_matched_is_refused_to_it(client: Path) -> None:
    with door() as port:
        said = ask(client, port, {**KEYS, "step": {"ScheduledProcedureStepStartDate": "2026*"}})
    assert said["statuses"] == [0xA900]
