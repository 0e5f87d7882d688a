"""The mapping of DICOM and order values to R4, value by value."""

from datetime import UTC, date, datetime, time
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest

from integration.fhir.checking import problems
from integration.fhir.resources import (
    diagnostic_report,
    elements,
    endpoint,
    imaging_study,
    patient,
    service_request,
)
from integration.fhir.resources.elements import Systems
from pacs.models import Instance, Series, Study
from ris.models import (
    AssigningAuthority,
    ImagingServiceRequest,
    Patient,
    PatientIdentifier,
    Report,
    ReportVersion,
    RequestedProcedure,
)

AT = datetime(2026, 3, 1, 10, 29, 30, 123456, tzinfo=UTC)
SYSTEMS = Systems({"99LOCAL": "http://example.org/codes", "HOSP": "http://example.org/mrn"})


def a_study(**values: object) -> Study:
    """A study that was not stored."""
    return Study(
        **{
            "study_instance_uid": "1.2.3",
            "study_date": date(2026, 3, 1),
            "study_time": time(10, 0, 0, 500),
            "modalities_in_study": ["CT", "SR"],
            "received_at": AT,
            "last_instance_at": AT,
            "settled_at": AT,
            **values,
        }
    )


def a_procedure(**values: object) -> RequestedProcedure:
    """A procedure of an order that were not stored."""
    request = ImagingServiceRequest(
        patient_id=uuid4(),
        accession_number="A1",
        issuer_of_accession_number="RIS",
        placer_order_number="P1",
        placer_issuer="EHR",
        requesting_physician="House^Gregory^^Dr",
        requesting_physician_id="42",
        placed_at=AT,
    )
    given = {"code_value": "CTH", "coding_scheme_designator": "99LOCAL", "code_meaning": "CT head", **values}
    return RequestedProcedure(
        request=request, requested_procedure_id="RP1", study_instance_uid="1.2.3", **given
    )


def built(study: Study, series: list[Series] | None = None, **more: object) -> dict:
    """The resource, which is right R4."""
    resource = imaging_study.build(study, series or [], {}, SYSTEMS, **more)  # type: ignore[arg-type]
    assert problems(resource) == []
    return resource


@pytest.mark.parametrize(
    ("offset", "zone", "expected"),
    [
        ("+0100", ZoneInfo("America/New_York"), "2026-03-01T10:00:00+01:00"),
        ("-0330", None, "2026-03-01T10:00:00-03:30"),
        ("", ZoneInfo("Europe/Berlin"), "2026-03-01T10:00:00+01:00"),
        ("", None, "2026-03-01"),
        ("nonsense", None, "2026-03-01"),
    ],
)
def test_a_time_has_its_own_zone_else_the_facility_s_else_it_is_a_date(
    offset: str, zone: ZoneInfo | None, expected: str
) -> None:
    assert built(a_study(timezone_offset_from_utc=offset), zone=zone)["started"] == expected


def test_summer_time_is_that_of_the_day() -> None:
    summer = a_study(study_date=date(2026, 7, 1))
    assert built(summer, zone=ZoneInfo("Europe/Berlin"))["started"].endswith("+02:00")


def test_a_study_without_a_date_has_no_start() -> None:
    assert "started" not in built(a_study(study_date=None, study_time=None))


def test_the_uid_is_an_oid_in_identifiers_and_bare_in_series() -> None:
    series = Series(series_instance_uid="1.2.3.4", modality="CT", series_number=2, received_at=AT)
    instance = Instance(sop_instance_uid="1.2.3.4.5", sop_class_uid="1.2.840", instance_number=7)
    resource = imaging_study.build(a_study(), [series], {series.id: [instance]}, SYSTEMS)
    assert problems(resource) == []
    assert resource["identifier"][0]["value"] == "urn:oid:1.2.3"
    assert resource["series"][0]["uid"] == "1.2.3.4"
    assert resource["series"][0]["instance"][0] == {
        "uid": "1.2.3.4.5",
        "number": 7,
        "sopClass": {"system": "urn:ietf:rfc:3986", "code": "urn:oid:1.2.840"},
    }


@pytest.mark.parametrize(
    ("values", "expected"),
    [({}, "available"), ({"settled_at": None}, "registered"), ({"hidden": True}, "entered-in-error")],
)
def test_the_status_is_that_of_the_study_not_of_the_order(values: dict, expected: str) -> None:
    assert built(a_study(**values))["status"] == expected


def test_series_carry_codes_where_they_are_known_and_nothing_where_not() -> None:
    known = Series(
        series_instance_uid="1.1", modality="CT", body_part_examined="chest", laterality="L", series_number=-4,
        received_at=AT,
    )  # fmt: skip
    odd = Series(
        series_instance_uid="1.2", modality="", body_part_examined="ELBOWS", laterality="U", received_at=AT
    )
    by_uid = {s["uid"]: s for s in built(a_study(), [odd, known])["series"]}
    assert (
        by_uid["1.1"]["bodySite"]["code"] == "816094009" and by_uid["1.1"]["laterality"]["code"] == "7771000"
    )
    assert "number" not in by_uid["1.1"]  # unsignedInt
    assert by_uid["1.2"]["bodySite"] == {"display": "ELBOWS"} and "laterality" not in by_uid["1.2"]
    assert by_uid["1.2"]["modality"]["code"] == "OT"


def test_a_matched_study_names_patient_order_and_accession() -> None:
    procedure = a_procedure()
    pk = procedure.request.patient_id
    resource = built(a_study(accession_number="A1"), patient_id=pk, procedure=procedure, endpoint_id="e")
    assert resource["subject"]["reference"] == f"Patient/{pk}"
    assert resource["basedOn"][0]["identifier"]["type"]["coding"][0]["code"] == "ACSN"
    assert resource["procedureCode"][0]["coding"][0]["system"] == "http://example.org/codes"
    assert resource["identifier"][1]["value"] == "A1"


@pytest.mark.parametrize(
    ("request_status", "steps", "expected"),
    [
        ("ACTIVE", [], "active"),
        ("ACTIVE", ["SCHEDULED", "COMPLETED"], "active"),
        ("ACTIVE", ["COMPLETED", "CANCELED"], "completed"),
        ("ACTIVE", ["CANCELED", "DISCONTINUED"], "revoked"),
        ("ACTIVE", ["HELD"], "on-hold"),
        ("HELD", ["SCHEDULED"], "on-hold"),
        ("CANCELED", ["SCHEDULED"], "revoked"),
        ("DISCONTINUED", ["COMPLETED"], "revoked"),
        ("COMPLETED", [], "completed"),
    ],
)
def test_a_request_has_the_status_of_its_order_and_steps(
    request_status: str, steps: list[str], expected: str
) -> None:
    assert service_request.status(request_status, steps) == expected


def test_a_request_carries_its_numbers_by_type() -> None:
    procedure = a_procedure(
        filler_order_number="F9", filler_issuer="RIS", requested_procedure_priority="STAT"
    )
    resource = service_request.build(procedure, procedure.request, [], SYSTEMS)
    assert problems(resource) == []
    numbers = {
        i["type"]["coding"][0]["code"]: (i.get("system"), i["value"])
        for i in resource["identifier"]
        if "coding" in i["type"]
    }
    assert numbers["PLAC"] == ("urn:id:EHR", "P1") and numbers["FILL"] == ("urn:id:RIS", "F9")
    assert numbers["ACSN"] == ("urn:id:RIS", "A1") and numbers["110180"][1] == "urn:oid:1.2.3"
    assert resource["priority"] == "stat" and resource["intent"] == "order"
    assert resource["requester"] == {"display": "Dr Gregory House", "identifier": {"value": "42"}}
    assert resource["authoredOn"] == "2026-03-01T10:29:30Z"


def test_a_raw_designator_is_never_a_system() -> None:
    assert "system" not in SYSTEMS.coding("X", "99OTHER", "x")
    assert SYSTEMS.coding("T-D3000", "SRT")["code"] == "T-D3000"
    assert "system" not in SYSTEMS.coding("T-D3000", "SRT")
    assert SYSTEMS.coding("51185008", "SCT")["system"] == "http://snomed.info/sct"


@pytest.mark.parametrize(
    ("authority", "expected"),
    [
        (("HOSP", "1.2.3", "ISO"), "http://example.org/mrn"),
        (("CITY", "1.2.3", "ISO"), "urn:oid:1.2.3"),
        (("CITY", "1.2.3", ""), "urn:oid:1.2.3"),
        (("CITY", "", ""), "urn:id:CITY"),
        (("A B/C", "", ""), "urn:id:A%20B%2FC"),
        (("", "2f1c", "UUID"), "urn:uuid:2f1c"),
        (("", "http://x.org/y", "URI"), "http://x.org/y"),
        (("", "", ""), ""),
    ],
)
def test_an_authority_has_one_system(authority: tuple[str, str, str], expected: str) -> None:
    assert SYSTEMS.authority(*authority) == expected


def test_a_patient_has_names_in_every_script_and_old_identifiers_marked() -> None:
    person = Patient(patient_name="Yamada^Tarou^J M^Dr^PhD=山田^太郎=やまだ^たろう", patient_birth_date="19700101",
                     patient_sex="M")  # fmt: skip
    authority = AssigningAuthority(namespace="HOSP")
    rows = [
        PatientIdentifier(value="OLD", authority=authority, status="alias", position=0),
        PatientIdentifier(value="NEW", authority=authority, type_code="MR", position=1),
    ]
    resource = patient.build(person, rows, SYSTEMS)
    assert problems(resource) == []
    first, ideographic, phonetic = resource["name"]
    assert first["given"] == ["Tarou", "J", "M"] and first["prefix"] == ["Dr"] and first["suffix"] == ["PhD"]
    assert [n["extension"][0]["valueCode"] for n in (ideographic, phonetic)] == ["IDE", "SYL"]
    assert [(i["value"], i.get("use")) for i in resource["identifier"]] == [("NEW", None), ("OLD", "old")]
    assert resource["gender"] == "male" and resource["birthDate"] == "1970-01-01"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1970", "1970"), ("197002", "1970-02"), ("19700230", ""), ("197013", ""), ("", ""), ("19AB", "")],
)
def test_a_birth_date_keeps_its_precision_and_must_be_one(text: str, expected: str) -> None:
    assert elements.birth_date(text) == expected


@pytest.mark.parametrize(("status", "expected"), diagnostic_report.STATUS.items())
def test_a_report_has_r4_s_status_and_a_retracted_one_no_text(status: str, expected: str) -> None:
    procedure = a_procedure()
    version = ReportVersion(
        number=1, status=status, findings="A < B\x07\nC", impression="I & J", signer_name="W^R", signed_at=AT
    )
    resource = diagnostic_report.build(Report(), [version], procedure, [a_study()], SYSTEMS, site="St. Ann")
    assert problems(resource) == [] and resource["status"] == expected
    assert ("conclusion" in resource) == (status != "RETRACTED") == ("presentedForm" in resource)
    if status != "RETRACTED":
        assert "A &lt; B" in resource["text"]["div"] and "\x07" not in resource["text"]["div"]


def test_the_endpoint_is_a_dicomweb_root_with_a_lasting_id() -> None:
    resource = endpoint.build("https://pacs.example.org/dicomweb", "St. Ann")
    assert problems(resource) == []
    assert resource["connectionType"]["code"] == "dicom-wado-rs"
    assert resource["id"] == endpoint.endpoint_id("https://pacs.example.org/dicomweb")


def test_the_check_sees_what_the_library_does_not() -> None:
    right = endpoint.build("https://x/dicomweb", "S")
    study = built(a_study())
    wrong = {
        "no code": {**right, "status": "bogus"},
        "empty": {**right, "name": None},
        "letters": {**right, "id": "x" * 65},
        "may not name": {**study, "basedOn": [{"reference": "Patient/1"}]},
        "base64": {
            "resourceType": "DiagnosticReport",
            "status": "final",
            "code": {"text": "x"},
            "presentedForm": [{"data": "???"}],
        },
        "unknown_element": {**right, "colour": "red"},
    }
    for rule, resource in wrong.items():
        assert problems(resource), rule
    assert not any("red" in p or "bogus" in p for resource in wrong.values() for p in problems(resource))
