"""Senders that we did not write speak with our listener."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import hl7
import pytest
from hl7.client import MLLPClient

from integration.models import Message
from ris.models import ImagingServiceRequest, Patient
from tests.conftest import REPOSITORY, missing, require_peer, sample
from tests.integration.hl7v2.making import adt, orm

pytestmark = pytest.mark.django_db(transaction=True)


def test_python_hl7s_client_gets_its_acknowledgements(door):
    with MLLPClient("127.0.0.1", door.port) as client:
        for number in range(5):
            raw = client.send_message(
                orm(accession=f"A{number}", placer=f"PL{number}", control_id=f"H{number}")
            )
            answer = hl7.parse(raw.strip(b"\x0b\x1c\r").decode())
            assert [str(answer["MSA"][0][1]), str(answer["MSA"][0][2])] == ["AA", f"H{number}"]
    assert ImagingServiceRequest.objects.count() == 5


def test_python_hl7s_mllp_send_sends_a_file_of_messages(door, tmp_path):
    program = [sys.executable, "-c", "from hl7.client import mllp_send; mllp_send()"]
    names = ["mesa-open/rad_msgs_adt_100__100.102.a04.hl7", "mesa-open/rad_msgs_adt_100__100.104.a04.hl7"]
    file = tmp_path / "messages.hl7"
    file.write_bytes(
        b"".join(b"\x0b" + sample("hl7", *name.split("/")).read_bytes() + b"\x1c\r" for name in names)
    )
    done = subprocess.run(
        [*program, "--file", str(file), "--port", str(door.port), "127.0.0.1"],
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"MSA|AA|") == 2
    assert Patient.objects.count() == 2


def test_hl7apys_client_gets_its_acknowledgement(door):
    from hl7apy.parser import parse_message

    message = parse_message(adt(control_id="APY").decode())
    from integration.hl7v2.framing import encode
    from tests.integration.hl7v2.conftest import Client

    client = Client(door.port)
    client.write(encode(message.to_er7().encode()))
    assert client.read().first("MSA").value(2) == "APY"
    client.close()
    assert Message.objects.get().state == "applied"


@pytest.fixture(scope="module")
def node_peers() -> Path:
    """The folder of the JavaScript peers, with their packages installed; kept between runs, outside of the sources."""
    require_peer("node")
    npm = require_peer("npm")
    home = REPOSITORY / "var" / "peers" / "hl7js"
    home.mkdir(parents=True, exist_ok=True)
    for path in (REPOSITORY / "tests" / "peers" / "hl7js").iterdir():
        shutil.copy(path, home)
    if not (home / "node_modules" / "simple-hl7").is_dir():
        done = subprocess.run(
            [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"],
            cwd=home,
            capture_output=True,
            timeout=240,
        )
        if done.returncode:
            missing("simple-hl7, node-hl7-client, @medplum/hl7", "npm install in tests/peers/hl7js")
    return home


@pytest.mark.parametrize("kind", ["simple-hl7", "@medplum/hl7", "node-hl7-client"])
def test_javascript_clients_get_their_acknowledgements(kind, node_peers, door):
    texts = [
        adt(control_id="J1").decode(),
        orm(accession="A1", control_id="J2").decode(),
        orm(control="CA", placer="NOBODY", control_id="J3").decode(),
    ]
    done = subprocess.run(
        [require_peer("node"), "send.js", kind, str(door.port)],
        cwd=node_peers,
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [["AA", "J1"], ["AA", "J2"], ["AE", "J3"]]
    assert ImagingServiceRequest.objects.get().accession_number == "A1"
