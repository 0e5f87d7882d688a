"""The desk: every page opens, leaves its audit row, keeps names out of addresses, and changes through services."""

from typing import Any

import pytest
from django.contrib import admin
from django.test import Client

from common.models import ApiToken, AuditEvent
from common.roles import Role, bearer
from integration import solving
from integration.describe import describe
from integration.models import Message, MessageIdentity, OutboxItem
from pacs.models import SetAside
from ris.models import (
    ImagingServiceRequest,
    Patient,
    PatientMerge,
    ReconciliationCase,
    ScheduledProcedureStep,
)
from tests import factories as make
from tests.pages.morning import Morning, begin

pytestmark = pytest.mark.django_db


@pytest.fixture
def morning() -> Morning:
    """A department at work."""
    return begin()


@pytest.fixture
def clerk(client: Client, morning: Morning) -> Client:
    """A clerk at the desk."""
    client.force_login(morning.clerk)
    return client


def test_every_list_and_every_first_row_opens_for_an_administrator(client: Client, morning: Morning):
    client.force_login(make.user("ada", Role.ADMINISTRATOR))
    opened = 0
    for model, model_admin in admin.site._registry.items():
        base = f"/admin/{model._meta.app_label}/{model._meta.model_name}/"
        page = client.get(base)
        assert page.status_code == 200, base
        assert "<title>Select " not in page.content.decode(), base
        row = model._default_manager.first()
        if row is not None:
            detail = client.get(f"{base}{row.pk}/change/")
            assert detail.status_code in (200, 302), base
            opened += 1
        if model_admin.writable:
            assert client.get(f"{base}add/").status_code in (200, 403), base
    assert opened > 15


def test_a_patients_page_leaves_an_audit_row_that_names_the_patient_by_its_row(
    clerk: Client, morning: Morning
):
    patient = morning.order.patient
    clerk.get(f"/admin/ris/patient/{patient.pk}/change/")
    seen = AuditEvent.objects.filter(actor=f"user:{morning.clerk.pk}", action="read", what="patient").get()
    assert seen.patient_ids == [str(patient.pk)]
    assert "Sommer" not in str(seen.detail)


@pytest.mark.parametrize(
    ("page", "what"),
    [
        ("ris/imagingservicerequest", "order"),
        ("ris/patient", "patient"),
        ("ris/scheduledprocedurestep", "step"),
        ("pacs/study", "study"),
        ("integration/message", "message"),
        ("integration/outboxitem", "delivery"),
    ],
)
def test_a_list_of_patient_data_leaves_an_audit_row_with_all_patients_shown(
    clerk: Client, morning: Morning, page: str, what: str
):
    clerk.get(f"/admin/{page}/")
    seen = AuditEvent.objects.filter(action="list", what=what).get()
    assert len(seen.patient_ids) > 1


def test_a_search_puts_no_name_into_the_address(clerk: Client, morning: Morning):
    answer = clerk.post("/admin/ris/patient/", {"_search": "Sommer"})
    assert answer.status_code == 302
    assert "ommer" not in answer["Location"]
    found = clerk.get(answer["Location"])
    assert [str(p) for p in found.context["cl"].result_list] == ["Clara Sommer"]
    assert b'value="Sommer"' in found.content
    assert AuditEvent.objects.filter(
        action="search", what="patient", actor=f"user:{morning.clerk.pk}"
    ).exists()


def test_a_search_of_somebody_elses_session_finds_everything_and_says_so(clerk: Client, morning: Morning):
    page = clerk.get("/admin/ris/patient/?q=~stolen", follow=True)
    assert b"no longer known" in page.content
    assert page.context["cl"].result_count == Patient.objects.count()


@pytest.mark.parametrize("term", ["4711", "sommer", "clara som", "SOMMER"])
def test_patients_are_found_by_number_and_by_parts_of_their_name(clerk: Client, morning: Morning, term: str):
    page = clerk.post("/admin/ris/patient/", {"_search": term}, follow=True)
    assert [str(p) for p in page.context["cl"].result_list] == ["Clara Sommer"]


def test_a_clerk_corrects_a_name_and_the_study_follows(clerk: Client, morning: Morning):
    patient = morning.reported.patient
    answer = clerk.post(
        f"/admin/ris/patient/{patient.pk}/correct/",
        {"family_name": "Beck-Winter", "given_name": "Anton", "birth_date": "1987-11-03", "sex": "M"},
    )
    assert answer.status_code == 302
    patient.refresh_from_db()
    assert patient.patient_name == "Beck-Winter^Anton"
    assert patient.cause == f"user:{morning.clerk.pk}"
    study = make.procedure(morning.reported).matches.get().study
    assert study.patient_name == "Beck-Winter^Anton"


def test_a_known_identifier_is_not_registered_twice(clerk: Client, morning: Morning):
    known = morning.order.patient.identifiers.get()
    answer = clerk.post(
        "/admin/ris/patient/add/",
        {"family_name": "Else", "identifier": known.value, "authority": str(known.authority_id)},
    )
    assert answer.status_code == 200
    assert b"registered already" in answer.content
    assert not Patient.objects.filter(patient_name="Else").exists()


def test_canceling_an_order_cancels_its_steps(clerk: Client, morning: Morning):
    clerk.post(f"/admin/ris/imagingservicerequest/{morning.unscheduled.pk}/end/cancel/")
    morning.unscheduled.refresh_from_db()
    assert morning.unscheduled.status == "CANCELED"
    steps = ScheduledProcedureStep.objects.filter(procedure__request=morning.unscheduled)
    assert {s.status for s in steps} == {"CANCELED"}


def test_hold_and_release_go_there_and_back(clerk: Client, morning: Morning):
    base = f"/admin/ris/imagingservicerequest/{morning.unscheduled.pk}/end"
    clerk.post(f"{base}/hold/")
    morning.unscheduled.refresh_from_db()
    assert morning.unscheduled.status == "HELD"
    clerk.post(f"{base}/release/")
    morning.unscheduled.refresh_from_db()
    assert morning.unscheduled.status == "ACTIVE"


def test_what_a_service_refuses_is_said_on_the_page_and_changes_nothing(clerk: Client, morning: Morning):
    step = make.procedure(morning.reported).steps.get()
    answer = clerk.post(
        f"/admin/ris/scheduledprocedurestep/{step.pk}/schedule/", {"start": "2027-01-01T08:00"}, follow=True
    )
    assert b"cannot be scheduled" in answer.content
    before = step.start
    step.refresh_from_db()
    assert step.start == before


def test_an_action_leads_back_to_our_own_pages_only(clerk: Client, morning: Morning):
    step = make.procedure(morning.unscheduled).steps.get()
    url = f"/admin/ris/scheduledprocedurestep/{step.pk}/move/"
    answer = clerk.post(url, {"status": "ARRIVED", "back": "https://elsewhere.example/"})
    assert answer["Location"] == f"/admin/ris/scheduledprocedurestep/{step.pk}/change/"


def test_a_technologist_moves_steps_and_writes_no_orders(client: Client, morning: Morning):
    client.force_login(make.user("tom", Role.TECHNOLOGIST))
    step = make.procedure(morning.unscheduled).steps.get()
    assert (
        client.post(f"/admin/ris/scheduledprocedurestep/{step.pk}/move/", {"status": "ARRIVED"}).status_code
        == 302
    )
    step.refresh_from_db()
    assert step.status == "ARRIVED"
    assert client.get("/admin/ris/imagingservicerequest/add/").status_code == 403
    ending = f"/admin/ris/imagingservicerequest/{morning.unscheduled.pk}/end/cancel/"
    assert client.post(ending).status_code == 403


def test_a_merge_is_undone_from_the_survivors_page(clerk: Client, morning: Morning):
    make.message(
        "MSH|^~\\&|HIS|HOSP|ORDERLY|RAD|20260302||ADT^A40^ADT_A39|MERGE1|P|2.5.1",
        "EVN|A40|20260302",
        "PID|1||4711^^^HOSP^MR||Sommer^Clara||19600512|F",
        "MRG|4714^^^HOSP^MR",
    )
    merge = PatientMerge.objects.get()
    page = clerk.get(f"/admin/ris/patient/{merge.survivor_id}/change/")
    assert b"Ruth Keller" in page.content
    clerk.post(f"/admin/ris/patient/merge/{merge.pk}/undo/")
    merge.refresh_from_db()
    assert merge.undone_at is not None and merge.undone_cause == f"user:{morning.clerk.pk}"


def test_a_dismissed_case_leaves_the_list_and_comes_back(clerk: Client, morning: Morning):
    case = ReconciliationCase.objects.get()
    clerk.post(f"/admin/ris/reconciliationcase/{case.pk}/dismiss/")
    assert clerk.get("/admin/ris/reconciliationcase/").context["cl"].result_count == 0
    clerk.post(f"/admin/ris/reconciliationcase/{case.pk}/reopen/")
    assert clerk.get("/admin/ris/reconciliationcase/").context["cl"].result_count == 1


def test_actions_are_not_for_get(clerk: Client, morning: Morning):
    case = ReconciliationCase.objects.get()
    assert clerk.get(f"/admin/ris/reconciliationcase/{case.pk}/dismiss/").status_code == 405


# -- messages


def test_open_messages_stand_before_all_others(clerk: Client, morning: Morning):
    rows = clerk.get("/admin/integration/message/").context["found"].rows
    assert rows[0].state == "refused"
    assert rows[1].state == "applied"


@pytest.mark.parametrize("term", ["M00101", "A26-1050", "ORM^O01", "ORM"])
def test_messages_are_found_by_control_id_accession_and_type(clerk: Client, morning: Morning, term: str):
    page = clerk.post("/admin/integration/message/", {"_search": term}, follow=True)
    assert "M00101" in [m.control_id for m in page.context["found"].rows]


def test_a_refused_message_is_applied_again_after_its_order_came(clerk: Client, morning: Morning):
    row = Message.objects.get(state="refused")
    again = f"/admin/integration/message/{row.pk}/again/"
    assert b"Still refused" in clerk.post(again, follow=True).content
    make.message(
        "MSH|^~\\&|HIS|HOSP|ORDERLY|RAD|20260302||ORM^O01^ORM_O01|LATE1|P|2.3.1",
        "PID|1||4714^^^HOSP^MR||Keller^Ruth||19510830|F",
        "ORC|NW|P-99999^HIS",
        "OBR|1|P-99999^HIS||MRHEAD^MR of the head^L",
    )
    assert b"The message is applied." in clerk.post(again, follow=True).content
    row.refresh_from_db()
    assert (row.state, row.solved_by) == ("applied", f"user:{morning.clerk.pk}")
    assert ImagingServiceRequest.objects.get(placer_order_number="P-99999").status == "CANCELED"
    identity = MessageIdentity.objects.get(message_id=row.pk)
    assert identity.accepted and b"MSA|AA|M00100" in bytes(identity.ack)
    with pytest.raises(solving.NotOpen):
        solving.apply_again(row.pk, "user:1", "")


def test_a_message_is_not_skipped_without_a_reason(clerk: Client, morning: Morning):
    row = Message.objects.get(state="refused")
    clerk.post(f"/admin/integration/message/{row.pk}/skip/", {"reason": " "})
    row.refresh_from_db()
    assert row.state == "refused"
    clerk.post(f"/admin/integration/message/{row.pk}/skip/", {"reason": "withdrawn"})
    row.refresh_from_db()
    assert (row.state, row.solved_reason) == ("skipped", "withdrawn")


def test_a_message_is_described_by_the_names_of_the_standard():
    raw = (
        b"MSH|^~\\&|HIS|HOSP|ORDERLY|RAD|20260302||ORM^O01|1|P|2.3.1\r"
        b"PID|1||4711^^^HOSP^MR~99^^^GOV^SS||M\\T\\S^Clara\r"
        b"ORC|CA|P1^HIS\r"
        b"ZDS|1.2.3^HIS^Application^DICOM"
    )
    segments = describe(raw, ("ORC^1^2",))
    told = {f.place: (f.name, f.value) for s in segments for f in s.fields}
    assert told["MSH-9.1"] == ("Message type: Message type", "ORM")
    assert told["PID-3(2).4"][1] == "GOV"
    assert told["PID-5.1"] == ("Patient name: Family last name", "M&S")
    assert told["ORC-1"] == ("Order control", "CA")
    assert next(f.meaning for s in segments for f in s.fields if f.place == "ORC-1") == "cancel order"
    assert told["ZDS-1.1"][1] == "1.2.3"
    wrong = [f.place for s in segments for f in s.fields if f.wrong]
    assert wrong == ["ORC-2.1", "ORC-2.2"]


@pytest.mark.parametrize(
    "raw", [b"", b"\x00\xff\xfe", b"GET / HTTP/1.1\r\n\r\n", b"MSH|", b"MSH|^~\\&|\xff\xff"]
)
def test_bytes_that_are_no_message_are_shown_as_they_are(raw: bytes):
    assert all(isinstance(s.raw, str) for s in describe(raw))


def test_an_empty_place_that_is_wrong_is_shown_as_empty():
    segments = describe(b"MSH|^~\\&|A|B|C|D|20260302||ADT^A08|1|P|2.5\rPID|1", ("PID^1^3",))
    wrong = [(f.place, f.value) for s in segments for f in s.fields if f.wrong]
    assert wrong == [("PID-3", "(empty)")]


def test_a_parked_delivery_is_composed_anew_and_sent_again(clerk: Client, morning: Morning):
    item = OutboxItem.objects.first()
    assert item is not None
    OutboxItem.objects.filter(pk=item.pk).update(state="parked", attempts=3, payload=b"old")
    clerk.post(f"/admin/integration/outboxitem/{item.pk}/do/compose/")
    item.refresh_from_db()
    assert (item.state, item.payload, item.attempts) == ("queued", None, 0)
    clerk.post(f"/admin/integration/outboxitem/{item.pk}/do/skip/")
    item.refresh_from_db()
    assert item.state == "skipped"


def test_an_object_set_aside_is_tried_again_and_left(clerk: Client, morning: Morning):
    row = SetAside.objects.get()
    page = clerk.post(f"/admin/pacs/setaside/{row.pk}/again/", follow=True)
    assert b"It still cannot be indexed" in page.content
    clerk.post(f"/admin/pacs/setaside/{row.pk}/leave/")
    row.refresh_from_db()
    assert row.state == "solved" and row.solved_at is not None
    assert clerk.get("/admin/pacs/setaside/").context["cl"].result_count == 0


# -- the house


def test_a_token_is_shown_once_and_works_until_revoked(client: Client):
    client.force_login(make.user("ada", Role.ADMINISTRATOR))
    page = client.post("/admin/common/apitoken/add/", {"name": "viewer", "role": "radiologist", "days": "30"})
    text = page.context["token"]
    token = ApiToken.objects.get()
    assert bearer(text) == token
    assert text.encode() not in client.get(f"/admin/common/apitoken/{token.pk}/change/").content
    client.post(f"/admin/common/apitoken/{token.pk}/revoke/")
    assert bearer(text) is None


def test_an_administrator_gives_roles_and_cannot_make_superusers(client: Client):
    from django.contrib.auth.models import Group, User

    client.force_login(make.user("ada", Role.ADMINISTRATOR))
    someone = make.user("someone")
    group = Group.objects.get(name=Role.CLERK)
    client.post(
        f"/admin/auth/user/{someone.pk}/change/",
        {
            "username": "someone",
            "is_active": "on",
            "groups": [group.pk],
            "is_superuser": "on",
            "is_staff": "on",
        },
    )
    someone = User.objects.get(pk=someone.pk)
    assert list(someone.groups.all()) == [group]
    assert not someone.is_superuser and not someone.is_staff


def test_reading_the_audit_trail_is_itself_audited(client: Client):
    ada = make.user("ada", Role.ADMINISTRATOR)
    client.force_login(ada)
    client.get("/admin/common/auditevent/")
    assert AuditEvent.objects.filter(actor=f"user:{ada.pk}", what="audit trail").exists()


def test_the_first_page_counts_what_waits_and_shows_no_patient(clerk: Client, morning: Morning):
    page = clerk.get("/")
    seen: Any = page.context["glance"]
    counts = {line.label: line.count for line in seen.waits + seen.failed}
    assert counts["Unmatched studies"] == 1
    assert counts["Unscheduled steps"] == 1
    assert counts["Unread studies"] == 2
    assert counts["Refused messages"] == 1
    assert counts["Objects set aside"] == 1
    assert seen.oldest.label == "Unread studies"
    assert sum(hour["good"] + hour["bad"] for hour in seen.hours) == Message.objects.count()
    for name in (b"Sommer", b"Keller", b"4711"):
        assert name not in page.content


def test_an_empty_house_says_what_to_do_next(client: Client):
    client.force_login(make.user("ada", Role.ADMINISTRATOR))
    assert b"site load" in client.get("/").content
    assert b"Point a system at our MLLP port" in client.get("/admin/integration/message/").content
    assert b"Everything is read" not in client.get("/").content
