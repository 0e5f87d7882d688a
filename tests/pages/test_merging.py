"""A clerk merges two records of one person by hand, after looking at what moves, and takes it back."""

from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from playwright.sync_api import expect

from common.models import AuditEvent
from ris.models import ImagingServiceRequest, Patient, PatientMerge
from tests import factories as make
from tests.pages.morning import Morning

pytestmark = pytest.mark.django_db(transaction=True)

LogIn = Callable[[str], None]
Shot = Callable[[str], None]


@pytest.fixture
def twin(morning: Morning) -> Patient:
    """Another record of the patient of the morning's order, with an order of its own."""
    patient = make.patient("9711", "Sommer^Klara", "19600512", "F")
    make.order(patient, "CTHEAD", accession="A26-9001")
    return patient


def owner_of(accession: str) -> Any:
    return ImagingServiceRequest.objects.get(accession_number=accession).patient_id


def test_two_records_are_compared_merged_and_parted_again(
    page: Any, log_in: LogIn, shot: Shot, morning: Morning, twin: Patient
):
    patient = morning.order.patient
    log_in("clara.weiss")
    page.goto(f"/admin/ris/patient/{patient.pk}/change/")
    page.get_by_role("link", name="Merge", exact=True).click()
    expect(page.locator("#others tbody tr")).to_have_count(1)  # who looks the same is there at once
    expect(page.locator("#others")).to_contain_text("Klara")
    shot("merge-find")
    page.get_by_label("Name or patient ID of the other record").fill("9711")
    expect(page.locator("#others tbody tr")).to_have_count(1)
    page.get_by_role("link", name="Compare").click()
    expect(page.locator(".o-compare tr", has_text="Name")).to_have_class("o-differs")
    expect(page.locator(".o-compare tr", has_text="Born")).to_have_class("o-same")
    expect(page.locator(".o-card", has_text="What moves")).to_contain_text("A26-9001")
    assert "ommer" not in page.url and "9711" not in page.url
    shot("merge-compare")
    assert owner_of("A26-9001") == twin.pk  # looking changes nothing
    page.get_by_role("button", name="Merge").click()
    expect(page.get_by_text("Merged. Orders, studies")).to_be_visible()
    assert owner_of("A26-9001") == patient.pk
    expect(page.locator(".o-card", has_text="Merges and moves")).to_contain_text("merged in")
    shot("merged-patient")
    page.locator(".o-card", has_text="Merges and moves").get_by_role("link", name="Undo").click()
    expect(page.locator(".o-card", has_text="What goes back")).to_contain_text("A26-9001")
    shot("merge-undo")
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_text("Undone: what it had changed")).to_be_visible()
    assert owner_of("A26-9001") == twin.pk
    done = AuditEvent.objects.filter(action__in=("merge", "unmerge")).order_by("id")
    assert [(e.action, e.actor, set(e.patient_ids)) for e in done] == [
        (action, f"user:{morning.clerk.pk}", {str(patient.pk), str(twin.pk)})
        for action in ("merge", "unmerge")
    ]


def test_records_that_contradict_each_other_are_merged_only_by_who_is_sure(client: Client, morning: Morning):
    other = make.patient("9712", "Sommer^Clara", "19610512", "F")
    patient = morning.order.patient
    client.force_login(morning.clerk)
    address = f"/admin/ris/patient/{patient.pk}/merge/{other.pk}/"
    assert b"I have made sure" in client.get(address).content
    assert client.post(address).status_code == 200
    assert not PatientMerge.objects.exists()
    assert client.post(address, {"sure": "1"}).status_code == 302
    assert PatientMerge.objects.get().cause == f"user:{morning.clerk.pk}"
    again = client.get(address)
    assert b"merged before" in again.content
    client.post(address, {"sure": "1"})
    assert PatientMerge.objects.count() == 1


def test_who_may_not_change_patients_may_not_merge_them(client: Client, morning: Morning, twin: Patient):
    client.force_login(morning.radiologist)
    patient = morning.order.patient
    for address in (
        f"/admin/ris/patient/{patient.pk}/merge/",
        f"/admin/ris/patient/{patient.pk}/merge/{twin.pk}/",
    ):
        assert client.get(address).status_code == 403
        assert client.post(address, {"sure": "1"}).status_code == 403
    assert b">Merge</a>" not in client.get(f"/admin/ris/patient/{patient.pk}/change/").content
    assert not PatientMerge.objects.exists()
