"""What a command must know before it decides, read in one query: patients, orders, procedures, steps."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, TypeVar
from uuid import UUID

import orjson
from django.db import models

from common.store import hydrate, prepared
from ris.models import (
    ImagingServiceRequest,
    Patient,
    PatientIdentifier,
    RequestedProcedure,
    ScheduledProcedureStep,
    Visit,
)

M = TypeVar("M", bound=models.Model)

_QUERY = """
WITH RECURSIVE wanted AS (
    SELECT id FROM ris_imagingservicerequest
    WHERE accession_number <> '' AND accession_number = ANY(%(accessions)s::text[])
    UNION SELECT id FROM ris_imagingservicerequest WHERE placer_order_number = ANY(%(placers)s::text[])
    UNION SELECT id FROM ris_imagingservicerequest WHERE filler_order_number = ANY(%(fillers)s::text[])
    UNION SELECT request_id FROM ris_requestedprocedure WHERE study_instance_uid = ANY(%(studies)s::text[])
    UNION SELECT request_id FROM ris_requestedprocedure WHERE placer_order_number = ANY(%(placers)s::text[])
    UNION SELECT request_id FROM ris_requestedprocedure WHERE filler_order_number = ANY(%(fillers)s::text[])
    UNION SELECT request_id FROM ris_requestedprocedure WHERE id = ANY(%(procedures)s::uuid[])
    UNION SELECT unnest(%(requests)s::uuid[])
), reached AS (
    SELECT r.* FROM ris_imagingservicerequest r JOIN wanted USING (id)
), people AS (
    SELECT p.* FROM ris_patient p WHERE p.id IN (
        SELECT i.patient_id FROM ris_patientidentifier i WHERE i.value = ANY(%(values)s::text[])
        UNION SELECT patient_id FROM reached
        UNION SELECT unnest(%(patients)s::uuid[]))
    UNION
    SELECT p.* FROM ris_patient p JOIN people f ON p.id = f.merged_into_id
), doing AS (
    SELECT p.* FROM ris_requestedprocedure p WHERE p.request_id IN (SELECT id FROM reached)
)
SELECT jsonb_build_object(
    'patients', (SELECT jsonb_agg(to_jsonb(t)) FROM people t),
    'identifiers', (SELECT jsonb_agg(to_jsonb(t)) FROM ris_patientidentifier t
                    WHERE t.patient_id IN (SELECT id FROM people)),
    'visits', (SELECT jsonb_agg(to_jsonb(t)) FROM ris_visit t
               WHERE t.patient_id IN (SELECT id FROM people) AND (t.admission_id = ANY(%(admissions)s::text[])
               OR t.id IN (SELECT visit_id FROM reached))),
    'requests', (SELECT jsonb_agg(to_jsonb(t) ORDER BY t.created_at) FROM reached t),
    'procedures', (SELECT jsonb_agg(to_jsonb(t) ORDER BY t.created_at, t.id) FROM doing t),
    'steps', (SELECT jsonb_agg(to_jsonb(t) ORDER BY t.created_at, t.id) FROM ris_scheduledprocedurestep t
              WHERE t.procedure_id IN (SELECT id FROM doing)),
    'matched', (SELECT jsonb_agg(t.procedure_id) FROM ris_studymatch t
                WHERE t.undone_at IS NULL AND t.procedure_id IN (SELECT id FROM doing))
)::text
"""


class Context:
    """The rows around a command. What a service adds is added here too, so that later groups find it."""

    def __init__(self) -> None:
        self.patients: dict[UUID, Patient] = {}
        self.identifiers: dict[UUID, list[PatientIdentifier]] = defaultdict(list)
        self.visits: list[Visit] = []
        self.requests: dict[UUID, ImagingServiceRequest] = {}
        self.procedures: dict[UUID, list[RequestedProcedure]] = defaultdict(list)
        """By request id."""
        self.steps: dict[UUID, list[ScheduledProcedureStep]] = defaultdict(list)
        """By procedure id."""
        self.matched: set[UUID] = set()
        """Ids of procedures that a study is linked to."""

    def surviving(self, patient_id: UUID) -> Patient:
        """The patient with this id, or the one it was merged into, however often."""
        patient = self.patients[patient_id]
        while patient.merged_into_id is not None:
            patient = self.patients[patient.merged_into_id]
        return patient

    def patient_of(self, request: ImagingServiceRequest) -> Patient:
        """The surviving patient of an order."""
        return self.surviving(request.patient_id)

    def identifiers_of(self, patient: Patient) -> tuple[PatientIdentifier, ...]:
        """The current identifiers of a patient, the one to show first."""
        current = [i for i in self.identifiers[patient.id] if i.status == PatientIdentifier.Status.CURRENT]
        return tuple(sorted(current, key=lambda i: (i.position, i.id)))

    def visit_of(self, request: ImagingServiceRequest) -> Visit | None:
        """The visit an order belongs to."""
        return next((v for v in self.visits if v.id == request.visit_id), None)

    def steps_of(self, request: ImagingServiceRequest) -> list[ScheduledProcedureStep]:
        """All steps of an order."""
        return [s for p in self.procedures[request.id] for s in self.steps[p.id]]

    def add_request(self, request: ImagingServiceRequest) -> None:
        """A new order."""
        self.requests[request.id] = request

    def add_procedure(self, procedure: RequestedProcedure) -> None:
        """A new procedure."""
        self.procedures[procedure.request_id].append(procedure)

    def add_step(self, step: ScheduledProcedureStep) -> None:
        """A new step."""
        self.steps[step.procedure_id].append(step)


def load(
    *,
    identifiers: Iterable[str] = (),
    admissions: Iterable[str] = (),
    accessions: Iterable[str] = (),
    placers: Iterable[str] = (),
    fillers: Iterable[str] = (),
    studies: Iterable[str] = (),
    patients: Iterable[UUID] = (),
    requests: Iterable[UUID] = (),
    procedures: Iterable[UUID] = (),
) -> Context:
    """Everything that these keys reach, in one query. Hold the lanes first (ris/services/lanes.py)."""
    parameters: dict[str, Any] = {
        "values": sorted({v for v in identifiers if v}),
        "admissions": sorted({v for v in admissions if v}),
        "accessions": sorted({v for v in accessions if v}),
        "placers": sorted({v for v in placers if v}),
        "fillers": sorted({v for v in fillers if v}),
        "studies": sorted({v for v in studies if v}),
        "patients": [str(p) for p in patients],
        "requests": [str(r) for r in requests],
        "procedures": [str(p) for p in procedures],
    }
    return _fill(orjson.loads(prepared(_QUERY, parameters)[0][0]))


def _fill(found: dict[str, Any]) -> Context:
    ctx = Context()
    for patient in _rows(Patient, found["patients"]):
        ctx.patients[patient.id] = patient
    for identifier in _rows(PatientIdentifier, found["identifiers"]):
        ctx.identifiers[identifier.patient_id].append(identifier)
    ctx.visits = _rows(Visit, found["visits"])
    for request in _rows(ImagingServiceRequest, found["requests"]):
        ctx.requests[request.id] = request
    for procedure in _rows(RequestedProcedure, found["procedures"]):
        ctx.procedures[procedure.request_id].append(procedure)
    for step in _rows(ScheduledProcedureStep, found["steps"]):
        ctx.steps[step.procedure_id].append(step)
    ctx.matched = {UUID(m) for m in found["matched"] or ()}
    return ctx


def _rows(model: type[M], found: list[dict[str, Any]] | None) -> list[M]:
    return [hydrate(model, columns) for columns in found or ()]
