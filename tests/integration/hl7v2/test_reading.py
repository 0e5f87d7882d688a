"""Messages as they were sent: any separators, any line ends, every level, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration.hl7v2.errors import Refused
from integration.hl7v2.reading import NULL, parse
from integration.hl7v2.separators import STANDARD

HEAD = b"MSH|^~\\&|APP^1.2^ISO|FAC|RIS|RAD|20260301||ADT^A08^ADT_A01|42|P|2.5.1\r"


def test_fields_count_as_in_the_standard():
    message = parse(HEAD + b"PID|1||123^^^HOSP&1.2&ISO^MR~9^^^SSA||DOE^JANE\rZXY|a|b\r")
    header, pid = message.header, message.first("PID")
    assert header.value(1) == "|"
    assert header.value(2) == "^~\\&"
    assert header.value(3) == "APP"
    assert header.value(3, 2) == "1.2"
    assert (message.message_type, message.trigger_event, message.control_id) == ("ADT", "A08", "42")
    assert (message.processing_id, message.version) == ("P", "2.5.1")
    assert pid.value(3) == "123"
    assert pid.value(3, 4) == "HOSP"
    assert pid.value(3, 4, 1, 2) == "1.2"
    assert pid.value(3, 1, 2) == "9"
    assert pid.value(3, 1, 3) == ""
    assert pid.value(99) == ""
    assert pid.repetitions(3) == ["123^^^HOSP&1.2&ISO^MR", "9^^^SSA"]
    assert pid.components(5) == ["DOE", "JANE"]
    assert pid.subcomponents(3, 4) == ["HOSP", "1.2", "ISO"]
    assert message.first("ZXY").value(2) == "b"
    assert message.raw.startswith(HEAD)


@pytest.mark.parametrize("end", [b"\r", b"\r\n", b"\n"])
def test_cr_crlf_and_lf_end_segments(end):
    message = parse((HEAD + b"PID|1||123\rPV1|1|O\r").replace(b"\r", end))
    assert [s.name for s in message.segments] == ["MSH", "PID", "PV1"]
    assert message.first("PV1").value(2) == "O"


def test_a_lone_lf_in_a_message_with_cr_is_data():
    message = parse(HEAD + b"OBX|1|TX|||line one\nline two\rOBX|2\r")
    assert message.all("OBX")[0].text(5) == "line one\nline two"
    assert len(message.all("OBX")) == 2


def test_text_that_goes_on_after_lf_in_a_message_with_lf_is_data():
    message = parse(HEAD.replace(b"\r", b"\n") + b"OBX|1|TX|||line one\nline two\nNTE|1\n")
    assert message.first("OBX").text(5) == "line one\nline two"
    assert message.first("NTE").value(1) == "1"


@pytest.mark.parametrize("lead", [b"\xef\xbb\xbf", b"\r\n", b"  ", b"\n\xef\xbb\xbf\r"])
def test_a_bom_and_line_ends_before_msh_are_stripped(lead):
    message = parse(lead + HEAD + b"PID|1\r")
    assert message.header.name == "MSH"
    assert message.raw.startswith(lead)


def test_blank_lines_and_trailing_junk_are_passed_over_and_kept_in_raw():
    raw = HEAD + b"\r\rPID|1\r\x00\x00"
    message = parse(raw)
    assert [s.name for s in message.segments] == ["MSH", "PID"]
    assert message.raw == raw
    noted = parse(HEAD + b"PID|1\rgarbage")
    assert len(noted.warnings) == 1


def test_a_line_that_is_no_segment_inside_a_message_is_refused_where_it_stands():
    with pytest.raises(Refused) as refusal:
        parse(HEAD + b"OBX|1|TX|||text\rwhich goes on unescaped\rOBX|2\r")
    assert refusal.value.problem.code == 100
    assert str(refusal.value.problem.location) == "OBX^1"


def test_vistas_separators():
    message = parse(b"MSH^~|\\&^RA-SERVER-IMG^LOCAL^^^20030101^^ORM~O01^42^P^2.3\rPID^^^16~4~M10^^DOE~JANE\r")
    assert (message.message_type, message.trigger_event, message.control_id) == ("ORM", "O01", "42")
    assert message.first("PID").components(5) == ["DOE", "JANE"]


def test_the_truncation_character_is_taken_in_any_version():
    message = parse(b"MSH|^~\\&#|A|B|C|D|2026||ADT^A08|1|P|2.5.1\rPID|||1||A\\P\\B\r")
    assert message.separators.truncation == "#"
    assert message.first("PID").value(5) == "A#B"


@pytest.mark.parametrize("msh_2", ["^", "^~", "^~\\"])
def test_missing_encoding_characters_take_their_defaults(msh_2):
    message = parse(f"MSH|{msh_2}|A|B|C|D|2026||ADT^A08|1|P|2.5.1\rPID|||1^^^X&Y\\T\\Z\r".encode())
    assert message.separators == STANDARD
    assert message.first("PID").value(3, 4, 1, 2) == "Y&Z"


@pytest.mark.parametrize(
    ("start", "place"),
    [
        (b"MSH|^^\\&|", "MSH^1^2"),
        (b"MSH||", "MSH^1^2"),
        (b"MSH|^~\\&#!|", "MSH^1^2"),
        (b"MSH|^~A&|", "MSH^1^2"),
        (b"MSH|^~ &|", "MSH^1^2"),
        (b"MSHA^~\\&A", "MSH^1^1"),
        (b"MSH\x00^~\\&\x00", "MSH^1^1"),
        (b"MSH ^~\\& ", "MSH^1^1"),
        (b"MSH|^~\xa7&|", "MSH^1^2"),
        (b"MSH|&~\\|x", "MSH^1^2"),
        (b"MSH|\\|x", "MSH^1^2"),
        (b"MSH", "MSH^1^1"),
    ],
)
def test_separators_that_cannot_be_are_refused(start, place):
    with pytest.raises(Refused) as refusal:
        parse(start + b"A|B\rPID|1\r")
    assert refusal.value.problem.code == 100
    assert str(refusal.value.problem.location) == place


@pytest.mark.parametrize("raw", [b"", b"hello", b"PID|1\r", b"\x00\x01", b"<xml/>", b"mSH|^~\\&|"])
def test_what_is_no_message_is_refused(raw):
    with pytest.raises(Refused):
        parse(raw)


def test_two_messages_in_one_are_refused():
    with pytest.raises(Refused) as refusal:
        parse(HEAD + b"PID|1\r" + HEAD)
    assert refusal.value.problem.code == 100


def test_null_is_told_from_empty_at_every_level():
    pid = parse(HEAD + b'PID|""|| |""^A|A&""|x~""\r').first("PID")
    assert pid.value(1) is NULL
    assert pid.is_null(1)
    assert pid.value(2) == ""
    assert pid.value(2) is not NULL
    assert pid.value(3) == " "
    assert pid.value(4) is NULL
    assert pid.value(4, 2) == "A"
    assert pid.value(5, 1, 1, 2) is NULL
    assert pid.value(6, 1, 2) is NULL
    assert NULL == "" and not NULL


def test_an_empty_repetition_keeps_its_place():
    pid = parse(HEAD + b"PID|||A~~B\r").first("PID")
    assert pid.repetitions(3) == ["A", "", "B"]
    assert pid.value(3, 1, 3) == "B"


def test_report_text_with_stray_separators_is_readable_as_a_whole():
    obx = parse(HEAD + b"OBX|1|TX|||10^3/uL ~ 5 & more\\T\\\r").first("OBX")
    assert obx.text(5) == "10^3/uL ~ 5 & more&"


def test_groups_begin_at_a_segment_and_end_before_the_next():
    message = parse(HEAD + b"PID|1\rORC|NW\rOBR|1\rNTE|1\rORC|CA\rZDS|1\r")
    assert [[s.name for s in g] for g in message.groups("ORC")] == [["ORC", "OBR", "NTE"], ["ORC", "ZDS"]]
    assert [s.sequence for s in message.all("ORC")] == [1, 2]


def test_the_event_of_a_message_with_a_bare_type_stands_in_evn():
    message = parse(b"MSH|^~\\&|A|B|C|D|2026||ADT|1|P|2.1\rEVN|A04|2026\r")
    assert (message.message_type, message.trigger_event) == ("ADT", "A04")


def test_a_message_says_nothing_of_its_content_when_printed():
    message = parse(HEAD + b"PID|||SECRET||SECRET\r")
    assert "SECRET" not in repr(message) + repr(message.first("PID"))


def test_half_a_million_observations_are_read():
    message = parse(HEAD + b"OBX|1|NM|1||1\r" * 100_000)
    assert len(message.all("OBX")) == 100_000


@given(st.binary(max_size=120))
def test_any_bytes_after_a_header_are_read_or_refused(body):
    try:
        message = parse(HEAD + body)
    except Refused:
        return
    for segment in message.segments:
        for number in range(1, len(segment.fields)):
            segment.value(number, 2, 2, 2)
            segment.text(number)
