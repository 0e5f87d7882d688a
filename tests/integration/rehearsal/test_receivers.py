"""The rehearsal's receiving peers over real sockets: proper ACKs, lost ones, and a small FHIR server."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from integration.hl7v2.sender import NotAnswered, Sender
from integration.rehearsal.receivers import FhirReceiver, HisReceiver


def oru(control_id: str) -> bytes:
    return f"MSH|^~\\&|ORDERLY|S|HIS|H|20260302||ORU^R01|{control_id}|T|2.5.1\rPID|1||4711\r".encode()


@pytest.fixture
def fhir() -> Iterator[FhirReceiver]:
    server = FhirReceiver()
    yield server
    server.close()


def test_a_message_is_acknowledged_by_name_and_logged() -> None:
    his = HisReceiver()
    with Sender("127.0.0.1", his.port, ack_timeout=5) as sender:
        answer = sender.send(oru("M1"), "M1")
    assert (answer.code, [r.control_id for r in his.log], his.log[0].raw) == ("AA", ["M1"], oru("M1"))
    his.close()


def test_a_dropped_message_is_logged_without_an_acknowledgement_and_taken_when_it_comes_again() -> None:
    his = HisReceiver(lambda number: number == 0)
    with Sender("127.0.0.1", his.port, ack_timeout=5) as sender:
        with pytest.raises(NotAnswered):
            sender.send(oru("M1"), "M1")
        assert sender.send(oru("M1"), "M1").accepted
    assert [r.acknowledged for r in his.log] == [False, True]
    his.close()


def test_what_is_no_hl7_is_logged_and_not_accepted() -> None:
    his = HisReceiver()
    with Sender("127.0.0.1", his.port, ack_timeout=1) as sender, pytest.raises(NotAnswered):
        sender.send(b"hello", "M1")
    assert [(r.message, r.acknowledged) for r in his.log] == [(None, False)]
    his.close()


def call(fhir: FhirReceiver, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any], Any]:
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(
        fhir.url + path, data, {"Content-Type": "application/fhir+json"}, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, json.load(error), error.headers


def test_a_resource_is_put_read_and_versioned_by_its_content(fhir: FhirReceiver) -> None:
    patient = {"resourceType": "Patient", "id": "a", "gender": "female"}
    assert call(fhir, "PUT", "/Patient/a", patient)[0] == 201
    status, _, headers = call(fhir, "PUT", "/Patient/a", patient)
    assert (status, headers["ETag"]) == (200, 'W/"1"')
    assert call(fhir, "PUT", "/Patient/a", {**patient, "gender": "male"})[2]["ETag"] == 'W/"2"'
    assert call(fhir, "GET", "/Patient/a")[1]["gender"] == "male"
    assert (fhir.resources["Patient/a"].versions, fhir.resources["Patient/a"].puts) == (2, 3)
    assert [c.method for c in fhir.log] == ["PUT", "PUT", "PUT", "GET"]


def test_a_transaction_of_puts_is_taken_and_others_are_refused(fhir: FhirReceiver) -> None:
    patient = {"resourceType": "Patient", "id": "a"}
    entry = {"resource": patient, "request": {"method": "PUT", "url": "Patient/a"}}
    status, body, _ = call(
        fhir, "POST", "", {"resourceType": "Bundle", "type": "transaction", "entry": [entry]}
    )
    assert (status, body["entry"][0]["response"]["status"]) == (200, "201")
    assert call(fhir, "PUT", "/Patient/b", patient)[0] == 400
    assert call(fhir, "POST", "/Patient", patient)[0] == 405
    assert call(fhir, "GET", "/Patient/none")[0] == 404
    assert call(fhir, "GET", "/metadata")[1]["fhirVersion"] == "4.0.1"
