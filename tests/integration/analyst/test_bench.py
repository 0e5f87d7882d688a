"""The bench of the pages, over few messages: every page answers, every case is told, the store is believable."""

import json

import pytest
from django.db import connection

from integration import search
from integration.benches import pages, stock
from integration.models import Message

pytestmark = pytest.mark.django_db(transaction=True)
FEW = 2000


def test_every_page_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(pages, "COUNT", FEW)
    monkeypatch.setattr(pages, "ROUNDS", 1)
    monkeypatch.setattr(pages, "empty_caches", lambda: None)  # others share this server
    pages.run(json=True)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    keys = {"bench", "case", "ours", "unit", "peer", "theirs", "ratio", "floor", "must", "ok"}
    assert all(row.keys() == keys and row["bench"] == "pages" for row in rows)
    must = [row["case"].partition(":")[0] for row in rows if row["must"]]
    assert {"messages", "one message", "lanes", "traffic of a week", "messages by a rare word"} <= set(must)
    assert len(must) == len(set(must)) >= 60


def test_the_store_is_as_if_its_messages_had_come(db: None):
    with connection.cursor() as cursor:
        cursor.execute("SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema() ORDER BY 1")
        before = cursor.fetchall()
        made = stock.fill(FEW)
        cursor.execute("SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema() ORDER BY 1")
        assert cursor.fetchall() == before
        row = Message.objects.get(pk=made.middle)
        assert row.accession_numbers == [f"A26-{made.order_number}"] and row.message_type == "ORM"
        cursor.execute(
            "SELECT tsvector_to_array(words) FROM integration_messagetext WHERE message_id = %s", [row.pk]
        )
        kept = set(cursor.fetchone()[0])
    said = set(search.words_of(bytes(row.raw)))
    assert kept <= said and len(kept) > 0.7 * len(said)
    assert search.waiting() == 0
