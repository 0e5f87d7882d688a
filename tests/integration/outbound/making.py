"""A signed report and its destinations, made by the product's own services."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model

from common.store import unit_of_work
from integration.models import Destination, OutboxItem
from pacs.models import Study
from ris.models import Practitioner, Report, ReportVersion, RequestedProcedure, ScheduledProcedureStep
from ris.reconciliation import cases
from ris.services import reports, steps
from tests.ris.making import group, make_study, place, register, who

FAST = {"retry_seconds": 0.02, "retry_seconds_most": 0.05, "ack_seconds": 1.0, "connect_seconds": 1.0}


def hl7_destination(
    port: int, name: str = "his", messages: tuple[str, ...] = ("ORU", "ORM"), **settings: Any
) -> Destination:
    """A destination on loopback with short bounds."""
    return Destination.objects.create(
        name=name, host="127.0.0.1", port=port, messages=list(messages), settings={**FAST, **settings}
    )


def fhir_destination(url: str, name: str = "mirror", **settings: Any) -> Destination:
    """A FHIR server on loopback with short bounds."""
    return Destination.objects.create(
        name=name, kind=Destination.Kind.FHIR, url=url, messages=["FHIR"], settings={**FAST, **settings}
    )


def reader() -> Any:
    """A radiologist who is a practitioner with a number."""
    user, made = get_user_model().objects.get_or_create(username="reader", defaults={"last_name": "Reader"})
    if made:
        Practitioner.objects.create(person_name="Winter^Rosa^^Dr", identifier="R77", user=user)
    return user


def ordered(accession: str = "A100", *, patient: str = "4711", **more: Any) -> RequestedProcedure:
    """A procedure of a registered patient, ordered with accession, placer number and one CT step."""
    register(who(patient))
    asked = group(accession=accession, placer=f"P-{accession}", **more)
    applied = place(asked, patient=who(patient, authoritative=False))
    return RequestedProcedure.objects.select_related("request").get(request_id=applied.request_ids[0])


def imaged(procedure: RequestedProcedure, patient: str = "4711") -> Study:
    """A study of the procedure, settled and matched."""
    study = make_study(
        uid=procedure.study_instance_uid, accession=procedure.request.accession_number, patient_id=patient
    )
    with unit_of_work(f"study:{study.id}") as unit:
        match = cases.reconcile(study, unit)
        assert match is not None
    study.refresh_from_db()
    return study


def signed(
    procedure: RequestedProcedure,
    findings: str = "Clear.\nNo mass.",
    impression: str = "Normal.",
    status: str = "FINAL",
) -> ReportVersion:
    """The procedure's report, drafted and signed."""
    user = reader()
    with unit_of_work(f"user:{user.pk}") as unit:
        report = reports.open_draft(procedure.id, user, unit)
    report = Report.objects.get(pk=report.pk)
    with unit_of_work(f"user:{user.pk}") as unit:
        reports.save_draft(report.id, report.draft_version, findings, impression, user, unit)
    with unit_of_work(f"user:{user.pk}") as unit:
        return reports.sign(report.id, user, unit, status)


def addended(procedure: RequestedProcedure, text: str) -> ReportVersion:
    """An addendum to the procedure's report."""
    user = reader()
    with unit_of_work(f"user:{user.pk}") as unit:
        return reports.addend(procedure.report.id, text, user, unit)


def moved(procedure: RequestedProcedure, status: str, actor: str = "scanner") -> None:
    """Every step of the procedure moved, one after the other."""
    for step in ScheduledProcedureStep.objects.filter(procedure=procedure).order_by("id"):
        with unit_of_work("mpps:1.2") as unit:
            steps.move(step.id, status, actor, unit)


def states(destination: Destination) -> list[str]:
    """The states of the destination's items, in order."""
    return list(
        OutboxItem.objects.filter(destination=destination).order_by("id").values_list("state", flat=True)
    )
