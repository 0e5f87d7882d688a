"""Who works at Orderly's own desks in a rehearsal: a clerk who links what waits, a radiologist who reads and signs.

Both use the services of `ris` that the pages use, as users of their own, and only touch the run's own work. A
transaction whose answer was lost in a crash may have been committed, so each looks before it acts again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from typing import Any
from uuid import UUID

from common import cause
from common.clock import now
from common.store import unit_of_work
from integration.rehearsal.catalogue import ADDENDA, report_of
from integration.rehearsal.doors import Doors
from integration.rehearsal.scanners import Scan
from integration.rehearsal.script import Visit
from integration.rehearsal.viewing import Viewer
from ris.errors import DuplicateKey
from ris.models import ReconciliationCase, Report, RequestedProcedure, StudyMatch
from ris.models.reports import ReportStatus
from ris.reconciliation import cases
from ris.selectors import unread
from ris.services import reports


@dataclass(slots=True)
class Signed:
    """One version in the radiologist's log."""

    visit: Visit
    procedure_id: UUID
    number: int
    status: str
    text: str
    at: datetime


@dataclass(slots=True)
class Linked:
    """One decision in the clerk's log: how long the case had waited for it, in seconds."""

    visit: Visit
    study_uid: str
    at: datetime
    waited: float


@dataclass
class Clerk:
    """Links the cases of the run to the orders that the script knows them to belong to."""

    doors: Doors
    user: Any
    log: list[Linked] = field(default_factory=list)

    def look_after(self, scan: Scan) -> bool:
        """Link this scan's study if its case waits; True once it is linked."""
        if any(one.study_uid == scan.study_uid for one in self.log):
            return True
        return self.doors.steadily(lambda: self._link(scan))

    def _link(self, scan: Scan) -> bool:
        exam = scan.visit.exam
        case = ReconciliationCase.objects.filter(study__study_instance_uid=scan.study_uid).first()
        if case is None or exam is None:
            return False
        procedure = RequestedProcedure.objects.filter(request__placer_order_number=exam.placer).first()
        linked = StudyMatch.objects.filter(study_id=case.study_id, undone_at=None).exists()
        if procedure is None or (case.state != ReconciliationCase.State.OPEN and not linked):
            return False
        if not linked:
            try:
                with unit_of_work(cause.user(self.user.pk)) as unit:
                    cases.link(case.study_id, procedure.id, self.user, unit)
            except DuplicateKey:
                return False  # somebody was quicker; the next look tells
        at = now()
        self.log.append(Linked(scan.visit, scan.study_uid, at, (at - case.opened_at).total_seconds()))
        return True


@dataclass
class Radiologist:
    """Reads what is on the reading list, drafts, signs, and sometimes adds to a report."""

    doors: Doors
    user: Any
    viewer: Viewer
    log: list[Signed] = field(default_factory=list)
    read: set[UUID] = field(default_factory=set)

    def reading_list(self, placers: dict[str, Scan]) -> list[tuple[UUID, Scan]]:
        """What waits to be read of the run's own work, urgent first: procedure and scan."""

        def ask() -> list[tuple[UUID, Scan]]:
            waiting = unread().filter(request__placer_order_number__in=list(placers)).order_by("arrived_at")
            rows = waiting.values_list("pk", "request__placer_order_number")
            return [(pk, placers[placer]) for pk, placer in rows if pk not in self.read]

        return self.doors.steadily(ask)

    def report(self, procedure_id: UUID, scan: Scan) -> None:
        """Look at the images, write and sign the report, with an addendum where the script says so."""
        visit, exam = scan.visit, scan.visit.exam
        if exam is None:
            return
        self.viewer.open_study(scan)
        rng = Random(visit.seed)
        lesion = (scan.lesion.site, scan.lesion.diameter_mm) if scan.lesion else None
        findings, impression = report_of(exam.procedure, lesion, rng)
        self.doors.steadily(lambda: self._draft(procedure_id, findings, impression))
        for number, status in enumerate(visit.versions, start=1):
            text = rng.choice(ADDENDA) if status == ReportStatus.ADDENDED else impression
            self._sign(visit, procedure_id, number, status, text)
        self.viewer.shown_by_fhir(scan)
        self.read.add(procedure_id)

    def _draft(self, procedure_id: UUID, findings: str, impression: str) -> None:
        with unit_of_work(cause.user(self.user.pk)) as unit:
            report = reports.open_draft(procedure_id, self.user, unit)
        report = Report.objects.get(pk=report.pk)
        if report.status == ReportStatus.DRAFT and report.findings != findings:
            with unit_of_work(cause.user(self.user.pk)) as unit:
                reports.save_draft(report.pk, report.draft_version, findings, impression, self.user, unit)

    def _sign(self, visit: Visit, procedure_id: UUID, number: int, status: str, text: str) -> None:
        """Sign version `number`, unless it was signed by a try whose answer was lost."""

        def sign() -> datetime:
            report = Report.objects.get(procedure_id=procedure_id)
            there = report.versions.filter(number=number).first()
            if there is not None:
                return there.signed_at  # type: ignore[no-any-return]
            with unit_of_work(cause.user(self.user.pk)) as unit:
                if status == ReportStatus.ADDENDED:
                    reports.addend(report.pk, text, self.user, unit)
                else:
                    reports.sign(report.pk, self.user, unit, status)
                return unit.at

        at = self.doors.steadily(sign)
        self.log.append(Signed(visit, procedure_id, number, str(status), text, at))
