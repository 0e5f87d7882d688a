"""Registering patients and keeping them up to date; merges and moves: ris/services/merging.py."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

from common.names import search_form
from common.store import Unit
from ris import context, history
from ris.commands import (
    Applied,
    Identifier,
    RegisterPatient,
    VisitFacts,
)
from ris.context import Context
from ris.errors import BadValue, DuplicateKey, Missing
from ris.events import PatientChanged
from ris.models import (
    Patient,
    PatientIdentifier,
    ScheduledProcedureStep,
    Visit,
)
from ris.models.schedule import StepStatus
from ris.services import authorities, lanes
from ris.transitions import OPEN, may_move

COLUMNS = ("patient_name", "patient_birth_date", "patient_sex")
ORDERED_FOR = "ordered_for"
"""In an order's `details`: the row of the identifier under which it came, so that it can move with that."""
EMPTIED = "emptied"
"""In `details`: attributes that a message emptied on purpose, so that an older one does not fill them again."""
_VISIT_COLUMNS = (
    "account_number",
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
    keys = wanted(command)
    lanes.ask(keys["identifiers"])
    return context.ask(**keys)


def wanted(command: RegisterPatient) -> dict[str, Any]:
    """The keys of what the command concerns, by the names that `context.ask` gives them."""
    return {
        "identifiers": [i.value for i in command.identifiers],
        "admissions": [command.visit.admission_id] if command.visit else [],
    }


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
    visit = update_visit(patient, command.visit, ctx, unit, overwrite=fresh) if command.visit else None
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
        patient = by_identifier(identifier, ctx)
        if patient is None or patient in found:
            continue
        if position and _contradicts(identifiers[0], patient, ctx):
            applied.warnings.append(
                f"Identifier {position + 1} belongs to a patient with another first identifier."
            )
            continue
        found.append(patient)
    if len(found) > 1 and by_identifier(identifiers[0], ctx) is None:
        raise DuplicateKey(
            "The identifiers belong to different patients; merge them first.", attribute="patient_id"
        )
    if len(found) > 1:
        applied.warnings.append("The identifiers belong to different patients; the first one was followed.")
    return found[0] if found else None


def by_identifier(identifier: Identifier, ctx: Context) -> Patient | None:
    """The surviving patient in the context who has this identifier."""
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
    emptied = set(details.pop(EMPTIED, ()))
    for name, value in values.items():
        if overwrite:
            (emptied.discard if value else emptied.add)(name)
        elif name in emptied:
            continue
        if name in COLUMNS:
            if overwrite or not getattr(patient, name):
                setattr(patient, name, value)
        elif overwrite or not details.get(name):
            if value in ("", None):
                details.pop(name, None)
            else:
                details[name] = value
    if emptied:
        details[EMPTIED] = sorted(emptied)
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
        owner = by_identifier(identifier, ctx)
        if owner is not None and owner.id != patient.id:
            continue
        row = own_identifier(identifier, patient, ctx)
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


def own_identifier(identifier: Identifier, patient: Patient, ctx: Context) -> PatientIdentifier | None:
    """The row of this identifier, if it leads to this patient."""
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


def update_visit(patient: Patient, facts: VisitFacts, ctx: Context, unit: Unit, *, overwrite: bool) -> Visit:
    """The patient's visit of these facts, found in the context or made, and brought up to date."""
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
        if near and step.status != StepStatus.ARRIVED and may_move("adt", step.status, StepStatus.ARRIVED):
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
