"""kill -9 of each process in the middle of a rehearsed morning: its count still adds up."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from config.processes import TABLE
from tests.engine import REPOSITORY, Engine

# When the kill comes: as soon as the process has done some of its work, and more of it is still to come.
ORDERED = "SELECT count(*) >= 2 FROM ris_imagingservicerequest WHERE created_at > %s"
SCANNING = "SELECT count(*) >= 1 FROM ris_performedprocedurestep WHERE created_at > %s"
INDEXING = "SELECT count(*) >= 1 FROM pacs_study WHERE received_at > %s"
TELLING = "SELECT count(*) >= 1 FROM integration_outboxitem WHERE created_at > %s AND state = 'delivered'"
READING = "SELECT count(*) >= 1 FROM ris_reportversion WHERE signed_at > %s"
MOMENTS = {
    "web": READING,
    "mllp": ORDERED,
    "dicom": SCANNING,
    "worker": TELLING,
    "indexer": INDEXING,
    "sweeper": TELLING,
    "database": SCANNING,
    "supervisor": SCANNING,
}


def rehearse(engine: Engine, log: Path) -> subprocess.Popen[str]:
    """A morning with every kind of trouble once, a second between two patients; progress goes to `log`."""
    words = ["--patients", "6", "--trouble", "1", "--seed", "7", "--pace", "0.5", "--slices", "3", "--json"]
    with log.open("w") as progress:
        return subprocess.Popen(
            [sys.executable, "manage.py", "rehearse", *words, "--timeout", "150", "--keep-going"],
            cwd=REPOSITORY,
            env=engine.environment,
            stdout=subprocess.PIPE,
            stderr=progress,
            text=True,
        )


@pytest.mark.parametrize("name", [*(process.name for process in TABLE), "database", "supervisor"])
def test_a_morning_adds_up_although_a_process_was_killed_in_it(
    live_engine: Engine, name: str, tmp_path: Path
) -> None:
    began = datetime.now(UTC)
    log = tmp_path / "rehearsal.log"
    morning = rehearse(live_engine, log)
    try:
        live_engine.wait_for(
            lambda: _is(live_engine, MOMENTS[name], began) or morning.poll() is not None, 120
        )
        assert morning.poll() is None, f"it was over before the kill:\n{log.read_text()[-3000:]}"
        live_engine.kill_and_wait(name)
        said, _ = morning.communicate(timeout=270)
    finally:
        morning.kill()
    assert said, f"the rehearsal said nothing:\n{log.read_text()[-3000:]}"
    summary: dict[str, Any] = json.loads(said.splitlines()[-1])
    assert summary["problems"] == []
    assert morning.returncode == 0
    assert summary["messages"]["applied"] == summary["messages"]["sent"] > 12
    assert summary["instances"]["stored"] == summary["instances"]["sent"] > 4
    assert summary["studies"]["as_the_script_knows"] == summary["studies"]["sent"] == 5


def _is(engine: Engine, statement: str, since: datetime) -> bool:
    return bool(engine.rows(statement, since)[0][0])
