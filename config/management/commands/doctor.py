"""`manage.py doctor`: one line a layer, from the disk up to the peers."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand

from config.doctor import checks


class Command(BaseCommand):
    help = "Look at every layer: database, migrations, disk, fsync, ports, peers, queues. Exit status 1: one is ill."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="one JSON object a line")

    def handle(self, *args: Any, **options: Any) -> None:
        well = True
        for check in checks():
            well = well and check.ok
            if options["json"]:
                self.stdout.write(json.dumps(asdict(check)))
            else:
                mark = "ok  " if check.ok else "ILL "
                self.stdout.write(f"{mark} {check.layer:<10} {check.name:<22} {check.detail}")
            self.stdout.flush()
        if not well:
            sys.exit(1)
