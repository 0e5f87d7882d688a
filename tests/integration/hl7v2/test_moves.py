"""Moves of identifiers, accounts and visits (ADT A43, A44, A45 and their kin) through the inbox."""

import pytest

from integration.inbox import Peer, receive
from integration.models import Message
from ris.models import ImagingServiceRequest, Patient, PatientIdentifier, PatientMerge, Visit
from tests.integration.hl7v2.making import adt, group, message, msh, orm, pid

pytestmark = pytest.mark.django_db(transaction=True)
PEER = Peer("127.0.0.1", 1)


@pytest.fixture(autouse=True)
def his(any_source):
    """Somebody sends: Adam, whose number 2 was given to Eve's visit; and Eve."""
    say(adt("A04", identifier="1^^^HOSP^MR", name="EVERYMAN^ADAM"))
    say(adt("A04", identifier="9^^^HOSP^MR", name="EVERYWOMAN^EVE"))


def say(raw: bytes, code: str = "AA") -> Message:
    assert receive(raw, PEER).code == code
    return Message.objects.latest("id")


def order(accession: str, identifier: str, visit: str = "", account: str = "") -> None:
    """An order under this identifier, in this visit and account."""
    who = f"PID|1||{identifier}" + "|" * 15 + account
    pv1 = "PV1|1|I|W1" + "|" * 16 + visit if visit else "PV1|1|O"
    say(message(msh("ORM^O01"), who, pv1, *group(f"P{accession}", accession=accession)))


def move(event: str, *segments: str) -> bytes:
    return message(msh(f"ADT^{event}"), f"EVN|{event}|20260301130000+0000", *segments)


def owner(value: str) -> Patient:
    return PatientIdentifier.objects.get(value=value).patient


def owners() -> dict[str, str]:
    return {r.accession_number: r.patient.patient_name for r in ImagingServiceRequest.objects.all()}


TARGETS = {
    "what stands in both lists moves to whom PID-3 names besides": (
        "PID|1||9^^^HOSP^MR~2^^^HOSP^PI||EVERYWOMAN^EVE", "MRG|2^^^HOSP^PI~1^^^HOSP^MR"),
    "lists that share nothing: what MRG-1 names moves": (
        "PID|1||9^^^HOSP^MR||EVERYWOMAN^EVE", "MRG|2^^^HOSP^PI"),
    "the form of IHE: PID-3 names whom to and what, MRG-1 who had it": (
        "PID|1||9^^^HOSP^MR~2^^^HOSP^PI||EVERYWOMAN^EVE", "MRG|1^^^HOSP^MR"),
    "the form of version 2.3: PID-2 and MRG-4 name the two": (
        "PID|1|9^^^HOSP^MR|2^^^HOSP^PI||EVERYWOMAN^EVE", "MRG|2^^^HOSP^PI|||1^^^HOSP^MR"),
}  # fmt: skip


@pytest.mark.parametrize("form", TARGETS)
def test_a43_moves_an_identifier_with_what_came_in_under_it(form):
    say(adt("A08", identifier="1^^^HOSP^MR~2^^^HOSP^PI", name="EVERYMAN^ADAM"))
    order("A1", "1^^^HOSP^MR")
    order("B1", "2^^^HOSP^PI")
    row = say(move("A43", *TARGETS[form]))
    assert row.state == "applied" and row.trigger_event == "A43"
    assert owners() == {"A1": "EVERYMAN^ADAM", "B1": "EVERYWOMAN^EVE"}
    assert owner("2") == owner("9") and owner("1") != owner("9")
    assert set(row.patient_ids) == {owner("1").id, owner("9").id}
    again = say(move("A43", *TARGETS[form]))
    assert any("nothing" in w for w in again.warnings) and PatientMerge.objects.count() == 1
    assert owner("2") == owner("9") and owner("1") != owner("9")
    say(adt("A08", identifier="2^^^HOSP^PI", name="EVERYWOMAN^EVE^M", sent="20260301140000+0000"))
    assert owner("9").patient_name == "EVERYWOMAN^EVE^M"


def test_a43_that_names_nobody_to_move_to_is_refused_with_its_place():
    row = say(move("A43", "PID|1||1^^^HOSP^MR||EVERYWOMAN^EVE", "MRG|1^^^HOSP^MR"), "AE")
    assert (row.errors[0]["code"], row.errors[0]["place"]) == (101, "PID^1^3")


def test_a44_moves_an_account_with_its_visits_and_orders():
    order("A1", "1^^^HOSP^MR", "V1", "ACC1")
    order("B1", "1^^^HOSP^MR", "V2", "ACC2")
    order("B2", "1^^^HOSP^MR", "V3", "ACC2")
    say(move("A44", "PID|1||9^^^HOSP^MR||EVERYWOMAN^EVE|||||||||||||ACC2", "MRG|1^^^HOSP^MR||ACC2"))
    assert owners() == {"A1": "EVERYMAN^ADAM", "B1": "EVERYWOMAN^EVE", "B2": "EVERYWOMAN^EVE"}
    assert {v.admission_id for v in Visit.objects.filter(patient=owner("9"))} == {"V2", "V3"}


def test_a44_of_a_feed_without_visit_numbers():
    order("B1", "1^^^HOSP^MR", "", "ACC2")
    assert Visit.objects.get().admission_id == "ACC2"
    say(move("A44", "PID|1||9^^^HOSP^MR||EVERYWOMAN^EVE|||||||||||||ACC2", "MRG|1^^^HOSP^MR||ACC2"))
    assert owners() == {"B1": "EVERYWOMAN^EVE"} and Visit.objects.get().patient == owner("9")


def test_a45_moves_each_visit_to_patient_and_account():
    for number in (1, 2, 3):
        order(f"A{number}", "1^^^HOSP^MR", f"V{number}", "ACC1")
    pv1 = "PV1|1|I|W9" + "|" * 16
    say(
        move(
            "A45", "PID|1||9^^^HOSP^MR||EVERYWOMAN^EVE|||||||||||||ACC9",
            "MRG|1^^^HOSP^MR||ACC1||V1", pv1 + "V1", "MRG|1^^^HOSP^MR||ACC1||V2", pv1 + "V20",
        )
    )  # fmt: skip
    assert owners() == {"A1": "EVERYWOMAN^EVE", "A2": "EVERYWOMAN^EVE", "A3": "EVERYMAN^ADAM"}
    moved = {v.admission_id: (v.account_number, v.current_patient_location) for v in owner("9").visits.all()}
    assert moved == {"V1": ("ACC9", "W9"), "V20": ("ACC9", "W9")}


@pytest.mark.parametrize("event", ["A35", "A41", "A49"])
def test_an_account_gets_another_number(event):
    order("A1", "1^^^HOSP^MR", "V1", "ACC1")
    say(move(event, "PID|1||1^^^HOSP^MR||EVERYMAN^ADAM|||||||||||||ACC7", "MRG|1^^^HOSP^MR||ACC1"))
    assert Visit.objects.get().account_number == "ACC7" and owners() == {"A1": "EVERYMAN^ADAM"}


@pytest.mark.parametrize(("event", "now", "visits"), [("A42", "V1", {"A1": "V1", "A2": "V1"}),
                                                      ("A50", "V7", {"A1": "V1", "A2": "V7"})])  # fmt: skip
def test_a_visit_is_merged_into_another_or_gets_another_number(event, now, visits):
    order("A1", "1^^^HOSP^MR", "V1")
    order("A2", "1^^^HOSP^MR", "V2")
    pv1 = "PV1|1|I|W1" + "|" * 16 + now
    say(move(event, "PID|1||1^^^HOSP^MR||EVERYMAN^ADAM", "MRG|1^^^HOSP^MR||||V2", pv1))
    found = {r.accession_number: r.visit.admission_id for r in ImagingServiceRequest.objects.all() if r.visit}
    assert found == visits


@pytest.mark.parametrize("event", ["A30", "A36"])
def test_old_merges_of_persons(event):
    order("A1", "1^^^HOSP^MR")
    say(move(event, "PID|1||9^^^HOSP^MR||EVERYWOMAN^EVE", "MRG|1^^^HOSP^MR"))
    assert owners() == {"A1": "EVERYWOMAN^EVE"} and PatientMerge.objects.get().kind == "merge"


@pytest.mark.parametrize(
    ("event", "segments", "place"),
    [
        ("A43", (pid("9^^^HOSP"),), "MRG^1"),
        ("A43", (pid("9^^^HOSP"), "MRG|"), "MRG^1^1"),
        ("A44", (pid("9^^^HOSP"), "MRG|1^^^HOSP"), "MRG^1^3"),
        ("A45", (pid("9^^^HOSP"), "MRG|1^^^HOSP", "PV1|1|I"), "MRG^1^5"),
    ],
)
def test_a_move_that_does_not_say_what_is_refused_with_its_place(event, segments, place):
    row = say(move(event, *segments), "AE")
    assert (row.errors[0]["code"] in (100, 101), row.errors[0]["place"]) == (True, place)


@pytest.mark.parametrize(
    "segments",
    [
        ("A44", "PID|1||9^^^HOSP^MR" + "|" * 15 + "ACC2", "MRG|1^^^HOSP^MR||ACC2"),
        ("A45", "PID|1||9^^^HOSP^MR", "MRG|1^^^HOSP^MR||||V2", "PV1|1|I"),
    ],
)
def test_a_move_of_what_nobody_here_knows_is_accepted_and_noted(segments):
    row = say(move(*segments))
    assert row.state == "applied" and any("nothing moved" in w for w in row.warnings)
    assert not PatientMerge.objects.exists()


def test_a_move_repeated_under_another_control_id_changes_nothing():
    order("B1", "1^^^HOSP^MR", "V2", "ACC2")
    for _ in range(2):
        say(move("A44", "PID|1||9^^^HOSP^MR||EVERYWOMAN^EVE|||||||||||||ACC2", "MRG|1^^^HOSP^MR||ACC2"))
    assert PatientMerge.objects.count() == 1 and owners() == {"B1": "EVERYWOMAN^EVE"}


def test_orders_of_before_are_kept_where_they_are_when_nothing_says_how_they_came():
    say(adt("A08", identifier="1^^^HOSP^MR~2^^^HOSP^PI", name="EVERYMAN^ADAM"))
    say(orm(accession="B1", patient="PID|1||2^^^HOSP^PI"))
    ImagingServiceRequest.objects.update(details={})
    row = say(move("A43", "PID|1||9^^^HOSP^MR||EVERYWOMAN^EVE", "MRG|2^^^HOSP^PI"))
    assert owners() == {"B1": "EVERYMAN^ADAM"}
    assert any("do not say under which identifier" in w for w in row.warnings)
