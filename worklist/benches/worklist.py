"""`manage.py bench worklist`: C-FIND beside DCMTK's wlmscpfs and Orthanc's worklist plugin, in turn, in one run."""

from __future__ import annotations

import json as jsonlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, cast

from django.db import connection
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID

from common.benches import measured
from common.clock import now
from common.servers import free_port
from pacs.dimse.registry import EXPLICIT_VR_LITTLE_ENDIAN
from pacs.models import ApplicationEntity
from ris.models import (
    AssigningAuthority,
    ImagingServiceRequest,
    Patient,
    PatientIdentifier,
    RequestedProcedure,
    ScheduledProcedureStep,
)
from worklist import projection
from worklist.answers import Answers, Form, Wanted
from worklist.attributes import INNER_BY_TAG, OUTER_BY_TAG, Facts
from worklist.benches import asking
from worklist.benches.asking import Scanner
from worklist.models import QueryLog, WorklistItem

SMALL, LARGE, HUGE = 100, 50_000, 500_000
ROUNDS = 11
SMALL_ROUNDS = 41
"""A query of the small table takes milliseconds, as long as any disturbance: it is asked more often."""
DAY = datetime(2026, 3, 10, 8, 0, tzinfo=UTC)

Say = Callable[[dict[str, Any]], None]
_row = partial(measured, "worklist")


def run(json: bool = False) -> bool:
    """Measure and print every case; True when no `must` is missed. A missing peer is a miss, too."""
    results: list[dict[str, Any]] = []

    def say(row: dict[str, Any]) -> None:
        results.append(row)
        print(jsonlib.dumps(row) if json else _line(row), flush=True)

    with tempfile.TemporaryDirectory(prefix="orderly-bench-", dir=_memory()) as name:
        work = Path(name)
        ApplicationEntity.objects.update_or_create(
            title="*",
            host="*",
            defaults={"services": ["echo", "worklist"], "settings": {"worklist": {"limit": 0}}},
        )
        for size in (SMALL, LARGE):
            items = fill(size)
            folder = write_files(items, work / str(size))
            _beside_peers(size, folder, work, say)
        grow(HUGE)
        _alone_and_huge(say)
        fill(10_000)
        _polling(say)
    return all(row["ok"] for row in results)


def _memory() -> str | None:
    """Files of peers lie in memory where that is possible: their disks are not measured."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _line(row: dict[str, Any]) -> str:
    said = f"{row['case']:46} {row['ours']:>12} {row['unit']}"
    if row["peer"]:
        said += f"   {row['peer']} {row['theirs']}   x {row['ratio']}"
    if row["must"] is not None:
        said += f"   must {row['must']}: {'ok' if row['ok'] else 'MISSED'}"
    return said


# -- the table and the files


def facts(number: int) -> Facts:
    """The rows of one made-up step; ten patients a family name, a hundredth of all on one day at one station."""
    at = now()
    authority = AssigningAuthority(namespace="HOSP")
    patient = Patient(
        patient_name=f"FAMILY{number // 10:06d}^GIVEN{number % 10}",
        patient_birth_date="19600512",
        patient_sex="F",
        created_at=at,
        updated_at=at,
    )
    identifier = PatientIdentifier(
        patient=patient, value=f"P{number:08d}", authority=authority, type_code="MR"
    )
    request = ImagingServiceRequest(
        patient=patient,
        accession_number=f"A{number:08d}",
        placer_order_number=f"PL{number}",
        filler_order_number=f"FI{number}",
        requesting_physician="REQUESTING^PHYSICIAN",
        referring_physician_name="REFERRING^PHYSICIAN",
        created_at=at,
        updated_at=at,
    )
    procedure = RequestedProcedure(
        request=request,
        requested_procedure_id=f"RP{number:08d}",
        study_instance_uid=f"1.2.826.0.1.99.{number + 1}",
        requested_procedure_description="Computed tomography of the head",
        code_value="CTHEAD",
        coding_scheme_designator="99ORD",
        code_meaning="CT head",
        created_at=at,
        updated_at=at,
    )
    kind = number // 10 % 10
    step = ScheduledProcedureStep(
        procedure=procedure,
        scheduled_procedure_step_id=f"SP{number:08d}",
        status="SCHEDULED",
        status_at=at,
        modality=("CT", "MR", "US", "CR", "DX")[kind % 5],
        scheduled_station_ae_titles=[f"SCAN{kind:02d}"],
        scheduled_station_names=[f"Room {kind}"],
        scheduled_procedure_step_location=f"Building {kind}",
        start=DAY + timedelta(days=number % 10, minutes=number // 100 % 600),
        scheduled_procedure_step_description="CT head without contrast",
        scheduled_performing_physician_name="PERFORMING^PHYSICIAN",
        created_at=at,
        updated_at=at,
    )
    return Facts(step, procedure, request, patient, (identifier,), None)


def fill(count: int) -> list[WorklistItem]:
    """A table of exactly `count` items, as the projection makes them."""
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE worklist_worklistitem")
    items = [projection.item_of(facts(number)) for number in range(count)]
    WorklistItem.objects.bulk_create(items, batch_size=1000)
    _settle()
    return items


def grow(count: int) -> None:
    """More items, copied inside the database under other keys, until there are `count`."""
    fields = [str(f.column) for f in WorklistItem._meta.concrete_fields]
    changed = {
        "step_id": "gen_random_uuid()",
        **{
            name: f"{name} || '-' || g"
            for name in (
                "patient_id",
                "accession_number",
                "requested_procedure_id",
                "scheduled_procedure_step_id",
                "study_instance_uid",
            )
        },
        "patient_name_search": "'x' || g || patient_name_search",
        "start_date": "start_date + 100 * g",
    }
    copies = count // LARGE - 1
    columns = ", ".join(f'"{name}"' for name in fields)
    values = ", ".join(changed.get(name, f'"{name}"') for name in fields)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO worklist_worklistitem ({columns}) SELECT {values} "
            "FROM worklist_worklistitem, generate_series(1, %s) AS g",
            [copies],
        )
    _settle()


def _settle() -> None:
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE worklist_worklistitem")
        cursor.execute("CHECKPOINT")  # what was just written is no part of what is measured


def write_files(items: Iterable[WorklistItem], folder: Path) -> Path:
    """The same items as worklist files, for servers that read those."""
    place = folder / asking.CALLED
    place.mkdir(parents=True)
    (place / "lockfile").touch()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID("1.2.276.0.7230010.3.1.0.1")
    meta.TransferSyntaxUID = UID(EXPLICIT_VR_LITTLE_ENDIAN)
    meta.ImplementationClassUID = UID("2.25.1")
    answers = Answers(Wanted(_wanted(OUTER_BY_TAG), _wanted(INNER_BY_TAG)), [Form()], own_ae="")
    for number, item in enumerate(items):
        meta.MediaStorageSOPInstanceUID = UID(f"2.25.{number + 1}")
        data = answers.answer(bytes(item.answer), item.ascii, item.start, item.start_has_time)
        with open(place / f"{number}.wl", "wb") as file:
            file.write(b"\0" * 128 + b"DICM")
            write_file_meta_info(cast(Any, file), meta, enforce_standard=False)
            file.write(data or b"")
    return folder


_RETURNED = """
    AccessionNumber ReferringPhysicianName PatientName PatientID PatientBirthDate PatientSex PatientWeight
    MedicalAlerts Allergies StudyInstanceUID RequestingPhysician RequestedProcedureDescription
    RequestedProcedureCodeSequence AdmissionID CurrentPatientLocation RequestedProcedureID
    RequestedProcedurePriority PatientTransportArrangements Modality ScheduledStationAETitle
    ScheduledProcedureStepStartDate ScheduledProcedureStepStartTime ScheduledPerformingPhysicianName
    ScheduledProcedureStepDescription ScheduledProcedureStepID ScheduledStationName
    ScheduledProcedureStepLocation
"""
RETURNED = frozenset(_RETURNED.split())
"""What a scanner usually asks to be returned: 27 of the table's hundred."""


def _wanted(table: Any) -> tuple[tuple[int, str], ...]:
    return tuple((tag, entry.vr) for tag, entry in table.items() if entry.keyword in RETURNED)


def query(**keys: str) -> Dataset:
    """A query with these keys and the usual return keys."""
    ds, step = Dataset(), Dataset()
    for keyword in RETURNED:
        inner = any(entry.keyword == keyword for entry in INNER_BY_TAG.values())
        value: Any = keys.get(keyword, "")
        if keyword == "RequestedProcedureCodeSequence":
            value = []
        setattr(step if inner else ds, keyword, value)
    ds.ScheduledProcedureStepSequence = [step]
    return ds


def cases(size: int) -> dict[str, tuple[Dataset, int]]:
    """Name → the query and how many answers it has in a table of `size` made by `fill`."""
    keyed = {
        "ScheduledProcedureStepStartDate": "20260313",
        "Modality": "CR",
        "ScheduledStationAETitle": "SCAN03",
    }
    return {
        "patient ID": (query(PatientID=f"P{size // 2:08d}"), 1),
        "accession": (query(AccessionNumber=f"A{size // 3:08d}"), 1),
        "name with wildcard": (query(PatientName=f"FAMILY{size // 20:06d}*"), 10),
        "date, modality and AE": (query(**keyed), size // 100),
        "everything": (query(), size),
    }


# -- measuring


def _ask_in_turn(
    ports: dict[str, int], ds: Dataset, expected: int, rounds: int = ROUNDS, slow_rounds: int = ROUNDS
) -> dict[str, list[asking.Asked]]:
    """Each server asked once a round, on an association of its own; peers that take seconds get fewer rounds."""
    taken: dict[str, list[asking.Asked]] = {name: [] for name in ports}
    for number in range(rounds):
        for name, port in ports.items():
            if name != "ours" and number >= slow_rounds:
                continue
            scanner = Scanner(port)
            asked = scanner.ask(ds)
            scanner.close()
            if asked.count != expected:
                raise RuntimeError(f"{name} gave {asked.count} answers, not {expected}")
            taken[name].append(asked)
    return taken


def _beside_peers(size: int, folder: Path, work: Path, say: Say) -> None:
    with ExitStack() as stack:
        ports = {"ours": free_port()}
        stack.enter_context(asking.ours(ports["ours"]))
        _warm(ports["ours"])
        missing = []
        if shutil.which("wlmscpfs"):
            ports["wlmscpfs"] = free_port()
            stack.enter_context(asking.wlmscpfs(ports["wlmscpfs"], folder))
        else:
            missing.append("wlmscpfs")
        if asking.orthanc_program() and asking.orthanc_plugin():
            ports["orthanc"] = free_port()
            stack.enter_context(asking.orthanc(ports["orthanc"], folder, work))
        else:
            missing.append("orthanc")
        for peer in missing:
            say(_row(f"{size} items", None, "", peer=peer, ok=False))
        for case, (ds, expected) in cases(size).items():
            if size == LARGE and case == "everything":
                continue  # half a minute for each peer, and nothing is to be proven by it
            small = size == SMALL
            rounds = SMALL_ROUNDS if small else ROUNDS
            taken = _ask_in_turn(ports, ds, expected, rounds, slow_rounds=rounds if small else 1)
            _compare(f"{size} items, {case}", size, case, taken, say)
        if size == LARGE:
            _absolute(ports["ours"], size, say)
            _cancelled(ports["ours"], size, say)


def _warm(port: int) -> None:
    """A server that has been asked before: each connection of its pool has read the catalogue once."""
    for _ in range(20):
        scanner = Scanner(port)
        scanner.ask(query(PatientID="nobody"))
        scanner.close()


def _compare(name: str, size: int, case: str, taken: dict[str, list[asking.Asked]], say: Say) -> None:
    mine = median(a.last_ms for a in taken["ours"])
    must = (
        2.0 if size == SMALL else 200.0 if case in ("patient ID", "accession", "name with wildcard") else None
    )
    for peer in taken:
        if peer == "ours":
            continue
        theirs = median(a.last_ms for a in taken[peer])
        ratio = theirs / mine
        say(
            _row(
                name,
                mine,
                "ms",
                peer=peer,
                theirs=theirs,
                ratio=ratio,
                must=must,
                ok=must is None or ratio >= must,
            )
        )


def _absolute(port: int, size: int, say: Say) -> None:
    """First answer below 5 ms, and at least 30,000 answers a second for a broad query."""
    for case in ("patient ID", "name with wildcard", "everything"):
        ds, expected = cases(size)[case]
        taken = _ask_in_turn({"ours": port}, ds, expected)["ours"]
        first = median(a.first_ms for a in taken)
        must = 5.0 if case != "everything" else None
        say(
            _row(
                f"{size} items, {case}: first answer", first, "ms", must=must, ok=must is None or first < must
            )
        )
        if case == "everything":
            rate = median(a.count / a.last_ms * 1000 for a in taken)
            say(_row(f"{size} items, streamed", rate, "answers/s", must=30_000, ok=rate >= 30_000))


def _cancelled(port: int, size: int, say: Say) -> None:
    """From C-CANCEL to the final response of a broad query, what lies in the sockets between included."""
    taken = []
    for _ in range(ROUNDS):
        scanner = Scanner(port)
        taken.append(scanner.cancel(query()))
        scanner.close()
    worst = max(taken)
    say(_row(f"{size} items, cancelled: final response", worst, "ms", must=100.0, ok=worst <= 100))


def _alone_and_huge(say: Say) -> None:
    """The keyed queries of the large table, with ten times the steps in it."""
    port = free_port()
    with asking.ours(port):
        _warm(port)
        for case, (ds, expected) in cases(LARGE).items():
            if case == "everything":
                continue
            taken = _ask_in_turn({"ours": port}, ds, expected)["ours"]
            first = median(a.first_ms for a in taken)
            must = 5.0 if case != "date, modality and AE" else None
            say(
                _row(
                    f"{HUGE} items, {case}: first answer",
                    first,
                    "ms",
                    must=must,
                    ok=must is None or first < must,
                )
            )


def _polling(say: Say, scanners: int = 50, seconds: float = 10.0) -> None:
    """Fifty scanners that ask every five seconds for their day: the share of one core that this takes."""
    port = free_port()
    queries = []
    for number in range(scanners):
        keys = {
            "ScheduledProcedureStepStartDate": f"202603{10 + number % 10}",
            "ScheduledStationAETitle": f"SCAN{number % 10:02d}",
        }
        queries.append((f"SCAN{number % 10:02d}", query(**keys)))
    with asking.ours(port) as pid:
        for calling, ds in queries[:10]:
            _poll(port, calling, ds)
        before, began = _cpu(pid), time.monotonic()
        count = 0
        while time.monotonic() - began < seconds:
            _poll(port, *queries[count % scanners])
            count += 1
            time.sleep(max(0.0, began + count * 5.0 / scanners - time.monotonic()))
        share = (_cpu(pid) - before) / (time.monotonic() - began) * 100
    say(_row(f"{scanners} scanners ask every 5 s, 10000 items", share, "% of a core", must=15, ok=share < 15))
    QueryLog.objects.all().delete()


def _poll(port: int, calling: str, ds: Dataset) -> None:
    scanner = Scanner(port, calling)
    scanner.ask(ds)
    scanner.close()


def _cpu(pid: int) -> float:
    """Seconds of CPU that our process and the database's backends have used."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'")
        backends = [row[0] for row in cursor.fetchall()]
    ticks = 0
    for one in (pid, *backends):
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        except OSError:
            continue
    return ticks / 100
