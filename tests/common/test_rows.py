"""Rows made quickly are the rows that Django's own constructor makes."""

from datetime import UTC, datetime
from uuid import uuid4

import pytest
from django.apps import apps
from django.db import models

from common.rows import Row, make
from integration.models import Message, MessageIdentity
from ris.models import Patient, PatientIdentifier, ScheduledProcedureStep
from worklist.models import WorklistItem

AT = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
MADE_HERE = [m for m in apps.get_models() if issubclass(m, Row)] + [Message, MessageIdentity, WorklistItem]


def own_columns(row: models.Model) -> dict:
    """The values of a row but for those that are new with each: its id, and other made keys."""
    fields = [
        f for f in row._meta.concrete_fields if not (callable(f.default) and f.default not in (dict, list))
    ]
    return {f.attname: getattr(row, f.attname) for f in fields}


@pytest.mark.parametrize("model", MADE_HERE, ids=lambda m: m.__name__)
def test_defaults_are_djangos(model):
    theirs = model.__new__(model)
    models.Model.__init__(theirs)
    ours = make(model)
    assert own_columns(ours) == own_columns(theirs)
    assert ours.__dict__.keys() == theirs.__dict__.keys()
    assert ours._state.adding is theirs._state.adding is True


def test_no_two_rows_share_what_can_change():
    first, second = Patient(), Patient()
    first.details["a"] = 1
    assert second.details == {}
    assert first.id != second.id


def test_a_related_row_is_kept_with_its_key():
    someone = Patient(created_at=AT, updated_at=AT, cause="hl7:1")
    number = PatientIdentifier(patient=someone, value="4711")
    assert number.patient is someone
    assert number.patient_id == someone.id
    assert PatientIdentifier(patient_id=someone.id).patient_id == someone.id


def test_what_is_no_field_is_refused():
    with pytest.raises(TypeError):
        Patient(patient_nmae="Sommer^Clara")
    with pytest.raises(TypeError):
        make(Message, nothing=1)
    with pytest.raises(ValueError, match="must be a"):
        PatientIdentifier(patient=ScheduledProcedureStep())


def test_a_row_from_the_database_knows_what_it_was():
    names = [f.attname for f in Patient._meta.concrete_fields]
    values = [uuid4() if n == "id" else {} if n == "details" else "" for n in names]
    row = Patient.from_db("default", names, values)
    assert not row._state.adding
    assert row.changes() == {}
    row.patient_sex = "F"
    assert row.changes() == {"patient_sex": ("", "F")}
