"""An interface analyst at work, in a real browser."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from common.models import AuditEvent
from integration import search
from integration.models import Message, Source
from tests.integration.analyst import scene
from tests.integration.analyst.scene import Scene

pytestmark = pytest.mark.django_db(transaction=True)
expect.set_options(timeout=30_000)  # a page is waited for, however busy the machine is

LogIn = Callable[[str], None]
Shot = Callable[[str], None]


@pytest.fixture
def day(transactional_db: None, fresh_memory: None, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """Interfaces at work. A search is not cut short by what else the machine does."""
    monkeypatch.setattr(search, "LIMIT_MS", 60_000)
    return scene.begin()


def test_messages_are_found_opened_and_understood(page: Any, log_in: LogIn, shot: Shot, day: Scene):
    log_in("ines.moreau")
    page.goto("/admin/integration/message/")
    expect(page.locator("#result_list tr.a-open")).to_have_count(
        3
    )  # refused, parked, no HL7: they stand first
    expect(page.locator("#result_list")).to_contain_text("All messages, newest first")
    shot("messages")
    page.fill("#searchbar", "sommer a26-1050")
    page.keyboard.press("Enter")
    expect(page.locator("#result_list tbody tr")).to_have_count(1)
    assert "ommer" not in page.url and "1050" not in page.url
    shot("messages-found")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name=re.compile("ORM\\^O01"))).to_be_visible()
    expect(page.locator(".o-segment", has_text="Order control").first).to_contain_text("new order")
    expect(page.locator(".o-card", has_text="What it changed")).to_contain_text("A26-1050")
    page.locator("i[data-field='2-5']").hover()
    expect(page.locator("tr[data-field='2-5']").first).to_have_class(re.compile("a-lit"))
    shot("message")
    assert AuditEvent.objects.filter(action="search", what="message").exists()


def test_a_search_is_narrowed_and_raw_text_needs_a_time(page: Any, log_in: LogIn, shot: Shot, day: Scene):
    log_in("ines.moreau")
    page.goto("/admin/integration/message/")
    page.get_by_text("Narrow it down").click()
    page.get_by_label("Raw text").fill("ZDS|1.2.826")
    page.get_by_role("button", name="Search", exact=True).click()
    expect(page.get_by_text("Say from when to when")).to_be_visible()
    page.get_by_label("From", exact=True).fill("2026-01-01T00:00")
    page.get_by_role("button", name="Search", exact=True).click()
    expect(page.get_by_text("at most 31 days")).to_be_visible()
    page.get_by_label("From", exact=True).fill(f"{day.order.received_at:%Y-%m-%dT%H:00}")
    page.get_by_role("button", name="Search", exact=True).click()
    expect(page.locator("#result_list tbody tr")).to_have_count(6)
    shot("messages-raw")
    page.goto("/admin/integration/message/")
    page.fill("#searchbar", "nobody of this name")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Nothing fits this search")).to_be_visible()


def test_a_changed_profile_is_tried_before_it_is_used_and_can_be_taken_back(
    page: Any, log_in: LogIn, shot: Shot, day: Scene
):
    log_in("ines.moreau")
    page.goto(f"/admin/integration/source/{day.his.pk}/change/")
    shot("source")
    page.get_by_label("Accession number").fill("ORC-3.9x")
    page.get_by_role("button", name="Try it").click()
    expect(page.locator(".a-faulty")).to_contain_text("is no place such as")
    shot("source-faulty")
    page.get_by_label("Accession number").fill("ORC-3.1, refuse")
    page.get_by_label("Modality table").fill("MR = CT")
    page.get_by_role("button", name="Try it").click()
    expect(page.get_by_role("heading", name="What would become different")).to_be_visible()
    expect(page.get_by_text("Message by message")).to_be_visible(timeout=30_000)
    expect(page.locator(".a-differs").first).to_contain_text("A26-1050")
    expect(page.locator(".a-differs").first).to_contain_text("F-55510")
    shot("dry-run")
    day.his.refresh_from_db()
    assert "accession_number" not in day.his.profile
    page.get_by_label("Why it is changed").fill("The HIS fills ORC-3 since its update.")
    page.get_by_role("button", name="Use it").click()
    expect(page.get_by_text("Version 3 is in use")).to_be_visible()
    day.his.refresh_from_db()
    assert day.his.profile["accession_number"] == "ORC-3.1, refuse"
    page.get_by_role("link", name="Versions").click()
    expect(page.get_by_text("The HIS fills ORC-3")).to_be_visible()
    shot("versions")
    page.locator(".o-card", has_text="CT-A is the scanner").get_by_role("button", name="Back to this").click()
    expect(page.get_by_role("button", name="Use it")).to_be_visible(timeout=30_000)
    page.get_by_label("Why it is changed").fill("It was not so.")
    page.get_by_role("button", name="Use it").click()
    expect(page.get_by_text("Version 4 is in use")).to_be_visible()
    day.his.refresh_from_db()
    assert day.his.profile == {"station_table": {"CT-A": "CT01"}}


def test_samples_become_a_source(page: Any, log_in: LogIn, shot: Shot, day: Scene, tmp_path: Path):
    from tests.integration.analyst.test_samples import order

    file = tmp_path / "kis.hl7"
    file.write_bytes(b"".join(order(n, sex="W" if n % 3 else "M") for n in range(9)))
    log_in("ines.moreau")
    page.goto("/admin/integration/source/samples/")
    shot("samples-empty")
    page.locator("input[type=file]").set_input_files(str(file))
    page.get_by_role("button", name="Look at them").click()
    expect(page.get_by_role("heading", name="Proposed profile")).to_be_visible()
    expect(page.locator(".o-card", has_text="Proposed profile").first).to_contain_text("XR → DX")
    shot("samples")
    assert not Source.objects.filter(application="KIS").exists()
    page.get_by_role("button", name="Make a source of it").click()
    expect(page.get_by_label("Accession number")).to_have_value("OBR-3.1, make")
    page.get_by_label("Name", exact=True).fill("KIS St. Vincent")
    page.get_by_label("What it is for").fill("Orders of St. Vincent")
    shot("source-proposed")
    page.get_by_role("button", name="Make source").click()
    expect(page.get_by_text("The source is known from now on")).to_be_visible()
    made = Source.objects.get(application="KIS")
    assert made.profile["modality_table"] == {"XR": "DX"}
    assert made.versions.get().why == "Orders of St. Vincent"


def test_several_messages_are_replayed_after_a_preview(page: Any, log_in: LogIn, shot: Shot, day: Scene):
    log_in("ines.moreau")
    page.goto("/admin/integration/message/?kind=ORM")
    boxes = page.locator("input[name='id']")
    for index in range(4):
        boxes.nth(index).check()
    expect(page.get_by_text("4 chosen")).to_be_visible()
    page.get_by_role("button", name="Replay chosen").click()
    expect(page.get_by_role("heading", name="Replay 4 messages?")).to_be_visible()
    shot("replay")
    page.get_by_label("Why they are replayed").fill("The station table was wrong this morning.")
    page.get_by_label("Go on when one is refused").check()
    page.get_by_role("button", name="Replay 4").click()
    expect(page.get_by_role("heading", name="4 messages replayed")).to_be_visible()
    shot("replayed")
    assert Message.objects.filter(deeds__what="replayed").distinct().count() == 4


def test_messages_are_chosen_replayed_and_skipped_by_keyboard_alone(page: Any, log_in: LogIn, day: Scene):
    log_in("ines.moreau")
    page.goto("/admin/integration/message/?kind=ORM&state=applied")
    expect(page.get_by_role("button", name="Replay chosen")).to_be_disabled()
    for key in ("j", "x", "j", "x"):
        page.keyboard.press(key)
    expect(page.get_by_text("2 chosen")).to_be_visible()
    page.keyboard.press("r")
    expect(page.get_by_role("heading", name="Replay 2 messages?")).to_be_visible()
    page.get_by_label("Why they are replayed").focus()
    page.keyboard.type("The station table was wrong.")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="2 messages replayed")).to_be_visible()
    page.goto(f"/admin/integration/message/{day.refused.pk}/change/")
    page.get_by_role("button", name="Skip").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#skip")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#skip")).to_be_hidden()
    page.keyboard.press("Enter")
    page.locator("#skip").get_by_label("Why").focus()
    page.keyboard.type("A test of the ward.")
    page.keyboard.press("Enter")
    expect(page.get_by_text("The message is skipped")).to_be_visible()
    page.goto("/admin/integration/message/")
    page.keyboard.press("/")
    page.keyboard.type("a26-1050")
    page.keyboard.press("Enter")
    expect(page.locator("#result_list tbody tr")).to_have_count(1)


def test_a_refused_message_is_edited_tried_and_applied_as_a_copy(
    page: Any, log_in: LogIn, shot: Shot, day: Scene
):
    log_in("ines.moreau")
    page.goto(f"/admin/integration/message/{day.refused.pk}/change/")
    shot("message-refused")
    page.get_by_role("link", name="Edit a copy").click()
    area = page.get_by_label("Message text")
    text = area.input_value()
    page.get_by_role("button", name="Try it").click()
    expect(page.get_by_role("alert")).to_contain_text("would be refused")
    area.fill(text.replace("P-99999", "P-55523").replace("F-99999", "F-55523"))
    page.get_by_role("button", name="Try it").click()
    expect(page.get_by_text("What it would do")).to_be_visible()
    shot("edit")
    page.get_by_label("Why it is changed").fill("The ward typed the wrong number.")
    page.get_by_role("button", name="Apply the copy").click()
    expect(page.get_by_text("The edited copy is applied")).to_be_visible()
    shot("message-edited")
    page.get_by_role("link", name="The message as it came").click()
    expect(page.get_by_text("Below stands what came")).to_be_visible()


def test_lanes_say_what_waits_behind_what(page: Any, log_in: LogIn, shot: Shot, day: Scene):
    log_in("ines.moreau")
    page.goto("/admin/integration/message/lanes/")
    lane = page.locator(".a-lane.a-held").first
    expect(lane).to_contain_text("Parked by hand: Northside is asked")
    expect(page.locator(".o-card", has_text="Going out")).to_contain_text("does not answer")
    shot("lanes")
    lane.locator(".a-first a").click()
    page.get_by_role("button", name="Release").click()
    page.locator("#release").get_by_label("Why").fill("Northside says so.")
    page.locator("#release").get_by_role("button", name="Release").click()
    expect(page.get_by_text("The message is released")).to_be_visible()


def test_traffic_and_retention(page: Any, log_in: LogIn, shot: Shot, day: Scene):
    log_in("ines.moreau")
    page.goto("/admin/integration/message/traffic/")
    expect(page.locator(".a-peer", has_text="HIS St. Brigid").locator("rect").first).to_be_attached()
    expect(page.locator(".a-peer", has_text="GP gateway")).to_contain_text("does not answer")
    shot("traffic")
    page.get_by_role("link", name="Last 7 days").click()
    expect(page.get_by_role("link", name="Last 7 days")).to_have_attribute("aria-current", "true")
    page.goto("/admin/integration/message/retention/")
    page.get_by_label("Which").fill("4711")
    page.get_by_label("Why").fill("Claim 2026-17")
    page.get_by_role("button", name="Place hold").click()
    expect(page.locator(".a-hold")).to_contain_text("Claim 2026-17")
    shot("retention")
    page.get_by_role("button", name="Lift").click()
    expect(page.get_by_text("No hold")).to_be_visible()


def test_a_clerk_sees_messages_but_changes_no_interface(page: Any, log_in: LogIn, shot: Shot, day: Scene):
    log_in("clara.weiss")
    page.goto("/admin/integration/message/")
    expect(page.locator("#result_list tbody tr").first).to_be_visible()
    expect(page.locator("input[name='id']")).to_have_count(0)
    expect(page.get_by_role("link", name="Samples")).to_have_count(0)
    page.goto(f"/admin/integration/message/{day.refused.pk}/change/")
    expect(page.get_by_role("button", name="Skip").first).to_be_visible()
    expect(page.get_by_role("link", name="Edit a copy")).to_have_count(0)


def test_the_analysts_pages_fit_a_tablet_and_the_dark(page: Any, log_in: LogIn, shot: Shot, day: Scene):
    log_in("ines.moreau")
    pages = {
        "messages": "/admin/integration/message/",
        "message": f"/admin/integration/message/{day.order.pk}/change/",
        "lanes": "/admin/integration/message/lanes/",
        "traffic": "/admin/integration/message/traffic/",
        "source": f"/admin/integration/source/{day.his.pk}/change/",
        "sources": "/admin/integration/source/",
        "edit": f"/admin/integration/message/{day.refused.pk}/edit/",
        "retention": "/admin/integration/message/retention/",
        "samples": "/admin/integration/source/samples/",
        "versions": f"/admin/integration/source/{day.his.pk}/versions/",
    }
    for width, scheme in ((820, "light"), (1280, "dark")):
        page.set_viewport_size({"width": width, "height": 1100})
        page.emulate_media(color_scheme=scheme)
        for name, url in pages.items():
            page.goto(url)
            wider = page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            assert wider <= 0, f"{name} is {wider} pixels wider than a screen of {width}"
            shot(f"{name}-{width}-{scheme}")
