"""Acknowledgements: both modes, ERR by version, and an echo that can do no harm."""

from datetime import UTC, datetime, timedelta, timezone

import hl7
import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration.hl7v2 import acks
from integration.hl7v2.acks import AckCode, asking, asking_of, build, replies
from integration.hl7v2.errors import Code, Location, Problem, Severity, warning
from integration.hl7v2.reading import parse

AT = datetime(2026, 3, 1, 10, 30, 15, tzinfo=timezone(timedelta(hours=-5)))
PROBLEM = Problem(Code.REQUIRED_FIELD, "The patient has no identifier.", Location("PID", 1, 3))


def sent(version="2.5.1", accept="", application="", msh_9="ADT^A08^ADT_A01", extra=""):
    return parse(
        f"MSH|^~\\&|HIS^1.2^ISO|HOSP|RIS|RAD|2026||{msh_9}|MSG1|P|{version}|||{accept}|{application}{extra}\r".encode()
    )


def answer(message, code=AckCode.AA, problems=()):
    return parse(build(asking(message), code, problems, at=AT))


def test_the_ack_swaps_the_ends_and_names_the_message():
    ack = answer(sent())
    header = ack.header
    assert [header.field(n) for n in (3, 4, 5, 6)] == ["RIS", "RAD", "HIS^1.2^ISO", "HOSP"]
    assert header.value(7) == "20260301103015-0500"
    assert header.field(9) == "ACK^A08^ACK"
    assert (header.value(11), header.value(12)) == ("P", "2.5.1")
    assert 1 <= len(header.value(10)) <= 20
    msa = ack.first("MSA")
    assert (msa.value(1), msa.value(2)) == ("AA", "MSG1")
    assert not ack.first("ERR")


def test_every_ack_has_a_control_id_of_its_own():
    assert answer(sent()).control_id != answer(sent()).control_id


@pytest.mark.parametrize(
    ("version", "kind"), [("2.3", "ACK"), ("2.3.1", "ACK"), ("2.4", "ACK^A08^ACK"), ("2.8", "ACK^A08^ACK")]
)
def test_before_2_4_the_type_is_a_plain_ack(version, kind):
    assert answer(sent(version)).header.field(9) == kind


def test_from_2_5_an_error_is_a_segment_with_place_code_severity_and_text():
    ack = answer(sent(), AckCode.AE, [PROBLEM, warning("Odd.", Location("PV1", 1, 2))])
    first, second = ack.all("ERR")
    assert first.components(2) == ["PID", "1", "3"]
    assert first.components(3) == ["101", "Required field missing", "HL70357"]
    assert (first.value(4), first.value(8)) == ("E", "The patient has no identifier.")
    assert second.value(4) == "W"
    assert ack.first("MSA").value(3) == ""


def test_before_2_5_the_place_is_err_1_and_the_text_msa_3():
    ack = answer(sent("2.3.1"), AckCode.AE, [PROBLEM])
    err = ack.first("ERR")
    assert err.components(1)[:3] == ["PID", "1", "3"]
    assert err.subcomponents(1, 4) == ["101", "Required field missing", "HL70357"]
    assert ack.first("MSA").value(3) == "The patient has no identifier."


@pytest.mark.parametrize(
    ("accept", "application", "code", "expected"),
    [
        ("", "", AckCode.AA, ("AA", None)),
        ("", "", AckCode.AE, ("AE", None)),
        (" ", "maybe", AckCode.AA, ("AA", None)),
        ("AL", "NE", AckCode.AA, ("CA", None)),
        ("AL", "NE", AckCode.AE, ("CE", None)),
        ("AL", "NE", AckCode.AR, ("CR", None)),
        ("AL", "AL", AckCode.AA, ("CA", "AA")),
        ("AL", "ER", AckCode.AA, ("CA", None)),
        ("AL", "ER", AckCode.AE, ("CE", "AE")),
        ("NE", "AL", AckCode.AA, ("AA", None)),
        ("ER", "NE", AckCode.AA, (None, None)),
        ("ER", "NE", AckCode.AE, ("CE", None)),
        ("SU", "NE", AckCode.AA, ("CA", None)),
        ("SU", "NE", AckCode.AR, (None, None)),
        ("NE", "NE", AckCode.AA, (None, None)),
        ("NE", "", AckCode.AE, (None, None)),
    ],
)
def test_msh_15_and_16_choose_the_answers(accept, application, code, expected):
    asked = asking(sent(accept=accept, application=application))
    assert replies(asked, code) == expected
    assert asked.enhanced == bool({accept, application} & {"AL", "NE", "ER", "SU"})


def test_the_senders_separators_and_character_set_are_used():
    message = parse("MSH^~|\\&^HÏS^LOCAL^^^2003^^ORM~O01^42^P^2.3^^^^^^8859/1\rPID^1\r".encode("latin-1"))
    raw = build(asking(message), AckCode.AE, [PROBLEM], at=AT)
    assert raw.startswith(b"MSH^~|\\&^^^H\xcfS^LOCAL^")
    ack = parse(raw)
    assert ack.first("MSA").value(2) == "42"
    assert ack.header.value(5) == "HÏS"


def test_control_characters_are_not_echoed():
    raw = b"MSH|^~\\&|A\x0bB|F\x1cAC|R|S|2026||ADT^A08|I\x0bD\x1c\n1|P|2.5.1\r"
    built = build(asking_of(raw), AckCode.AR, [], at=AT)
    assert not {0x0B, 0x1C, 0x0A} & set(built)
    assert b"MSA|AR|ID" in built


def test_an_oversized_or_broken_message_is_answered_with_its_own_control_id():
    raw = b"MSH|^~\\&|A|B|C|D|2026||ORU^R01|77|P|2.5.1\rOBX|1|ED|||" + b"x" * 4000
    ack = parse(build(asking_of(raw), AckCode.AR, [Problem(Code.INTERNAL, "Too long.")], at=AT))
    assert ack.first("MSA").value(2) == "77"


def test_bytes_that_are_no_hl7_are_answered_with_an_empty_msa_2():
    ack = parse(build(asking_of(b"hello"), AckCode.AR, [Problem(Code.SEGMENT_SEQUENCE, "No MSH.")], at=AT))
    assert (ack.first("MSA").value(1), ack.first("MSA").value(2)) == ("AR", "")


def test_python_hl7_reads_our_acks():
    raw = build(asking(sent()), AckCode.AE, [PROBLEM], at=AT)
    theirs = hl7.parse(raw.decode())
    assert str(theirs["MSA"][0][1]) == "AE"
    assert str(theirs["MSA"][0][2]) == "MSG1"
    assert str(theirs["ERR"][0][2]) == "PID^1^3"


def test_refusal_codes_say_ae_or_ar():
    assert [Code(c).rejects for c in (100, 101, 102, 103, 204, 205)] == [False] * 6
    assert [Code(c).rejects for c in (200, 201, 202, 203, 206, 207)] == [True] * 6
    assert Severity("E") is Severity.ERROR


@given(st.binary(max_size=60), st.text(max_size=40))
def test_whatever_the_header_holds_the_ack_is_one_msh_one_msa_one_err(noise, text):
    raw = b"MSH|^~\\&|" + noise + b"|" + noise + b"||ADT^A08|" + noise + b"|P|2.5.1\r"
    built = build(asking_of(raw), AckCode.AE, [Problem(Code.DATA_TYPE, text, Location("PID", 1, 5))], at=AT)
    assert not {0x0B, 0x1C} & set(built)
    ack = parse(built)
    assert [s.name for s in ack.segments] == ["MSH", "MSA", "ERR"]
    assert ack.first("MSA").value(1) == "AE"


def test_an_ack_is_in_utc_where_the_site_is():
    assert b"+0000" in build(acks.Asking(), AckCode.AA, at=datetime(2026, 3, 1, tzinfo=UTC))
