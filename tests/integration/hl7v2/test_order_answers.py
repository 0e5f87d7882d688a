"""Answers to orders at the socket: ORR, ORG and ORI, by control code, and as the standard lays them out."""

import re

import pytest

from integration.hl7v2 import conformance
from integration.hl7v2.framing import encode
from integration.hl7v2.reading import Message as Parsed
from integration.hl7v2.reading import parse
from integration.models import Source
from ris.models import ImagingServiceRequest, RequestedProcedure, ScheduledProcedureStep
from tests.integration.hl7v2.making import group, message, msh, pid

pytestmark = pytest.mark.django_db(transaction=True)

IPC = "IPC|A7^RIS|RP7|1.2.840.7|SP7|CT||ST1|ROOM 1|CT01"


@pytest.fixture
def asking_door(open_door):
    """A listener for a source that wants full answers."""
    Source.objects.create(name="his", profile={"order_answers": "full"})
    return open_door()


def omg(*segments: str, version: str = "2.5.1", **header: str) -> bytes:
    return message(msh("OMG^O19^OMG_O19", version=version, **header), pid(), *segments)


def omi(*segments: str, version: str = "2.5.1", **header: str) -> bytes:
    return message(msh("OMI^O23^OMI_O23", version=version, **header), pid(), *segments)


def checked(raw: bytes) -> None:
    """Fail where hl7apy finds that an answer is not laid out as its structure demands."""
    text = raw.decode()
    structure, version = re.match(
        r"MSH(?:\|[^|]*){7}\|\w+\^\w+\^(\w+)(?:\|[^|]*){2}\|([^|\r]*)", text
    ).groups()
    assert conformance.can_check(structure, version)
    assert conformance.fault(text) == ""


def names(answer: Parsed) -> list[str]:
    return [s.name for s in answer.segments]


def ask(client, raw: bytes) -> tuple[bytes, Parsed]:
    """Send a message; its answer's bytes, and the answer read."""
    client.write(encode(raw))
    said = client.read_raw()
    assert said is not None
    return said, parse(said)


@pytest.mark.parametrize("version", ["2.4", "2.5", "2.5.1", "2.6"])
def test_an_omg_is_answered_by_an_org(asking_door, connect, version):
    said, answer = ask(
        connect(asking_door),
        omg(*group("PL1", accession="A1"), *group("PL2", accession="A2"), version=version),
    )
    assert answer.header.field(9) == "ORG^O20^ORG_O20"
    assert answer.first("MSA").value(1) == "AA"
    assert names(answer) == ["MSH", "MSA", "ORC", "ORC"]
    assert [(o.value(1), o.value(2)) for o in answer.all("ORC")] == [("OK", "PL1"), ("OK", "PL2")]
    checked(said)


@pytest.mark.parametrize(
    ("control", "yes"), [("XO", "XR"), ("CA", "CR"), ("DC", "DR"), ("HD", "HR"), ("RL", "OR"), ("RP", "RQ")]
)
def test_an_org_answers_in_the_words_of_the_question(asking_door, connect, control, yes):
    client = connect(asking_door)
    ask(client, omg(*group("PL1", accession="A1")))
    said, answer = ask(client, omg(*group("PL1", accession="A1", control=control)))
    assert (answer.first("MSA").value(1), answer.first("ORC").value(1)) == ("AA", yes)
    checked(said)


@pytest.mark.parametrize(
    ("control", "no"), [("XO", "UX"), ("CA", "UC"), ("DC", "UD"), ("HD", "UH"), ("RL", "UR")]
)
def test_what_cannot_be_done_is_refused_in_the_words_of_the_question(asking_door, connect, control, no):
    said, answer = ask(connect(asking_door), omg(*group("NOBODY", control=control)))
    assert (answer.first("MSA").value(1), answer.first("ORC").value(1)) == ("AE", no)
    assert names(answer) == ["MSH", "MSA", "ERR", "ORC"]
    assert answer.first("ERR").value(3) == "204"
    checked(said)


@pytest.mark.parametrize(
    ("control", "status", "no"), [("CA", "COMPLETED", "UC"), ("CA", "STARTED", "UC"), ("HD", "STARTED", "UH")]
)
def test_what_comes_too_late_is_refused_and_not_said_to_be_done(asking_door, connect, control, status, no):
    client = connect(asking_door)
    ask(client, omg(*group("PL1", accession="A1")))
    ScheduledProcedureStep.objects.update(status=status)
    said, answer = ask(client, omg(*group("PL1", accession="A1", control=control)))
    assert (answer.first("MSA").value(1), answer.first("ORC").value(1)) == ("AE", no)
    assert (answer.first("ERR").field(2), answer.first("ERR").value(3)) == ("ORC^1^1", "207")
    assert ScheduledProcedureStep.objects.get().status == status
    checked(said)


def test_a_status_is_told_by_an_org_also_where_plain_acks_are_wanted(door, connect):
    client = connect(door)
    ask(client, omg(*group("PL1", accession="A1")))
    said, answer = ask(client, omg("ORC|SS|PL1"))
    assert answer.header.field(9) == "ORG^O20^ORG_O20"
    assert [answer.first("ORC").value(n) for n in (1, 2, 5)] == ["SR", "PL1", "SC"]
    checked(said)


def test_a_number_that_a_filler_asks_for_is_in_the_org_also_where_plain_acks_are_wanted(door, connect):
    said, answer = ask(connect(door), omg("ORC|SN||F7^RIS2", "OBR|1||F7^RIS2|CT^CT^L"))
    request = ImagingServiceRequest.objects.get(filler_order_number="F7")
    orc = answer.first("ORC")
    assert (orc.value(1), orc.value(2), orc.field(3)) == ("NA", request.accession_number, "F7^RIS2")
    assert request.placer_order_number == request.accession_number
    checked(said)


@pytest.mark.parametrize("version", ["2.5", "2.5.1", "2.6"])
def test_an_omi_is_answered_by_an_ori_with_each_obr_and_its_ipcs(asking_door, connect, version):
    raw = omi(
        "ORC|NW|PL7^HIS", "TQ1|1||||||20260302090000", "OBR|1|PL7^HIS||CT^CT Head^L", IPC, IPC.replace("SP7", "SP8"),
        "ORC|NW|PL8^HIS", "OBR|1|PL8^HIS||MR^MR Head^L", "IPC|A8|RP8|1.2.840.8|SP9|MR", version=version,
    )  # fmt: skip
    said, answer = ask(connect(asking_door), raw)
    assert answer.header.field(9) == "ORI^O24^ORI_O24"
    assert answer.first("MSA").value(1) == "AA"
    assert names(answer) == ["MSH", "MSA", "ORC", "OBR", "IPC", "IPC", "ORC", "OBR", "IPC"]
    assert [o.value(1) for o in answer.all("ORC")] == ["OK", "OK"]
    assert [o.field(2) for o in answer.all("OBR")] == ["PL7^HIS", "PL8^HIS"]
    assert [i.value(4) for i in answer.all("IPC")] == ["SP7", "SP8", "SP9"]
    assert answer.first("IPC").field(1) == "A7^RIS"
    checked(said)


def test_an_ori_tells_what_the_sender_left_to_us(asking_door, connect):
    said, answer = ask(connect(asking_door), omi("ORC|NW|PL7", "OBR|1|PL7||CT^CT Head^L", "IPC|||||CT"))
    procedure = RequestedProcedure.objects.get()
    step = procedure.steps.get()
    ipc = answer.first("IPC")
    assert procedure.request.accession_number and ipc.value(1) == procedure.request.accession_number
    assert ipc.value(2) == procedure.requested_procedure_id
    assert ipc.value(3) == procedure.study_instance_uid
    assert (ipc.value(4), ipc.value(5)) == (step.scheduled_procedure_step_id, "CT")
    checked(said)


def test_a_refused_omi_is_answered_by_an_ori_that_tells_nothing_of_other_orders(asking_door, connect):
    client = connect(asking_door)
    ask(client, omi("ORC|NW|PL7", "OBR|1|PL7||CT^CT Head^L", IPC))
    raw = omi("ORC|CA|PL9", "OBR|1|PL9||CT^CT Head^L", "IPC|A9|RP9|1.2.840.9|SP9")
    said, answer = ask(client, raw)
    assert (answer.first("MSA").value(1), answer.first("ORC").value(1)) == ("AE", "UC")
    assert names(answer) == ["MSH", "MSA", "ERR", "ORC", "OBR", "IPC"]
    assert [answer.first("IPC").value(n) for n in (1, 2, 3, 4)] == ["A9", "RP9", "1.2.840.9", "SP9"]
    checked(said)


def test_the_same_omi_again_gets_the_same_ori(asking_door, connect):
    client = connect(asking_door)
    raw = omi("ORC|NW|PL7", "OBR|1|PL7||CT^CT Head^L", "IPC|||||CT")
    assert ask(client, raw)[0] == ask(client, raw)[0]


def test_in_enhanced_mode_the_org_follows_the_commit(asking_door, connect):
    client = connect(asking_door)
    head = msh("OMG^O19^OMG_O19").split("|")
    head[14:16] = ["AL", "AL"]
    _, commit = ask(client, message("|".join(head), pid(), *group("PL1", accession="A1")))
    assert (commit.header.value(9), commit.first("MSA").value(1)) == ("ACK", "CA")
    answer = client.read()
    assert (answer.header.field(9), answer.first("MSA").value(1)) == ("ORG^O20^ORG_O20", "AA")
    assert answer.first("ORC").value(1) == "OK"


@pytest.mark.parametrize(
    ("segments", "told"),
    [
        (("ORC|SN||F7^RIS2", "OBR|1||F7^RIS2|CT^CT^L", "IPC|||||CT"), ("ORC", 2)),
        (("ORC|NW|PL7", "OBR|1|PL7||CT^CT Head^L", "IPC|||||CT"), ("IPC", 1)),
        (("ORC|SS|PL0", "OBR|1|PL0||CT^CT Head^L", "IPC"), ("ORC", 5)),
    ],
)
def test_in_enhanced_mode_a_repeated_question_gets_its_whole_answer_again(
    asking_door, connect, segments, told
):
    client = connect(asking_door)
    ask(client, omi("ORC|NW|PL0", "OBR|1|PL0||CT^CT Head^L", "IPC|||||CT"))
    head = msh("OMI^O23^OMI_O23").split("|")
    head[14:16] = ["AL", "AL"]
    raw = message("|".join(head), pid(), *segments)
    said = []
    for _ in range(2):
        assert ask(client, raw)[1].first("MSA").value(1) == "CA"
        answer = client.read()
        said.append([s.raw for s in answer.segments if s.name != "MSH"])
    assert said[0] == said[1]
    assert answer.first(told[0]).value(told[1])


def test_a_source_that_wants_acks_gets_acks(door, connect):
    client = connect(door)
    for raw in (omg(*group("PL1", accession="A1")), omi("ORC|NW|PL7", "OBR|1|PL7||CT^CT^L", IPC)):
        assert ask(client, raw)[1].header.value(9) == "ACK"
