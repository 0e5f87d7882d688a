"""`manage.py serve`: the database, every process under one supervisor, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import fcntl
import os
import time
from argparse import ArgumentParser
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import connection

from common.process import die_with_parent, run_file
from config.doors import DOORS, PATIENCE, DoorTaken, open_doors, port_of
from config.postgres import Cluster, PostgresError, check_server
from config.processes import TABLE
from config.site import write_site_file
from config.supervisor import Supervisor, end_leftovers

MIGRATION_LOCK = 0x4F52444C  # "ORDL": two machines that start at once migrate one after the other


class Command(BaseCommand):
    help = (
        "Start the database and every process, and watch them until SIGTERM or Ctrl-C. "
        "--data DIR names the data directory (else ORDERLY_DATA_DIR, else var/ beside manage.py)."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        for name, setting in DOORS.items():
            option = "--" + name.replace("_", "-")
            default = getattr(settings, setting)
            parser.add_argument(
                option, type=int, metavar="PORT", help=f"port of {name} (default {default}; 0: any free one)"
            )
        parser.add_argument("--site", type=Path, metavar="FILE", help="a site.toml to load at the start")

    def handle(self, *args: Any, **options: Any) -> None:
        if os.environ.pop("ORDERLY_DIE_WITH_PARENT", None):
            die_with_parent()
        lock = _only_one(settings.DATA_DIR)
        try:
            self._serve(options)
        finally:
            os.close(lock)

    def _serve(self, options: dict[str, Any]) -> None:
        self._began = time.monotonic()
        killed = end_leftovers(run_file(settings.DATA_DIR))
        try:
            doors = open_doors(
                list(DOORS),
                {name: options[name] for name in DOORS},
                patience=PATIENCE if killed else 0.0,
            )
        except DoorTaken as trouble:
            raise CommandError(str(trouble)) from None
        embedded = not os.environ.get("DATABASE_URL")
        cluster = Cluster(settings.DATA_DIR) if embedded else None
        try:
            with cluster.running(die_with_us=True, stop_always=True) if cluster else nullcontext():
                self._say("the database runs")
                check_server()
                self._migrate()
                if options["site"]:
                    call_command("site", "load", str(options["site"]), verbosity=0)
                    self._say(f"{options['site']} is loaded")
                write_site_file()
                Path(settings.STATIC_ROOT).mkdir(exist_ok=True)
                connection.close()
                connection.close_pool()  # type: ignore[attr-defined]  # from here on the children alone use it
                Supervisor(
                    TABLE,
                    doors,
                    run_file(settings.DATA_DIR),
                    environment={"ORDERLY_DATA_DIR": str(settings.DATA_DIR)},
                    tend=_database_nurse(cluster) if cluster else None,
                    on_ready=lambda: self._say(
                        "ready: " + ", ".join(f"{name} {port_of(door)}" for name, door in doors.items())
                    ),
                ).run()
        except PostgresError as trouble:
            raise CommandError(f"Database: {trouble}") from None
        self._say("stopped")

    def _migrate(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", [MIGRATION_LOCK])
            try:
                call_command("migrate", interactive=False, verbosity=0)
            finally:
                cursor.execute("SELECT pg_advisory_unlock(%s)", [MIGRATION_LOCK])
        self._say("the schema is up to date")

    def _say(self, text: str) -> None:
        self.stdout.write(f"[{time.monotonic() - self._began:5.1f} s] {text}")
        self.stdout.flush()


def _only_one(data_dir: Path) -> int:
    """A lock that one `serve` a data directory can hold; it goes with the process however that ends."""
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(data_dir / "serve.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 32).decode(errors="replace").strip()
        os.close(lock)
        raise CommandError(
            f"Orderly already runs on {data_dir} (process {holder or 'unknown'}). "
            "Stop that one first, or name another data directory with --data."
        ) from None
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    return lock


def _database_nurse(cluster: Cluster) -> Callable[[], dict[str, Any]]:
    """What the supervisor calls twice a second: the embedded server is started again when it died."""
    restarts = 0
    next_try = 0.0

    def tend() -> dict[str, Any]:
        nonlocal restarts, next_try
        pid = cluster.pid()
        if pid is None and time.monotonic() >= next_try:
            try:
                cluster.revive()
                restarts += 1
                pid = cluster.pid()
            except PostgresError:
                next_try = time.monotonic() + 1.0  # its last backends may still be ending
        return {"database": {"pid": pid, "state": "ready" if pid else "waiting", "restarts": restarts}}

    return tend
