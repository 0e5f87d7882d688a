"""`manage.py worklist rebuild|prune`: make every worklist item again from the orders, or let go of old ones."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from worklist import projection, querylog


class Command(BaseCommand):
    help = "rebuild: make every worklist item again from the orders, while scanners go on asking; prune: let go of old."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("what", choices=["rebuild", "prune"])

    def handle(self, *args: Any, **options: Any) -> None:
        if options["what"] == "rebuild":
            self.stdout.write(f"{projection.rebuild()} worklist items made.")
            return
        self.stdout.write(f"{projection.prune()} worklist items and {querylog.prune()} queries let go.")
