"""A changed profile tried on what came before, and a profile proposed from samples."""

import pytest

from integration import dry_run, onboarding, sources
from integration.inbox import Peer, receive
from integration.models import Message, Source
from integration.sources import ProfileError, compile_profile
from ris.models import ImagingServiceRequest, Patient
from tests.integration.hl7v2.making import adt, orm

PEER = Peer("127.0.0.1", 1)


@pytest.mark.django_db(transaction=True)
def test_a_dry_run_shows_what_would_become_different_and_changes_nothing(any_source):
    receive(orm(placer="PL1", filler="F1", modality="KT"), PEER)
    receive(adt(identifier="P2"), PEER)
    before = list(Patient.objects.values()), list(ImagingServiceRequest.objects.values())
    changed = {
        "accession_number": "OBR-18, ORC-3.1",
        "modality_table": {"KT": "CT"},
        "default_authority": "HOSP",
    }
    adt_outcome, orm_outcome = dry_run.dry_run(any_source, changed)
    found = {d.path: (d.before, d.after) for d in orm_outcome.differences}
    assert found["groups.1.keys.accession_number"] == ("", "F1")
    assert found["groups.1.step.modality"] == ("KT", "CT")
    assert [d.path for d in adt_outcome.differences] == ["identifiers.1.namespace"]
    assert (list(Patient.objects.values()), list(ImagingServiceRequest.objects.values())) == before
    assert all(o.same for o in dry_run.dry_run(any_source, {}))


@pytest.mark.django_db(transaction=True)
def test_a_dry_run_shows_what_would_be_refused(any_source):
    receive(orm(placer="PL1"), PEER)
    receive(orm(placer="PL2", modality="", status=""), PEER)
    second, first = dry_run.dry_run(any_source, {"modality": "ORC-1", "accession_number": "ORC-12.2"})
    assert first.before == second.before == ""
    assert {d.path for d in first.differences} >= {"groups.1.step.modality", "groups.1.keys.accession_number"}
    second, first = dry_run.dry_run(any_source, {"study_instance_uid": "OBR-2"})
    assert (first.before, first.after[:3]) == ("", "102")
    with pytest.raises(ProfileError):
        dry_run.dry_run(any_source, {"nonsense": 1})
    assert Message.objects.count() == 2


def test_no_key_is_a_field_and_a_policy():
    assert not set(sources.FIELDS) & set(sources.POLICIES)


def test_a_file_of_messages_is_taken_apart():
    one, two = adt(control_id="1"), adt(control_id="2")
    assert len(onboarding.take_apart(one + two)) == 2
    assert len(onboarding.take_apart(b"\x0b" + one + b"\x1c\r\x0b" + two + b"\x1c\r")) == 2
    assert len(onboarding.take_apart(b"BHS|^~\\&|A\r" + one + two + b"BTS|2\r")) == 2
    assert onboarding.take_apart(b"hello") == []


def test_a_survey_says_what_is_filled_what_nobody_reads_and_proposes_a_profile():
    raws = [
        orm(
            placer=f"PL{n}",
            filler=f"F{n}",
            modality="KT",
            patient=f"PID|1||{n}||DOE^J||19700101|F|||||||||||||||X",
        )
        for n in range(4)
    ]
    found = onboarding.survey([*raws, b"hello"])
    assert (found.messages, len(found.unreadable)) == (4, 1)
    assert found.kinds == {"ORM^O01": 4}
    uses = {u.place: u for u in found.uses}
    assert uses["OBR-24"].share == 1.0
    assert uses["OBR-24"].values == {"KT": 4}
    assert uses["OBR-24"].read_as == ("modality",)
    assert "PID-23" in {u.place for u in found.unread}
    assert found.proposal["accession_number"] == "IPC-1, OBR-18, OBR-3.1, make"
    assert found.proposal["default_authority"] == "HOSP"
    assert any("KT" in reason for reason in found.reasons)
    compile_profile(found.proposal)


@pytest.mark.django_db
def test_a_source_takes_the_proposed_profile():
    found = onboarding.survey([orm(filler="F1")])
    source = Source(name="new", profile=found.proposal)
    source.full_clean()
    source.save()
    sources.forget()
    assert sources.find("HIS", "HOSP", "127.0.0.1") is not None
