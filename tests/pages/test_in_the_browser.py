"""A clerk, a radiologist and a referrer at work, in a real browser."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from common.models import AuditEvent
from ris.models import ImagingServiceRequest, Patient, Report, ReportVersion, StudyMatch
from tests import factories as make
from tests.pages.morning import Morning

pytestmark = pytest.mark.django_db(transaction=True)

LogIn = Callable[[str], None]
Shot = Callable[[str], None]


def test_the_first_page_shows_the_morning_and_leads_to_every_list(
    page: Any, log_in: LogIn, shot: Shot, morning: Morning
):
    log_in("clara.weiss")
    expect(page.get_by_role("heading", name="Today")).to_be_visible()
    expect(page.locator(".o-queue", has_text="Unmatched studies").locator(".o-n")).to_have_text("1")
    expect(page.locator(".o-queue", has_text="Unscheduled steps").locator(".o-n")).to_have_text("1")
    expect(page.locator(".o-queue", has_text="Refused messages").locator(".o-n")).to_have_text("1")
    expect(page.locator(".o-queue", has_text="Objects set aside").locator(".o-n")).to_have_text("1")
    expect(page.locator(".o-alert")).to_contain_text("A study has waited")
    shot("first-page")
    page.emulate_media(color_scheme="dark")
    shot("first-page-dark")
    page.emulate_media(color_scheme="light")
    for name in ("Unmatched studies", "Unscheduled steps", "Refused messages", "Outbox", "Objects set aside"):
        page.goto("/")
        page.locator("a.o-queue", has_text=name).first.click()
        expect(page.locator("#result_list tbody tr").first).to_be_visible()
        shot(f"list-{name.lower().replace(' ', '-')}")


def test_two_clicks_link_an_unmatched_study_and_one_undoes_it(
    page: Any, log_in: LogIn, shot: Shot, morning: Morning
):
    log_in("clara.weiss")
    page.locator("a.o-queue", has_text="Unmatched studies").click()
    page.locator("#result_list tbody a").first.click()  # first click: open it
    expect(page.locator(".o-candidate").first).to_contain_text("CT of the chest")
    shot("unmatched-study")
    page.locator(".o-candidate").first.get_by_role("button", name="Link").click()  # second click: link
    expect(page.get_by_text("Linked. Every answer")).to_be_visible()
    match = StudyMatch.objects.get(study=morning.unmatched, undone_at__isnull=True)
    assert match.procedure.request.accession_number == "A26-1047"
    shot("unmatched-study-linked")
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_text("The link is undone")).to_be_visible()
    assert not StudyMatch.objects.filter(study=morning.unmatched, undone_at__isnull=True).exists()
    expect(page.locator(".o-candidate").first).to_be_visible()


def test_an_unmatched_study_can_be_linked_to_an_order_found_by_search(
    page: Any, log_in: LogIn, morning: Morning
):
    log_in("clara.weiss")
    page.goto(f"/admin/ris/reconciliationcase/{morning.unmatched.case.pk}/change/")
    page.get_by_label("Find another order").fill("A26-1045")
    found = page.locator("#found .o-candidate")
    expect(found).to_have_count(1)
    found.get_by_role("button", name="Link").click()
    expect(page.get_by_text("Linked. Every answer")).to_be_visible()
    match = StudyMatch.objects.get(study=morning.unmatched, undone_at__isnull=True)
    assert match.procedure.request.accession_number == "A26-1045"


def test_a_clerk_registers_a_patient_and_writes_an_order_by_hand(
    page: Any, log_in: LogIn, shot: Shot, morning: Morning
):
    log_in("clara.weiss")
    page.get_by_role("link", name="Register patient").click()
    page.get_by_label("Family name").fill("Okafor")
    page.get_by_label("Given name").fill("Ada")
    page.get_by_label("Birth date").fill("1990-04-01")
    page.get_by_label("Sex").select_option("F")
    page.get_by_label("Patient ID").fill("77001")
    shot("register-patient")
    page.get_by_role("button", name="Register patient").click()
    expect(page.get_by_text("The patient is registered.")).to_be_visible()
    whom = Patient.objects.get(patient_name="Okafor^Ada")
    page.get_by_role("link", name="New order").click()
    page.get_by_label("Procedure").select_option(label="CTHEAD CT of the head")
    page.get_by_label("Priority").select_option("HIGH")
    page.get_by_label("Requested by").select_option(label="Ahrens Jonas  Dr.")
    page.get_by_label("Reason for the exam").fill("Fall from a ladder")
    shot("new-order")
    page.get_by_role("button", name="Write order").click()
    expect(page.get_by_text("The order is written.")).to_be_visible()
    order = ImagingServiceRequest.objects.get(patient=whom)
    assert order.requesting_physician_id == "P100"
    assert order.accession_number
    page.get_by_role("link", name="Schedule", exact=True).last.click()
    page.get_by_label("Date and time").fill("2027-01-05T09:30")
    page.get_by_label("Station").select_option(label="CT 1")
    page.get_by_role("button", name="Schedule").click()
    expect(page.get_by_text("The step is scheduled.")).to_be_visible()
    step = make.procedure(order).steps.get()
    assert step.start is not None and step.scheduled_station_ae_titles == ["CT01"]


def test_an_order_tells_its_story(page: Any, log_in: LogIn, shot: Shot, morning: Morning):
    log_in("clara.weiss")
    page.goto("/admin/ris/imagingservicerequest/")
    page.fill("#searchbar", "A26-1043")
    page.keyboard.press("Enter")
    expect(page.locator("#result_list tbody tr")).to_have_count(1)
    assert "1043" not in page.url
    page.locator("#result_list tbody a").first.click()
    story = page.locator(".o-story")
    for sentence in ("Order made", "Images began to arrive", "Study linked", "Report signed: final"):
        expect(story).to_contain_text(sentence)
    shot("order")
    page.goto(f"/admin/ris/patient/{morning.order.patient_id}/change/")
    shot("patient")


def test_a_refused_message_shows_the_place_of_its_fault_and_is_skipped_with_a_reason(
    page: Any, log_in: LogIn, shot: Shot, morning: Morning
):
    log_in("clara.weiss")
    page.locator("a.o-queue", has_text="Refused messages").click()
    page.locator("#result_list tbody a").first.click()
    expect(page.locator(".o-raw").first).to_contain_text("P-99999")
    expect(page.locator(".o-segment:not(.a-bytes)", has_text="ORC").first).to_contain_text(
        "Placer order number"
    )
    shot("message")
    page.get_by_role("button", name="Skip").first.click()
    page.get_by_label("Why").fill("The HIS has withdrawn it.")
    page.locator("#skip").get_by_role("button", name="Skip").click()
    expect(page.get_by_text("The message is skipped")).to_be_visible()


def test_a_radiologist_reads_by_keyboard_drafts_and_signs(
    page: Any, log_in: LogIn, shot: Shot, morning: Morning
):
    log_in("mara.lindt")
    page.goto("/reading/")
    rows = page.locator("tr[data-href]")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("Clara Sommer")  # STAT stands first
    shot("reading-list")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Findings")).to_be_visible()
    expect(page.get_by_text("Prior reports")).to_be_visible()
    page.get_by_label("Findings").fill("Hyperdense collection over the left hemisphere, 9 mm.")
    page.get_by_label("Impression").fill("Acute subdural haematoma on the left.")
    expect(page.locator("#saved")).to_contain_text(re.compile(r"Saved \d"))
    draft = Report.objects.get(procedure__request=morning.order)
    assert draft.impression.startswith("Acute subdural") and draft.status == "DRAFT"
    shot("report-draft")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text("Sign this report?")).to_be_visible()
    shot("report-sign")
    page.get_by_role("button", name="Sign as final").click()
    expect(page.get_by_text("Signed. It is on its way")).to_be_visible()
    version = ReportVersion.objects.get(report=draft)
    assert version.findings.startswith("Hyperdense") and version.signer_name == "Lindt^Mara^^Dr."
    page.get_by_label("What is to be added").fill("Told to the ward by telephone.")
    page.get_by_role("button", name="Sign addendum").click()
    expect(page.get_by_text("The addendum is signed")).to_be_visible()
    assert [v.status for v in draft.versions.order_by("number")] == ["FINAL", "ADDENDED"]
    shot("report-signed")


def test_a_stale_save_shows_both_texts_and_loses_none(page: Any, log_in: LogIn, shot: Shot, morning: Morning):
    log_in("mara.lindt")
    page.goto(f"/reading/{make.procedure(morning.order).pk}/")
    other = make.user("second.reader", "radiologist")
    make.report(make.procedure(morning.order), other, "Written meanwhile.", "", sign=False)
    page.get_by_label("Findings").fill("My own words.")
    expect(page.locator("#saved")).to_contain_text("Not saved")
    expect(page.locator("#saved")).to_contain_text("Written meanwhile.")
    shot("report-conflict")
    assert Report.objects.get(procedure__request=morning.order).findings == "Written meanwhile."
    page.get_by_role("button", name="Keep my text").click()
    expect(page.locator("#saved")).to_contain_text(re.compile(r"Saved \d"))
    assert Report.objects.get(procedure__request=morning.order).findings == "My own words."


def test_a_referrer_sees_own_orders_and_no_other(page: Any, log_in: LogIn, shot: Shot, morning: Morning):
    log_in("jonas.ahrens")
    expect(page.get_by_role("heading", name="My reports")).to_be_visible()
    expect(page.locator("tr[data-href]")).to_have_count(
        4
    )  # two read, one waiting, and the one that came by HL7
    expect(page.locator("#rows")).not_to_contain_text("Ruth Keller")
    shot("portal")
    page.get_by_role("link", name="Anton Beck").click()
    expect(page.get_by_text("Normal chest.")).to_be_visible()
    shot("portal-report")
    assert AuditEvent.objects.filter(
        actor=f"user:{morning.referrer.pk}", what="report", action="read"
    ).exists()


def test_wrong_passwords_do_not_enter(page: Any, shot: Shot, morning: Morning):
    page.goto("/reading/")
    page.fill("#id_username", "mara.lindt")
    page.fill("#id_password", "guess")
    page.click("button[type=submit]")
    expect(page.get_by_role("alert")).to_contain_text("do not fit together")
    shot("login")


def test_pages_fit_a_tablet_and_the_dark(page: Any, log_in: LogIn, shot: Shot, morning: Morning):
    log_in("clara.weiss")
    step = make.procedure(morning.unscheduled).steps.get()
    study = make.procedure(morning.order).matches.get().study
    pages = {
        "first-page": "/",
        "order": f"/admin/ris/imagingservicerequest/{morning.order.pk}/change/",
        "case": f"/admin/ris/reconciliationcase/{morning.unmatched.case.pk}/change/",
        "step": f"/admin/ris/scheduledprocedurestep/{step.pk}/change/",
        "study": f"/admin/pacs/study/{study.pk}/change/",
        "messages": "/admin/integration/message/",
        "desk": "/admin/",
    }
    for width, scheme in ((820, "light"), (1366, "dark")):
        page.set_viewport_size({"width": width, "height": 1100})
        page.emulate_media(color_scheme=scheme)
        for name, url in pages.items():
            page.goto(url)
            page.wait_for_load_state("networkidle")
            wider = page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            assert wider <= 0, f"{name} is {wider} pixels wider than a screen of {width}"
            shot(f"{name}-{width}-{scheme}")


def test_a_report_page_fits_a_tablet(page: Any, log_in: LogIn, shot: Shot, morning: Morning):
    log_in("mara.lindt")
    page.set_viewport_size({"width": 820, "height": 1180})
    page.goto(f"/reading/{make.procedure(morning.order).pk}/")
    wider = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wider <= 0
    shot("report-820")
