"""The page that describes the worklist says what the code does."""

from dataclasses import fields
from pathlib import Path

import pytest

from config import site
from pacs.models import ApplicationEntity
from tests.conftest import REPOSITORY
from worklist import peers
from worklist.conformance import keys_table
from worklist.peers import Profile

PAGE = (REPOSITORY / "docs" / "worklist.md").read_text(encoding="utf-8")


def test_the_page_lists_every_key_as_it_is_matched() -> None:
    assert keys_table() in PAGE


def test_the_page_names_every_setting_of_a_scanner() -> None:
    missing = [f.name for f in fields(Profile) if f"`{f.name}`" not in PAGE]
    assert not missing


def test_a_site_file_with_a_worklist_setting_that_makes_no_sense_names_its_line(
    db: None, tmp_path: Path
) -> None:
    file = tmp_path / "site.toml"
    file.write_text(
        '[[ae]]\ntitle = "CT01"\nhost = "*"\nservices = ["worklist"]\nworklist = { see = "everything" }\n'
    )
    with pytest.raises(site.SiteError) as refused:
        site.load(file)
    assert "line 5" in str(refused.value)
    assert "worklist.see must be one of all, own" in str(refused.value)
    file.write_text(file.read_text().replace('"everything"', '"own", days_after = 1'))
    site.load(file)
    assert peers.read(ApplicationEntity.objects.get().settings).see == "own"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sees": "own"}, "worklist.sees is no setting"),
        ({"strict": 1}, "true or false"),
        ({"days_before": -1}, "a number from 0"),
        ({"titles": [1]}, "a list of texts"),
        ({"statuses": ["CANCELLED"]}, "'CANCELLED' is no status"),
        ({"character_set": ["LATIN-1"]}, "no Specific Character Set"),
        ({"timezone": "Middle/Earth"}, "must be a zone"),
        ({"lengths": {"Nonsense": 3}}, "'Nonsense' is no DICOM keyword"),
        ({"limit_status": "0000"}, "A700, success"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match="worklist") as refused:
        peers.read({"worklist": settings})
    assert said in str(refused.value)
    assert peers.lenient({"worklist": settings}) == Profile()
