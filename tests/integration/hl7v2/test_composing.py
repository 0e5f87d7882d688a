"""The way out: whatever a value holds, what is read back is that value, and no segment more."""

import hl7
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from integration.hl7v2.composing import Encoded, field, message, segment
from integration.hl7v2.reading import NULL, parse
from integration.hl7v2.separators import STANDARD, Separators

SETS = [
    STANDARD,
    Separators(truncation="#"),
    Separators("^", "~", "|", "\\", "&"),
    Separators("!", "@", "$", "%", "*"),
]
MSH = ("MSH", {3: "RIS", 9: ("ADT", "A08", "ADT_A01"), 10: "1", 11: "P", 12: "2.5.1", 18: "UNICODE UTF-8"})


def test_texts_components_subcomponents_and_repetitions():
    assert field("a") == "a"
    assert field(("a", "b", None, "")) == "a^b"
    assert field(("1", "", "", ("HOSP", "1.2", "ISO"))) == "1^^^HOSP&1.2&ISO"
    assert field([("a", "b"), "c"]) == "a^b~c"
    assert field(NULL) == '""'
    assert field(("", NULL)) == '^""'
    assert field(None) == ""
    assert field(7) == "7"
    assert field(Encoded("a^b")) == "a^b"


def test_a_segment_ends_with_its_last_field():
    assert segment("PID", {1: 1, 5: ("DOE", "JANE"), 8: ""}) == "PID|1||||DOE^JANE"
    assert segment("MSH", {3: "RIS"}) == "MSH|^~\\&|RIS"
    assert segment("NTE", {}) == "NTE"


@pytest.mark.parametrize("name", ["PIDX", "p1d", "", "P D", "PI|"])
def test_a_segment_needs_a_segments_name(name):
    with pytest.raises(ValueError, match="name"):
        segment(name, {1: "x"})


def test_delimiters_and_line_ends_cannot_break_out():
    raw = message([MSH, ("NTE", {3: "a|b^c~d\\e&f\rOBX|1|TX\nx\x0b\x1c"})], charset="UNICODE UTF-8")
    read = parse(raw)
    assert [s.name for s in read.segments] == ["MSH", "NTE"]
    assert read.first("NTE").value(3) == "a|b^c~d\\e&f\rOBX|1|TX\nx\x0b\x1c"
    assert len(hl7.parse(raw.decode())) == 2


texts = st.text(max_size=30).filter(lambda t: t.encode("utf-8", "ignore").decode() == t)
leaves = texts | st.just(NULL)


@settings(max_examples=300)
@given(texts, st.integers(1, 40), st.sampled_from(SETS))
def test_any_text_in_any_field_with_any_separators_comes_back(text, number, separators):
    raw = message([MSH, ("ZZ1", {number: text}), ("ZZ2", {1: "end"})], separators, "UNICODE UTF-8")
    read = parse(raw)
    assert [s.name for s in read.segments] == ["MSH", "ZZ1", "ZZ2"]
    assert read.first("ZZ1").value(number) == text
    assert read.first("ZZ1").text(number) == text
    assert read.first("ZZ2").value(1) == "end"


@settings(max_examples=300)
@given(
    st.lists(
        st.lists(st.lists(leaves, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3).map(tuple),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(SETS),
)
def test_any_structure_comes_back_leaf_by_leaf(repetitions, separators):
    raw = message([MSH, ("ZZ1", {2: repetitions, 3: "end"})], separators, "UNICODE UTF-8")
    read = parse(raw).first("ZZ1")
    assert read.value(3) == "end"
    for r, repetition in enumerate(repetitions, 1):
        for c, component in enumerate(repetition, 1):
            for s, leaf in enumerate(component, 1):
                value = read.value(2, c, r, s)
                assert value == leaf
                assert leaf is not NULL or value is NULL


@given(texts)
def test_python_hl7_sees_no_more_segments_and_fields_than_were_written(text):
    raw = message([MSH, ("ZZ1", {1: "a", 2: text, 3: "c"})], charset="UNICODE UTF-8")
    theirs = hl7.parse(raw.decode("utf-8"))
    assert len(theirs) == 2
    assert len(theirs[1]) == 4
    assert str(theirs[1][3]) == "c"
