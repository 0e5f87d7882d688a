"""`manage.py demo` (`make demo`): the engine, a hospital morning, and a board, until Ctrl-C."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from config.demo import Demo, DemoError


class Command(BaseCommand):
    help = "Start everything, play a hospital morning over real sockets, and show what came in and went out."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--patients", type=int, default=8, help="patients of the morning (default 8)")
        parser.add_argument(
            "--trouble", type=float, default=0.25, help="share of things that go wrong (default 0.25)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            status = Demo(patients=options["patients"], trouble=options["trouble"]).run()
        except DemoError as trouble:
            raise CommandError(str(trouble)) from None
        if status:
            sys.exit(status)
