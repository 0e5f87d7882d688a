"""C-GET and C-MOVE: what was stored comes back unchanged, with the overlay's differences and no others."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom import AE, build_role, evt

from common.clock import now
from common.models import AuditEvent
from pacs import indexing
from pacs.dimse import datasets, sender
from pacs.dimse.admission import Known
from pacs.dimse.command import Command
from pacs.dimse.registry import Registry
from pacs.models import ApplicationEntity, Instance, Overlay, Study
from pacs.services import get, move
from pacs.services.retrieve import PATIENT_ROOT_GET, PATIENT_ROOT_MOVE, STUDY_ROOT_GET, STUDY_ROOT_MOVE
from pacs.storage.part10 import Origin, prefix, read_prefix
from tests.conftest import require_peer, sample
from tests.pacs.dimse.conftest import ALL, Served
from tests.pacs.dimse.test_store import CT, EXPLICIT, made, send

pytestmark = pytest.mark.django_db(transaction=True)
IMPLICIT = "1.2.840.10008.1.2"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"


def register(registry: Registry) -> None:
    get.register(registry)
    move.register(registry)


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    return serve(register=register, known=[Known("*", "*", ALL)])


def stored(served: Served, *paths: Path) -> dict[str, bytes]:
    """Send files and index them; gives their data sets by SOP Instance UID."""
    sent = {}
    for path in paths:
        with sender.part10(path) as (origin, view):
            data = bytes(view)
        # One sample's meta header names another instance than its data set: announce what it is.
        origin = replace(origin, sop_instance_uid=str(dcmread(path).SOPInstanceUID))
        assert send(served, origin, data) == 0
        sent.setdefault(origin.sop_instance_uid, data)  # two samples have one UID: the second is set aside
    index()
    return sent


def index() -> None:
    while indexing.index_once():
        pass


def identifier(level: str = "STUDY", **keys: Any) -> Dataset:
    ds = Dataset()
    ds.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(ds, keyword, value)
    return ds


class Receiver:
    """A storage SCP by pynetdicom that keeps data sets as they come."""

    def __init__(self, *syntaxes: str, classes: list[str] | None = None) -> None:
        self.got: dict[str, tuple[str, bytes]] = {}
        self.originators: list[tuple[Any, Any]] = []
        self.status = 0
        self.pause = 0.0
        ae = AE(ae_title="RECEIVER")
        for uid in (
            classes
            or [str(cx) for cx in set(Instance.objects.values_list("sop_class_uid", flat=True))]
            or [CT]
        ):
            ae.add_supported_context(uid, list(syntaxes) or [EXPLICIT, IMPLICIT])
        ae.add_supported_context("1.2.840.10008.1.1")
        self.server = ae.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)]
        )
        self.port = self.server.server_address[1]

    def _store(self, event: Any) -> int:
        time.sleep(self.pause)
        rq = event.request
        self.originators.append((rq.MoveOriginatorApplicationEntityTitle, rq.MoveOriginatorMessageID))
        self.got[str(rq.AffectedSOPInstanceUID)] = (str(event.context.transfer_syntax), rq.DataSet.getvalue())
        return self.status

    def stop(self) -> None:
        self.server.shutdown()


@contextmanager
def receiving(*syntaxes: str, classes: list[str] | None = None) -> Iterator[Receiver]:
    receiver = Receiver(*syntaxes, classes=classes)
    ApplicationEntity.objects.create(title="RECEIVER", host="127.0.0.1", port=receiver.port, services=[])
    try:
        yield receiver
    finally:
        receiver.stop()


def moved(
    served: Served, ds: Dataset, to: str = "RECEIVER", root: str = STUDY_ROOT_MOVE
) -> list[tuple[int, Any, Dataset | None]]:
    """Responses of a C-MOVE: (status, its elements, identifier)."""
    ae = AE(ae_title="ASKER")
    ae.add_requested_context(root, IMPLICIT)
    assoc = ae.associate("127.0.0.1", served.port, ae_title="ORDERLY")
    assert assoc.is_established
    answers = [(status.Status, status, found) for status, found in assoc.send_c_move(ds, to, root)]
    assoc.release()
    return answers


def test_a_study_is_moved_with_its_bytes_unchanged_and_its_originator(served: Served, tmp_path: Path) -> None:
    sent = {}
    for number in range(3):
        origin, data = made(30_000 * number, f"1.2.3.{number + 1}")
        assert send(served, origin, data) == 0
        sent[origin.sop_instance_uid] = (EXPLICIT, data)
    index()
    with receiving() as receiver:
        answers = moved(served, identifier(StudyInstanceUID="1.2.3"))
    assert receiver.got == sent
    assert set(receiver.originators) == {("ASKER", 1)}
    final = answers[-1][1]
    assert (final.Status, final.NumberOfCompletedSuboperations, final.NumberOfFailedSuboperations) == (
        0,
        3,
        0,
    )
    assert answers[:-1] and all(status == 0xFF00 for status, _, _ in answers[:-1])
    event = AuditEvent.objects.get(action="retrieve")
    assert (event.actor, event.detail["destination"], event.detail["instances"]) == (
        "ae:ASKER",
        "RECEIVER",
        3,
    )


def test_series_and_instances_are_retrieved_by_their_keys(served: Served) -> None:
    for number in range(4):
        origin, data = made(10, f"1.2.3.{number + 1}", SeriesInstanceUID=f"1.2.3.{number // 2 + 1}")
        assert send(served, origin, data) == 0
    index()
    with receiving() as receiver:
        moved(served, identifier("SERIES", StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.3.1"))
        assert set(receiver.got) == {"1.2.3.1", "1.2.3.2"}
        receiver.got.clear()
        moved(served, identifier("IMAGE", StudyInstanceUID="1.2.3", SOPInstanceUID=["1.2.3.2", "1.2.3.4"]))
        assert set(receiver.got) == {"1.2.3.2", "1.2.3.4"}


def test_all_of_a_patient_is_retrieved_in_the_patient_root(served: Served) -> None:
    for number, patient in enumerate(("P1", "P1", "P2"), 1):
        study = f"1.2.{number}"
        origin, data = made(10, f"{study}.1.1", StudyInstanceUID=study, PatientID=patient)
        assert send(served, origin, data) == 0
    index()
    ds = identifier("PATIENT", PatientID="P1")
    with receiving() as receiver:
        assert moved(served, ds, root=PATIENT_ROOT_MOVE)[-1][0] == 0
        assert set(receiver.got) == {"1.2.1.1.1", "1.2.2.1.1"}
        receiver.got.clear()
        ds = identifier("STUDY", PatientID="P2", StudyInstanceUID="1.2.1")  # that is another patient's
        assert moved(served, ds, root=PATIENT_ROOT_MOVE)[-1][0] == 0
        assert not receiver.got
    _, got = fetched_by_get(served, [EXPLICIT], identifier("PATIENT", PatientID="P1"), PATIENT_ROOT_GET)
    assert got == {"1.2.1.1.1", "1.2.2.1.1"}


@pytest.mark.parametrize(
    ("ds", "to", "code"),
    [
        (identifier(StudyInstanceUID="1.2.3"), "NOBODY", 0xA801),
        (identifier(StudyInstanceUID=""), "RECEIVER", 0xA900),
        (identifier("PATIENT", PatientID="P1"), "RECEIVER", 0xA900),
        (identifier(StudyInstanceUID="9.9.9"), "RECEIVER", 0),
    ],
)
def test_what_cannot_be_moved_is_answered_as_such(served: Served, ds: Dataset, to: str, code: int) -> None:
    with receiving():
        answers = moved(served, ds, to)
    assert [status for status, _, _ in answers] == [code]


def test_a_destination_that_is_away_fails_all_and_names_them(served: Served) -> None:
    origin, data = made(10)
    send(served, origin, data)
    index()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    ApplicationEntity.objects.create(title="AWAY", host="127.0.0.1", port=port)
    (answer,) = moved(served, identifier(StudyInstanceUID="1.2.3"), "AWAY")
    assert (answer[0], answer[1].NumberOfFailedSuboperations) == (0xA702, 1)
    assert answer[2] is not None and answer[2].FailedSOPInstanceUIDList == "1.2.3.4"


def test_failures_and_warnings_of_the_destination_are_counted(served: Served) -> None:
    for number in range(2):
        origin, data = made(10, f"1.2.3.{number + 1}")
        send(served, origin, data)
    index()
    with receiving() as receiver:
        receiver.status = 0xB000
        assert moved(served, identifier(StudyInstanceUID="1.2.3"))[-1][1].NumberOfWarningSuboperations == 2
        receiver.status = 0xA700
        status, final, failed = moved(served, identifier(StudyInstanceUID="1.2.3"))[-1]
    assert (status, final.NumberOfFailedSuboperations) == (0xA702, 2)
    assert failed is not None and set(failed.FailedSOPInstanceUIDList) == {"1.2.3.1", "1.2.3.2"}


def test_a_move_is_cancelled_between_two_objects(served: Served) -> None:
    for number in range(30):
        origin, data = made(10, f"1.2.3.{number + 1}")
        send(served, origin, data)
    index()
    with receiving() as receiver:
        receiver.pause = 0.1
        ae = AE(ae_title="ASKER")
        ae.add_requested_context(STUDY_ROOT_MOVE, IMPLICIT)
        assoc = ae.associate("127.0.0.1", served.port, ae_title="ORDERLY")
        last = None
        for status, _ in assoc.send_c_move(
            identifier(StudyInstanceUID="1.2.3"), "RECEIVER", STUDY_ROOT_MOVE, msg_id=5
        ):
            if last is None:
                assoc.send_c_cancel(5, None, STUDY_ROOT_MOVE)
            last = status
        assoc.release()
    assert last is not None and last.Status == 0xFE00
    assert last.NumberOfRemainingSuboperations > 0
    assert len(receiver.got) == last.NumberOfCompletedSuboperations < 30


def test_the_overlay_is_in_what_is_moved_and_nothing_else_differs(served: Served) -> None:
    paths = sorted(sample("dicom", "ts").glob("*.dcm"))
    sent = stored(served, *paths)
    for one in Study.objects.all():
        Overlay.objects.create(
            study=one,
            attributes={"PatientName": "Neu^Name", "PatientID": "N1"},
            cause="user:1",
            updated_at=now(),
        )
    syntaxes = [str(s) for s in set(Instance.objects.values_list("transfer_syntax_uid", flat=True))]
    with receiving(*syntaxes) as receiver:
        for uid in Study.objects.values_list("study_instance_uid", flat=True):
            moved(served, identifier(StudyInstanceUID=uid))
        assert set(receiver.got) == set(sent)
        for uid, (syntax, data) in receiver.got.items():
            before, after = _decoded(sent[uid], syntax), _decoded(data, syntax)
            assert (str(after.PatientName), after.PatientID) == ("Neu^Name", "N1")
            for ds in (before, after):
                for keyword in ("PatientName", "PatientID"):
                    if keyword in ds:
                        delattr(ds, keyword)
            assert {e.tag: e for e in after} == {e.tag: e for e in before}


def _decoded(data: bytes, syntax: str) -> Dataset:
    return dcmread(BytesIO(prefix(Origin(CT, "1.2.3", syntax)) + data))


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_a_destination_that_lacks_the_syntax_gets_it_uncompressed(served: Served, syntax: str) -> None:
    names = ("RLE_Lossless.dcm", "Explicit_VR_Big_Endian.dcm", "Deflated_Explicit_VR_Little_Endian.dcm")
    paths = [sample("dicom", "ts", name) for name in names]
    stored(served, *paths)
    Overlay.objects.create(
        study=Study.objects.get(series__instances__sop_instance_uid=dcmread(paths[0]).SOPInstanceUID),
        attributes={"PatientName": "Neu^Name"}, cause="user:1", updated_at=now(),
    )  # fmt: skip
    with receiving(syntax) as receiver:
        for uid in Study.objects.values_list("study_instance_uid", flat=True):
            assert moved(served, identifier(StudyInstanceUID=uid))[-1][0] == 0
    for path in paths:
        original = dcmread(path)
        got_syntax, data = receiver.got[original.SOPInstanceUID]
        assert got_syntax == syntax
        got = _decoded(data, syntax)
        assert (got.pixel_array == original.pixel_array).all()
    assert str(_decoded(receiver.got[dcmread(paths[0]).SOPInstanceUID][1], syntax).PatientName) == "Neu^Name"


def test_storescp_and_movescu_of_dcmtk_get_a_study(served: Served, tmp_path: Path) -> None:
    sent = stored(served, sample("dicom", "ts", "Explicit_VR_Little_Endian.dcm"))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    ApplicationEntity.objects.create(title="STORESCP", host="127.0.0.1", port=port)
    scp = subprocess.Popen(
        [require_peer("storescp"), "-aet", "STORESCP", "+B", "-od", str(tmp_path), str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _wait_for(port)
        subprocess.run(
            [require_peer("movescu"), "-S", "-aec", "ORDERLY", "-aem", "STORESCP", "-k", "QueryRetrieveLevel=STUDY",
             "-k", f"StudyInstanceUID={Study.objects.get().study_instance_uid}", "127.0.0.1", str(served.port)],
            check=True, timeout=60,
        )  # fmt: skip
    finally:
        scp.terminate()
        scp.wait()
    (file,) = [path for path in tmp_path.iterdir() if path.is_file()]
    raw = file.read_bytes()
    assert raw[read_prefix(raw)[1] :] == next(iter(sent.values()))


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the peer did not start")


def test_getscu_gets_a_study_over_its_own_association(served: Served, tmp_path: Path) -> None:
    folder = tmp_path / "got"
    folder.mkdir()
    sent = {}
    for number in range(3):
        origin, data = made(70_000, f"1.2.3.{number + 1}")
        send(served, origin, data)
        sent[sha256(data).hexdigest()] = data
    index()
    subprocess.run(
        [require_peer("getscu"), "-S", "-aec", "ORDERLY", "-od", str(folder), "+B", "-k", "QueryRetrieveLevel=STUDY",
         "-k", "StudyInstanceUID=1.2.3", "127.0.0.1", str(served.port)], check=True, timeout=60,
    )  # fmt: skip
    got = [path.read_bytes() for path in folder.iterdir()]
    assert {sha256(raw[read_prefix(raw)[1] :]).hexdigest() for raw in got} == set(sent)


def test_what_the_asker_did_not_offer_to_take_fails_by_itself(served: Served) -> None:
    stored(served, sample("dicom", "ts", "Explicit_VR_Little_Endian.dcm"))
    mr = "1.2.840.10008.5.1.4.1.1.4"
    _, data = made(10, StudyInstanceUID=Study.objects.get().study_instance_uid, SOPClassUID=mr)
    Study.objects.update(patient_id="P1")
    send(served, Origin(mr, "1.2.3.4", EXPLICIT), data)
    index()
    got = []

    def keep(event: Any) -> int:
        got.append(event.request.AffectedSOPInstanceUID)
        return 0

    ae = AE(ae_title="ASKER")
    ae.add_requested_context(STUDY_ROOT_GET)
    ae.add_requested_context(CT, EXPLICIT)
    assoc = ae.associate(
        "127.0.0.1", served.port, ae_title="ORDERLY", ext_neg=[build_role(CT, scp_role=True)],
        evt_handlers=[(evt.EVT_C_STORE, keep)],
    )  # fmt: skip
    ds = identifier(StudyInstanceUID=Study.objects.get().study_instance_uid)
    final = [status for status, _ in assoc.send_c_get(ds, STUDY_ROOT_GET)][-1]
    assoc.release()
    assert (final.NumberOfCompletedSuboperations, final.NumberOfFailedSuboperations) == (1, 1)
    assert final.Status == 0xB000
    assert got == list(Instance.objects.filter(sop_class_uid=CT).values_list("sop_instance_uid", flat=True))


def test_two_askers_at_once_do_not_hold_each_other_up(served: Served) -> None:
    for number in range(5):
        origin, data = made(10, f"1.2.3.{number + 1}")
        send(served, origin, data)
    index()
    with receiving() as receiver:
        receiver.pause = 0.2
        finals: list[int] = []

        def ask() -> None:
            finals.append(moved(served, identifier(StudyInstanceUID="1.2.3"))[-1][0])

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert sender.echo(served.destination()) == 0
        for thread in threads:
            thread.join(60)
    assert finals == [0, 0]


IMAGE = {
    "Rows": 5, "Columns": 10, "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 0,
    "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
}  # fmt: skip


@pytest.mark.parametrize(
    ("said", "encoding", "reason"),
    [(EXPLICIT, IMPLICIT, "overlay: "), (JPEG_LOSSLESS, EXPLICIT, "cannot be decoded: ")],
)
@pytest.mark.parametrize("way", ["move", "get"])
def test_what_is_not_in_the_syntax_that_it_says_fails_by_itself_with_its_reason(
    served: Served, said: str, encoding: str, reason: str, way: str
) -> None:
    """Such an object is kept and found, pydicom forgives it; but nothing can be laid over its bytes, nor decoded."""
    for uid in ("1.2.3.1", "1.2.3.3"):
        origin, data = made(100, uid)
        assert send(served, origin, data) == 0
    _, data = made(100, "1.2.3.2", **IMAGE)
    if encoding == IMPLICIT:
        data = datasets.encode(datasets.decode(data, EXPLICIT, Command(CommandField=1)), IMPLICIT)
    assert send(served, Origin(CT, "1.2.3.2", said), data) == 0
    index()
    assert Instance.objects.count() == 3
    Overlay.objects.create(
        study=Study.objects.get(), attributes={"PatientName": "Neu^Name"}, cause="user:1", updated_at=now()
    )
    fetched = {"move": fetched_by_move, "get": fetched_by_get}[way]
    final, got = fetched(served, [EXPLICIT] if said == JPEG_LOSSLESS else [EXPLICIT, IMPLICIT])
    assert got == {"1.2.3.1", "1.2.3.3"}
    assert (final.NumberOfCompletedSuboperations, final.NumberOfFailedSuboperations) == (2, 1)
    assert final.Status == 0xB000
    assert final.ErrorComment.startswith(reason)
    assert sender.echo(served.destination()) == 0


def fetched_by_move(served: Served, syntaxes: list[str]) -> tuple[Any, set[str]]:
    """The last response, and the UIDs that came."""
    with receiving(*syntaxes, classes=[CT]) as receiver:
        answers = moved(served, identifier(StudyInstanceUID="1.2.3"))
    return answers[-1][1], set(receiver.got)


def fetched_by_get(
    served: Served, syntaxes: list[str], ds: Dataset | None = None, root: str = STUDY_ROOT_GET
) -> tuple[Any, set[str]]:
    got = set()

    def keep(event: Any) -> int:
        got.add(str(event.request.AffectedSOPInstanceUID))
        return 0

    ae = AE(ae_title="ASKER")
    ae.add_requested_context(root)
    for syntax in syntaxes:
        ae.add_requested_context(CT, syntax)
    assoc = ae.associate(
        "127.0.0.1", served.port, ae_title="ORDERLY", ext_neg=[build_role(CT, scp_role=True)],
        evt_handlers=[(evt.EVT_C_STORE, keep)],
    )  # fmt: skip
    ds = ds or identifier(StudyInstanceUID="1.2.3")
    final = [status for status, _ in assoc.send_c_get(ds, root)][-1]
    assoc.release()
    return final, got
