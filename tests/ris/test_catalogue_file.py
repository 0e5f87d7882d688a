"""The procedure catalogue as a CSV file: faults by line, a preview, and the same rows read back."""

from io import StringIO
from pathlib import Path

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import Client

from common.roles import Role
from common.store import unit_of_work
from ris.errors import BadValue
from ris.models import Change, ProcedureDefinition, ScheduledProcedureStep, Station
from ris.services import catalogue, catalogue_file
from tests import factories as make
from tests.ris.making import group, place

pytestmark = pytest.mark.django_db

FILE = """code;name;modality;minutes;stations;step;step_name;step_modality;step_minutes
CTCHEST;CT of the chest;CT;25;CT 1|CT 2;;;;
PETCT;"PET; CT";PT;60;;P1;Low dose CT;CT;10
PETCT;;;;;P2;PET;PT;50
"""


@pytest.fixture(autouse=True)
def stations() -> None:
    Station.objects.create(name="CT 1", ae_title="CT01", modality="CT")
    Station.objects.create(name="CT 2", ae_title="CT02", modality="CT")
    Station.objects.create(name="CT 3", ae_title="CT03", modality="CT")


def take_over(text: str) -> None:
    with unit_of_work("user:1") as unit:
        catalogue_file.take_over(text, unit)


def test_a_file_becomes_the_catalogue_with_steps_and_stations() -> None:
    take_over(FILE)
    chest, pet = ProcedureDefinition.objects.order_by("code")
    assert (chest.name, chest.minutes, chest.stations, chest.steps) == (
        "CT of the chest",
        25,
        ["CT 1", "CT 2"],
        [],
    )
    assert pet.name == "PET; CT"
    assert pet.steps == [
        {"code": "P1", "name": "Low dose CT", "modality": "CT", "minutes": 10},
        {"code": "P2", "name": "PET", "modality": "PT", "minutes": 50},
    ]
    assert Change.objects.filter(what="proceduredefinition", cause="user:1").count() == 2


def test_what_is_written_reads_back_as_it_was() -> None:
    take_over(FILE)
    result = catalogue_file.preview(catalogue_file.dump())
    assert not result.faults and {d.kind for d in result.differences} == {"same"}


def test_the_preview_says_what_is_new_changed_and_left_and_changes_nothing() -> None:
    take_over(FILE)
    ProcedureDefinition.objects.create(code="OLD", name="Old exam")
    again = FILE.replace("25", "30").replace("PETCT", "NEWPET")
    result = catalogue_file.preview(again)
    assert {d.code: d.kind for d in result.differences} == {"CTCHEST": "changed", "NEWPET": "new"}
    assert result.differences[0].changes == {"minutes": (25, 30)}
    assert result.absent == ["OLD", "PETCT"]
    assert ProcedureDefinition.objects.get(code="CTCHEST").minutes == 25


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("CTX,,CT,10,,", (3, "name", "needs a name")),
        (",Nameless,CT,10,,", (3, "code", "no code")),
        ("CTX,X,ct,10,,", (3, "modality", "no modality")),
        ("CTX,X,CT,ten,,", (3, "minutes", "no number of minutes")),
        ("CTX,X,CT,0,,", (3, "minutes", "from 1 to 1440")),
        ("CTX,X,CT,10,CT 9,", (3, "stations", "no station 'CT 9'")),
        ("CTX,X,CT,10,,,,,,", (3, "", "columns")),
        ("A,Again,CT,10,,", (3, "code", "stands in line 2 already")),
    ],
)
def test_a_fault_is_named_with_line_and_column_and_nothing_is_taken_over(
    line: str, fault: tuple[int, str, str]
) -> None:
    text = f"code,name,modality,minutes,stations,step_name\nA,First,CT,10,,\n{line}\n"
    (found,) = catalogue_file.preview(text).faults
    assert (found.line, found.column) == fault[:2] and fault[2] in found.text
    with pytest.raises(BadValue):
        take_over(text)
    assert not ProcedureDefinition.objects.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("code,title\n", "'name'"),
        ("code,name,colour\n", "'colour' is no column"),
        ("a", "'code'"),
    ],
)
def test_a_file_that_is_no_catalogue_is_said_so(text: str, said: str) -> None:
    assert said in catalogue_file.preview(text).faults[0].text


def test_lines_are_counted_as_an_editor_counts_them() -> None:
    text = 'code,name\nA,"over\ntwo lines"\nB,\n'
    assert [fault.line for fault in catalogue_file.preview(text).faults] == [4]


def test_other_encodings_are_refused_with_the_line() -> None:
    assert catalogue_file.decode("\ufeffcode,name\n".encode()) == "code,name\n"
    with pytest.raises(BadValue, match="Line 2"):
        catalogue_file.decode("code,name\nA,Schädel\n".encode("latin-1"))


def test_the_stations_of_the_catalogue_go_to_the_steps_that_name_none() -> None:
    take_over(FILE)
    catalogue.forget()
    place(group(accession="A1", code="CTCHEST"))
    step = ScheduledProcedureStep.objects.get()
    assert step.scheduled_station_names == ["CT 1", "CT 2"]
    assert sorted(step.scheduled_station_ae_titles) == ["CT01", "CT02"]
    place(group(accession="A2", code="CTCHEST", scheduled_station_names=["CT 3"]))
    other = ScheduledProcedureStep.objects.exclude(pk=step.pk).get()
    assert other.scheduled_station_ae_titles == ["CT03"]


def test_the_one_step_of_a_procedure_is_called_as_the_catalogue_says() -> None:
    take_over("code,name,modality,step_name,step_minutes\nMRK,MR of the knee,MR,Knee protocol 3,35\n")
    catalogue.forget()
    place(group(accession="A1", code="MRK", modality=""))
    step = ScheduledProcedureStep.objects.get()
    assert (step.scheduled_procedure_step_description, step.minutes, step.modality) == (
        "Knee protocol 3",
        35,
        "MR",
    )


def test_the_command_shows_first_and_takes_over_when_told(tmp_path: Path) -> None:
    path = tmp_path / "procedures.csv"
    path.write_text(FILE, encoding="utf-8")
    out = StringIO()
    call_command("catalogue", path, stdout=out)
    assert "new CTCHEST" in out.getvalue() and not ProcedureDefinition.objects.exists()
    call_command("catalogue", path, "--apply", stdout=out)
    assert ProcedureDefinition.objects.count() == 2
    call_command("catalogue", tmp_path / "out.csv", "--dump")
    assert not catalogue_file.preview((tmp_path / "out.csv").read_text()).faults
    path.write_text("code,name\nX,\n", encoding="utf-8")
    err = StringIO()
    with pytest.raises(CommandError, match="1 fault"):
        call_command("catalogue", path, "--apply", stdout=out, stderr=err)
    assert "line 2, name" in err.getvalue()


def test_the_page_shows_first_and_takes_over_when_told(client: Client) -> None:
    client.force_login(make.user("ana", Role.ANALYST))
    address = "/admin/ris/proceduredefinition/file/"
    shown = client.post(address, {"file": SimpleUploadedFile("p.csv", FILE.encode())})
    assert "2 new, 0 changed" in shown.content.decode() and not ProcedureDefinition.objects.exists()
    bad = client.post(address, {"file": SimpleUploadedFile("p.csv", b"code,name\nX,\n")})
    assert "needs a name" in bad.content.decode() and "Take it over" not in bad.content.decode()
    done = client.post(address, {"text": FILE, "apply": "1"})
    assert done.status_code == 302 and ProcedureDefinition.objects.count() == 2
    written = client.get("/admin/ris/proceduredefinition/file/dump/")
    assert b"Low dose CT" in written.content
    client.force_login(make.user("cle", Role.CLERK))
    assert client.post(address, {"text": FILE, "apply": "1"}).status_code == 403
