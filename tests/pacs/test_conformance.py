"""The conformance tables: made from what is served, and those of docs/dicom.md are up to date."""

from __future__ import annotations

import re
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from config.management.commands import conformance as conformance_command
from pacs import conformance
from pacs.dimse.admission import Limits
from pacs.services.store import storage_classes

PAGE = conformance_command.PAGE


def test_the_tables_of_the_page_are_those_of_the_code() -> None:
    call_command("conformance", "--check")
    named = re.findall(r"<!-- table: (\w+),", PAGE.read_text(encoding="utf-8"))
    assert sorted(named) == sorted(conformance.TABLES_OF_PAGES)


def test_a_page_that_is_out_of_date_is_told_and_brought_up_to_date(tmp_path: Any, monkeypatch: Any) -> None:
    page = tmp_path / "dicom.md"
    page.write_text(
        PAGE.read_text(encoding="utf-8").replace(f"| {Limits().total} |", "| 7 |"), encoding="utf-8"
    )
    monkeypatch.setattr(conformance_command, "PAGE", page)
    with pytest.raises(CommandError, match="--write"):
        call_command("conformance", "--check")
    call_command("conformance", "--write")
    assert page.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


def test_every_class_that_is_served_stands_in_the_statement_and_private_ones_of_the_site(
    settings: Any,
) -> None:
    settings.ORDERLY_PRIVATE_STORAGE = ["1.3.46.670589.11.0.0.12.1"]
    out = StringIO()
    call_command("conformance", stdout=out)
    said = out.getvalue()
    for entry in conformance.registry():
        assert f"| {entry.sop_class_uid} |" in said
        assert entry.service == "store" or all(name in said for name in entry.handlers)
    assert all(f"| {uid} |" in said for uid in storage_classes())
    assert "1.3.46.670589.11.0.0.12.1" in said and settings.ORDERLY_AE_TITLE in said


def test_a_table_that_nobody_makes_is_an_error() -> None:
    with pytest.raises(conformance.NoSuchTable, match="keys"):
        conformance.filled("<!-- table: none, made by `manage.py conformance --write` -->\n<!-- end -->")
