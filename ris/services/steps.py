"""Moving scheduled steps, and taking in what scanners say they performed (MPPS)."""

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from common.names import same_person_name
from common.store import Unit
from ris import context, history
from ris.commands import Identifier, OrderKeys, PerformedFacts
from ris.context import Context
from ris.errors import DuplicateKey, NotAllowed, UnknownKey
from ris.events import OrderChanged, StepMoved, StepPerformed
from ris.models import (
    PerformedProcedureStep,
    ScheduledProcedureStep,
)
from ris.models.schedule import StepStatus
from ris.services import authorities, images, lanes
from ris.services.orders import derived_status
from ris.transitions import TERMINAL, may_move

Performed = PerformedProcedureStep.Status
Trouble = PerformedProcedureStep.Trouble
AFTER = {
    Performed.IN_PROGRESS: StepStatus.STARTED,
    Performed.COMPLETED: StepStatus.COMPLETED,
    Performed.DISCONTINUED: StepStatus.DISCONTINUED,
}
"""Status of a performed step → that of the scheduled steps it performs."""
WRONG_WORKLIST_ENTRY = "110514"
"""DCM code: discontinued for an incorrect worklist entry selected (PS3.16 CID 9300)."""


def move(step_id: UUID, status: str, actor: str, unit: Unit) -> ScheduledProcedureStep:
    """Move one step. `actor` is `clerk`, `scanner`, `images`, `report` or `order` (ris/transitions.py).

    Raises UnknownKey for no such step, NotAllowed when the table says no.
    """
    step = ScheduledProcedureStep.objects.filter(pk=step_id).select_related("procedure__request").first()
    if step is None:
        raise UnknownKey("This step does not exist (any more).", attribute="scheduled_procedure_step_id")
    ctx = locked([step])
    return moved(ctx, {step_id: status}, actor, unit)[0]


def locked(steps: Iterable[ScheduledProcedureStep]) -> Context:
    """Their orders as they are now, with the lanes of their patients held."""
    requests = {s.procedure.request_id: s.procedure.request.patient_id for s in steps}
    lanes.lock_patients(requests.values())
    return context.load(requests=requests)


def moved(ctx: Context, targets: dict[UUID, str], actor: str, unit: Unit) -> list[ScheduledProcedureStep]:
    """Move steps of the context to their targets; tell order and steps upward. Raises NotAllowed."""
    result = []
    for request in ctx.requests.values():
        patient = ctx.patient_of(request)
        moves = []
        for procedure in ctx.procedures[request.id]:
            procedure.request = request
            for step in ctx.steps[procedure.id]:
                step.procedure = procedure
                target = targets.get(step.id)
                if target is None:
                    continue
                result.append(step)
                if target == step.status:
                    continue
                if not may_move(actor, step.status, target):
                    raise NotAllowed(
                        f"A step that is {step.status} cannot become {target}.", attribute="status"
                    )
                moves.append((step, step.status))
                step.status, step.status_at = target, unit.at
                history.keep(step, unit, patient.id)
        if not moves:
            continue
        request.status = derived_status([s.status for s in ctx.steps_of(request)], request.status)
        history.keep(request, unit, patient.id)
        unit.publish(
            OrderChanged(
                request=request,
                patient=patient,
                identifiers=ctx.identifiers_of(patient),
                visit=ctx.visit_of(request),
                procedures=(),
                steps=tuple(step for step, _ in moves),
            )
        )
        for step, before in moves:
            unit.publish(
                StepMoved(
                    step=step,
                    procedure=step.procedure,
                    request=request,
                    patient=patient,
                    before=before,
                    actor=actor,
                )
            )
    return result


def move_all(
    ctx: Context, targets: Mapping[UUID, str], actor: str, unit: Unit
) -> list[ScheduledProcedureStep]:
    """Move several steps of a context whose lanes are held; targets the table forbids are left out."""
    steps = {s.id: s for r in ctx.requests.values() for s in ctx.steps_of(r)}
    allowed = {i: t for i, t in targets.items() if i in steps and may_move(actor, steps[i].status, t)}
    return moved(ctx, allowed, actor, unit)


def perform(facts: PerformedFacts, unit: Unit, *, create: bool) -> PerformedProcedureStep:
    """Take in an MPPS: N-CREATE with `create`, else N-SET. The scheduled steps it names follow.

    What contradicts the order is kept with a `problem` for a clerk and never refused. Raises DuplicateKey for
    a second N-CREATE of one UID, UnknownKey for an N-SET of none, NotAllowed for an N-SET after the end.
    """
    ctx, named = _named_steps(facts.steps) if create else (Context(), [])
    row = (
        PerformedProcedureStep.objects.select_for_update()
        .filter(sop_instance_uid=facts.sop_instance_uid)
        .first()
    )
    if create and row is not None:
        raise DuplicateKey("This performed procedure step exists already.", attribute="sop_instance_uid")
    if not create:
        if row is None:
            raise UnknownKey("There is no such performed procedure step.", attribute="sop_instance_uid")
        if row.status != Performed.IN_PROGRESS:
            raise NotAllowed("Performed Procedure Step Object may no longer be updated", attribute="status")
        ctx, named = _linked_steps(row)
    if row is None:
        row = PerformedProcedureStep(
            sop_instance_uid=facts.sop_instance_uid,
            created_at=unit.at,
            updated_at=unit.at,
            cause=unit.cause,
            status=Performed.IN_PROGRESS,
            told=_told(facts),
        )
        trouble, text = _problem(facts, ctx, named)
        _note(row, trouble, text)
        if trouble == Trouble.PATIENT:
            named = []
        row.patient_id = ctx.patient_of(named[0].procedure.request).id if named else None
    for name, value in facts.values.items():
        setattr(row, name, value)
    for text in facts.problems:
        _note(row, Trouble.INCOMPLETE, text)
    row.status = facts.status or row.status
    if row.status != Performed.IN_PROGRESS:
        images.count(row, unit.at)
    targets = _targets(row, named)
    history.keep(row, unit, row.patient_id)
    if create:
        _link(row, named, unit)
    if targets:
        move_all(ctx, targets, "scanner", unit)
    unit.publish(StepPerformed(performed=row, steps=tuple(named), created=create, said=facts.said))
    return row


def _note(row: PerformedProcedureStep, trouble: str, text: str) -> None:
    """Let a clerk look at it (again); what was said already is not repeated."""
    if text and text not in row.problem:
        row.problem = f"{row.problem} {text}".strip()[:300]
        row.trouble = row.trouble or trouble
        row.solved_at, row.solved_cause = None, ""


def _told(facts: PerformedFacts) -> dict[str, Any]:
    """Patient and numbers in the scanner's own words."""
    return {
        "patient_name": facts.patient_name,
        "patient_birth_date": facts.patient_birth_date,
        "patient_ids": [i.value for i in facts.patient_identifiers if i.value],
        "accession_numbers": list(
            dict.fromkeys(k.accession_number for k in facts.steps if k.accession_number)
        ),
        "step_ids": [k.scheduled_procedure_step_id for k in facts.steps if k.scheduled_procedure_step_id],
    }


def _link(row: PerformedProcedureStep, steps: list[ScheduledProcedureStep], unit: Unit) -> None:
    through = PerformedProcedureStep.steps.through
    for step in steps:
        unit.save(through(performedprocedurestep_id=row.id, scheduledprocedurestep_id=step.id))


def _named_steps(items: tuple[OrderKeys, ...]) -> tuple[Context, list[ScheduledProcedureStep]]:
    """The scheduled steps that the items name: by Study Instance UID, else accession, then by step id."""
    studies = [k.study_instance_uid for k in items if k.study_instance_uid]
    accessions = [k.accession_number for k in items if k.accession_number]
    ctx = context.load(studies=studies, accessions=accessions)
    lanes.lock_patients(r.patient_id for r in ctx.requests.values())
    ctx = context.load(studies=studies, accessions=accessions)
    named: list[ScheduledProcedureStep] = []
    for keys in items:
        for step in _steps_of_item(ctx, keys):
            if step not in named:
                named.append(step)
    return ctx, named


def _steps_of_item(ctx: Context, keys: OrderKeys) -> list[ScheduledProcedureStep]:
    procedures = [p for ps in ctx.procedures.values() for p in ps]
    own = [
        p for p in procedures if keys.study_instance_uid and p.study_instance_uid == keys.study_instance_uid
    ]
    if not own and keys.accession_number:
        requests = {r.id for r in ctx.requests.values() if r.accession_number == keys.accession_number}
        own = [p for p in procedures if p.request_id in requests]
        if keys.requested_procedure_id:
            own = [p for p in own if p.requested_procedure_id == keys.requested_procedure_id] or own
    for procedure in own:
        procedure.request = ctx.requests[procedure.request_id]
    steps = [s for p in own for s in ctx.steps[p.id]]
    for step in steps:
        step.procedure = next(p for p in own if p.id == step.procedure_id)
    if keys.scheduled_procedure_step_id:
        return [s for s in steps if s.scheduled_procedure_step_id == keys.scheduled_procedure_step_id]
    return steps if len(steps) == 1 else []


def _linked_steps(row: PerformedProcedureStep) -> tuple[Context, list[ScheduledProcedureStep]]:
    linked = list(row.steps.select_related("procedure__request"))
    ctx = locked(linked)
    ids = {s.id for s in linked}
    steps = [s for r in ctx.requests.values() for s in ctx.steps_of(r) if s.id in ids]
    for step in steps:
        for procedures in ctx.procedures.values():
            for procedure in procedures:
                if procedure.id == step.procedure_id:
                    procedure.request = ctx.requests[procedure.request_id]
                    step.procedure = procedure
    return ctx, steps


def _problem(facts: PerformedFacts, ctx: Context, named: list[ScheduledProcedureStep]) -> tuple[str, str]:
    """What a clerk must look at: its kind and a sentence, or nothing."""
    if not named:
        scheduled = any(k.scheduled_procedure_step_id or k.accession_number for k in facts.steps)
        if scheduled:
            return Trouble.UNKNOWN, "Performed for a scheduled step that is not known here."
        return Trouble.UNSCHEDULED, "Unscheduled: the scanner worked without a worklist entry."
    for step in named:
        patient = ctx.patient_of(step.procedure.request)
        known = {(i.value, i.authority_id) for i in ctx.identifiers[patient.id]}
        ids = [i for i in facts.patient_identifiers if i.value]
        if ids and not any(_is_known(i, known) for i in ids):
            return Trouble.PATIENT, "The scanner's patient identifier is not the ordered patient's."
        if same_person_name(facts.patient_name, patient.patient_name) is False:
            return Trouble.PATIENT, "The scanner's patient name is not the ordered patient's."
    for step in named:
        if step.status in (StepStatus.CANCELED, StepStatus.DISCONTINUED):
            said = StepStatus(step.status).label.lower()
            return Trouble.STATE, f"The scanner has begun a step that was {said} before."
    return Trouble.NONE, ""


def _is_known(identifier: Identifier, known: set[tuple[str, UUID]]) -> bool:
    if not identifier.namespace and not identifier.universal_id:
        return any(value == identifier.value for value, _ in known)
    allowed = {a.id for a in authorities.matching(identifier)}
    return any(value == identifier.value and authority in allowed for value, authority in known)


def _targets(row: PerformedProcedureStep, named: list[ScheduledProcedureStep]) -> dict[UUID, str]:
    """Where the scheduled steps go with the performed one; a wrong worklist entry puts its step back on the list."""
    if not named:
        return {}
    target = AFTER[Performed(row.status)]
    reason = row.discontinuation_reason.get("code_value") if row.discontinuation_reason else ""
    if row.status == Performed.DISCONTINUED and reason == WRONG_WORKLIST_ENTRY:
        target = StepStatus.SCHEDULED
        _note(row, Trouble.WRONG_ENTRY, "Discontinued: the wrong worklist entry was picked at the scanner.")
    return {s.id: target for s in named if s.status not in TERMINAL or target == StepStatus.SCHEDULED}
