"""What scanners report, at the desk: the list of problems, the wrong entry put right and undone, images that lack."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from playwright.sync_api import expect

from common.clock import now
from common.roles import Role
from common.store import unit_of_work
from pacs.models import Instance, Study
from ris.commands import Identifier, OrderKeys, PerformedFacts
from ris.models import ImagingServiceRequest, PerformedProcedureStep, ScheduledProcedureStep, StudyMatch
from ris.services import steps
from tests import factories as make
from tests.pages.morning import Morning
from tests.worklist.asking import ask, query
from worklist.models import QueryLog, WorklistItem

LogIn = Callable[[str], None]
Shot = Callable[[str], None]

browser = pytest.mark.django_db(transaction=True)


def scanned(
    order: ImagingServiceRequest,
    study: Study | None = None,
    *,
    missing: int = 0,
    uid: str = "1.9.1",
    said: str = "",
) -> PerformedProcedureStep:
    """A scanner's report of an order, with the images of a study and some more."""
    asked = make.procedure(order)
    step = asked.steps.get()
    identifier = order.patient.identifiers.order_by("position")[0]
    series = []
    if study is not None:
        for row in study.series.all():
            uids = list(Instance.objects.filter(series=row).values_list("sop_instance_uid", flat=True))
            series.append(
                {
                    "series_instance_uid": row.series_instance_uid,
                    "series_description": row.series_description,
                    "sop_instance_uids": [*uids, *(f"{row.series_instance_uid}.{n}" for n in range(missing))],
                }
            )
    keys = OrderKeys(
        study_instance_uid=asked.study_instance_uid,
        accession_number=order.accession_number,
        scheduled_procedure_step_id=step.scheduled_procedure_step_id,
    )
    begun = now() - timedelta(minutes=50)
    facts = PerformedFacts(
        sop_instance_uid=uid,
        status="IN PROGRESS",
        steps=(keys,),
        patient_identifiers=(Identifier(said or identifier.value, "HOSP"),),
        patient_name=order.patient.patient_name,
        patient_birth_date=order.patient.patient_birth_date,
        values={
            "study_instance_uids": [asked.study_instance_uid],
            "modality": step.modality,
            "performed_station_ae_title": f"{step.modality}01",
            "performed_procedure_step_id": "PPS-88",
            "description": str(asked),
            "started_at": begun,
        },
    )
    with unit_of_work(f"mpps:{uid}") as unit:
        steps.perform(facts, unit, create=True)
    end = PerformedFacts(
        sop_instance_uid=uid,
        status="COMPLETED",
        values={"series": series, "ended_at": begun + timedelta(minutes=12)},
    )
    with unit_of_work(f"mpps:{uid}") as unit:
        return steps.perform(end, unit, create=False)


def status(order: ImagingServiceRequest) -> str:
    return ScheduledProcedureStep.objects.get(procedure__request=order).status


def linked(study: Study) -> str:
    match = StudyMatch.objects.filter(study=study, undone_at__isnull=True).first()
    return match.procedure.request.accession_number if match else ""


@browser
def test_a_clerk_puts_a_wrong_worklist_entry_right_and_undoes_it(
    page: Any, log_in: LogIn, shot: Shot, morning: Morning
) -> None:
    study = make.procedure(morning.order).matches.get().study
    scanned(morning.order, study, missing=2)
    right = ImagingServiceRequest.objects.get(accession_number="A26-1047")
    log_in("clara.weiss")
    page.goto(f"/admin/ris/imagingservicerequest/{morning.order.pk}/change/")
    expect(page.get_by_text("4 of 6 missing").or_(page.get_by_text("missing")).first).to_be_visible()
    shot("order-short-of-images")
    page.get_by_role("link", name="Scan on CT01").click()
    expect(page.get_by_role("heading", name="Was it another order?")).to_be_visible()
    page.get_by_label("Find the right order").fill("A26-1047")
    found = page.locator("#found tbody tr")
    expect(found).to_have_count(1)
    shot("performed-find-right-order")
    found.get_by_role("button", name="It is this one").click()
    expect(page.get_by_text("Assigned. The step and its images")).to_be_visible()
    assert (status(right), status(morning.order)) == ("COMPLETED", "SCHEDULED")
    assert linked(study) == "A26-1047"
    shot("performed-assigned")
    page.get_by_role("button", name="Undo assignment").click()
    expect(page.get_by_text("Undone: it belongs where")).to_be_visible()
    assert (status(right), status(morning.order)) == ("SCHEDULED", "COMPLETED")
    assert linked(study) == "A26-1042"


@browser
def test_a_problem_stands_on_the_list_until_a_clerk_has_solved_it(
    page: Any, log_in: LogIn, shot: Shot, morning: Morning
) -> None:
    scanned(ImagingServiceRequest.objects.get(accession_number="A26-1045"), said="990099")
    log_in("clara.weiss")
    line = page.locator("a.o-queue", has_text="Scanner reports to look at")
    expect(line.locator(".o-n")).to_have_text("1")
    line.click()
    expect(page.locator("#result_list tbody tr")).to_have_count(1)
    shot("performed-list")
    page.locator("#result_list tbody a").first.click()
    expect(page.locator(".o-note").first).to_contain_text("patient identifier is not")
    shot("performed-problem")
    page.set_viewport_size({"width": 820, "height": 1180})
    shot("performed-problem-820")
    wider = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wider <= 0
    page.get_by_label("How it was solved").fill("A number of the clinic she came from")
    page.get_by_role("button", name="Take it off the list").click()
    expect(page.get_by_text("It is off the list.")).to_be_visible()
    assert PerformedProcedureStep.objects.get().solution == "A number of the clinic she came from"
    page.goto("/admin/ris/performedprocedurestep/")
    expect(page.locator("#result_list tbody tr")).to_have_count(0)


@browser
def test_why_not_is_one_click_from_the_order_with_its_scanner(
    page: Any, log_in: LogIn, shot: Shot, morning: Morning
) -> None:
    log_in("clara.weiss")
    order = ImagingServiceRequest.objects.get(accession_number="A26-1045")
    assert WorklistItem.objects.filter(request_row=order.pk).exists()
    ask(query(step={"Modality": "CT", "ScheduledStationAETitle": "CT01"}), ae="MR01")
    assert QueryLog.objects.filter(ae_title="MR01").exists()
    page.goto(f"/admin/ris/imagingservicerequest/{order.pk}/change/")
    page.get_by_role("link", name="Why not?").last.click()
    expect(page.get_by_label("Scanner (AE title)")).to_have_value("MR01")
    expect(page.locator(".o-note").first).to_contain_text("MR01 asked last")
    expect(page.locator("body")).to_contain_text("Modality")
    assert "A26-1045" not in page.url
    shot("why-not")
    for width in (820,):
        page.set_viewport_size({"width": width, "height": 1180})
        wider = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wider <= 0
        shot(f"why-not-{width}")


@browser
def test_the_unscheduled_list_gives_a_step_its_time(
    page: Any, log_in: LogIn, shot: Shot, morning: Morning
) -> None:
    log_in("clara.weiss")
    page.goto("/admin/ris/scheduledprocedurestep/?time=none")
    expect(page.locator("#result_list tbody tr")).to_have_count(1)
    shot("unscheduled")
    page.set_viewport_size({"width": 820, "height": 1180})
    shot("unscheduled-820")
    page.locator("#result_list tbody a").first.click()
    page.get_by_label("Date and time").fill("2027-01-05T09:30")
    page.get_by_label("Station").select_option(label="X-ray 1")
    page.get_by_role("button", name="Schedule").click()
    expect(page.get_by_text("The step is scheduled.")).to_be_visible()
    step = make.procedure(morning.unscheduled).steps.get()
    assert step.scheduled_station_ae_titles == ["DX01"]
    assert WorklistItem.objects.get(pk=step.pk).waiting


@browser
def test_a_catalogue_comes_from_a_file_after_it_was_looked_at(
    page: Any, log_in: LogIn, shot: Shot, morning: Morning
) -> None:
    make.user("ana.lyst", Role.ANALYST)
    log_in("ana.lyst")
    page.goto("/admin/ris/proceduredefinition/")
    page.get_by_role("link", name="From a CSV file").click()
    text = "code,name,modality,minutes,stations\nCTHEAD,CT of the head,CT,20,CT 1\nUSABD,Abdomen,US,15,\n"
    file = {"name": "procedures.csv", "mimeType": "text/csv", "buffer": text.encode()}
    page.get_by_label("CSV file").set_input_files(file)
    page.get_by_role("button", name="Show what changes").click()
    expect(page.get_by_text("1 new, 1 changed")).to_be_visible()
    shot("catalogue-file")
    page.get_by_role("button", name="Take it over").click()
    expect(page.get_by_text("The catalogue is as the file says.")).to_be_visible()
    shot("catalogue")


@pytest.mark.django_db
def test_orders_and_studies_say_whether_images_are_missing(client: Client) -> None:
    client.force_login(make.user("cle", Role.CLERK))
    make.department()
    whole = make.order(make.patient("1", "Whole^Anna", "19600101", "F"), accession="WHOLE-01", start=now())
    short = make.order(make.patient("2", "Short^Bob", "19600101", "M"), accession="SHORT-01", start=now())
    make.order(make.patient("3", "None^Cid", "19600101", "M"), accession="NONE-01", start=now())
    studies = [make.study(whole), make.study(short)]
    scanned(whole, studies[0])
    row = scanned(short, studies[1], missing=3, uid="1.9.2")
    assert row.images_missing == 6

    def listed(which: str) -> str:
        return client.get(f"/admin/ris/imagingservicerequest/?images={which}").content.decode()

    assert (
        "SHORT-01" in listed("short")
        and "WHOLE-01" not in listed("short")
        and "NONE-01" not in listed("short")
    )
    assert (
        "WHOLE-01" in listed("complete")
        and "SHORT-01" not in listed("complete")
        and "NONE-01" not in listed("complete")
    )
    assert all(number in listed("all") for number in ("WHOLE-01", "SHORT-01", "NONE-01"))
    assert (
        "short by 6 of 8 images" in client.get(f"/admin/pacs/study/{studies[1].pk}/change/").content.decode()
    )
    assert "complete: 2 images" in client.get(f"/admin/pacs/study/{studies[0].pk}/change/").content.decode()
    page = client.get(f"/admin/ris/performedprocedurestep/{row.pk}/change/").content.decode()
    assert "6 of 8 missing" in page
    client.post(f"/admin/ris/performedprocedurestep/{row.pk}/accept/")
    assert "SHORT-01" not in listed("short")
    order_page = client.get(f"/admin/ris/imagingservicerequest/{short.pk}/change/").content.decode()
    assert "2 of 8, accepted" in order_page


@pytest.mark.django_db
def test_who_may_not_correct_sees_no_button_and_is_refused(client: Client) -> None:
    make.department()
    order = make.order(make.patient("1", "Whole^Anna", "19600101", "F"), accession="WHOLE-01", start=now())
    row = scanned(order, said="77")
    client.force_login(make.user("ana", Role.ANALYST))
    address = f"/admin/ris/performedprocedurestep/{row.pk}"
    assert "It is this one" not in client.get(f"{address}/change/").content.decode()
    assert client.post(f"{address}/solve/", {"how": "so"}).status_code == 403
    client.force_login(make.user("tek", Role.TECHNOLOGIST))
    assert client.post(f"{address}/solve/", {"how": "so"}).status_code == 302
    assert PerformedProcedureStep.objects.get().solution == "so"
