"""Names: suffix and prefix swap, representations become groups, ids come first in XCN."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.names import NameGroup, PersonName, clean_component
from integration.hl7v2.composing import segment
from integration.hl7v2.names import Person, read_cnn, read_xcn, read_xpn, write_cnn, write_xcn, write_xpn
from integration.hl7v2.reading import Segment


def pid(value: str) -> Segment:
    return Segment(f"PID|||||{value}")


@pytest.mark.parametrize(
    ("xpn", "pn"),
    [
        ("DOE^JANE", "DOE^JANE"),
        ("DOE^JANE^Q^JR^DR", "DOE^JANE^Q^DR^JR"),
        ("DOE^JANE^Q^JR^DR^MD", "DOE^JANE^Q^DR^JR MD"),
        ("DOE^JANE^^^^PhD", "DOE^JANE^^^PhD"),
        ("van Beethoven&van^Ludwig", "van Beethoven^Ludwig"),
        ("OTHER^NAME^^^^^A~LEGAL^NAME^^^^^L", "LEGAL^NAME"),
        ("ALIAS^X^^^^^N~DISPLAY^X^^^^^D", "DISPLAY^X"),
        (
            "Yamada^Tarou^^^^^L^A~山田^太郎^^^^^L^I~やまだ^たろう^^^^^L^P",
            "Yamada^Tarou=山田^太郎=やまだ^たろう",
        ),
        ("山田^太郎^^^^^L^I", "=山田^太郎"),
        (r"O\S\NEIL=X^A\E\B", "O NEIL X^A B"),
        ('DOE^""^X', "DOE^^X"),
    ],
)
def test_an_xpn_becomes_a_pn(xpn, pn):
    assert str(read_xpn(pid(xpn), 5)) == pn


def test_no_name_is_none():
    assert read_xpn(pid(""), 5) is None
    assert read_xpn(pid('""'), 5) is None
    assert read_xpn(pid("^^^"), 5) is None


def test_a_group_has_at_most_64_characters():
    name = read_xpn(pid("A" * 40 + "^" + "B" * 40 + "^C^D^E"), 5)
    assert name is not None
    assert len(str(name.alphabetic)) <= 64
    assert str(name).startswith("A" * 40 + "^B")


def test_an_xcn_has_the_id_first_and_its_authority_ninth():
    person = read_xcn(Segment("OBR|1234^SMITH^ANN^Q^JR^DR^MD^^NPI&1.2&ISO^L"), 1)
    assert person == Person("1234", "NPI", PersonName(NameGroup("SMITH", "ANN", "Q", "DR", "JR MD")))
    assert read_xcn(Segment("OBR|1234"), 1) == Person("1234", "", PersonName())
    assert read_xcn(Segment("OBR|"), 1) is None


def test_the_name_in_obr_32_is_the_subcomponents_of_its_first_component():
    person = read_cnn(Segment("OBR|9876&FAMILY&GIVEN&M^20260101"), 1)
    assert person == Person("9876", "", PersonName(NameGroup("FAMILY", "GIVEN", "M")))
    assert read_cnn(Segment("OBR|100^JOHNSON"), 1) == Person("100", "", PersonName(NameGroup("JOHNSON")))


components = st.text(max_size=9).map(clean_component)
groups = st.builds(NameGroup, components, components, components, components, components)


@given(groups, groups, groups)
def test_a_name_survives_the_way_out_and_back(alphabetic, ideographic, phonetic):
    name = PersonName(alphabetic, ideographic, phonetic)
    read = read_xpn(Segment(segment("PID", {5: list(write_xpn(name))})), 5)
    assert (read or PersonName()) == name


@given(st.text(alphabet="abc123", min_size=1, max_size=9), groups)
def test_a_provider_survives_the_way_out_and_back(identifier, group):
    name = PersonName(group)
    assert read_xcn(Segment(segment("OBR", {16: write_xcn(identifier, name)})), 16) == Person(
        identifier, "", name
    )
    if name:
        assert read_cnn(Segment(segment("OBR", {32: write_cnn(identifier, name)})), 32) == Person(
            identifier, "", name
        )
