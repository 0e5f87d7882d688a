"""What a command must know before it decides, read in one query: patients, orders, procedures, steps."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, TypeVar
from uuid import UUID

import orjson
from django.db import models

from common import wire
from common.store import hydrate
from ris.models import (
    ImagingServiceRequest,
    Patient,
    PatientIdentifier,
    RequestedProcedure,
    ScheduledProcedureStep,
    Visit,
)

M = TypeVar("M", bound=models.Model)

# Keys reach a handful of rows, whatever a table holds. Subqueries and arrays of ids keep the planner from joining
# whole tables: a prepared plan is made when it knows neither the keys nor how the tables will grow.
_QUERY = """
WITH RECURSIVE wanted AS MATERIALIZED (
    SELECT id FROM ris_imagingservicerequest
    WHERE accession_number <> '' AND accession_number = ANY($3::text[])
    UNION ALL SELECT id FROM ris_imagingservicerequest WHERE placer_order_number = ANY($4::text[])
    UNION ALL SELECT id FROM ris_imagingservicerequest WHERE filler_order_number = ANY($5::text[])
    UNION ALL SELECT request_id FROM ris_requestedprocedure WHERE study_instance_uid = ANY($6::text[])
    UNION ALL SELECT request_id FROM ris_requestedprocedure WHERE placer_order_number = ANY($4::text[])
    UNION ALL SELECT request_id FROM ris_requestedprocedure WHERE filler_order_number = ANY($5::text[])
    UNION ALL SELECT request_id FROM ris_requestedprocedure WHERE id = ANY($9::uuid[])
    UNION ALL SELECT unnest($8::uuid[])
), reached AS MATERIALIZED (
    SELECT r.* FROM ris_imagingservicerequest r WHERE r.id = ANY(ARRAY(SELECT id FROM wanted))
), people AS (
    (SELECT i.patient_id AS id FROM ris_patientidentifier i WHERE i.value = ANY($1::text[])
     UNION ALL SELECT patient_id FROM reached
     UNION ALL SELECT unnest($7::uuid[]))
    UNION
    SELECT (SELECT p.merged_into_id FROM ris_patient p WHERE p.id = people.id) FROM people WHERE people.id IS NOT NULL
), doing AS MATERIALIZED (
    SELECT p.* FROM ris_requestedprocedure p WHERE p.request_id = ANY(ARRAY(SELECT id FROM reached))
)
SELECT json_build_object(
    'patients', (SELECT json_agg(t) FROM ris_patient t WHERE t.id = ANY(ARRAY(SELECT id FROM people))),
    'identifiers', (SELECT json_agg(t) FROM ris_patientidentifier t
                    WHERE t.patient_id = ANY(ARRAY(SELECT id FROM people))),
    'visits', (SELECT json_agg(t) FROM ris_visit t
               WHERE t.patient_id = ANY(ARRAY(SELECT id FROM people))
               AND (t.admission_id = ANY($2::text[])
                    OR t.id = ANY(ARRAY(SELECT visit_id FROM reached)))),
    'requests', (SELECT json_agg(t ORDER BY t.created_at) FROM reached t),
    'procedures', (SELECT json_agg(t ORDER BY t.created_at, t.id) FROM doing t),
    'steps', (SELECT json_agg(t ORDER BY t.created_at, t.id) FROM ris_scheduledprocedurestep t
              WHERE t.procedure_id = ANY(ARRAY(SELECT id FROM doing))),
    'matched', (SELECT json_agg(t.procedure_id) FROM ris_studymatch t
                WHERE t.undone_at IS NULL AND t.procedure_id = ANY(ARRAY(SELECT id FROM doing)))
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


def load(**keys: Iterable[Any]) -> Context:
    """Everything that these keys reach, in one query. Hold the lanes first (ris/services/lanes.py).

    Texts: `identifiers` `admissions` `accessions` `placers` `fillers` `studies`; row ids: `patients` `requests`
    `procedures`.
    """
    return ask(**keys)()


def ask(
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
) -> Callable[[], Context]:
    """As `load`, for a query that travels with others (common/wire.py); call what is returned after it."""
    texts = (identifiers, admissions, accessions, placers, fillers, studies)
    ids = (patients, requests, procedures)
    answer = wire.ask(
        _QUERY,
        [*(sorted({t for t in some if t}) for some in texts), *([str(i) for i in some] for some in ids)],
    )
    return lambda: _fill(orjson.loads(answer()[0][0] or b"{}"))


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
