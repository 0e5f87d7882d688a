"""`manage.py catalogue FILE`: what a CSV file would change in the procedure catalogue; with --apply it does."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from common import cause
from common.store import unit_of_work
from ris.errors import BadValue
from ris.services import catalogue_file


class Command(BaseCommand):
    help = (
        "Compare a CSV file with the procedure catalogue, and with --apply take it over; --dump writes one."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path, metavar="FILE", help="- with --dump: standard output")
        parser.add_argument("--apply", action="store_true", help="take it over; nothing when it has faults")
        parser.add_argument("--dump", action="store_true", help="write the catalogue into the file")

    def handle(self, *args: Any, **options: Any) -> None:
        path: Path = options["file"]
        if options["dump"]:
            if str(path) == "-":
                self.stdout.write(catalogue_file.dump(), ending="")
            else:
                path.write_text(catalogue_file.dump(), encoding="utf-8")
            return
        try:
            text = catalogue_file.decode(path.read_bytes())
        except OSError as trouble:
            raise CommandError(f"{path} cannot be read: {trouble.strerror}.") from None
        except BadValue as trouble:
            raise CommandError(f"{path}: {trouble.text}") from None
        result = catalogue_file.preview(text)
        self._say(result)
        if result.faults:
            raise CommandError(f"{path} has {len(result.faults)} fault(s); nothing was changed.")
        if options["apply"]:
            with unit_of_work(cause.system("catalogue import")) as unit:
                catalogue_file.take_over(text, unit)
            self.stdout.write("Taken over.")
        else:
            self.stdout.write("Nothing was changed; --apply takes it over.")

    def _say(self, result: catalogue_file.Preview) -> None:
        for fault in result.faults:
            self.stderr.write(str(fault))
        for one in result.differences:
            if one.kind != "same":
                said = "; ".join(f"{name}: {was} → {now}" for name, was, now in one.said)
                self.stdout.write(
                    f"line {one.line}: {one.kind} {one.code} {one.name}" + (f" ({said})" if said else "")
                )
        self.stdout.write(
            f"{result.count('new')} new, {result.count('changed')} changed, {result.count('same')} as they were, "
            f"{len(result.absent)} not in the file (they stay)"
        )
