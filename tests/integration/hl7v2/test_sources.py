"""Sources as data: who is who, what a profile may say, and how wrong ones are refused."""

import pytest
from django.core.exceptions import ValidationError

from integration import sources
from integration.models import Source
from integration.sources import FIELDS, POLICIES, PROFILE_KEYS, Place, ProfileError, compile_profile, find


@pytest.fixture(autouse=True)
def forgetful():
    sources.forget()
    yield
    sources.forget()


def test_the_defaults_compile_and_every_key_is_known():
    profile = compile_profile({})
    assert set(profile.fields) == set(FIELDS)
    assert set(profile.policies) == set(POLICIES)
    assert set(FIELDS) | set(POLICIES) == PROFILE_KEYS
    assert all(profile.fields[name].places or profile.fields[name].word for name in FIELDS)


def test_an_expression_is_alternatives_and_a_word():
    found = compile_profile({"accession_number": "OBR-18|IPC-1, ORC-3.1.2, make"}).fields["accession_number"]
    assert found.places == (Place("OBR", 18), Place("IPC", 1), Place("ORC", 3, 1, 2))
    assert found.word == "make"
    selected = compile_profile({"modality": "OBX[MODALITY]-5.1, 'OT'"}).fields["modality"]
    assert selected.places == (Place("OBX", 5, 1, selector="MODALITY"),)
    assert selected.constant == "OT"
    assert str(selected.places[0]) == "OBX[MODALITY]-5.1"


@pytest.mark.parametrize(
    ("profile", "key"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"accession_number": "OBR18"}, "accession_number"),
        ({"accession_number": "make, OBR-18"}, "accession_number"),
        ({"policy": "maybe"}, "policy"),
        ({"timezone": "Mars/Olympus"}, "timezone"),
        ({"charset": "klingon"}, "charset"),
        ({"processing_ids": "P"}, "processing_ids"),
        ({"control_table": {"X": "QQ"}}, "control_table"),
        ({"status_table": {"X": "QQ"}}, "status_table"),
    ],
)
def test_a_profile_that_cannot_be_used_names_its_key(profile, key):
    with pytest.raises(ProfileError) as error:
        compile_profile(profile)
    assert error.value.key == key
    with pytest.raises(ValidationError) as refused:
        Source(name="x", profile=profile).full_clean(validate_unique=False)
    assert key in str(refused.value)


@pytest.mark.django_db
def test_the_most_exact_source_wins():
    for name, application, facility, address in (
        ("any", "*", "*", "*"),
        ("network", "*", "*", "10.0.0.0/8"),
        ("his", "HIS", "*", "*"),
        ("exact", "HIS", "HOSP", "10.1.2.3"),
    ):
        Source.objects.create(name=name, application=application, facility=facility, address=address)

    def who(*asked):
        found = find(*asked)
        return found[0].name if found else None

    assert who("HIS", "HOSP", "10.1.2.3") == "exact"
    assert who("HIS", "HOSP", "10.1.2.4") == "his"
    assert who("LAB", "HOSP", "10.1.2.4") == "network"
    assert who("LAB", "HOSP", "192.168.0.1") == "any"
    assert who("LAB", "HOSP", "::ffff:10.1.2.4") == "network"
    assert who("LAB", "HOSP", "nonsense") == "any"


@pytest.mark.django_db
def test_disabled_sources_wrong_profiles_and_wrong_certificates_are_nobody():
    Source.objects.create(name="off", enabled=False)
    Source.objects.create(name="broken", profile={"nonsense": 1})
    Source.objects.create(name="pinned", profile={"certificate_sha256": "AB:CD"})
    assert find("HIS", "HOSP", "10.0.0.1") is None
    assert find("HIS", "HOSP", "10.0.0.1", "ffff") is None
    found = find("HIS", "HOSP", "10.0.0.1", "abcd")
    assert found is not None and found[0].name == "pinned"
