"""C-FIND: every kind of matching of PS3.4 annex K, and who is told of what."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword

from common.clock import now
from common.models import Alert, AuditEvent
from common.store import unit_of_work
from pacs.dimse import status
from pacs.dimse.registry import Refused
from ris.models import ScheduledProcedureStep, Station
from ris.services import merging, steps
from tests.ris.making import group, place, register, who
from tests.worklist.asking import ask, found, query, request_for
from worklist import projection, scp
from worklist.models import QueryLog, WorklistItem

pytestmark = pytest.mark.django_db


def at(text: str) -> datetime:
    """`0310 0800` in March 2026, UTC."""
    return datetime.strptime(f"2026{text}", "%Y%m%d %H%M").replace(tzinfo=UTC)


@pytest.fixture
def ward() -> None:
    """Five steps of three patients."""
    place(
        group(
            accession="A1",
            rp="RP1",
            sps="S1",
            uid="1.2.1",
            start=at("0310 0800"),
            scheduled_station_ae_titles=["CT01"],
            scheduled_station_names=["Tunnel 1", "Spare"],
            comments="50% of_dose",
            protocol_codes=[{"code_value": "HEAD", "coding_scheme_designator": "99X", "code_meaning": "h"}],
        ),
        group(accession="A2", rp="RP2", sps="S2", uid="1.2.2", start=at("0310 1015"), modality="MR"),
        patient=who("100", name="Meyer^Anna", birth="19700101"),
    )
    place(
        group(
            accession="A3",
            rp="RP3",
            sps="S3",
            uid="1.2.3",
            start=at("0311 0600"),
            scheduled_station_ae_titles=["CT01", "CT02"],
        ),
        patient=who("200", name="Yamada^Tarou=山田^太郎=やまだ^たろう", birth="19800202"),
    )
    place(
        group(accession="A4", rp="RP4", sps="S4", uid="1.2.4", start=at("0312 2300"), modality="US"),
        group(accession="A5", rp="RP4", sps="S5", uid="1.2.5", start=at("0313 1200")),
        patient=who("300", name="Müller-Lüdenscheidt^Karl^^Dr.", birth="19600303"),
    )


ALL = ["A1", "A2", "A3", "A4", "A5"]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, ALL),
        ({"PatientID": "100"}, ["A1", "A2"]),
        ({"PatientID": " 100 "}, ["A1", "A2"]),
        ({"PatientID": "10*"}, []),
        ({"PatientID": "*"}, ALL),
        ({"AccessionNumber": "A3"}, ["A3"]),
        ({"AccessionNumber": "a3"}, []),
        ({"AccessionNumber": "A?"}, ALL),
        ({"AccessionNumber": "A\\A1"}, ["A1"]),
        ({"RequestedProcedureID": "RP4"}, ["A4", "A5"]),
        ({"StudyInstanceUID": "1.2.2"}, ["A2"]),
        ({"StudyInstanceUID": ["1.2.1", "1.2.4", "9.9"]}, ["A1", "A4"]),
        ({"PatientBirthDate": "19700101-19800202"}, ["A1", "A2", "A3"]),
        ({"PatientSex": "F"}, ALL),
        ({"PatientSex": "M"}, []),
        ({"IssuerOfPatientID": "HOSP"}, ALL),
        ({"RequestedProcedurePriority": "ROUTINE"}, ALL),
        ({"RequestedProcedureDescription": "CT*exam"}, ALL),
        ({"MedicalAlerts": "Pacemaker"}, []),
        ({"PregnancyStatus": 4}, []),
        ({"PregnancyStatus": 0}, ALL),
        # names
        ({"PatientName": "MEYER^ANNA"}, ["A1", "A2"]),
        ({"PatientName": "meyer^anna^^"}, ["A1", "A2"]),
        ({"PatientName": "mey*"}, ["A1", "A2"]),
        ({"PatientName": "M?yer^*"}, ["A1", "A2"]),
        ({"PatientName": "meyer"}, []),
        ({"PatientName": "*ner*"}, []),
        ({"PatientName": "Muller-Ludenscheidt*"}, ["A4", "A5"]),
        ({"PatientName": "山田*"}, ["A3"]),
        ({"PatientName": "=山田^太郎"}, ["A3"]),
        ({"PatientName": "==やまだ*"}, ["A3"]),
        ({"PatientName": "yamada^tarou=山田^太郎"}, ["A3"]),
        ({"PatientName": "山?^太郎"}, ["A3"]),
        ({"PatientName": "me%er*"}, []),
        ({"PatientName": "me_er*"}, []),
        ({"PatientName": "[m]eyer*"}, []),
    ],
)
def test_keys_of_patient_and_order(ward: None, keys: dict[str, Any], expected: list[str]) -> None:
    ds = query(**keys)
    if any("山" in str(v) or "や" in str(v) for v in keys.values()):
        ds.SpecificCharacterSet = "ISO_IR 192"
    assert found(ds) == expected


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ({"Modality": "CT"}, ["A1", "A3", "A5"]),
        ({"Modality": "ct"}, ["A1", "A3", "A5"]),
        ({"Modality": ["MR", "US"]}, ["A2", "A4"]),
        ({"ScheduledStationAETitle": "CT01"}, ["A1", "A3"]),
        ({"ScheduledStationAETitle": "CT02"}, ["A3"]),
        ({"ScheduledStationAETitle": "ct02"}, []),
        ({"ScheduledStationAETitle": "CT0*"}, []),
        ({"ScheduledStationName": "Tunnel*"}, ["A1"]),
        ({"ScheduledStationName": "Spare"}, ["A1"]),
        ({"ScheduledProcedureStepID": "S2"}, ["A2"]),
        ({"ScheduledProcedureStepStatus": "SCHEDULED"}, ALL),
        ({"CommentsOnTheScheduledProcedureStep": "50% of_*"}, ["A1"]),
        ({"CommentsOnTheScheduledProcedureStep": "50_*"}, []),
        ({"CommentsOnTheScheduledProcedureStep": "*"}, ALL),
        # dates and times
        ({"ScheduledProcedureStepStartDate": "20260310"}, ["A1", "A2"]),
        ({"ScheduledProcedureStepStartDate": "20260311-"}, ["A3", "A4", "A5"]),
        ({"ScheduledProcedureStepStartDate": "-20260310"}, ["A1", "A2"]),
        ({"ScheduledProcedureStepStartDate": "20260312-20260310"}, []),
        ({"ScheduledProcedureStepStartTime": "1015"}, ["A2"]),
        ({"ScheduledProcedureStepStartTime": "101500.0"}, ["A2"]),
        ({"ScheduledProcedureStepStartTime": "10-12"}, ["A2", "A5"]),
        ({"ScheduledProcedureStepStartTime": "-0800"}, ["A1", "A3"]),
        (
            {
                "ScheduledProcedureStepStartDate": "20260310-20260312",
                "ScheduledProcedureStepStartTime": "1000-0700",
            },
            ["A2", "A3"],
        ),
        (
            {
                "ScheduledProcedureStepStartDate": "20260311-",
                "ScheduledProcedureStepStartTime": "070000-",
            },
            ["A4", "A5"],
        ),
        (
            {"ScheduledProcedureStepStartDate": "20260310", "ScheduledProcedureStepStartTime": "10-12"},
            ["A2"],
        ),
    ],
)
def test_keys_of_the_step(ward: None, step: dict[str, Any], expected: list[str]) -> None:
    assert found(query(step=step)) == expected


def test_keys_inside_a_code_sequence(ward: None) -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "HEAD", "99X"
    assert found(query(step={"ScheduledProtocolCodeSequence": [code]})) == ["A1"]
    code.CodingSchemeDesignator = "99Y"
    assert found(query(step={"ScheduledProtocolCodeSequence": [code]})) == []
    code.CodeValue, code.CodingSchemeDesignator = "CTHEAD", ""
    assert found(query(RequestedProcedureCodeSequence=[code])) == ALL


def test_answers_come_by_their_start(ward: None) -> None:
    assert [str(a.AccessionNumber) for a in ask(query())] == ALL


def answers(ds: Dataset, **kwargs: Any) -> list[int]:
    """The status of each answer."""
    return [code for code, _ in scp.find(request_for(ds, **kwargs))]


def test_an_unsupported_optional_key_is_said_and_ignored_and_an_unknown_one_is_ignored(ward: None) -> None:
    assert answers(query(PatientComments="x")) == [0xFF01] * 5
    assert answers(query(StudyDate="20200101")) == [0xFF01] * 5
    ds = query(QueryRetrieveLevel="STUDY")
    ds.add_new(0x00091001, "LO", "private")
    assert answers(ds) == [0xFF00] * 5
    assert "QueryRetrieveLevel" not in ask(ds)[0]


@pytest.mark.parametrize(
    ("ds", "offending", "options"),
    [
        (query(step={"ScheduledProcedureStepStartTime": "25"}), "ScheduledProcedureStepStartTime", {}),
        (query(step={"ScheduledProcedureStepStartDate": "20261340"}), "ScheduledProcedureStepStartDate", {}),
        (query(step={"ScheduledProcedureStepStartDate": "2026*"}), "ScheduledProcedureStepStartDate", {}),
        (query(TimezoneOffsetFromUTC="Berlin"), "TimezoneOffsetFromUTC", {}),
        (query(step={"Modality": "ct"}), "Modality", {"strict": True}),
        (query(step={"Modality": ["CT", "MR"]}), "Modality", {"strict": True}),
        (query(step={"ScheduledStationAETitle": ["A", "B"]}), "ScheduledStationAETitle", {"strict": True}),
        (
            query(step={"ScheduledProcedureStepStartDate": "2026.03.10"}),
            "ScheduledProcedureStepStartDate",
            {"strict": True},
        ),
    ],
)
def test_what_cannot_be_matched_is_refused_with_the_element(
    ds: Dataset, offending: str, options: dict[str, Any]
) -> None:
    with pytest.raises(Refused) as refusal:
        ask(ds, options={"worklist": options})
    assert refusal.value.status == status.DATA_SET_MISMATCH
    assert refusal.value.elements == {"OffendingElement": [tag_for_keyword(offending)]}
    assert QueryLog.objects.get().status == status.DATA_SET_MISMATCH


def test_two_items_in_the_step_sequence(ward: None) -> None:
    ds = query(step={"Modality": "MR"})
    ds.ScheduledProcedureStepSequence.append(Dataset())
    assert found(ds) == ["A2"]
    assert "items after the first" in " ".join(QueryLog.objects.get().notes)
    with pytest.raises(Refused):
        ask(ds, options={"worklist": {"strict": True}})


def test_a_tolerant_reading_is_noted(ward: None) -> None:
    assert found(query(step={"ScheduledProcedureStepStartDate": "2026.03.10"})) == ["A1", "A2"]
    assert QueryLog.objects.get().notes == ["ScheduledProcedureStepStartDate: read tolerantly"]


def test_wildcards_on_single_values_are_a_scanner_s_option(ward: None) -> None:
    options = {"worklist": {"wildcards": True}}
    assert found(query(PatientID="1*"), options=options) == ["A1", "A2"]
    assert found(query(step={"ScheduledStationAETitle": "CT0?"}), options=options) == ["A1", "A3"]


# -- visibility


def test_a_step_that_has_begun_is_hidden_unless_its_status_is_named(ward: None) -> None:
    step = ScheduledProcedureStep.objects.get(scheduled_procedure_step_id="S1")
    with unit_of_work("user:1") as unit:
        steps.move(step.id, "STARTED", "clerk", unit)
    assert found(query()) == ALL[1:]
    assert found(query(step={"ScheduledProcedureStepStatus": "STARTED"})) == ["A1"]
    assert found(query(), options={"worklist": {"statuses": ["STARTED"]}}) == ["A1"]
    with unit_of_work("user:1") as unit:
        steps.move(step.id, "SCHEDULED", "clerk", unit)
    assert found(query()) == ALL


def test_what_is_canceled_is_hidden(ward: None) -> None:
    from ris.commands import OrderAction

    place(group(OrderAction.CANCEL, accession="A3", detail=False), patient=who("200"))
    assert found(query()) == ["A1", "A2", "A4", "A5"]
    assert found(query(step={"ScheduledProcedureStepStatus": "CANCELED"})) == ["A3"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"see": "own"}, ["A1", "A3"]),
        ({"see": "own", "unassigned": True}, ALL),
        ({"see": "group", "titles": ["CT02"]}, ["A1", "A3"]),
        ({"see": "room"}, ["A1", "A3"]),
        ({"see": "modality"}, ["A1", "A3", "A5"]),
        ({"see": "modality", "modalities": ["MR", "US"]}, ["A2", "A4"]),
        ({"see": "all"}, ALL),
        ({"see": "nonsense"}, ALL),
    ],
)
def test_a_rule_says_which_steps_a_scanner_sees(
    ward: None, options: dict[str, Any], expected: list[str]
) -> None:
    Station.objects.create(name="Tunnel 1", ae_title="CT01", modality="CT", room="4")
    Station.objects.create(name="Tunnel 2", ae_title="CT02", modality="CT", room="4")
    assert found(query(), options={"worklist": options}, ae="CT01") == expected


def test_a_step_without_station_answers_the_scanner_s_own_title_where_the_site_says_so(ward: None) -> None:
    ds = query(step={"ScheduledStationAETitle": "MR07", "Modality": "MR"})
    assert found(ds, ae="MR07") == []
    assert found(ds, ae="MR07", options={"worklist": {"unassigned": True}}) == ["A2"]


def test_the_day_window_bounds_a_query_that_names_no_date() -> None:
    today = now().replace(hour=12, minute=0)
    for number, days in enumerate((-3, 0, 3)):
        place(group(accession=f"D{number}", start=today + timedelta(days=days)), patient=who(f"50{number}"))
    window = {"worklist": {"days_before": 1, "days_after": 1}}
    assert found(query(), options=window) == ["D1"]
    assert found(query(), options={"worklist": {"days_after": 1}}) == ["D0", "D1"]
    day = f"{today + timedelta(days=3):%Y%m%d}"
    assert found(query(step={"ScheduledProcedureStepStartDate": day}), options=window) == ["D2"]


# -- time zones


def test_dates_are_the_site_s_unless_the_query_or_the_scanner_has_another_zone(settings: Any) -> None:
    settings.TIME_ZONE = "Europe/Berlin"
    place(group(accession="Z1", start=datetime(2026, 3, 10, 23, 30, tzinfo=UTC)))
    step = {"ScheduledProcedureStepStartDate": "20260311", "ScheduledProcedureStepStartTime": ""}
    (answer,) = ask(query(step=step))
    assert answer.ScheduledProcedureStepSequence[0].ScheduledProcedureStepStartTime == "003000"
    utc = query(TimezoneOffsetFromUTC="+0000", step={**step, "ScheduledProcedureStepStartDate": "20260310"})
    (answer,) = ask(utc)
    assert answer.ScheduledProcedureStepSequence[0].ScheduledProcedureStepStartTime == "233000"
    assert answer.TimezoneOffsetFromUTC == "+0000"
    tokyo = {"worklist": {"timezone": "Asia/Tokyo"}}
    step["ScheduledProcedureStepStartTime"] = "0830"
    (answer,) = ask(query(step=step), options=tokyo)
    assert answer.ScheduledProcedureStepSequence[0].ScheduledProcedureStepStartDate == "20260311"
    assert ask(query(step={"ScheduledProcedureStepStartDate": "20260310"}), options=tokyo) == []
    west = query(TimezoneOffsetFromUTC="-0330", step={"ScheduledProcedureStepStartTime": "200000"})
    assert len(ask(west)) == 1


# -- keeping true


def test_an_item_follows_its_patient_its_order_and_a_merge() -> None:
    register(who("1", name="Alt^A", facts_at=at("0301 0800")))
    register(who("2", name="Neu^B", facts_at=at("0301 0800")))
    place(group(accession="M1", scheduled_station_ae_titles=["CT01"]), patient=who("1", authoritative=False))
    register(who("1", name="Anders^A", facts_at=at("0302 0800")))
    assert found(query(PatientName="anders*")) == ["M1"]
    assert found(query(PatientName="alt*")) == []
    from ris.commands import Identifier, MergePatients

    with unit_of_work("hl7:9") as unit:
        merging.merge(MergePatients(who("2", name="Neu^B"), (Identifier("1", "HOSP"),)), unit)
    (answer,) = ask(query(PatientID="2", IssuerOfPatientID=""))
    assert (str(answer.PatientName), answer.AccessionNumber) == ("Neu^B", "M1")
    from ris.commands import OrderAction

    place(
        group(OrderAction.CHANGE, accession="M1", modality="MR", scheduled_station_ae_titles=["MR01"]),
        patient=who("2", authoritative=False),
    )
    assert found(query(step={"Modality": "MR", "ScheduledStationAETitle": "MR01"})) == ["M1"]
    assert found(query(step={"Modality": "CT"})) == []


def test_everything_can_be_made_again_from_the_department_s_own_rows(ward: None) -> None:
    before = {i.pk: (bytes(i.answer), i.patient_name_search, i.start) for i in WorklistItem.objects.all()}
    WorklistItem.objects.all().delete()
    assert projection.rebuild() == 5
    after = {i.pk: (bytes(i.answer), i.patient_name_search, i.start) for i in WorklistItem.objects.all()}
    assert after == before


def test_items_of_steps_that_ended_long_ago_are_pruned(ward: None) -> None:
    step = ScheduledProcedureStep.objects.get(scheduled_procedure_step_id="S1")
    with unit_of_work("user:1", at=now() - timedelta(days=40)) as unit:
        steps.move(step.id, "COMPLETED", "clerk", unit)
    assert projection.prune() == 1
    assert projection.rebuild() == 4


# -- remembering, limits


def test_every_query_is_remembered_and_a_repeat_counts_on_its_row(ward: None) -> None:
    ds = query(PatientID="100", step={"Modality": "CT"})
    ask(ds)
    ask(ds)
    row = QueryLog.objects.get()
    assert (row.ae_title, row.times, row.count) == ("CT01", 2, 1)
    assert row.keys == [["PatientID", "100"], ["ScheduledProcedureStepSequence > Modality", "CT"]]
    assert row.item_ids == [WorklistItem.objects.get(accession_number="A1").pk]
    audit = AuditEvent.objects.get(action="search", what="worklist")
    assert (audit.actor, len(audit.patient_ids)) == ("ae:CT01", 1)
    ask(query(PatientID="nobody"))
    assert QueryLog.objects.count() == 2
    assert AuditEvent.objects.filter(what="worklist").count() == 1


def test_an_answer_longer_than_its_limit_is_cut_off_and_an_operator_hears_of_it(ward: None) -> None:
    options = {"worklist": {"limit": 2}}
    answers_ = scp.find(request_for(query(), options=options))
    assert [code for code, _ in (next(answers_), next(answers_))] == [0xFF00] * 2
    with pytest.raises(Refused) as refusal:
        next(answers_)
    assert refusal.value.status == status.OUT_OF_RESOURCES
    assert QueryLog.objects.get().count == 2
    assert Alert.objects.get().key == "worklist:limit:CT01"
    options["worklist"]["limit_status"] = "success"
    assert len(ask(query(), options=options)) == 2


def test_a_cancelled_query_is_remembered_as_such(ward: None) -> None:
    answers_ = scp.find(request_for(query()))
    next(answers_)
    answers_.close()
    row = QueryLog.objects.get()
    assert (row.status, row.count) == (status.CANCELLED, 1)


def test_what_waits_for_a_person_is_counted(ward: None) -> None:
    from worklist import metrics

    assert metrics.items() == 5
    (withheld,) = metrics.withheld()
    assert withheld.count == 0
    place(group(accession="W1"), patient=who("9" * 70))
    (withheld,) = metrics.withheld()
    assert (withheld.count, withheld.age_seconds >= 0) == (1, True)
    ask(query())
    assert [labels for labels, _ in metrics.query_age()] == [("CT01",)]


def test_queries_are_let_go_when_old_or_too_many(ward: None) -> None:
    from worklist import querylog

    for number in range(4):
        ask(query(PatientID=f"{number}"))
    QueryLog.objects.filter(pk=QueryLog.objects.earliest("pk").pk).update(last_at=now() - timedelta(days=20))
    assert querylog.prune() == 1
    querylog.KEEP_ROWS, before = 2, querylog.KEEP_ROWS
    try:
        assert querylog.prune() == 1
    finally:
        querylog.KEEP_ROWS = before
    assert QueryLog.objects.count() == 2


def test_the_command_makes_everything_again(ward: None) -> None:
    from io import StringIO

    from django.core.management import call_command

    out = StringIO()
    WorklistItem.objects.all().delete()
    call_command("worklist", "rebuild", stdout=out)
    assert "5 worklist items" in out.getvalue()
