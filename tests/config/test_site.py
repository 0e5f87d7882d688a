"""site.toml: loaded into rows, idempotent, strict, and dumped to what loads again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command

from common.models import Site
from config.site import SiteError, dump, load
from integration.models import Destination, Source
from pacs.models import ApplicationEntity, RoutingRule
from ris.models import ProcedureDefinition, Station

pytestmark = pytest.mark.django_db

WHOLE = """
# A small department
[site]
name = "St. Example"
timezone = "Europe/Berlin"
live = true
uid_root = "1.2.826.0.1"
alert_mail = ["desk@example.org"]

[[source]]
name = "his"
application = "HIS"
facility = "HOSP"
address = "10.1.0.0/16"
policy = "stored"
accession_number = "OBR-18, ORC-3.1, make"

[[destination]]
name = "his"
host = "10.1.0.7"
port = 2575
version = "2.5.1"
messages = ["ORU", "ORM"]
ack_seconds = 10

[[ae]]
title = "CT01"
host = "10.1.0.11"
port = 104
services = ["echo", "store", "worklist", "mpps"]

[[ae]]
title = "CT01"
host = "10.1.0.12"
services = ["echo"]

[[station]]
name = "CT room 1"
ae = "CT01"
modality = "CT"
room = "1.107"

[[procedure]]
code = "CTCHEST"
name = "CT of the chest, \\"low dose\\" Größe"
modality = "CT"
minutes = 15
steps = [{ code = "CTC", name = "Chest", minutes = 15 }]

[[route]]
name = "CT to the workstation"
destination = "CT01"
modalities = ["CT"]
after_match = true
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        path = tmp_path / "site.toml"
        path.write_text(text, encoding="utf-8")
        return path

    yield write
    (Path(settings.DATA_DIR) / "site.json").unlink(missing_ok=True)


def test_a_site_file_becomes_rows(write: Any) -> None:
    done = load(write(WHOLE))
    assert done["ae"].created == 2
    site = Site.objects.get()
    assert (site.name, site.timezone, site.live) == ("St. Example", "Europe/Berlin", True)
    assert site.settings == {"alert_mail": ["desk@example.org"]}
    source = Source.objects.get(name="his")
    assert source.profile == {"policy": "stored", "accession_number": "OBR-18, ORC-3.1, make"}
    assert Destination.objects.get(name="his").settings == {"ack_seconds": 10}
    assert ApplicationEntity.objects.filter(title="CT01").count() == 2
    assert Station.objects.get(name="CT room 1").ae_title == "CT01"
    route = RoutingRule.objects.get(name="CT to the workstation")
    assert (route.destination.title, route.modalities, route.after_match) == ("CT01", ["CT"], True)
    assert ProcedureDefinition.objects.get(code="CTCHEST").steps[0]["code"] == "CTC"


def test_loading_twice_changes_nothing(write: Any) -> None:
    path = write(WHOLE)
    load(path)
    again = load(path)
    assert all((one.created, one.changed) == (0, 0) for one in again.values())


def test_a_changed_profile_is_a_new_version_of_the_source(write: Any) -> None:
    load(write(WHOLE))
    load(write(WHOLE.replace('policy = "stored"', 'policy = "applied"')))
    assert Source.objects.get(name="his").version == 2


def test_a_dump_loads_back_to_the_same_rows(write: Any) -> None:
    load(write(WHOLE))
    text = dump()
    again = load(write(text))
    assert all((one.created, one.changed) == (0, 0) for one in again.values()), text


def test_a_dump_leaves_a_rehearsals_own_rows_out(write: Any) -> None:
    ApplicationEntity.objects.create(title="REHEARSAL", temporary=True)
    assert "REHEARSAL" not in dump()


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ('[site]\nname = "x"\ncolour = "red"\n', 3, "unknown key 'colour'"),
        (
            '[[ae]]\ntitle = "A"\nservices = ["echo"]\n\n[[ae]]\ntitle = "B"\nservices = ["echo"]\nport = "104"\n',
            8,
            "port must be a whole",
        ),
        ('[[ae]]\ntitle = "A"\nservices = ["echo"]\n[[ae]]\nhost = "b"\n', 4, "needs a title"),
        ('[[scanner]]\nname = "x"\n', 1, "unknown section 'scanner'"),
        ('[[source]]\nname = "x"\nacession_number = "OBR-18"\n', 3, "unknown key 'acession_number'"),
        ('[[source]]\nname = "x"\npolicy = "maybe"\n', 3, "must be one of applied, stored"),
        ('[[destination]]\nname = "x"\nack_seconds = "soon"\n', 3, "ack_seconds: must be a number"),
        ('[site]\n\ntimezone = "Europe/Nowhere"\n', 3, "no time zone 'Europe/Nowhere'"),
        ('[site]\nuid_root = "1.02"\n', 2, "uid_root must be a UID"),
        ('[[route]]\nname = "x"\ndestination = "WS"\n', 3, "nothing is called 'WS'"),
        ('[[route]]\nname = "x"\n', 1, "needs a destination"),
        ('[[route]]\nname = "x"\ndestination = "WS"\nto = 1\n', 4, "unknown key|nothing is called"),
        ('[station]\nname = "x"\n', 1, "two brackets"),
        ('[[ae]]\ntitle = "MUCH_TOO_LONG_A_TITLE"\nservices = ["echo"]\n', 2, "at most 16 characters"),
    ],
)
def test_a_mistake_names_its_line_and_changes_nothing(write: Any, text: str, line: int, says: str) -> None:
    with pytest.raises(SiteError, match=f"line {line}: .*{says}"):
        load(write(text))
    assert not Site.objects.exists()
    assert not ApplicationEntity.objects.exists()


def test_a_file_that_is_no_toml_is_an_error_of_the_command(write: Any) -> None:
    with pytest.raises(CommandError, match="no TOML file"):
        call_command("site", "load", str(write("[site\n")))


def test_processes_that_start_later_know_the_time_zone_before_they_ask_the_database(write: Any) -> None:
    load(write(WHOLE))
    assert "Europe/Berlin" in (Path(settings.DATA_DIR) / "site.json").read_text()
