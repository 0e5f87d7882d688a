"""Why not? The reason that keeps a patient off a scanner is named, with what to change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client
from django.urls import reverse

from common.audit import record
from common.clock import now
from common.models import AuditEvent
from common.store import unit_of_work
from pacs.dimse.registry import IMPLICIT_VR_LITTLE_ENDIAN, Refused
from pacs.models import ApplicationEntity
from ris.models import ScheduledProcedureStep
from ris.services import steps
from tests.ris.making import NOW, group, place, who
from tests.worklist.asking import ask, query
from worklist.explain import Explanation, explain, lines

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def scanner() -> ApplicationEntity:
    return ApplicationEntity.objects.create(title="CT01", host="*", services=["echo", "worklist"])


@pytest.fixture
def order() -> ScheduledProcedureStep:
    place(
        group(
            accession="A1", rp="RP1", sps="S1", uid="1.2.3", scheduled_station_ae_titles=["CT02"], start=NOW
        ),
        patient=who("0100", name="Müller^Jürgen"),
    )
    return ScheduledProcedureStep.objects.get()


def reasons(explanation: Explanation) -> dict[str, str]:
    """Of the newest query: what kept the item out, and what to change."""
    return {r.what: r.change for r in explanation.steps[0].replays[0].reasons}


@pytest.mark.parametrize(
    ("keys", "step", "what", "change"),
    [
        ({"PatientID": "100"}, {}, "PatientID", "leading zeros"),
        ({"PatientID": "01*"}, {}, "PatientID", "worklist.wildcards"),
        ({"PatientName": "Mueller*"}, {}, "PatientName", "typed at the scanner"),
        ({"AccessionNumber": "a1"}, {}, "AccessionNumber", "capital letters"),
        ({}, {"Modality": "MR"}, "Modality", "modality"),
        ({}, {"ScheduledStationAETitle": "CT01"}, "ScheduledStationAETitle", "on this station"),
        (
            {},
            {"ScheduledProcedureStepStartDate": "20260303"},
            "ScheduledProcedureStepStartDate",
            "ask for the day",
        ),
        ({}, {"ScheduledStationName": "Tunnel"}, "ScheduledStationName", "says nothing there"),
        ({}, {"ScheduledProcedureStepStatus": "ARRIVED"}, "ScheduledProcedureStepStatus", "order"),
    ],
)
def test_the_key_that_keeps_it_out_is_named(
    order: ScheduledProcedureStep, keys: dict[str, Any], step: dict[str, Any], what: str, change: str
) -> None:
    assert ask(query(**keys, step=step)) == []
    explanation = explain("A1", "CT01")
    assert not explanation.found
    assert list(reasons(explanation)) == [what]
    assert change in reasons(explanation)[what]
    assert what in explanation.verdict


def test_two_keys_are_both_named(order: ScheduledProcedureStep) -> None:
    ask(query(PatientID="7", step={"Modality": "US"}))
    assert set(reasons(explain("A1", "CT01"))) == {"PatientID", "Modality"}


def test_characters_that_cannot_be_read_are_named(order: ScheduledProcedureStep) -> None:
    ds = query()
    ds.add_new(0x00100010, "PN", "Müller*".encode("latin-1"))
    ds.PatientName = "Müller*"
    ds.SpecificCharacterSet = "ISO_IR 100"
    assert len(ask(ds)) == 1
    del ds.SpecificCharacterSet
    raw = query(PatientName="M?ller^XX*")
    ask(raw)
    assert "typed at the scanner" in reasons(explain("A1", "CT01"))["PatientName"]


def test_a_status_that_hides_it_is_named(order: ScheduledProcedureStep) -> None:
    with unit_of_work("user:1") as unit:
        steps.move(order.id, "STARTED", "clerk", unit)
    ask(query())
    assert "set it back to SCHEDULED" in reasons(explain("A1", "CT01"))["Status"]


def test_rule_and_window_of_the_scanner_are_named(
    order: ScheduledProcedureStep, scanner: ApplicationEntity
) -> None:
    scanner.settings = {"worklist": {"see": "own", "days_before": 1}}
    scanner.save()
    assert ask(query(), options=scanner.settings) == []
    said = reasons(explain("A1", "CT01"))
    assert set(said) == {"The scanner's rule", "The day window"}


def test_an_item_that_is_withheld_says_why() -> None:
    place(group(accession="A2", start=None))
    ask(query())
    assert "waits to be scheduled" in reasons(explain("A2", "CT01"))["Not to be told"]


def test_a_length_of_the_scanner_that_keeps_it_out_is_named(
    order: ScheduledProcedureStep, scanner: ApplicationEntity
) -> None:
    scanner.settings = {"worklist": {"lengths": {"PatientID": 3}}}
    scanner.save()
    assert ask(query(PatientID=""), options=scanner.settings) == []
    assert "Length" in reasons(explain("A1", "CT01"))


def test_a_query_that_was_refused_says_for_which_element(order: ScheduledProcedureStep) -> None:
    with pytest.raises(Refused):
        ask(query(step={"ScheduledProcedureStepStartTime": "99"}))
    explanation = explain("A1", "CT01")
    assert "Refused (A900)" in reasons(explanation)
    assert "0040,0003" in explanation.verdict


def test_a_query_that_came_before_the_order_finds_it_now() -> None:
    ask(query())
    place(group(accession="A9"))
    explanation = explain("A9", "CT01")
    assert explanation.found
    assert "let the scanner ask again" in explanation.steps[0].replays[0].note
    ask(query())
    assert "told to the scanner" in explain("A9", "CT01").steps[0].replays[0].note


def test_a_query_in_another_zone_is_replayed_in_it(order: ScheduledProcedureStep) -> None:
    ds = query(
        TimezoneOffsetFromUTC="+1300",
        step={"ScheduledProcedureStepStartDate": "20260302", "ScheduledProcedureStepStartTime": "09"},
    )
    assert ask(ds, syntax=IMPLICIT_VR_LITTLE_ENDIAN) == []
    (reason,) = explain("A1", "CT01").steps[0].replays[0].reasons
    assert reason.what == "ScheduledProcedureStepStartTime"
    assert reason.has == "22:00:00"


def test_a_scanner_that_never_asked_is_said_so(order: ScheduledProcedureStep) -> None:
    record("ae:CT01", "refuse", "association", detail={"reason": "called AE title"}, address="10.0.0.5")
    explanation = explain("A1", "CT01")
    assert "never asked" in explanation.verdict
    assert any("called AE title" in finding for finding in explanation.findings)
    ask(query(), ae="ct01")
    assert any("case-sensitive" in finding for finding in explain("A1", "CT01").findings)


def test_an_unknown_order_and_an_unknown_scanner_are_said_so(scanner: ApplicationEntity) -> None:
    scanner.delete()
    explanation = explain("nothing", "MR09")
    assert "No order here" in explanation.verdict
    assert any("No application entity MR09" in finding for finding in explanation.findings)
    ApplicationEntity.objects.create(title="MR09", services=["echo"])
    assert any("may not use the service" in finding for finding in explain("nothing", "MR09").findings)


def test_the_command_says_it_and_ends_with_its_status(order: ScheduledProcedureStep) -> None:
    ask(query(step={"Modality": "MR"}))
    out = StringIO()
    with pytest.raises(SystemExit) as ended:
        call_command("why", "A1", "CT01", stdout=out)
    assert ended.value.code == 1
    assert "Modality: asked for MR; here it is CT." in out.getvalue()
    ask(query())
    out = StringIO()
    call_command("why", "A1", "CT01", stdout=out)
    assert "finds the order now" in out.getvalue()


def test_a_repeated_query_is_replayed_once(order: ScheduledProcedureStep) -> None:
    for _ in range(3):
        ask(query(step={"Modality": "MR"}))
    (replay,) = explain("A1", "CT01").steps[0].replays
    assert replay.log.times == 3
    assert "3 times" in "\n".join(lines(explain("A1", "CT01")))


# -- the desk


def test_the_page_explains_and_leaves_an_audit_row(
    order: ScheduledProcedureStep, admin_client: Client
) -> None:
    ask(query(step={"Modality": "MR"}))
    url = reverse("admin:worklist_worklistitem_why")
    page = admin_client.post(url, {"accession": "A1", "ae": "CT01"})
    assert page.status_code == 200
    assert "asked for" in page.content.decode() and "Modality" in page.content.decode()
    assert AuditEvent.objects.filter(action="read", what="worklist").exists()


def test_items_and_queries_are_shown_and_found(order: ScheduledProcedureStep, admin_client: Client) -> None:
    ask(query())
    items = reverse("admin:worklist_worklistitem_changelist")
    assert "A1" in admin_client.get(items).content.decode()
    found = admin_client.post(items, {"_search": "müller"}, follow=True).content.decode()
    assert "A1" in found
    assert "A1" not in admin_client.post(items, {"_search": "meier"}, follow=True).content.decode()
    item = admin_client.get(reverse("admin:worklist_worklistitem_change", args=[order.pk]))
    assert "ScheduledProcedureStepID" in item.content.decode()
    queries = admin_client.get(reverse("admin:worklist_querylog_changelist")).content.decode()
    assert "CT01" in queries
    pk = explain("A1", "CT01").steps[0].replays[0].log.pk
    shown = admin_client.get(reverse("admin:worklist_querylog_change", args=[pk]))
    assert "asked for everything" in shown.content.decode()


def test_dates_of_the_verdict_are_the_site_s(order: ScheduledProcedureStep, settings: Any) -> None:
    settings.TIME_ZONE = "Asia/Tokyo"
    ask(query(step={"Modality": "MR"}))
    shown = explain("A1", "CT01").verdict
    local = (now() + timedelta(hours=9)).astimezone(UTC)
    assert f"{local:%Y-%m-%d %H}" in shown
    assert isinstance(explain("A1", "CT01").last_asked, datetime)
