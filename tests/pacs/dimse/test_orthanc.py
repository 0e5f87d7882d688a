"""Orthanc as a peer, in both directions: it sends to us, asks us, fetches from us, and takes what we send on."""

from __future__ import annotations

import json
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from common.clock import now
from common.servers import free_port
from pacs import routing
from pacs.dimse import sender
from pacs.dimse.admission import Known
from pacs.dimse.registry import Registry
from pacs.dimse.server import tls_context
from pacs.models import ApplicationEntity, Forwarding, Instance, Overlay, RoutingRule, Study
from pacs.services import find, get, move
from pacs.storage.volume import open_file
from tests.conftest import require_peer, sample
from tests.pacs.dimse.conftest import ALL, Served, fingerprint
from tests.pacs.dimse.test_retrieve import index, stored

pytestmark = pytest.mark.django_db(transaction=True)

SYNTAXES = (
    "Explicit_VR_Little_Endian.dcm",
    "Implicit_VR_Little_Endian.dcm",
    "Explicit_VR_Big_Endian.dcm",
    "RLE_Lossless.dcm",
)


class Orthanc:
    """A running Orthanc and its REST interface."""

    def __init__(self, folder: Path, ours: int, **more: Any) -> None:
        self.port, self.http = free_port(), free_port()
        settings: dict[str, Any] = {
            "Name": "peer",
            "DicomPort": self.port,
            "DicomAet": "ORTHANC",
            "HttpPort": self.http,
            "AuthenticationEnabled": False,
            "StorageDirectory": str(folder / "store"),
            "IndexDirectory": str(folder / "index"),
            "DicomAlwaysAllowStore": True,
            "DicomModalities": {"orderly": {"AET": "ORDERLY", "Host": "127.0.0.1", "Port": ours}},
            "Plugins": [],
            **more,
        }
        if settings.get("DicomTlsEnabled"):
            settings["DicomModalities"]["orderly"]["UseDicomTls"] = True
        path = folder / "orthanc.json"
        path.write_text(json.dumps(settings))
        self.child = subprocess.Popen(
            [require_peer("Orthanc"), str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                self.ask("/system")
                return
            except OSError:
                assert self.child.poll() is None and time.monotonic() < deadline, "Orthanc did not start"
                time.sleep(0.1)

    def ask(self, path: str, body: Any = None) -> Any:
        """GET, or POST of a body: bytes as they are, anything else as JSON. Gives JSON, or bytes of a file."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", data, timeout=120) as answer:
            raw = answer.read()
        return raw if path.endswith("/file") else json.loads(raw)

    def delete(self, path: str) -> None:
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", method="DELETE")
        urllib.request.urlopen(request, timeout=120).close()

    def files(self) -> dict[str, Dataset]:
        """What it holds, by SOP Instance UID."""
        found = [dcmread(BytesIO(self.ask(f"/instances/{key}/file"))) for key in self.ask("/instances")]
        return {str(ds.SOPInstanceUID): ds for ds in found}

    def stop(self) -> None:
        self.child.terminate()
        try:
            self.child.wait(30)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


def register(registry: Registry) -> None:
    find.register(registry)
    get.register(registry)
    move.register(registry)


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    return serve(register=register, known=[Known("ORTHANC", "*", ALL), Known("SCANNER", "*", ALL)])


@pytest.fixture
def orthanc(served: Served, tmp_path: Path) -> Iterator[Orthanc]:
    folder = tmp_path / "orthanc"
    folder.mkdir()
    one = Orthanc(folder, served.port)
    ApplicationEntity.objects.create(title="ORTHANC", host="127.0.0.1", port=one.port, services=[])
    yield one
    one.stop()


def test_orthanc_sends_us_every_syntax_it_has(served: Served, orthanc: Orthanc) -> None:
    orthanc.ask("/modalities/orderly/echo", {})
    keys = [orthanc.ask("/instances", sample("dicom", "ts", name).read_bytes())["ID"] for name in SYNTAXES]
    orthanc.ask("/modalities/orderly/store", {"Resources": keys, "Synchronous": True})
    index()
    theirs = orthanc.files()
    assert Instance.objects.count() == len(theirs)
    for row in Instance.objects.all():
        with open_file(row) as file:
            ours = dcmread(file)
        assert ours.get("PixelData") == theirs[row.sop_instance_uid].get("PixelData")
        assert ours.file_meta.TransferSyntaxUID == theirs[row.sop_instance_uid].file_meta.TransferSyntaxUID
        assert row.calling_ae == "ORTHANC"


def test_orthanc_finds_a_study_here_and_has_it_sent_with_its_corrections(
    served: Served, orthanc: Orthanc
) -> None:
    stored(served, *(sample("dicom", "ts", name) for name in SYNTAXES))
    study = Study.objects.get(series__instances__sop_instance_uid=_uid(SYNTAXES[0]))
    attributes = {"PatientName": "Neu^Name"}
    Overlay.objects.create(study=study, attributes=attributes, cause="user:1", updated_at=now())
    wanted = {"StudyInstanceUID": study.study_instance_uid, "PatientID": "", "StudyDate": ""}
    asked = orthanc.ask("/modalities/orderly/query", {"Level": "Study", "Query": wanted})
    assert len(orthanc.ask(f"/queries/{asked['ID']}/answers")) == 1
    answer = orthanc.ask(f"/queries/{asked['ID']}/answers/0/content?simplify")
    assert (answer["StudyInstanceUID"], answer["PatientID"]) == (study.study_instance_uid, study.patient_id)
    orthanc.ask(f"/queries/{asked['ID']}/retrieve", {"TargetAet": "ORTHANC", "Synchronous": True})
    got = orthanc.files()
    rows = Instance.objects.filter(series__study=study)
    assert set(got) == set(rows.values_list("sop_instance_uid", flat=True))
    assert {str(ds.PatientName) for ds in got.values()} == {"Neu^Name"}


def test_a_rule_sends_studies_on_to_orthanc(served: Served, orthanc: Orthanc) -> None:
    stored(served, *(sample("dicom", "ts", name) for name in SYNTAXES))
    rule = RoutingRule.objects.create(
        name="all", destination=ApplicationEntity.objects.get(title="ORTHANC", port__isnull=False)
    )
    for study in Study.objects.all():
        Forwarding.objects.create(rule=rule, study=study, created_at=now(), next_attempt_at=now())
    assert routing.drain("ORTHANC", threading.Event()) == Study.objects.count()
    theirs = orthanc.files()
    assert set(theirs) == set(Instance.objects.values_list("sop_instance_uid", flat=True))
    for row in Instance.objects.all():
        with open_file(row) as file:
            assert dcmread(file).get("PixelData") == theirs[row.sop_instance_uid].get("PixelData")


def _uid(name: str) -> str:
    return str(dcmread(sample("dicom", "ts", name)).SOPInstanceUID)


def test_a_caller_that_is_not_named_may_not_send(serve: Callable[..., Served], tmp_path: Path) -> None:
    served = serve(register=register, known=[])
    folder = tmp_path / "orthanc"
    folder.mkdir()
    orthanc = Orthanc(folder, served.port)
    try:
        key = orthanc.ask("/instances", sample("dicom", "ts", SYNTAXES[0]).read_bytes())["ID"]
        with pytest.raises(urllib.error.HTTPError):
            orthanc.ask("/modalities/orderly/store", {"Resources": [key], "Synchronous": True})
        assert sender.echo(served.destination()) == 0
        assert not served.entries()
        assert served.refusals[0][0] == "ORTHANC"
    finally:
        orthanc.stop()


@pytest.fixture
def over_tls(serve: Callable[..., Served], papers: Path, settings: Any, tmp_path: Path) -> Iterator[Orthanc]:
    """An Orthanc that speaks TLS alone, shows its certificate and asks for ours; it is known here by that."""
    settings.ORDERLY_TLS_CERTIFICATE = str(papers / "server.pem")
    settings.ORDERLY_TLS_KEY = str(papers / "server.key")
    settings.ORDERLY_TLS_CA = str(papers / "ca.pem")
    known = Known("ORTHANC", "*", ALL, certificate=fingerprint(papers / "scanner.pem"))
    served = serve(register=register, known=[known], tls=tls_context())
    folder = tmp_path / "orthanc"
    folder.mkdir()
    one = Orthanc(
        folder,
        served.port,
        DicomTlsEnabled=True,
        DicomTlsCertificate=str(papers / "scanner.pem"),
        DicomTlsPrivateKey=str(papers / "scanner.key"),
        DicomTlsTrustedCertificates=str(papers / "ca.pem"),
        DicomTlsRemoteCertificateRequired=True,
    )
    ApplicationEntity.objects.create(title="ORTHANC", host="127.0.0.1", port=one.port, services=[], tls=True)
    yield one
    one.stop()


def test_over_tls_orthanc_sends_to_us_and_has_its_images_sent_back(over_tls: Orthanc) -> None:
    over_tls.ask("/modalities/orderly/echo", {})
    keys = [over_tls.ask("/instances", sample("dicom", "ts", name).read_bytes())["ID"] for name in SYNTAXES]
    over_tls.ask("/modalities/orderly/store", {"Resources": keys, "Synchronous": True})
    index()
    theirs = over_tls.files()
    assert set(Instance.objects.values_list("sop_instance_uid", flat=True)) == set(theirs)
    assert set(Instance.objects.values_list("calling_ae", flat=True)) == {"ORTHANC"}
    for study in over_tls.ask("/studies"):
        over_tls.delete(f"/studies/{study}")
    assert not over_tls.files()
    for study in Study.objects.all():
        wanted = {"StudyInstanceUID": study.study_instance_uid}
        asked = over_tls.ask("/modalities/orderly/query", {"Level": "Study", "Query": wanted})
        over_tls.ask(f"/queries/{asked['ID']}/retrieve", {"TargetAet": "ORTHANC", "Synchronous": True})
    back = over_tls.files()
    assert {uid: ds.get("PixelData") for uid, ds in back.items()} == {
        uid: ds.get("PixelData") for uid, ds in theirs.items()
    }


def test_over_tls_a_rule_sends_studies_on_to_orthanc_and_not_to_one_of_another_authority(
    over_tls: Orthanc, papers: Path, settings: Any
) -> None:
    key = over_tls.ask("/instances", sample("dicom", "ts", SYNTAXES[0]).read_bytes())["ID"]
    over_tls.ask("/modalities/orderly/store", {"Resources": [key], "Synchronous": True})
    index()
    over_tls.delete(f"/instances/{key}")
    rule = RoutingRule.objects.create(name="all", destination=ApplicationEntity.objects.get(title="ORTHANC"))
    row = Forwarding.objects.create(
        rule=rule, study=Study.objects.get(), created_at=now(), next_attempt_at=now()
    )
    settings.ORDERLY_TLS_CA = str(papers / "otherca.pem")
    assert routing.drain("ORTHANC", threading.Event()) == 0
    assert not over_tls.files()
    row.refresh_from_db()
    assert row.state == "waiting" and "cannot be reached" in row.detail
    settings.ORDERLY_TLS_CA = str(papers / "ca.pem")
    Forwarding.objects.update(next_attempt_at=now())
    assert routing.drain("ORTHANC", threading.Event()) == 1
    assert set(over_tls.files()) == {Instance.objects.get().sop_instance_uid}
