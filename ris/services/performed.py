"""What a person decides about a performed step (MPPS): which order it belongs to, and that its problem is solved.

A scanner's operator who picks the wrong worklist entry reports, and marks the images, for another order. `assign`
moves the performed step and its images to the right one; images that come later follow. `undo` takes it back.
"""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from common.store import Unit
from pacs.events import StudySettled
from pacs.models import Study
from ris import history
from ris.errors import BadValue, Missing, NotAllowed, UnknownKey
from ris.models import PerformedProcedureStep, ScheduledProcedureStep, StudyMatch
from ris.models.schedule import StepStatus
from ris.reconciliation import cases
from ris.services import steps
from ris.transitions import TERMINAL


def assign(performed_id: UUID, step_ids: Iterable[UUID], user: Any, unit: Unit) -> PerformedProcedureStep:
    """It was done for these scheduled steps: they follow it, its images are linked to their procedure.

    Steps that it was taken for before go back on the worklist unless another performed step is theirs. Raises
    UnknownKey, BadValue for steps of several patients, NotAllowed when it is these steps' already.
    """
    performed = _held(performed_id)
    before = list(performed.steps.select_related("procedure__request"))
    after = list(
        ScheduledProcedureStep.objects.filter(pk__in=list(step_ids)).select_related("procedure__request")
    )
    if not after:
        raise UnknownKey("This step does not exist (any more).", attribute="scheduled_procedure_step_id")
    if {s.id for s in before} == {s.id for s in after}:
        raise NotAllowed("It belongs to this step already.", attribute="scheduled_procedure_step_id")
    ctx = steps.locked([*before, *after])
    patients = {ctx.patient_of(ctx.requests[s.procedure.request_id]).id for s in after}
    if len(patients) > 1:
        raise BadValue("These steps are of several patients.", attribute="scheduled_procedure_step_id")
    present = {s.id: s.status for r in ctx.requests.values() for s in ctx.steps_of(r)}
    targets = _targets(performed, before, after, present)
    first = performed.correction or {
        "steps": [str(s.id) for s in before],
        "patient": _text(performed.patient_id),
    }
    performed.steps.set(after)
    performed.patient_id = patients.pop()
    moved = steps.moved(ctx, targets, "clerk", unit)
    unit.flush()
    studies = _move_studies(performed, after[0].procedure_id, user, unit)
    known = first.get("studies", {})
    performed.correction = {
        **first,
        "procedure": str(after[0].procedure_id),
        "states": {**{str(s.id): [present[s.id], s.status] for s in moved}, **first.get("states", {})},
        "studies": {**studies, **known},
        "at": unit.at.isoformat(),
        "cause": unit.cause,
    }
    _solved(performed, "Assigned to its order by a person.", unit)
    return performed


def undo(performed_id: UUID, user: Any, unit: Unit) -> PerformedProcedureStep:
    """Take `assign` back: links, step states that nobody changed since, and images. Raises NotAllowed."""
    performed = _held(performed_id)
    done = performed.correction
    if not done:
        raise NotAllowed("Nobody has assigned it to another order.", attribute="steps")
    old = list(
        ScheduledProcedureStep.objects.filter(pk__in=done["steps"]).select_related("procedure__request")
    )
    present_steps = list(performed.steps.select_related("procedure__request"))
    ctx = steps.locked([*old, *present_steps])
    present = {str(s.id): s for r in ctx.requests.values() for s in ctx.steps_of(r)}
    targets = {
        UUID(pk): was
        for pk, (was, made) in done["states"].items()
        if pk in present and present[pk].status == made and was != made
    }
    performed.steps.set(old)
    performed.patient_id = UUID(done["patient"]) if done["patient"] else None
    performed.correction = {}
    performed.solved_at, performed.solved_cause, performed.solution = None, "", ""
    history.keep(performed, unit, performed.patient_id)
    steps.moved(ctx, targets, "clerk", unit)
    unit.flush()
    came_later = str(old[0].procedure_id) if old else ""
    theirs = Study.objects.filter(study_instance_uid__in=performed.study_instance_uids, hidden=False)
    for match in StudyMatch.objects.filter(
        study__in=theirs, undone_at__isnull=True, procedure_id=done["procedure"]
    ):
        back = done["studies"].get(str(match.study_id), came_later)
        cases.unlink(match.study_id, user, unit)
        if back:
            cases.link(match.study_id, UUID(back), user, unit)
            unit.flush()
    return performed


def solve(performed_id: UUID, how: str, unit: Unit) -> PerformedProcedureStep:
    """Its problem needs nothing more; `how` says why. Raises Missing without a reason, NotAllowed without a problem."""
    performed = _held(performed_id)
    if not performed.needs_a_person:
        raise NotAllowed("There is no open problem here.", attribute="problem")
    if not how.strip():
        raise Missing("Say in a few words how it was solved.", attribute="solution")
    _solved(performed, how.strip(), unit)
    return performed


def reopen(performed_id: UUID, unit: Unit) -> PerformedProcedureStep:
    """Its problem is to be looked at again."""
    performed = _held(performed_id)
    if not performed.problem or performed.solved_at is None:
        raise NotAllowed("It is open, or had no problem.", attribute="problem")
    performed.solved_at, performed.solved_cause, performed.solution = None, "", ""
    history.keep(performed, unit, performed.patient_id)
    return performed


def on_study_settled(event: StudySettled, unit: Unit) -> None:
    """Images that come after a person assigned their performed step to another order go there, too."""
    study = event.study
    corrected = (
        PerformedProcedureStep.objects.filter(study_instance_uids__contains=[study.study_instance_uid])
        .exclude(correction={})
        .order_by("-updated_at")
        .first()
    )
    if corrected is None or StudyMatch.objects.filter(study=study).exists():
        return
    cases.link(study.id, UUID(corrected.correction["procedure"]), None, unit)
    unit.flush()


def _held(performed_id: UUID) -> PerformedProcedureStep:
    row = PerformedProcedureStep.objects.select_for_update().filter(pk=performed_id).first()
    if row is None:
        raise UnknownKey("This performed step does not exist (any more).", attribute="sop_instance_uid")
    return row


def _text(value: Any) -> str:
    return str(value) if value else ""


def _solved(performed: PerformedProcedureStep, how: str, unit: Unit) -> None:
    performed.solved_at, performed.solved_cause, performed.solution = unit.at, unit.cause, how[:300]
    history.keep(performed, unit, performed.patient_id)


def _targets(
    performed: PerformedProcedureStep,
    before: list[ScheduledProcedureStep],
    after: list[ScheduledProcedureStep],
    present: dict[UUID, str],
) -> dict[UUID, str]:
    """What the steps become: those that were not done wait again, those that were follow the performed step."""
    targets: dict[UUID, str] = {}
    chosen = {s.id for s in after}
    for step in before:
        theirs = step.performed.exclude(pk=performed.pk).exists()
        if step.id not in chosen and not theirs and present[step.id] in _BY_SCANNER:
            targets[step.id] = StepStatus.SCHEDULED
    target = steps.AFTER[PerformedProcedureStep.Status(performed.status)]
    for step in after:
        if present[step.id] not in TERMINAL or target != StepStatus.STARTED:
            targets[step.id] = target
    return targets


_BY_SCANNER = frozenset({StepStatus.STARTED, StepStatus.COMPLETED, StepStatus.DISCONTINUED})


def _move_studies(
    performed: PerformedProcedureStep, procedure_id: UUID, user: Any, unit: Unit
) -> dict[str, str]:
    """Link its studies to the procedure; study id → procedure it was linked to before ("" for none).

    A study that holds series of another performed step, too, stays where it is: it is not this one's alone.
    """
    moved: dict[str, str] = {}
    for study in Study.objects.filter(study_instance_uid__in=performed.study_instance_uids, hidden=False):
        match = StudyMatch.objects.filter(study=study, undone_at__isnull=True).first()
        if match is not None and match.procedure_id == procedure_id:
            continue
        if _is_shared(study, performed):
            continue
        if match is not None:
            cases.unlink(study.id, user, unit)
        cases.link(study.id, procedure_id, user, unit)
        unit.flush()
        moved[str(study.id)] = str(match.procedure_id) if match else ""
    return moved


def _is_shared(study: Study, performed: PerformedProcedureStep) -> bool:
    others = PerformedProcedureStep.objects.filter(
        study_instance_uids__contains=[study.study_instance_uid]
    ).exclude(pk=performed.pk)
    theirs = {s.get("series_instance_uid") for other in others for s in other.series}
    return study.series.filter(series_instance_uid__in=[uid for uid in theirs if uid]).exists()
