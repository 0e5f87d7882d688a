"""Our reading beside python-hl7's and hl7apy's tables, on messages that others wrote."""

import hl7
import pytest
from hl7apy.v2_5_1 import MESSAGES as THEIR_STRUCTURES

from integration.hl7v2 import tables
from integration.hl7v2.reading import parse
from tests.conftest import SAMPLES, sample

FILES = sorted(p.relative_to(SAMPLES).as_posix() for p in SAMPLES.glob("hl7/**/*.hl7")) + sorted(
    p.relative_to(SAMPLES).as_posix() for p in SAMPLES.glob("mwl/*.hl7")
)


@pytest.mark.parametrize("name", FILES or [pytest.param("hl7", id="none")])
def test_python_hl7_splits_the_samples_as_we_do(name):
    raw = sample(*name.split("/")).read_bytes()
    ours = parse(raw)
    text = "\r".join(s.raw for s in ours.segments) + "\r"
    theirs = hl7.parse(text)
    assert len(theirs) == len(ours.segments)
    for mine, their in zip(ours.segments, theirs, strict=True):
        if mine.name == "MSH":
            continue
        assert str(their) == mine.raw
        assert [str(f) for f in their] == mine.fields


def test_our_structures_are_those_of_2_5_1():
    for event, structure in tables.STRUCTURES.items():
        if structure in ("ADT_A44", "ADT_A43", "ADT_A45", "ADT_A60", "SIU_S12", "MDM_T01"):
            continue
        assert structure in THEIR_STRUCTURES or event in ("ADT^A44",), event


def test_every_event_has_a_name():
    assert {e.split("^")[1] for e in tables.STRUCTURES} - set(tables.EVENTS) <= {"T03", "T07", "T09"} | set()
