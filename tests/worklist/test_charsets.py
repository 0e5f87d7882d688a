"""Names in the scripts of the world: HL7 in, DICOM out, compared byte by byte with the standard's own examples."""

from __future__ import annotations

import pytest
from pydicom import Dataset
from pydicom.charset import convert_encodings
from pydicom.valuerep import PersonName

from integration import inbox, sources
from integration.inbox import Peer
from integration.models import Source
from pacs.dimse.registry import EXPLICIT_VR_BIG_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from tests.ris.making import group, place, who
from tests.worklist.asking import ask, query, request_for
from worklist import charsets, scp
from worklist.answers import parse
from worklist.models import QueryLog

DELIMITERS = "\\^=\r\n\f\t"

# Name, how HL7 spells it (MSH-18, codec, PID-5), Specific Character Set, and the bytes. The ISO 2022 ones, GB18030
# and UTF-8 are the examples of PS3.5 annexes H to K; the others are in the same spirit.
SCRIPTS = {
    "western": (
        "Buc^Jérôme",
        ("8859/1", "latin-1", "Buc^Jérôme"),
        ("ISO_IR 100",),
        b"Buc^J\xe9r\xf4me",
    ),
    "central european": (
        "Wałęsa^Łucja",
        ("8859/2", "iso8859-2", "Wałęsa^Łucja"),
        ("ISO_IR 101",),
        b"Wa\xb3\xeasa^\xa3ucja",
    ),
    "south european": (
        "Ħaġar^Ġorġ",
        ("8859/3", "iso8859-3", "Ħaġar^Ġorġ"),
        ("ISO_IR 109",),
        b"\xa1a\xf5ar^\xd5or\xf5",
    ),
    "north european": (
        "Bērziņš^Jānis",
        ("8859/4", "iso8859-4", "Bērziņš^Jānis"),
        ("ISO_IR 110",),
        b"B\xbarzi\xf1\xb9^J\xe0nis",
    ),
    "cyrillic": (
        "Люкceмбypг",
        ("8859/5", "iso8859-5", "Люкceмбypг"),
        ("ISO_IR 144",),
        b"\xbb\xee\xdace\xdc\xd1yp\xd3",
    ),
    "arabic": (
        "قباني^لنزار",
        ("8859/6", "iso8859-6", "قباني^لنزار"),
        ("ISO_IR 127",),
        b"\xe2\xc8\xc7\xe6\xea^\xe4\xe6\xd2\xc7\xd1",
    ),
    "greek": (
        "Διονυσιος",
        ("8859/7", "iso8859-7", "Διονυσιος"),
        ("ISO_IR 126",),
        b"\xc4\xe9\xef\xed\xf5\xf3\xe9\xef\xf2",
    ),
    "hebrew": (
        "שרון^דבורה",
        ("8859/8", "iso8859-8", "שרון^דבורה"),
        ("ISO_IR 138",),
        b"\xf9\xf8\xe5\xef^\xe3\xe1\xe5\xf8\xe4",
    ),
    "turkish": (
        "Çavuşoğlu^Şirin",
        ("8859/9", "iso8859-9", "Çavuşoğlu^Şirin"),
        ("ISO_IR 148",),
        b"\xc7avu\xfeo\xf0lu^\xdeirin",
    ),
    "latin 9": (
        "Cœur^Žofie",
        ("8859/15", "iso8859-15", "Cœur^Žofie"),
        ("ISO_IR 203",),
        b"C\xbdur^\xb4ofie",
    ),
    "thai": (
        "สมชาย^ใจดี",
        ("UNICODE UTF-8", "utf-8", "สมชาย^ใจดี"),
        ("ISO_IR 166",),
        b"\xca\xc1\xaa\xd2\xc2^\xe3\xa8\xb4\xd5",
    ),
    "japanese": (
        "Yamada^Tarou=山田^太郎=やまだ^たろう",
        ("UNICODE UTF-8", "utf-8", "Yamada^Tarou^^^^^L^A~山田^太郎^^^^^L^I~やまだ^たろう^^^^^L^P"),
        ("", "ISO 2022 IR 87"),
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
    ),
    "korean": (
        "Hong^Gildong=洪^吉洞=홍^길동",
        ("UNICODE UTF-8", "utf-8", "Hong^Gildong^^^^^L^A~洪^吉洞^^^^^L^I~홍^길동^^^^^L^P"),
        ("", "ISO 2022 IR 149"),
        b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
    ),
    "chinese GB18030": (
        "Wang^XiaoDong=王^小东",
        ("UNICODE UTF-8", "utf-8", "Wang^XiaoDong^^^^^L^A~王^小东^^^^^L^I"),
        ("GB18030",),
        b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab",
    ),
    "chinese GB2312": (
        "Zhang^XiaoDong=张^小东",
        ("UNICODE UTF-8", "utf-8", "Zhang^XiaoDong^^^^^L^A~张^小东^^^^^L^I"),
        ("", "ISO 2022 IR 58"),
        b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab",
    ),
    "everything": (
        "Wang^XiaoDong=王^小東",
        ("UNICODE UTF-8", "utf-8", "Wang^XiaoDong^^^^^L^A~王^小東^^^^^L^I"),
        ("ISO_IR 192",),
        b"Wang^XiaoDong=\xe7\x8e\x8b^\xe5\xb0\x8f\xe6\x9d\xb1",
    ),
}


def hl7_order(charset: str, name: str) -> str:
    """An order of a patient with this name, as ORM^O01."""
    return (
        f"MSH|^~\\&|HIS|HOSP|ORDERLY|SITE|20260302080000||ORM^O01|C1|P|2.3.1||||||{charset}\r"
        f"PID|1||4711^^^HOSP^MR||{name}||19600512|F\r"
        "ORC|NW|P1|||SC||1^^^20260302090000^^R\r"
        "OBR|1|P1||CTHEAD^Head^L||||||||||||||A1|RP1|S1||||CT\r"
        "ZDS|1.2.3.4^HIS^Application^DICOM\r"
    )


def raw_name(ds: Dataset, syntax: str = EXPLICIT_VR_LITTLE_ENDIAN) -> tuple[bytes, bytes]:
    """Specific Character Set and Patient's Name of the one answer, as they go over the wire."""
    ((_, data),) = scp.find(request_for(ds, syntax=syntax))
    assert syntax == EXPLICIT_VR_LITTLE_ENDIAN
    found = {tag: value for tag, vr, value in parse_outer(data)}
    return found.get(0x00080005, b""), found[0x00100010].rstrip(b" ")


def parse_outer(data: bytes) -> list[tuple[int, str, bytes]]:
    """The elements before the step's sequence."""
    return list(parse(data[: data.index(b"\x40\x00\x00\x01SQ")]))


@pytest.mark.django_db
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_name_goes_from_hl7_to_the_scanner_unharmed(script: str) -> None:
    name, (msh18, codec, pid5), terms, encoded = SCRIPTS[script]
    sources.forget()
    Source.objects.create(name="his")
    reply = inbox.receive(hl7_order(msh18, pid5).encode(codec), Peer("127.0.0.1"))
    assert reply.code == "AA"

    ds = query(SpecificCharacterSet=list(terms))
    assert raw_name(ds) == (("\\".join(terms)).encode().ljust(len("\\".join(terms)) + 1 & ~1), encoded)
    for syntax in (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN):
        (answer,) = ask(ds, syntax=syntax)
        assert str(answer.PatientName.decode()).replace("\x1b$)A", "") == name

    # The same name is found when it is asked for in the scanner's set, and in UTF-8.
    group_of = next(g for g in reversed(name.split("=")) if g)
    for asked in (terms, ("ISO_IR 192",)):
        keyed = query(SpecificCharacterSet=list(asked))
        keyed.PatientName = PersonName(
            charsets.write(f"=={group_of}"[2 - name.count("=") :], asked, DELIMITERS) or b"",
            convert_encodings(list(asked)),
        )
        assert len(ask(keyed)) == 1, asked


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_is_written_is_read_back_by_another_library(script: str) -> None:
    name, _, terms, encoded = SCRIPTS[script]
    assert charsets.write(name, terms, DELIMITERS) == encoded
    read = str(PersonName(encoded, convert_encodings(list(terms))).decode())
    assert read.replace("\x1b$)A", "") == name  # pydicom 3.0 leaves the sequence of GB 2312 in the text


@pytest.mark.django_db
def test_the_first_set_that_holds_the_name_is_taken_query_then_scanner_then_utf_8() -> None:
    place(group(accession="K1"), patient=who(name="Müller^Иван"))
    latin = query(SpecificCharacterSet="ISO_IR 100")
    assert raw_name(latin)[0].strip() == b"ISO_IR 192"
    both = query(SpecificCharacterSet=["ISO 2022 IR 100", "ISO 2022 IR 144"])
    assert raw_name(both)[1] == b"M\xfcller^\x1b-L\xb8\xd2\xd0\xdd"
    options = {"worklist": {"character_set": ["ISO 2022 IR 100", "ISO 2022 IR 144"]}}
    (answer,) = ask(query(), options=options)
    assert list(answer.SpecificCharacterSet) == ["ISO 2022 IR 100", "ISO 2022 IR 144"]
    (answer,) = ask(query())
    assert answer.SpecificCharacterSet == "ISO_IR 192"


@pytest.mark.django_db
def test_an_answer_in_ascii_names_no_character_set_unless_asked() -> None:
    place(group(accession="K2"))
    assert "SpecificCharacterSet" not in ask(query())[0]
    assert ask(query(SpecificCharacterSet="ISO_IR 100"))[0].SpecificCharacterSet == "ISO_IR 100"


@pytest.mark.django_db
def test_a_scanner_that_reads_one_set_only_gets_adapted_names_and_it_is_noted() -> None:
    place(group(accession="K3"), patient=who(name="Łukasz^Żaneta=山田"))
    options = {"worklist": {"character_set": ["ISO_IR 100"], "only_character_set": True}}
    (answer,) = ask(query(SpecificCharacterSet="ISO_IR 192"), options=options)
    assert str(answer.PatientName) == "Lukasz^Zaneta"
    assert answer.SpecificCharacterSet == "ISO_IR 100"
    assert "adapted: PatientName" in QueryLog.objects.get().notes


def test_the_rule_by_which_characters_are_adapted() -> None:
    def adapted(text: str, *terms: str, name: bool = True) -> str:
        return charsets.adapt(text, terms or ("",), name=name)[0]

    assert adapted("Müller^Ødegård") == "Muller^Odegard"
    assert adapted("Weiß^Æsa") == "Weiss^AEsa"
    assert adapted("山田^太郎=Yamada^Tarou") == "=Yamada^Tarou"
    assert adapted("山田^太郎") == "??^??"
    assert adapted("ﾔﾏﾀﾞ", "", "ISO 2022 IR 87") == "ヤマダ"
    assert adapted("5 °C – ok", name=False) == "5 ?C - ok"


def test_iso_2022_returns_to_the_first_set_before_every_delimiter() -> None:
    def written(text: str, *terms: str) -> bytes | None:
        return charsets.write(text, terms, DELIMITERS)

    assert written("ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎", "ISO 2022 IR 13", "ISO 2022 IR 87") == (
        b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J"
    )
    assert written("山a田", "", "ISO 2022 IR 87") == b"\x1b$B;3\x1b(Ba\x1b$BED\x1b(B"
    assert written("Müller", "", "ISO 2022 IR 149") is None
    assert written("x", "no such set") == b"x"
    assert written("ü", "no such set") is None
    assert not charsets.known(("ISO_IR 192", "ISO 2022 IR 87"))
