"""Messages that wait at the same time share a transaction: each ends as if it had been received by itself."""

import itertools
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.core.management import call_command
from django.db import connection, connections

from integration import inbox, sharing
from integration.inbox import Peer
from integration.models import Message, MessageIdentity, Source
from ris.models import AssigningAuthority, Change, ImagingServiceRequest, Patient
from ris.services import lanes
from tests.integration.hl7v2.conftest import _forget, holding
from tests.integration.hl7v2.making import adt, orm, pid
from tests.integration.hl7v2.test_histories import facts

PEER = Peer("127.0.0.1", 1)
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def source():
    _forget()
    yield Source.objects.create(name="any")
    _forget()


def order(number: int, who: str = "", **more: str) -> bytes:
    return orm(
        control_id=f"C{number}", patient=pid(f"{who or number}^^^HOSP^MR"), accession=f"A{number}",
        placer=f"PL{number}", procedure_id=f"RP{number}", step_id=f"S{number}", **more,
    )  # fmt: skip


def share(*raws: bytes) -> tuple[dict[int, str], list[int]]:
    """The codes of those that were answered together, and the numbers of those that must go alone."""
    codes: dict[int, str] = {}

    def answer(replies) -> None:
        assert not connection.in_atomic_block  # nothing is said before COMMIT
        codes.update({n: r.code for n, r in replies.items()})

    left = sharing.receive([(raw, PEER, ()) for raw in raws], answer)
    assert sorted([*codes, *left]) == list(range(len(raws)))
    return codes, left


def transactions() -> int:
    """In how many transactions the messages were written."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(DISTINCT xmin::text) FROM integration_message")
        return int(cursor.fetchone()[0])


def test_messages_of_different_patients_are_written_at_once_each_with_its_own_cause():
    codes, left = share(order(1), adt(control_id="C2", identifier="P2^^^HOSP"), order(3))
    assert codes == {}  # the authority is new: two of them make it
    assert left == [0, 1, 2] and not MessageIdentity.objects.exists()
    assert inbox.receive(order(9), PEER).code == "AA"
    codes, left = share(order(1), adt(control_id="C2", identifier="P2^^^HOSP"), order(3))
    assert (codes, left) == ({0: "AA", 1: "AA", 2: "AA"}, [])
    assert transactions() == 2
    first = Message.objects.get(control_id="C1")
    assert first.state == "applied" and first.accession_numbers == ["A1"]
    made = ImagingServiceRequest.objects.get(accession_number="A1")
    assert set(Change.objects.filter(object_id=made.id).values_list("cause", flat=True)) == {
        f"hl7:{first.pk}"
    }
    assert MessageIdentity.objects.filter(accepted=True).count() == 4
    again = inbox.receive(order(1), PEER)
    assert again.duplicate and again.ack == bytes(first.ack)


def test_messages_about_one_patient_or_one_order_do_not_share():
    inbox.receive(adt(identifier="P1^^^HOSP~N1^^^SSA", control_id="C0"), PEER)
    assert share(order(1, who="P1"), order(2, who="P1"), order(3)) == ({0: "AA", 2: "AA"}, [1])
    # two identifiers lead to the same person
    other = orm(control_id="C4", patient=pid("N1^^^SSA"), accession="A4", placer="PL4")
    assert share(order(5, who="P1"), other, order(6)) == ({0: "AA", 2: "AA"}, [1])
    same_order = orm(control_id="C8", patient=pid("P8^^^HOSP"), accession="A7", placer="PL8")
    assert share(order(7), same_order, order(9)) == ({0: "AA", 2: "AA"}, [1])
    same_id = orm(control_id="C10", patient=pid("P11^^^HOSP"), accession="A11", placer="PL11")
    assert share(order(10), same_id, order(12)) == ({0: "AA", 2: "AA"}, [1])
    assert not MessageIdentity.objects.filter(accepted=False).exists()


def test_what_comes_after_one_that_goes_alone_does_not_overtake_it():
    inbox.receive(order(99), PEER)
    same = adt(control_id="C2", identifier="1^^^HOSP")
    later = adt(control_id="C3", identifier="1^^^HOSP", name="LATER^JANE")
    assert share(order(1), same, later, order(4)) == ({0: "AA", 3: "AA"}, [1, 2])


def test_one_that_is_refused_falls_out_and_leaves_nothing():
    inbox.receive(order(99), PEER)
    unknown = orm("ORC|CA|NOBODY", control_id="C2", patient=pid("P2^^^HOSP"))
    assert share(order(1), unknown, order(3)) == ({0: "AA", 2: "AA"}, [1])
    assert not MessageIdentity.objects.filter(control_id="C2").exists()
    assert not Patient.objects.filter(identifiers__value="P2").exists()
    assert inbox.receive(unknown, PEER).code == "AE"


def test_one_that_was_here_before_gets_its_stored_answer_by_itself():
    first = inbox.receive(order(1), PEER)
    assert share(order(2), order(1), order(3)) == ({0: "AA", 2: "AA"}, [1])
    assert inbox.receive(order(1), PEER).ack == first.ack
    assert ImagingServiceRequest.objects.count() == 3


def test_a_lane_that_another_holds_is_not_waited_for():
    inbox.receive(order(99), PEER)
    with holding(lambda: lanes.lock({"P2"})):
        assert share(order(1), order(2, who="P2"), order(3)) == ({0: "AA", 2: "AA"}, [1])
    assert share(order(2, who="P2"), order(4)) == ({0: "AA", 1: "AA"}, [])


def test_when_writing_fails_nothing_has_happened_and_each_goes_alone(monkeypatch):
    inbox.receive(order(99), PEER)
    before = Change.objects.count()
    really = sharing.Unit.commit

    def broken(unit):
        unit.flush()
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 / 0")

    monkeypatch.setattr(sharing.Unit, "commit", broken)
    assert share(order(1), order(2)) == ({}, [0, 1])
    assert (MessageIdentity.objects.count(), Change.objects.count()) == (1, before)
    monkeypatch.setattr(sharing.Unit, "commit", really)
    assert share(order(1), order(2)) == ({0: "AA", 1: "AA"}, [])


def test_a_new_authority_that_two_bring_is_made_once():
    inbox.receive(order(99), PEER)
    raws = [adt(control_id=f"C{n}", identifier=f"P{n}^^^NEW") for n in range(3)]
    codes, left = share(*raws)
    assert (codes, left) == ({}, [0, 1, 2])
    assert [inbox.receive(raw, PEER).code for raw in raws] == ["AA"] * 3
    assert AssigningAuthority.objects.filter(namespace="NEW").count() == 1


def test_what_is_stored_first_batched_or_answered_in_full_goes_alone(source):
    inbox.receive(order(99), PEER)
    batch = b"BHS|^~\\&|HIS|HOSP\r" + order(1) + b"BTS|1\r"
    question = orm("ORC|SS|PL99", control_id="C2", patient=pid("99^^^HOSP^MR"))
    no_message = b"no message"
    assert share(batch, question, no_message, order(3), order(4)) == ({3: "AA", 4: "AA"}, [0, 1, 2])
    for policy in ({"policy": "stored"}, {"order_answers": "full"}):
        Source.objects.update(profile=policy)
        _forget()
        assert share(order(5), order(6)) == ({}, [0, 1])


def history() -> list[bytes]:
    """Three patients' orders, each new, changed and moved on, one of them cancelled."""
    raws = []
    for number in range(1, 4):
        for turn, (control, start) in enumerate((("NW", "09"), ("XO", "10"), ("XO", "11"))):
            raws.append(
                orm(
                    control_id=f"H{number}{turn}",
                    control=control,
                    patient=pid(f"P{number}^^^HOSP"),
                    sent=f"20260301{turn + 10}0000+0000",
                    placer=f"PL{number}",
                    accession=f"A{number}",
                    procedure_id=f"RP{number}",
                    step_id=f"S{number}",
                    start=f"20260302{start}0000",
                )  # fmt: skip
            )
        raws.append(adt("A08", f"H{number}9", identifier=f"P{number}^^^HOSP", name=f"DOE^{number}"))
    raws.append(orm("ORC|CA|PL2", control_id="HC", patient=pid("P2^^^HOSP"), sent="20260301150000+0000"))
    return raws


def clean() -> None:
    call_command("flush", verbosity=0, interactive=False)
    _forget()
    Source.objects.create(name="any")


def test_however_they_meet_all_ends_as_if_each_had_come_by_itself():
    """Twenty ways to share: each sender's own order is kept, as connections keep it."""
    raws = history()
    for raw in raws:
        assert inbox.receive(raw, PEER).code == "AA"
    expected = facts()
    for seed in range(20):
        clean()
        chance = random.Random(seed)
        senders = [[r for r in raws if b"|P%d^" % n in r] for n in range(1, 4)]
        shared = 0
        while any(senders):
            waiting = [s for s in senders if s]
            company = chance.sample(waiting, chance.randint(1, len(waiting)))
            codes, left = share(*(s[0] for s in company))
            shared += len(codes)
            for number in left:
                assert inbox.receive(company[number][0], PEER).code == "AA"
            for one in company:
                one.pop(0)
        assert facts() == expected, seed
        assert shared > 0, seed
        assert Message.objects.filter(state="applied").count() == len(raws)


def test_two_at_once_who_share_the_same_patients_lose_nothing():
    """Two threads take companies that overlap, in opposite orders: every message is applied once."""
    inbox.receive(order(99), PEER)

    def take(numbers: list[int], tag: str) -> list[str]:
        raws = [
            orm(
                control_id=f"{tag}{n}",
                patient=pid(f"Q{n}^^^HOSP^MR"),
                accession=f"{tag}{n}",
                placer=f"{tag}{n}",
            )
            for n in numbers
        ]
        said: dict[int, str] = {}
        left = sharing.receive(
            [(r, PEER, ()) for r in raws],
            lambda replies: said.update({n: r.code for n, r in replies.items()}),
        )
        for number in left:
            said[number] = inbox.receive(raws[number], PEER).code
        connections.close_all()
        return [said[n] for n in range(len(raws))]

    with ThreadPoolExecutor(2) as pool:
        for turn in range(10):
            numbers = list(range(8))
            one = pool.submit(take, numbers, f"X{turn}")
            two = pool.submit(take, numbers[::-1], f"Y{turn}")
            assert one.result(60) + two.result(60) == ["AA"] * 16
    assert ImagingServiceRequest.objects.count() == 1 + 160
    assert Patient.objects.filter(identifiers__value__startswith="Q").distinct().count() == 8
    numbers = list(itertools.chain.from_iterable(Message.objects.values_list("accession_numbers", flat=True)))
    assert len(set(numbers)) == len(numbers) == 161
