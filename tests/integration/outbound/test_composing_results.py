"""What a result message says, in each style a destination may ask for."""

import hl7
import pytest

from integration.hl7v2 import results, status
from integration.hl7v2.outgoing import ComposeError
from integration.hl7v2.reading import Message, parse
from integration.models import Destination

FACTS = {
    "at": "2026-03-01T10:30:15+00:00",
    "patient": {
        "name": "Müller^Anna^Maria^Dr^Jr=山田",
        "birth_date": "19700101",
        "sex": "F",
        "identifiers": [
            {
                "value": "123",
                "namespace": "HOSP",
                "universal_id": "1.2.3",
                "universal_id_type": "ISO",
                "type_code": "MR",
            },
            {"value": "9", "namespace": "CITY", "universal_id": "", "universal_id_type": "", "type_code": ""},
        ],
    },
    "visit": {"patient_class": "O", "location": "RAD^1", "admission_id": "V100", "issuer": "HOSP"},
    "order": {
        "placer": "PLC1",
        "placer_issuer": "EHR",
        "filler": "FIL1",
        "filler_issuer": "RIS",
        "accession": "ACC1",
        "accession_issuer": "RIS",
        "requested_by": "Family^Given",
        "requested_by_id": "1234",
        "referring": "",
        "referring_id": "",
    },
    "procedure": {
        "code_value": "71020",
        "scheme": "C4",
        "meaning": "CHEST 2V",
        "description": "",
        "requested_procedure_id": "RP1",
        "reason": "cough & fever",
    },
    "started": "2026-03-01T10:00:00+00:00",
    "step_id": "SPS1",
    "modality": "CR",
    "study_instance_uids": ["1.2.3.4"],
    "report": {
        "status": "FINAL",
        "number": 1,
        "findings": "Heart: 50% | normal\n\nLungs ^ & ~ \\ clear",
        "impression": "No disease.",
        "addendum": "",
        "signer_name": "Winter^Rosa^^Dr",
        "signer_id": "R77",
        "signed_at": "2026-03-01T10:29:00+00:00",
    },
    "previous": [],
}


def destination(version: str = "2.5.1", **settings: object) -> Destination:
    """One that was not stored: composing needs none of the database."""
    return Destination(name="his", version=version, settings={"sending_facility": "SITE", **settings})


def composed(facts: dict | None = None, version: str = "2.5.1", **settings: object) -> Message:
    """The message, read back."""
    return parse(results.compose(facts or FACTS, destination(version, **settings), "CTRL1"))


def report(**changes: object) -> dict:
    """The facts with another report."""
    return {**FACTS, "report": {**FACTS["report"], **changes}}


def test_the_default_message_says_who_what_and_the_text() -> None:
    msg = composed()
    assert (msg.message_type, msg.trigger_event, msg.control_id, msg.version) == (
        "ORU",
        "R01",
        "CTRL1",
        "2.5.1",
    )
    assert msg.header.field(7) == "20260301103015+0000"
    assert not msg.header.has(15)  # original mode
    pid, obr = msg.first("PID"), msg.first("OBR")
    assert pid and pid.field(3) == "123^^^HOSP&1.2.3&ISO^MR~9^^^CITY"
    assert pid.value(5, 1) == "Müller" and pid.value(5, 4) == "Jr" and pid.value(5, 5) == "Dr"
    assert pid.value(5, 1, 2) == "山田" and pid.value(5, 8, 2) == "I"
    assert obr and obr.value(2) == "PLC1" and obr.value(3) == "FIL1" and obr.value(18) == "ACC1"
    assert obr.value(19) == "RP1" and obr.value(20) == "SPS1" and obr.value(25) == "F"
    assert obr.subcomponents(32, 1) == ["R77", "Winter", "Rosa", "", "", "Dr"]
    texts = [(o.value(3), o.value(5), o.value(11)) for o in msg.all("OBX")]
    assert texts == [
        ("113014", "1.2.3.4", "F"),
        ("R", "Heart: 50% | normal", "F"),
        ("R", " ", "F"),
        ("R", "Lungs ^ & ~ \\ clear", "F"),
        ("I", "No disease.", "F"),
    ]


def test_the_same_facts_always_give_the_same_bytes() -> None:
    assert results.compose(FACTS, destination(), "X") == results.compose(FACTS, destination(), "X")


@pytest.mark.parametrize("version", ["2.3", "2.3.1", "2.4", "2.5", "2.5.1", "2.6"])
@pytest.mark.parametrize("style", ["lines", "FT"])
def test_every_version_and_style_can_be_read_by_python_hl7(version: str, style: str) -> None:
    raw = results.compose(FACTS, destination(version, obx_style=style), "X")
    message = hl7.parse(raw.decode())
    assert str(message["OBR"][0][18]) == "ACC1"
    assert ("ORU_R01" in str(message["MSH"][0][9])) == (version != "2.3")


def test_formatted_text_is_one_observation_a_section() -> None:
    msg = composed(obx_style="FT")
    assert [o.value(2) for o in msg.all("OBX")] == ["ST", "FT", "FT"]
    assert "\\.br\\\\.br\\" in msg.all("OBX")[1].field(5)
    assert msg.all("OBX")[1].text(5) == FACTS["report"]["findings"]


def test_other_separators_and_character_sets_are_kept_to() -> None:
    msg = composed(separators="^~|\\&", charset="8859/1")
    assert msg.header.separators.field == "^" and msg.codec == "iso8859_1"
    assert msg.first("PID").value(5, 1) == "Müller"
    assert msg.first("PID").value(5, 1, 2) == "??"
    assert composed(charset="ASCII").first("PID").value(5, 1) == "Muller"


def test_no_text_adds_a_segment_or_a_field() -> None:
    evil = "x\rOBX|9|TX|Z||evil\r\nPID|1\x0bMSH|\x1c\r"
    msg = composed(report(findings=evil, impression=evil))
    assert [s.name for s in msg.segments[:5]] == ["MSH", "PID", "PV1", "ORC", "OBR"]
    assert {s.name for s in msg.segments[5:]} == {"OBX"} and len(msg.all("PID")) == 1
    formatted = composed(report(findings=evil), obx_style="FT")
    assert len(formatted.all("OBX")) == 3


def test_an_addendum_repeats_the_whole_report_as_a_correction() -> None:
    previous = [
        {**FACTS["report"], "number": 1},
        {**FACTS["report"], "number": 2, "status": "ADDENDED", "addendum": "First more."},
    ]
    facts = {**report(status="ADDENDED", number=3, addendum="Second more."), "previous": previous}
    msg = composed(facts)
    lines = [o.value(5) for o in msg.all("OBX")]
    assert msg.first("OBR").value(25) == "C"
    assert lines.index("First more.") < lines.index("Second more.")
    assert "No disease." in lines and "ADDENDUM 2026-03-01 10:29, Dr Rosa Winter:" in lines
    alone = composed(facts, addendum="append", send_study_uids=False)
    assert [o.value(5) for o in alone.all("OBX")][1:] == ["Second more."]


def test_a_retracted_report_deletes_and_shows_none_of_its_text() -> None:
    msg = composed(report(status="RETRACTED", addendum="Wrong patient."))
    assert msg.first("OBR").value(25) == "X"
    assert {o.value(11) for o in msg.all("OBX")} == {"D"}
    assert not any("No disease" in o.value(5) for o in msg.all("OBX"))


def test_a_destination_places_numbers_and_maps_codes_as_it_likes() -> None:
    msg = composed(
        accession="OBR-3",
        order_control="",
        obx_codes={"findings": "59776-5^Findings^LN"},
        result_status={"F": "CM"},
        line_length=10,
        enhanced=True,
    )
    obr = msg.first("OBR")
    assert obr and obr.value(3) == "ACC1" and not obr.has(18) and obr.value(25) == "CM"
    assert not msg.first("ORC") and msg.header.value(15) == "AL"
    assert [o.value(5) for o in msg.all("OBX") if o.value(3) == "59776-5"][0] == "Heart: 50%"


def test_a_draft_and_settings_that_make_no_style_are_refused() -> None:
    with pytest.raises(ComposeError, match="DRAFT"):
        composed(report(status="DRAFT"))
    with pytest.raises(ComposeError, match="separators"):
        composed(separators="||||")
    with pytest.raises(ComposeError, match="charset"):
        composed(charset="KLINGON")


def test_a_status_message_says_how_far_the_order_is() -> None:
    raw = status.compose({**FACTS, "status": "CA"}, destination(status_control={"CA": "OC"}), "S1")
    msg = parse(raw)
    assert (msg.message_type, msg.trigger_event) == ("ORM", "O01")
    orc = msg.first("ORC")
    assert orc and (orc.value(1), orc.value(5), orc.value(2), orc.value(3)) == ("OC", "CA", "PLC1", "FIL1")
    plain = parse(status.compose({**FACTS, "status": "IP"}, destination(), "S1")).first("ORC")
    assert plain and (plain.value(1), plain.value(5)) == ("SC", "IP")
