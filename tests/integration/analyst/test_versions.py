"""Each change of a source leaves a version, and any of them can be used again; the form reads and writes them."""

from pathlib import Path

import pytest

from config import site
from integration import sources
from integration.analyst import versions
from integration.analyst.profileform import SourceForm, initial_of
from integration.models import Source
from integration.sources import FIELDS, POLICIES, ProfileError

pytestmark = pytest.mark.django_db


def test_a_change_is_a_version_with_who_why_and_what_differs(his: Source):
    values = {**versions.values_of(his), "profile": {"accession_number": "ORC-3.1"}}
    made = versions.use(his, values, "user:7", "as agreed")
    assert (made.number, made.by, made.why, his.version) == (2, "user:7", "as agreed", 2)
    newest, first = versions.history(his)
    assert newest[1] == [versions.Difference("accession_number", None, "ORC-3.1")]
    assert first[0].number == 1


def test_a_save_without_a_change_makes_no_version(his: Source):
    his.save()
    assert his.versions.count() == 1
    his.address = "10.1.0.0/16"
    his.save()
    assert his.versions.count() == 2


def test_going_back_is_a_version_too(his: Source):
    values = {**versions.values_of(his), "profile": {"policy": "stored"}}
    versions.use(his, values, "user:7", "x")
    back = versions.go_back(his, 1, "user:7", "it was wrong")
    assert back.number == 3 and back.why == "Back to version 1. it was wrong"
    assert his.profile == {} and sources.profile_of(his.pk)["policy"] == "applied"


def test_a_profile_that_cannot_be_used_is_no_version(his: Source):
    with pytest.raises(ProfileError):
        versions.use(his, {**versions.values_of(his), "profile": {"nonsense": "1"}}, "user:7", "x")
    his.refresh_from_db()
    assert his.profile == {} and his.versions.count() == 1


def test_a_site_file_makes_versions_and_the_dump_holds_the_profile_in_use(db: None, tmp_path: Path):
    file = tmp_path / "site.toml"
    for policy in ("applied", "stored", "stored"):
        file.write_text(f'[[source]]\nname = "HIS"\npolicy = "{policy}"\n')
        site.load(file)
    row = Source.objects.get()
    assert [(v.number, v.by) for v in row.versions.all()] == [
        (2, "system:site load"),
        (1, "system:site load"),
    ]
    assert 'policy = "stored"' in site.dump()


def test_the_form_gives_back_every_value_it_was_given():
    profile = {
        "accession_number": "OBR-18, ORC-3.1, make", "policy": "stored", "modality_table": {"XR": "DX"},
        "processing_ids": ["P", "T"], "timezone": "Europe/Berlin",
    }  # fmt: skip
    values = {"application": "HIS", "facility": "*", "address": "*", "enabled": True, "profile": profile}
    form = SourceForm({k: v for k, v in initial_of(values).items() if v not in (None, False)})
    assert form.is_valid(), form.errors
    assert form.values() == values


def test_the_form_has_every_key_and_marks_each_fault_at_its_key():
    form = SourceForm(
        {"field.modality": "nowhere", "policy.timezone": "Mars/Olympus", "policy.modality_table": "a = b"}
    )
    assert not form.is_valid()
    assert {"field.modality", "policy.timezone"} <= form.errors.keys()
    shown = {f.name for part in (*form.field_parts(), *form.policy_parts()) for f in part.fields}
    shown |= {f.name for f in form.tables()}
    wanted = {f"field.{k}" for k in FIELDS} | {f"policy.{k}" for k in POLICIES if k not in FIELDS}
    assert shown == wanted


def test_no_key_is_a_field_and_a_table_or_policy_of_another_meaning():
    assert not set(FIELDS) & set(POLICIES)
