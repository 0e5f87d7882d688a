"""Reports from outside (ORU, MDM): versions of the order's report, older never over newer."""

import base64
import hashlib

import pytest
from django.db import DatabaseError, transaction

from integration import sources
from integration.hl7v2 import reports
from integration.inbox import Peer, receive
from integration.models import Message, Source
from ris.models import ImagingServiceRequest, Report, ReportDocument, ReportVersion
from tests.conftest import sample
from tests.integration.hl7v2.making import message, msh, orm, pid

pytestmark = pytest.mark.django_db(transaction=True)
PEER = Peer("127.0.0.1", 1)


@pytest.fixture
def filing(any_source):
    Source.objects.update(profile={"results": "file"})
    sources.forget()
    assert receive(orm(accession="A1", procedure_id="RP1"), PEER).code == "AA"
    return ImagingServiceRequest.objects.get()


def oru(
    *obx,
    status="F",
    at="20260301150000+0000",
    accession="A1",
    patient=None,
    placer="PL1",
    code="CTHEAD^CT Head^L",
):
    obr = f"OBR|1|{placer}||{code}||||||||||||||{accession}|RP1|||{at}|||{status}|||||||77&READER&RITA&&&DR"
    lines = obx or ("OBX|1|TX|F^FINDINGS^L||No bleed.||||||F", "OBX|2|TX|I^IMPRESSION^L||Normal.||||||F")
    return message(msh("ORU^R01^ORU_R01", sent=at), patient or pid(), "ORC|RE|" + placer, obr, *lines)


def versions():
    return [
        (v.status, v.findings, v.impression, v.addendum) for v in ReportVersion.objects.order_by("number")
    ]


def test_a_result_becomes_a_signed_version(filing):
    assert receive(oru(), PEER).code == "AA"
    version = ReportVersion.objects.get()
    assert versions() == [("FINAL", "No bleed.", "Normal.", "")]
    assert (version.signer_name, version.signer_id) == ("READER^RITA^^DR", "77")
    assert f"{version.signed_at:%Y%m%d%H%M}" == "202603011500"
    assert version.report.procedure.request_id == filing.id
    assert Message.objects.latest("id").request_ids == [filing.id]


def test_preliminary_final_corrected_in_their_order(filing):
    for status, hour, text in (("P", 10, "Draft."), ("F", 11, "Final."), ("C", 12, "Corrected.")):
        raw = oru(f"OBX|1|TX|F||{text}||||||{status}", status=status, at=f"20260301{hour}0000+0000")
        assert receive(raw, PEER).code == "AA"
    assert [v[:2] for v in versions()] == [
        ("PRELIMINARY", "Draft."), ("FINAL", "Final."), ("CORRECTED", "Corrected."),
    ]  # fmt: skip


def test_another_final_text_is_a_correction_and_the_same_is_nothing(filing):
    receive(oru(at="20260301100000+0000"), PEER)
    receive(oru("OBX|1|TX|F||Other.||||||F", at="20260301110000+0000"), PEER)
    receive(oru("OBX|1|TX|F||Other.||||||F", status="C", at="20260301120000+0000"), PEER)
    assert [v[0] for v in versions()] == ["FINAL", "CORRECTED"]
    assert "filed before" in Message.objects.latest("id").warnings[0]


@pytest.mark.parametrize(("status", "at"), [("P", "20260301160000+0000"), ("F", "20260301120000+0000")])
def test_a_late_preliminary_and_an_older_report_do_not_overwrite(filing, status, at):
    receive(oru(), PEER)
    assert receive(oru("OBX|1|TX|F||Late.||||||P", status=status, at=at), PEER).code == "AA"
    assert len(versions()) == 1
    assert Message.objects.latest("id").warnings


def test_a_retraction_keeps_the_text_and_says_so(filing):
    receive(oru(), PEER)
    receive(oru(status="X", at="20260301160000+0000"), PEER)
    assert [v[0] for v in versions()] == ["FINAL", "RETRACTED"]
    assert Report.objects.get().status == "RETRACTED"


def test_lines_repetitions_and_stray_separators_are_text(filing):
    obx = (
        "OBX|1|TX|F||line 1||||||F",
        "OBX|2|TX|F||a ^ b & c~second||||||F",
        "OBX|3|FT|F||one\\.br\\two||||||F",
    )
    receive(oru(*obx, "OBX|4|CE|D||51.71^Failure^ACR||||||F", "OBX|5|NM|V^Volume^L||12|ml|||||F"), PEER)
    assert versions()[0][1] == "line 1\na ^ b & c\nsecond\none\ntwo\nFailure\nVolume: 12 ml"


def test_deleted_lines_and_other_uids_are_no_text(filing):
    obx = (
        "OBX|1|TX|F||gone||||||D",
        "OBX|2|ST|^Series Instance UID||1.2.3||||||F",
        "OBX|3|TX|F||kept||||||F",
    )
    receive(oru(*obx), PEER)
    assert versions()[0][1] == "kept"


def test_a_report_is_found_by_its_study(filing):
    uid = filing.procedures.get().study_instance_uid
    raw = oru(
        f"OBX|1|ST|113014^DICOM Study^DCM||{uid}||||||F",
        "OBX|2|TX|F||By study.||||||F",
        accession="",
        placer="",
    )
    assert receive(raw, PEER).code == "AA"
    assert versions()[0][1] == "By study."


def test_a_report_for_an_unknown_order_is_refused_or_makes_the_order(filing):
    raw = oru(accession="A9", placer="PL9")
    reply = receive(raw, PEER)
    assert reply.code == "AE" and b"204" in reply.ack
    Source.objects.update(profile={"results": "file", "unknown_order": "create"})
    sources.forget()
    assert receive(raw, PEER).code == "AA"
    made = ImagingServiceRequest.objects.get(accession_number="A9")
    assert made.procedures.get().report.status == "FINAL"
    assert [s.status for s in made.procedures.get().steps.all()] == ["COMPLETED"]


def test_a_report_for_another_patient_is_refused(filing):
    reply = receive(oru(patient=pid("P2^^^HOSP^MR")), PEER)
    assert reply.code == "AE" and b"205" in reply.ack
    assert versions() == []


def test_a_report_without_text_is_refused_and_a_document_says_where_it_lies(filing):
    assert receive(oru("OBX|1|TX|F||||||||F"), PEER).code == "AE"
    pdf = "OBX|1|ED|18748-4^Report^LN||^Application^PDF^Base64^JVBERi0=||||||F"
    assert receive(oru(pdf), PEER).code == "AA"
    assert "(PDF)" in versions()[0][1]


def test_a_report_signed_here_is_not_replaced_from_outside(filing, django_user_model):
    from common import cause
    from common.store import unit_of_work
    from ris.services import reports

    user = django_user_model.objects.create(username="rad", last_name="Own")
    with unit_of_work(cause.user(user.pk)) as unit:
        report = reports.open_draft(filing.procedures.get().id, user, unit)
    with unit_of_work(cause.user(user.pk)) as unit:
        reports.save_draft(report.id, 0, "Ours.", "", user, unit)
    with unit_of_work(cause.user(user.pk)) as unit:
        reports.sign(report.id, user, unit)
    assert receive(oru(at="20290301150000+0000"), PEER).code == "AE"
    assert [v[1] for v in versions()] == ["Ours."]


def mdm(event, text="Document.", *, status="AU", sent="20260301150000+0000"):
    txa = "TXA|1|DI|TX||||||55^WRITER^WIM|||DOC1||PL1|||" + status
    obx = [f"OBX|1|TX|F||{text}||||||F"] if text else []
    return message(msh(f"MDM^{event}", sent=sent), pid(), "PV1|1|O", txa, *obx)


def test_documents_are_filed_added_to_and_taken_back(filing):
    assert receive(mdm("T02"), PEER).code == "AA"
    assert receive(mdm("T06", "More.", sent="20260301160000+0000"), PEER).code == "AA"
    assert receive(mdm("T11", "", sent="20260301170000+0000"), PEER).code == "AA"
    assert versions() == [
        ("FINAL", "Document.", "", ""),
        ("ADDENDED", "Document.", "", "More."),
        ("RETRACTED", "Document.", "", ""),
    ]
    assert ReportVersion.objects.first().signer_name == "WRITER^WIM"


@pytest.mark.parametrize("event", reports.ANNOUNCED)
def test_an_announcement_of_a_document_is_kept(filing, event):
    assert receive(mdm(event, ""), PEER).code == "AA"
    row = Message.objects.latest("id")
    assert (row.state, versions()) == ("kept", [])
    assert "announces a document" in row.warnings[0]


def test_an_announcement_that_brings_the_text_is_a_version(filing):
    assert receive(mdm("T01"), PEER).code == "AA"
    assert receive(mdm("T05", "More.", sent="20260301160000+0000"), PEER).code == "AA"
    assert versions() == [("FINAL", "Document.", "", ""), ("ADDENDED", "Document.", "", "More.")]


def test_the_structured_report_of_dcm4che_is_filed_for_its_order(any_source):
    Source.objects.update(profile={"results": "file"})
    sources.forget()
    for name in ("OMG^O19-GeneralClinicalOrder-Eyecare", "ORU^R01-SR"):
        assert receive(sample("hl7", "dcm4che", f"{name}.hl7").read_bytes(), PEER).code == "AA"
    version = ReportVersion.objects.get()
    assert version.status == "FINAL"
    assert "The right kidney is slightly enlarged" in version.findings
    assert "Malignant neoplasm of left renal pelvis" in version.findings
    assert version.signer_name.startswith("VerifyingObserverFN^VerifyingObserverGN")


PDF = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF\n"


def ed(number: int, data: bytes, kind: str = "Application^PDF", encoding: str = "Base64") -> str:
    text = data.hex() if encoding == "Hex" else base64.b64encode(data).decode()
    return f"OBX|{number}|ED|18748-4^Diagnostic Imaging Report^LN||RIS^{kind}^{encoding}^{text}||||||F"


@pytest.mark.parametrize("encoding", ["Base64", "Hex"])
def test_a_pdf_is_kept_with_its_version_byte_for_byte(filing, encoding):
    assert receive(oru(ed(1, PDF, encoding=encoding)), PEER).code == "AA"
    version = ReportVersion.objects.get()
    assert "kept with this version" in version.findings
    document = version.documents.get()
    assert bytes(document.content) == PDF and document.sha256 == hashlib.sha256(PDF).hexdigest()
    assert (document.media_type, document.title, document.size) == (
        "application/pdf", "Diagnostic Imaging Report", len(PDF),
    )  # fmt: skip
    assert list(version.listed_documents()) == [document]
    with pytest.raises(DatabaseError), transaction.atomic():
        ReportDocument.objects.update(title="other")


def test_text_and_several_documents_stay_together_and_another_document_is_another_version(filing):
    text = "OBX|1|TX|F^FINDINGS^L||No bleed.||||||F"
    jpeg = b"\xff\xd8\xff\xe0" + b"x" * 50
    first = oru(text, ed(2, PDF), ed(3, jpeg, "Image^JPEG"), at="20260301100000+0000")
    assert receive(first, PEER).code == "AA"
    receive(oru(text, ed(2, PDF), ed(3, jpeg, "Image^JPEG"), at="20260301110000+0000"), PEER)
    assert "filed before" in Message.objects.latest("id").warnings[0]
    receive(oru(text, ed(2, PDF + b"\n"), at="20260301120000+0000"), PEER)
    kept = [
        (v.status, v.findings, [d.media_type for d in v.documents.all()])
        for v in ReportVersion.objects.order_by("number")
    ]
    assert kept == [
        ("FINAL", "No bleed.", ["application/pdf", "image/jpeg"]),
        ("CORRECTED", "No bleed.", ["application/pdf"]),
    ]


def test_a_document_is_what_its_bytes_say_and_one_that_cannot_be_read_is_noted(filing):
    page = b"<script>alert(1)</script>"
    receive(oru(ed(1, page), "OBX|2|ED|x||RIS^Application^PDF^Base64^%%%||||||F"), PEER)
    document = ReportDocument.objects.get()
    assert document.media_type == "application/octet-stream"
    assert any(
        "cannot be read" in w and w.startswith("OBX^2^5") for w in Message.objects.latest("id").warnings
    )


def test_the_document_of_an_mdm_is_kept_too(filing):
    raw = message(
        msh("MDM^T02^MDM_T02"), "EVN|T02|20260301150000+0000", pid(), "PV1|1|O",
        "TXA|1|DI|AP|||||||||D1||PL1|||AU", ed(1, PDF),
    )  # fmt: skip
    assert receive(raw, PEER).code == "AA"
    assert bytes(ReportDocument.objects.get().content) == PDF
