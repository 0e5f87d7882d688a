"""Studies and orders: linking by decision or by a clerk, undoing, and the corrected attributes that follow."""

from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import connection

from common.clock import site_zone
from common.store import Unit
from pacs import overlay
from pacs.events import StudySettled
from pacs.models import Study
from ris import context, history
from ris.context import Context
from ris.errors import DuplicateKey, NotAllowed, UnknownKey
from ris.events import CaseOpened, PatientChanged, PatientsMerged, StudyGrew, StudyMatched
from ris.models import (
    AssigningAuthority,
    Patient,
    PatientIdentifier,
    PerformedProcedureStep,
    ReconciliationCase,
    RequestedProcedure,
    StudyMatch,
)
from ris.models.schedule import StepStatus
from ris.reconciliation.evidence import ProcedureFacts, StudyFacts, Weighed, weigh
from ris.reconciliation.matching import Decision, decide
from ris.services import authorities, lanes, steps

Case = ReconciliationCase.State


def on_study_settled(event: StudySettled, unit: Unit) -> None:
    """A study has been quiet for a while: match it, or open a case for a clerk."""
    reconcile(event.study, unit)


def reconcile(study: Study, unit: Unit) -> StudyMatch | None:
    """Match a study that has no order yet; returns its match, or None when a case is open for it."""
    match = StudyMatch.objects.filter(study=study, undone_at__isnull=True).select_related("procedure").first()
    if match is not None:
        unit.publish(StudyGrew(study=study, match=match))
        return match
    case = ReconciliationCase.objects.select_for_update().filter(study=study).first()
    if case is not None and case.state == Case.DISMISSED:
        unit.publish(StudyGrew(study=study, match=None))
        return None
    facts = study_facts(study)
    ctx = _candidates(facts)
    decision = decide(facts, [procedure_facts(p, ctx) for ps in ctx.procedures.values() for p in ps])
    undone = StudyMatch.objects.filter(study=study, undone_at__isnull=False).exists()
    if decision.winner is not None and not undone:
        return _link(study, decision.winner, decision.method, ctx, unit, case)
    _open_case(study, case, decision, undone, unit)
    return None


def study_facts(study: Study) -> StudyFacts:
    """What the images say, as received: an overlay never proves itself."""
    series = list(study.series.all())
    as_received = {c: overlay.received(study, k) or "" for k, c in _COMPARED.items()}
    acquired = None
    if study.study_date is not None:
        moment = datetime.combine(study.study_date, study.study_time or datetime.min.time())
        acquired = moment.replace(tzinfo=site_zone())
    return StudyFacts(
        study_instance_uid=study.study_instance_uid,
        modalities=frozenset(study.modalities_in_study),
        requested_procedure_ids=frozenset(s.requested_procedure_id for s in series),
        scheduled_procedure_step_ids=frozenset(s.scheduled_procedure_step_id for s in series),
        stations=frozenset({study.calling_ae, *(s.station_name for s in series)}),
        acquired_at=acquired,
        **as_received,
    )


_COMPARED = {
    "AccessionNumber": "accession_number",
    "PatientID": "patient_id",
    "IssuerOfPatientID": "issuer_of_patient_id",
    "PatientName": "patient_name",
    "PatientBirthDate": "patient_birth_date",
    "PatientSex": "patient_sex",
}


def procedure_facts(procedure: RequestedProcedure, ctx: Context) -> ProcedureFacts:
    """What an ordered procedure says, with all identifiers its patient ever had."""
    request = ctx.requests[procedure.request_id]
    patient = ctx.patient_of(request)
    planned = ctx.steps[procedure.id]
    identifiers = set()
    for owner, rows in ctx.identifiers.items():
        if ctx.surviving(owner).id == patient.id:
            for row in rows:
                authority = authorities.by_id(row.authority_id) or AssigningAuthority()
                identifiers.add((row.value, authority.namespace, authority.universal_id))
    ended = (StepStatus.CANCELED, StepStatus.DISCONTINUED)
    return ProcedureFacts(
        procedure_id=str(procedure.id),
        study_instance_uid=procedure.study_instance_uid,
        accession_number=request.accession_number,
        identifiers=frozenset(identifiers),
        patient_name=patient.patient_name,
        patient_birth_date=patient.patient_birth_date,
        patient_sex=patient.patient_sex,
        requested_procedure_id=procedure.requested_procedure_id,
        scheduled_procedure_step_ids=frozenset(s.scheduled_procedure_step_id for s in planned),
        modalities=frozenset(s.modality for s in planned if s.modality),
        stations=frozenset(
            t for s in planned for t in (*s.scheduled_station_ae_titles, *s.scheduled_station_names)
        ),
        starts=tuple(s.start for s in planned if s.start),
        is_open=procedure.id not in ctx.matched and not all(s.status in ended for s in planned),
    )


def _candidates(facts: StudyFacts) -> Context:
    """Orders by the study's UID, its accession number, or its patient; read again once their lanes are held."""
    keys: dict[str, list[Any]] = {
        "studies": [facts.study_instance_uid],
        "accessions": [facts.accession_number],
        "identifiers": [facts.patient_id],
    }
    ctx = context.load(**keys)
    people = [p.id for p in ctx.patients.values()]
    lanes.lock_patients(people)
    requests = _open_requests(people)
    retired = Patient.objects.filter(merged_into_id__in=people).values_list("id", flat=True)
    return context.load(**keys, requests=requests, patients=retired)


def _open_requests(people: list[UUID]) -> list[UUID]:
    recent = RequestedProcedure.objects.filter(request__patient_id__in=people).order_by("-created_at")
    return list(recent.values_list("request_id", flat=True)[:40])


def _link(
    study: Study, winner: Weighed, method: str, ctx: Context, unit: Unit, case: ReconciliationCase | None
) -> StudyMatch:
    procedure = next(
        p for ps in ctx.procedures.values() for p in ps if str(p.id) == winner.procedure.procedure_id
    )
    request = ctx.requests[procedure.request_id]
    procedure.request = request
    patient = ctx.patient_of(request)
    match = StudyMatch(
        study=study,
        procedure=procedure,
        method=method,
        evidence=[e.plain() for e in winner.evidence],
        at=unit.at,
        cause=unit.cause,
    )
    unit.save(match)
    history.note(match, unit, patient.id, {"linked": [None, str(study.id)]})
    if case is not None:
        case.state, case.solved_at = Case.SOLVED, unit.at
        unit.save(case)
    correct(study, procedure, patient, ctx.identifiers_of(patient), unit)
    unit.publish(
        StudyMatched(study=study, match=match, procedure=procedure, request=request, patient=patient)
    )
    _complete_steps(procedure, ctx, unit)
    return match


def _complete_steps(procedure: RequestedProcedure, ctx: Context, unit: Unit) -> None:
    """Images of a step that no scanner reports on (no MPPS) complete it."""
    planned = {s.id: StepStatus.COMPLETED for s in ctx.steps[procedure.id]}
    reported = PerformedProcedureStep.objects.filter(steps__in=list(planned)).exists()
    if not reported:
        steps.move_all(ctx, planned, "images", unit)


def _open_case(
    study: Study, case: ReconciliationCase | None, decision: Decision, undone: bool, unit: Unit
) -> None:
    fresh = case is None or case.state == Case.SOLVED
    if case is None:
        case = ReconciliationCase(study=study, opened_at=unit.at, cause=unit.cause)
    if fresh:
        case.opened_at = unit.at
    case.checked_at = unit.at
    case.state, case.solved_at = Case.OPEN, None
    case.reason = "A clerk has undone its link." if undone else decision.reason
    case.candidates = [
        {
            "procedure_id": w.procedure.procedure_id,
            "score": w.score,
            "evidence": [e.plain() for e in w.evidence],
        }
        for w in decision.candidates
    ]
    unit.save(case)
    if fresh:
        unit.publish(CaseOpened(case=case))


def link(study_id: UUID, procedure_id: UUID, user: Any, unit: Unit) -> StudyMatch:
    """Link a study to a procedure by a clerk's decision. Raises UnknownKey, DuplicateKey if linked already."""
    study = Study.objects.select_for_update().filter(pk=study_id).first()
    if study is None:
        raise UnknownKey("This study does not exist (any more).", attribute="study")
    if StudyMatch.objects.filter(study=study, undone_at__isnull=True).exists():
        raise DuplicateKey("This study is linked already; undo that first.", attribute="study")
    ctx = context.load(procedures=[procedure_id])
    lanes.lock_patients(r.patient_id for r in ctx.requests.values())
    ctx = context.load(procedures=[procedure_id])
    procedure = next((p for ps in ctx.procedures.values() for p in ps if p.id == procedure_id), None)
    if procedure is None:
        raise UnknownKey("This procedure does not exist (any more).", attribute="requested_procedure_id")
    case = ReconciliationCase.objects.select_for_update().filter(study=study).first()
    if case is not None:
        case.owner = user
    weighed = weigh(study_facts(study), procedure_facts(procedure, ctx))
    return _link(study, weighed, StudyMatch.Method.CLERK, ctx, unit, case)


def unlink(study_id: UUID, user: Any, unit: Unit) -> ReconciliationCase:
    """Undo a study's link: its corrections are taken back and it waits for a clerk again. Raises NotAllowed."""
    study = Study.objects.select_for_update().get(pk=study_id)
    match = (
        StudyMatch.objects.filter(study=study, undone_at__isnull=True)
        .select_related("procedure__request__patient")
        .first()
    )
    if match is None:
        raise NotAllowed("This study is not linked.", attribute="study")
    procedure = match.procedure
    lanes.lock_patients([procedure.request.patient_id])
    match.undone_at, match.undone_cause = unit.at, unit.cause
    unit.save(match)
    history.note(match, unit, procedure.request.patient_id, {"linked": [str(study.id), None]})
    overlay.correct(study, {}, unit)
    unit.flush()
    unit.publish(
        StudyMatched(
            study=study,
            match=match,
            procedure=procedure,
            request=procedure.request,
            patient=procedure.request.patient,
        )
    )
    reconcile(study, unit)
    unit.flush()
    case = ReconciliationCase.objects.get(study=study)
    case.owner = user
    unit.save(case)
    return case


def dismiss(study_id: UUID, user: Any, unit: Unit) -> ReconciliationCase:
    """Leave a study without an order for good (a phantom, a foreign study). Raises NotAllowed if not waiting."""
    case = ReconciliationCase.objects.select_for_update().filter(study_id=study_id, state=Case.OPEN).first()
    if case is None:
        raise NotAllowed("This study does not wait for a decision.", attribute="study")
    case.state, case.solved_at, case.owner = Case.DISMISSED, unit.at, user
    unit.save(case)
    return case


def reopen(study_id: UUID, unit: Unit) -> None:
    """Look at a dismissed or waiting study again, for instance after its order came late."""
    study = Study.objects.select_for_update().get(pk=study_id)
    ReconciliationCase.objects.filter(study=study, state=Case.DISMISSED).update(state=Case.OPEN)
    reconcile(study, unit)


# From the orders that changed, which are few, to the cases that they may concern.
_DUE_AGAIN = """
WITH changed AS MATERIALIZED (
    SELECT id, patient_id, accession_number, updated_at FROM ris_imagingservicerequest
    WHERE updated_at > coalesce(
        %(since)s, (SELECT min(checked_at) FROM ris_reconciliationcase WHERE state = 'OPEN'))
), concerned AS (
    SELECT s.id, r.updated_at FROM changed r JOIN pacs_study s ON s.accession_number = r.accession_number
    WHERE r.accession_number <> ''
    UNION ALL
    SELECT s.id, r.updated_at FROM changed r JOIN ris_requestedprocedure p ON p.request_id = r.id
    JOIN pacs_study s ON s.study_instance_uid = p.study_instance_uid
    UNION ALL
    SELECT s.id, r.updated_at FROM changed r JOIN ris_patientidentifier i ON i.patient_id = r.patient_id
    JOIN pacs_study s ON s.patient_id = i.value
)
SELECT c.study_id FROM ris_reconciliationcase c JOIN concerned ON concerned.id = c.study_id
WHERE c.state = 'OPEN' AND concerned.updated_at > c.checked_at
GROUP BY c.study_id, c.opened_at ORDER BY c.opened_at LIMIT %(limit)s
"""


def due_again(limit: int = 100, since: datetime | None = None) -> list[UUID]:
    """Studies that wait for a clerk although an order that concerns them came or changed since.

    `since` leaves out orders that changed before; None looks at as many as the oldest waiting study asks for.
    """
    with connection.cursor() as cursor:
        cursor.execute(_DUE_AGAIN, {"limit": limit, "since": since})
        return [row[0] for row in cursor.fetchall()]


def recheck(study_id: UUID, unit: Unit) -> StudyMatch | None:
    """Compare a waiting study with the orders as they are now; returns its match if one became sure."""
    return reconcile(Study.objects.select_for_update().get(pk=study_id), unit)


# -- corrected attributes ------------------------------------------------------------------------------------


def correct(
    study: Study,
    procedure: RequestedProcedure,
    patient: Patient,
    identifiers: tuple[PatientIdentifier, ...],
    unit: Unit,
) -> None:
    """Let every DICOM answer about a study carry the order's patient (the stored files stay as they came)."""
    overlay.correct(study, corrected_attributes(procedure, patient, identifiers), unit)


def corrected_attributes(
    procedure: RequestedProcedure, patient: Patient, identifiers: tuple[PatientIdentifier, ...]
) -> dict[str, Any]:
    """DICOM keyword → value, from the order. What the order leaves empty corrects nothing."""
    request = procedure.request
    values = {
        "PatientName": patient.patient_name,
        "PatientBirthDate": patient.patient_birth_date if len(patient.patient_birth_date) == 8 else "",
        "PatientSex": patient.patient_sex,
        "AccessionNumber": request.accession_number,
        "ReferringPhysicianName": request.referring_physician_name,
    }
    if identifiers:
        first = identifiers[0]
        authority = (
            authorities.by_id(first.authority_id)
            or AssigningAuthority.objects.filter(pk=first.authority_id).first()
        )
        values["PatientID"] = first.value
        values["IssuerOfPatientID"] = (authority.namespace or authority.universal_id) if authority else ""
    return {k: v for k, v in values.items() if v}


def on_patient_changed(event: PatientChanged, unit: Unit) -> None:
    """A patient's new name or identifier reaches the studies that are linked to the patient's orders."""
    if event.created:
        return
    matches = StudyMatch.objects.filter(
        undone_at__isnull=True, procedure__request__patient_id=event.patient.id
    ).select_related("study", "procedure__request")
    for match in matches:
        correct(match.study, match.procedure, event.patient, event.identifiers, unit)


def on_patients_merged(event: PatientsMerged, unit: Unit) -> None:
    """After a merge (or its undoing) the studies of the orders that moved show the patient they moved to."""
    owner = event.retired if event.undone else event.survivor
    matches = StudyMatch.objects.filter(
        undone_at__isnull=True, procedure__request_id__in=event.moved.get("imagingservicerequest", [])
    ).select_related("study", "procedure__request")
    rows = unit.pending(PatientIdentifier)
    current = PatientIdentifier.Status.CURRENT
    known = {i.id: i for i in PatientIdentifier.objects.filter(patient_id=owner.id)}
    known.update({i.id: i for i in rows if i.patient_id == owner.id})
    identifiers = tuple(sorted((i for i in known.values() if i.status == current), key=lambda i: i.position))
    for match in matches:
        correct(match.study, match.procedure, owner, identifiers, unit)
