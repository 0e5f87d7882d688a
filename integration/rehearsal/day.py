"""One rehearsal from beginning to end: the peers at work side by side, then the count.

The front desk registers and orders in the script's order; each scanner works through its own patients; clerk and
radiologist look after what arrives. What one visit fails at is noted, and the others go on.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from django.conf import settings
from django.db import connection

from common.clock import now, to_site
from integration.rehearsal import facts, script, stage
from integration.rehearsal.catalogue import STATIONS
from integration.rehearsal.doors import Doors, GaveUp, Stopped, require_engine
from integration.rehearsal.facts import Logs, Summary
from integration.rehearsal.his import His
from integration.rehearsal.phantoms import Protocol
from integration.rehearsal.readers import Clerk, Radiologist
from integration.rehearsal.receivers import FhirReceiver, HisReceiver
from integration.rehearsal.scanners import Scan, Scanner, pick_station
from integration.rehearsal.script import Script, Visit
from integration.rehearsal.stage import Cast
from integration.rehearsal.trouble import Fate, Trouble
from integration.rehearsal.viewing import Viewer

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""How often clerk and radiologist look at their lists, and the count is taken."""


@dataclass(frozen=True)
class Options:
    """What `manage.py rehearse` is told. `pace`: seconds between two patients; `timeout`: the longest wait for
    any one thing, and for the rest after the last scan; `slices`: images of a volume; `unread`: studies that
    stay on the reading list."""

    patients: int = 10
    trouble: float = 0.2
    seed: int = 1
    pace: float = 0.0
    timeout: float = 120.0
    slices: int = 24
    unread: int = 0
    keep_going: bool = False


@dataclass
class Progress:
    """How far the morning is; read by the board while threads count."""

    patients: int = 0
    registered: int = 0
    ordered: int = 0
    scanned: int = 0
    images: int = 0
    linked_by_clerk: int = 0
    reports: int = 0
    delivered: int = 0
    phase: str = "The peers get ready"


Say = Callable[[Progress], None]


def run(
    options: Options, *, say: Say = lambda progress: None, stopping: threading.Event | None = None
) -> Summary:
    """Play a morning against the running engine and count it.

    Raises NotRunning (no engine), stage.Refused (live site, another rehearsal), Stopped (`stopping` was set).
    """
    require_engine()
    day = Day(options, stopping or threading.Event(), say)
    try:
        with stage.staged(day.told, day.fhir) as cast:
            return day.play(cast)
    finally:
        day.close()


@dataclass
class Day:
    """The peers of one rehearsal and what they remember."""

    options: Options
    stopping: threading.Event
    say: Say
    failures: list[str] = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        options = self.options
        self.began = now()
        self.script: Script = script.write(
            options.patients, options.trouble, options.seed, to_site(self.began), unread=options.unread
        )
        self.doors = Doors(self.stopping, options.timeout)
        self.his = His(self.doors, self.script.tag)
        # With trouble, every seventh message to the HIS is lost on its way back: it must come again.
        self.told = HisReceiver(lambda number: options.trouble > 0 and number % 7 == 3)
        self.fhir = FhirReceiver()
        protocol = Protocol(slices=options.slices)
        self.scanners = {
            s.ae_title: Scanner(self.doors, s, settings.ORDERLY_AE_TITLE, protocol) for s in STATIONS
        }
        self.waiting: dict[str, queue.Queue[Visit | None]] = {s.ae_title: queue.Queue() for s in STATIONS}
        self.done: list[Scan] = []
        """Scans that are over, with whatever the HIS had to say afterwards."""
        self.progress.patients = options.patients

    def close(self) -> None:
        """Hang up everywhere."""
        self.his.close()
        self.told.close()
        self.fhir.close()

    # -- the morning

    def play(self, cast: Cast) -> Summary:
        """The whole of it; the summary tells what was wrong."""
        self.viewer = Viewer(self.doors, cast.token)
        self.radiologist = Radiologist(self.doors, cast.radiologist, self.viewer)
        self.clerk = Clerk(self.doors, cast.clerk)
        desks = threading.Thread(target=self._guarded, args=("the desks", self._desks), daemon=True)
        desks.start()
        self._tell("Patients arrive")
        with ThreadPoolExecutor(max_workers=len(STATIONS) + 1, thread_name_prefix="rehearsal") as pool:
            work = [pool.submit(self._guarded, s.ae_title, self._scanner, s.ae_title) for s in STATIONS]
            work.append(pool.submit(self._guarded, "the front desk", self._front_desk))
            while not all(one.done() for one in work):
                self._tell()
                time.sleep(LOOK_SECONDS)
        if self.stopping.is_set() and not self.failures:
            raise Stopped()
        summary = self._count(desks)
        self.stopping.set()
        desks.join(timeout=10)
        return summary

    def _guarded(self, who: str, work: Callable[..., None], *args: str) -> None:
        """Run a peer's work in a thread: what it cannot cope with is a failure of the rehearsal, named."""
        try:
            work(*args)
        except Stopped:
            pass
        except Exception as error:
            logger.exception("rehearsal: %s stopped", who)
            self._fail(f"{who} stopped: {type(error).__name__}: {error}")
        finally:
            connection.close()

    def _fail(self, text: str) -> None:
        self.failures.append(text)
        if not self.options.keep_going:
            self.stopping.set()

    def _front_desk(self) -> None:
        try:
            for visit in self.script.visits:
                self._attempt(visit, self._arrive)
                if self.options.pace:
                    self.doors.pause(self.options.pace)
        finally:
            for line in self.waiting.values():
                line.put(None)

    def _attempt(self, visit: Visit, step: Callable[[Visit], None]) -> None:
        if self.stopping.is_set():
            raise Stopped()
        try:
            step(visit)
        except GaveUp as error:
            self._fail(f"visit {visit.number} ({visit.trouble}): {error}")

    def _arrive(self, visit: Visit) -> None:
        """Register, order, and send the patient to the scanner."""
        exam = visit.exam
        if exam is not None:
            for event in visit.events:
                self.his.register(visit.known_as, event)
            if visit.trouble is Trouble.MERGE:
                self.his.register(visit.person, "A04")
            self.progress.registered += 1
            sent = self.his.order(exam)
            if visit.trouble is Trouble.DUPLICATE:
                self.his.repeat(sent)
            if visit.neighbour is not None:
                self.his.register(visit.neighbour.person, "A04")
                self.his.order(visit.neighbour)
            self.progress.ordered += 1
        self.waiting[pick_station(visit, STATIONS).ae_title].put(visit)

    def _scanner(self, ae_title: str) -> None:
        scanner = self.scanners[ae_title]
        while (visit := self.waiting[ae_title].get()) is not None:
            self._attempt(visit, lambda visit: self._examine(scanner, visit))

    def _examine(self, scanner: Scanner, visit: Visit) -> None:
        exam = visit.exam
        if visit.trouble is Trouble.CANCELLED and exam is not None:
            if scanner.sees(exam) is None:
                scanner.log.complaints.append(
                    f"{scanner.station.ae_title} did not find order {exam.placer} in the first query after its ACK"
                )
            else:
                scanner.log.found += 1
            self.his.order(exam, "CA")
            scanner.is_gone(exam)
            return
        scan = scanner.examine(visit)
        self.progress.scanned += 1
        self.progress.images += len(scan.images)
        if visit.trouble is Trouble.MERGE:
            self.his.merge(visit.person, visit.known_as)
        if visit.neighbour is not None:
            self.his.order(visit.neighbour, "CA")
        self.done.append(scan)

    # -- the desks

    def _desks(self) -> None:
        """Clerk and radiologist in turn, until the count is over."""
        while True:
            scans = list(self.done)
            for scan in scans:
                if scan.visit.fate is Fate.WAITS_FOR_CLERK and not self.stopping.is_set():
                    self.clerk.look_after(scan)
            placers = {s.visit.exam.placer: s for s in scans if s.visit.exam and s.visit.versions}
            for procedure_id, scan in self.radiologist.reading_list(placers):
                self.radiologist.report(procedure_id, scan)
                self.progress.reports = len({one.procedure_id for one in self.radiologist.log})
            self.progress.linked_by_clerk = len(self.clerk.log)
            self.doors.pause(LOOK_SECONDS)

    # -- the count

    def _count(self, desks: threading.Thread) -> Summary:
        """Look until everything is accounted for, or what is wrong cannot become right, or the time is up.

        Logs and rows are not read at one instant, so that what looks wrong counts only when the next look sees it, too.
        """
        deadline = time.monotonic() + self.options.timeout
        self._tell("Waiting for studies, reports and deliveries")
        seen: list[str] = []
        while True:
            summary = self.doors.steadily(lambda: facts.count(self.logs()))
            self.progress.delivered = summary.reports["delivered"]
            self._tell()
            late = time.monotonic() > deadline
            settled = not summary.pending and summary.wrong == seen
            if settled or late or self.stopping.is_set() or not desks.is_alive():
                return summary
            seen = summary.wrong
            time.sleep(LOOK_SECONDS)

    def logs(self) -> Logs:
        """What all peers remember."""
        return Logs(
            options=self.options,
            script=self.script,
            began=self.began,
            sent=list(self.his.log),
            scanners={title: scanner.log for title, scanner in self.scanners.items()},
            linked=list(self.clerk.log),
            signed=list(self.radiologist.log),
            received=list(self.told.log),
            fhir=self.fhir,
            looks=list(self.viewer.log),
            complaints=list(self.viewer.complaints),
            failures=list(self.failures),
        )

    def _tell(self, phase: str = "") -> None:
        self.progress.phase = phase or self.progress.phase
        self.say(self.progress)
