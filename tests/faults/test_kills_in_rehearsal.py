"""kill -9 of each process in the middle of a rehearsed morning: its count still adds up."""

from __future__ import annotations

import subprocess
import sys

import pytest

from config.processes import TABLE
from tests.engine import REPOSITORY, Engine

PATIENTS = 6


@pytest.mark.parametrize("name", [*(process.name for process in TABLE), "database", "supervisor"])
def test_a_morning_adds_up_although_a_process_was_killed_in_it(engine: Engine, name: str) -> None:
    engine.start()
    rehearsal = subprocess.Popen(
        [sys.executable, "manage.py", "rehearse", "--patients", str(PATIENTS), "--seed", "7", "--json"],
        cwd=REPOSITORY,
        env=engine.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        engine.wait_for(lambda: _orders(engine) >= PATIENTS // 2 or rehearsal.poll() is not None, 120)
        assert rehearsal.poll() is None, f"it was over before the kill:\n{rehearsal.communicate()[0][-3000:]}"
        engine.kill_and_wait(name)
        said, _ = rehearsal.communicate(timeout=240)
    finally:
        rehearsal.kill()
    assert rehearsal.returncode == 0, said[-4000:]


def _orders(engine: Engine) -> int:
    return int(engine.rows("SELECT count(*) FROM ris_imagingservicerequest")[0][0])
