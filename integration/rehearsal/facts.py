"""The count at the end: what every peer remembers, held against what Orderly's database says and the script's truth.

`count` reads and never changes anything. What is not there yet is `pending`; what contradicts is a problem at once.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from common.clock import now
from integration.models import Message, OutboxItem
from integration.rehearsal.his import APPLICATION, FACILITY, Sent
from integration.rehearsal.readers import Linked, Signed
from integration.rehearsal.receivers import FhirReceiver, Received
from integration.rehearsal.scanners import Scan, ScannerLog, Stored
from integration.rehearsal.script import Exam, Script, Visit
from integration.rehearsal.stage import FHIR, HIS
from integration.rehearsal.trouble import Fate, Trouble
from integration.rehearsal.viewing import Look
from pacs.models import Instance, SetAside, Study
from ris.models import ImagingServiceRequest, PatientIdentifier, ReconciliationCase, ReportVersion, StudyMatch

if TYPE_CHECKING:
    from integration.rehearsal.day import Options

ORDERS = ("ORM^O01", "OMI^O23", "OMG^O19")
OBR_25 = {"PRELIMINARY": "P", "FINAL": "F", "ADDENDED": "C"}
NAMED_MOST = 200
"""How many problems are named; of more, only how many there are."""


@dataclass(frozen=True)
class Logs:
    """Everything the peers remember."""

    options: Options
    script: Script
    began: datetime
    sent: list[Sent]
    scanners: dict[str, ScannerLog]
    linked: list[Linked]
    signed: list[Signed]
    received: list[Received]
    fhir: FhirReceiver
    looks: list[Look]
    complaints: list[str]
    failures: list[str]

    @property
    def scans(self) -> list[Scan]:
        """All scans whose images went out."""
        return [scan for log in self.scanners.values() for scan in log.scans if scan.sent_at]

    @property
    def stored(self) -> list[Stored]:
        """Every image that was answered with Success."""
        return [s for log in self.scanners.values() for scan in log.scans for s in scan.images if s.stored_at]


@dataclass
class Summary:
    """What the rehearsal found. `problems` names whatever was lost, wrongly matched or is unaccounted for."""

    rehearsal: dict[str, Any] = field(default_factory=dict)
    messages: dict[str, Any] = field(default_factory=dict)
    orders: dict[str, Any] = field(default_factory=dict)
    worklist: dict[str, Any] = field(default_factory=dict)
    instances: dict[str, Any] = field(default_factory=dict)
    studies: dict[str, Any] = field(default_factory=dict)
    viewing: dict[str, Any] = field(default_factory=dict)
    reports: dict[str, Any] = field(default_factory=dict)
    order_status: dict[str, Any] = field(default_factory=dict)
    fhir: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """All that keeps the day from adding up."""
        return self.wrong + [f"{text} (not by the end)" for text in self.pending]

    @property
    def ok(self) -> bool:
        """Whether everything is accounted for."""
        return not self.wrong and not self.pending

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` ends with."""
        named = self.problems[:NAMED_MOST]
        if len(self.problems) > NAMED_MOST:
            named.append(f"and {len(self.problems) - NAMED_MOST} more")
        return {
            "rehearsal": self.rehearsal,
            "messages": self.messages,
            "orders": self.orders,
            "worklist": self.worklist,
            "instances": self.instances,
            "studies": self.studies,
            "viewing": self.viewing,
            "reports": self.reports,
            "order_status": self.order_status,
            "fhir": self.fhir,
            "problems": named,
            "ok": self.ok,
        }


def latency(seconds: Iterable[float]) -> dict[str, float | None]:
    """Median and worst of some durations in milliseconds; null for none."""
    values = [1000 * max(0.0, one) for one in seconds]
    if not values:
        return {"median": None, "worst": None}
    return {"median": round(statistics.median(values), 1), "worst": round(max(values), 1)}


def count(logs: Logs) -> Summary:
    """Compare everything as it is now."""
    summary = Summary(wrong=list(logs.failures))
    database = _Database(logs)
    _count_messages(logs, database, summary)
    _count_orders(logs, database, summary)
    _count_worklist(logs, summary)
    _count_instances(logs, database, summary)
    _count_studies(logs, database, summary)
    _count_viewing(logs, summary)
    _count_reports(logs, database, summary)
    _count_status(logs, database, summary)
    _count_fhir(logs, database, summary)
    summary.rehearsal = {
        "patients": logs.options.patients,
        "trouble": logs.options.trouble,
        "seed": logs.options.seed,
        "run": logs.script.tag,
        "troubles": dict(
            Counter(str(v.trouble) for v in logs.script.visits if v.trouble is not Trouble.NONE)
        ),
        "started_at": logs.began.isoformat(timespec="seconds"),
        "seconds": round((now() - logs.began).total_seconds(), 1),
    }
    return summary


class _Database:
    """What Orderly's database says about the run, read at one go."""

    def __init__(self, logs: Logs) -> None:
        placers = [exam.placer for exam in logs.script.exams]
        uids = [scan.study_uid for log in logs.scanners.values() for scan in log.scans]
        self.messages: dict[str, list[Message]] = defaultdict(list)
        for message in Message.objects.filter(
            sender=f"{APPLICATION}|{FACILITY}", control_id__startswith=logs.script.tag
        ):
            self.messages[message.control_id].append(message)
        self.requests: dict[str, list[ImagingServiceRequest]] = defaultdict(list)
        for request in ImagingServiceRequest.objects.filter(placer_order_number__in=placers).prefetch_related(
            "procedures__steps"
        ):
            self.requests[request.placer_order_number].append(request)
        patients = {r.patient_id for rs in self.requests.values() for r in rs}
        current = PatientIdentifier.objects.filter(
            patient_id__in=patients, status=PatientIdentifier.Status.CURRENT
        )
        self.numbers: dict[Any, set[str]] = defaultdict(set)
        for identifier in current:
            self.numbers[identifier.patient_id].add(identifier.value)
        self.studies = {s.study_instance_uid: s for s in Study.objects.filter(study_instance_uid__in=uids)}
        self.instances = {
            i.sop_instance_uid: i
            for i in Instance.objects.filter(series__study__in=self.studies.values()).select_related(
                "series__study"
            )
        }
        self.matches: dict[Any, list[StudyMatch]] = defaultdict(list)
        for match in StudyMatch.objects.filter(study__in=self.studies.values()).select_related(
            "procedure__request"
        ):
            self.matches[match.study_id].append(match)
        self.cases = {
            c.study_id: c for c in ReconciliationCase.objects.filter(study__in=self.studies.values())
        }
        self.versions: dict[str, list[ReportVersion]] = defaultdict(list)
        for version in ReportVersion.objects.filter(
            report__procedure__request__placer_order_number__in=placers
        ).select_related("report__procedure__request"):
            self.versions[version.report.procedure.request.placer_order_number].append(version)
        self.outbox = list(
            OutboxItem.objects.filter(destination__name__in=(HIS, FHIR), created_at__gte=logs.began)
            .select_related("destination")
            .defer("payload", "answer")
        )
        self.matched_elsewhere = {
            m.procedure.request.placer_order_number: m.study_id
            for m in StudyMatch.objects.filter(
                procedure__request__placer_order_number__in=placers, undone_at=None
            ).select_related("procedure__request")
        }

    def request(self, exam: Exam) -> ImagingServiceRequest | None:
        """The order of an exam, when there is exactly one."""
        found = self.requests[exam.placer]
        return found[0] if len(found) == 1 else None


# -- messages in


def _count_messages(logs: Logs, database: _Database, summary: Summary) -> None:
    """Each message accepted, and applied exactly once with the bytes that were sent."""
    applied = 0
    for sent in logs.sent:
        rows = database.messages[sent.control_id]
        done = [row for row in rows if row.state == Message.State.APPLIED]
        if sent.acknowledged_at is None:
            continue  # the sender has said so: it is among the failures
        if len(done) != 1 or len(rows) != 1:
            summary.wrong.append(f"message {sent.control_id} was acknowledged and applied {len(done)} times")
        elif bytes(done[0].raw) != sent.raw:
            summary.wrong.append(f"message {sent.control_id} is stored with other bytes than were sent")
        else:
            applied += 1
    summary.messages = {
        "sent": len(logs.sent),
        "acknowledged": sum(1 for s in logs.sent if s.acknowledged_at),
        "applied": applied,
        "repeated": sum(s.repeats for s in logs.sent),
        "sent_again": sum(max(0, s.attempts - 1 - s.repeats) for s in logs.sent),
        "by_type": dict(sorted(Counter(s.kind for s in logs.sent).items())),
        "latency_ms": latency(s.seconds for s in logs.sent if s.acknowledged_at),
    }


# -- orders and worklist


def _count_orders(logs: Logs, database: _Database, summary: Summary) -> None:
    """One order for each that was placed, with the keys the HIS gave, under the patient it belongs to."""
    placed = _placed(logs)
    found = 0
    for visit, exam in placed:
        rows = database.requests[exam.placer]
        if len(rows) != 1:
            summary.wrong.append(f"order {exam.placer} was accepted and there are {len(rows)} of it")
            continue
        found += 1
        _check_order(visit, exam, rows[0], database, summary)
    statuses = Counter(str(r.status) for rs in database.requests.values() for r in rs)
    summary.orders = {
        "placed": len(placed),
        "found": found,
        "by_message": dict(sorted(Counter(exam.dialect for _, exam in placed).items())),
        "by_status": dict(sorted(statuses.items())),
    }


def _placed(logs: Logs) -> list[tuple[Visit, Exam]]:
    """Orders that the HIS placed and got acknowledged, with the visit they belong to."""
    known = {s.subject for s in logs.sent if s.kind in ORDERS and s.acknowledged_at}
    pairs = [(v, e) for v in logs.script.visits for e in (v.exam, v.neighbour) if e]
    return [(visit, exam) for visit, exam in pairs if exam.placer in known]


def _check_order(
    visit: Visit, exam: Exam, request: ImagingServiceRequest, database: _Database, summary: Summary
) -> None:
    procedures = list(request.procedures.all())
    steps = [step for procedure in procedures for step in procedure.steps.all()]
    if len(procedures) != 1 or len(steps) != 1:
        summary.wrong.append(f"order {exam.placer} has {len(procedures)} procedures and {len(steps)} steps")
        return
    given = {
        "accession number": (exam.accession, request.accession_number),
        "Requested Procedure ID": (exam.procedure_id, procedures[0].requested_procedure_id),
        "Study Instance UID": (exam.study_uid, procedures[0].study_instance_uid),
        "step id": (exam.step_id, steps[0].scheduled_procedure_step_id),
    }
    for name, (ours, theirs) in given.items():
        if ours and ours != theirs:
            summary.wrong.append(f"order {exam.placer} has another {name} than the HIS gave")
    is_neighbour = exam is visit.neighbour
    number = exam.person.number if is_neighbour else visit.person.number
    if number not in database.numbers[request.patient_id]:
        summary.pending.append(f"order {exam.placer} is not the order of patient {number}")
    wanted = "CANCELED" if is_neighbour or visit.trouble is Trouble.CANCELLED else "COMPLETED"
    if request.status != wanted:
        summary.pending.append(f"order {exam.placer} is {request.status} and should be {wanted}")


def _count_worklist(logs: Logs, summary: Summary) -> None:
    """Each order found in the query after its ACK, as the HIS placed it, and none that was cancelled."""
    queries = [q for log in logs.scanners.values() for q in log.queries]
    for log in logs.scanners.values():
        summary.wrong += log.complaints
    summary.worklist = {
        "queries": len(queries),
        "answers": sum(q.answers for q in queries),
        "orders_found": sum(log.found for log in logs.scanners.values()),
        "cancelled_gone": sum(log.absent for log in logs.scanners.values()),
        "latency_ms": latency(q.seconds for q in queries),
    }


# -- images and studies


def _count_instances(logs: Logs, database: _Database, summary: Summary) -> None:
    """Every image that was answered with Success lies in the archive with the bytes that were sent."""
    stored, whole = logs.stored, 0
    missing: Counter[str] = Counter()
    for image in stored:
        row = database.instances.get(image.sop_instance_uid)
        if row is None or row.hidden:
            missing[image.study_instance_uid] += 1
        elif row.sha256 != image.sha256:
            summary.wrong.append(f"image {image.sop_instance_uid} is stored with other bytes than were sent")
        elif row.series.study.study_instance_uid != image.study_instance_uid:
            summary.wrong.append(f"image {image.sop_instance_uid} is stored in another study")
        else:
            whole += 1
    summary.pending += [f"{n} images of study {uid} are not in the archive" for uid, n in missing.items()]
    sent = {i.sop_instance_uid for log in logs.scanners.values() for scan in log.scans for i in scan.images}
    for uid in database.instances.keys() - sent:
        summary.wrong.append(f"image {uid} is in the archive and no scanner sent it")
    aside = SetAside.objects.filter(sop_instance_uid__in=sent).values_list("sop_instance_uid", "reason")
    summary.wrong += [f"image {uid} was set aside: {reason}" for uid, reason in aside]
    summary.instances = {
        "sent": len(stored),
        "stored": whole,
        "sent_again": sum(max(0, s.attempts - 1) for s in stored),
        "latency_ms": latency(s.seconds for s in stored),
    }


def _count_studies(logs: Logs, database: _Database, summary: Summary) -> None:
    """Each study linked to the order that the script knows, in the way it must be, or open as it must be."""
    methods: Counter[str] = Counter()
    open_cases, rightly, waited = 0, 0, []
    for scan in logs.scans:
        study = database.studies.get(scan.study_uid)
        if study is None:
            summary.pending.append(f"study {scan.study_uid} is not in the archive")
            continue
        live = [m for m in database.matches[study.id] if m.undone_at is None]
        case = database.cases.get(study.id)
        if scan.visit.fate is Fate.STAYS_OPEN:
            is_open = case is not None and case.state == ReconciliationCase.State.OPEN
            open_cases += is_open
            rightly += is_open and not live
            if live:
                summary.wrong.append(
                    f"study {scan.study_uid} of a patient nobody knows was linked to an order"
                )
            elif not is_open:
                summary.pending.append(f"study {scan.study_uid} of a patient nobody knows has no open case")
            continue
        if not live:
            who = "its order" if scan.visit.fate is Fate.LINKS else "its order by the clerk"
            summary.pending.append(f"study {scan.study_uid} is not linked to {who}")
            continue
        match = live[0]
        methods[str(match.method)] += 1
        if _is_right(scan, match, database.matches[study.id], summary):
            rightly += 1
            if scan.visit.fate is Fate.LINKS and scan.sent_at:
                waited.append((match.at - scan.sent_at).total_seconds())
        _check_overlay(scan, study, summary)
    for visit, exam in _placed(logs):
        without = exam is visit.neighbour or visit.trouble is Trouble.CANCELLED
        if without and exam.placer in database.matched_elsewhere:
            summary.wrong.append(f"order {exam.placer} has no images and was linked to a study")
    summary.studies = {
        "sent": len(logs.scans),
        "as_the_script_knows": rightly,
        "linked": sum(methods.values()),
        "linked_by": dict(sorted(methods.items())),
        "open_cases": open_cases,
        "latency_ms": latency(waited),
        "clerk_latency_ms": latency(one.waited for one in logs.linked),
    }


def _is_right(scan: Scan, match: StudyMatch, history: list[StudyMatch], summary: Summary) -> bool:
    """Whether a link is the script's: to the visit's own order, in the way that the trouble asks for."""
    exam = scan.visit.exam
    placer = match.procedure.request.placer_order_number
    if exam is None or placer != exam.placer:
        summary.wrong.append(f"study {scan.study_uid} is wrongly linked to order {placer}")
        return False
    by_clerk = {m.method == StudyMatch.Method.CLERK for m in history}
    if scan.visit.fate is Fate.WAITS_FOR_CLERK and by_clerk != {True}:
        summary.wrong.append(
            f"study {scan.study_uid} was linked by itself; it should have waited for a clerk"
        )
        return False
    if scan.visit.fate is Fate.LINKS and match.method != StudyMatch.Method.STUDY_INSTANCE_UID:
        summary.wrong.append(f"study {scan.study_uid} was linked by {match.method}, not by its UID")
        return False
    return True


def _check_overlay(scan: Scan, study: Study, summary: Summary) -> None:
    """What DICOM answers about a linked study is the order's patient."""
    person = scan.visit.person
    if (study.patient_id, study.patient_name.rstrip("=^")) != (person.number, str(person.name)):
        summary.pending.append(f"study {scan.study_uid} does not carry the patient of its order")


# -- viewing and reports


def _count_viewing(logs: Logs, summary: Summary) -> None:
    """What DICOMweb and FHIR showed was what the scanners had sent."""
    summary.wrong += logs.complaints
    by_kind = Counter(look.what for look in logs.looks)
    summary.viewing = {
        "searched": by_kind["search"],
        "rendered": by_kind["rendered"],
        "asked_fhir": by_kind["FHIR"],
        "latency_ms": latency(look.seconds for look in logs.looks),
    }


def _count_reports(logs: Logs, database: _Database, summary: Summary) -> None:
    """Each signed version delivered at least once, always by the same MSH-10 with the same bytes."""
    items = {i.subject: i for i in database.outbox if i.kind == "ORU"}
    received = _by_control_id(logs.received)
    signed = {(one.visit.number, one.number): one for one in logs.signed}
    versions = delivered = 0
    took = []
    for scan in logs.scans:
        exam = scan.visit.exam
        if exam is None:
            continue
        rows = sorted(database.versions[exam.placer], key=lambda v: v.number)
        wanted = scan.visit.versions
        if [row.status for row in rows] != wanted[: len(rows)]:
            summary.wrong.append(f"the report of order {exam.placer} has other versions than were signed")
        if len(rows) < len(wanted):
            summary.pending.append(
                f"{len(wanted) - len(rows)} report versions of order {exam.placer} are not signed"
            )
        for row in rows:
            versions += 1
            item = items.get(f"report_version:{row.id}")
            said = signed.get((scan.visit.number, row.number))
            name = f"report version {row.number} of order {exam.placer}"
            if item is None:
                summary.wrong.append(f"{name} was signed and is not in the outbox")
                continue
            came = received.get(item.control_id, [])
            if not _is_delivered(item, came, name, summary):
                continue
            delivered += 1
            _check_result(scan.visit, row, said, came[0], name, summary)
            took.append((came[0].at - row.signed_at).total_seconds())
    known = {i.control_id for i in database.outbox}
    for control_id in received.keys() - known:
        summary.wrong.append(f"the HIS got message {control_id}, which the outbox does not know")
    summary.reports = {
        "signed": versions,
        "addenda": sum(1 for rows in database.versions.values() for r in rows if r.status == "ADDENDED"),
        "delivered": delivered,
        "delivered_again": sum(len(r) - 1 for c, r in received.items() if _kind(r[0]) == "ORU"),
        "latency_ms": latency(took),
    }


def _by_control_id(received: list[Received]) -> dict[str, list[Received]]:
    found: dict[str, list[Received]] = defaultdict(list)
    for one in received:
        found[one.control_id].append(one)
    return found


def _kind(one: Received) -> str:
    return one.message.message_type if one.message else ""


def _is_delivered(item: OutboxItem, came: list[Received], name: str, summary: Summary) -> bool:
    """Whether the peer has it and both sides agree on that."""
    if item.state in (OutboxItem.State.PARKED, OutboxItem.State.SKIPPED):
        summary.wrong.append(f"{name} is {item.state}: {item.last_error}")
        return False
    if len({one.raw for one in came}) > 1:
        summary.wrong.append(f"{name} came with different bytes under one MSH-10")
        return False
    acknowledged = any(one.acknowledged for one in came)
    if item.state == OutboxItem.State.DELIVERED and not acknowledged:
        summary.wrong.append(f"{name} counts as delivered and the HIS never acknowledged it")
        return False
    if item.state != OutboxItem.State.DELIVERED or not acknowledged:
        summary.pending.append(f"{name} is not delivered")
        return False
    return True


def _check_result(
    visit: Visit, row: ReportVersion, said: Signed | None, came: Received, name: str, summary: Summary
) -> None:
    """The message names the right patient and order, and says what was signed."""
    message = came.message
    assert message is not None
    obr = message.first("OBR")
    text = "\n".join(segment.text(5) for segment in message.all("OBX"))
    request = row.report.procedure.request
    checks = {
        "the patient (PID-3)": message.first("PID").value(3) == visit.person.number,
        "the placer number (OBR-2)": obr.value(2) == request.placer_order_number,
        "the accession number (OBR-18)": obr.value(18) == request.accession_number,
        "the status (OBR-25)": obr.value(25) == OBR_25.get(str(row.status), "?"),
        "the text (OBX-5)": said is not None and said.text in text,
    }
    summary.wrong += [
        f"{name} went out with a wrong value: {what}" for what, right in checks.items() if not right
    ]


# -- order status


def _count_status(logs: Logs, database: _Database, summary: Summary) -> None:
    """The HIS was told IP and CM of each order as the script wants it: each once, and nothing else."""
    items = [i for i in database.outbox if i.kind == "ORM"]
    received = _by_control_id(logs.received)
    told: dict[str, Counter[str]] = defaultdict(Counter)
    first: dict[tuple[str, str], datetime] = {}
    delivered = 0
    for item in items:
        placer, status = item.facts["order"]["placer"], item.facts["status"]
        came = received.get(item.control_id, [])
        if _is_delivered(item, came, f"status {status} of order {placer}", summary):
            delivered += 1
            told[placer][status] += 1
            first.setdefault((placer, status), came[0].at)
    scans = {s.visit.exam.placer: s for s in logs.scans if s.visit.exam}
    linked = {one.visit.exam.placer: one.at for one in logs.linked if one.visit.exam}
    took = []
    for visit, exam in _placed(logs):
        wanted = () if exam is visit.neighbour or exam.placer not in scans else visit.statuses
        for status in wanted:
            if (exam.placer, status) not in first:
                summary.pending.append(f"the HIS was not told {status} of order {exam.placer}")
                continue
            scan = scans[exam.placer]
            at = scan.in_progress_at if status == "IP" else linked.get(exam.placer, scan.completed_at)
            if at:
                took.append((first[exam.placer, status] - at).total_seconds())
        surplus = told[exam.placer] - Counter(wanted)
        summary.wrong += [
            f"the HIS was told {status} of order {exam.placer} and should not" for status in surplus
        ]
    summary.order_status = {
        "queued": len(items),
        "delivered": delivered,
        "by_status": dict(sorted(Counter(s for c in told.values() for s in c.elements()).items())),
        "latency_ms": latency(took),
    }


# -- FHIR


def _count_fhir(logs: Logs, database: _Database, summary: Summary) -> None:
    """Each signed report and its study stand on the FHIR server, once, as they are now."""
    for item in database.outbox:
        if item.destination.name == FHIR and item.state == OutboxItem.State.PARKED:
            summary.wrong.append(f"{item.subject} for the FHIR server is parked: {item.last_error}")
        elif item.destination.name == FHIR and item.state == OutboxItem.State.QUEUED:
            summary.pending.append(f"{item.subject} is not on the FHIR server")
    took = []
    studies = logs.fhir.of_type("ImagingStudy")
    for scan in logs.scans:
        exam = scan.visit.exam
        rows = database.versions[exam.placer] if exam else []
        if exam is None or not rows:
            continue
        bodies = [body for body in studies if _is_of_study(body, scan.study_uid)]
        if len(bodies) > 1:
            summary.wrong.append(f"study {scan.study_uid} stands {len(bodies)} times on the FHIR server")
        elif not bodies:
            summary.pending.append(f"study {scan.study_uid} is not on the FHIR server")
        elif bodies[0].get("numberOfInstances") != len(scan.images):
            summary.pending.append(f"study {scan.study_uid} has another number of images on the FHIR server")
        last = max(rows, key=lambda v: v.number)
        held = logs.fhir.resources.get(f"DiagnosticReport/{last.report_id}")
        wanted = {"PRELIMINARY": "preliminary", "FINAL": "final", "ADDENDED": "appended"}[str(last.status)]
        if held is None or held.body.get("status") != wanted:
            summary.pending.append(f"the report of order {exam.placer} is not {wanted} on the FHIR server")
        else:
            first = min(rows, key=lambda v: v.number)
            took.append((held.first_at - first.signed_at).total_seconds())
    failed = Counter(call.status for call in logs.fhir.log if call.status >= 400 and call.method != "GET")
    summary.wrong += [f"the FHIR server refused {n} requests with {status}" for status, n in failed.items()]
    held_types = Counter(r.body["resourceType"] for r in list(logs.fhir.resources.values()))
    summary.fhir = {
        "requests": len(logs.fhir.log),
        "resources": dict(sorted(held_types.items())),
        "latency_ms": latency(took),
    }


def _is_of_study(body: dict[str, Any], uid: str) -> bool:
    return any(i.get("value") in (uid, f"urn:oid:{uid}") for i in body.get("identifier", []))
