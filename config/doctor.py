"""The checks of `manage.py doctor`, each bounded in time, each saying what is wrong and what to do."""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from common.metrics import queues
from common.process import read_run_file
from config.postgres import OLDEST_SERVER, Cluster
from integration.models import Destination
from pacs.models import ApplicationEntity

PEER_SECONDS = 5.0
LEAST_FREE = 0.05  # of the disk
MEMORY_FILE_SYSTEMS = {"tmpfs", "ramfs", "devtmpfs"}


@dataclass
class Check:
    """What one look found. `layer` and `name` say where, `detail` what; `facts` are numbers for programs."""

    layer: str
    name: str
    ok: bool
    detail: str
    facts: dict[str, Any] = field(default_factory=dict)


def checks() -> Iterator[Check]:
    """Every check in turn, from below upward; one that fails by an error of its own is ill, and ends nothing."""
    looks: list[Callable[[], Iterator[Check]]] = [
        _database,
        _migrations,
        _disk,
        _fsync,
        _ports,
        _application_entities,
        _destinations,
        _queues,
    ]
    for look in looks:
        try:
            yield from look()
        except Exception as trouble:
            layer = look.__name__.strip("_")
            first_line = str(trouble).partition("\n")[0]
            yield Check(layer, "-", False, f"could not be looked at: {type(trouble).__name__}: {first_line}")


def _database() -> Iterator[Check]:
    began = time.monotonic()
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('server_version_num')::int / 10000, pg_is_in_recovery()")
        version, standby = cursor.fetchone()
    ok = version >= OLDEST_SERVER and not standby
    own = bool(os.environ.get("DATABASE_URL"))
    kind = "your own server" if own else "embedded"
    # Where pg_dump and psql of the same version are, and the socket they connect to (docs/operations.md).
    places = {} if own else Cluster(settings.DATA_DIR).places()
    detail = f"PostgreSQL {version}, {kind}"
    if standby:
        detail += "; it is a standby and cannot be written to: point DATABASE_URL at the primary"
    elif not ok:
        detail += f"; Orderly needs {OLDEST_SERVER} or later"
    yield Check("database", "server", ok, detail, {"ms": _ms(began), "version": version, **places})


def _migrations() -> Iterator[Check]:
    executor = MigrationExecutor(connection)
    missing = executor.migration_plan(executor.loader.graph.leaf_nodes())
    detail = "all applied" if not missing else f"{len(missing)} not applied: run manage.py migrate"
    yield Check("migrations", "schema", not missing, detail, {"missing": len(missing)})


def _disk() -> Iterator[Check]:
    usage = shutil.disk_usage(settings.DATA_DIR)
    free = usage.free / usage.total
    ok = free >= LEAST_FREE and os.access(settings.DATA_DIR, os.W_OK)
    detail = f"{usage.free / 1e9:.1f} GB free ({free:.0%}) in {settings.DATA_DIR}"
    if not os.access(settings.DATA_DIR, os.W_OK):
        detail += "; it cannot be written to"
    elif not ok:
        detail += "; make room before objects are refused"
    yield Check("disk", "data", ok, detail, {"free_bytes": usage.free, "total_bytes": usage.total})


def _fsync() -> Iterator[Check]:
    """Whether what is acknowledged is on a disk: our own files, and the database's settings."""
    times = [_one_durable_write(Path(settings.DATA_DIR) / f".fsync-{os.getpid()}") for _ in range(9)]
    median = statistics.median(times) * 1000
    kind = _file_system(Path(settings.DATA_DIR))
    ok = kind not in MEMORY_FILE_SYSTEMS
    detail = f"{median:.2f} ms a write on {kind or 'an unknown file system'}"
    if not ok:
        detail += "; it lies in memory and is lost with the power: move the data directory (--data)"
    yield Check("fsync", "files", ok, detail, {"ms": round(median, 3), "file_system": kind})
    with connection.cursor() as cursor:
        wanted = ("fsync", "full_page_writes", "synchronous_commit")
        cursor.execute("SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", [list(wanted)])
        found = dict(cursor.fetchall())
    off = [name for name in wanted if found.get(name) in ("off", "local")]
    detail = "commits are durable" if not off else f"commits may be lost: turn on {', '.join(off)}"
    yield Check("fsync", "database", not off, detail, found)


def _one_durable_write(path: Path) -> float:
    began = time.monotonic()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(fd, b"\0" * 4096)
        os.fsync(fd)
    finally:
        os.close(fd)
        path.unlink()
    return time.monotonic() - began


def _file_system(path: Path) -> str:
    """The type of the file system that holds `path`, of /proc/mounts; empty where there is none."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return ""
    real = path.resolve()
    holding = [m for m in mounts if real.is_relative_to(m[1].replace("\\040", " "))]
    return max(holding, key=lambda m: len(m[1]), default=["", "", ""])[2]


def _ports() -> Iterator[Check]:
    run = read_run_file(settings.DATA_DIR)
    if run is None:
        yield Check("ports", "serve", False, "Orderly does not run on this data directory: manage.py serve")
        return
    for name, port in run["ports"].items():
        trouble = _connects(settings.ORDERLY_BIND, port)
        yield Check(
            "ports",
            name,
            not trouble,
            f"{settings.ORDERLY_BIND}:{port} {trouble or 'listens'}",
            {"port": port},
        )
    for name, said in run["processes"].items():
        ok = said["state"] == "ready"
        detail = f"{said['state']}, restarted {said['restarts']} times"
        yield Check("processes", name, ok, detail, {"pid": said["pid"], "restarts": said["restarts"]})


def _application_entities() -> Iterator[Check]:
    for ae in ApplicationEntity.objects.filter(enabled=True, port__isnull=False).exclude(host__in=("", "*")):
        if "/" in ae.host:  # a network calls; it is not called
            continue
        began = time.monotonic()
        trouble = _echo(ae)
        where = f"{ae.host}:{ae.port}"
        detail = f"C-ECHO to {where}: {trouble or 'Success'}"
        yield Check("peers", ae.title, not trouble, detail, {"ms": _ms(began)})


def _echo(ae: ApplicationEntity) -> str:
    """Empty when the peer answers C-ECHO with Success, else what went wrong."""
    from pynetdicom import AE
    from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

    caller = AE(ae_title=settings.ORDERLY_AE_TITLE)
    caller.acse_timeout = caller.dimse_timeout = caller.network_timeout = caller.connection_timeout = (
        PEER_SECONDS
    )
    caller.add_requested_context(Verification)
    if trouble := _connects(ae.host, ae.port or 0):
        return trouble
    assoc = caller.associate(ae.host, ae.port or 0, ae_title=ae.title if ae.title != "*" else "ANY-SCP")
    if assoc.is_rejected:
        return f"the association was rejected; does it know {settings.ORDERLY_AE_TITLE}?"
    if not assoc.is_established:
        return "no association came about"
    try:
        status = assoc.send_c_echo()
    finally:
        assoc.release()
    answered = status.get("Status") if status else None
    return "" if answered == 0 else "no answer" if answered is None else f"status {answered:#06x}"


def _destinations() -> Iterator[Check]:
    for one in Destination.objects.filter(enabled=True):
        if one.kind != Destination.Kind.FHIR:
            host, port = one.host, one.port or 0
        else:
            host, port = _host_of_url(one.url)
        began = time.monotonic()
        trouble = _connects(host, port)
        detail = f"{one.get_kind_display()}, {host}:{port} {trouble or 'accepts connections'}"
        yield Check("peers", one.name, not trouble, detail, {"ms": _ms(began)})


def _host_of_url(url: str) -> tuple[str, int]:
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _queues() -> Iterator[Check]:
    for queue in queues():
        waiting = list(queue.states())
        count = sum(one.count for one in waiting)
        oldest = max(waiting, key=lambda one: one.age_seconds, default=None)
        age = oldest.age_seconds if oldest else 0.0
        ok = age <= queue.late_after
        detail = f"{queue.title}: {count}"
        if oldest and count:
            detail += f", the oldest ({oldest.part}) for {_duration(age)}"
        facts = {"waiting": count, "oldest_seconds": round(age, 1), "late_after_seconds": queue.late_after}
        yield Check("queues", queue.name, ok, detail, facts)


def _connects(host: str, port: int) -> str:
    """Empty when something accepts a TCP connection there, else what went wrong."""
    try:
        socket.create_connection((host, port), timeout=PEER_SECONDS).close()
    except TimeoutError:
        return f"does not answer within {PEER_SECONDS:.0f} s"
    except (OSError, OverflowError) as trouble:
        return f"cannot be reached ({getattr(trouble, 'strerror', None) or trouble})"
    return ""


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"


def _ms(began: float) -> float:
    return round((time.monotonic() - began) * 1000, 1)
