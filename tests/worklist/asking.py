"""Short ways for tests to fill a worklist and to ask it: without a network, and through a real DICOM door."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from pydicom import Dataset
from pydicom.filereader import read_dataset

from pacs.dimse import datasets
from pacs.dimse.admission import Admission, Known, Limits, Slots, StaticDirectory
from pacs.dimse.command import Command
from pacs.dimse.registry import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    Context,
    Peer,
    Request,
    load,
)
from pacs.dimse.server import Server
from worklist import scp

SERVICES = ["pacs.services.echo", "worklist.scp", "worklist.mpps"]


@dataclass
class FakeAssoc:
    """An association as a handler sees it."""

    calling_ae: str = "CT01"
    called_ae: str = "ORDERLY"
    address: str = "127.0.0.1"
    id: str = "a1"
    peer: Peer | None = None
    contexts: Mapping[int, Context] = field(default_factory=dict)


@dataclass
class FakeExchange:
    """The data set of one request, at hand at once."""

    data: bytes

    def fragments(self) -> Iterator[memoryview]:
        yield memoryview(self.data)

    def cancelled(self) -> bool:
        return False


def request_for(
    ds: Dataset,
    *,
    command: str = "C-FIND",
    uid: str = "",
    ae: str = "CT01",
    options: Mapping[str, Any] | None = None,
    syntax: str = EXPLICIT_VR_LITTLE_ENDIAN,
) -> Request:
    """A request as the door would hand it to a service."""
    codes = {"C-FIND": 0x0020, "N-CREATE": 0x0140, "N-SET": 0x0120, "N-GET": 0x0110}
    fields: dict[str, Any] = {"CommandField": codes[command], "MessageID": 1, "CommandDataSetType": 0}
    if uid:
        fields["AffectedSOPInstanceUID"] = uid
    peer = Peer(ae, frozenset({"worklist", "mpps"}), options or {})
    context = Context(1, scp.MODALITY_WORKLIST_FIND, syntax)
    data = datasets.encode(ds, syntax)
    return Request(FakeAssoc(calling_ae=ae, peer=peer), context, Command(fields), FakeExchange(data))


def decode(data: bytes, syntax: str = EXPLICIT_VR_LITTLE_ENDIAN) -> Dataset:
    """An identifier's bytes as pydicom reads them."""
    implicit, little = syntax == IMPLICIT_VR_LITTLE_ENDIAN, syntax != EXPLICIT_VR_BIG_ENDIAN
    return read_dataset(BytesIO(data), implicit, little, bytelength=len(data))


def ask(ds: Dataset, **kwargs: Any) -> list[Dataset]:
    """The identifiers that a query is answered with. Raises Refused."""
    syntax = kwargs.get("syntax", EXPLICIT_VR_LITTLE_ENDIAN)
    return [decode(data, syntax) for _, data in scp.find(request_for(ds, **kwargs))]


def query(**keys: Any) -> Dataset:
    """A query: keys of the data set by keyword; those of the step in `step`; None leaves the sequence out."""
    step = keys.pop("step", {})
    ds = Dataset()
    for keyword, value in {"PatientName": "", "AccessionNumber": "", **keys}.items():
        setattr(ds, keyword, value)
    if step is not None:
        item = Dataset()
        for keyword, value in {"ScheduledProcedureStepID": "", **step}.items():
            setattr(item, keyword, value)
        ds.ScheduledProcedureStepSequence = [item]
    return ds


def found(ds: Dataset, **kwargs: Any) -> list[str]:
    """The accession numbers that a query finds, sorted."""
    return sorted(str(answer.AccessionNumber) for answer in ask(ds, **kwargs))


@contextmanager
def door(*known: Known) -> Iterator[int]:
    """A DICOM door with worklist and MPPS on a free port; everybody may use it unless peers are named."""
    registry = load(SERVICES)
    rights = frozenset({"echo", "worklist", "mpps"})
    directory = StaticDirectory(known or (Known("*", "*", rights),))
    slots = Slots(Limits())
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server({listener: None}, registry, Admission(directory, registry, ["ORDERLY"], slots), slots)
    stopping = threading.Event()
    thread = threading.Thread(target=server.run, args=(stopping,))
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        stopping.set()
        thread.join(30)
        listener.close()
