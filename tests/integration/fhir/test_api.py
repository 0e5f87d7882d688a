"""The FHIR door over HTTP: read, search, paging, errors, roles and the audit trail."""

import json
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.test import Client

from common.clock import now
from common.models import ApiToken, AuditEvent
from common.roles import Role, create_token
from common.store import unit_of_work
from common.uids import new_uid
from integration.fhir import loading
from integration.fhir.checking import problems
from pacs.models import Instance, Study
from ris.commands import Identifier, MergePatients
from ris.models import Patient
from ris.services import merging, reports
from tests.integration.outbound.making import addended, imaged, moved, ordered, reader, signed
from tests.ris.making import make_study, register, who

pytestmark = pytest.mark.django_db


class Fhir:
    """A client with a token."""

    def __init__(self, role: str = Role.RADIOLOGIST) -> None:
        self.headers = {"Authorization": f"Bearer {create_token(f'{role}-{uuid4()}', role)}"}
        self.client = Client(headers=self.headers, raise_request_exception=False)

    def get(self, path: str, status: int = 200, **headers: str) -> dict[str, Any]:
        """A resource by its address below the root, or a whole one."""
        address = path if path.startswith("http") else f"/fhir/r4/{path}"
        response = self.client.get(address, headers={k.replace("_", "-"): v for k, v in headers.items()})
        assert response.status_code == status, (response.status_code, response.content[:300])
        assert response.headers["Content-Type"] == "application/fhir+json; charset=utf-8"
        return json.loads(response.content)

    def ids(self, path: str) -> list[str]:
        """The ids of what a search finds."""
        return [e["resource"]["id"] for e in self.get(path).get("entry", [])]


@pytest.fixture
def fhir() -> Fhir:
    """A radiologist's client."""
    return Fhir()


def whole() -> tuple[Any, Study, Any]:
    """An order with a settled, matched study of one instance and a signed report."""
    procedure = ordered("A100")
    study = imaged(procedure)
    Study.objects.filter(pk=study.pk).update(settled_at=now())
    Instance.objects.create(
        series=study.series.get(),
        sop_instance_uid=new_uid(),
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        instance_number=3,
        attributes={"00080008": {"vr": "CS", "Value": ["ORIGINAL", "PRIMARY"]}},
        path="x",
        size=1,
        data_set_offset=0,
        sha256="0",
        received_at=now(),
    )
    return procedure, study, signed(procedure)


def test_every_resource_of_an_order_is_right_r4_and_refers_to_the_others(fhir: Fhir) -> None:
    procedure, study, version = whole()
    patient = fhir.get(f"Patient/{procedure.request.patient_id}")
    request = fhir.get(f"ServiceRequest/{procedure.id}")
    imaging = fhir.get(f"ImagingStudy/{study.id}")
    report = fhir.get(f"DiagnosticReport/{version.report_id}")
    endpoint = fhir.get(imaging["endpoint"][0]["reference"])
    for resource in (patient, request, imaging, report, endpoint):
        assert problems(resource) == []
    assert request["subject"]["reference"] == imaging["subject"]["reference"] == f"Patient/{patient['id']}"
    assert imaging["basedOn"][0]["reference"] == f"ServiceRequest/{request['id']}"
    assert report["basedOn"][0]["reference"] == f"ServiceRequest/{request['id']}"
    assert report["imagingStudy"][0]["reference"] == f"ImagingStudy/{imaging['id']}"
    assert patient["identifier"][0]["system"] == "urn:id:HOSP" and patient["identifier"][0]["value"] == "4711"
    assert imaging["identifier"][0]["value"] == f"urn:oid:{study.study_instance_uid}"
    assert imaging["series"][0]["instance"][0]["title"] == "ORIGINAL\\PRIMARY"
    assert imaging["status"] == "available" and report["status"] == "final"
    assert endpoint["address"].endswith("/dicomweb")


def test_the_capability_statement_lists_what_can_be_searched(fhir: Fhir) -> None:
    said = fhir.get("metadata")
    assert said["fhirVersion"] == "4.0.1" and problems(said) == []
    served = {r["type"]: {p["name"] for p in r["searchParam"]} for r in said["rest"][0]["resource"]}
    assert set(served) == {"Patient", "ServiceRequest", "ImagingStudy", "DiagnosticReport", "Endpoint"}
    for kind in ("ServiceRequest", "ImagingStudy", "DiagnosticReport"):
        assert {"_id", "identifier", "patient", "status"} <= served[kind]


def test_an_order_and_its_study_are_found_by_accession_uid_and_patient(fhir: Fhir) -> None:
    procedure, study, version = whole()
    other = imaged(ordered("A200", patient="4712"), patient="4712")
    patient = procedure.request.patient_id
    uid = study.study_instance_uid
    assert fhir.ids("ServiceRequest?identifier=A100") == [str(procedure.id)]
    assert fhir.ids("ServiceRequest?identifier=urn:id:EHR|P-A100") == [str(procedure.id)]
    assert fhir.ids("ServiceRequest?identifier=urn:id:OTHER|P-A100") == []
    for query in (
        f"identifier={uid}",
        f"identifier=urn:oid:{uid}",
        f"identifier=urn:dicom:uid|urn:oid:{uid}",
        "identifier=A100",
        "identifier=A100,NONE",
        f"patient={patient}",
        f"patient=Patient/{patient}",
        f"subject=http://elsewhere/fhir/Patient/{patient}",
        f"patient:Patient={patient}",
        f"basedon=ServiceRequest/{procedure.id}",
        f"based-on={procedure.id}",
        f"_id={study.id}",
        "status=available",
    ):
        assert fhir.ids(f"ImagingStudy?{query}") == [str(study.id)], query
    assert fhir.ids("ImagingStudy?status=registered") == [str(other.id)]
    assert fhir.ids(f"ImagingStudy?_id={study.id},{other.id}") == [str(other.id), str(study.id)]
    assert fhir.ids(f"ImagingStudy?patient={patient}&status=registered") == []
    assert fhir.ids(f"ImagingStudy?patient=Device/{patient}") == []
    assert fhir.ids(f"DiagnosticReport?patient={patient}&status=final") == [str(version.report_id)]
    assert fhir.ids("DiagnosticReport?identifier=A100") == [str(version.report_id)]
    assert fhir.ids("Patient?identifier=4711") == [str(patient)]
    assert fhir.ids("Patient?identifier=urn:id:HOSP|4711&name=somm") == [str(patient)]
    assert fhir.ids("Patient?identifier=urn:id:CITY|4711") == []
    assert fhir.ids("Patient?_id=no-such-id") == []


def test_the_status_in_the_resource_is_the_status_that_finds_it(fhir: Fhir) -> None:
    procedures = {
        status: ordered(f"A-{status}", patient=str(number))
        for number, status in enumerate(
            ("SCHEDULED", "HELD", "COMPLETED", "CANCELED", "DISCONTINUED", "STARTED")
        )
    }
    for status, procedure in procedures.items():
        if status != "SCHEDULED":
            moved(procedure, status, "clerk")
    seen = []
    for status in ("active", "on-hold", "completed", "revoked"):
        for pk in fhir.ids(f"ServiceRequest?status={status}"):
            assert fhir.get(f"ServiceRequest/{pk}")["status"] == status
            seen.append(pk)
    assert sorted(seen) == sorted(str(p.id) for p in procedures.values())


def test_a_draft_is_not_shown_and_an_addendum_is(fhir: Fhir) -> None:
    procedure = ordered()
    with unit_of_work("user:1") as unit:
        draft = reports.open_draft(procedure.id, reader(), unit)
    fhir.get(f"DiagnosticReport/{draft.id}", 404)
    assert fhir.ids("DiagnosticReport") == []
    signed(procedure, "First <b>text</b>.", "OK")
    addended(procedure, "Second text.")
    report = fhir.get(f"DiagnosticReport/{draft.id}")
    assert report["status"] == "appended" and "Second text." in report["text"]["div"]
    assert "&lt;b&gt;" in report["text"]["div"] and problems(report) == []


def test_an_unmatched_study_names_no_patient_of_ours(fhir: Fhir) -> None:
    study = make_study(patient_id="STRANGER", issuer="ELSEWHERE")
    resource = fhir.get(f"ImagingStudy/{study.id}")
    assert "reference" not in resource["subject"] and problems(resource) == []
    assert resource["subject"]["identifier"]["value"] == "STRANGER"


def test_a_merged_patient_stays_readable_with_a_link(fhir: Fhir) -> None:
    old, new = (register(who(n)).patient_ids[0] for n in ("1", "2"))
    with unit_of_work("hl7:1") as unit:
        merging.merge(MergePatients(who("2"), (Identifier("1", "HOSP"),)), unit)
    retired = fhir.get(f"Patient/{old}")
    assert retired["active"] is False and retired["link"][0]["type"] == "replaced-by"
    assert fhir.get(f"Patient/{new}")["link"][0]["other"]["reference"] == f"Patient/{old}"
    assert fhir.ids("Patient?active=true") == [str(new)]


def test_pages_lead_to_every_result_once_while_others_arrive(fhir: Fhir) -> None:
    wanted = [str(register(who(str(number))).patient_ids[0]) for number in range(7)]
    page = fhir.get("Patient?_count=3&active=true")
    assert page["total"] == 7
    seen = []
    for _ in range(5):
        seen += [e["resource"]["id"] for e in page["entry"]]
        register(who(f"late-{len(seen)}"))
        onward = [link["url"] for link in page["link"] if link["relation"] == "next"]
        if not onward:
            break
        assert "active=true" in onward[0]
        page = fhir.get(onward[0])
    assert sorted(seen) == sorted(wanted) and len(seen) == len(set(seen))


def test_a_bundle_is_right_r4_and_echoes_what_was_used(fhir: Fhir) -> None:
    whole()
    bundle = fhir.get("ImagingStudy?status=available&colour=red&_sort=x")
    assert problems({**bundle, "id": "x"}) == []
    assert bundle["link"][0]["url"].endswith("/fhir/r4/ImagingStudy?status=available")
    assert bundle["entry"][0]["search"]["mode"] == "match"
    fhir.get("ImagingStudy?colour=red", 400, Prefer="handling=strict")


def test_summaries_leave_out_instances_or_everything(fhir: Fhir) -> None:
    whole()
    short = fhir.get("ImagingStudy?_summary=true")["entry"][0]["resource"]
    assert "instance" not in short["series"][0] and short["meta"]["tag"][0]["code"] == "SUBSETTED"
    counted = fhir.get("ImagingStudy?_summary=count")
    assert counted["total"] == 1 and "entry" not in counted
    assert "entry" not in fhir.get("ImagingStudy?_count=0")


def test_a_search_by_post_finds_the_same(fhir: Fhir) -> None:
    procedure, _, _ = whole()
    response = fhir.client.generic(
        "POST", "/fhir/r4/ServiceRequest/_search", b"identifier=A100", "application/x-www-form-urlencoded"
    )
    assert json.loads(response.content)["entry"][0]["resource"]["id"] == str(procedure.id)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("Patient/01977777-0000-7000-8000-000000000000", 404),
        ("Patient/nobody", 404),
        ("Observation", 404),
        ("Observation/1", 404),
        ("no/such/place", 404),
        ("Patient?_count=many", 400),
        ("Patient?_count=-1", 400),
        ("Patient?_cursor=%21%21", 400),
        ("Patient?_cursor=abc", 400),
        ("Patient?_summary=some", 400),
        ("Patient?name:contains=x", 400),
    ],
)
def test_every_refusal_is_an_operation_outcome(fhir: Fhir, path: str, status: int) -> None:
    said = fhir.get(path, status)
    assert said["resourceType"] == "OperationOutcome" and problems(said) == []
    assert said["issue"][0]["severity"] == "error"


@pytest.mark.parametrize("method", ["put", "post", "delete", "patch", "options"])
def test_what_cannot_be_done_here_is_405(fhir: Fhir, method: str) -> None:
    response = getattr(fhir.client, method)("/fhir/r4/Patient/x", content_type="application/fhir+json")
    assert response.status_code == 405
    assert json.loads(response.content)["resourceType"] == "OperationOutcome"


def test_a_body_of_another_kind_is_415(fhir: Fhir) -> None:
    response = fhir.client.post("/fhir/r4/Patient/_search", b"{}", content_type="application/json")
    assert response.status_code == 415
    assert json.loads(response.content)["resourceType"] == "OperationOutcome"


def test_our_own_fault_is_an_operation_outcome_without_its_text(
    fhir: Fhir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(loading, "surroundings", broken)
    said = fhir.get("Patient", 500)
    assert said["issue"][0]["code"] == "exception" and "secret" not in json.dumps(said)


@pytest.mark.parametrize(
    "accept",
    [
        "application/fhir+json",
        "application/fhir+json; fhirVersion=4.0",
        "application/fhir+json;charset=utf-8",
        "application/json",
        "*/*",
        "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        "application/fhir+xml, application/fhir+json",
    ],
)
def test_what_clients_accept_is_understood(fhir: Fhir, accept: str) -> None:
    assert fhir.get("metadata", Accept=accept)["resourceType"] == "CapabilityStatement"


@pytest.mark.parametrize(
    "accept", ["application/fhir+xml", "application/fhir+json; fhirVersion=5.0", "image/png"]
)
def test_what_we_do_not_speak_is_406(fhir: Fhir, accept: str) -> None:
    assert fhir.get("metadata", 406, Accept=accept)["resourceType"] == "OperationOutcome"
    assert fhir.get("Patient?_format=json")["resourceType"] == "Bundle"


def test_nobody_comes_in_without_a_live_token() -> None:
    bare = Client()
    for path in ("metadata", "Patient", "Patient/x", "nothing"):
        response = bare.get(f"/fhir/r4/{path}")
        assert response.status_code == 401 and response.headers["WWW-Authenticate"].startswith("Bearer")
        assert json.loads(response.content)["issue"][0]["code"] == "login"
    fhir = Fhir()
    ApiToken.objects.update(expires_at=now() - timedelta(seconds=1))
    fhir.get("Patient", 401)


@pytest.mark.parametrize("role", list(Role))
def test_each_role_sees_what_it_may(role: Role) -> None:
    procedure, _, version = whole()
    fhir = Fhir(role)
    fhir.get("metadata")
    if role == Role.ANALYST:
        fhir.get("Patient", 403)
        return
    shown = 0 if role == Role.REFERRER else 1
    for kind in ("Patient", "ServiceRequest", "ImagingStudy", "DiagnosticReport"):
        assert fhir.get(kind)["total"] == shown
    fhir.get(f"Patient/{procedure.request.patient_id}", 200 if shown else 404)
    fhir.get(f"DiagnosticReport/{version.report_id}", 200 if shown else 404)


def test_a_person_with_a_session_may_read_too() -> None:
    user = get_user_model().objects.create_user("clerk", password="x")
    user.groups.add(Group.objects.get_or_create(name=Role.CLERK)[0])
    client = Client()
    client.force_login(user)
    register(who())
    assert json.loads(client.get("/fhir/r4/Patient").content)["total"] == 1


def test_every_access_leaves_an_audit_row_without_health_data(fhir: Fhir) -> None:
    procedure, _, _ = whole()
    before = AuditEvent.objects.count()
    fhir.get(f"Patient/{procedure.request.patient_id}")
    fhir.get("ImagingStudy?identifier=A100")
    rows = list(AuditEvent.objects.order_by("id")[before:])
    assert [(r.action, r.what) for r in rows] == [("read", "fhir:Patient"), ("search", "fhir:ImagingStudy")]
    assert all(r.patient_ids == [str(procedure.request.patient_id)] for r in rows)
    assert rows[0].actor.startswith("token:") and rows[1].detail == {"count": 1, "parameters": ["identifier"]}
    assert not any("A100" in json.dumps(r.detail) for r in rows)


def test_a_page_of_many_costs_a_bounded_number_of_queries(
    fhir: Fhir, django_assert_max_num_queries: Any
) -> None:
    for number in range(6):
        procedure = ordered(f"A{number}", patient=str(number))
        imaged(procedure, patient=str(number))
        signed(procedure)
    assert Patient.objects.count() == 6
    for kind in ("Patient", "ServiceRequest", "ImagingStudy", "DiagnosticReport"):
        with django_assert_max_num_queries(11):
            assert len(fhir.ids(kind)) == 6
