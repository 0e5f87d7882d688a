"""What monitors see: `/healthz` and `/readyz` without login, `/metrics` from loopback or by token."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.test import Client

from common.clock import now
from common.process import read_run_file, run_file
from common.roles import create_token
from integration.models import Message

pytestmark = pytest.mark.django_db

BEFORE = (now() - timedelta(minutes=2)).isoformat()


@pytest.fixture
def run_json() -> Any:
    path = run_file(settings.DATA_DIR)

    def write(pid: int, **states: str) -> Path:
        processes = {
            name: {"pid": 1, "state": state, "restarts": 2, "down_since": BEFORE}
            for name, state in states.items()
        }
        path.write_text(json.dumps({"pid": pid, "ports": {}, "processes": processes}))
        return path

    yield write
    path.unlink(missing_ok=True)


def test_healthz_needs_no_login(client: Client) -> None:
    assert client.get("/healthz").status_code == 200


def test_readyz_waits_for_every_process(client: Client, run_json: Any) -> None:
    run_json(os.getpid(), web="ready", mllp="starting")
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["processes"] == {"web": "ready", "mllp": "starting"}
    run_json(os.getpid(), web="ready", mllp="ready")
    assert client.get("/readyz").status_code == 200


def test_a_run_file_of_a_dead_supervisor_counts_for_nothing(run_json: Any) -> None:
    run_json(2**22 + 1, web="ready")  # above the largest process id
    assert read_run_file(settings.DATA_DIR) is None


def test_metrics_are_for_this_machine(client: Client) -> None:
    assert client.get("/metrics").status_code == 200
    assert client.get("/metrics", REMOTE_ADDR="10.0.0.1").status_code == 403


def test_a_proxy_on_this_machine_does_not_open_metrics_to_others(client: Client) -> None:
    assert client.get("/metrics", headers={"X-Forwarded-For": "10.0.0.1"}).status_code == 403


@pytest.mark.parametrize(("role", "status"), [("analyst", 200), ("administrator", 200), ("referrer", 403)])
def test_a_token_opens_metrics_from_elsewhere_for_those_who_run_the_engine(
    client: Client, role: str, status: int
) -> None:
    token = create_token("monitor", role)
    answer = client.get("/metrics", REMOTE_ADDR="10.0.0.1", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == status


def test_metrics_tell_what_waits_and_for_how_long(client: Client, run_json: Any) -> None:
    run_json(os.getpid(), web="ready", mllp="waiting")
    Message.objects.create(
        received_at=now() - timedelta(hours=1), state="refused", peer="127.0.0.1:1", raw=b"x"
    )
    text = client.get("/metrics").content.decode()
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['orderly_queue_waiting{part="refused",queue="inbox"}'] == "1.0"
    assert float(lines['orderly_queue_oldest_seconds{part="refused",queue="inbox"}']) >= 3600
    assert lines['orderly_process_up{process="mllp"}'] == "0.0"
    assert lines['orderly_process_restarts_total{process="mllp"}'] == "2.0"
    assert float(lines['orderly_queue_oldest_seconds{part="mllp",queue="processes"}']) >= 120
    assert lines["orderly_metrics_failed"] == "0.0"


def test_metrics_carry_no_health_data(client: Client) -> None:
    Message.objects.create(
        received_at=now(), state="refused", peer="127.0.0.1:1", raw=b"PID|1||CANARYID", control_id="CANARYID"
    )
    assert b"CANARY" not in client.get("/metrics").content
