"""`manage.py conformance`: the DICOM conformance tables, from the code; `--write` puts them into docs/dicom.md."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from pacs import conformance

PAGE = Path(settings.BASE_DIR) / "docs" / "dicom.md"


class Command(BaseCommand):
    help = "print the DICOM conformance tables of this installation; --write: bring docs/dicom.md up to date."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--write", action="store_true", help="make the tables of docs/dicom.md anew")
        parser.add_argument("--check", action="store_true", help="fail when docs/dicom.md is out of date")

    def handle(self, *args: Any, **options: Any) -> None:
        if not options["write"] and not options["check"]:
            self.stdout.write(conformance.statement(), ending="")
            return
        said = PAGE.read_text(encoding="utf-8")
        made = conformance.filled(said)
        if options["check"] and made != said:
            raise CommandError("docs/dicom.md is out of date: run `manage.py conformance --write`.")
        PAGE.write_text(made, encoding="utf-8")
