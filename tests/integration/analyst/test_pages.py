"""What the analyst's pages say, without a browser: numbers of traffic, what a message changed, names of fields."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from django.test import Client

from common.clock import now
from common.models import AuditEvent
from common.roles import Role
from integration.analyst import traffic
from integration.analyst.messagepages import changes_of
from integration.describe import component_name, describe, field_name
from integration.models import Destination, Message, OutboxItem, Source
from tests import factories as make
from tests.integration.hl7v2.making import adt, orm

Send = Callable[[bytes], Message]


@pytest.mark.django_db
def test_traffic_tells_rate_latency_errors_and_age_of_each_source(his: Source, send: Send):
    for number in range(3):
        send(adt("A04", f"T{number}"))
    send(orm(placer="NOBODY", control="CA"))
    Message.objects.update(duration_ms=8.0)
    Destination.objects.create(name="GP", host="127.0.0.1", port=9)
    seen = traffic.look("hour")
    source = next(p for p in seen.sources if p.name == his.name)
    assert (source.count, source.failed, source.waiting, source.needing) == (4, 1, 1, 1)
    assert (source.median_ms, source.p95_ms, source.rate, source.share) == (8.0, 8.0, "4.0 an hour", 25.0)
    assert source.oldest == Message.objects.get(state="refused").received_at
    assert (seen.total, seen.failed, seen.step) == (4, 1, "2 min")
    assert [(p.name, p.count, p.tone) for p in seen.destinations] == [("GP", 0, "ok")]


@pytest.mark.django_db
def test_what_a_message_changed_is_named_and_linked(send: Send):
    made = changes_of(send(orm(placer="PL1", accession="A1")))
    by_noun = {one["noun"]: one for one in made}
    assert by_noun["Order"]["called"] == "A1" and by_noun["Order"]["created"]
    assert by_noun["Order"]["url"] and by_noun["Step"]["url"]
    changed = changes_of(send(orm(placer="PL1", accession="A1", control="CA")))
    assert any(name == "status" for one in changed for name, _, _ in one["lines"])


@pytest.mark.django_db
def test_a_message_page_shows_bytes_fields_answer_tries_and_latency(client: Client, send: Send):
    row = send(orm(placer="PL1", accession="A1"))
    client.force_login(make.user("ines", Role.ANALYST))
    page = client.get(f"/admin/integration/message/{row.pk}/change/").content.decode()
    shown = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page))
    assert f"AA after {row.duration_ms:.1f} ms" in shown and "Tries1" in shown.replace(" ", "")
    assert f"MSA|AA|{row.control_id}" in shown and "ORC|NW|PL1" in shown
    assert "4d 53 48 7c" in shown  # MSH| as bytes
    assert "new order" in shown and "Order control" in shown and "What it changed" in shown
    raw = client.get(f"/admin/integration/message/{row.pk}/raw/")
    assert raw.content == bytes(row.raw)
    assert list(AuditEvent.objects.order_by("id").values_list("action", flat=True))[-2:] == [
        "read",
        "download",
    ]


def test_fields_are_named_as_people_say_it():
    assert (field_name("PID", 1), field_name("PID", 3)) == ("Set ID", "Patient identifier list")
    assert (component_name("PID", 3, 1), component_name("ZDS", 1, 3)) == ("ID number", "Type of data")
    assert component_name("ZDS", 1, 9) == ""
    shown = describe(orm(placer="PL1"))
    assert ("ORC-1", "new order") in {(f.place, f.meaning) for s in shown for f in s.fields}


@pytest.mark.django_db
def test_times_are_on_the_sites_clock_on_the_page_and_in_the_search(
    client: Client, send: Send, settings: Any
):
    settings.TIME_ZONE = "Asia/Tokyo"
    row = send(adt("A04", "TOKYO"))
    Message.objects.update(received_at=datetime(2026, 3, 1, 23, 30, tzinfo=UTC))
    client.force_login(make.user("ines", Role.ANALYST))
    day = "since=2026-03-02T08:00&until=2026-03-02T09:00"
    page = client.get(f"/admin/integration/message/?{day}").content.decode()
    assert "TOKYO" in page and "08:30" in page and 'value="2026-03-02T08:00"' in page
    assert "TOKYO" not in client.get("/admin/integration/message/?since=2026-03-02T09:00").content.decode()
    assert "08:30" in client.get(f"/admin/integration/message/{row.pk}/change/").content.decode()


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/admin/integration/message/", "No message has come yet"),
        ("/admin/integration/message/?state=parked", "Nothing fits this search"),
        ("/admin/integration/message/lanes/", "Nothing waits"),
        ("/admin/integration/message/traffic/", "No source yet"),
        ("/admin/integration/message/retention/", "No hold"),
        ("/admin/integration/source/", "look at samples"),
    ],
)
def test_an_empty_page_says_what_to_do_next(client: Client, path: str, says: str):
    client.force_login(make.user("ines", Role.ANALYST))
    assert says in client.get(path).content.decode()


@pytest.mark.django_db
def test_deliveries_stand_with_what_needs_a_person_first_page_by_page_and_are_found(client: Client):
    gp = Destination.objects.create(name="GP", host="127.0.0.1", port=9)
    for number in range(120):
        state = "parked" if number == 7 else "queued" if number == 9 else "delivered"
        OutboxItem.objects.create(
            destination=gp, lane=f"order:{number}", kind="ORU" if number % 2 else "ORM", facts={}, state=state,
            subject=f"report_version:7e{number}", control_id=f"C{number:03}", due_at=now(), created_at=now(),
            cause="user:1",
        )  # fmt: skip
    client.force_login(make.user("ines", Role.ANALYST))

    def listed(query: str) -> list[str]:
        page = client.get(f"/admin/integration/outboxitem/?{query}")
        return [row.control_id for row in page.context_data["cl"].result_list]

    first, last = listed(""), listed("p=3")
    assert first[:3] == ["C007", "C009", "C119"] and len(first) == 50
    assert last[-1] == "C000" and len(last) == 20
    assert listed("state=parked") == ["C007"]
    assert len(listed("kind=ORM&state=delivered")) == 50 and "C119" not in listed("kind=ORM")
    assert listed(f"destination__id__exact={gp.pk}&state=queued") == ["C009"]
    for typed in ("C042", "report_version:7e42", "7e42"):
        found = client.post("/admin/integration/outboxitem/", {"_search": typed}, follow=True)
        assert [row.control_id for row in found.context_data["cl"].result_list] == ["C042"]
