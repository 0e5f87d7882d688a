"""`manage.py rehearse`: a hospital morning played against the running engine, over real sockets, and counted."""

from __future__ import annotations

import json
import signal
import sys
import threading
from argparse import ArgumentParser, ArgumentTypeError
from dataclasses import fields
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError


class Command(BaseCommand):
    help = (
        "Play a HIS, scanners, a clerk and a radiologist against the engine that runs (`serve`), compare what they "
        "remember with the database, and end with 1 if anything was lost, wrongly matched or is unaccounted for."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--patients", type=_count, default=10, metavar="N", help="how many come (default 10)"
        )
        parser.add_argument(
            "--trouble",
            type=_share,
            default=0.2,
            metavar="X",
            help="share of them that has some (default 0.2)",
        )
        parser.add_argument(
            "--seed", type=int, default=1, metavar="S", help="the same seed, the same day (default 1)"
        )
        parser.add_argument(
            "--pace", type=float, default=0.0, metavar="SECONDS", help="between two patients (default 0)"
        )
        parser.add_argument(
            "--timeout",
            type=float,
            default=120.0,
            metavar="SECONDS",
            help="longest wait for any one thing (default 120)",
        )
        parser.add_argument(
            "--slices", type=_count, default=24, metavar="N", help="images of a CT or MR volume (default 24)"
        )
        parser.add_argument(
            "--unread", type=int, default=0, metavar="N", help="studies left on the reading list (default 0)"
        )
        parser.add_argument(
            "--keep-going",
            action="store_true",
            help="go on after a peer had to give up, instead of ending there",
        )
        parser.add_argument(
            "--json", action="store_true", help="end with one JSON object; progress goes to stderr"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        from integration.rehearsal.board import Ticker, board
        from integration.rehearsal.day import Options, run
        from integration.rehearsal.doors import NotRunning, Stopped
        from integration.rehearsal.stage import Refused

        stopping = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopping.set())
        wanted = Options(**{field.name: options[field.name] for field in fields(Options)})
        ticker = Ticker(sys.stderr if options["json"] else sys.stdout)
        try:
            summary = run(wanted, say=ticker, stopping=stopping)
        except (NotRunning, Refused) as error:
            raise CommandError(str(error)) from None
        except Stopped:
            ticker.end()
            raise CommandError("The rehearsal was stopped; its temporary rows are gone.") from None
        except DatabaseError as error:
            raise CommandError(
                f"The database cannot be used: {type(error).__name__}. See manage.py doctor."
            ) from None
        ticker.end()
        if options["json"]:
            self.stdout.write(json.dumps(summary.as_json(), ensure_ascii=False))
        else:
            for text in board(summary):
                self.stdout.write(text)
        if not summary.ok:
            sys.exit(1)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ArgumentTypeError("must be 1 or more")
    return number


def _share(text: str) -> float:
    share = float(text)
    if not 0 <= share <= 1:
        raise ArgumentTypeError("must lie between 0 and 1")
    return share
