"""`manage.py bench NAME`: measure one part beside its peers, on a database cluster of the run's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from importlib import import_module
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from config.postgres import Cluster

# Name → module with `run(json: bool) -> bool`, which prints its cases and says whether every `must` is met. One with
# PARTS takes `only`, one of them, too.
BENCHES = {
    "mllp": "integration.benches.mllp",
    "store": "pacs.benches.store",
    "worklist": "worklist.benches.worklist",
    "dicomweb": "pacs.benches.dicomweb",
    "matching": "ris.benches.matching",
    "pages": "integration.benches.pages",
}
HOME = "ORDERLY_BENCH_HOME"


class Command(BaseCommand):
    help = "Measure one part of the engine beside its peers. Exit status 1: a `must` is missed or a peer is absent."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", choices=sorted(BENCHES))
        parser.add_argument("--json", action="store_true", help="one JSON object a line")
        parser.add_argument("--only", default="", metavar="PART", help="one part of it, where it has parts")

    def handle(self, *args: Any, **options: Any) -> None:
        if HOME not in os.environ:
            sys.exit(_again_in_a_home_of_its_own())
        with Cluster(settings.DATA_DIR).running():
            call_command("migrate", verbosity=0)
            try:
                bench = import_module(BENCHES[options["name"]])
            except ModuleNotFoundError as missing:
                raise CommandError(f"There is no bench {options['name']!r} yet: {missing}.") from None
            only = {"only": options["only"]} if options["only"] else {}
            parts = getattr(bench, "PARTS", ())
            if only and options["only"] not in parts:
                raise CommandError(
                    f"{options['name']} has no such part; it has: {', '.join(parts) or 'none'}."
                )
            met = bench.run(json=options["json"], **only)
        sys.exit(0 if met else 1)


def _again_in_a_home_of_its_own() -> int:
    """This very command as a child, whose data directory and database live in a temporary folder."""
    # Run by root, the database's own user must be able to reach its cluster.
    home = Path(tempfile.mkdtemp(prefix="orderly-bench-"))
    home.chmod(0o755)
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith("ORDERLY_") or k == "ORDERLY_POSTGRES_BIN"
    }
    kept.pop("DATABASE_URL", None)
    environment = {
        **kept,
        HOME: str(home),
        "ORDERLY_DATA_DIR": str(home / "data"),
        "ORDERLY_POSTGRES_HOME": str(home / "postgres"),
        "ORDERLY_LOG_LEVEL": "ERROR",
    }
    try:
        return subprocess.run([sys.executable, *sys.argv], env=environment).returncode
    finally:
        shutil.rmtree(home, ignore_errors=True)
