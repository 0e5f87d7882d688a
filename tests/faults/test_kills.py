"""kill -9 of each process of a real engine: it comes back, on the same port, with the same rows."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from config.processes import TABLE
from tests.engine import REPOSITORY, Engine


@pytest.mark.parametrize("name", [process.name for process in TABLE])
def test_a_killed_process_is_replaced_and_the_engine_is_ready_again(live_engine: Engine, name: str) -> None:
    ports = live_engine.run["ports"]
    live_engine.kill_and_wait(name)
    assert live_engine.run["processes"][name]["restarts"] >= 1
    assert live_engine.run["ports"] == ports


def test_a_killed_database_comes_back_with_its_rows(live_engine: Engine) -> None:
    live_engine.rows("CREATE TABLE IF NOT EXISTS kept_through_kill (n int)")
    live_engine.rows("INSERT INTO kept_through_kill SELECT generate_series(1, 500)")
    live_engine.kill_and_wait("database")
    assert live_engine.rows("SELECT count(*) FROM kept_through_kill") == [(500,)]


def test_after_a_killed_supervisor_nothing_is_left_and_serve_starts_again(engine: Engine) -> None:
    engine.start()
    engine.rows("CREATE TABLE kept AS SELECT 7 AS n")
    processes = [said["pid"] for said in engine.run["processes"].values()]
    engine.kill("supervisor")
    engine.wait_for(lambda: not any(_lives(pid) for pid in processes), 60)
    engine.start()
    assert engine.rows("SELECT n FROM kept") == [(7,)]


def test_sigterm_ends_everything_cleanly_and_a_second_start_finds_its_data(engine: Engine) -> None:
    engine.start()
    token = engine.manage("token", "create", "monitor", "--role", "analyst").stdout.strip()
    assert token.startswith("ord_")
    assert engine.stop() == 0
    assert not (engine.data_dir / "run.json").exists()
    engine.start()
    assert "monitor" in engine.manage("token", "list").stdout


def test_a_second_serve_on_the_same_data_is_refused(live_engine: Engine) -> None:
    second = live_engine.manage(
        "serve", "--http", "0", "--mllp", "0", "--dicom", "0", check=False, timeout=60
    )
    assert second.returncode == 1
    assert f"already runs on {live_engine.data_dir}" in second.stderr


def test_doctor_finds_a_running_engine_well(live_engine: Engine) -> None:
    live_engine.wait_ready()
    lines = [
        json.loads(line) for line in live_engine.manage("doctor", "--json", check=False).stdout.splitlines()
    ]
    ill = [line for line in lines if not line["ok"] and line["layer"] not in ("disk", "fsync")]
    assert not ill
    assert {"database", "migrations", "disk", "fsync", "ports", "processes", "queues"} <= {
        one["layer"] for one in lines
    }


def test_a_taken_port_is_named_with_the_way_out(live_engine: Engine, engine: Engine) -> None:
    taken = str(live_engine.port("http"))
    tried = subprocess.run(
        [sys.executable, "manage.py", "serve", "--http", taken, "--mllp", "0", "--dicom", "0"],
        cwd=REPOSITORY,
        env=engine.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert tried.returncode == 1
    assert f":{taken} (http) is taken" in tried.stderr
    assert "--http" in tried.stderr


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
