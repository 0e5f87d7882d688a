"""`manage.py site load FILE` and `manage.py site dump FILE`: what differs from site to site."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from config.site import SiteError, dump, load


class Command(BaseCommand):
    help = "Load a site.toml into the database, or write the database's site as one (- is standard output)."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("action", choices=["load", "dump"])
        parser.add_argument("file", type=Path, metavar="FILE")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["action"] == "dump":
            self._dump(options["file"])
            return
        try:
            done = load(options["file"])
        except SiteError as trouble:
            raise CommandError(str(trouble)) from None
        if options["verbosity"]:
            for section, count in done.items():
                self.stdout.write(
                    f"{section}: {count.created} new, {count.changed} changed, {count.unchanged} as they were"
                )
            self.stdout.write("Time zone and UID root apply to processes started from now on.")

    def _dump(self, path: Path) -> None:
        if str(path) == "-":
            self.stdout.write(dump(), ending="")
        else:
            path.write_text(dump(), encoding="utf-8")
