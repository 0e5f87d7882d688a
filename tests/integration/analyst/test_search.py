"""Messages found by patient, number, type, word, source, state, time and raw bytes; bounded, and saying so."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction

from common.clock import now
from integration import inbox, search
from integration.models import Message, MessageText, Source
from integration.search import Wanted
from ris.models import Patient
from tests.integration.hl7v2.making import adt, merge, message, msh, orm, pid

pytestmark = pytest.mark.django_db

Send = Callable[[bytes], Message]


def ids(**wanted: Any) -> list[int]:
    return [row.pk for row in search.find(Wanted(**wanted)).rows]


def indexed() -> None:
    search.index_new()


def test_words_are_folded_and_keep_identifiers_whole_and_in_parts():
    raw = message(
        msh("ORM^O01", "C1"), pid("P-77^^^HOSP^MR", "MÜLLER^Zoë"), "ORC|NW|PL-1^HIS", "OBR|1|||X^Knie^L"
    )
    found = search.words_of(raw)
    assert {w: found[w] for w in ("muller", "zoe", "p-77", "77", "pl-1", "knie", "orm^o01", "orm")} == {
        "muller": "A", "zoe": "A", "p-77": "A", "77": "A", "pl-1": "B", "knie": "C", "orm^o01": "C", "orm": "C",
    }  # fmt: skip


def test_embedded_files_are_no_words():
    raw = message(
        msh("ORU^R01"),
        "OBX|1|ED|PDF^^L||^Application^PDF^Base64^JVBERi0xLjQK||||||F",
        "OBX|2|TX|R||Lungs clear",
    )
    found = search.words_of(raw)
    assert "lungs" in found and not any(w.startswith("jvber") for w in found)


@pytest.mark.parametrize(
    "term", ["muller", "Müller Zoë", "mül", "P-77", "pl-1", "knie", "ORM^O01", "orm", "C1", "o01"]
)
def test_a_message_is_found_by_every_word_of_it(send: Send, term: str):
    row = send(
        message(
            msh("ORM^O01", "C1"),
            pid("P-77^^^HOSP^MR", "MÜLLER^Zoë"),
            "ORC|NW|PL-1^HIS",
            "OBR|1|PL-1||X^Knie^L",
        )
    )
    send(adt("A04", "C2"))
    indexed()
    assert ids(term=term) == [row.pk]


def test_hostile_terms_are_only_words(send: Send):
    send(adt("A04"))
    indexed()
    for term in ("'", "a' & 'b", "\\", "((", "!x", ":*", "''':*", "<->", "a:*B & !b", "%", "x\x00y"):
        assert ids(term=term) == []


def test_a_patient_is_found_by_number_name_and_row_also_where_nothing_was_applied(send: Send):
    first = send(adt("A04", identifier="P1^^^HOSP^MR"))
    refused = send(message(msh("ORM^O01"), pid("P1^^^HOSP^MR"), "ORC|CA|NOBODY^HIS"))
    assert refused.state == "refused"
    other = send(adt("A04", identifier="P2^^^HOSP^MR", name="ROE^RICHARD"))
    indexed()
    assert ids(patient="P1") == [refused.pk, first.pk]
    assert ids(patient="roe") == [other.pk]
    assert ids(patient=str(Patient.objects.get(patient_name="ROE^RICHARD").pk)) == [other.pk]
    assert ids(patient="DOE", state="open") == [refused.pk]
    assert ids(patient="HOSP") == [other.pk, refused.pk, first.pk]


def test_a_merged_patient_is_found_with_what_came_before_the_merge(send: Send):
    old = send(adt("A04", identifier="P2^^^HOSP^MR"))
    new = send(adt("A04", identifier="P1^^^HOSP^MR"))
    done = send(merge("P1^^^HOSP^MR", "P2^^^HOSP^MR"))
    assert done.state == "applied"
    survivor = Patient.objects.get(merged_into=None)
    assert {old.pk, new.pk, done.pk} <= set(ids(patient=str(survivor.pk)))


def test_filters_narrow_and_join(send: Send, his: Source):
    order = send(orm(placer="PL1", accession="A-1"))
    admit = send(adt("A04", "X17"))
    assert ids(kind="ORM") == ids(kind="ORM^O01") == ids(kind="O01") == ids(accession="A-1") == [order.pk]
    assert ids(control_id="X1") == [admit.pk]
    assert ids(source=his.pk, state="applied") == [admit.pk, order.pk]
    assert ids(source=his.pk + 1) == []
    assert ids(kind="SIU") == []
    long_ago = now() - timedelta(days=3)
    Message.objects.filter(pk=order.pk).update(received_at=long_ago)
    assert ids(since=now() - timedelta(days=1)) == [admit.pk]
    assert ids(until=now() - timedelta(days=1)) == [order.pk]


def test_pages_go_back_and_forth_by_id(send: Send):
    rows = [send(adt("A04")).pk for _ in range(7)][::-1]
    first = search.find(Wanted(), 3)
    assert ([r.pk for r in first.rows], first.older, first.newer) == (rows[:3], True, False)
    second = search.find(Wanted(before=first.last), 3)
    assert ([r.pk for r in second.rows], second.older, second.newer) == (rows[3:6], True, True)
    last = search.find(Wanted(before=second.last), 3)
    assert ([r.pk for r in last.rows], last.older, last.newer) == (rows[6:], False, True)
    back = search.find(Wanted(after=last.first), 3)
    assert ([r.pk for r in back.rows], back.older, back.newer) == (rows[3:6], True, True)
    assert search.find(Wanted()).count == 7


def test_words_come_after_commit_once_for_each_message_and_faults_have_some_too(send: Send):
    send(adt("A04"))
    fault = inbox.receive(b"GARBAGE from somewhere", inbox.Peer("127.0.0.1", 1))
    assert search.index_new() == 2
    assert search.index_new() == 0
    assert ids(term="garbage") == [fault.message_id]
    late = Message.objects.earliest("id")
    MessageText.objects.filter(message=late).delete()  # as if its transaction had been slow
    assert search.index_new() == 1


def test_raw_text_needs_a_time_and_looks_into_bytes(send: Send):
    row = send(message(msh("ADT^A04"), pid(name="GRÜN^EVA"), "ZXX|odd|thing"))
    send(adt("A04"))
    with pytest.raises(search.NeedsWindow):
        search.find(Wanted(raw="ZXX|odd"))
    with pytest.raises(search.NeedsWindow):
        search.find(Wanted(raw="ZXX|odd", since=now() - timedelta(days=90)))
    day = now() - timedelta(days=1)
    assert ids(raw="ZXX|odd", since=day) == [row.pk]
    assert ids(raw="GRÜN", since=day) == [row.pk]
    assert ids(raw="zxx|odd", since=day) == []  # bytes as they came
    assert ids(raw="ZXX|odd", since=day, kind="ORM") == []


def test_a_raw_search_that_runs_out_of_time_says_how_far_it_came(send: Send, monkeypatch: pytest.MonkeyPatch):
    rows = [send(adt("A04")).pk for _ in range(5)]
    monkeypatch.setattr(search, "_RAW_STEP", 2)
    slow = "SELECT pg_sleep(0.15) IS NULL"
    real = search._holding

    def holding(piece: list[int], needles: list[bytes]) -> list[int]:
        with connection.cursor() as cursor:
            cursor.execute(slow)
        return real(piece, needles)

    monkeypatch.setattr(search, "_holding", holding)
    monkeypatch.setattr(search, "LIMIT_MS", 200)
    found = search.find(Wanted(raw="ADT^A04", since=now() - timedelta(days=1)))
    assert [r.pk for r in found.rows] == rows[:2:-1]
    assert "Stopped after two seconds: searched back to" in found.note and not found.exact


def test_a_search_that_takes_too_long_is_cancelled_and_says_so(send: Send, monkeypatch: pytest.MonkeyPatch):
    send(adt("A04"))

    def slow(wanted: Wanted, size: int) -> search.Found:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(30)")
        return search.Found()

    monkeypatch.setattr(search, "_page", slow)
    monkeypatch.setattr(search, "LIMIT_MS", 50)
    assert "longer than two seconds" in search.find(Wanted(term="x")).note
    assert Message.objects.count() == 1  # the connection goes on


def test_a_way_that_takes_too_long_gives_its_turn_to_the_other(send: Send, monkeypatch: pytest.MonkeyPatch):
    rows = [send(adt("A04")).pk for _ in range(3)]
    turns: list[str] = []
    real = search._set
    monkeypatch.setattr(
        search, "_set", lambda name, value: (turns.append(f"{name} {value}"), real(name, value))[1]
    )
    slow = Message.objects.extra(where=["pg_sleep(0.09) IS NOT NULL"])  # three times 90 ms
    with transaction.atomic():
        found = search._first(slow, 2, False, Wanted(control_id="x"), time.monotonic() + 60)
    assert found == rows[:0:-1]
    assert turns[0] == "statement_timeout 250" and "statement_timeout 500" in turns


@pytest.mark.parametrize("upwards", [False, True])
def test_both_ways_find_the_same(send: Send, upwards: bool, monkeypatch: pytest.MonkeyPatch):
    rows = [send(adt("A04", f"W{n}")).pk for n in range(5)]
    indexed()
    wanted = Wanted(term="doe", **({"after": rows[0]} if upwards else {}))
    seen = []
    for rare in (0, 10**9):  # walked first, gathered first
        monkeypatch.setattr(search, "_RARE", rare)
        seen.append([row.pk for row in search.find(wanted, 3).rows])
    assert seen[0] == seen[1] == (rows[3:0:-1] if upwards else rows[:1:-1])
