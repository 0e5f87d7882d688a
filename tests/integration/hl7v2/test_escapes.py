r"""Escape sequences: what each means, what is none, and that any text survives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration.hl7v2.charsets import decoder
from integration.hl7v2.escapes import escape, unescape
from integration.hl7v2.reading import NULL
from integration.hl7v2.separators import STANDARD, Separators

UTF8 = decoder("utf_8")
TRUNCATING = Separators(truncation="#")
VISTA = Separators("^", "~", "|", "\\", "&")


@pytest.mark.parametrize(
    ("encoded", "value"),
    [
        (r"a\F\b", "a|b"),
        (r"a\S\b", "a^b"),
        (r"a\T\b", "a&b"),
        (r"a\R\b", "a~b"),
        (r"a\E\b", "a\\b"),
        (r"\E\\E\ ", "\\\\ "),
        (r"\H\bold\N\ plain", "bold plain"),
        (r"caf\XC3A9\ ", "café "),
        (r"caf\XC3\\XA9\ ", "café "),
        (r"caf\Xc3a9\ ", "café "),
        (r"\X0D\\X0A\ ", "\r\n "),
        (r"one\.br\two", "one\ntwo"),
        (r"one\.sp2\two", "one\n\ntwo"),
        (r"one\.sp+2\two", "one\n\ntwo"),
        (r"one\.sk 3\two", "one   two"),
        (r"\.in+4\text\.ti-2\\.fi\\.nf\ ", "text "),
        (r"\.ce\title", "\ntitle"),
        (r"\Z12\local", r"\Z12\local"),
    ],
)
def test_a_sequence_means_what_the_standard_says(encoded, value):
    assert unescape(encoded, STANDARD, UTF8) == value


@pytest.mark.parametrize(
    "text",
    [
        r"C:\temp",
        r"C:\temp\x",
        r"C:\Users\Public\file",
        "\\",
        "\\\\",
        "a\\",
        r"\X\ ",
        r"\XC3\ ",  # half a character: the bytes say nothing
        r"\X0\ ",
        r"\Xzz\ ",
        r"\Q\ ",
        r"\.xx\ ",
    ],
)
def test_what_is_no_sequence_stays_as_it_is(text):
    assert unescape(text, STANDARD, UTF8) == text


def test_a_real_sequence_after_a_stray_backslash_is_read():
    assert unescape(r"C:\temp\S\x", STANDARD, UTF8) == r"C:\temp^x"


def test_layout_commands_are_bounded():
    assert unescape(r"a\.sp50000000\b") == "a" + "\n" * 100 + "b"
    assert unescape(r"a\.sk999999999\b") == "a" + " " * 100 + "b"


def test_the_truncation_character_has_a_sequence_only_where_it_is_named():
    assert unescape(r"a\P\b", TRUNCATING) == "a#b"
    assert unescape(r"a\P\b") == r"a\P\b"
    assert escape("a#b", TRUNCATING) == r"a\P\b"
    assert escape("a#b") == "a#b"


def test_sequences_follow_the_senders_own_separators():
    assert unescape(r"\F\\S\\R\\T\ ", VISTA) == "^~|& "


def test_character_set_switches_of_the_message_are_read():
    jis = "山".encode("iso2022_jp")[3:5].decode("ascii")
    assert unescape(rf"\M2442\{jis}\C2842\ ok", STANDARD, UTF8) == "山 ok"
    assert unescape("\\M999999\\abc", STANDARD, UTF8) == "\\M999999\\abc"


def test_a_hundred_thousand_backslashes_cost_linear_time():
    text = "\\x" * 100_000
    assert unescape(text) == text


def test_a_text_of_two_quotes_is_no_deletion():
    assert escape('""') == '\\X22\\"'
    assert unescape(escape('""')) == '""'
    assert unescape(escape('""')) is not NULL


@given(
    st.text(max_size=200), st.sampled_from([STANDARD, TRUNCATING, VISTA, Separators("!", "@", "$", "%", "*")])
)
def test_any_text_survives_and_shows_no_delimiter(text, separators):
    encoded = escape(text, separators)
    assert unescape(encoded, separators, UTF8) == text
    bare = set(separators.all) - {separators.escape}
    assert not bare & set(encoded)
    assert not {"\r", "\n", "\x0b", "\x1c"} & set(encoded)


@given(st.text(alphabet="\\FSTREXHNZ.br0A9|^~&C", max_size=60))
def test_any_mixture_of_sequences_is_read_without_failing(text):
    assert isinstance(unescape(text), str)
