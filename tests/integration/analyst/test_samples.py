"""Sample messages looked at: what they hold, what our model lacks, a profile to begin with; nothing is stored."""

import pytest

from integration.analyst import samples
from integration.models import Message
from integration.sources import check
from tests.conftest import sample
from tests.integration.hl7v2.making import adt, message, msh, orm


def order(number: int, **fields: str) -> bytes:
    """An order of a system with habits of its own."""
    given = {"modality": "XR", "sex": "W", "priority": "U", "start": "", "filler": f"X{number:04}", **fields}
    return (
        message(
            f"MSH|^~\\&|KIS|STVINC|RIS|RAD|20260301120000||ORM^O01|K{number}|P|2.3.1",
            f"PID|1||77{number}||MÜLLER^ANNA||19700102|{given['sex']}",
            f"ORC|NW|P{number}^KIS|{given['filler']}|||||{given['start']}",
            f"OBR|1|P{number}^KIS|{given['filler']}|CT1^CT^L|||20260302090000|||||||||||||||||{given['modality']}|||^^^^^{given['priority']}",
        )
        .decode()
        .encode("cp1252")
    )


@pytest.mark.parametrize(
    "content",
    [
        adt("A04", "1") + adt("A08", "2"),
        b"\x0b" + adt("A04", "1") + b"\x1c\r\x0b" + adt("A08", "2") + b"\x1c\r",
        b"FHS|^~\\&\rBHS|^~\\&\r" + adt("A04", "1") + adt("A08", "2") + b"BTS|2\rFTS|1\r",
        adt("A04", "1").replace(b"\r", b"\r\n") + b"\r\n\r\n" + adt("A08", "2").replace(b"\r", b"\r\n"),
        b"12:00\n" + adt("A04", "1").replace(b"\r", b"\n") + b"\n12:01\n" + adt("A08", "2").replace(b"\r", b"\n"),
        b"\xef\xbb\xbf" + adt("A04", "1") + adt("A08", "2"),
    ],
    ids=["one after the other", "MLLP frames", "a batch", "Windows lines", "a log", "BOM"],
)  # fmt: skip
def test_messages_are_found_in_every_kind_of_file(content: bytes):
    found = samples.split(content)
    assert len(found) == 2
    assert all(raw.startswith(b"MSH") for raw in found)
    assert samples.analyse([content]).messages == 2


def test_what_is_no_hl7_gives_nothing():
    assert samples.split(b"%PDF-1.7 something else") == []
    found = samples.analyse([b"", b"hello"])
    assert (found.messages, found.given, found.proposals) == (0, 0, [])


def test_each_place_says_how_often_it_is_filled_and_with_what():
    found = samples.analyse([adt("A04"), adt("A04", sex=""), orm(placer="PL1")])
    places = {p.place: p for _, _, some in found.segments for p in some}
    assert (places["PID-8"].filled, places["PID-8"].of, places["PID-8"].percent) == (2, 3, 67)
    assert places["PID-8"].common == [("F", 2, "female")]
    assert places["PID-5.1"].name == "Patient name: Family name"
    assert places["PID-8"].read_as == ("patient_sex",)
    assert places["ORC-2"].read_as == ("placer_order_number",)
    assert found.kinds == [("ADT^A04", 2, "register"), ("ORM^O01", 1, "order")]


def test_a_profile_is_proposed_with_reasons_and_can_be_used():
    found = samples.analyse([order(n) for n in range(6)])
    proposed = {p.key: p.value for p in found.proposals}
    assert proposed["accession_number"] == "OBR-3.1, make"
    assert proposed["start"].endswith(", OBR-7")
    assert proposed["default_authority"] == "STVINC"
    assert proposed["modality_table"] == {"XR": "DX"}
    assert proposed["sex_table"] == {"W": "F"}
    assert proposed["priority_table"] == {"U": "HIGH"}
    assert proposed["charset"] == "cp1252"
    assert (found.values["application"], found.values["facility"]) == ("KIS", "STVINC")
    check(found.values["profile"])
    assert found.refused == []
    after = {a.name: a for a in found.attributes}
    assert after["accession_number"].percent == after["start"].percent == 100


def test_what_our_model_lacks_is_named_with_its_consequence():
    found = samples.analyse([order(n, modality="", filler="") for n in range(3)])
    lacking = {a.name: a for a in found.lacking}
    assert lacking["modality"].otherwise == "taken from the procedure catalogue"
    assert lacking["study_instance_uid"].need == "used"
    assert "procedure_code" not in lacking
    nameless = message(msh("ORM^O01"), "PID|1", "ORC|NW|1", "OBR|1|1")
    found = samples.analyse([nameless])
    assert {"patient_identifiers", "procedure_code"} <= {a.name for a in found.lacking}
    assert found.refused[0][0].startswith("The message names no patient identifier.")


def test_character_sets_are_found_out():
    latin = order(1)
    assert {p.key for p in samples.analyse([latin]).proposals} >= {"charset"}
    lying = adt("A04", name="MÜLLER^ANNA").replace(b"UNICODE UTF-8", b"8859/1")
    found = samples.analyse([lying])
    assert {p.key: p.value for p in found.proposals}["force_charset"] == "UNICODE UTF-8"
    assert found.warnings[0][0].startswith("MSH-18 says 8859/1")
    russian = (
        message("MSH|^~\\&|A|B|||20260301||ADT^A04|1|P|2.3", "PID|1||1^^^B||ИВАНОВ^ИВАН")
        .decode()
        .encode("iso8859_5")
    )
    assert {p.key: p.value for p in samples.analyse([russian]).proposals}["charset"] == "8859/5"


def test_unreadable_messages_are_counted_with_their_place():
    found = samples.analyse([adt("A04") + b"MSH|||||||||\r" + adt("A08")])
    assert found.messages == 2 and len(found.unreadable) == 1 and found.unreadable[0][0] == 2


def test_a_look_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(samples, "MOST_MESSAGES", 3)
    found = samples.analyse([adt("A04") * 10])
    assert (found.messages, found.given, found.stopped) == (3, 10, True)


@pytest.mark.django_db
def test_samples_of_others_are_looked_at_and_nothing_is_stored():
    folder = sample("hl7")
    contents = [
        p.read_bytes() for p in sorted(folder.rglob("*")) if p.suffix in (".hl7", ".txt") and p.is_file()
    ]
    found = samples.analyse(contents)
    assert found.messages > 50
    assert {"ORM^O01", "ADT^A01"} <= {kind for kind, _, _ in found.kinds}
    check(found.values["profile"])
    assert Message.objects.count() == 0
