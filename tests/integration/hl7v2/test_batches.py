"""Batches: each message's bytes come out, whatever the line ends."""

import pytest

from integration.hl7v2.batches import is_batch, split
from integration.hl7v2.errors import Refused
from integration.hl7v2.reading import parse

ONE = b"MSH|^~\\&|A|B|C|D|2026||ADT^A08|1|P|2.5.1\rPID|||1\r"
TWO = b"MSH|^~\\&|A|B|C|D|2026||ADT^A08|2|P|2.5.1\rNTE|1||MSHX is no header\r"
FILE = b"FHS|^~\\&|A|B\rBHS|^~\\&|A|B\r" + ONE + TWO + b"BTS|2\rFTS|1\r"


@pytest.mark.parametrize("end", [b"\r", b"\r\n", b"\n"])
def test_a_file_is_taken_apart(end):
    batch = split(FILE.replace(b"\r", end))
    assert [parse(m).control_id for m in batch.messages] == ["1", "2"]
    assert parse(batch.messages[1]).first("NTE").value(3) == "MSHX is no header"
    assert batch.declared == 2
    assert batch.warnings == []


def test_the_bytes_of_a_message_are_unchanged():
    assert split(FILE).messages == [ONE, TWO]


def test_messages_one_after_the_other_are_taken_apart_too():
    assert split(ONE + TWO).messages == [ONE, TWO]
    assert not is_batch(ONE)
    assert is_batch(FILE)
    assert is_batch(b"\xef\xbb\xbf" + FILE)


def test_a_wrong_count_is_warned_of():
    assert "3" in split(FILE.replace(b"BTS|2", b"BTS|3")).warnings[0]


@pytest.mark.parametrize("raw", [b"", b"hello", b"BHS|^~\\&|A\rBTS|0\r"])
def test_a_batch_without_messages_is_refused(raw):
    with pytest.raises(Refused):
        split(raw)
