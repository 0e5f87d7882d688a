"""What each destination is told and how it is spoken to: kinds, lanes, ACK rules, enhanced mode, pace, TLS."""

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.store import unit_of_work
from integration import delivery
from integration.models import DeliveryAttempt, Destination, OutboxItem
from ris.commands import MergePatients
from ris.models import Patient
from ris.services import merging
from tests.conftest import require_peer
from tests.integration.outbound.making import addended, hl7_destination, moved, ordered, signed, states
from tests.integration.outbound.test_delivery import drain, outcomes
from tests.peers.his import END, VT, His, Received, ack
from tests.ris.making import register, who

pytestmark = pytest.mark.django_db


def kinds(his: His) -> list[str]:
    """MSH-9 of what came, in order."""
    return [r.field("MSH", 8) for r in his.received]


# ------------------------------------------------------------------------------------------------- kinds


def test_a_destination_gets_documents_and_imaging_order_status_when_it_says_so() -> None:
    with His() as his:
        destination = hl7_destination(his.port, messages=("MDM", "OMI"))
        procedure = ordered()
        moved(procedure, "STARTED")
        signed(procedure)
        addended(procedure, "One more thing.")
        drain(destination)
        status, document = "OMI^O23^OMI_O23", "MDM^T02^MDM_T02"
        assert kinds(his) == [status, document, status, "MDM^T06^MDM_T02"]
        assert his.received[0].field("IPC", 3) == procedure.study_instance_uid


def test_patients_are_told_when_new_changed_and_merged_in_that_order() -> None:
    with His() as his:
        destination = hl7_destination(his.port, messages=("ADT",), lane="patient")
        register(who("1"))
        register(who("2", name="Sommer^Klara"))
        register(who("1", name="Sommer^Carla"))
        merge()
        drain(destination)
        assert sorted(kinds(his)[:3]) == ["ADT^A04^ADT_A01", "ADT^A04^ADT_A01", "ADT^A08^ADT_A01"]
        assert kinds(his).count("ADT^A40^ADT_A39") == 1 and kinds(his)[-1] == "ADT^A40^ADT_A39"
        assert his.received[-1].field("MRG", 1).startswith("2^^^HOSP")
        assert his.received[-1].field("PID", 3).startswith("1^^^HOSP")


def merge() -> Any:
    """Patient 2 goes into patient 1."""
    with unit_of_work("user:1") as unit:
        return merging.merge(MergePatients(survivor=who("1"), prior=who("2").identifiers), unit)


def test_what_waits_about_a_retired_patient_goes_before_its_merge() -> None:
    destination = hl7_destination(1, messages=("ADT", "ORU"), lane="patient")
    register(who("1"))
    procedure = ordered(patient="2")
    signed(procedure)
    merge()
    survivor = Patient.objects.get(merged_into=None)
    items = list(OutboxItem.objects.filter(destination=destination).order_by("id"))
    assert items[-1].facts["happened"] == "merged"
    assert {i.lane for i in items} == {f"patient:{survivor.id}"}


def test_a_his_is_not_told_what_it_said_itself() -> None:
    hl7_destination(1, "his", messages=("ADT",), adt_from="people")
    hl7_destination(1, "viewer", messages=("ADT",))
    hl7_destination(1, "quiet", messages=("ADT",), adt_events={"created": "", "changed": "A31"})
    register(who("1"), cause="hl7:1")
    register(who("1", name="Sommer^Carla"), cause="user:1")
    told = OutboxItem.objects.order_by("destination__name", "id")
    assert [(i.destination.name, i.facts["happened"]) for i in told] == [
        ("his", "changed"),
        ("quiet", "changed"),
        ("viewer", "created"),
        ("viewer", "changed"),
    ]


# -------------------------------------------------------------------------------------------------- ACKs


@pytest.mark.parametrize(
    ("rules", "answer", "state", "copies"),
    [
        ({}, ack("AE", error="207"), "parked", 3),
        ({"205": "accept"}, ack("AE", error="205"), "delivered", 1),
        ({"AE": "retry"}, ack("AE"), "parked", 3),
        ({"AR": "park"}, ack("AR"), "parked", 1),
        ({"AR": "park", "AR:207": "retry"}, ack("AR", error="207"), "parked", 3),
    ],
)
def test_what_an_acknowledgement_means_is_the_destination_s_rule(
    rules: dict, answer: Any, state: str, copies: int
) -> None:
    with His(otherwise=answer) as his:
        destination = hl7_destination(his.port, messages=("ORU",), ack_rules=rules, rejections_most=3)
        signed(ordered())
        drain(destination)
        assert states(destination) == [state]
        assert len(his.received) == copies and len(set(his.ids())) == 1


def both(*codes: str) -> Any:
    """CA, then the application's next answer as a message of its own that wants to be acknowledged."""
    left = list(codes)

    def reply(received: Received) -> bytes | None:
        if received.field("MSH", 8).startswith("ACK"):
            return None
        code = left.pop(0)
        later = ack(code)(received).replace(b"|P|2.5.1\r", b"|P|2.5.1|||AL|NE\r", 1)
        return ack("CA")(received) + later

    return reply


def test_in_enhanced_mode_the_application_has_the_last_word() -> None:
    with His(otherwise=both("AA", "AE")) as his:
        destination = hl7_destination(his.port, messages=("ORU",), enhanced=True, application_ack=True)
        signed(ordered("A1"))
        signed(ordered("A2", patient="4712"))
        drain(destination)
        assert states(destination) == ["delivered", "parked"]
        sent = [r for r in his.received if r.field("MSH", 8).startswith("ORU")]
        acks = [r for r in his.received if r.field("MSH", 8).startswith("ACK")]
        assert len(sent) == 2 and {r.field("MSH", 15) for r in sent} == {"AL"}
        assert [r.field("MSA", 1) for r in acks] == ["CA", "CA"]


def test_a_commit_alone_is_not_enough_where_the_application_is_waited_for() -> None:
    with His(script=[ack("CA")], otherwise=both("AA")) as his:
        destination = hl7_destination(
            his.port, messages=("ORU",), enhanced=True, application_ack=True, ack_seconds=0.3
        )
        signed(ordered())
        drain(destination)
        assert outcomes(destination) == ["timeout", "delivered"]
        sent = [r.raw for r in his.received if r.field("MSH", 8).startswith("ORU")]
        assert len(sent) == 2 and len(set(sent)) == 1


# -------------------------------------------------------------------------------------------------- pace


def test_a_pace_is_kept_between_the_beginnings_of_attempts() -> None:
    with His() as his:
        destination = hl7_destination(his.port, messages=("ORU",), per_minute=300, connections=3)
        for number in range(4):
            signed(ordered(f"A{number}", patient=f"47{number}"))
        drain(destination)
        begun = list(DeliveryAttempt.objects.order_by("at").values_list("at", flat=True))
        gaps = [(b - a).total_seconds() for a, b in zip(begun, begun[1:], strict=False)]
        assert len(his.received) == 4 and min(gaps) >= 0.2


# --------------------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and a certificate of it for the server (localhost) and for us; another authority's beside them."""
    openssl = require_peer("openssl")
    folder = tmp_path_factory.mktemp("certificates")

    def run(*words: str) -> None:
        subprocess.run([openssl, *words], cwd=folder, check=True, capture_output=True, timeout=60)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for authority in ("ca", "stranger"):
        run("req", "-x509", *curve, "-keyout", f"{authority}.key", "-out", f"{authority}.pem",
            "-subj", f"/CN={authority}", "-days", "2")  # fmt: skip
    for name, authority in (("server", "ca"), ("client", "ca"), ("foreign", "stranger")):
        run("req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (folder / "san").write_text("subjectAltName=DNS:his.example,IP:127.0.0.1")
        run("x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key",
            "-CAcreateserial", "-out", f"{name}.pem", "-days", "2", "-extfile", "san")  # fmt: skip
    return folder


class TlsDoor:
    """TLS in front of a HIS: what arrives is handed on, and its answers back."""

    def __init__(self, his: His, folder: Path, mutual: bool) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(folder / "server.pem", folder / "server.key")
        if mutual:
            self.context.verify_mode = ssl.CERT_REQUIRED
            self.context.load_verify_locations(folder / "ca.pem")
        self.his, self.peers = his, []
        self.door = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.door.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self.door.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        try:
            with self.context.wrap_socket(plain, server_side=True) as peer:
                self.peers.append(peer.getpeercert())
                waiting = b""
                while data := peer.recv(65536):
                    waiting += data
                    while END in waiting:
                        frame, waiting = waiting.split(END, 1)
                        self.his._answer(peer, frame.lstrip(VT), 1)
        except OSError:
            plain.close()


@pytest.fixture
def his() -> Iterator[His]:
    """A HIS to stand behind a TLS door."""
    with His() as one:
        yield one


def over_tls(port: int, folder: Path, **settings: Any) -> Destination:
    """A destination whose certificate is checked against our authority."""
    return hl7_destination(
        port, messages=("ORU",), tls=True, **{"ca_file": str(folder / "ca.pem"), **settings}
    )


def own(folder: Path, name: str) -> dict[str, str]:
    """The settings of a certificate of ours."""
    return {"certificate_file": str(folder / f"{name}.pem"), "key_file": str(folder / f"{name}.key")}


def test_a_report_goes_over_tls_to_a_peer_whose_certificate_is_right(his: His, certificates: Path) -> None:
    door = TlsDoor(his, certificates, mutual=False)
    destination = over_tls(door.port, certificates, tls_server_name="his.example")
    signed(ordered())
    drain(destination)
    assert states(destination) == ["delivered"] and len(his.received) == 1


def test_over_mutual_tls_we_show_the_destination_s_own_certificate(his: His, certificates: Path) -> None:
    door = TlsDoor(his, certificates, mutual=True)
    destination = over_tls(door.port, certificates, **own(certificates, "client"))
    signed(ordered())
    drain(destination)
    assert states(destination) == ["delivered"]
    assert door.peers[0]["subject"] == ((("commonName", "client"),),)


@pytest.mark.parametrize(
    ("mutual", "settings"),
    [
        (False, {"tls_server_name": "other.example"}),
        (False, {"ca_file": "stranger.pem"}),
        (True, {}),
        (True, {"certificate_file": "foreign.pem", "key_file": "foreign.key"}),
        (False, {"ca_file": "nowhere.pem"}),
    ],
)
def test_nothing_is_said_to_a_peer_that_is_not_the_right_one(
    mutual: bool, settings: dict, his: His, certificates: Path
) -> None:
    door = TlsDoor(his, certificates, mutual)
    for key in settings.keys() & {"ca_file", "certificate_file", "key_file"}:
        settings = {**settings, key: str(certificates / settings[key])}
    destination = over_tls(door.port, certificates, retry_seconds=60, **settings)
    signed(ordered())
    delivery.drain(destination.id)
    assert outcomes(destination)[0] in ("transport", "timeout")
    assert states(destination) == ["queued"] and not his.received
