"""MLLP frames: every row of the decoder's rules, and the same answer whatever the split."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration.hl7v2.framing import (
    KEPT,
    Decoder,
    Fault,
    FaultKind,
    Frame,
    FramingError,
    encode,
)

BIG = 1 << 20


def payloads(events):
    return [e.payload for e in events if isinstance(e, Frame)]


def kinds(events):
    return [e.kind for e in events if isinstance(e, Fault)]


def test_a_frame_in_one_read_is_its_payload():
    assert Decoder(BIG).feed(b"\x0bMSH|x\r\x1c\r") == [Frame(b"MSH|x\r")]


def test_a_frame_byte_by_byte_is_the_same():
    decoder, out = Decoder(BIG), []
    for byte in b"\x0bMSH|x\r\x1c\r":
        out += decoder.feed(bytes([byte]))
    assert out == [Frame(b"MSH|x\r")]


def test_several_frames_in_one_read_are_all_there_in_order():
    events = Decoder(BIG).feed(encode(b"A") + encode(b"B") + encode(b"C"))
    assert payloads(events) == [b"A", b"B", b"C"]


@pytest.mark.parametrize("after", [b"\n", b"\x0bB\x1c\r"])
def test_fs_before_lf_or_vt_ends_a_frame_when_tolerant(after):
    events = Decoder(BIG).feed(b"\x0bA\x1c" + after)
    assert events[0] == Frame(b"A", ("FS without CR",))
    assert payloads(events)[1:] == ([b"B"] if b"B" in after else [])


def test_fs_at_the_end_of_the_stream_ends_a_frame_when_tolerant():
    decoder = Decoder(BIG)
    assert decoder.feed(b"\x0bA\x1c") == []
    assert decoder.close() == [Frame(b"A", ("FS without CR",))]


def test_a_peer_that_waits_after_fs_gets_its_frame_when_it_has_been_quiet():
    decoder = Decoder(BIG)
    assert decoder.feed(b"\x0bA\x1c") == []
    assert decoder.waiting_for_end
    assert decoder.settle() == [Frame(b"A", ("FS without CR",))]
    assert payloads(decoder.feed(encode(b"B"))) == [b"B"]


def test_a_strict_decoder_takes_fs_without_cr_as_data():
    decoder = Decoder(BIG, tolerant=False)
    assert payloads(decoder.feed(b"\x0bA\x1c\nB\x1c\r")) == [b"A\x1c\nB"]
    decoder.feed(b"\x0bA\x1c")
    assert decoder.settle() == []
    assert decoder.close() == [Fault(FaultKind.TRUNCATED, b"A\x1c", 2)]


def test_any_other_fs_is_data_and_noted():
    assert Decoder(BIG).feed(b"\x0bA\x1cB\x1c\r") == [Frame(b"A\x1cB", ("FS inside the message",))]
    assert payloads(Decoder(BIG).feed(b"\x0bA\x1c\x1c\r")) == [b"A\x1c"]


@pytest.mark.parametrize("between", [b"\r", b"\r\n", b"\x00\x00", b"\xef\xbb\xbf", b"  \t", b"\n\n\r\r"])
def test_line_ends_nul_bom_and_spaces_between_frames_are_nothing(between):
    events = Decoder(BIG).feed(between + encode(b"A") + between + encode(b"B") + between)
    assert events == [Frame(b"A"), Frame(b"B")]


def test_a_keep_alive_stream_never_grows():
    decoder = Decoder(BIG)
    for _ in range(1000):
        assert decoder.feed(b"\r\n\x00") == []
    assert decoder.open_length == 0
    assert decoder.close() == []


def test_vt_inside_a_frame_sets_the_partial_bytes_aside_and_begins_anew():
    events = Decoder(BIG).feed(b"\x0bMSH|half\x0bMSH|whole\x1c\r")
    assert events == [Fault(FaultKind.ABORTED, b"MSH|half", 8), Frame(b"MSH|whole")]


def test_an_empty_frame_is_nothing():
    assert Decoder(BIG).feed(b"\x0b\x1c\r" + encode(b"A")) == [Frame(b"A")]


def test_a_long_run_of_vt_costs_linear_time():
    decoder = Decoder(BIG)
    started = time.process_time()
    assert decoder.feed(b"\x0b" * 1_000_000) == []
    first = time.process_time() - started
    assert first < 20  # a quadratic one would take hours; no speed is asserted
    assert payloads(decoder.feed(b"A\x1c\r")) == [b"A"]


def test_alternating_fs_and_data_costs_linear_time():
    decoder = Decoder(4 << 20)
    events = decoder.feed(b"\x0b" + b"\x1cA" * 500_000 + b"\x1c\r")
    assert payloads(events) == [b"\x1cA" * 500_000]


def test_a_frame_over_the_cap_keeps_its_header_is_read_past_and_the_next_one_lives():
    decoder = Decoder(10_000)
    body = b"MSH|^~\\&|A" + b"x" * 50_000
    events = decoder.feed(b"\x0b" + body[:7000])
    events += decoder.feed(body[7000:] + b"\x1c\r" + encode(b"B"))
    assert events == [Fault(FaultKind.OVERSIZE, body[:KEPT], len(body)), Frame(b"B")]


def test_a_frame_of_exactly_the_cap_is_whole():
    assert payloads(Decoder(100).feed(encode(b"x" * 100))) == [b"x" * 100]
    assert kinds(Decoder(100).feed(encode(b"x" * 101))) == [FaultKind.OVERSIZE]


def test_a_frame_that_never_ends_keeps_4_kib_and_counts_on():
    decoder = Decoder(10_000)
    decoder.feed(b"\x0b")
    for _ in range(100):
        assert decoder.feed(b"y" * 10_000) == []
    assert decoder.open_length > 1_000_000
    assert len(decoder._body) <= KEPT
    assert decoder.close() == [Fault(FaultKind.OVERSIZE, b"y" * KEPT, 1_000_000)]


def test_bytes_outside_a_frame_are_one_fault_and_the_next_frame_lives():
    events = Decoder(BIG).feed(b"GET / HTTP/1.1\r\n\r\n" + encode(b"A"))
    assert events == [Fault(FaultKind.STRAY, b"GET / HTTP/1.1\r\n\r\n", 18), Frame(b"A")]


def test_a_flood_of_stray_bytes_is_told_once_and_bounded():
    decoder = Decoder(BIG)
    events = []
    for _ in range(100):
        events += decoder.feed(b"z" * 1000)
    assert kinds(events) == [FaultKind.STRAY]
    assert all(isinstance(e, Fault) and len(e.data) <= KEPT for e in events)


def test_a_message_without_vt_is_told_at_its_fs():
    events = Decoder(BIG).feed(b"MSH|^~\\&|A\r\x1c\r")
    assert kinds(events) == [FaultKind.STRAY]
    assert all(isinstance(e, Fault) and e.data.startswith(b"MSH|") for e in events)


def test_a_stream_that_ends_inside_a_frame_leaves_a_fault():
    decoder = Decoder(BIG)
    decoder.feed(b"\x0bMSH|half")
    assert decoder.close() == [Fault(FaultKind.TRUNCATED, b"MSH|half", 8)]
    assert decoder.close() == []


@pytest.mark.parametrize("payload", [b"a\x0bb", b"a\x1cb"])
def test_a_payload_with_a_framing_byte_cannot_be_framed(payload):
    with pytest.raises(FramingError):
        encode(payload)


pieces = st.sampled_from(
    [b"\x0b", b"\x1c", b"\r", b"\n", b"\x00", b"MSH|^~\\&|", b"A", b"\x1c\r", b"\x0bA\x1c\r", b" "]
) | st.binary(max_size=8)


def merged(events):
    """Frames and the kinds of faults."""
    return [(e.payload, e.notes) if isinstance(e, Frame) else e.kind for e in events]


@given(st.lists(pieces, max_size=40), st.lists(st.integers(1, 9), max_size=60), st.booleans())
def test_any_split_of_any_bytes_gives_the_same_frames(parts, cuts, tolerant):
    stream = b"".join(parts)
    whole = Decoder(64, tolerant)
    expected = merged(whole.feed(stream) + whole.close())
    decoder, events, pos = Decoder(64, tolerant), [], 0
    for cut in [*cuts, len(stream)]:
        events += decoder.feed(stream[pos : pos + cut])
        pos += cut
    events += decoder.feed(stream[pos:]) + decoder.close()
    assert merged(events) == expected


@given(
    st.lists(st.binary(min_size=1, max_size=50).map(lambda b: b.translate(None, b"\x0b\x1c")), max_size=10)
)
def test_what_was_framed_comes_back(bodies):
    bodies = [b for b in bodies if b]
    assert Decoder(BIG).feed(b"".join(encode(b) for b in bodies)) == [Frame(b) for b in bodies]
