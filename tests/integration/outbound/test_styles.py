"""Each style a destination may ask for, read back by others' parsers: nothing of the text is lost on the way."""

import base64
import io
from typing import Any

import hl7
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pypdf import PdfReader

from integration import delivery, documents
from integration.documents import CannotDraw, report_pdf
from integration.hl7v2 import conformance, demographics, mdm, results, status
from integration.hl7v2.outgoing import ComposeError, Payload, check, style_of
from integration.hl7v2.reading import Message, parse
from tests.integration.outbound.test_composing_results import FACTS, composed, destination, report

LONG = "The liver is of normal size and echogenicity without focal lesion. " * 30
VERSIONS = ["2.3", "2.3.1", "2.4", "2.5", "2.5.1", "2.6", "2.7", "2.8"]
PATIENT = {
    "at": FACTS["at"],
    "patient": FACTS["patient"],
    "visit": FACTS["visit"],
    "happened": "changed",
    "retired": {"name": "Muller^Ana", "identifiers": FACTS["patient"]["identifiers"][:1]},
}
MERGED = {**PATIENT, "happened": "merged"}
ORDER = {
    **FACTS,
    "status": "IP",
    "procedure": {**FACTS["procedure"], "study_instance_uid": "1.2.3.4"},
}
DOCUMENT = {
    **FACTS,
    "report": {**FACTS["report"], "id": "6f1b6a52-8b6b-4a7c-9f57-0d3f6f2f1a11"},
    "previous": [],
}


def texts(msg: Message, section: str) -> list[str]:
    """OBX-5 of the OBX with this code, unescaped."""
    return [o.text(5) for o in msg.all("OBX") if o.value(3) == section]


def pdf_of(msg: Message) -> PdfReader:
    """The document in the message."""
    obx = next(o for o in msg.all("OBX") if o.value(2) == "ED")
    assert (obx.value(5, 2), obx.value(5, 3), obx.value(5, 4)) == ("Application", "PDF", "Base64")
    return PdfReader(io.BytesIO(base64.b64decode(obx.value(5, 5), validate=True)))


def test_a_document_says_who_what_and_every_line_in_latin_greek_and_cyrillic() -> None:
    facts = report(findings="Καρδιά: φυσιολογική\nЛёгкие чистые\nGröße 5 µm ≥ 3", impression=LONG)
    pages = pdf_of(composed(facts, obx_style="PDF")).pages
    said = " ".join(" ".join(page.extract_text() for page in pages).split())
    for part in ("Καρδιά: φυσιολογική", "Лёгкие чистые", "Größe 5 µm ≥ 3", " ".join(LONG.split()), "ACC1"):
        assert part in said
    assert "Anna Maria Müller" in said and "Rosa Winter" in said


def test_the_same_facts_give_the_same_document() -> None:
    assert results.compose(FACTS, destination(obx_style="lines+PDF"), "X") == results.compose(
        FACTS, destination(obx_style="lines+PDF"), "X"
    )


def test_text_and_document_travel_together() -> None:
    msg = composed(obx_style="lines+PDF")
    assert texts(msg, "I") == ["No disease."] and len(pdf_of(msg).pages) == 1


def test_a_character_that_no_font_draws_refuses_the_document_and_is_not_named() -> None:
    with pytest.raises(ComposeError, match="pdf_fonts") as caught:
        composed(report(findings="所見"), obx_style="PDF")
    assert "所" not in str(caught.value)
    with pytest.raises(CannotDraw, match="pdf_fonts"):
        report_pdf(FACTS, [], fonts=["/nowhere/font.ttf"])


def test_a_document_that_is_too_large_waits_for_a_person_or_is_named_as_left_out() -> None:
    huge = report(impression=LONG * 3)
    with pytest.raises(ComposeError, match="pdf_most_kb"):
        composed(huge, obx_style="PDF", pdf_most_kb=1)
    msg = composed(huge, obx_style="PDF", pdf_most_kb=1, pdf_too_large="text")
    assert texts(msg, "I") == [(LONG * 3)]
    assert any("larger than this interface takes" in text for text in texts(msg, "R"))
    assert not [o for o in msg.all("OBX") if o.value(2) == "ED"]


@pytest.mark.parametrize("how", ["lines", "FT", "repeat"])
def test_a_capped_section_goes_on_in_the_next_observation(how: str) -> None:
    text = f"{LONG}\n\n  indented  twice\n{'x' * 500}\na|b^c&d~e\\f"
    msg = composed(report(impression=text), obx_style=how, obx_5_most=120)
    parts = [o for o in msg.all("OBX") if o.value(3) == "I"]
    assert len(parts) > 10 and all(len(o.field(5)) <= 120 for o in parts)
    assert how == "lines" or [o.value(4) for o in parts] == [str(n + 1) for n in range(len(parts))]
    said = "".join(o.text(5).replace("~", "") if how != "repeat" else _repeated(o) for o in parts)
    assert "".join(said.split()) == "".join(text.replace("~", "" if how != "repeat" else "~").split())


def _repeated(segment: Any) -> str:
    return "".join(segment.value(5, 1, r + 1) for r in range(len(segment.repetitions(5))))


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=200), st.integers(1, 40))
@settings(deadline=None, max_examples=300)
def test_a_broken_line_loses_only_the_spaces_it_is_broken_at(line: str, most: int) -> None:
    parts = list(results.broken(line, most))
    assert all(len(part) <= most for part in parts)
    at = 0
    for number, part in enumerate(parts):
        if number and not line.startswith(part, at):
            assert line[at] == " "
            at += 1
        assert line.startswith(part, at)
        at += len(part)
    assert "".join(parts).replace(" ", "") == line.replace(" ", "")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("how", ["lines", "FT", "repeat", "PDF", "FT+PDF"])
def test_every_style_in_every_version_passes_all_checks(version: str, how: str) -> None:
    msg = composed(version=version, obx_style=how)
    assert msg.version == version and len(hl7.parse(msg.text)) == len(msg.segments)


@pytest.mark.parametrize("version", VERSIONS)
def test_order_status_patients_and_documents_pass_all_checks_in_every_version(version: str) -> None:
    to = destination(version)
    assert parse(status.compose(ORDER, to, "C")).first("ORC").value(5) == "IP"
    merge = parse(demographics.compose(MERGED, to, "C"))
    assert merge.trigger_event == ("A34" if version == "2.3" else "A40")
    assert merge.first("MRG").value(1) == "123"
    assert parse(demographics.compose(PATIENT, to, "C")).trigger_event == "A08"
    assert parse(mdm.compose(DOCUMENT, to, "C")).trigger_event == "T02"


def test_imaging_and_clinical_order_messages_exist_from_their_version_on() -> None:
    omi = parse(status.compose_omi(ORDER, destination("2.5.1"), "C"))
    assert omi.header.field(9) == "OMI^O23^OMI_O23" and omi.first("IPC").value(1) == "ACC1"
    omg = parse(status.compose_omg(ORDER, destination("2.4"), "C"))
    assert omg.header.field(9) == "OMG^O19^OMG_O19"
    with pytest.raises(ComposeError, match="2.5"):
        status.compose_omi(ORDER, destination("2.4"), "C")
    with pytest.raises(ComposeError, match="2.4"):
        status.compose_omg(ORDER, destination("2.3.1"), "C")


def test_every_kind_that_can_be_queued_has_a_composer() -> None:
    assert set(delivery._COMPOSERS) == {"ORU", "MDM", "ORM", "OMG", "OMI", "ADT"}


def test_ids_stand_where_the_destination_wants_them() -> None:
    facts = {**FACTS, "procedure": {**FACTS["procedure"], "study_instance_uid": "1.2.3.4"}}
    wanted = {
        "accession": "OBR-18 OBR-21",
        "placer": "OBR-2",
        "step": "",
        "procedure": "ORC-4",
        "study": "ZDS",
    }
    msg = composed(facts, ids=wanted)
    orc, obr, zds = msg.first("ORC"), msg.first("OBR"), msg.first("ZDS")
    assert (obr.value(18), obr.value(21), obr.value(2), obr.value(20)) == ("ACC1", "ACC1", "PLC1", "")
    assert orc.value(2) == "" and orc.value(4) == "RP1"
    assert zds.field(1) == "1.2.3.4^^Application^DICOM"
    for wrong in ({"accession": "PID-3"}, {"colour": "OBR-18"}):
        with pytest.raises(ComposeError, match="ids"):
            composed(ids=wrong)


def test_a_combined_report_names_the_procedures_it_reports_with() -> None:
    other = {**FACTS["procedure"], "requested_procedure_id": "RP2", "code_value": "71021"}
    msg = composed({**FACTS, "companions": [other]}, combined=True)
    assert [o.value(1) for o in msg.all("ORC")] == ["CN", "CN"]
    assert [(o.value(1), o.value(19), o.value(18)) for o in msg.all("OBR")] == [
        ("1", "RP1", "ACC1"),
        ("2", "RP2", "ACC1"),
    ]
    alone = composed({**FACTS, "companions": [other]})
    assert [o.value(1) for o in alone.all("ORC")] == ["RE"]


def test_statuses_are_mapped_and_enhanced_mode_asks_for_both_acknowledgements() -> None:
    msg = composed(observation_status={"F": "R"}, enhanced=True, application_ack=True)
    assert {o.value(11) for o in msg.all("OBX")} == {"R"}
    assert (msg.header.value(15), msg.header.value(16)) == ("AL", "AL")


def test_a_document_keeps_its_number_until_it_is_added_to_or_replaced() -> None:
    ids = [f"6f1b6a52-8b6b-4a7c-9f57-0d3f6f2f1a{n:02}" for n in range(5)]
    kinds = ["PRELIMINARY", "FINAL", "ADDENDED", "CORRECTED", "RETRACTED"]
    versions = [
        {**FACTS["report"], "id": i, "status": k, "number": n, "addendum": "More." if k == "ADDENDED" else ""}
        for n, (i, k) in enumerate(zip(ids, kinds, strict=True), start=1)
    ]
    sent = []
    for n, version in enumerate(versions):
        facts = {**FACTS, "report": version, "previous": versions[:n]}
        sent.append(parse(mdm.compose(facts, destination(), "C")))
    assert [m.trigger_event for m in sent] == ["T02", "T04", "T06", "T10", "T11"]
    own = [m.first("TXA").value(12) for m in sent]
    parents = [m.first("TXA").value(13) for m in sent]
    assert own[0] == own[1] and len(set(own)) == 3 and own[3] == own[4]
    assert parents == ["", "", own[1], own[2], ""] and all(len(number) <= 30 for number in own)
    assert [m.first("TXA").value(17) for m in sent][:2] == ["PA", "AU"]
    assert not sent[4].all("OBX") and "More." in texts(sent[2], "R")


def test_adt_events_are_the_destination_s_choice() -> None:
    assert (
        parse(
            demographics.compose(
                {**PATIENT, "happened": "created"}, destination(adt_events={"created": "A28"}), "C"
            )
        ).header.field(9)
        == "ADT^A28^ADT_A05"
    )
    with pytest.raises(ComposeError, match="adt_events"):
        demographics.compose(PATIENT, destination(adt_events={"changed": "A40"}), "C")
    without_visit = parse(demographics.compose({**PATIENT, "visit": None}, destination(), "C"))
    assert without_visit.first("PV1").value(2) == "U"


def test_what_hl7apy_finds_wrong_is_said_without_any_value() -> None:
    raw = results.compose(FACTS, destination(), "X").decode()
    assert conformance.fault(raw) == ""
    assert "OBR_4" in conformance.fault(raw.replace("71020^CHEST 2V^C4", ""))
    assert "Müller" not in conformance.fault(raw.replace("PID|", "PV2|"))
    two = "\r".join(
        ["MSH|^~\\&|A|B|C|D|2026||ORM^O01^ORM_O01|1|P|2.5.1", "PID|||1||A^B", "ORC|SC", "OBR|1|||X"]
    )
    assert conformance.fault(two + "\r") == ""
    assert conformance.fault(two + "\rOBR|2|||Y\r")


def test_a_message_that_does_not_read_back_is_refused() -> None:
    to = destination()
    style = style_of(to)
    segments: Any = [
        ("MSH", {9: ("ORU", "R01", "ORU_R01"), 10: "X", 11: "P", 12: "2.5.1"}),
        ("PID", {3: "1"}),
    ]
    raw = b"MSH|^~\\&|||||||ORU^R01^ORU_R01|X|P|2.5.1\rPID|||2\r"
    with pytest.raises(ComposeError, match="PID-3"):
        check(raw, segments, style)


def test_a_document_of_megabytes_is_composed_without_showing_it_to_hl7apy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(conformance, "fault", lambda text: shown.append(text) or "")
    monkeypatch.setattr(documents, "report_pdf", lambda *_: b"\x00" * 3_000_000)
    raw = results.compose(FACTS, destination(obx_style="PDF"), "X")
    assert len(raw) > 4_000_000 and len(shown[0]) < 5_000 and Payload("x") == "x"
