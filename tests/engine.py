"""A real engine for journeys and faults: `manage.py serve` on free ports over a data directory of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from common.process import read_run_file
from common.servers import free_port

REPOSITORY = Path(__file__).resolve().parent.parent
READY_SECONDS = 120


class Engine:
    """`serve` as a subprocess. Its database is durable, its ports are free ones, its log is kept."""

    def __init__(self, *, site: Path | None = None, environment: dict[str, str] | None = None) -> None:
        # Not pytest's tmp_path: run by root, the database's own user must be able to reach its cluster.
        self.base = Path(tempfile.mkdtemp(prefix="orderly-engine-"))
        self.base.chmod(0o755)
        self.data_dir = self.base / "data"
        self.log = self.base / "serve.log"
        self.site = site
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ORDERLY_")}
        kept.pop("DATABASE_URL", None)
        self.environment = {
            **kept,
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "ORDERLY_DATA_DIR": str(self.data_dir),
            "ORDERLY_POSTGRES_HOME": str(self.base / "postgres"),
            "ORDERLY_DIE_WITH_PARENT": "1",  # a test session that is killed leaves nothing running
            **(environment or {}),
        }
        self._popen: subprocess.Popen[bytes] | None = None
        self._ports: dict[str, int] = {}  # of the first start; later ones take the same

    # -- life

    def start(self, *, wait: bool = True) -> Engine:
        """Start `serve`, the first time or again, and wait until `/readyz` says 200."""
        words = ["--site", str(self.site)] if self.site else []
        for name in ("http", "mllp", "dicom"):
            # The same again after it was killed: no connection of another test may hold it then.
            words += [f"--{name}", str(self._ports.setdefault(name, free_port()))]
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "manage.py", "serve", *words],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )
        if wait:
            self.wait_ready()
        return self

    def stop(self, seconds: float = 60) -> int:
        """SIGTERM, and the exit status once everything is down."""
        assert self._popen is not None
        self._popen.send_signal(signal.SIGTERM)
        return self._popen.wait(seconds)

    def close(self) -> None:
        """End whatever runs, and take the data away."""
        if self._popen is not None and self._popen.poll() is None:
            try:
                self.stop(30)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()
        self._popen = None
        self.wait_for(lambda: not self._postmaster_lives(), 30)
        shutil.rmtree(self.base, ignore_errors=True)

    # -- kills

    def kill(self, name: str) -> int:
        """kill -9 of one process (`web`, `mllp`, …, `database`, or `supervisor`); its process id."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        if name == "supervisor":
            assert self._popen is not None
            self._popen.wait()
            self.wait_for(lambda: not self._postmaster_lives(), 60)
        return pid

    def kill_and_wait(self, name: str) -> None:
        """kill -9 of one process, and wait until another one serves in its place (`supervisor`: start again)."""
        if name == "supervisor":
            self.kill(name)
            self.start()
            return
        old = self.kill(name)
        self.wait_for(lambda: self._pid_of_ready(name) not in (None, old), READY_SECONDS)
        self.wait_ready()

    # -- looking

    @property
    def run(self) -> dict[str, Any]:
        """What run.json says now."""
        run = read_run_file(self.data_dir)
        if run is None:
            raise AssertionError(f"the engine does not run:\n{self.last_words()}")
        return run

    def pid(self, name: str) -> int:
        """The process id of a process of the table, of the `database` or of the `supervisor`."""
        if name == "supervisor":
            return int(self.run["pid"])
        return int((self.run["database"] if name == "database" else self.run["processes"][name])["pid"])

    def port(self, name: str) -> int:
        """The port of `http`, `mllp` or `dicom`: a free one, and the same when `serve` is started again."""
        return int(self.run["ports"][name])

    @property
    def url(self) -> str:
        """The address of the web process, without a slash at its end."""
        return f"http://127.0.0.1:{self.port('http')}"

    def wait_ready(self) -> None:
        """Wait until every process serves."""
        self.wait_for(self._is_ready, READY_SECONDS)

    def wait_for(self, what: Callable[[], Any], seconds: float = 60) -> Any:
        """Wait until `what()` is true and return it; fail with the log's end when it does not come."""
        deadline = time.monotonic() + seconds
        while not (found := what()):
            if self._popen is not None and self._popen.poll() not in (None, -signal.SIGKILL, 0):
                raise AssertionError(f"serve ended with {self._popen.poll()}:\n{self.last_words()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {seconds} s in vain:\n{self.last_words()}")
            time.sleep(0.05)
        return found

    def manage(
        self, *words: str, check: bool = True, timeout: float = 600
    ) -> subprocess.CompletedProcess[str]:
        """`manage.py …` on this engine's data."""
        done = subprocess.run(
            [sys.executable, "manage.py", *words],
            cwd=REPOSITORY,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert not check or done.returncode == 0, (
            f"{words} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        )
        return done

    def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """What one SQL statement answers, straight from the engine's database."""
        from config.postgres import DATABASE, PORT, ROLE

        host = str(self.base / "postgres" / "run")
        with psycopg.connect(
            host=host, port=PORT, user=ROLE, dbname=DATABASE, autocommit=True, connect_timeout=10
        ) as connection:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def last_words(self) -> str:
        """The end of the engine's log."""
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else "(no log)"

    def _is_ready(self) -> bool:
        run = read_run_file(self.data_dir)
        if run is None or self._popen is None or run["pid"] != self._popen.pid:
            return False
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{run['ports']['http']}/readyz", timeout=10
            ) as answer:
                return bool(json.load(answer)["ready"])
        except (urllib.error.URLError, OSError, ValueError):
            return False

    def _pid_of_ready(self, name: str) -> int | None:
        run = read_run_file(self.data_dir) or {"processes": {}}
        said = run.get("database") if name == "database" else run["processes"].get(name)
        return said["pid"] if said and said["state"] == "ready" else None

    def _postmaster_lives(self) -> bool:
        from config.postgres import _works_in

        pidfile = self.base / "postgres" / "data" / "postmaster.pid"
        try:
            pid = int(pidfile.read_text().split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return False
        return _works_in(pid, pidfile.parent)
