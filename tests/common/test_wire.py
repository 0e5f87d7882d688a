"""Statements that travel together: in order, each with its own snapshot, none after one that fails."""

import psycopg
import pytest
from django.db import DataError, OperationalError, connection, transaction

from common import wire
from common.models import Site
from common.wire import ask, together

MAKE_SITE = (
    "INSERT INTO common_site (id, name, timezone, live, uid_root, settings)"
    " VALUES ($1::int, $2::text, 'UTC', false, '', '{}')"
)
SAY = "SELECT set_config('app.said', $1::text, true)"
SAID = "SELECT current_setting('app.said', true)"


@pytest.mark.django_db
@pytest.mark.parametrize(
    "text", ["", "a", "ä\u4e2d", 'a"b', "a\\b", "{a,b}", "NULL", "a b", ",", "%s", "\n\r\t"]
)
def test_every_text_arrives_alone_and_in_an_array(text):
    assert ask("SELECT $1::text", (text,))() == [(text.encode(),)]
    assert ask("SELECT t FROM unnest($1::text[]) t", ([text, "end"],))() == [(text.encode(),), (b"end",)]


def test_a_text_that_would_be_cut_is_refused():
    for value in ("a\x00b", ["a\x00b"]):
        with pytest.raises(DataError):
            ask("SELECT $1", (value,))


@pytest.mark.django_db
def test_numbers_nothing_and_empty_lists():
    row = ask("SELECT $1::int + 1, $2::text, cardinality($3::text[]), true", (41, None, []))()
    assert row == [(b"42", None, b"0", b"t")]
    assert ask("SELECT 1 WHERE false")() == []


@pytest.mark.django_db
def test_the_second_of_two_sees_what_the_first_did():
    with together():
        first, second = ask(SAY, ("one",)), ask(SAID)
        with pytest.raises(RuntimeError):
            first()  # nobody has answered yet
    assert (first(), second()) == ([(b"one",)], [(b"one",)])


@pytest.mark.django_db(transaction=True)
def test_none_runs_after_one_that_fails_and_the_connection_goes_on():
    for _ in range(2):  # the second time, the statements are prepared
        with pytest.raises(DataError), transaction.atomic(), together():
            ask(MAKE_SITE, (7, "first"))
            ask("SELECT 1 / $1::int", (0,))
            ask(MAKE_SITE, (8, "never"))
        assert not Site.objects.filter(pk__in=(7, 8)).exists()
        assert ask("SELECT 1")() == [(b"1",)]
    with transaction.atomic(), together():
        ask(MAKE_SITE, (8, "now"))
    assert Site.objects.get(pk=8).name == "now"


@pytest.mark.django_db(transaction=True)
def test_a_transaction_begins_with_the_first_and_ends_with_the_last():
    with transaction.atomic():
        with together(commit=True):
            ask(MAKE_SITE, (7, "kept"))
        assert connection.connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert Site.objects.get(pk=7).name == "kept"
    ask(MAKE_SITE, (8, "alone"))  # without a transaction: its own
    assert connection.connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert Site.objects.get(pk=8).name == "alone"


@pytest.mark.django_db(transaction=True)
def test_a_commit_that_the_database_turns_into_a_rollback_is_no_commit():
    with pytest.raises(OperationalError), transaction.atomic():
        with pytest.raises(DataError):
            ask("SELECT 1 / $1::int", (0,))
        with together(commit=True):
            pass
    assert ask("SELECT 1")() == [(b"1",)]


@pytest.mark.django_db(transaction=True)
def test_a_lost_connection_is_an_error_of_operation_and_the_next_one_starts_anew():
    pid = int(ask("SELECT pg_backend_pid()")()[0][0])
    with psycopg.connect(_conninfo()) as other:
        other.execute("SELECT pg_terminate_backend(%s)", (pid,))
    with pytest.raises(OperationalError):
        for _ in range(50):  # the end of the other process takes its moment
            ask("SELECT pg_sleep(0.1)")
    connection.close()
    assert ask("SELECT 1")() == [(b"1",)]


def _conninfo() -> str:
    settings = connection.settings_dict
    return psycopg.conninfo.make_conninfo(
        dbname=settings["NAME"], user=settings["USER"], host=settings["HOST"], port=settings["PORT"] or None
    )


@pytest.mark.django_db(transaction=True)
def test_a_connection_keeps_so_many_plans_and_no_more(monkeypatch):
    connection.close()
    monkeypatch.setattr(wire, "_MOST_PREPARED", 3)
    for _ in range(2):
        for number in range(8):
            with transaction.atomic(), together():
                first, second = ask(f"SELECT {number}"), ask(f"SELECT {number} + $1::int", (1,))
            assert (first(), second()) == ([(b"%d" % number,)], [(b"%d" % (number + 1),)])
    names = ask("SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'orderly%'")()
    assert int(names[0][0]) <= 3


@pytest.mark.django_db
def test_one_block_at_a_time():
    with pytest.raises(RuntimeError), together(), together():
        pass
    assert wire._waiting.answers is None


@pytest.mark.django_db(transaction=True)
def test_what_went_ahead_runs_before_the_next_ones_and_is_answered_with_them():
    for turn in range(2):  # the second time, the statements are prepared
        with transaction.atomic():
            with together(ahead=True):
                first = ask(SAY, (f"one{turn}",))
            with together(ahead=True):
                second = ask(SAID)
            assert connection.connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE
            with together(commit=True):
                third = ask(SAID)
            said = [(b"one%d" % turn,)]
            assert (first(), second(), third()) == (said, said, said)
            assert connection.connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE


@pytest.mark.django_db(transaction=True)
def test_who_asks_for_an_answer_waits_for_what_went_ahead():
    with transaction.atomic():
        with together(ahead=True):
            first = ask(SAY, ("one",))
        assert first() == [(b"one",)]
        assert ask(SAID)() == [(b"one",)]


@pytest.mark.django_db(transaction=True)
def test_a_cursor_and_a_savepoint_wait_for_what_went_ahead():
    with transaction.atomic():
        with together(ahead=True):
            ask(MAKE_SITE, (7, "seen"))
        assert Site.objects.get(pk=7).name == "seen"
        with together(ahead=True):
            ask(MAKE_SITE, (8, "kept"))
        with transaction.atomic():
            Site.objects.filter(pk=8).update(name="changed")
    assert not connection.execute_wrappers
    assert list(Site.objects.order_by("pk").values_list("pk", "name")) == [(7, "seen"), (8, "changed")]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("then", ["ask", "cursor", "settle", "commit"])
def test_the_error_of_what_went_ahead_comes_with_what_follows(then):
    for _ in range(2):
        with pytest.raises(DataError), transaction.atomic():
            try:
                with together(ahead=True):
                    ask(MAKE_SITE, (7, "never"))
                    ask("SELECT 1 / $1::int", (0,))
                if then == "ask":
                    ask("SELECT 1")
                elif then == "cursor":
                    Site.objects.exists()
                elif then == "settle":
                    wire.settle()
                else:
                    with together(commit=True):
                        pass
            except BaseException:
                wire.abandon()
                raise
        assert not connection.execute_wrappers
        assert not Site.objects.filter(pk=7).exists()


@pytest.mark.django_db(transaction=True)
def test_what_went_ahead_is_abandoned_before_a_rollback_though_it_fails_or_the_database_is_gone():
    class Changed(Exception):
        pass

    def changed_its_mind(statement: str, *values: int) -> None:
        with pytest.raises(Changed), transaction.atomic():
            with together(ahead=True):
                ask(MAKE_SITE, (7, "never"))
                ask(statement, values)
            wire.abandon()
            raise Changed

    changed_its_mind("SELECT $1::int", 1)
    changed_its_mind("SELECT 1 / $1::int", 0)
    assert not Site.objects.filter(pk=7).exists()
    changed_its_mind("SELECT pg_terminate_backend(pg_backend_pid())")
    connection.close()
    assert not connection.execute_wrappers
    assert ask("SELECT 1")() == [(b"1",)]
