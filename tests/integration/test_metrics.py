"""What monitors are told of messages: right while they are few, and at a bounded cost when they are many."""

import pytest

from common import counting
from integration import metrics
from integration.benches import pages, stock
from integration.models import Destination, Message, OutboxItem

pytestmark = pytest.mark.django_db(transaction=True)
STORED = 6000


def told() -> dict[str, float]:
    return {labels[0]: number for labels, number in metrics.messages()}


def really() -> dict[str, int]:
    states = Message.objects.order_by().values_list("state", flat=True)
    return {state: sum(1 for one in states if one == state) for state in set(states)}


def test_few_messages_are_counted():
    assert told() == {}
    stock.fill(STORED)
    assert told() == really()
    found = dict(metrics.outbox_items())
    assert sum(found.values()) == OutboxItem.objects.count()
    assert {name for name, _ in found} == set(Destination.objects.values_list("name", flat=True))


def test_many_messages_are_told_about_at_a_bounded_cost(monkeypatch: pytest.MonkeyPatch):
    stock.fill(STORED)
    few = 100
    monkeypatch.setattr(counting, "FEW", few)
    exact, said = really(), told()
    assert all(abs(said[state] - number) <= max(0.3 * number, few) for state, number in exact.items())
    client = pages.visitor()
    counts = [r for r in pages.reads(client, pages.Page("", "/metrics")) if "LIMIT 100)" in r.sql]
    assert len(counts) >= len(Message.State.values)
    looked = {read.sql: read.rows for read in counts if read.rows > 3 * few}
    assert not looked
