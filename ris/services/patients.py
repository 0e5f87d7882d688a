"""Registering, updating, merging and unmerging patients."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

from common.names import search_form
from common.store import Unit
from ris import context, history
from ris.commands import (
    Applied,
    ChangeIdentifier,
    Identifier,
    MergePatients,
    RegisterPatient,
    VisitFacts,
)
from ris.context import Context
from ris.errors import BadValue, DuplicateKey, Missing, NotAllowed, UnknownKey
from ris.events import PatientChanged, PatientsMerged
from ris.models import (
    ImagingServiceRequest,
    Patient,
    PatientIdentifier,
    PatientMerge,
    PerformedProcedureStep,
    ScheduledProcedureStep,
    Visit,
)
from ris.models.schedule import StepStatus
from ris.services import authorities, lanes
from ris.transitions import OPEN

COLUMNS = ("patient_name", "patient_birth_date", "patient_sex")
_VISIT_COLUMNS = (
    "patient_class",
    "status",
    "current_patient_location",
    "referring_physician_name",
    "attending_physician_name",
    "admitted_at",
    "discharged_at",
)


def ask(command: RegisterPatient) -> Callable[[], Context]:
    """Hold the command's lanes and read what it concerns, in statements that may travel with others."""
    values = [i.value for i in command.identifiers]
    lanes.ask(values)
    return context.ask(identifiers=values, admissions=[command.visit.admission_id] if command.visit else ())


def register(command: RegisterPatient, unit: Unit, ctx: Context | None = None) -> Applied:
    """Create or update a patient and the visit that came with it. `ctx` is what `ask` read in this transaction.

    Raises Missing without an identifier, DuplicateKey when the identifiers lead to different patients.
    """
    ctx = ctx or ask(command)()
    applied = Applied()
    settle(command, ctx, unit, applied)
    return applied


def settle(
    command: RegisterPatient, ctx: Context, unit: Unit, applied: Applied
) -> tuple[Patient, Visit | None]:
    """Find or make the command's patient in the context, bring it up to date, and tell what changed."""
    if not any(i.value for i in command.identifiers):
        raise Missing("The message names no patient identifier.", attribute="patient_id")
    patient = find(command.identifiers, ctx, applied)
    created = patient is None
    if patient is None:
        patient = Patient(created_at=unit.at, updated_at=unit.at, cause=unit.cause)
        ctx.patients[patient.id] = patient
    fresh = _is_fresh(command, patient)
    if not fresh:
        applied.warnings.append("Older than what is known of this patient: nothing newer was overwritten.")
    overwrite = created or (command.authoritative and fresh) or patient.provisional
    _update_values(patient, command.values, overwrite=overwrite)
    if command.authoritative and fresh and command.facts_at:
        patient.facts_at = command.facts_at
    if command.authoritative:
        patient.provisional = False
    changed = history.keep(patient, unit, patient.id)
    changed |= _update_identifiers(patient, command.identifiers, ctx, unit, reorder=overwrite)
    visit = _update_visit(patient, command.visit, ctx, unit, overwrite=fresh) if command.visit else None
    arrived = _arrive(patient, unit) if command.arrived else ()
    applied.patient_ids.append(patient.id)
    if changed or arrived:
        steps = () if created else open_steps(patient.id, skip=arrived)
        _tell(patient, ctx, unit, visit, (*arrived, *steps), created)
    return patient, visit


def find(identifiers: tuple[Identifier, ...], ctx: Context, applied: Applied) -> Patient | None:
    """The surviving patient that the identifiers mean, or None.

    They are tried in order. An identifier beyond the first counts only if that patient has no other current
    value from the first one's authority: a shared insurance number does not make two records one person.
    """
    found: list[Patient] = []
    for position, identifier in enumerate(identifiers):
        patient = _by_identifier(identifier, ctx)
        if patient is None or patient in found:
            continue
        if position and _contradicts(identifiers[0], patient, ctx):
            applied.warnings.append(
                f"Identifier {position + 1} belongs to a patient with another first identifier."
            )
            continue
        found.append(patient)
    if len(found) > 1 and _by_identifier(identifiers[0], ctx) is None:
        raise DuplicateKey(
            "The identifiers belong to different patients; merge them first.", attribute="patient_id"
        )
    if len(found) > 1:
        applied.warnings.append("The identifiers belong to different patients; the first one was followed.")
    return found[0] if found else None


def _by_identifier(identifier: Identifier, ctx: Context) -> Patient | None:
    allowed = {a.id for a in authorities.matching(identifier)}
    for rows in ctx.identifiers.values():
        for row in rows:
            if row.value == identifier.value and row.authority_id in allowed:
                return ctx.surviving(row.patient_id)
    return None


def _contradicts(first: Identifier, patient: Patient, ctx: Context) -> bool:
    allowed = {a.id for a in authorities.matching(first)}
    return any(i.authority_id in allowed and i.value != first.value for i in ctx.identifiers_of(patient))


def _is_fresh(command: RegisterPatient, patient: Patient) -> bool:
    return not (command.facts_at and patient.facts_at and command.facts_at < patient.facts_at)


def _update_values(patient: Patient, values: Mapping[str, Any], *, overwrite: bool) -> None:
    details = dict(patient.details)
    for name, value in values.items():
        if name in COLUMNS:
            if overwrite or not getattr(patient, name):
                setattr(patient, name, value)
        elif overwrite or not details.get(name):
            if value in ("", None):
                details.pop(name, None)
            else:
                details[name] = value
    patient.details = details
    patient.patient_name_search = search_form(patient.patient_name)[:324]
    if patient.patient_birth_date and not (
        patient.patient_birth_date.isdigit() and len(patient.patient_birth_date) in (4, 6, 8)
    ):
        raise BadValue("A birth date must read YYYY, YYYYMM or YYYYMMDD.", attribute="patient_birth_date")


def _update_identifiers(
    patient: Patient, identifiers: tuple[Identifier, ...], ctx: Context, unit: Unit, *, reorder: bool
) -> bool:
    """Add what is new and put the list in the sender's order. What belongs to another patient is left there."""
    changed = False
    position = 0
    distinct = {(i.value, i.namespace, i.universal_id): i for i in identifiers if i.value}
    for identifier in distinct.values():
        owner = _by_identifier(identifier, ctx)
        if owner is not None and owner.id != patient.id:
            continue
        row = _own_identifier(identifier, patient, ctx)
        if row is None:
            row = PatientIdentifier(
                patient_id=patient.id,
                value=identifier.value,
                authority=authorities.get_or_make(identifier, unit),
                position=position if reorder else len(ctx.identifiers[patient.id]),
            )
            ctx.identifiers[patient.id].append(row)
        elif row.status == PatientIdentifier.Status.ALIAS:
            continue
        row.type_code = identifier.type_code or row.type_code
        if reorder:
            row.position = position
        position += 1
        changed |= history.keep(row, unit, patient.id)
    if reorder and position:
        changed |= _push_back(patient, identifiers, ctx, unit, position)
    return changed


def _push_back(
    patient: Patient, identifiers: tuple[Identifier, ...], ctx: Context, unit: Unit, position: int
) -> bool:
    """Identifiers that the sender no longer lists stay valid, behind the listed ones."""
    listed = {i.value for i in identifiers}
    changed = False
    for row in ctx.identifiers_of(patient):
        if row.value not in listed:
            row.position = position
            position += 1
            changed |= history.keep(row, unit, patient.id)
    return changed


def _own_identifier(identifier: Identifier, patient: Patient, ctx: Context) -> PatientIdentifier | None:
    allowed = {a.id for a in authorities.matching(identifier)}
    for rows in ctx.identifiers.values():
        for row in rows:
            if (
                row.value == identifier.value
                and row.authority_id in allowed
                and ctx.surviving(row.patient_id).id == patient.id
            ):
                return row
    return None


def _update_visit(patient: Patient, facts: VisitFacts, ctx: Context, unit: Unit, *, overwrite: bool) -> Visit:
    visit = next(
        (
            v
            for v in ctx.visits
            if v.patient_id == patient.id
            and v.admission_id == facts.admission_id
            and v.issuer_of_admission_id == facts.issuer_of_admission_id
        ),
        None,
    )
    if visit is None:
        visit = Visit(
            patient_id=patient.id,
            admission_id=facts.admission_id,
            issuer_of_admission_id=facts.issuer_of_admission_id,
        )
        ctx.visits.append(visit)
    for name in _VISIT_COLUMNS:
        if name in facts.values and (overwrite or not getattr(visit, name)):
            empty = None if name.endswith("_at") else ""
            setattr(visit, name, facts.values[name] or empty)
    history.keep(visit, unit, patient.id)
    return visit


def open_steps(patient_id: UUID, skip: Any = ()) -> tuple[ScheduledProcedureStep, ...]:
    """The patient's steps that a worklist may show, each with its procedure, order and visit loaded."""
    skipped = {s.id for s in skip}
    steps = ScheduledProcedureStep.objects.filter(
        procedure__request__patient_id=patient_id, status__in=OPEN
    ).select_related("procedure__request__visit")
    return tuple(s for s in steps if s.id not in skipped)


def _arrive(patient: Patient, unit: Unit) -> tuple[ScheduledProcedureStep, ...]:
    """The patient is here: what is scheduled within a day becomes ARRIVED."""
    arrived = []
    for step in open_steps(patient.id):
        near = step.start is None or abs(step.start - unit.at) < timedelta(hours=24)
        if step.status == StepStatus.SCHEDULED and near:
            step.status, step.status_at = StepStatus.ARRIVED, unit.at
            history.keep(step, unit, patient.id)
            arrived.append(step)
    return tuple(arrived)


def _tell(
    patient: Patient,
    ctx: Context,
    unit: Unit,
    visit: Visit | None,
    steps: tuple[ScheduledProcedureStep, ...],
    created: bool,
) -> None:
    unit.publish(
        PatientChanged(
            patient=patient,
            identifiers=ctx.identifiers_of(patient),
            visit=visit,
            steps=steps,
            created=created,
        )
    )


def merge(command: MergePatients, unit: Unit) -> Applied:
    """Merge the prior patient into the survivor; a repeat changes nothing.

    Raises UnknownKey when the prior patient is not known under any identifier, DuplicateKey when prior and
    survivor are the same identifier.
    """
    values = [i.value for i in (*command.survivor.identifiers, *command.prior)]
    lanes.lock(values)
    ctx = context.load(
        identifiers=values,
        admissions=[command.survivor.visit.admission_id] if command.survivor.visit else (),
    )
    applied = Applied()
    _refuse_same_identifier(command)
    priors = [p for i in command.prior if i.value and (p := _by_identifier(i, ctx)) is not None]
    survivor, _ = settle(command.survivor, ctx, unit, applied)
    retired = next((p for p in priors if p.id != survivor.id), None)
    if retired is None:
        _nothing_to_merge(command, survivor, priors, ctx, unit, applied)
        return applied
    retire(survivor, retired, ctx, unit)
    applied.patient_ids.append(retired.id)
    return applied


def _refuse_same_identifier(command: MergePatients) -> None:
    if not any(i.value for i in command.prior):
        raise Missing("The merge names no prior identifier.", attribute="prior_patient_id")
    for prior in command.prior:
        for kept in command.survivor.identifiers:
            if prior.value == kept.value and set(authorities.matching(prior)) == set(
                authorities.matching(kept)
            ):
                raise DuplicateKey(
                    "Prior and surviving identifier are the same; nothing can be merged.",
                    attribute="prior_patient_id",
                )


def _nothing_to_merge(
    command: MergePatients,
    survivor: Patient,
    priors: list[Patient],
    ctx: Context,
    unit: Unit,
    applied: Applied,
) -> None:
    """Merged already, or the prior identifier was never seen: it is kept as an alias, so that nothing revives it."""
    if priors:
        applied.warnings.append("This merge was applied before; nothing changed.")
        return
    applied.warnings.append("The prior identifier was not known; it is kept as an alias of the survivor.")
    for identifier in command.prior:
        row = PatientIdentifier(
            patient_id=survivor.id,
            value=identifier.value,
            authority=authorities.get_or_make(identifier, unit),
            type_code=identifier.type_code,
            position=99,
            status=PatientIdentifier.Status.ALIAS,
        )
        ctx.identifiers[survivor.id].append(row)
        history.keep(row, unit, survivor.id)


def retire(survivor: Patient, retired: Patient, ctx: Context, unit: Unit) -> PatientMerge:
    """Move everything of one patient to another, note exactly what moved, and tell it upward."""
    moved: dict[str, list[str]] = {"imagingservicerequest": [], "visit": [], "performedprocedurestep": []}
    for request in ImagingServiceRequest.objects.filter(patient_id=retired.id):
        request.patient_id = survivor.id
        history.keep(request, unit, survivor.id)
        moved["imagingservicerequest"].append(str(request.id))
    taken = set(
        Visit.objects.filter(patient_id=survivor.id).values_list("admission_id", "issuer_of_admission_id")
    )
    for visit in Visit.objects.filter(patient_id=retired.id):
        if (visit.admission_id, visit.issuer_of_admission_id) in taken:
            continue
        visit.patient_id = survivor.id
        history.keep(visit, unit, survivor.id)
        moved["visit"].append(str(visit.id))
    for performed in PerformedProcedureStep.objects.filter(patient_id=retired.id):
        performed.patient_id = survivor.id
        history.keep(performed, unit, survivor.id)
        moved["performedprocedurestep"].append(str(performed.id))
    for identifier in ctx.identifiers[retired.id]:
        identifier.status = PatientIdentifier.Status.ALIAS
        history.keep(identifier, unit, survivor.id)
    retired.merged_into_id = survivor.id
    history.keep(retired, unit, survivor.id)
    merge_row = PatientMerge(
        survivor_id=survivor.id, retired_id=retired.id, moved=moved, at=unit.at, cause=unit.cause
    )
    unit.save(merge_row)
    unit.publish(PatientsMerged(survivor=survivor, retired=retired, moved=moved))
    steps = _moved_steps(moved, unit)
    _tell(survivor, ctx, unit, None, steps, created=False)
    return merge_row


def _moved_steps(moved: dict[str, list[str]], unit: Unit) -> tuple[ScheduledProcedureStep, ...]:
    """Open steps of orders that just moved, bound to the order objects that wait to be written."""
    pending = {r.id: r for r in unit.pending(ImagingServiceRequest)}
    steps = ScheduledProcedureStep.objects.filter(
        procedure__request_id__in=moved["imagingservicerequest"], status__in=OPEN
    ).select_related("procedure__request__visit")
    for step in steps:
        step.procedure.request = pending.get(step.procedure.request_id, step.procedure.request)
    return tuple(steps)


def unmerge(merge_id: UUID, unit: Unit) -> PatientMerge:
    """Undo a merge: what moved goes back, what came later stays with the survivor.

    Raises NotAllowed when it was undone before or the survivor was itself merged since.
    """
    row = PatientMerge.objects.select_related("survivor", "retired").get(pk=merge_id)
    lanes.lock_patients([row.survivor_id, row.retired_id])
    row.refresh_from_db()
    survivor, retired = row.survivor, row.retired
    if row.undone_at is not None:
        raise NotAllowed("This merge was undone before.")
    if survivor.merged_into_id is not None:
        raise NotAllowed("The surviving patient was merged on; undo that merge first.")
    ctx = context.load(patients=[survivor.id, retired.id])
    retired = ctx.patients[retired.id]
    retired.merged_into_id = None
    history.keep(retired, unit, retired.id)
    for identifier in ctx.identifiers[retired.id]:
        identifier.status = PatientIdentifier.Status.CURRENT
        history.keep(identifier, unit, retired.id)
    models: tuple[Any, ...] = (ImagingServiceRequest, Visit, PerformedProcedureStep)
    for model in models:
        ids = row.moved.get(model._meta.model_name or "", [])
        for thing in model.objects.filter(pk__in=ids, patient_id=survivor.id):
            thing.patient_id = retired.id
            history.keep(thing, unit, retired.id)
    row.undone_at, row.undone_cause = unit.at, unit.cause
    unit.save(row)
    unit.publish(PatientsMerged(survivor=survivor, retired=retired, moved=row.moved, undone=True))
    _tell(retired, ctx, unit, None, _moved_steps(row.moved, unit), created=False)
    return row


def change_identifier(command: ChangeIdentifier, unit: Unit) -> Applied:
    """Give one identifier of a patient another value (A47); the old one stays as an alias.

    Raises UnknownKey when nobody has the prior value, DuplicateKey when another patient has the new one.
    """
    new = command.patient.identifiers[0]
    lanes.lock([new.value, command.prior.value])
    ctx = context.load(identifiers=[new.value, command.prior.value])
    applied = Applied()
    patient = _by_identifier(command.prior, ctx)
    owner = _by_identifier(new, ctx)
    if patient is None and owner is None:
        raise UnknownKey("Nobody here has the prior identifier.", attribute="prior_patient_id")
    if patient is None or (owner is not None and owner.id == patient.id):
        applied.warnings.append("This change was applied before; nothing changed.")
        settle(command.patient, ctx, unit, applied)
        return applied
    if owner is not None:
        raise DuplicateKey(
            "The new identifier is another patient's; merge them instead.", attribute="patient_id"
        )
    row = _own_identifier(command.prior, patient, ctx)
    assert row is not None
    replacement = PatientIdentifier(
        patient_id=patient.id,
        value=new.value,
        authority=authorities.get_or_make(new, unit),
        type_code=new.type_code or row.type_code,
        position=row.position,
    )
    row.status = PatientIdentifier.Status.ALIAS
    history.keep(row, unit, patient.id)
    ctx.identifiers[patient.id].append(replacement)
    history.keep(replacement, unit, patient.id)
    settle(command.patient, ctx, unit, applied)
    _tell(patient, ctx, unit, None, open_steps(patient.id), created=False)
    return applied
