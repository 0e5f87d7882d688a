"""The demonstration: the engine starts, a hospital morning is played over real sockets, a board tells of it."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management.color import color_style
from django.db.models import Count, Max

from common.process import read_run_file
from config.doors import DOORS
from integration.models import Message, OutboxItem
from integration.rehearsal.board import board
from integration.rehearsal.facts import Summary
from pacs.models import Instance, Study
from ris.models import ImagingServiceRequest, ReconciliationCase, Report, StudyMatch

START_SECONDS = 180
ADMINISTRATOR = "admin"


class DemoError(RuntimeError):
    """The demonstration cannot go on; the text says why and where to look."""


class Demo:
    """One run of `make demo`, from the first step to Ctrl-C."""

    def __init__(self, *, patients: int, trouble: float) -> None:
        self.patients = patients
        self.trouble = trouble
        self.began = time.monotonic()
        self.manage = [sys.executable, str(settings.BASE_DIR / "manage.py")]
        self.log = Path(settings.DATA_DIR) / "log" / "serve.log"
        self.log_offset = self.log.stat().st_size if self.log.exists() else 0
        self.stopped = threading.Event()
        self.style = color_style()
        self.summary: dict[str, Any] | None = None

    def run(self) -> int:
        """Everything in turn; the exit status."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self.stopped.set())
        with self._engine() as engine:
            if not self._wait_until_ready(engine):
                return 0
            login = self._administrator()
            played_well = self._play()
            if not self.stopped.is_set():
                self._board(login)
                self._watch(engine)
            self._say("Stopping everything")
        self._say("Stopped. The data stays in " + str(settings.DATA_DIR))
        return 0 if played_well else 1

    # -- the engine

    @contextmanager
    def _engine(self) -> Iterator[subprocess.Popen[bytes]]:
        if run := read_run_file(settings.DATA_DIR):
            raise DemoError(
                f"Orderly already runs on {settings.DATA_DIR} (process {run['pid']}). Stop it first, or show the "
                'demonstration elsewhere: make demo ARGS="--data DIR".'
            )
        self.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        known = (Path(settings.DATA_DIR) / "secret.key").exists() and self.log.exists()
        self._say("Starting on the data of an earlier start" if known else "Starting with an empty archive")
        ports = [part for name in DOORS for part in (_option(name), str(_free_or_any(name)))]
        with self.log.open("ab") as log:
            engine = subprocess.Popen(
                [*self.manage, "serve", *ports],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "ORDERLY_DATA_DIR": str(settings.DATA_DIR),
                    "ORDERLY_DIE_WITH_PARENT": "1",
                },
                start_new_session=True,  # Ctrl-C reaches us; we stop it in good order
            )
        try:
            yield engine
        finally:
            engine.terminate()
            try:
                engine.wait(60)
            except subprocess.TimeoutExpired:
                engine.kill()

    def _wait_until_ready(self, engine: subprocess.Popen[bytes]) -> bool:
        """Show each process as it comes up. False when the wait was ended by Ctrl-C."""
        shown: set[str] = set()
        deadline = time.monotonic() + START_SECONDS
        while not self.stopped.wait(0.1):
            if engine.poll() is not None:
                raise DemoError(
                    f"The engine did not start: {self._log_since_start()[-800:]}\nMore in {self.log}"
                )
            if time.monotonic() > deadline:
                raise DemoError(f"The engine is not ready after {START_SECONDS} s; see {self.log}")
            for step in re.findall(r"^\[[\d. ]+s\] (?!ready|stopped)(.+)$", self._log_since_start(), re.M):
                self._once(shown, step)
            run = read_run_file(settings.DATA_DIR)
            if run is None or run["pid"] != engine.pid:
                continue
            for name, said in run["processes"].items():
                if said["state"] == "ready":
                    self._once(shown, f"{name} is ready")
            if _answers(f"http://{settings.ORDERLY_BIND}:{run['ports']['http']}/readyz"):
                return True
        return False

    def _once(self, shown: set[str], text: str) -> None:
        if text not in shown:
            shown.add(text)
            self._say(text)

    def _log_since_start(self) -> str:
        """What the engine has said since this start."""
        with self.log.open("rb") as file:
            file.seek(self.log_offset)
            return file.read().decode(errors="replace").strip()

    # -- the morning

    def _administrator(self) -> str:
        """Who may log in: a new administrator's password is shown once and kept nowhere."""
        users = get_user_model().objects
        reset = f".venv/bin/python manage.py changepassword {ADMINISTRATOR}"
        if users.filter(username=ADMINISTRATOR).exists():
            return f"{ADMINISTRATOR}, with the password shown at the first start (reset: {reset})"
        password = secrets.token_urlsafe(12)
        users.create_superuser(ADMINISTRATOR, password=password)
        return f"{ADMINISTRATOR} / {password}   shown this once (reset: {reset})"

    def _play(self) -> bool:
        """The rehearsal's morning, its progress on our terminal. True when it found nothing wrong."""
        self._say(f"A hospital morning with {self.patients} patients begins")
        seed = str(secrets.randbelow(1_000_000))
        told = ["--patients", str(self.patients), "--trouble", str(self.trouble), "--seed", seed, "--json"]
        told += ["--unread", str(self.patients // 4)]  # something is left for whoever opens the reading list
        play = subprocess.Popen(
            [*self.manage, "rehearse", *told],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "ORDERLY_DATA_DIR": str(settings.DATA_DIR)},
            text=True,
            start_new_session=True,
        )
        assert play.stdout is not None and play.stderr is not None
        threading.Thread(target=self._end_with_us, args=(play,), daemon=True).start()
        telling = threading.Thread(target=self._tell, args=(play.stderr,), daemon=True)
        telling.start()
        lines = [line for line in play.stdout if line.strip()]
        code = play.wait()
        telling.join(10)
        if self.stopped.is_set():
            return True
        self.summary = _last_object(lines)
        if code:
            self._say(
                self.style.ERROR(f"The rehearsal ended with exit status {code}; what it said stands above")
            )
        else:
            self._say("The morning is over: everything is accounted for")
        return code == 0

    def _tell(self, said: IO[str]) -> None:
        """The rehearsal's own words, by the clock of this terminal: its lines count from its start."""
        for line in said:
            self._say(re.sub(r"^\[[\d. ]+s\] ", "", line.rstrip()))

    def _end_with_us(self, play: subprocess.Popen[str]) -> None:
        while play.poll() is None:
            if self.stopped.wait(0.2):
                play.terminate()
                return

    # -- the board

    def _board(self, login: str) -> None:
        run = read_run_file(settings.DATA_DIR)
        if run is None:
            raise DemoError(f"The engine is gone; see {self.log}")
        host, ports = settings.ORDERLY_BIND, run["ports"]
        web = f"http://{host}:{ports['http']}"
        rows = [
            ("Pages", f"{web}/"),
            ("Login", login),
            ("HL7 v2", f"MLLP {host}:{ports['mllp']}"),
            ("DICOM", f"{host}:{ports['dicom']}, AE title {settings.ORDERLY_AE_TITLE}"),
            ("FHIR R4", f"{web}/fhir/r4/metadata"),
            ("DICOMweb", f"{web}/dicomweb/studies"),
            ("Metrics", f"{web}/metrics"),
            ("Log", str(self.log)),
        ]
        width = min(shutil.get_terminal_size((100, 24)).columns, 100)
        print()
        print(self.style.MIGRATE_HEADING(" Orderly ".center(width, "─")))
        for name, text in rows:
            print(f"  {name:<10}{text}")
        parts = [("Came in so far", came_in()), ("Went out so far", went_out())]
        if self.summary:
            parts.insert(0, ("This morning", [line.strip() for line in _told(self.summary)]))
        for title, lines in parts:
            print()
            print(self.style.MIGRATE_HEADING(f"  {title}"))
            for line in lines:
                print(f"    {line}".rstrip())
        print(self.style.MIGRATE_HEADING("─" * width))
        print("  Ctrl-C stops everything; the next start finds its data again.", flush=True)

    def _watch(self, engine: subprocess.Popen[bytes]) -> None:
        """Until Ctrl-C: a line for whatever else comes in or goes out."""
        before = came_in() + went_out()
        while not self.stopped.wait(3.0):
            if engine.poll() is not None:
                raise DemoError(f"The engine ended by itself; see {self.log}")
            after = came_in() + went_out()
            for line in after:
                if line not in before:
                    self._say(line)
            before = after

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.began:6.1f} s] {text}", flush=True)


def _told(summary: dict[str, Any]) -> list[str]:
    """The rehearsal's own board of its summary."""
    kept = {one.name: summary[one.name] for one in fields(Summary) if one.name in summary}
    return [line for line in board(Summary(**kept, wrong=summary["problems"])) if line]


def came_in() -> list[str]:
    """What came in so far, one line a kind."""
    messages = Message.objects.aggregate(all=Count("pk"), applied=Count("applied_at"))
    kinds = Message.objects.order_by().values_list("message_type").annotate(n=Count("pk")).order_by("-n")
    named = ", ".join(f"{n} {kind or 'unnamed'}" for kind, n in kinds)
    studies, instances = Study.objects.filter(hidden=False).count(), Instance.objects.count()
    open_cases = ReconciliationCase.objects.filter(state=ReconciliationCase.State.OPEN).count()
    matched = StudyMatch.objects.filter(undone_at__isnull=True).count()
    return [
        f"{messages['all']} HL7 messages ({named or 'none'}), {messages['applied']} of them applied",
        f"{ImagingServiceRequest.objects.count()} orders",
        f"{instances} images of {studies} studies: {matched} found their order, {open_cases} wait for a clerk",
    ]


def went_out() -> list[str]:
    """What went out so far, one line a kind."""
    kinds = (
        OutboxItem.objects.order_by()
        .values("kind")
        .annotate(all=Count("pk"), delivered=Count("delivered_at"), last=Max("delivered_at"))
        .order_by("kind")
    )
    sent = [f"{one['kind']}: {one['delivered']} of {one['all']} delivered and acknowledged" for one in kinds]
    return [f"{Report.objects.count()} reports written", *sent]


def _free_or_any(name: str) -> int:
    """The door's default port while it is free, else 0: any free one."""
    port = int(getattr(settings, DOORS[name]))
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.ORDERLY_BIND, port))
        except OSError:
            return 0
    return port


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _last_object(lines: list[str]) -> dict[str, Any] | None:
    """The JSON object that the rehearsal's output ends with."""
    text = "".join(lines)
    start = text.find("{")
    for candidate in (lines[-1] if lines else "", text[start:] if start >= 0 else ""):
        try:
            found = json.loads(candidate)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return None
