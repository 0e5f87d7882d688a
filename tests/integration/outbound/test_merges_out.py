"""Merges and moves as others hear of them: FHIR servers see who has what now, a HIS hears what it can understand."""

from typing import Any

import pytest

from common.store import unit_of_work
from integration import delivery
from integration.models import OutboxItem
from pacs.models import Study
from ris.commands import Identifier, MoveIdentifiers
from ris.models import PatientIdentifier, PatientMerge
from ris.services import merging
from tests.integration.outbound.making import fhir_destination, hl7_destination, imaged, ordered, signed
from tests.integration.outbound.test_delivery import drain
from tests.peers.fhir_server import FhirReceiver
from tests.peers.his import His
from tests.ris.making import register, who

pytestmark = pytest.mark.django_db


def patient_of(value: str) -> Any:
    return PatientIdentifier.objects.get(value=value).patient


def undo() -> None:
    with unit_of_work("user:1") as unit:
        merging.unmerge(PatientMerge.objects.filter(undone_at=None).latest("at").id, unit)


def reported(accession: str, patient: str) -> None:
    """An order of this patient with images and a signed report."""
    procedure = ordered(accession, patient=patient)
    study = imaged(procedure, patient=patient)
    Study.objects.filter(pk=study.pk).update(settled_at=study.received_at)
    signed(procedure)


def subjects(server: FhirReceiver) -> set[str]:
    """Whom everything at the server is about."""
    kinds = ("ImagingStudy", "DiagnosticReport", "ServiceRequest")
    return {r["subject"]["reference"] for kind in kinds for r in server.of(kind)}


def test_a_fhir_server_sees_a_merge_and_its_undoing() -> None:
    with FhirReceiver() as server:
        destination = fhir_destination(server.url)
        register(who("9"))
        reported("A1", "1")
        drain(destination)
        one, nine = patient_of("1"), patient_of("9")
        with unit_of_work("user:1") as unit:
            merging.merge_by_hand(nine.id, one.id, unit)
        drain(destination)
        assert subjects(server) == {f"Patient/{nine.id}"}
        assert server.resources[f"Patient/{one.id}"]["active"] is False
        undo()
        drain(destination)
        assert subjects(server) == {f"Patient/{one.id}"}
        back = server.resources[f"Patient/{one.id}"]
        assert back.get("active") is not False and not back.get("link")
        assert not server.resources[f"Patient/{nine.id}"].get("link")
        assert server.unresolved == []


def test_a_fhir_server_sees_a_move_and_no_merge() -> None:
    with FhirReceiver() as server:
        destination = fhir_destination(server.url)
        register(who("9"))
        register(who("1", Identifier("2", "HOSP")))
        reported("A1", "1")
        drain(destination)
        one, nine = patient_of("1"), patient_of("9")
        with unit_of_work("hl7:7") as unit:
            merging.move_identifiers(
                MoveIdentifiers(who("9"), (Identifier("1", "HOSP"),), (Identifier("2", "HOSP"),)), unit
            )
        drain(destination)
        assert subjects(server) == {f"Patient/{nine.id}"}
        assert server.resources[f"Patient/{one.id}"].get("active") is not False
        values = {i["value"] for i in server.resources[f"Patient/{one.id}"]["identifier"]}
        assert values == {"2"}


def test_a_his_hears_a40_of_a_merge_and_a08_of_its_undoing_and_of_a_move() -> None:
    with His() as his:
        destination = hl7_destination(his.port, messages=("ADT",), lane="destination")
        register(who("9"))
        register(who("1", Identifier("2", "HOSP")))
        drain(destination)
        his.received.clear()
        with unit_of_work("user:1") as unit:
            merging.merge_by_hand(patient_of("9").id, patient_of("1").id, unit)
        drain(destination)
        assert [r.field("MSH", 8)[:7] for r in his.received] == ["ADT^A40"]
        his.received.clear()
        undo()
        drain(destination)
        told = {r.field("PID", 3).partition("^")[0]: r.field("MSH", 8)[:7] for r in his.received}
        assert told == {"1": "ADT^A08", "9": "ADT^A08"}
        his.received.clear()
        with unit_of_work("hl7:7") as unit:
            merging.move_identifiers(
                MoveIdentifiers(who("9"), (Identifier("2", "HOSP"),), (Identifier("1", "HOSP"),)), unit
            )
        drain(destination)
        assert {r.field("MSH", 8)[:7] for r in his.received} == {"ADT^A08"}
        assert any("2^^^HOSP" in r.field("PID", 3) for r in his.received if "9^^^HOSP" in r.field("PID", 3))
        assert not OutboxItem.objects.filter(state="queued").exists()
        assert delivery.drain(destination.id) == (0, False)
