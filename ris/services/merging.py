"""Merging patients, moving what was filed under the wrong one, and undoing either exactly.

Every attribute that a merge or move changes is noted with its value before and after (PatientMerge.changed).
Undoing sets back what still has the value that it was given; whatever was changed later stays as it is.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from common.rows import Row
from common.store import Unit
from ris import context, history
from ris.commands import (
    Applied,
    ChangeIdentifier,
    Identifier,
    MergePatients,
    MoveIdentifiers,
    MoveVisits,
    RegisterPatient,
    VisitFacts,
    VisitKey,
)
from ris.context import Context
from ris.errors import DuplicateKey, Missing, NotAllowed, UnknownKey
from ris.events import PatientChanged, PatientsMerged
from ris.models import (
    ImagingServiceRequest,
    Patient,
    PatientIdentifier,
    PatientMerge,
    PerformedProcedureStep,
    Report,
    ScheduledProcedureStep,
    StudyMatch,
    Visit,
)
from ris.services import authorities, lanes, patients
from ris.services.patients import by_identifier, open_steps, own_identifier, settle
from ris.transitions import OPEN

Kind = PatientMerge.Kind
_OWNED: dict[str, type[Row]] = {
    model._meta.model_name or "": model
    for model in (ImagingServiceRequest, Visit, PerformedProcedureStep, PatientIdentifier, Patient)
}


class _Moving:
    """Rows on their way from one patient to another, with a note of all that changes on the way."""

    def __init__(self, to: Patient, source: Patient, unit: Unit) -> None:
        self.to, self.source, self.unit = to, source, unit
        self.moved: dict[str, list[str]] = {name: [] for name in ("imagingservicerequest", "visit",
                                                                  "performedprocedurestep")}  # fmt: skip
        self.changed: dict[str, dict[str, dict[str, list[Any]]]] = defaultdict(dict)

    def set(self, row: Row, **values: Any) -> None:
        """Give a row these values, keep it, and note what they were before."""
        name, noted = row._meta.model_name or "", {}
        for attribute, value in values.items():
            before = getattr(row, attribute)
            if before != value:
                noted[attribute] = [_plain(before), _plain(value)]
                setattr(row, attribute, value)
        if not noted:
            return
        self.changed[name][str(row.id)] = noted
        if "patient_id" in noted:
            self.moved.setdefault(name, []).append(str(row.id))
        history.keep(row, self.unit, self.to.id)

    def requests(self, requests: Iterable[ImagingServiceRequest], twins: dict[UUID, Visit]) -> None:
        """Orders with what was performed for them; a visit that the other side has too is changed for that one."""
        found = list(requests)
        for request in found:
            twin = twins.get(request.visit_id) if request.visit_id else None
            self.set(request, patient_id=self.to.id, visit_id=twin.id if twin else request.visit_id)
            if twin:
                request.visit = twin  # it may not be written yet
        steps = ScheduledProcedureStep.objects.filter(procedure__request__in=found)
        for performed in PerformedProcedureStep.objects.filter(steps__in=steps).distinct():
            if performed.patient_id == self.source.id:
                self.set(performed, patient_id=self.to.id)

    def visits(self, visits: Iterable[Visit]) -> dict[UUID, Visit]:
        """Visits. Those that the other side knows under the same number stay; returns id → the other side's."""
        theirs = {(v.admission_id, v.issuer_of_admission_id): v for v in _visits_of(self.to, self.unit)}
        twins = {}
        for visit in visits:
            twin = theirs.get((visit.admission_id, visit.issuer_of_admission_id))
            if twin is None:
                self.set(visit, patient_id=self.to.id)
            elif twin.id != visit.id:
                twins[visit.id] = twin
        return twins

    def row(self, kind: str) -> PatientMerge:
        """The note of it all, ready to be undone."""
        row = PatientMerge(
            kind=kind,
            survivor_id=self.to.id,
            retired_id=self.source.id,
            moved=self.moved,
            changed=self.changed,
            at=self.unit.at,
            cause=self.unit.cause,
        )
        self.unit.save(row)
        return row


# ------------------------------------------------------------------------------------------------- merging


def merge(command: MergePatients, unit: Unit) -> Applied:
    """Merge the prior patients into the survivor; a repeat changes nothing.

    Raises Missing without a prior identifier, DuplicateKey when prior and survivor are the same identifiers.
    """
    values = [i.value for i in (*command.survivor.identifiers, *command.prior)]
    lanes.lock(values)
    ctx = context.load(
        identifiers=values,
        admissions=[command.survivor.visit.admission_id] if command.survivor.visit else (),
    )
    applied = Applied()
    prior = _truly_prior(command)
    priors = {i: by_identifier(i, ctx) for i in prior}
    survivor, _ = settle(command.survivor, ctx, unit, applied)
    retired = {p.id: p for p in priors.values() if p is not None and p.id != survivor.id}
    unknown = [i for i, patient in priors.items() if patient is None]
    _keep_as_aliases(unknown, survivor, ctx, unit)
    if unknown and len(unknown) == len(priors):
        applied.warnings.append("The prior identifier was not known; it is kept as an alias of the survivor.")
    elif not retired:
        applied.warnings.append("This merge was applied before; nothing changed.")
    for patient in retired.values():
        retire(survivor, patient, ctx, unit, shared=command.survivor.identifiers)
        applied.patient_ids.append(patient.id)
    return applied


def _truly_prior(command: MergePatients) -> list[Identifier]:
    """The prior identifiers that the survivor does not keep: the two lists may share an insurance number."""
    named = [i for i in command.prior if i.value]
    if not named:
        raise Missing("The merge names no prior identifier.", attribute="prior_patient_id")
    kept = command.survivor.identifiers
    found = [i for i in named if not any(_same(i, k) for k in kept)]
    if not found:
        raise DuplicateKey(
            "Prior and surviving identifier are the same; nothing can be merged.",
            attribute="prior_patient_id",
        )
    return list(dict.fromkeys(found))


def _same(one: Identifier, other: Identifier) -> bool:
    return one.value == other.value and set(authorities.matching(one)) == set(authorities.matching(other))


def _keep_as_aliases(unknown: list[Identifier], survivor: Patient, ctx: Context, unit: Unit) -> None:
    """Prior identifiers that nobody ever saw: kept, so that nothing revives them."""
    for identifier in unknown:
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


def merge_by_hand(survivor_id: UUID, retired_id: UUID, unit: Unit) -> PatientMerge:
    """Merge two patients that a person named.

    Raises NotAllowed when they are one, or when either was merged before.
    """
    lanes.lock_patients([survivor_id, retired_id])
    ctx = context.load(patients=[survivor_id, retired_id])
    survivor, retired = ctx.patients[survivor_id], ctx.patients[retired_id]
    _refuse_unfit(survivor, retired)
    return retire(survivor, retired, ctx, unit)


def _refuse_unfit(survivor: Patient, retired: Patient) -> None:
    if survivor.id == retired.id:
        raise NotAllowed("A patient cannot be merged with itself.")
    if survivor.merged_into_id is not None or retired.merged_into_id is not None:
        raise NotAllowed("One of the two was merged before; take the surviving patient.")


def retire(
    survivor: Patient, retired: Patient, ctx: Context, unit: Unit, shared: tuple[Identifier, ...] = ()
) -> PatientMerge:
    """Move everything of one patient to another, note exactly what moved, and tell it upward.

    Identifiers of the retired become aliases; those that the survivor's own list names (`shared`) go to it.
    """
    moving = _Moving(survivor, retired, unit)
    twins = moving.visits(Visit.objects.filter(patient_id=retired.id))
    moving.requests(ImagingServiceRequest.objects.filter(patient_id=retired.id), twins)
    for performed in PerformedProcedureStep.objects.filter(patient_id=retired.id):
        if str(performed.id) not in moving.moved["performedprocedurestep"]:
            moving.set(performed, patient_id=survivor.id)
    theirs = [own_identifier(i, retired, ctx) for i in shared]
    for identifier in list(ctx.identifiers[retired.id]):
        if any(identifier is one for one in theirs):
            moving.set(identifier, patient_id=survivor.id)
            ctx.identifiers[retired.id].remove(identifier)
            ctx.identifiers[survivor.id].append(identifier)
        else:
            moving.set(identifier, status=PatientIdentifier.Status.ALIAS)
    moving.set(retired, merged_into_id=survivor.id)
    row = moving.row(Kind.MERGE)
    unit.publish(PatientsMerged(survivor=survivor, retired=retired, moved=moving.moved))
    _tell(survivor, ctx, unit, _moved_steps(moving.moved, unit))
    return row


def change_identifier(command: ChangeIdentifier, unit: Unit) -> Applied:
    """Give one identifier of a patient another value (A47); the old one stays as an alias.

    Raises UnknownKey when nobody has the prior value, DuplicateKey when another patient has the new one.
    """
    new = command.patient.identifiers[0]
    lanes.lock([new.value, command.prior.value])
    ctx = context.load(identifiers=[new.value, command.prior.value])
    applied = Applied()
    patient = by_identifier(command.prior, ctx)
    owner = by_identifier(new, ctx)
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
    row = own_identifier(command.prior, patient, ctx)
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
    _tell(patient, ctx, unit, open_steps(patient.id))
    return applied


# -------------------------------------------------------------------------------------------------- moving


def move_identifiers(command: MoveIdentifiers, unit: Unit) -> Applied:
    """Move identifiers, and what came in under them, to another patient (A43); a repeat changes nothing.

    A patient who is left without any identifier was nothing but a wrong registration: all of it moves. Raises
    Missing when the message names nobody to move to.
    """
    lanes.lock([i.value for i in (*command.patient.identifiers, *command.moved, *command.prior)])
    ctx = context.load(
        identifiers=[i.value for i in (*command.patient.identifiers, *command.moved, *command.prior)]
    )
    applied = Applied()
    owner = next((p for i in (*command.moved, *command.prior) if (p := by_identifier(i, ctx))), None)
    if not command.moved and owner is not None and _came_before(command, owner, ctx):
        settle(_without_visit(command.patient, command.patient.identifiers), ctx, unit, applied)
        applied.warnings.append("This move was applied before; nothing moved.")
        return applied
    moved = command.moved or _meant(command, owner, ctx)
    others = tuple(i for i in command.patient.identifiers if not any(_same(i, m) for m in moved))
    if not others:
        raise Missing(
            "The move names nobody to move to: another identifier of that patient is needed.",
            attribute="patient_id",
        )
    target, _ = settle(_without_visit(command.patient, others), ctx, unit, applied)
    if owner is None or owner.id == target.id:
        applied.warnings.append("Nothing is filed here under the identifier that moves; nothing moved.")
        settle(_without_visit(command.patient, (*others, *moved)), ctx, unit, applied)
        return applied
    moving = _Moving(target, owner, unit)
    rows = [row for i in moved if (row := own_identifier(i, owner, ctx))]
    for row in rows:
        holder = ctx.identifiers[row.patient_id]
        moving.set(row, patient_id=target.id, position=len(ctx.identifiers[target.id]))
        holder.remove(row)
        ctx.identifiers[target.id].append(row)
    _move_filed(moving, rows, whole=not ctx.identifiers_of(owner), applied=applied)
    return _moved(moving, ctx, applied)


def _meant(command: MoveIdentifiers, owner: Patient | None, ctx: Context) -> tuple[Identifier, ...]:
    """What moves where the command does not say: of the target's list what the source has, else what it is named by."""
    every = command.patient.identifiers
    his = tuple(i for i in every if owner and (p := by_identifier(i, ctx)) and p.id == owner.id)
    return his if 0 < len(his) < len(every) else command.prior


def _came_before(command: MoveIdentifiers, owner: Patient, ctx: Context) -> bool:
    """Whether an identifier of the target's list came from this patient by a move that stands."""
    named = {
        str(row.id)
        for i in command.patient.identifiers
        if (patient := by_identifier(i, ctx)) and (row := own_identifier(i, patient, ctx))
    }
    stand = PatientMerge.objects.filter(kind=Kind.MOVE, retired_id=owner.id, undone_at=None)
    return any(named & set(move.changed.get("patientidentifier", ())) for move in stand)


def _move_filed(moving: _Moving, rows: list[PatientIdentifier], whole: bool, applied: Applied) -> None:
    """The orders that came in under these identifiers, with visits that no other order has; or everything."""
    source = moving.source
    every = list(ImagingServiceRequest.objects.filter(patient_id=source.id))
    mine = {str(row.id) for row in rows}
    chosen = [r for r in every if whole or r.details.get(patients.ORDERED_FOR) in mine]
    staying = {r.visit_id for r in every if r not in chosen}
    wanted = {r.visit_id for r in chosen} - staying
    visits = Visit.objects.filter(patient_id=source.id)
    twins = moving.visits(v for v in visits if whole or v.id in wanted)
    moving.requests(chosen, twins)
    if whole:
        for performed in PerformedProcedureStep.objects.filter(patient_id=source.id):
            if str(performed.id) not in moving.moved["performedprocedurestep"]:
                moving.set(performed, patient_id=moving.to.id)
        moving.set(source, merged_into_id=moving.to.id)
        return
    unsaid = sum(1 for r in every if r not in chosen and not r.details.get(patients.ORDERED_FOR))
    if unsaid:
        applied.warnings.append(f"{unsaid} order(s) do not say under which identifier they came; they stay.")


def move_visits(command: MoveVisits, unit: Unit) -> Applied:
    """Move visits, or every visit of an account, with their orders to another patient, number or account.

    A44, A45, and within one patient A41, A42, A49, A50. A repeat changes nothing, and neither does a visit that
    is not known here.
    """
    people = (*command.patient.identifiers, *command.prior)
    lanes.lock([i.value for i in people])
    ctx = context.load(identifiers=[i.value for i in people])
    applied = Applied()
    source = next((p for i in command.prior if (p := by_identifier(i, ctx))), None)
    target, _ = settle(_without_visit(command.patient, command.patient.identifiers), ctx, unit, applied)
    moving = _Moving(target, source or target, unit)
    visits = list(Visit.objects.filter(patient_id=moving.source.id))
    chosen = {v.id: (v, new) for v in visits if (new := _new_key(v, command))}
    if not chosen:
        applied.warnings.append("No such visit is known here, or it was moved before; nothing moved.")
        return applied
    requests = ImagingServiceRequest.objects.filter(patient_id=moving.source.id, visit_id__in=chosen)
    twins = _put_visits(moving, list(chosen.values()), command.account, unit)
    moving.requests(list(requests), twins)
    applied = _moved(moving, ctx, applied)
    _bring_up_to_date(target, command.patient.visit, [v for v, _ in chosen.values()], ctx, unit)
    return applied


def _bring_up_to_date(
    target: Patient, facts: VisitFacts | None, visits: list[Visit], ctx: Context, unit: Unit
) -> None:
    """What PV1 says of a visit that has moved."""
    for visit in visits if facts else ():
        assert facts
        if visit.patient_id == target.id and visit.admission_id == facts.admission_id:
            ctx.visits = [visit]
            known = replace(facts, issuer_of_admission_id=visit.issuer_of_admission_id)
            patients.update_visit(target, known, ctx, unit, overwrite=True)


def _new_key(visit: Visit, command: MoveVisits) -> VisitKey | None:
    """What the visit is called from now on; None when it is none of the command's."""
    for prior, new in command.visits:
        issuers = {prior.issuer, visit.issuer_of_admission_id}
        if prior.admission_id == visit.admission_id and (len(issuers) == 1 or "" in issuers):
            return VisitKey(new.admission_id, visit.issuer_of_admission_id or new.issuer)
    if not command.prior_account:
        return None
    if visit.admission_id == command.prior_account:  # a feed without visit numbers: the account is the visit
        return VisitKey(command.account or visit.admission_id, visit.issuer_of_admission_id)
    if visit.account_number == command.prior_account:
        return VisitKey(visit.admission_id, visit.issuer_of_admission_id)
    return None


def _put_visits(
    moving: _Moving, chosen: list[tuple[Visit, VisitKey]], account: str, unit: Unit
) -> dict[UUID, Visit]:
    """Each visit where it belongs from now on; as `_Moving.visits`."""
    theirs = {(v.admission_id, v.issuer_of_admission_id): v for v in _visits_of(moving.to, unit)}
    twins = {}
    for visit, key in chosen:
        twin = theirs.get((key.admission_id, key.issuer))
        if twin is not None and twin.id != visit.id:
            twins[visit.id] = twin
            continue
        moving.set(
            visit,
            patient_id=moving.to.id,
            admission_id=key.admission_id,
            account_number=account or visit.account_number,
        )
    return twins


def _moved(moving: _Moving, ctx: Context, applied: Applied) -> Applied:
    """Note and tell a move; nothing when all of it was so before."""
    if not moving.changed:
        applied.warnings.append("This move was applied before; nothing changed.")
        return applied
    unit, target, source = moving.unit, moving.to, moving.source
    moving.row(Kind.MOVE)
    unit.flush()  # those who hear of it look for the identifiers where they are now
    if source.id == target.id:
        _tell(target, ctx, unit, open_steps(target.id))
        return applied
    applied.patient_ids.append(source.id)
    applied.request_ids += [UUID(r) for r in moving.moved["imagingservicerequest"]]
    unit.publish(PatientsMerged(survivor=target, retired=source, moved=moving.moved, moves=True))
    _tell(target, ctx, unit, open_steps(target.id))
    _tell(source, ctx, unit, open_steps(source.id))
    return applied


def _without_visit(command: RegisterPatient, identifiers: tuple[Identifier, ...]) -> RegisterPatient:
    return RegisterPatient(
        identifiers=identifiers,
        values=command.values,
        facts_at=command.facts_at,
        authoritative=command.authoritative,
    )


# ------------------------------------------------------------------------------------------------- undoing


def unmerge(merge_id: UUID, unit: Unit) -> PatientMerge:
    """Undo a merge or move: what it changed goes back, what was changed since stays.

    Orders that came later under a number of the retired patient go to that patient too. Raises NotAllowed when
    it was undone before, or when either patient was itself merged since.
    """
    row = PatientMerge.objects.get(pk=merge_id)
    lanes.lock_patients([row.survivor_id, row.retired_id])
    row.refresh_from_db()
    ctx = context.load(patients=[row.survivor_id, row.retired_id])
    survivor, retired = ctx.patients[row.survivor_id], ctx.patients[row.retired_id]
    _refuse_undoing(row, survivor, retired)
    back = _Moving(retired, survivor, unit)
    _set_back(row, back, ctx)
    _later_orders(row, back)
    row.undone_at, row.undone_cause = unit.at, unit.cause
    unit.save(row)
    moves = row.kind == Kind.MOVE
    unit.flush()
    ctx = context.load(patients=[survivor.id, retired.id])
    survivor, retired = ctx.patients[survivor.id], ctx.patients[retired.id]
    unit.publish(
        PatientsMerged(survivor=survivor, retired=retired, moved=back.moved, undone=True, moves=moves)
    )
    _tell(retired, ctx, unit, open_steps(retired.id))
    if survivor.id != retired.id:
        _tell(survivor, ctx, unit, open_steps(survivor.id))
    return row


def _refuse_undoing(row: PatientMerge, survivor: Patient, retired: Patient) -> None:
    if row.undone_at is not None:
        raise NotAllowed("This was undone before.")
    if survivor.merged_into_id is not None:
        raise NotAllowed("The surviving patient was merged on; undo that merge first.")
    if retired.merged_into_id not in (None, survivor.id):
        raise NotAllowed("The other patient was merged since; undo that merge first.")


def _set_back(row: PatientMerge, back: _Moving, ctx: Context) -> None:
    """Each attribute that still has the value which it was given gets the one it had."""
    own = {p.id: p for p in (back.to, back.source)}
    known: dict[UUID, Row] = {**own, **{i.id: i for rows in ctx.identifiers.values() for i in rows}}
    for name, changed in _changed(row, ctx).items():
        ids = [UUID(key) for key in changed]
        stored = {r.id: r for r in _OWNED[name]._default_manager.filter(pk__in=ids)}
        for key, values in changed.items():
            thing = known.get(UUID(key)) or stored.get(UUID(key))
            if thing is None:
                continue
            before = {
                attribute: _typed(thing, attribute, was)
                for attribute, (was, became) in values.items()
                if _plain(getattr(thing, attribute)) == became
            }
            if isinstance(thing, Visit) and "patient_id" in before and _has_twin(thing, back):
                continue
            back.set(thing, **before)


def _has_twin(visit: Visit, back: _Moving) -> bool:
    """Whether the patient to whom the visit would go back has got one of that number since."""
    key = (visit.admission_id, visit.issuer_of_admission_id)
    return any(
        (v.admission_id, v.issuer_of_admission_id) == key
        for v in _visits_of(back.to, back.unit)
        if v.id != visit.id
    )


def _changed(row: PatientMerge, ctx: Context) -> dict[str, dict[str, dict[str, list[Any]]]]:
    """What the merge changed; of one made before that was noted in full, what its list of rows says."""
    if row.changed:
        return dict(row.changed)
    survivor, retired = str(row.survivor_id), str(row.retired_id)
    found: dict[str, dict[str, dict[str, list[Any]]]] = {
        name: {key: {"patient_id": [retired, survivor]} for key in keys} for name, keys in row.moved.items()
    }
    found["patientidentifier"] = {
        str(i.id): {"status": ["current", "alias"]} for i in ctx.identifiers[row.retired_id]
    }
    found["patient"] = {retired: {"merged_into_id": [None, survivor]}}
    return found


def later_orders(row: PatientMerge) -> list[ImagingServiceRequest]:
    """Orders that came since, under an identifier that goes back with the undoing."""
    identifiers = row.changed.get("patientidentifier", {})
    since = ImagingServiceRequest.objects.filter(patient_id=row.survivor_id, created_at__gte=row.at)
    moved = row.moved.get("imagingservicerequest", [])
    return [r for r in since if r.details.get(patients.ORDERED_FOR) in identifiers and str(r.id) not in moved]


def _later_orders(row: PatientMerge, back: _Moving) -> None:
    if row.survivor_id == row.retired_id:
        return
    found = later_orders(row)
    others = ImagingServiceRequest.objects.filter(patient_id=row.survivor_id)
    staying = set(others.exclude(pk__in=[r.id for r in found]).values_list("visit_id", flat=True))
    wanted = {r.visit_id for r in found if r.visit_id} - staying
    twins = back.visits(Visit.objects.filter(pk__in=wanted, patient_id=row.survivor_id))
    back.requests(found, twins)


# ------------------------------------------------------------------------------------------------- looking


@dataclass(frozen=True)
class Plan:
    """What a merge (or its undoing) would change, for the person who decides. Nothing is changed by asking."""

    orders: list[ImagingServiceRequest] = field(default_factory=list)
    open_steps: int = 0
    performed: int = 0
    studies: int = 0
    reports: int = 0
    visits: list[Visit] = field(default_factory=list)
    identifiers: list[PatientIdentifier] = field(default_factory=list)
    staying: list[ImagingServiceRequest] = field(default_factory=list)
    """Of an undoing: orders that came since and stay."""
    why_not: str = ""
    """Why it cannot be done."""


def preview(survivor: Patient, retired: Patient) -> Plan:
    """What a merge by hand would move."""
    why_not = ""
    try:
        _refuse_unfit(survivor, retired)
    except NotAllowed as refusal:
        why_not = refusal.text
    theirs = {(v.admission_id, v.issuer_of_admission_id) for v in Visit.objects.filter(patient=survivor)}
    return _plan(
        ImagingServiceRequest.objects.filter(patient=retired),
        performed=PerformedProcedureStep.objects.filter(patient=retired).count(),
        visits=[
            v
            for v in Visit.objects.filter(patient=retired)
            if (v.admission_id, v.issuer_of_admission_id) not in theirs
        ],
        identifiers=[
            i
            for i in PatientIdentifier.objects.filter(patient=retired).select_related("authority")
            if i.status == PatientIdentifier.Status.CURRENT
        ],
        why_not=why_not,
    )


def preview_undo(row: PatientMerge) -> Plan:
    """What undoing a merge or move would give back, and what stays."""
    why_not = ""
    try:
        _refuse_undoing(row, row.survivor, row.retired)
    except NotAllowed as refusal:
        why_not = refusal.text

    def still(model: type[Row]) -> Any:
        ids = row.moved.get(model._meta.model_name or "", [])
        return model._default_manager.filter(pk__in=ids, patient_id=row.survivor_id)

    later = later_orders(row)
    going = [*still(ImagingServiceRequest), *later]
    since = ImagingServiceRequest.objects.filter(patient_id=row.survivor_id, created_at__gte=row.at)
    ids = row.changed.get("patientidentifier", {})
    return _plan(
        ImagingServiceRequest.objects.filter(pk__in=[r.id for r in going]),
        performed=still(PerformedProcedureStep).count(),
        visits=list(still(Visit)),
        identifiers=list(PatientIdentifier.objects.filter(pk__in=list(ids)).select_related("authority")),
        staying=list(since.exclude(pk__in=[r.id for r in going])),
        why_not=why_not,
    )


def _plan(requests: Any, **more: Any) -> Plan:
    orders = list(requests.prefetch_related("procedures").order_by("-created_at"))
    return Plan(
        orders=orders,
        open_steps=ScheduledProcedureStep.objects.filter(
            procedure__request__in=orders, status__in=OPEN
        ).count(),
        studies=StudyMatch.objects.filter(procedure__request__in=orders, undone_at=None).count(),
        reports=Report.objects.filter(procedure__request__in=orders).count(),
        **more,
    )


# ------------------------------------------------------------------------------------------------- telling


def _visits_of(patient: Patient, unit: Unit) -> list[Visit]:
    """A patient's visits, with those that wait to be written."""
    found = {v.id: v for v in Visit.objects.filter(patient_id=patient.id)}
    for visit in unit.pending(Visit):
        found.pop(visit.id, None)
        if visit.patient_id == patient.id:
            found[visit.id] = visit
    return list(found.values())


def _moved_steps(moved: dict[str, list[str]], unit: Unit) -> tuple[ScheduledProcedureStep, ...]:
    """Open steps of orders that just moved, bound to the order objects that wait to be written."""
    pending = {r.id: r for r in unit.pending(ImagingServiceRequest)}
    steps = ScheduledProcedureStep.objects.filter(
        procedure__request_id__in=moved["imagingservicerequest"], status__in=OPEN
    ).select_related("procedure__request__visit")
    for step in steps:
        step.procedure.request = pending.get(step.procedure.request_id, step.procedure.request)
    return tuple(steps)


def _tell(patient: Patient, ctx: Context, unit: Unit, steps: tuple[ScheduledProcedureStep, ...]) -> None:
    unit.publish(PatientChanged(patient=patient, identifiers=ctx.identifiers_of(patient), steps=steps))


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, UUID) else value


def _typed(row: Row, attribute: str, value: Any) -> Any:
    """A noted value as the attribute holds it."""
    field = next(f for f in row._meta.concrete_fields if f.attname == attribute)
    return field.to_python(value) if value is not None else None
