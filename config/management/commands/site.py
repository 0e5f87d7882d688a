"""`manage.py site load FILE` and `manage.py site dump FILE`: what differs from site to site."""

from __future__ import annotations

import os
import signal
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from common.models import Site
from common.process import read_run_file
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
        before = _read_at_start()
        try:
            done = load(options["file"])
        except SiteError as trouble:
            raise CommandError(str(trouble)) from None
        if options["verbosity"]:
            for section, count in done.items():
                self.stdout.write(
                    f"{section}: {count.created} new, {count.changed} changed, {count.unchanged} as they were"
                )
        running = read_run_file(settings.DATA_DIR)
        if running and _read_at_start() != before:
            os.kill(running["pid"], signal.SIGHUP)
            if options["verbosity"]:
                self.stdout.write(
                    "Time zone or UID root changed: the running processes start again, one by one."
                )

    def _dump(self, path: Path) -> None:
        if str(path) == "-":
            self.stdout.write(dump(), ending="")
        else:
            path.write_text(dump(), encoding="utf-8")


def _read_at_start() -> tuple[str, str]:
    """What a process reads only when it starts."""
    site = Site.objects.first() or Site()
    return site.timezone, site.uid_root
