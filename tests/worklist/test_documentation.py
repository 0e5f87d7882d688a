"""The page that describes the worklist says what the code does."""

from dataclasses import fields

from tests.conftest import REPOSITORY
from worklist.conformance import keys_table
from worklist.peers import Profile

PAGE = (REPOSITORY / "docs" / "worklist.md").read_text(encoding="utf-8")


def test_the_page_lists_every_key_as_it_is_matched() -> None:
    assert keys_table() in PAGE


def test_the_page_names_every_setting_of_a_scanner() -> None:
    missing = [f.name for f in fields(Profile) if f"`{f.name}`" not in PAGE]
    assert not missing
