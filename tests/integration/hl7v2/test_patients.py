"""PID, PV1 and MRG as commands: identifiers, names, deletions, visits, merges."""

from datetime import UTC, datetime

import pytest

from integration.hl7v2.errors import Refused
from integration.hl7v2.reading import parse
from integration.hl7v2.scope import Head
from integration.hl7v2.translate import translate
from integration.sources import compile_profile
from ris.commands import ChangeIdentifier, Identifier, MergePatients, RegisterPatient
from tests.integration.hl7v2.making import adt, merge, message, msh, pid

NOW = datetime(2026, 3, 1, 12, 0, 5, tzinfo=UTC)


def command(raw: bytes, **profile) -> RegisterPatient:
    translated = translate(Head(parse(raw), compile_profile(profile), NOW))
    assert translated is not None
    found = translated.commands[0]
    assert isinstance(found, RegisterPatient)
    return found


def with_pid(line: str, event: str = "A08", *more: str) -> bytes:
    return message(msh(f"ADT^{event}"), f"EVN|{event}|202603011159+0000", line, *more)


def test_the_medical_record_number_comes_first_and_account_numbers_are_no_ids():
    found = command(
        with_pid("PID|1||9^^^SSA^SS~A1^^^HOSP^AN~5^^^&1.2.3&ISO^PI~42^^^HOSP&1.2&ISO^MR")
    ).identifiers
    assert [i.value for i in found] == ["42", "5", "9"]
    assert found[0] == Identifier("42", "HOSP", "1.2", "ISO", "MR")
    assert found[1] == Identifier("5", "", "1.2.3", "ISO", "PI")


def test_the_primary_authority_of_the_source_comes_before_mr():
    found = command(with_pid("PID|1||42^^^HOSP^MR~7^^^RAD^PI"), primary_authority="RAD").identifiers
    assert [i.value for i in found] == ["7", "42"]


def test_an_identifier_without_authority_gets_the_sources():
    assert command(with_pid("PID|1||42"), default_authority="HOSP").identifiers[0] == Identifier("42", "HOSP")
    assert command(with_pid("PID|1||42")).identifiers[0] == Identifier("42")


def test_old_feeds_name_the_patient_in_pid_2_or_pid_4():
    assert command(with_pid("PID|1|42^^^HOSP")).identifiers[0].value == "42"
    assert command(with_pid("PID|1|||43^^^HOSP")).identifiers[0].value == "43"
    assert command(with_pid("PID|1|42^^^X|1^^^HOSP|43^^^Y")).identifiers[0].value == "1"


def test_an_identifier_is_never_cut():
    with pytest.raises(Refused) as refusal:
        command(with_pid("PID|1||" + "9" * 65 + "^^^HOSP"))
    assert (int(refusal.value.problem.code), str(refusal.value.problem.location)) == (104, "PID^1^3^1^1")


def test_demographics():
    raw = with_pid(
        "PID|1||1^^^HOSP||van Beethoven^Ludwig^^JR^DR||177012161500|M|||Main St 1^^Bonn^^53111^DE||+49 228 1",
        "A08", "NTE|1||first", "NTE|2||second", "PV1|1|O",
    )  # fmt: skip
    values = command(raw).values
    assert values["patient_name"] == "van Beethoven^Ludwig^^DR^JR"
    assert (values["patient_birth_date"], values["patient_sex"]) == ("17701216", "M")
    assert values["patient_address"] == "Main St 1, Bonn, 53111, DE"
    assert values["patient_telephone_numbers"] == "+49 228 1"
    assert values["patient_comments"] == "first\nsecond"


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("1970", "1970"), ("197001", "197001"), ("19700102", "19700102"), ("197001021530+0100", "19700102")],
)
def test_a_birth_date_keeps_its_precision_and_has_no_zone(sent, kept):
    assert command(with_pid(f"PID|1||1^^^H||D^J||{sent}")).values["patient_birth_date"] == kept


@pytest.mark.parametrize("sent", ["", "00000000"])
def test_no_birth_date_says_nothing(sent):
    assert "patient_birth_date" not in command(with_pid(f"PID|1||1^^^H||D^J||{sent}")).values


@pytest.mark.parametrize(
    ("sent", "sex"), [("M", "M"), ("f", "F"), ("O", "O"), ("A", "O"), ("U", ""), ("", None)]
)
def test_sex(sent, sex):
    assert command(with_pid(f"PID|1||1^^^H||D^J||19700101|{sent}")).values.get("patient_sex") == sex


def test_a_local_sex_is_mapped_or_noted():
    assert command(with_pid("PID|1||1^^^H||D^J|||W"), sex_table={"W": "F"}).values["patient_sex"] == "F"
    head = Head(parse(with_pid("PID|1||1^^^H||D^J|||W")), compile_profile({}), NOW)
    translate(head)
    assert head.warnings == ["PID^1^8: this is none of table 0001; it was passed over."]


def test_two_quotes_delete_empty_says_nothing_unless_the_source_means_otherwise():
    line = 'PID|1||1^^^H||DOE^J||""|M|||'
    assert command(with_pid(line)).values["patient_birth_date"] == ""
    assert "patient_birth_date" not in command(with_pid(line), null="ignore").values
    assert "patient_address" not in command(with_pid(line)).values
    assert command(with_pid(line), empty="delete").values["patient_address"] == ""


def test_the_pid_of_an_order_is_not_authoritative_and_never_deletes_by_being_empty():
    from integration.hl7v2 import orders
    from tests.integration.hl7v2.making import orm

    found = orders.read(Head(parse(orm(patient="PID|1||1^^^H")), compile_profile({"empty": "delete"}), NOW))
    assert found.command.patient.authoritative is False
    assert "patient_name" not in found.command.patient.values


def test_the_visit_is_pv1_19_else_pid_18():
    pv1 = "PV1|1|I|W1^R2^B3^HOSP||||1^ATT^A|2^REF^B" + "|" * 11 + "V1^^^ADM" + "|" * 25 + "202603010800+0000"
    visit = command(with_pid("PID|1||1^^^H||D^J|||||||||||ACC1^^^FIN", "A01", pv1)).visit
    assert visit is not None
    assert (visit.admission_id, visit.issuer_of_admission_id) == ("V1", "ADM")
    assert visit.values["status"] == "in-progress"
    assert visit.values["patient_class"] == "I"
    assert visit.values["current_patient_location"] == "W1 R2 B3 HOSP"
    assert visit.values["referring_physician_name"] == "REF^B"
    assert visit.values["admitted_at"] == datetime(2026, 3, 1, 8, tzinfo=UTC)
    other = command(with_pid("PID|1||1^^^H" + "|" * 15 + "ACC1^^^FIN", "A01", "PV1|1|I")).visit
    assert other is not None and other.admission_id == "ACC1"
    assert command(with_pid("PID|1||1^^^H", "A01", "PV1|1|I")).visit is None


@pytest.mark.parametrize(
    ("event", "status"),
    [("A03", "finished"), ("A05", "planned"), ("A11", "cancelled"), ("A13", "in-progress")],
)
def test_events_move_the_visit(event, status):
    visit = command(with_pid("PID|1||1^^^H", event, "PV1|1|I" + "|" * 17 + "V1")).visit
    assert visit is not None and visit.values["status"] == status


def test_arrival_is_the_sources_choice():
    assert command(adt("A10")).arrived
    assert not command(adt("A04")).arrived
    assert command(adt("A04"), arrived_events=["A04"]).arrived


def test_facts_are_as_old_as_evn_2_and_msh_7_says_the_same_more_exactly():
    assert command(with_pid(pid())).facts_at == datetime(2026, 3, 1, 11, 59, tzinfo=UTC)
    same = message(msh("ADT^A08", sent="20260301115930+0000"), "EVN|A08|202603011159+0000", pid())
    assert command(same).facts_at == datetime(2026, 3, 1, 11, 59, 30, tzinfo=UTC)
    assert command(message(msh("ADT^A08", sent="20290101000000+0000"), pid())).facts_at == NOW


def merges(raw: bytes) -> list[MergePatients]:
    translated = translate(Head(parse(raw), compile_profile({}), NOW))
    assert translated is not None
    return [c for c in translated.commands if isinstance(c, MergePatients)]


@pytest.mark.parametrize("event", ["A18", "A34", "A39", "A40"])
def test_a_merge_puts_mrg_1_into_pid_3(event):
    (found,) = merges(merge("NEW^^^H", "OLD^^^H~OLD2^^^H", event=event))
    assert found.survivor.identifiers[0].value == "NEW"
    assert [i.value for i in found.prior] == ["OLD", "OLD2"]


def test_each_pair_of_pid_and_mrg_is_a_merge():
    raw = message(msh("ADT^A40"), pid("A^^^H"), "MRG|B^^^H", pid("C^^^H"), "MRG|D^^^H")
    assert [(m.survivor.identifiers[0].value, m.prior[0].value) for m in merges(raw)] == [
        ("A", "B"),
        ("C", "D"),
    ]


@pytest.mark.parametrize(("segments", "place"), [([pid()], "MRG^1"), ([pid(), "MRG|"], "MRG^1^1")])
def test_a_merge_that_names_no_prior_is_refused(segments, place):
    with pytest.raises(Refused) as refusal:
        merges(message(msh("ADT^A40"), *segments))
    assert str(refusal.value.problem.location) == place


def test_a47_changes_one_identifier():
    translated = translate(Head(parse(merge("NEW^^^H", "OLD^^^H", event="A47")), compile_profile({}), NOW))
    assert translated is not None
    found = translated.commands[0]
    assert isinstance(found, ChangeIdentifier)
    assert (found.prior.value, found.patient.identifiers[0].value) == ("OLD", "NEW")
