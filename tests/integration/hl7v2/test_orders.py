"""Orders as commands: which field holds what, by default and by a source's profile."""

from datetime import UTC, datetime, timedelta

import pytest

from integration.hl7v2 import orders
from integration.hl7v2.errors import Refused
from integration.hl7v2.reading import parse
from integration.hl7v2.scope import Head
from integration.hl7v2.translate import translate
from integration.sources import compile_profile
from ris.commands import OrderAction, OrderNumber
from tests.integration.hl7v2.making import group, message, msh, orm, pid

NOW = datetime(2026, 3, 1, 12, 0, 5, tzinfo=UTC)


def head_of(raw: bytes, **profile) -> Head:
    return Head(parse(raw), compile_profile(profile, "his"), NOW)


def read(raw: bytes, **profile):
    return orders.read(head_of(raw, **profile)).command


def first(raw: bytes, **profile):
    return read(raw, **profile).groups[0]


def test_keys_stand_where_the_words_of_the_house_say():
    keys = first(
        orm(
            *group("PL1^HIS", filler="FI1^RIS", accession="A1^ISS", procedure_id="RP1", step_id="SP1"),
            "ZDS|1.2.3^A^Application^DICOM",
        )
    ).keys
    assert keys.placer == OrderNumber("PL1", "HIS")
    assert keys.filler == OrderNumber("FI1", "RIS")
    assert (keys.accession_number, keys.issuer_of_accession_number) == ("A1", "ISS")
    assert (keys.requested_procedure_id, keys.scheduled_procedure_step_id) == ("RP1", "SP1")
    assert keys.study_instance_uid == "1.2.3"


def test_an_imaging_order_has_its_keys_in_ipc_and_each_ipc_is_a_step():
    raw = message(
        msh("OMI^O23^OMI_O23"), pid(), "ORC|NW|PL1", "TQ1|1||||||20260302090000||S", "OBR|1|PL1||CT^CT Head^L",
        "IPC|A1|RP1|1.2.3|SP1|CT|P1^Plain^L|ST1|ROOM 1|CT01~CT02", "IPC|A1|RP1|1.2.3|SP2|CT|P2^Contrast^L",
    )  # fmt: skip
    one, two = read(raw).groups
    assert [g.keys.scheduled_procedure_step_id for g in (one, two)] == ["SP1", "SP2"]
    assert one.keys.accession_number == two.keys.accession_number == "A1"
    assert one.keys.study_instance_uid == "1.2.3"
    assert one.step["scheduled_station_ae_titles"] == ["CT01", "CT02"]
    assert one.step["scheduled_station_names"] == ["ST1"]
    assert one.step["scheduled_procedure_step_location"] == "ROOM 1"
    assert one.step["protocol_codes"] == [
        {"code_value": "P1", "coding_scheme_designator": "L", "code_meaning": "Plain"}
    ]
    assert one.procedure["requested_procedure_priority"] == "STAT"


def test_one_zds_serves_every_group_of_its_procedure_and_no_other():
    raw = orm(
        *group("PL1", accession="A1", procedure_id="RP1", step_id="S1"),
        *group("PL1", accession="A1", procedure_id="RP1", step_id="S2"),
        "ZDS|1.2.3^A^Application^DICOM",
        *group("PL2", accession="A1", procedure_id="RP2", step_id="S3"),
    )
    assert [g.keys.study_instance_uid for g in read(raw).groups] == ["1.2.3", "1.2.3", ""]


def test_without_procedure_ids_the_code_tells_procedures_apart():
    raw = orm(
        *group("PL1", accession="A1", code="C1^One^L"),
        *group("PL1", accession="A1", code="C2^Two^L"),
        "ZDS|1.2.3^A^Application^DICOM",
        *group("PL1", accession="A1", code="C2^Two^L"),
    )
    assert [g.keys.study_instance_uid for g in read(raw).groups] == ["", "1.2.3", "1.2.3"]


def test_an_obr_without_an_orc_of_its_own_is_a_group_too():
    segments = [*group("PL1", accession="A1"), "OBR|2|PL1||C2^Two^L||||||||||||||A1"]
    found = read(orm(*segments)).groups
    assert [g.procedure["code_value"] for g in found] == ["CTHEAD", "C2"]
    assert [g.action for g in found] == [OrderAction.NEW, OrderAction.NEW]


def test_an_obr_without_any_orc_is_a_new_order():
    assert first(orm("OBR|1|PL1||C1^One^L")).action is OrderAction.NEW


@pytest.mark.parametrize(
    ("control", "action"),
    [
        ("NW", OrderAction.NEW), ("SN", OrderAction.NEW), ("RO", OrderAction.REPLACEMENT), ("XO", OrderAction.CHANGE),
        ("XX", OrderAction.CHANGE), ("SC", OrderAction.STATUS), ("CA", OrderAction.CANCEL), ("OC", OrderAction.CANCEL),
        ("DC", OrderAction.DISCONTINUE), ("OD", OrderAction.DISCONTINUE), ("HD", OrderAction.HOLD),
        ("OH", OrderAction.HOLD), ("RL", OrderAction.RELEASE), ("OE", OrderAction.RELEASE),
        ("RP", OrderAction.REPLACED), ("RU", OrderAction.REPLACED), ("NA", OrderAction.NUMBER_ASSIGNED),
        ("RE", OrderAction.NOTE), ("OK", OrderAction.NOTE), ("SR", OrderAction.NOTE), ("PA", OrderAction.NOTE),
    ],
)  # fmt: skip
def test_order_controls(control, action):
    assert first(orm(control=control)).action is action


def test_every_order_control_of_the_table_is_known():
    from integration.hl7v2 import tables

    assert set(orders.ACTIONS) == set(tables.ORDER_CONTROL)


@pytest.mark.parametrize(
    ("status", "asked"),
    [
        ("SC", "SCHEDULED"),
        ("IP", "STARTED"),
        ("CM", "COMPLETED"),
        ("CA", "CANCELED"),
        ("DC", "DISCONTINUED"),
        ("HD", "HELD"),
        ("A", ""),
        ("", ""),
    ],
)
def test_order_status(status, asked):
    assert first(orm(control="SC", status=status)).status == asked


def test_an_unknown_order_control_is_refused_where_it_stands():
    with pytest.raises(Refused) as refusal:
        read(orm(*group("PL1"), *group("PL2", control="QQ")))
    assert (int(refusal.value.problem.code), str(refusal.value.problem.location)) == (103, "ORC^2^1")


def test_a_local_order_control_is_mapped_by_the_profile():
    assert first(orm(control="CXL"), control_table={"CXL": "CA"}).action is OrderAction.CANCEL


def test_the_accession_number_is_where_the_profile_says():
    raw = orm(*group("PL1^HIS", filler="FI1^RIS"))
    assert first(raw, accession_number="OBR-18, ORC-3.1, make").keys.accession_number == "FI1"
    assert first(raw, accession_number="OBR-18, 'FIXED'").keys.accession_number == "FIXED"
    assert read(raw, accession_number="OBR-18, refuse").policy.accession_number == "refuse"
    assert read(raw).policy.accession_number == "make"


def test_the_start_is_in_the_zone_of_the_source_or_of_msh_7():
    raw = orm(start="202607020900", sent="20260301120000+0100")
    assert first(raw, timezone="Europe/Berlin").step["start"].astimezone(UTC) == datetime(
        2026, 7, 2, 7, tzinfo=UTC
    )
    assert first(raw).step["start"].astimezone(UTC) == datetime(2026, 7, 2, 8, tzinfo=UTC)
    offset = first(orm(start="202607020900-0530"))
    assert offset.step["start"].astimezone(UTC) == datetime(2026, 7, 2, 14, 30, tzinfo=UTC)
    assert offset.step["timezone_offset_from_utc"] == "-0530"


def test_a_start_without_a_time_is_a_day():
    step = first(orm(start="20260302")).step
    assert step["start_has_time"] is False
    assert f"{step['start']:%Y%m%d}" == "20260302"


def test_no_start_is_no_start():
    assert "start" not in first(orm(start="")).step


def test_a_start_that_is_none_is_refused_where_it_stands():
    with pytest.raises(Refused) as refusal:
        read(orm(start="tomorrow"))
    assert (int(refusal.value.problem.code), str(refusal.value.problem.location)) == (102, "ORC^1^7^1^4")


@pytest.mark.parametrize(
    ("sent", "priority"), [("S", "STAT"), ("A", "HIGH"), ("R", "ROUTINE"), ("T", "MEDIUM"), ("STAT", "STAT")]
)
def test_priorities(sent, priority):
    raw = orm(f"ORC|NW|PL1||||^^^^^{sent}".replace("||||^", "|||||^"), "OBR|1|PL1||C^X^L")
    assert first(raw).procedure["requested_procedure_priority"] == priority


def test_an_unknown_priority_is_noted():
    head = head_of(orm("ORC|NW|PL1|||||^^^^^WHENEVER", "OBR|1|PL1||C^X^L"))
    assert "requested_procedure_priority" not in orders.read(head).command.groups[0].procedure
    assert "ORC^1^7^1^6" in head.warnings[0]


def test_tables_of_the_profile_map_local_codes():
    raw = orm(modality="KT")
    found = first(raw, modality_table={"KT": "CT"}, priority_table={"R": "LOW"})
    assert (found.step["modality"], found.procedure["requested_procedure_priority"]) == ("CT", "LOW")


def test_two_quotes_delete_and_empty_says_nothing():
    deleting = first(orm("ORC|NW|PL1", 'OBR|1|PL1||C^X^L||||||||""|""'))
    assert (deleting.request["patient_state"], deleting.request["medical_alerts"]) == ("", "")
    assert "patient_state" not in first(orm()).request
    ignoring = first(orm("ORC|NW|PL1", 'OBR|1|PL1||C^X^L||||||||""'), null="ignore")
    assert ignoring.request.get("patient_state") in (None, "")


def test_an_ae_title_that_is_none_is_refused_in_ipc_and_passed_over_in_orc_18():
    raw = message(msh("OMI^O23"), pid(), "ORC|NW|PL1", "OBR|1|PL1||C^X^L", "IPC|A1||||||||" + "X" * 17)
    with pytest.raises(Refused) as refusal:
        read(raw)
    assert str(refusal.value.problem.location) == "IPC^1^9"
    entering = orm("ORC|NW|PL1" + "|" * 16 + "A WORKSTATION IN THE EMERGENCY ROOM", "OBR|1|PL1||C^X^L")
    assert "scheduled_station_ae_titles" not in first(entering).step


def test_a_study_instance_uid_that_is_none_is_refused_at_its_place():
    with pytest.raises(Refused) as refusal:
        read(orm(*group(), "ZDS|1.2.x^A^Application^DICOM"))
    assert str(refusal.value.problem.location) == "ZDS^1^1"


def test_a_new_order_without_obr_is_refused_and_a_cancel_without_is_legal():
    with pytest.raises(Refused) as refusal:
        read(orm("ORC|NW|PL1"))
    assert int(refusal.value.problem.code) == 100
    cancel = first(orm("ORC|CA|PL1"))
    assert (cancel.action, cancel.has_detail) == (OrderAction.CANCEL, False)


def test_an_order_for_a_drug_is_none_of_ours():
    assert translate(head_of(orm("ORC|NW|PL1", "RXO|1^Aspirin"))) is None


def test_results_of_earlier_orders_behind_a_second_pid_are_no_orders():
    raw = message(msh("OMG^O19"), pid(), *group("PL1"), pid(), *group("OLD1", control="RE"))
    assert [g.keys.placer.value for g in read(raw).groups] == ["PL1"]
    with pytest.raises(Refused):
        read(message(msh("ORM^O01"), pid(), *group("PL1"), pid(), *group("PL2")))


def test_facts_are_as_old_as_orc_9_where_msh_7_says_anything():
    assert read(orm(placed="202602280800+0000")).facts_at == datetime(2026, 2, 28, 8, tzinfo=UTC)
    assert read(orm()).facts_at == datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert read(orm(placed="202602280800", sent="")).facts_at == NOW
    future = (NOW + timedelta(days=400)).strftime("%Y%m%d%H%M%S")
    assert read(orm(placed=future + "+0000")).facts_at == NOW


def test_weights_and_sizes_come_in_kilograms_and_metres():
    request = first(
        orm(
            *group(),
            "OBX|1|NM|29463-7^Body weight^LN||176|[lb_av]|||||F",
            "OBX|2|NM|8302-2^Height^LN||182|cm|||||F",
        )
    ).request
    assert (request["patient_weight"], request["patient_size"]) == ("79.8323", "1.82")
    assert "patient_weight" not in first(orm(*group(), "OBX|1|NM|29463-7^Body weight^LN||12|stones")).request


def test_a_refusal_of_ris_points_at_the_segment_of_its_group():
    found = orders.read(head_of(orm(*group("PL1"), *group("PL2", accession="X"))))
    assert str(found.locate("accession_number", 1)) == "OBR^2^18"
    assert str(found.locate("accession_number", 0)) == "OBR^1^18"
    assert str(found.locate("order_control", 1)) == "ORC^2^1"
    assert str(found.locate("patient_id", None)) == "PID^1^3"
    assert str(found.locate("nonsense", 1)) == "ORC^1"
