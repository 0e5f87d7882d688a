"""What C-MOVE and C-GET share: which instances are meant, their bytes with the overlay, and the counting."""

from __future__ import annotations

import contextlib
import itertools
import logging
import mmap
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset

from common import audit
from common.uids import is_loose_uid
from pacs import overlay, rendering
from pacs.dimse import datasets, status
from pacs.dimse.registry import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    Outcome,
    Refused,
    Request,
)
from pacs.header import HeaderError
from pacs.models import Instance, Overlay
from pacs.storage.part10 import MAX_META_BYTES, Origin, read_prefix
from pacs.storage.volume import full_path

log = logging.getLogger(__name__)

PATIENT_ROOT_MOVE, PATIENT_ROOT_GET = "1.2.840.10008.5.1.4.1.2.1.2", "1.2.840.10008.5.1.4.1.2.1.3"
STUDY_ROOT_MOVE, STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.2", "1.2.840.10008.5.1.4.1.2.2.3"
_PATIENT_ROOTS = frozenset((PATIENT_ROOT_MOVE, PATIENT_ROOT_GET))

#: Level → (its unique key, the lookup for it); levels above may narrow further.
_KEYS = {
    "PATIENT": ("PatientID", "series__study__patient_id"),
    "STUDY": ("StudyInstanceUID", "series__study__study_instance_uid"),
    "SERIES": ("SeriesInstanceUID", "series__series_instance_uid"),
    "IMAGE": ("SOPInstanceUID", "sop_instance_uid"),
}
#: What an object is turned into where the receiver does not take it as it lies.
PLAIN = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)
PENDING_SECONDS = 0.1  #: between two responses that say how far a retrieval is
AT_ONCE_BYTES = (
    8 * 1024 * 1024
)  #: a file up to this is read in whole while the receiver stores the one before


class Unsendable(Exception):
    """An object that cannot be given to this receiver: no common transfer syntax, or unreadable."""


class Opened:
    """A data set that is about to be sent, in pieces; `close` it once they are no longer looked at."""

    def __init__(self, pieces: list[Any], mapped: mmap.mmap | None = None) -> None:
        self.pieces = pieces
        self._mapped = mapped
        self.whole = memoryview(
            mapped if mapped is not None else b""
        )  #: the file, where it is sent as it lies

    def close(self) -> None:
        """Let go of the file."""
        self.pieces = []
        self.whole.release()
        if self._mapped is not None:
            with contextlib.suppress(BufferError):  # whoever sends it still holds a slice: it goes with that
                self._mapped.close()


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored instance and what is needed to send it after the database has been left."""

    origin: Origin
    path: str
    volume: str
    data_set_offset: int
    study: Any  #: the row's id
    overlay: dict[str, Any]

    def open(self, transfer_syntax: str) -> Opened:
        """The data set with its overlay; decoded when another transfer syntax is wanted.

        Raises Unsendable, or OSError when the file cannot be read.
        """
        try:
            return self._open(transfer_syntax)
        except (Unsendable, OSError):
            raise
        except Exception as error:  # whatever its bytes do to those who read them, the others go
            raise Unsendable(f"cannot be read: {type(error).__name__}") from None

    def _open(self, transfer_syntax: str) -> Opened:
        path = full_path(self.volume, self.path)
        if transfer_syntax != self.origin.transfer_syntax_uid:
            return Opened(self._converted(path, transfer_syntax))
        fd = os.open(path, os.O_RDONLY)
        try:
            at_once = mmap.MAP_POPULATE if os.fstat(fd).st_size <= AT_ONCE_BYTES else 0
            mapped = mmap.mmap(fd, 0, flags=mmap.MAP_SHARED | at_once, prot=mmap.PROT_READ)
        finally:
            os.close(fd)
        opened = Opened([], mapped)
        try:
            opened.pieces = _with_overlay(opened.whole, self.data_set_offset, transfer_syntax, self.overlay)
        except BaseException:
            opened.close()
            raise
        return opened

    def _converted(self, path: str, transfer_syntax: str) -> list[Any]:
        try:
            raw = rendering.decompressed(path)
        except rendering.RenderingError as error:
            raise Unsendable(f"cannot be decoded: {error.reason}") from None
        if transfer_syntax == IMPLICIT_VR_LITTLE_ENDIAN:
            ds = dcmread(BytesIO(raw))
            overlay.apply_dataset(ds, self.overlay)
            del ds.file_meta
            return [datasets.encode(ds, transfer_syntax)]
        _, offset = read_prefix(raw[:MAX_META_BYTES])
        return _with_overlay(memoryview(raw), offset, transfer_syntax, self.overlay)


def _with_overlay(
    whole: memoryview, offset: int, transfer_syntax: str, attributes: dict[str, Any]
) -> list[Any]:
    if not attributes:
        return [whole[offset:]]
    try:
        spliced = overlay.splice(whole, offset, transfer_syntax, attributes)
    except HeaderError as error:
        raise Unsendable(f"overlay: {error}") from None
    return [spliced.head, whole[spliced.resume :]]


def select(request: Request) -> list[Stored]:
    """The instances that an identifier means, in order of series and number. Raises Refused (A900)."""
    ds = request.dataset
    level = str(ds.get("QueryRetrieveLevel", "") or "").strip().upper()
    if level not in _KEYS or (level == "PATIENT" and request.context.abstract_syntax not in _PATIENT_ROOTS):
        raise Refused(status.DATA_SET_MISMATCH, "no such Query/Retrieve Level", OffendingElement=[0x00080052])
    wanted: dict[str, Any] = {}
    for one, (keyword, lookup) in _KEYS.items():
        values = _values(ds, keyword)
        if values:
            wanted[f"{lookup}__in"] = values
        elif one == level:
            raise Refused(status.DATA_SET_MISMATCH, f"{keyword} is needed", OffendingElement=[_tag(keyword)])
        if one == level:
            break
    rows = (
        Instance.objects.filter(hidden=False, series__study__hidden=False, **wanted)
        .order_by("series__series_number", "series_id", "instance_number", "id")
        .values_list(
            "sop_class_uid", "sop_instance_uid", "transfer_syntax_uid", "path", "volume", "data_set_offset",
            "series__study_id",
        )
    )  # fmt: skip
    found = list(rows)
    overlays = dict(
        Overlay.objects.filter(study__in={row[6] for row in found}).values_list("study_id", "attributes")
    )
    return [
        Stored(Origin(row[0], row[1], row[2]), row[3], row[4], row[5], row[6], overlays.get(row[6], {}))
        for row in found
    ]


def _values(ds: Dataset, keyword: str) -> list[str]:
    value = ds.get(keyword)
    values = [value] if isinstance(value, str) else list(value or [])
    texts = [str(one).strip() for one in values if str(one).strip()]
    if keyword != "PatientID" and not all(is_loose_uid(text) for text in texts):
        raise Refused(status.DATA_SET_MISMATCH, f"{keyword} is no UID", OffendingElement=[_tag(keyword)])
    return texts


def _tag(keyword: str) -> int:
    return {"PatientID": 0x00100020, "StudyInstanceUID": 0x0020000D, "SeriesInstanceUID": 0x0020000E}.get(
        keyword, 0x00080018
    )


def record(request: Request, found: list[Stored], destination: str) -> None:
    """Write the audit row of a retrieval; before the first object leaves."""
    audit.record(
        f"ae:{request.assoc.calling_ae}",
        "retrieve",
        "study",
        objects=dict.fromkeys(str(one.study) for one in found),
        detail={"service": request.command.name, "destination": destination, "instances": len(found)},
        address=request.assoc.address,
    )


@dataclass(slots=True)
class Count:
    """The sub-operations of one retrieval (PS3.4 C.4.2.1.6 to 9)."""

    remaining: int
    completed: int = 0
    failed: list[str] = field(default_factory=list)
    warned: int = 0
    reason: str = ""  #: why the first one failed

    def note(self, uid: str, code: int, reason: str = "") -> None:
        """One sub-operation ended with this status."""
        self.remaining -= 1
        if code == status.SUCCESS:
            self.completed += 1
        elif code >> 12 == 0xB:
            self.warned += 1
        else:
            self.failed.append(uid)
            self.reason = self.reason or reason or f"refused with {code:04X}"

    def pending(self) -> Outcome:
        """The counts in between."""
        return Outcome(status.PENDING, elements=self._elements(True))

    def final(self, request: Request, cancelled: bool) -> Outcome:
        """The last response: Success, B000 with failures or warnings, A702 when nothing was sent, or FE00. Its Error
        Comment says why the first one failed."""
        data = None
        if self.failed:
            ds = Dataset()
            ds.FailedSOPInstanceUIDList = self.failed
            data = request.encode(ds)
        if cancelled:
            return Outcome(status.CANCELLED, data, self.reason, self._elements(True))
        code = status.SUCCESS
        if self.failed and not self.completed and not self.warned:
            code = status.CANNOT_PERFORM_SUBOPERATIONS
        elif self.failed or self.warned:
            code = status.SUBOPERATIONS_WITH_FAILURES
        return Outcome(code, data, self.reason, self._elements(False))

    def _elements(self, remaining: bool) -> dict[str, int]:
        most = 0xFFFF  # of an US
        elements = {
            "NumberOfCompletedSuboperations": min(self.completed, most),
            "NumberOfFailedSuboperations": min(len(self.failed), most),
            "NumberOfWarningSuboperations": min(self.warned, most),
        }
        if remaining:
            elements["NumberOfRemainingSuboperations"] = min(self.remaining, most)
        return elements


#: Sends one and is told what follows; gives the status.
Send = Callable[[Stored, Stored | None], int]


def run(request: Request, found: list[Stored], send: Send) -> Iterator[Outcome]:
    """Send one after the other with `send`, counting; it raises Unsendable or OSError for a single failure.

    A pending response is given after the first and then now and then: one for each would slow down what it tells of.
    """
    count = Count(len(found))
    told = 0.0
    for one, following in itertools.zip_longest(found, found[1:]):
        if request.cancelled:
            break
        reason = ""
        try:
            code = send(one, following)
        except (Unsendable, OSError) as error:
            code, reason = status.PROCESSING_FAILURE, _reason(error)
            log.warning("%s: %s is not sent: %s", request.assoc.id, one.path, reason)
        count.note(one.origin.sop_instance_uid, code, reason)
        at = time.monotonic()
        if count.remaining and at - told > PENDING_SECONDS:
            told = at
            yield count.pending()
    yield count.final(request, bool(count.remaining))


def _reason(error: Unsendable | OSError) -> str:
    """Why, in words that hold neither a value nor a path."""
    if isinstance(error, OSError):
        return f"its file cannot be read: {error.strerror or type(error).__name__}"
    return str(error)
