"""Senders that we did not write speak with our listener."""

import subprocess
import sys

import hl7
import pytest
from hl7.client import MLLPClient

from integration.models import Message
from ris.models import ImagingServiceRequest, Patient
from tests.conftest import sample
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
