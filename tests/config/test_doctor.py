"""The doctor: ill things are found and named, and no illness hides another."""

from __future__ import annotations

import json
import socket
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import call_command

from common.clock import now
from config.doctor import Check, checks
from integration.models import Destination, Message
from pacs.models import ApplicationEntity
from tests.config.toys import echo_scp

pytestmark = pytest.mark.django_db


def found() -> dict[tuple[str, str], Check]:
    return {(check.layer, check.name): check for check in checks()}


def test_every_layer_is_looked_at_even_when_nothing_runs() -> None:
    seen = found()
    assert seen["database", "server"].ok
    assert seen["migrations", "schema"].ok
    assert seen["disk", "data"].facts["free_bytes"] > 0
    assert seen["fsync", "files"].facts["ms"] > 0
    assert not seen["ports", "serve"].ok


def test_a_database_that_may_lose_commits_is_ill() -> None:
    check = found()["fsync", "database"]  # the tests' own cluster runs with fsync off
    assert not check.ok
    assert "fsync" in check.detail


def test_a_peer_that_answers_c_echo_is_well_and_a_silent_one_is_ill() -> None:
    with echo_scp() as port, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, and nobody listens
        ApplicationEntity.objects.create(title="GOOD", host="127.0.0.1", port=port, services=["echo"])
        ApplicationEntity.objects.create(
            title="GONE", host="127.0.0.1", port=closed.getsockname()[1], services=["echo"]
        )
        seen = found()
    assert seen["peers", "GOOD"].ok
    assert seen["peers", "GOOD"].detail.endswith("Success")
    assert not seen["peers", "GONE"].ok


def test_something_that_listens_but_speaks_no_dicom_is_ill() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        ApplicationEntity.objects.create(
            title="MUTE", host="127.0.0.1", port=mute.getsockname()[1], services=["echo"]
        )
        assert not found()["peers", "MUTE"].ok


def test_a_destination_that_accepts_connections_is_well() -> None:
    with socket.create_server(("127.0.0.1", 0)) as his:
        Destination.objects.create(name="his", host="127.0.0.1", port=his.getsockname()[1], messages=["ORU"])
        assert found()["peers", "his"].ok


def test_a_queue_whose_oldest_waits_too_long_is_ill() -> None:
    Message.objects.create(
        received_at=now() - timedelta(days=2), state="parked", peer="127.0.0.1:1", raw=b"x"
    )
    check = found()["queues", "inbox"]
    assert not check.ok
    assert check.facts["waiting"] == 1


def test_json_is_one_object_a_line_and_illness_is_the_exit_status() -> None:
    out = StringIO()
    with pytest.raises(SystemExit) as ended:
        call_command("doctor", "--json", stdout=out)
    assert ended.value.code == 1
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert all(set(line) == {"layer", "name", "ok", "detail", "facts"} for line in lines)
