"""`manage.py run NAME`: one process of the engine, started by the supervisor or alone."""

from __future__ import annotations

import os
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from common.process import Context, context_from_environment, die_with_parent, resolve
from config.doors import DoorTaken, open_doors
from config.processes import TABLE, Process, named


class Command(BaseCommand):
    help = "Run one process of the engine: " + ", ".join(process.name for process in TABLE)
    requires_system_checks: list[str] = []  # the supervisor has checked; a restart must be quick

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", choices=[process.name for process in TABLE])

    def handle(self, *args: Any, **options: Any) -> None:
        process = named(options["name"])
        supervised = "ORDERLY_SUPERVISED" in os.environ
        if supervised:
            die_with_parent()
        try:
            ctx = context_from_environment(process.name) if supervised else _alone(process)
        except DoorTaken as trouble:
            raise CommandError(str(trouble)) from None
        ctx.stop_on_signals()
        resolve(process.target)(ctx)


def _alone(process: Process) -> Context:
    """Without a supervisor the process binds its own sockets, at the ports of the settings."""
    return Context(process.name, open_doors(list(process.sockets)))
