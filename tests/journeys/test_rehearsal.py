"""A rehearsed morning against a real engine, with every kind of trouble: it adds up, and leaves the stage clean."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engine import REPOSITORY, Engine

SMALL = ("--slices", "3", "--timeout", "90", "--json")


@pytest.fixture(scope="module")
def troubled(live_engine: Engine) -> dict[str, Any]:
    """The summary of a morning in which each kind of trouble happens to one of six patients."""
    done = live_engine.manage(
        "rehearse", "--patients", "6", "--trouble", "1", "--seed", "4", *SMALL, timeout=280
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_everything_is_accounted_for(troubled: dict[str, Any]) -> None:
    assert troubled["problems"] == []
    assert troubled["ok"] is True
    kinds = {"duplicate", "cancelled", "accession", "neighbour", "merge", "stranger"}
    assert troubled["rehearsal"]["troubles"] == dict.fromkeys(kinds, 1)


def test_messages_are_applied_once_although_one_was_sent_twice(troubled: dict[str, Any]) -> None:
    messages = troubled["messages"]
    assert messages["sent"] == messages["acknowledged"] == messages["applied"]
    assert messages["repeated"] == 1
    assert {"ORM^O01", "OMI^O23", "OMG^O19", "ADT^A40"} <= messages["by_type"].keys()
    orders = troubled["orders"]
    assert orders["placed"] == orders["found"] == 6  # five patients' and a neighbour's
    assert orders["by_message"].keys() == {"OMG", "OMI", "ORM"}
    assert orders["by_status"] == {"CANCELED": 2, "COMPLETED": 4}


def test_studies_are_linked_as_the_script_knows_and_no_other_way(troubled: dict[str, Any]) -> None:
    studies = troubled["studies"]
    assert studies["linked_by"] == {"study_instance_uid": 2, "clerk": 2}
    assert (studies["sent"], studies["as_the_script_knows"], studies["open_cases"]) == (5, 5, 1)
    assert troubled["instances"]["sent"] == troubled["instances"]["stored"] > 0
    assert troubled["worklist"]["cancelled_gone"] == 1


def test_reports_and_status_reach_the_his_and_fhir(troubled: dict[str, Any]) -> None:
    assert troubled["reports"]["delivered"] == troubled["reports"]["signed"] >= 4
    assert troubled["order_status"]["by_status"] == {"IP": 2, "CM": 4}
    assert troubled["fhir"]["resources"]["DiagnosticReport"] == 4
    assert troubled["fhir"]["resources"]["ImagingStudy"] == 4
    assert troubled["viewing"]["rendered"] == 4


def test_each_count_has_its_median_and_worst_latency(troubled: dict[str, Any]) -> None:
    for part in (
        "messages",
        "worklist",
        "instances",
        "studies",
        "viewing",
        "reports",
        "order_status",
        "fhir",
    ):
        found = troubled[part]["latency_ms"]
        assert 0 < found["median"] <= found["worst"], part


def test_the_stage_is_cleared_afterwards(live_engine: Engine, troubled: dict[str, Any]) -> None:
    rows = live_engine.rows
    assert rows("SELECT count(*) FROM pacs_applicationentity WHERE temporary") == [(0,)]
    assert rows("SELECT count(*) FROM ris_station WHERE temporary") == [(0,)]
    assert rows("SELECT count(*) FROM ris_proceduredefinition WHERE temporary") == [(0,)]
    assert rows("SELECT DISTINCT enabled FROM integration_source WHERE temporary") == [(False,)]
    assert rows("SELECT DISTINCT enabled FROM integration_destination WHERE temporary") == [(False,)]
    assert rows("SELECT count(*) FROM integration_outboxitem WHERE state IN ('queued', 'parked')") == [(0,)]
    assert rows("SELECT DISTINCT is_active FROM auth_user WHERE username LIKE 'rehearsal.%%'") == [(False,)]
    assert rows("SELECT count(*) FROM common_apitoken") == [(0,)]


def test_a_second_morning_with_the_same_seed_adds_up_on_the_same_database(
    live_engine: Engine, troubled: dict[str, Any]
) -> None:
    done = live_engine.manage(
        "rehearse", "--patients", "2", "--trouble", "0", "--seed", "4", *SMALL, timeout=280
    )
    again = json.loads(done.stdout.splitlines()[-1])
    assert again["problems"] == []
    assert again["rehearsal"]["run"] != troubled["rehearsal"]["run"]
    assert again["studies"]["linked_by"] == {"study_instance_uid": 2}


def test_a_rehearsal_that_is_told_to_stop_clears_the_stage_and_the_worklist(live_engine: Engine) -> None:
    rows = live_engine.rows
    words = ["--patients", "30", "--pace", "0.5", "--slices", "3"]
    morning = subprocess.Popen(
        [sys.executable, "manage.py", "rehearse", *words],
        cwd=REPOSITORY,
        env=live_engine.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        live_engine.wait_for(
            lambda: rows("SELECT count(*) FROM worklist_worklistitem WHERE waiting")[0][0], 60
        )
        morning.terminate()
        said, _ = morning.communicate(timeout=60)
    finally:
        morning.kill()
    assert morning.returncode == 1
    assert "was stopped" in said
    assert rows("SELECT count(*) FROM worklist_worklistitem WHERE waiting") == [(0,)]
    assert rows("SELECT count(*) FROM pacs_applicationentity WHERE temporary") == [(0,)]


def test_a_live_site_is_refused(live_engine: Engine, tmp_path: Path) -> None:
    live = tmp_path / "live.toml"
    live.write_text("[site]\nlive = true\n")
    live_engine.manage("site", "load", str(live))
    try:
        refused = live_engine.manage("rehearse", "--patients", "1", check=False, timeout=120)
    finally:
        live.write_text("[site]\nlive = false\n")
        live_engine.manage("site", "load", str(live))
    assert refused.returncode == 1
    assert "This site is live" in refused.stderr
    assert live_engine.rows("SELECT count(*) FROM pacs_applicationentity WHERE temporary") == [(0,)]


def test_without_an_engine_it_says_how_to_start_one(engine: Engine) -> None:
    refused: subprocess.CompletedProcess[str] = engine.manage(
        "rehearse", "--patients", "1", check=False, timeout=120
    )
    assert refused.returncode == 1
    assert "manage.py serve" in refused.stderr
