"""`manage.py bench store`: storing, sending and finding beside DCMTK, Orthanc and a bare probe, in turn, in one run."""

from __future__ import annotations

import hashlib
import json as jsonlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import count as counter
from pathlib import Path
from statistics import median
from typing import Any

from django.conf import settings
from django.db import connection

from common.benches import measured
from common.servers import free_port, serving
from pacs.benches.loading import CALLING, load, objects, write_files
from pacs.dimse import datasets, sender
from pacs.dimse.command import CODES
from pacs.dimse.registry import EXPLICIT_VR_LITTLE_ENDIAN
from pacs.models import ApplicationEntity, Instance, Study
from pacs.services.find import STUDY_ROOT
from pacs.storage.volume import sync_folder

ROUNDS = 3
SENDING_ROUNDS = 5
CT_COUNT, CT_BYTES = 500, 512 * 512 * 2
SMALL_COUNT, SMALL_BYTES = 2000, 10_000
LARGE_COUNT, LARGE_BYTES = 5, 100_000_000
AS_SHIPPED_COUNT = 60  #: of small objects for a peer that takes 90 ms for each: its rate is what counts
NODELAY = {"TCP_NODELAY": "1"}  #: without it Debian's DCMTK and Orthanc wait 40 ms an object

Say = Callable[[dict[str, Any]], None]
_seeds = counter(int(time.time()) * 1000, 10)


#: What `bench store --only` may name.
PARTS = ("storing", "storescu", "sending", "finding")


def run(json: bool = False, only: str = "") -> bool:
    """Measure and print every case, or one of PARTS; True when no `must` is missed and no peer is absent."""
    results: list[dict[str, Any]] = []

    def say(row: dict[str, Any]) -> None:
        results.append(row)
        print(jsonlib.dumps(row) if json else _line(row), flush=True)

    work = Path(settings.DATA_DIR).parent / "peers"
    work.mkdir(exist_ok=True)
    storescp_port = free_port()
    with ExitStack() as stack:
        ours = stack.enter_context(_ours(storescp_port))
        peers = _start_peers(stack, work, say)
        if only in ("", "storing"):
            _storing(ours, peers, work, say)
        if only in ("", "storescu"):
            _from_storescu(ours, peers, work, say)
        if only in ("", "sending"):
            _sending(ours, peers, work, storescp_port, say)
        if only in ("", "finding"):
            _finding(ours, say)
    return all(row["ok"] for row in results)


def _line(row: dict[str, Any]) -> str:
    said = f"{row['case']:52} {row['ours'] if row['ours'] is not None else '-':>10} {row['unit']}"
    if row["peer"]:
        said += f"   {row['peer']} {row['theirs']}   x {row['ratio']}"
    if row["must"] is not None:
        said += f"   must {row['must']}: {'ok' if row['ok'] else 'MISSED'}"
    return said


def _row(
    case: str,
    ours: float | None,
    unit: str,
    *,
    peer: str | None = None,
    theirs: float | None = None,
    must: float | None = None,
    ok: bool | None = None,
    floor: float | None = None,
) -> dict[str, Any]:
    ratio = ours / theirs if ours and theirs else None
    if ok is None:
        ok = must is None or (ratio is not None and ratio >= must)
    return measured(
        "store", case, ours, unit, peer=peer, theirs=theirs, ratio=ratio, must=must, ok=ok, floor=floor
    )


# -- servers


@contextmanager
def _ours(storescp_port: int) -> Iterator[int]:
    """Our listener and indexer on the data directory of these settings; gives the port."""
    everything = list(ApplicationEntity.SERVICES)
    ApplicationEntity.objects.create(title=CALLING, host="127.0.0.1", services=everything)
    for title in ("STORESCU", "MOVESCU"):
        ApplicationEntity.objects.create(title=title, host="127.0.0.1", services=everything)
    ApplicationEntity.objects.create(title="STORESCP", host="127.0.0.1", port=storescp_port)
    port = free_port()
    manage = str(Path(settings.BASE_DIR) / "manage.py")
    environment = {
        "ORDERLY_DICOM_PORT": str(port),
        "ORDERLY_DIMSE_SERVICES": "",
        "ORDERLY_SETTLE_SECONDS": "3600",
    }
    with (
        serving([sys.executable, manage, "run", "indexer"], environment=_environment(environment)),
        _serving([sys.executable, manage, "run", "dicom"], environment, port, "ORDERLY"),
    ):
        yield port


def _start_peers(stack: ExitStack, work: Path, say: Say) -> dict[str, tuple[int, str]]:
    """Name → (port, AE title) of the peers that are there; a case says which are not."""
    peers: dict[str, tuple[int, str]] = {}
    storescp, orthanc = shutil.which("storescp"), _orthanc_program()
    if storescp:
        port = peers["storescp"] = (free_port(), "STORESCP")
        folder = work / "storescp"
        folder.mkdir()
        words = [
            storescp,
            "--fork",
            "-aet",
            "STORESCP",
            "+B",
            "-od",
            str(folder),
            "-pdu",
            "131072",
            str(port[0]),
        ]
        stack.enter_context(_serving(words, NODELAY, *port))
    if orthanc:
        for name, environment in (("orthanc", NODELAY), ("orthanc as shipped", {})):
            peers[name] = (free_port(), "ORTHANC")
            words = [orthanc, str(_orthanc_configuration(work / name.replace(" ", "_"), peers[name][0]))]
            stack.enter_context(_serving(words, environment, *peers[name]))
    for name, found in (("storescp", storescp), ("orthanc", orthanc)):
        if not found:
            say(_row("all", None, "", peer=name, ok=False))
    return peers


def _orthanc_program() -> str | None:
    return shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def _orthanc_configuration(folder: Path, port: int, storescp_port: int = 104) -> Path:
    folder.mkdir()
    path = folder / "orthanc.json"
    path.write_text(
        jsonlib.dumps(
            {
                "DicomPort": port,
                "DicomAet": "ORTHANC",
                "StorageDirectory": str(folder / "store"),
                "IndexDirectory": str(folder / "index"),
                "HttpServerEnabled": False,
                "DicomAlwaysAllowStore": True,
                "DicomAlwaysAllowMove": True,
                "DicomModalities": {"storescp": ["STORESCP", "127.0.0.1", storescp_port]},
                "Plugins": [],
            }
        )
    )
    return path


def _environment(added: dict[str, str]) -> dict[str, str]:
    """Ours, without the variable whose effect on peers is measured, and with what is added."""
    return {key: value for key, value in os.environ.items() if key != "TCP_NODELAY"} | added


def _serving(
    words: list[str], environment: dict[str, str], port: int, called: str
) -> AbstractContextManager[int]:
    """A server as a child, once it answers a C-ECHO."""
    there = sender.Destination("127.0.0.1", port, called, CALLING)
    return serving(words, lambda: sender.echo(there), _environment(environment))


# -- storing


def _storing(ours: int, peers: dict[str, tuple[int, str]], work: Path, say: Say) -> None:
    """Loads by our own client, each server in turn in each round."""
    servers = {"ours": (ours, "ORDERLY")} | {
        name: peers[name] for name in ("storescp", "orthanc") if name in peers
    }
    memory = 0.0
    lags = []
    for case, associations, number, size, must in (
        ("CT, 1 association", 1, CT_COUNT, CT_BYTES, 2.0),
        ("CT, 4 associations", 4, CT_COUNT, CT_BYTES, 2.0),
        ("10 KB, 1 association", 1, SMALL_COUNT, SMALL_BYTES, None),
        ("10 KB, 4 associations", 4, SMALL_COUNT, SMALL_BYTES, 1.5),
        ("100 MB multi-frames", 1, LARGE_COUNT, LARGE_BYTES, None),
    ):
        rates: dict[str, list[float]] = {name: [] for name in (*servers, "probe")}
        for _ in range(ROUNDS):
            for name, (port, title) in servers.items():
                seconds = load(port, title, associations, number, size, next(_seeds))
                rates[name].append(number / seconds)
                if name == "ours":
                    lags.append(_wait_until_indexed())
                    memory = max(memory, _peak_memory())
            rates["probe"].append(number / _probe(work / "probe", number, size))
        floor = median(rates["probe"])
        mine = median(rates["ours"])
        for name in servers:
            if name != "ours":
                needed = must if name == "orthanc" else None
                say(
                    _row(
                        case,
                        mine,
                        "objects/s",
                        peer=name,
                        theirs=median(rates[name]),
                        must=needed,
                        floor=floor,
                    )
                )
        if size == LARGE_BYTES:
            say(
                _row(
                    f"{case}, bare write+hash+fsync", mine, "objects/s", peer="probe", theirs=floor, must=0.7
                )
            )
    say(_row("indexed after the last Success", max(lags), "s", must=2.0, ok=max(lags) <= 2.0))
    say(_row("peak memory of a receiving process", memory, "MB", must=100.0, ok=memory < 100))


def _probe(folder: Path, number: int, size: int) -> float:
    """Seconds that hashing, writing and syncing the same bytes takes, one file an object, no network."""
    made = list(objects(number, size, next(_seeds)))
    folder.mkdir()
    began = time.perf_counter()
    for at, (_, header, pixels) in enumerate(made):
        digest = hashlib.sha256(header)
        digest.update(pixels)
        fd = os.open(folder / str(at), os.O_CREAT | os.O_WRONLY)
        os.writev(fd, [header, pixels])
        os.fsync(fd)
        os.close(fd)
        sync_folder(folder)
    seconds = time.perf_counter() - began
    shutil.rmtree(folder)
    return seconds


def _wait_until_indexed() -> float:
    """Seconds until everything spooled is in the index."""
    from pacs.storage import spool

    began = time.perf_counter()
    while spool.oldest()[0]:
        time.sleep(0.02)
        if time.perf_counter() - began > 120:
            raise RuntimeError("the indexer does not come to an end")
    return time.perf_counter() - began


def _peak_memory() -> float:
    """The most memory that a process of our listener ever held (VmHWM), in MB."""
    most = 0.0
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and b"run\0dicom" in (folder / "cmdline").read_bytes():
                environment = (folder / "environ").read_bytes()
                if f"ORDERLY_DATA_DIR={settings.DATA_DIR}\0".encode() in environment:
                    status = (folder / "status").read_text()
                    most = max(most, int(status.split("VmHWM:")[1].split()[0]) / 1000)
        except (OSError, IndexError):
            continue
    return most


def _from_storescu(ours: int, peers: dict[str, tuple[int, str]], work: Path, say: Say) -> None:
    """2,000 small objects from DCMTK's storescu as Debian ships it."""
    storescu = shutil.which("storescu")
    if not storescu or "orthanc as shipped" not in peers:
        say(_row("10 KB from plain storescu", None, "", peer="orthanc as shipped", ok=False))
        return
    rates: dict[str, float] = {}
    for name, (port, title), number in (
        ("ours", (ours, "ORDERLY"), SMALL_COUNT),
        ("orthanc as shipped", peers["orthanc as shipped"], AS_SHIPPED_COUNT),
    ):
        folder = work / f"for {name}"
        write_files(folder, number, SMALL_BYTES, next(_seeds))
        began = time.perf_counter()
        subprocess.run(
            [storescu, "-aec", title, "127.0.0.1", str(port), "+sd", str(folder)],
            check=True,
            env=_environment({}),
        )
        rates[name] = number / (time.perf_counter() - began)
        shutil.rmtree(folder)
    _wait_until_indexed()
    theirs = rates["orthanc as shipped"]
    say(
        _row(
            "10 KB from plain storescu",
            rates["ours"],
            "objects/s",
            peer="orthanc as shipped",
            theirs=theirs,
            must=20.0,
        )
    )


# -- sending


def _sending(ours: int, peers: dict[str, tuple[int, str]], work: Path, storescp_port: int, say: Say) -> None:
    """500 CT by C-MOVE to storescp, asked of us and of Orthanc by movescu. Two rounds are not counted: each of our
    processes, and theirs, sends for the first time in one of them."""
    movescu, storescp = shutil.which("movescu"), shutil.which("storescp")
    if not movescu or not storescp or "orthanc" not in peers:
        say(_row("sending CT to storescp", None, "", peer="orthanc", ok=False))
        return
    folder = work / "moved"
    folder.mkdir()
    orthanc_port = free_port()
    path = _orthanc_configuration(work / "orthanc_mover", orthanc_port, storescp_port)
    words = [storescp, "-aet", "STORESCP", "+B", "--ignore", "-pdu", "131072", str(storescp_port)]
    rates: dict[str, list[float]] = {"ours": [], "orthanc": []}
    with (
        _serving(words, NODELAY, storescp_port, "STORESCP"),
        _serving([_orthanc_program() or "", str(path)], NODELAY, orthanc_port, "ORTHANC"),
    ):
        for number in range(2 + SENDING_ROUNDS):
            for name, port, title in (("ours", ours, "ORDERLY"), ("orthanc", orthanc_port, "ORTHANC")):
                seed = next(_seeds)
                load(port, title, 1, CT_COUNT, CT_BYTES, seed)
                if name == "ours":
                    _wait_until_indexed()
                began = time.perf_counter()
                subprocess.run(
                    [movescu, "-S", "-aec", title, "-aem", "STORESCP", "-k", "QueryRetrieveLevel=STUDY",
                     "-k", f"StudyInstanceUID=1.2.826.0.1.99.{seed}", "127.0.0.1", str(port)],
                    check=True, env={**os.environ, **NODELAY}, stdout=subprocess.DEVNULL,
                )  # fmt: skip
                if number >= 2:
                    rates[name].append(CT_COUNT / (time.perf_counter() - began))
    say(
        _row(
            "sending CT to storescp", median(rates["ours"]), "objects/s", peer="orthanc",
            theirs=median(rates["orthanc"]), must=1.0,
        )
    )  # fmt: skip


# -- finding


def _finding(ours: int, say: Say) -> None:
    """Study level C-FIND over 20,000 and 200,000 studies: the first answer within 10 ms, whatever their number."""
    Instance.objects.all().delete()
    Study.objects.all().delete()
    for total in (20_000, 200_000):
        _fill_studies(total)
        middle = total // 2
        for case, keys, expected in (
            ("patient ID", {0x00100020: f"P{middle:07d}"}, 1),
            ("accession", {0x00080050: f"A{middle:07d}"}, 1),
            ("date and modality", {0x00080020: "20200110-20200110", 0x00080061: "MR"}, None),
            ("name prefix", {0x00100010: f"FAMILY{middle // 10:06d}*"}, 10),
        ):
            firsts, lasts, found = [], [], 0
            for _ in range(7):
                first, last, found = _ask(ours, keys)
                firsts.append(first)
                lasts.append(last)
            if expected is not None and found != expected:
                raise RuntimeError(f"{case}: {found} answers, not {expected}")
            first = median(firsts)
            say(_row(f"{total} studies, {case}: first answer", first, "ms", must=10.0, ok=first < 10))
            say(_row(f"{total} studies, {case}: all {found}", median(lasts), "ms"))


def _fill_studies(total: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO pacs_study (id, study_instance_uid, patient_id, issuer_of_patient_id, patient_name,
                patient_name_search, patient_name_ideographic_search, patient_name_phonetic_search,
                patient_birth_date, patient_sex, accession_number, issuer_of_accession_number, study_id, study_date,
                study_time, timezone_offset_from_utc, study_description, referring_physician_name,
                referring_physician_name_search, modalities_in_study, sop_classes_in_study,
                number_of_study_related_series, number_of_study_related_instances, size, calling_ae, as_received,
                attributes, received_at, last_instance_at, settled_at, times_settled, hidden)
            SELECT gen_random_uuid(), '1.2.826.0.1.98.' || g, 'P' || lpad(g::text, 7, '0'), '',
                'FAMILY' || lpad((g / 10)::text, 6, '0') || '^GIVEN',
                'family' || lpad((g / 10)::text, 6, '0') || '^given', '', '', '19700101', 'F',
                'A' || lpad(g::text, 7, '0'), '', '', date '2020-01-01' + (g %% (%s / 100))::int,
                time '10:00', '', 'CT HEAD',
                '', '', ARRAY[(ARRAY['CT', 'MR', 'US', 'CR', 'DX'])[1 + g / 7 %% 5]], '{}', 1, 100, 0, '', '{}', '{}',
                now(), now(), now(), 1, false
            FROM generate_series((SELECT count(*) FROM pacs_study), %s - 1) AS g
            """,
            [total, total],
        )
        cursor.execute("VACUUM ANALYZE pacs_study")


def _ask(port: int, keys: dict[int, str]) -> tuple[float, float, int]:
    """One query: milliseconds to the first response and to the last, and the number of answers."""
    from pydicom.dataset import Dataset

    ds = Dataset()
    ds.QueryRetrieveLevel = "STUDY"
    for tag in (0x0020000D, 0x00100010, 0x00100020, 0x00080050, 0x00080020, 0x00080061, *keys):
        ds.add_new(
            tag, {0x10: "PN", 0x20: "LO", 0x50: "SH", 0x61: "CS", 0x0D: "UI"}.get(tag & 0xFF, "DA"), ""
        )
    for tag, key in keys.items():
        ds[tag].value = key
    if 0x00080020 in keys:
        ds[0x00080020].VR = "DA"
    identifier = datasets.encode(ds, EXPLICIT_VR_LITTLE_ENDIAN)
    destination = sender.Destination("127.0.0.1", port, "ORDERLY", CALLING)
    with sender.associate(destination, [(STUDY_ROOT, (EXPLICIT_VR_LITTLE_ENDIAN,))]) as assoc:
        context = next(iter(assoc.contexts.values()))
        command = {
            "AffectedSOPClassUID": STUDY_ROOT,
            "CommandField": CODES["C-FIND"],
            "MessageID": 1,
            "Priority": 0,
            "CommandDataSetType": 1,
        }
        began = time.perf_counter()
        assoc.send(context, command, identifier)
        count, first = 0, 0.0
        while True:
            status = assoc.next_message(60).command.status
            first = first or time.perf_counter()
            if status & 0xFF00 != 0xFF00:
                break
            count += 1
        last = time.perf_counter()
    return (first - began) * 1000, (last - began) * 1000, count
