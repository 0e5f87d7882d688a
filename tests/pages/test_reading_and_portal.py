"""The reading room and the portal: order, scope, stale saves, signatures; who may see which images."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import AnonymousUser
from django.test import Client

from common.clock import now
from common.models import AuditEvent
from common.roles import Role
from pacs import access
from pacs.access import Action
from pacs.models import Study
from ris import selectors
from ris.models import Report, ReportVersion
from ris.portal.access import ByOrder
from tests import factories as make
from tests.pages.morning import Morning, begin

pytestmark = pytest.mark.django_db


@pytest.fixture
def morning() -> Morning:
    """A department at work."""
    return begin()


@pytest.fixture
def reader(client: Client, morning: Morning) -> Client:
    """The radiologist."""
    client.force_login(morning.radiologist)
    return client


# -- the list


def test_the_list_is_ordered_by_urgency_and_then_by_age(morning: Morning):
    whom = morning.order.patient
    for hours, priority, accession in (
        (1, "ROUTINE", "R1"),
        (9, "HIGH", "H9"),
        (2, "HIGH", "H2"),
        (30, "LOW", "L30"),
    ):
        order = make.order(whom, "CTHEAD", accession=accession, priority=priority)
        make.study(order, make.Images(received_at=now() - timedelta(hours=hours)))
    found = [row.procedure.request.accession_number for row in selectors.reading_list()]
    assert found == ["A26-1042", "H9", "H2", "A26-1044", "R1", "L30"]


def test_a_signed_report_leaves_the_list_and_an_undone_link_too(morning: Morning):
    assert len(selectors.reading_list()) == 2
    make.report(make.procedure(morning.order), morning.radiologist, "Findings.", "Impression.")
    assert [str(r.patient) for r in selectors.reading_list()] == ["Ruth Keller"]


def test_a_preliminary_report_stays_on_the_list(morning: Morning, reader: Client):
    url = f"/reading/{make.procedure(morning.order).pk}/sign/"
    reader.post(url, {"draft_version": 0, "findings": "First look.", "status": "PRELIMINARY"})
    assert ReportVersion.objects.get(report__procedure__request=morning.order).status == "PRELIMINARY"
    assert morning.order.pk in {row.procedure.request_id for row in selectors.reading_list()}


@pytest.mark.parametrize(
    ("term", "names"), [("sommer", ["Clara Sommer"]), ("4714", ["Ruth Keller"]), ("nobody", [])]
)
def test_the_list_is_searched_by_post_and_audited(
    reader: Client, morning: Morning, term: str, names: list[str]
):
    page = reader.post("/reading/", {"term": term})
    assert [str(row.patient) for row in page.context["rows"]] == names
    seen = AuditEvent.objects.filter(action="search", what="reading list").get()
    assert len(seen.patient_ids) == len(names)


def test_the_list_is_filtered_by_modality(reader: Client):
    page = reader.post("/reading/", {"modality": "MR"})
    assert [str(row.patient) for row in page.context["rows"]] == ["Ruth Keller"]
    assert page.context["modalities"] == ["CT", "MR"]


# -- the report


def test_opening_a_report_is_audited_and_makes_no_draft(reader: Client, morning: Morning):
    procedure = make.procedure(morning.order)
    page = reader.get(f"/reading/{procedure.pk}/")
    assert page.status_code == 200
    assert not Report.objects.filter(procedure=procedure).exists()
    seen = AuditEvent.objects.get(action="read", what="report")
    assert seen.patient_ids == [str(morning.order.patient_id)]
    assert [str(v.report.procedure.request) for v in page.context["priors"]] == ["A25-0788"]


def test_a_stale_signature_signs_nothing_and_keeps_both_texts(reader: Client, morning: Morning):
    procedure = make.procedure(morning.order)
    other = make.user("second.reader", Role.RADIOLOGIST)
    make.report(procedure, other, "Theirs.", "", sign=False)
    page = reader.post(
        f"/reading/{procedure.pk}/sign/",
        {"draft_version": "0", "findings": "Mine.", "impression": "", "status": "FINAL"},
    )
    assert page.status_code == 409
    assert b"Mine." in page.content and b"Theirs." in page.content
    assert not ReportVersion.objects.filter(report__procedure=procedure).exists()
    assert Report.objects.get(procedure=procedure).findings == "Theirs."


def test_an_empty_report_is_not_signed(reader: Client, morning: Morning):
    procedure = make.procedure(morning.order)
    answer = reader.post(
        f"/reading/{procedure.pk}/sign/", {"draft_version": "0", "findings": " "}, follow=True
    )
    assert b"empty report" in answer.content
    assert not ReportVersion.objects.filter(report__procedure=procedure).exists()


def test_signed_text_is_not_saved_over(reader: Client, morning: Morning):
    procedure = make.procedure(morning.reported)
    version = procedure.report.draft_version
    answer = reader.post(f"/reading/{procedure.pk}/save/", {"draft_version": version, "findings": "Changed."})
    assert b"not saved" in answer.content
    assert ReportVersion.objects.get(report__procedure=procedure).findings.startswith("Heart of normal size")


def test_a_retracted_report_says_why_and_takes_no_addendum(reader: Client, morning: Morning):
    procedure = make.procedure(morning.reported)
    page = reader.post(f"/reading/{procedure.pk}/retract/", {"text": "Wrong patient."}, follow=True)
    assert b"Retracted because" in page.content
    assert b"What is to be added" not in page.content


# -- the portal


def test_a_referrer_finds_own_reports_and_gets_404_for_others(client: Client, morning: Morning):
    client.force_login(morning.referrer)
    own = client.get(f"/portal/{make.procedure(morning.reported).pk}/")
    assert b"Normal chest." in own.content
    other = make.procedure(morning.unscheduled)
    assert client.get(f"/portal/{other.pk}/").status_code == 404


def test_a_draft_is_not_shown_to_the_referrer(client: Client, morning: Morning):
    make.report(make.procedure(morning.order), morning.radiologist, "Not for others yet.", "", sign=False)
    client.force_login(morning.referrer)
    page = client.get(f"/portal/{make.procedure(morning.order).pk}/")
    assert b"Not for others yet." not in page.content
    assert b"Not signed yet" in page.content


def test_an_account_without_a_practitioner_sees_nothing(client: Client, morning: Morning):
    client.force_login(make.user("new.referrer", Role.REFERRER))
    page = client.get("/portal/")
    assert page.context["rows"] == []
    assert b"no practitioner number yet" in page.content


# -- whose images


def test_the_archive_asks_orders_who_may_see_a_study(morning: Morning):
    assert isinstance(access.policy(), ByOrder)


@pytest.mark.parametrize("role", [Role.CLERK, Role.TECHNOLOGIST, Role.RADIOLOGIST, Role.ADMINISTRATOR])
def test_staff_sees_every_study(morning: Morning, role: str):
    assert access.scope(make.user("staff", role)).count() == Study.objects.count()


def test_a_referrer_sees_the_studies_of_own_orders_only(morning: Morning):
    mine = set(access.scope(morning.referrer))
    wanted = {
        match.study
        for order in (morning.order, morning.reported)
        for match in make.procedure(order).matches.all()
    }
    assert wanted < mine and len(mine) == 3
    assert all(access.may(morning.referrer, study, Action.READ) for study in mine)
    assert not access.may(morning.referrer, morning.unmatched, Action.READ)
    assert not any(access.may(morning.referrer, study, Action.CHANGE) for study in mine)


def test_the_viewer_opens_own_studies_for_a_referrer_and_no_other(client: Client, morning: Morning):
    client.force_login(morning.referrer)
    own = make.procedure(morning.reported).matches.get().study
    assert client.get(f"/viewer/?study={own.pk}&embed=1").status_code == 200
    assert client.get(f"/viewer/?study={morning.unmatched.pk}&embed=1").status_code == 404


def test_an_undone_link_takes_the_study_from_the_referrer(morning: Morning):
    from common.store import unit_of_work
    from ris.reconciliation import cases

    study = make.procedure(morning.reported).matches.get().study
    assert access.may(morning.referrer, study, Action.READ)
    with unit_of_work("user:1") as unit:
        cases.unlink(study.pk, morning.clerk, unit)
    assert not access.may(morning.referrer, study, Action.READ)


def test_analysts_strangers_and_nobody_see_no_images(morning: Morning):
    for who in (make.user("an", Role.ANALYST), make.user("new", Role.REFERRER), AnonymousUser()):
        assert not access.scope(who).exists()
