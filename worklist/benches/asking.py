"""For benches: a worklist SCU over a bare socket, which counts answers and takes times, and the servers it asks."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings
from pydicom import Dataset

from common.servers import serving
from pacs.dimse import command, negotiation, stream
from pacs.dimse.datasets import encode
from pacs.dimse.negotiation import Proposed
from pacs.dimse.registry import EXPLICIT_VR_LITTLE_ENDIAN
from worklist.scp import MODALITY_WORKLIST_FIND

CONTEXT = 1
CALLED = "ORDERLY"
_HEADER = struct.Struct(">BxI")
_PDV = struct.Struct(">IBB")


@dataclass(frozen=True)
class Asked:
    """What came of one query: how many answers, and milliseconds to the first response and to the last."""

    count: int
    first_ms: float
    last_ms: float


class Scanner:
    """One association that asks worklists."""

    def __init__(self, port: int, calling_ae: str = "BENCH", seconds: float = 120.0) -> None:
        proposed = [Proposed(CONTEXT, MODALITY_WORKLIST_FIND, (EXPLICIT_VR_LITTLE_ENDIAN,))]
        self.sock = socket.create_connection(("127.0.0.1", port), seconds)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        try:
            self.sock.sendall(negotiation.request_pdu(calling_ae, CALLED, proposed))
            kind, body = self._pdu()
            contexts, _ = negotiation.read_accept(body, proposed) if kind == stream.ASSOCIATE_AC else ({}, 0)
            if CONTEXT not in contexts:
                raise RuntimeError(f"the server on port {port} takes no worklist association")
        except BaseException:
            self.sock.close()
            raise

    def _more(self) -> bytes:
        data = self.sock.recv(1 << 20)
        if not data:
            raise RuntimeError("the server closed the connection")
        return data

    def _pdu(self) -> tuple[int, bytes]:
        while len(self._buffer) < 6 or len(self._buffer) < 6 + _HEADER.unpack_from(self._buffer)[1]:
            self._buffer += self._more()
        kind, length = _HEADER.unpack_from(self._buffer)
        body, self._buffer = self._buffer[6 : 6 + length], self._buffer[6 + length :]
        return kind, body

    def ask(self, ds: Dataset) -> Asked:
        """Ask once, and count the pending responses until the final one."""
        began = time.perf_counter()
        self.sock.sendall(_find(ds))
        first = 0.0
        count = 0
        while True:
            body = self._next_command()
            first = first or time.perf_counter()
            if command.decode(body)["Status"] & 0xFF00 != 0xFF00:
                break
            count += 1 + self._skip_pending()
        last = time.perf_counter()
        return Asked(count, (first - began) * 1000, (last - began) * 1000)

    def cancel(self, ds: Dataset) -> float:
        """Ask, and cancel after the first response: milliseconds until the final one. Raises RuntimeError."""
        cancel = {
            "CommandField": command.CODES["C-CANCEL"],
            "MessageIDBeingRespondedTo": 1,
            "CommandDataSetType": command.NO_DATA_SET,
        }
        self.sock.sendall(_find(ds))
        self._next_command()
        began = time.perf_counter()
        self.sock.sendall(
            b"".join(stream.data_pdus(CONTEXT, command.encode(cancel), command=True, max_data=16384))
        )
        while True:
            self._skip_pending()
            said = command.decode(self._next_command())["Status"]
            if said & 0xFF00 != 0xFF00:
                break
        if said != 0xFE00:
            raise RuntimeError(f"a cancelled query ended with {said:04X}")
        return (time.perf_counter() - began) * 1000

    def _next_command(self) -> bytes:
        """The next command set; data sets before it are passed over."""
        whole = b""
        while True:
            kind, body = self._pdu()
            if kind != stream.P_DATA:
                raise RuntimeError(f"PDU of type {kind}: the server gave up")
            at = 0
            while at < len(body):
                length, _, control = _PDV.unpack_from(body, at)
                if control & 1:
                    whole += body[at + 6 : at + 4 + length]
                at += 4 + length
            if whole:
                return whole

    def _skip_pending(self) -> int:
        """Count the whole pending responses that lie in the buffer already, up to the final one, and drop them."""
        buffer, at, count = self._buffer, 0, 0
        while at + 12 <= len(buffer):
            kind, length = _HEADER.unpack_from(buffer, at)
            end = at + 6 + length
            if end > len(buffer) or kind != stream.P_DATA:
                break
            if buffer[at + 11] & 1:
                if not _is_pending(buffer[at + 12 : end]):
                    break
                count += 1
            at = end
        self._buffer = buffer[at:]
        return count

    def close(self) -> None:
        """Release, and wait for the answer."""
        self.sock.sendall(stream.RELEASE_REQUEST)
        try:
            self._pdu()
        except (OSError, RuntimeError):
            pass
        self.sock.close()


def _find(ds: Dataset) -> bytes:
    """The PDUs of one C-FIND-RQ with these keys."""
    request = {
        "AffectedSOPClassUID": MODALITY_WORKLIST_FIND,
        "CommandField": command.CODES["C-FIND"],
        "MessageID": 1,
        "Priority": 0,
        "CommandDataSetType": 0,
    }
    pdus = [
        *stream.data_pdus(CONTEXT, command.encode(request), command=True, max_data=16384),
        *stream.data_pdus(CONTEXT, encode(ds, EXPLICIT_VR_LITTLE_ENDIAN), command=False, max_data=16384),
    ]
    return b"".join(pdus)


_STATUS = struct.pack("<HHI", 0x0000, 0x0900, 2)


def _is_pending(raw: bytes) -> bool:
    at = raw.find(_STATUS)
    return at >= 0 and raw[at + 9] == 0xFF


# -- servers


def _associates(port: int) -> None:
    Scanner(port, seconds=30.0).close()


@contextmanager
def ours(port: int) -> Iterator[int]:
    """Our DICOM process on the database of these settings."""
    words = [sys.executable, str(Path(settings.BASE_DIR) / "manage.py"), "run", "dicom"]
    environment = {
        **os.environ,
        "ORDERLY_DICOM_PORT": str(port),
        "ORDERLY_DICOM_PROCESSES": "1",
        "ORDERLY_LOG_LEVEL": "ERROR",
    }
    with serving(words, lambda: _associates(port), environment, Path(settings.BASE_DIR)) as pid:
        yield pid


@contextmanager
def wlmscpfs(port: int, folder: Path) -> Iterator[int]:
    """DCMTK's worklist server over a folder of worklist files. TCP_NODELAY: Debian's build is slow without."""
    words = [str(shutil.which("wlmscpfs")), "-dfp", str(folder), str(port)]
    with serving(words, lambda: _associates(port), {**os.environ, "TCP_NODELAY": "1"}) as pid:
        yield pid


@contextmanager
def orthanc(port: int, folder: Path, work: Path) -> Iterator[int]:
    """Orthanc with its worklist plugin over the same files."""
    configuration = work / "orthanc.json"
    configuration.write_text(
        json.dumps(
            {
                "StorageDirectory": str(work / "orthanc"),
                "IndexDirectory": str(work / "orthanc"),
                "HttpServerEnabled": False,
                "DicomAet": CALLED,
                "DicomPort": port,
                "DicomAlwaysAllowFindWorklist": True,
                "Plugins": [str(orthanc_plugin())],
                "Worklists": {"Enable": True, "Database": str(folder / CALLED)},
            }
        )
    )
    words = [str(orthanc_program()), str(configuration)]
    with serving(words, lambda: _associates(port), {**os.environ, "TCP_NODELAY": "1"}) as pid:
        yield pid


def orthanc_program() -> Path | None:
    """Orthanc, wherever distributions put it."""
    found = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


def orthanc_plugin() -> Path | None:
    """Its worklist plugin."""
    places = [
        Path("/usr/share/orthanc/plugins"),
        Path("/usr/local/share/orthanc/plugins"),
        Path("/usr/lib/orthanc"),
    ]
    return next(
        (p / "libModalityWorklists.so" for p in places if (p / "libModalityWorklists.so").exists()), None
    )
