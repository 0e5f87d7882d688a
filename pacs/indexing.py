"""The indexer: takes the spool in batches, gives each object its file and its rows, and tells when a study is quiet.

A batch is read, its entries in the spool are synced (their receiver may be at that still), it is placed in the
volume and synced, then written in one transaction, and only then let go of by the spool. After a crash at any point
the spool is simply indexed again: paths are made of content, the same instance again changes nothing. A bad object is
set aside, never its batch. Batches publish nothing; `settle` publishes StudySettled, one transaction a study.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import mmap
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
from django.conf import settings
from django.db import InterfaceError, OperationalError, close_old_connections, connection, transaction

from common import alerts, cause
from common.clock import now
from common.crashpoints import crashpoint
from common.models import AuditEvent
from common.names import same_person_name
from common.process import Context
from common.store import unit_of_work
from common.uids import uuid7
from pacs import header, manifest, routing
from pacs.events import StudySettled
from pacs.facts import PATIENT_ID, WANTED, Facts, Unindexable, facts_of
from pacs.models import Instance, Series, SetAside, Study
from pacs.storage import spool
from pacs.storage.part10 import MAX_META_BYTES, NotPart10, Origin, origin_of, read_prefix
from pacs.storage.volume import Volume, relative_path

log = logging.getLogger(__name__)

BATCH = 400  #: objects; each holds a file descriptor until the batch is synced
BATCH_BYTES = 128 * 1024 * 1024  #: of objects that are copied out of segments: so much is synced at once
POLL_SECONDS = 0.1
COMING_SECONDS = 0.2  #: objects that came so lately are likely to be followed by more, which are waited for …
PATIENCE_SECONDS = 3.0  #: … but no longer than this …
COMPANY = 500  #: … nor for more than this many
NICE = 5  #: whoever holds a peer's socket goes first
RETRY_SECONDS = (1, 2, 5, 15, 30)  #: when the database or the disk is away; the last one repeats
SETTLE_AT_ONCE = 50


@dataclass(slots=True)
class Job:
    """One spooled object on its way into the index."""

    entry: spool.Entry
    origin: Origin | None = None
    facts: Facts | None = None
    data: memoryview | None = None  #: the Part 10 file of an object in a segment, mapped
    reason: str = ""  #: of SetAside, when it cannot be indexed
    detail: str = ""
    path: str = ""

    def set_aside(self, reason: str, detail: str) -> None:
        """Let this object be kept for a person instead of being indexed."""
        self.reason, self.detail = reason, detail[:300]

    @property
    def received_at(self) -> datetime:
        """When it was received (UTC)."""
        return datetime.fromtimestamp(self.entry.received_ms / 1000, UTC)


# -- reading


def read(entry: spool.Entry, segments: spool.Mapped) -> Job:
    """An entry as a job, its header read or the reason why it could not be. Raises OSError."""
    job = Job(entry)
    try:
        if not entry.alone:
            job.data = segments.view(entry)
        if entry.orphaned:
            spool.verify(entry)
        if job.data is not None:
            _read_header(job, job.data)
            return job
        with entry.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            view = memoryview(mapped)
            try:
                _read_header(job, view)
            finally:
                view.release()
    except header.HeaderError as error:
        job.set_aside(SetAside.Reason.UNREADABLE, f"header: {error}")
    except (NotPart10, Unindexable) as error:
        job.set_aside(SetAside.Reason.UNREADABLE, str(error))
    except ValueError as error:
        job.set_aside(SetAside.Reason.UNREADABLE, f"damaged in the spool: {error}")
    except OSError:
        raise
    except Exception as error:  # whatever a header does to its readers, the batch goes on
        job.set_aside(SetAside.Reason.UNREADABLE, f"cannot be read: {type(error).__name__}")
    return job


def _read_header(job: Job, file: memoryview) -> None:
    meta, offset = read_prefix(file[:MAX_META_BYTES])
    job.origin = origin_of(meta)
    data_set = file[offset:]
    try:
        found = header.read(data_set, job.origin.transfer_syntax_uid, WANTED)
    finally:
        data_set.release()
    job.facts = facts_of(found, job.origin.transfer_syntax_uid)
    if job.facts.sop_instance_uid != job.origin.sop_instance_uid:
        raise Unindexable("SOP Instance UID differs between File Meta Information and data set")


def pending(
    segments: spool.Mapped, limit: int = BATCH
) -> tuple[list[Job], list[spool.Torn], list[tuple[Path, bool]]]:
    """The next jobs of all receivers' folders, damaged places, and the folders looked at."""
    jobs: list[Job] = []
    torn: list[spool.Torn] = []
    folders = list(spool.folders())
    held = 0
    for folder, orphaned in folders:
        try:
            for entry in spool.entries(folder, orphaned):
                if isinstance(entry, spool.Torn):
                    torn.append(entry)
                    continue
                if len(jobs) >= limit or held > BATCH_BYTES:
                    break
                jobs.append(read(entry, segments))
                held += len(jobs[-1].data or b"")
        except FileNotFoundError:
            continue
    return jobs, torn, folders


# -- placing and writing


def index_once() -> int:
    """Index one batch of the spool; gives the number of objects dealt with. Raises OperationalError or OSError
    when the database or the disk is away: nothing is lost then, and it is to be tried again."""
    with spool.Mapped() as segments:
        jobs, torn, folders = pending(segments)
        for place in torn:  # before the records behind it are let go of
            _keep_torn(place)
        if jobs:
            _index(jobs)
    for folder, orphaned in folders:
        spool.clean(folder, orphaned)
    return len(jobs)


def _index(jobs: list[Job]) -> None:
    try:
        _index_batch(jobs)
    except (OperationalError, InterfaceError, OSError):
        raise
    except Exception as error:
        if len(jobs) == 1:
            if jobs[0].reason == SetAside.Reason.UNREADABLE:
                raise  # not even a row about it can be written
            log.error("an object cannot be indexed: %s", type(error).__name__)
            jobs[0].set_aside(SetAside.Reason.UNREADABLE, f"cannot be indexed: {type(error).__name__}")
            _index_batch(jobs)
            return
        log.warning("a batch failed (%s); its objects are indexed one by one", type(error).__name__)
        for job in jobs:
            _index([job])


def _index_batch(jobs: list[Job]) -> None:
    fresh = _sort_out(jobs)
    spool.sync([job.entry for job in jobs])
    _place(fresh, [job for job in jobs if job.reason])
    crashpoint("indexer.placed")
    with transaction.atomic():
        _write(fresh, [job for job in jobs if job.reason])
        crashpoint("indexer.before_commit")
    crashpoint("indexer.committed")
    spool.free([job.entry for job in jobs])
    crashpoint("indexer.freed")


def _sort_out(jobs: list[Job]) -> list[Job]:
    """The jobs that need rows of their own: not the same instance again, not a UID or a study that is another's."""
    readable = [(job, job.facts) for job in jobs if job.facts is not None and not job.reason]
    uids = [facts.sop_instance_uid for _, facts in readable]
    taken = {
        uid: (sha256, syntax)
        for uid, sha256, syntax in Instance.objects.filter(sop_instance_uid__in=uids).values_list(
            "sop_instance_uid", "sha256", "transfer_syntax_uid"
        )
    }
    patients = {
        study.study_instance_uid: _Patient.of_study(study)
        for study in Study.objects.filter(study_instance_uid__in={f.study_instance_uid for _, f in readable})
    }
    fresh = []
    for job, facts in readable:
        patient = patients.get(facts.study_instance_uid)
        if facts.sop_instance_uid in taken:
            if taken[facts.sop_instance_uid] != (job.entry.sha256, facts.transfer_syntax_uid):
                job.set_aside(
                    SetAside.Reason.UID_TAKEN, "an instance with this UID and other content is stored"
                )
        elif patient and patient.contradicts(facts):
            job.set_aside(
                SetAside.Reason.INCONSISTENT, "another patient's ID and name than the study it names"
            )
        else:
            taken[facts.sop_instance_uid] = (job.entry.sha256, facts.transfer_syntax_uid)
            if patient is None:
                patients[facts.study_instance_uid] = _Patient.of_facts(facts)
            fresh.append(job)
    return fresh


@dataclass(frozen=True, slots=True)
class _Patient:
    """Whose study it is, as its objects say."""

    id: str
    name: str
    birth_date: str

    @classmethod
    def of_study(cls, study: Study) -> _Patient:
        came = study.as_received
        return cls(
            came.get("patient_id", study.patient_id),
            came.get("patient_name", study.patient_name),
            came.get("patient_birth_date", study.patient_birth_date),
        )

    @classmethod
    def of_facts(cls, facts: Facts) -> _Patient:
        said = facts.study()
        return cls(said["patient_id"], said["patient_name"], said["patient_birth_date"])

    def contradicts(self, facts: Facts) -> bool:
        """Whether an object of the study is another patient's: other ID, and another name or birth date."""
        said_id = facts.header.text(PATIENT_ID)
        if not said_id or not self.id or said_id == self.id:
            return False
        said = _Patient.of_facts(facts)
        if said.id == self.id:
            return False
        other_day = bool(said.birth_date and self.birth_date and said.birth_date != self.birth_date)
        return other_day or same_person_name(self.name, said.name) is False


def _place(fresh: list[Job], aside: list[Job]) -> None:
    """Give every object its file; durable when this returns."""
    for volume, jobs in ((Volume("files"), fresh), (Volume("aside"), aside)):
        try:
            for job in jobs:
                job.path = _path(job)
                if job.data is not None:
                    volume.place(job.path, job.data)
                else:
                    volume.adopt(job.entry.path, job.path)
            volume.sync()
        finally:
            volume.forget()


def _path(job: Job) -> str:
    facts = job.facts
    if facts is None:
        return relative_path("unreadable", job.entry.sha256, str(job.entry.size))
    group = f"{facts.study_instance_uid}/{facts.series_instance_uid}"
    return relative_path(group, facts.sop_instance_uid, facts.transfer_syntax_uid, job.entry.sha256)


def _write(fresh: list[Job], aside: list[Job]) -> None:
    """Write the rows of a batch: studies locked in order, then series, instances, objects set aside, audit."""
    studies = _studies(fresh)
    series = _series(fresh, studies)
    at = now()
    instances: list[dict[str, Any]] = []
    audit: dict[tuple[UUID, str], int] = {}
    for job in fresh:
        facts = job.facts
        assert facts is not None and job.origin is not None
        study = studies[facts.study_instance_uid]
        row = series[facts.study_instance_uid, facts.series_instance_uid]
        instances.append(
            {
                "id": uuid7(),
                "series_id": row.pk,
                "sop_instance_uid": facts.sop_instance_uid,
                "sop_class_uid": facts.sop_class_uid,
                "transfer_syntax_uid": facts.transfer_syntax_uid,
                "path": job.path,
                "size": job.entry.size,
                "data_set_offset": job.entry.data_set_offset,
                "sha256": job.entry.sha256,
                "calling_ae": job.origin.calling_ae[:16],
                "received_at": job.received_at,
                "volume": "files",
                "hidden": False,
                **facts.instance(),
            }
        )
        _count(study, row, job, at)
        key = (study.pk, job.origin.calling_ae)
        audit[key] = audit.get(key, 0) + 1
    _save(Study, studies.values(), _STUDY_COLUMNS)
    _save(Series, series.values(), ("number_of_series_related_instances",))
    _copy_in(instances)
    _set_aside(aside)
    AuditEvent.objects.bulk_create(
        AuditEvent(
            actor=f"ae:{ae}" if ae else "system:indexer",
            action="store",
            what="study",
            object_ids=[str(study)],
            detail={"instances": count},
        )
        for (study, ae), count in audit.items()
    )


_FROM_DATA_SET = (
    "patient_id", "issuer_of_patient_id", "patient_name", "patient_name_search", "patient_name_ideographic_search",
    "patient_name_phonetic_search", "patient_birth_date", "patient_sex", "accession_number",
    "issuer_of_accession_number", "study_id", "study_date", "study_time", "timezone_offset_from_utc",
    "study_description", "referring_physician_name", "referring_physician_name_search",
)  # fmt: skip
_STUDY_COLUMNS = (
    *_FROM_DATA_SET, "modalities_in_study", "sop_classes_in_study", "number_of_study_related_series",
    "number_of_study_related_instances", "size", "last_instance_at", "settled_at",
)  # fmt: skip


def _studies(jobs: list[Job]) -> dict[str, Study]:
    """The Study of each job by UID: locked if it is there, else new and unsaved."""
    wanted = {job.facts.study_instance_uid for job in jobs if job.facts}
    # In the order of their keys, as everyone who locks several should.
    found = Study.objects.select_for_update().filter(study_instance_uid__in=wanted).order_by("pk")
    studies = {study.study_instance_uid: study for study in found}
    filled = set()
    for job in jobs:
        facts = job.facts
        assert facts is not None and job.origin is not None
        study = studies.get(facts.study_instance_uid)
        if study is None:
            studies[facts.study_instance_uid] = Study(
                study_instance_uid=facts.study_instance_uid,
                calling_ae=job.origin.calling_ae[:16],
                received_at=job.received_at,
                last_instance_at=job.received_at,
                **facts.study(),
            )
        elif study.pk not in filled:
            _fill(study, facts)
        filled.add(studies[facts.study_instance_uid].pk)
    return studies


def _fill(study: Study, facts: Facts) -> None:
    """Let a later object say what the first ones left empty; never against what stands or was corrected."""
    said = facts.study()
    for column in _FROM_DATA_SET:
        if getattr(study, column) in ("", None) and said[column] and column not in study.as_received:
            setattr(study, column, said[column])


def _series(jobs: list[Job], studies: dict[str, Study]) -> dict[tuple[str, str], Series]:
    """The Series of each job by study and series UID: as stored, or new and unsaved."""
    stored = Series.objects.filter(
        series_instance_uid__in={job.facts.series_instance_uid for job in jobs if job.facts},
        study__in=[study.pk for study in studies.values()],
    )
    by_key = {study.pk: uid for uid, study in studies.items()}
    series = {(by_key[row.study_id], row.series_instance_uid): row for row in stored}
    for job in jobs:
        facts = job.facts
        assert facts is not None
        key = (facts.study_instance_uid, facts.series_instance_uid)
        if key not in series:
            series[key] = Series(
                study=studies[facts.study_instance_uid],
                series_instance_uid=facts.series_instance_uid,
                received_at=job.received_at,
                **facts.series(),
            )
            studies[facts.study_instance_uid].number_of_study_related_series += 1
    return series


def _count(study: Study, series: Series, job: Job, at: datetime) -> None:
    facts = job.facts
    assert facts is not None
    series.number_of_series_related_instances += 1
    study.number_of_study_related_instances += 1
    study.size += job.entry.size
    study.last_instance_at = at
    study.settled_at = None
    if facts.modality and facts.modality not in study.modalities_in_study:
        study.modalities_in_study = sorted([*study.modalities_in_study, facts.modality])
    if facts.sop_class_uid not in study.sop_classes_in_study:
        study.sop_classes_in_study = sorted([*study.sop_classes_in_study, facts.sop_class_uid])


def _save(model: type[Any], rows: Iterable[Any], columns: tuple[str, ...]) -> None:
    rows = list(rows)
    model.objects.bulk_create([row for row in rows if row._state.adding])
    old = [row for row in rows if not row._state.adding]
    if old:
        model.objects.bulk_update(old, columns)


def _copy_in(instances: list[dict[str, Any]]) -> None:
    """Write new Instance rows by COPY, a third of what bulk_create costs; each names every column."""
    if not instances:
        return
    columns = [str(field.column) for field in Instance._meta.concrete_fields]
    names = ", ".join(f'"{column}"' for column in columns)
    with (
        connection.cursor() as cursor,
        connection.wrap_database_errors,
        cursor.copy(f'COPY "{Instance._meta.db_table}" ({names}) FROM STDIN') as copy,
    ):
        for row in instances:
            row["attributes"] = orjson.dumps(row["attributes"]).decode()
            copy.write_row([row[column] for column in columns])


def _set_aside(jobs: list[Job]) -> None:
    known = set(SetAside.objects.filter(path__in=[job.path for job in jobs]).values_list("path", flat=True))
    rows = []
    for job in jobs:
        if job.path in known:
            continue
        known.add(job.path)
        facts, origin = job.facts, job.origin
        rows.append(
            SetAside(
                reason=job.reason,
                detail=job.detail,
                sop_instance_uid=_short(
                    facts.sop_instance_uid if facts else origin.sop_instance_uid if origin else ""
                ),
                sop_class_uid=_short(
                    facts.sop_class_uid if facts else origin.sop_class_uid if origin else ""
                ),
                transfer_syntax_uid=_short(origin.transfer_syntax_uid if origin else ""),
                study_instance_uid=facts.study_instance_uid if facts else "",
                path=job.path,
                size=job.entry.size,
                sha256=job.entry.sha256,
                calling_ae=origin.calling_ae[:16] if origin else "",
                received_at=job.received_at,
            )
        )
    SetAside.objects.bulk_create(rows)


def _short(uid: str) -> str:
    return "".join(c for c in uid if c.isprintable())[:64]


def _keep_torn(place: spool.Torn) -> None:
    """Keep what is no record, though one follows it, where a person sees it; kept again, it is the same file."""
    with place.path.open("rb") as file:
        rest = os.pread(file.fileno(), place.end - place.start, place.start)
    digest = hashlib.sha256(rest).hexdigest()
    entry = spool.Entry(
        place.path, place.start, len(rest), 0, digest, time.time_ns() // 1_000_000, place.end, True
    )
    job = Job(entry, data=memoryview(rest))
    job.set_aside(SetAside.Reason.UNREADABLE, "a damaged spool segment; may hold several objects")
    _place([], [job])
    with transaction.atomic():
        _set_aside([job])
    alerts.raise_alert(
        f"spool:{digest[:16]}", "A spool segment is damaged: check the disk.", severity="critical"
    )


# -- trying again


def try_again(row: SetAside) -> str:
    """Index an object that was set aside, as if it had just come; "" when it went well, else why not.

    Its row is marked solved, and its file leaves the place where it waited.
    """
    path = Volume(row.volume).path(row.path)
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            _, offset = read_prefix(file.read(MAX_META_BYTES))
        except NotPart10 as error:
            return str(error)
    entry = spool.Entry(path, 0, size, offset, row.sha256, int(row.received_at.timestamp() * 1000), 0, True)
    job = read(entry, spool.Mapped())  # in a file of its own: nothing is mapped beyond this call
    fresh = _sort_out([job])
    if job.reason:
        return job.detail
    _place(fresh, [])
    with transaction.atomic():
        _write(fresh, [])
        row.state, row.solved_at = SetAside.State.SOLVED, now()
        row.save(update_fields=["state", "solved_at"])
    path.unlink(missing_ok=True)
    return ""


# -- settling


def settle_seconds() -> float:
    """How long a study must be quiet before it is told upward."""
    return float(getattr(settings, "ORDERLY_SETTLE_SECONDS", 5.0))


_waits: dict[Any, tuple[float, int]] = {}  # study → (not before, failures)


def settle_once() -> int:
    """Tell upward of studies that have been quiet; one transaction each. Gives their number.

    A study whose hearers fail is tried again, later and later; others do not wait for it, and an alert is raised.
    """
    quiet = now() - timedelta(seconds=settle_seconds())
    due = Study.objects.filter(settled_at__isnull=True, last_instance_at__lte=quiet).order_by(
        "last_instance_at"
    )
    started = time.monotonic()
    waiting = [key for key, (not_before, _) in _waits.items() if not_before > started]
    count = 0
    for key in due.exclude(pk__in=waiting).values_list("pk", flat=True)[:SETTLE_AT_ONCE]:
        try:
            count += settle(key, quiet)
            if _waits.pop(key, None):
                alerts.recover(f"settle:{key}")
        except (OperationalError, InterfaceError):
            raise
        except Exception as error:
            _, failures = _waits.get(key, (0.0, 0))
            _waits[key] = (
                time.monotonic() + RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)],
                failures + 1,
            )
            log.error("study %s cannot settle: %s", key, type(error).__name__)
            alerts.raise_alert(
                f"settle:{key}",
                f"A study that came in cannot be taken further ({type(error).__name__}); it is tried again.",
                link=f"/admin/pacs/study/{key}/change/",
            )
    return count


def settle(key: Any, quiet: datetime) -> int:
    """Publish StudySettled for one study, if it is still due; 1 when it was."""
    with unit_of_work(cause.study(key)) as unit:
        study = Study.objects.select_for_update().filter(pk=key).first()
        if study is None or study.settled_at is not None or study.last_instance_at > quiet:
            return 0
        grown = study.times_settled > 0
        study.settled_at = unit.at
        study.times_settled += 1
        study.save(update_fields=["settled_at", "times_settled"])
        routing.on_settled(study, unit)
        unit.publish(StudySettled(study, grown))
        crashpoint("indexer.before_settled")
    manifest.due(key)
    return 1


# -- the process


@contextmanager
def _only_one(ctx: Context) -> Iterator[bool]:
    """Hold the lock of the one indexer of this spool; False when told to stop before it was free."""
    base = spool.root()
    base.mkdir(parents=True, exist_ok=True, mode=0o750)
    fd = os.open(base / "indexer.lock", os.O_CREAT | os.O_RDWR, 0o640)
    try:
        while not ctx.stopping.is_set():
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                ctx.ready()  # another one does the work; this one stands by
                ctx.beat()
                ctx.stopping.wait(1)
        yield not ctx.stopping.is_set()
    finally:
        os.close(fd)


def main(ctx: Context) -> None:
    """The process `indexer`."""
    with _only_one(ctx) as ours:
        if not ours:
            return
        os.nice(NICE)
        router = threading.Thread(target=routing.run, args=(ctx,), name="routing", daemon=True)
        router.start()
        ctx.ready()
        failures = 0
        while not ctx.stopping.is_set():
            ctx.beat()
            try:
                busy = (0 if _more_are_coming() else index_once()) + settle_once()
                if failures:
                    alerts.recover("indexer")
                failures = 0
            except (OperationalError, InterfaceError, OSError) as error:
                log.error("indexing waits: %s", type(error).__name__)
                pause = RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)]
                failures += 1
                if failures == 3:
                    _alert(error)
                ctx.stopping.wait(pause)
                continue
            finally:
                close_old_connections()
            if not busy and not manifest.renew_piece():
                ctx.stopping.wait(POLL_SECONDS)


def _more_are_coming() -> bool:
    """Whether a batch should wait for company: one of many objects costs less, and receivers come first."""
    waiting = spool.waiting(count=COMPANY)
    if waiting.newest is None or waiting.oldest is None:
        return False
    at = time.time()  # it may have been set back
    coming = abs(at - waiting.newest) < COMING_SECONDS and abs(at - waiting.oldest) < PATIENCE_SECONDS
    return coming and waiting.objects < COMPANY


def _alert(error: Exception) -> None:
    try:
        alerts.raise_alert(
            "indexer",
            f"Arriving images are kept but cannot be indexed ({type(error).__name__}): look at disk and database.",
            severity="critical",
        )
    except Exception:
        log.error("the alert could not be raised either")
