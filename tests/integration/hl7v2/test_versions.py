"""Every version of the standard at the socket: read, applied, and answered in its own version and form."""

import hl7
import pytest

from integration.hl7v2 import tables
from integration.hl7v2.framing import encode
from ris.models import ImagingServiceRequest, Patient
from tests.integration.hl7v2.making import adt, orm

pytestmark = pytest.mark.django_db(transaction=True)


def of(version: str, raw: bytes) -> bytes:
    """A message as one of this version."""
    return raw.replace(b"|P|2.5.1|", f"|P|{version}|".encode(), 1)


@pytest.mark.parametrize("version", [*tables.VERSIONS, ""])
def test_messages_of_each_version_are_applied_and_answered_in_it(door, connect, version):
    client = connect(door)
    assert b"|P|2.5.1|" in adt()
    taken = client.send(of(version, adt("A04", identifier="P1^^^HOSP^MR")))
    ordered = client.send(of(version, orm(accession="A1")))
    refused = client.send(of(version, orm(control="CA", placer="NOBODY")))
    answers = [taken, ordered, refused]
    assert [a.first("MSA").value(1) for a in answers] == ["AA", "AA", "AE"]
    assert {a.version for a in answers} == {version or "2.5.1"}
    assert (Patient.objects.count(), ImagingServiceRequest.objects.get().accession_number) == (1, "A1")
    err, modern = refused.first("ERR"), tuple(map(int, (version or "2.5.1").split("."))) >= (2, 5)
    assert err.value(3) == "204" if modern else err.subcomponents(1, 4)[0] == "204"
    assert bool(refused.first("MSA").value(3)) != modern
    structured = (version or "2.5.1") >= "2.4"
    assert taken.header.field(9) == ("ACK^A04^ACK" if structured else "ACK")


def test_the_answers_of_each_version_are_read_by_python_hl7(door, connect):
    client = connect(door)
    for version in tables.VERSIONS:
        raw = of(version, orm(control="CA", placer="NOBODY", control_id=f"V{version}"))
        client.write(encode(raw))
        theirs = hl7.parse(client.read_raw().decode())
        assert [str(theirs["MSA"][0][n]) for n in (1, 2)] == ["AE", f"V{version}"]
