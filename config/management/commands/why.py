"""`manage.py why ACCESSION AE`: why an order is not on a scanner's worklist, and what to change."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from worklist.explain import explain, lines


class Command(BaseCommand):
    help = "Say why an order is or is not on a scanner's worklist. Exit status 0: its newest query finds it; 1: not."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("accession", help="the order's accession, placer or filler number")
        parser.add_argument("ae", help="the scanner's AE title")

    def handle(self, *args: Any, **options: Any) -> None:
        explanation = explain(options["accession"], options["ae"])
        for line in lines(explanation):
            self.stdout.write(line)
        if not explanation.found:
            sys.exit(1)
