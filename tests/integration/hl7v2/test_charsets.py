"""Character sets: declared, undeclared, wrongly declared, several, and the way out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration.hl7v2 import charsets
from integration.hl7v2.errors import Refused
from integration.hl7v2.reading import parse


def msh(charset: str) -> bytes:
    return f"MSH|^~\\&|A|B|C|D|20260301||ADT^A08|1|P|2.5.1||||||{charset}\r".encode("ascii")


def name_of(raw: bytes, **options):
    message = parse(raw, **options)
    return message.first("PID").value(5), [w.text for w in message.warnings]


@pytest.mark.parametrize(
    ("declared", "codec", "name"),
    [
        ("8859/1", "latin-1", "MÜLLER"),
        ("8859/2", "iso8859-2", "DVOŘÁK"),
        ("8859/5", "iso8859-5", "ИВАНОВ"),
        ("8859/7", "iso8859-7", "ΠΑΠΑΔΟΠΟΥΛΟΣ"),
        ("8859/9", "iso8859-9", "ŞAHİN"),
        ("8859/15", "iso8859-15", "LŒW"),
        ("UNICODE UTF-8", "utf-8", "山田"),
        ("utf-8", "utf-8", "ŁUKASZ"),
        ("GB 18030-2000", "gb18030", "王"),
        ("BIG-5", "big5", "王"),
        ("KS X 1001", "euc_kr", "김"),
        ("ISO IR87", "iso2022_jp", "山田"),
        ("~ISO IR87", "iso2022_jp", "山田"),
        ("ASCII~ISO IR87", "iso2022_jp", "山田"),
        ("ISO IR14", "shift_jis", "ﾔﾏﾀﾞ"),
    ],
)
def test_a_declared_set_is_read(declared, codec, name):
    read, warnings = name_of(msh(declared) + b"PID|||1||" + name.encode(codec) + b"^X\r")
    assert read == name
    assert warnings == []


def test_multibyte_characters_that_hold_delimiter_bytes_are_no_delimiters():
    # U+8868 ends with 0x5C in Shift JIS, U+4E5E in Big5 0xA4 5E, and 0x7C stands in GB 18030's second bytes
    for declared, codec, character in (("BIG-5", "big5", "功"), ("GB 18030-2000", "gb18030", "亅")):
        encoded = character.encode(codec)
        assert encoded[1:2] in b"|\\^~&", encoded
        read, _ = name_of(msh(declared) + b"PID|||1||" + encoded + b"^GIVEN\r")
        assert read == character


def test_utf_8_that_declares_latin_1_is_read_right_and_warned_of():
    read, warnings = name_of(msh("8859/1") + "PID|||1||MÜLLER^X\r".encode())
    assert read == "MÜLLER"
    assert warnings == ["MSH-18 says 8859/1; the bytes are UTF-8."]


def test_windows_1252_that_declares_latin_1_is_read_right_and_warned_of():
    read, warnings = name_of(msh("8859/1") + "PID|||1||O’NEILL^X\r".encode("cp1252"))
    assert read == "O’NEILL"
    assert len(warnings) == 1


def test_undeclared_bytes_are_utf_8_else_the_sources_fallback_with_a_warning():
    assert name_of(msh("") + "PID|||1||MÜLLER^X\r".encode()) == ("MÜLLER", [])
    read, warnings = name_of(msh("") + "PID|||1||MÜLLER^X\r".encode("cp1252"))
    assert read == "MÜLLER"
    assert "cp1252" in warnings[0]
    read, _ = name_of(msh("") + "PID|||1||ИВАНОВ^X\r".encode("iso8859-5"), fallback="8859/5")
    assert read == "ИВАНОВ"


def test_ascii_that_is_none_is_read_as_if_undeclared_with_a_warning():
    read, warnings = name_of(msh("ASCII") + "PID|||1||MÜLLER^X\r".encode())
    assert read == "MÜLLER"
    assert len(warnings) == 1


def test_a_set_nobody_knows_is_passed_over_with_a_warning():
    read, warnings = name_of(msh("KLINGON") + "PID|||1||MÜLLER^X\r".encode())
    assert read == "MÜLLER"
    assert len(warnings) == 1


def test_bytes_that_are_not_what_they_declare_are_refused_at_msh_18():
    with pytest.raises(Refused) as refusal:
        parse(msh("UNICODE UTF-8") + b"PID|||1||M\xdcLLER^X\r")
    assert str(refusal.value.problem.location) == "MSH^1^18"
    assert refusal.value.problem.code == 102
    assert refusal.value.ack_code == "AE"


def test_a_source_may_force_a_set():
    read, _ = name_of(msh("UNICODE UTF-8") + b"PID|||1||M\xdcLLER^X\r", force_charset="8859/1")
    assert read == "MÜLLER"


def test_hex_escapes_are_bytes_of_the_messages_own_set():
    assert name_of(msh("8859/1") + b"PID|||1||CAF\\XC9\\\r")[0] == "CAFÉ"
    assert name_of(msh("UNICODE UTF-8") + b"PID|||1||CAF\\XC389\\\r")[0] == "CAFÉ"


def test_every_set_of_the_table_is_a_codec_and_has_a_dicom_name():
    for name, (codec, dicom) in charsets.SETS.items():
        assert charsets.is_codec(codec)
        assert dicom.startswith(("ISO", "GB")) or name in ("ASCII", "ISO IR6")
    assert not charsets.is_codec("klingon")


@pytest.mark.parametrize(
    ("text", "charset", "kept"),
    [
        ("Łukasz Müller ß €", "ASCII", b"Lukasz Muller ss EUR"),
        ("Łukasz Müller", "8859/1", "Lukasz Müller".encode("latin-1")),
        ("山", "8859/1", b"?"),
        ("山 Müller", "UNICODE UTF-8", "山 Müller".encode()),
    ],
)
def test_what_a_set_lacks_is_brought_near(text, charset, kept):
    assert charsets.encode(text, charset) == kept


def test_without_transliteration_what_a_set_lacks_is_an_error():
    with pytest.raises(ValueError, match="8859/1"):
        charsets.encode("山", "8859/1", transliterate=False)


@given(
    st.binary(max_size=80), st.sampled_from(["", "8859/1", "ISO IR87", "ASCII", "UNICODE UTF-8", "nonsense"])
)
def test_any_bytes_are_read_or_refused(body, declared):
    try:
        charsets.decode(body, (declared,) if declared else ())
    except Refused as refusal:
        assert refusal.problem.code == 102
