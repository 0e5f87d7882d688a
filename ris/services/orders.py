"""What becomes of an order message: requests, procedures and steps found by their keys, made or changed."""

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from typing import Any

from common.store import Unit
from common.uids import is_loose_uid, new_uid
from ris import context, history
from ris.commands import Applied, ApplyOrders, OrderAction, OrderGroup, OrderKeys, OrderNumber
from ris.context import Context
from ris.errors import BadValue, DuplicateKey, Missing, NotAllowed, UnknownKey
from ris.events import OrderChanged, StepMoved
from ris.models import (
    ImagingServiceRequest,
    Patient,
    RequestedProcedure,
    ScheduledProcedureStep,
    Visit,
)
from ris.models.schedule import StepStatus
from ris.services import catalogue, lanes, numbers, patients
from ris.transitions import TERMINAL, may_move

SH = 16
_MAKING = frozenset({OrderAction.NEW, OrderAction.CHANGE, OrderAction.STATUS, OrderAction.REPLACEMENT})
_ENDING = {
    OrderAction.CANCEL: StepStatus.CANCELED,
    OrderAction.REPLACED: StepStatus.CANCELED,
    OrderAction.DISCONTINUE: StepStatus.DISCONTINUED,
    OrderAction.HOLD: StepStatus.HELD,
    OrderAction.RELEASE: StepStatus.SCHEDULED,
}
_WAITING = (StepStatus.SCHEDULED, StepStatus.ARRIVED, StepStatus.READY, StepStatus.HELD)
# What was asked for → where a step may stand so that it is so: what ended unperformed need not end again.
_UNPERFORMED = frozenset({StepStatus.CANCELED, StepStatus.DISCONTINUED})
_MET: Mapping[str, frozenset[str]] = {
    StepStatus.CANCELED: _UNPERFORMED,
    StepStatus.DISCONTINUED: _UNPERFORMED,
    StepStatus.HELD: frozenset({StepStatus.HELD}),
}
_MADE = "made"
"""In a row's `details`: which of its keys we made because the sender left them out; those may be replaced."""
_SAID_AT = "said_at"
"""In a step's `made`: how old the newest message is that ended, held, released or reopened it."""
_KNOWN_AT = "known_at"
"""In a step's `made`: how old its own facts are, where a newer message spoke of the order but not of this step."""


def ask(command: ApplyOrders) -> Callable[[], Context]:
    """Hold the command's lanes and read what it concerns, in statements that may travel with others."""
    keys = wanted(command)
    without_patient = () if keys["identifiers"] else [f"placer:{p}" for p in keys["placers"] if p]
    lanes.ask(keys["identifiers"], others=without_patient)
    return context.ask(**keys)


def wanted(command: ApplyOrders) -> dict[str, Any]:
    """The keys of what the command concerns, by the names that `context.ask` gives them."""
    keys = [g.keys for g in command.groups]
    return {
        **patients.wanted(command.patient),
        "accessions": [k.accession_number for k in keys],
        "placers": [k.placer.value for k in keys],
        "fillers": [k.filler.value for k in keys],
        "studies": [k.study_instance_uid for k in keys],
    }


def apply(command: ApplyOrders, unit: Unit, ctx: Context | None = None) -> Applied:
    """Carry out the order groups of one message, all or none. `ctx` is what `ask` read in this transaction.

    Raises a Refusal with the index of the group and the attribute at fault.
    """
    ctx = ctx or ask(command)()
    identifiers = command.patient.identifiers
    applied = Applied()
    patient: Patient | None = None
    visit: Visit | None = None
    if identifiers and command.makes_patient:
        patient, visit = patients.settle(command.patient, ctx, unit, applied)
    elif identifiers:
        patient = patients.find(command.patient.identifiers, ctx, applied)
    work = _Work(command, ctx, unit, applied, patient, visit)
    for index, group in enumerate(command.groups):
        work.group(index, group)
    work.finish()
    return applied


class _Work:
    """One message's order groups at work: where they find or make rows, and what is told at the end."""

    def __init__(
        self,
        command: ApplyOrders,
        ctx: Context,
        unit: Unit,
        applied: Applied,
        patient: Patient | None,
        visit: Visit | None,
    ) -> None:
        self.command, self.ctx, self.unit, self.applied = command, ctx, unit, applied
        self.patient, self.visit = patient, visit
        self.index = 0
        self.touched: dict[Any, ImagingServiceRequest] = {}
        self.created: set[Any] = set()
        self.changed_rows: set[Any] = set()
        self.claimed: set[Any] = set()
        """Steps that an earlier group of this message spoke of."""
        self.moves: list[tuple[ScheduledProcedureStep, str]] = []
        self.stale = False
        """Whether the group at hand is older than what is known of its order."""
        self.known_before: dict[Any, datetime | None] = {}
        """How old the facts of each order were before this message."""

    def group(self, index: int, group: OrderGroup) -> None:
        self.index = index
        self._check_lengths(group.keys)
        request = self._find_request(group.keys, group.action in _MAKING)
        if group.action in _MAKING:
            self._make_or_change(group, request)
        elif group.action is OrderAction.NUMBER_ASSIGNED:
            self._number_assigned(group, self._known(group, request))
        elif group.action is OrderAction.QUESTION:
            if (request := self._known(group, request)) is not None:
                self._touch(request)
        elif group.action is OrderAction.NOTE:
            if request is not None:
                self._touch(request)
        elif request is not None or self._known(group, request) is not None:
            assert request is not None
            self._end(group, request)

    # -- finding -----------------------------------------------------------------------------------------

    def _find_request(self, keys: OrderKeys, making: bool) -> ImagingServiceRequest | None:
        """The order these keys mean. The accession decides; an order whose accession we made may take theirs.

        What makes nothing (cancel, hold, …) may also name a known order beside an accession nobody knows.
        """
        requests = list(self.ctx.requests.values())
        request = None
        if keys.accession_number:
            request = next((r for r in requests if self._is_accession(r, keys)), None)
        if request is None:
            others = [r for r in requests if self._is_numbered(r, keys)]
            if keys.accession_number and making:
                others = [r for r in others if not r.accession_number or "accession_number" in _made(r)]
            if len(others) > 1:
                own = [r for r in others if self.patient and self.ctx.patient_of(r).id == self.patient.id]
                others = own or others
            request = others[0] if others else None
        mine = request is None or self.patient is None or self.ctx.patient_of(request).id == self.patient.id
        if not mine:
            raise DuplicateKey(
                "This order belongs to another patient.", attribute=self._leading(keys), group=self.index
            )
        return request

    @staticmethod
    def _is_accession(request: ImagingServiceRequest, keys: OrderKeys) -> bool:
        issuers = {request.issuer_of_accession_number, keys.issuer_of_accession_number}
        return request.accession_number == keys.accession_number and (len(issuers) == 1 or "" in issuers)

    def _is_numbered(self, request: ImagingServiceRequest, keys: OrderKeys) -> bool:
        if _same_number(keys.placer, request.placer_order_number, request.placer_issuer):
            return True
        if _same_number(keys.filler, request.filler_order_number, request.filler_issuer):
            return True
        return any(_is_procedure(p, keys) for p in self.ctx.procedures[request.id])

    @staticmethod
    def _leading(keys: OrderKeys) -> str:
        if keys.accession_number:
            return "accession_number"
        return "placer_order_number" if keys.placer.value else "filler_order_number"

    def _known(
        self, group: OrderGroup, request: ImagingServiceRequest | None
    ) -> ImagingServiceRequest | None:
        if request is not None:
            return request
        if self.command.policy.unknown_order == "ignore":
            self.applied.warnings.append(
                f"Group {self.index + 1}: the order is not known; ignored by policy."
            )
            return None
        raise UnknownKey(
            "No order here has this number; send the new order first.",
            attribute=self._leading(group.keys),
            group=self.index,
        )

    def _find_procedure(self, request: ImagingServiceRequest, group: OrderGroup) -> RequestedProcedure | None:
        keys, procedures = group.keys, self.ctx.procedures[request.id]
        if keys.requested_procedure_id or keys.study_instance_uid:
            for procedure in procedures:
                if keys.study_instance_uid and procedure.study_instance_uid == keys.study_instance_uid:
                    return procedure
                if keys.requested_procedure_id and _has_id(procedure, "requested_procedure_id", keys):
                    return procedure
            # A first message without ids was given ours; the next one, with the sender's, means the same thing.
            loose = [p for p in procedures if _made(p) and _may_be(p, keys)]
            return next((p for p in loose if _fits(p, group, keys)), None)
        numbered = [p for p in procedures if _is_procedure(p, keys)]
        if group.action is OrderAction.REPLACEMENT:  # one of the same code is what it replaces
            return next(iter(numbered), None)
        same_code = [p for p in numbered or procedures if _fits(p, group, keys)]
        if same_code:
            return same_code[0]
        return numbered[0] if numbered and not group.procedure.get("code_value") else None

    def _find_step(self, procedure: RequestedProcedure, group: OrderGroup) -> ScheduledProcedureStep | None:
        steps = self.ctx.steps[procedure.id]
        if group.keys.scheduled_procedure_step_id:
            for step in steps:
                if _has_id(step, "scheduled_procedure_step_id", group.keys):
                    return step
            unnamed = [s for s in steps if _made(s) and not s.made.get("sender_scheduled_procedure_step_id")]
            return next((s for s in unnamed if s.id not in self.claimed), None)
        return next((s for s in steps if s.id not in self.claimed), None)

    # -- making and changing -----------------------------------------------------------------------------

    def _make_or_change(self, group: OrderGroup, request: ImagingServiceRequest | None) -> None:
        creating = group.action in (OrderAction.NEW, OrderAction.REPLACEMENT)
        if request is None and not creating:
            if self.command.policy.unknown_order != "create" and self._known(group, request) is None:
                return
            self.applied.warnings.append(
                f"Group {self.index + 1}: the order was not known and has been created."
            )
        if request is None:
            request = self._new_request(group)
        elif self._is_stale(request):
            self.stale = True
            self._fill_gaps(request, group)
            self.stale = False
            return
        self._update_request(request, group)
        if not group.has_detail:
            if group.status:
                self._move_all(request, group, group.status)
            return
        procedure = self._find_procedure(request, group) or self._new_procedure(request, group)
        self._update_procedure(procedure, group)
        self._update_steps(procedure, group)

    def _fill_gaps(self, request: ImagingServiceRequest, group: OrderGroup) -> None:
        """A message older than what is known: it fills what was never said, and overwrites and reopens nothing.

        A procedure or step that it names by an id nobody knows is added.
        """
        self.applied.warnings.append(
            f"Group {self.index + 1}: older than what is known; only what was missing was taken from it."
        )
        self._touch(request)
        _take_numbers(request, group.keys)
        _fill(request, group.request)
        if not group.has_detail:
            if group.status:
                self._move_all(request, group, group.status)
            return
        procedure = self._find_procedure(request, group)
        if procedure is None:
            if self._is_another(request, group):
                procedure = self._new_procedure(request, group)
                self._update_procedure(procedure, group)
                self._update_steps(procedure, group)
            return
        procedure.request = request
        step = self._find_step(procedure, group)
        if step is not None and self._knows_less(step):  # what is newer spoke of other steps
            if all(self._knows_less(s) for s in self.ctx.steps[procedure.id]):
                self._update_procedure(procedure, group)
            self._update_step(step, procedure, group)
            return
        _take_numbers(procedure, group.keys)
        _fill(procedure, group.procedure)
        if history.keep(procedure, self.unit, request.patient_id):
            self.changed_rows.add(procedure.id)
        if step is not None:
            self.claimed.add(step.id)
            step.procedure = procedure
            _fill(step, group.step)
            if step.made.get(_SAID_AT):  # it may have been placed again after it was cancelled
                self._take_status(step, group)
            else:
                self._follow(step, group.status)
            self._keep_step(step, procedure)
        elif group.keys.scheduled_procedure_step_id:
            self._new_step(procedure, group, {})

    def _knows_less(self, step: ScheduledProcedureStep) -> bool:
        """Whether this message is newer than what is known of the step, though not than what is of its order."""
        own, facts_at = step.made.get(_KNOWN_AT), self.command.facts_at
        return bool(own and facts_at and facts_at >= datetime.fromisoformat(own))

    def _note_age(self, step: ScheduledProcedureStep) -> None:
        """A step that this message spoke of is as old as the message: as the order, unless that is newer."""
        if self.stale or _KNOWN_AT in step.made:
            made = {k: v for k, v in step.made.items() if k != _KNOWN_AT}
            if self.stale and self.command.facts_at:
                made[_KNOWN_AT] = self.command.facts_at.isoformat()
            step.made = made

    def _keep_ages(self, request: ImagingServiceRequest) -> None:
        """Steps that a newer message did not speak of stay as old as they were."""
        before = self.known_before.get(request.id)
        if before is None or before == request.facts_at:
            return
        for step in self.ctx.steps_of(request):
            if step.id not in self.claimed and _KNOWN_AT not in step.made:
                step.made = {**step.made, _KNOWN_AT: before.isoformat()}
                history.keep(step, self.unit, request.patient_id)

    def _is_another(self, request: ImagingServiceRequest, group: OrderGroup) -> bool:
        """Whether a group surely speaks of a procedure that is not here: by an id, where all here have other ids."""
        named = group.keys.requested_procedure_id or group.keys.study_instance_uid
        return bool(named) and not any(_may_be(p, group.keys) for p in self.ctx.procedures[request.id])

    def _is_stale(self, request: ImagingServiceRequest) -> bool:
        facts_at = self.command.facts_at
        return bool(facts_at and request.facts_at and facts_at < request.facts_at)

    def _new_request(self, group: OrderGroup) -> ImagingServiceRequest:
        if self.patient is None:
            raise Missing("A new order must name its patient.", attribute="patient_id", group=self.index)
        request = ImagingServiceRequest(
            patient=self.patient,
            source=self.command.source,
            created_at=self.unit.at,
            updated_at=self.unit.at,
            cause=self.unit.cause,
        )
        if named := self.command.patient.identifiers:
            came_under = patients.own_identifier(named[0], self.patient, self.ctx)
            request.details = {patients.ORDERED_FOR: str(came_under.id)} if came_under else {}
        if not group.keys.accession_number:
            self._give_accession(request, group.keys)
        self.ctx.add_request(request)
        self.created.add(request.id)
        return request

    def _give_accession(self, request: ImagingServiceRequest, keys: OrderKeys) -> None:
        """What a missing accession number means is the source's policy."""
        policy = self.command.policy.accession_number
        number = {"placer": keys.placer, "filler": keys.filler}.get(policy, OrderNumber())
        if policy == "refuse" or (policy in ("placer", "filler") and not number.value):
            raise Missing(
                "The order has no accession number.", attribute="accession_number", group=self.index
            )
        if number.value and len(number.value) <= SH:
            request.accession_number = number.value
            request.issuer_of_accession_number = number.issuer
        else:
            request.accession_number = numbers.accession_number()
        request.details = {**request.details, _MADE: ["accession_number"]}

    def _update_request(self, request: ImagingServiceRequest, group: OrderGroup) -> None:
        keys = group.keys
        if keys.accession_number and request.accession_number != keys.accession_number:
            request.accession_number = keys.accession_number
            request.issuer_of_accession_number = keys.issuer_of_accession_number
            _unmake(request, "accession_number")
        for name, number in (("placer", keys.placer), ("filler", keys.filler)):
            if number.value and not getattr(request, f"{name}_order_number"):
                setattr(request, f"{name}_order_number", number.value)
                setattr(request, f"{name}_issuer", number.issuer)
        if self.visit is not None:
            request.visit = self.visit
        _assign(request, group.request)
        self.known_before.setdefault(request.id, request.facts_at)
        if self.command.facts_at:
            request.facts_at = self.command.facts_at
        self._touch(request)

    def _new_procedure(self, request: ImagingServiceRequest, group: OrderGroup) -> RequestedProcedure:
        keys, made = group.keys, []
        procedure = RequestedProcedure(
            request=request, created_at=self.unit.at, updated_at=self.unit.at, cause=self.unit.cause
        )
        procedure.requested_procedure_id = keys.requested_procedure_id
        if not keys.requested_procedure_id or len(keys.requested_procedure_id) > SH:
            if keys.requested_procedure_id:
                procedure.details = {"sender_requested_procedure_id": keys.requested_procedure_id}
            procedure.requested_procedure_id = numbers.requested_procedure_id()
            made.append("requested_procedure_id")
        if keys.study_instance_uid:
            procedure.study_instance_uid = keys.study_instance_uid
        else:
            procedure.study_instance_uid = new_uid()
            made.append("study_instance_uid")
        if made:
            procedure.details = {**procedure.details, _MADE: made}
        self._refuse_foreign_uid(procedure)
        self.ctx.add_procedure(procedure)
        return procedure

    def _refuse_foreign_uid(self, procedure: RequestedProcedure) -> None:
        for procedures in list(self.ctx.procedures.values()):
            for other in procedures:
                if other.id != procedure.id and other.study_instance_uid == procedure.study_instance_uid:
                    raise DuplicateKey(
                        "The Study Instance UID belongs to another order.",
                        attribute="study_instance_uid",
                        group=self.index,
                    )

    def _update_procedure(self, procedure: RequestedProcedure, group: OrderGroup) -> None:
        keys = group.keys
        self._replace_made_ids(procedure, keys)
        replacing = group.action is OrderAction.REPLACEMENT
        for name, number in (("placer", keys.placer), ("filler", keys.filler)):
            if number.value and (replacing or not getattr(procedure, f"{name}_order_number")):
                setattr(procedure, f"{name}_order_number", number.value)
                setattr(procedure, f"{name}_issuer", number.issuer)
        _assign(procedure, group.procedure)
        listed = catalogue.definition(procedure.code_value)
        if not procedure.requested_procedure_description:
            procedure.requested_procedure_description = procedure.code_meaning or (
                listed.name if listed else ""
            )
        if history.keep(procedure, self.unit, procedure.request.patient_id):
            self.changed_rows.add(procedure.id)

    def _replace_made_ids(self, procedure: RequestedProcedure, keys: OrderKeys) -> None:
        """The sender's own ids take the place of those we made, unless images already carry ours."""
        made = _made(procedure)
        wanted, given = keys.requested_procedure_id, procedure.details.get("sender_requested_procedure_id")
        if wanted and wanted != given and "requested_procedure_id" in made and len(wanted) <= SH:
            procedure.requested_procedure_id = wanted
            _unmake(procedure, "requested_procedure_id")
        uid = keys.study_instance_uid
        if uid and uid != procedure.study_instance_uid:
            if "study_instance_uid" in made and procedure.id not in self.ctx.matched:
                procedure.study_instance_uid = uid
                _unmake(procedure, "study_instance_uid")
                self._refuse_foreign_uid(procedure)
            else:
                self.applied.warnings.append(
                    f"Group {self.index + 1}: the procedure keeps the Study Instance UID it had."
                )

    def _update_steps(self, procedure: RequestedProcedure, group: OrderGroup) -> None:
        step = self._find_step(procedure, group)
        if step is not None:
            self._update_step(step, procedure, group)
            if not group.keys.scheduled_procedure_step_id:
                self._update_siblings(procedure, group)
            return
        listed = catalogue.definition(procedure.code_value)
        planned = listed.steps if listed and not group.keys.scheduled_procedure_step_id else []
        for plan in planned if isinstance(planned, list) and planned else [{}]:
            self._new_step(procedure, group, plan)

    def _update_siblings(self, procedure: RequestedProcedure, group: OrderGroup) -> None:
        """A group without a step id speaks of all steps that the catalogue made for its procedure."""
        if sum(1 for g in self.command.groups if g.keys.accession_number == group.keys.accession_number) > 1:
            return
        for step in self.ctx.steps[procedure.id]:
            if step.id not in self.claimed and _made(step):
                self._update_step(step, procedure, group)

    def _new_step(self, procedure: RequestedProcedure, group: OrderGroup, plan: Mapping[str, Any]) -> None:
        listed = catalogue.definition(procedure.code_value)
        step = ScheduledProcedureStep(
            procedure=procedure,
            status_at=self.unit.at,
            created_at=self.unit.at,
            updated_at=self.unit.at,
            cause=self.unit.cause,
        )
        wanted = group.keys.scheduled_procedure_step_id
        step.scheduled_procedure_step_id = wanted
        if not wanted or len(wanted) > SH:
            step.scheduled_procedure_step_id = numbers.scheduled_procedure_step_id()
            step.made = {_MADE: ["scheduled_procedure_step_id"], "sender_scheduled_procedure_step_id": wanted}
        _assign(step, group.step)
        if self.command.policy.start == "now" and step.start is None:
            step.start = self.unit.at
        step.modality = step.modality or plan.get("modality") or (listed.modality if listed else "")
        step.scheduled_procedure_step_description = (
            step.scheduled_procedure_step_description
            or plan.get("name", "")
            or procedure.requested_procedure_description
        )
        step.minutes = int(
            group.step.get("minutes") or plan.get("minutes") or (listed.minutes if listed else 20)
        )
        if (
            listed
            and listed.stations
            and not (step.scheduled_station_names or step.scheduled_station_ae_titles)
        ):
            step.scheduled_station_names = list(listed.stations)
        _give_stations(step)
        step.status = group.status if group.status in StepStatus.values else StepStatus.SCHEDULED
        others = self.ctx.steps_of(procedure.request)
        if others and all(self._is_late_word(s) for s in others) and len({s.status for s in others}) == 1:
            step.status = others[0].status  # a newer message has ended or held all there was of the order
            step.made = {**step.made, _SAID_AT: others[0].made[_SAID_AT]}
        self._note_age(step)
        self.ctx.add_step(step)
        self.claimed.add(step.id)
        self._keep_step(step, procedure)
        self.moves.append((step, ""))

    def _update_step(
        self, step: ScheduledProcedureStep, procedure: RequestedProcedure, group: OrderGroup
    ) -> None:
        self.claimed.add(step.id)
        step.procedure = procedure
        wanted = group.keys.scheduled_procedure_step_id
        if (
            wanted
            and len(wanted) <= SH
            and _made(step)
            and not step.made.get("sender_scheduled_procedure_step_id")
        ):
            step.scheduled_procedure_step_id = wanted
            step.made = {k: v for k, v in step.made.items() if k in (_SAID_AT, _KNOWN_AT, patients.EMPTIED)}
        given_back = "start" in group.step and group.step["start"] is None
        if given_back and step.status not in (*_WAITING, StepStatus.CANCELED):
            self.applied.warnings.append(f"A step that is {step.status} keeps the time it had.")
        else:
            _assign(step, group.step)
        _give_stations(step)
        self._note_age(step)
        self._take_status(step, group)
        self._keep_step(step, procedure)

    def _take_status(self, step: ScheduledProcedureStep, group: OrderGroup) -> None:
        """The status that a group asks for; a new order reopens what was cancelled before it was placed."""
        placing = group.action in (OrderAction.NEW, OrderAction.REPLACEMENT)
        reopened = placing and step.status == StepStatus.CANCELED
        if not reopened:
            self._follow(step, group.status)
        elif not self._is_late_word(step):
            self._set_status(step, group.status or StepStatus.SCHEDULED)
            self._note_word(step)

    def _follow(self, step: ScheduledProcedureStep, target: str) -> None:
        """Move a step where a message says it is, unless a newer one has said otherwise."""
        if not target or target == step.status:
            return
        if self._is_late_word(step):
            self.applied.warnings.append(f"A step stays {step.status}: a newer message has said so.")
            return
        self._move(step, target)
        if target != StepStatus.SCHEDULED:
            self._note_word(step)

    def _is_late_word(self, step: ScheduledProcedureStep) -> bool:
        """Whether a newer message than this one has spoken about the step's status."""
        said, facts_at = step.made.get(_SAID_AT), self.command.facts_at
        return bool(said and facts_at and facts_at < datetime.fromisoformat(said))

    def _note_word(self, step: ScheduledProcedureStep) -> None:
        """Remember how old the newest word about the step's status is, so that none older undoes it."""
        if self.command.facts_at:
            step.made = {**step.made, _SAID_AT: self.command.facts_at.isoformat()}

    def _keep_step(self, step: ScheduledProcedureStep, procedure: RequestedProcedure) -> None:
        if history.keep(step, self.unit, procedure.request.patient_id):
            self.changed_rows.add(step.id)

    # -- moving and ending -------------------------------------------------------------------------------

    def _set_status(self, step: ScheduledProcedureStep, target: str) -> None:
        self.moves.append((step, step.status))
        step.status, step.status_at = target, self.unit.at

    def _move(self, step: ScheduledProcedureStep, target: str) -> None:
        """Move a step where the order wants it, if the table allows it; a late word is kept as a warning."""
        waiting = (StepStatus.SCHEDULED, StepStatus.ARRIVED, StepStatus.READY)
        if target == StepStatus.SCHEDULED and step.status in waiting:
            return
        if may_move("order", step.status, target):
            self._set_status(step, target)
        else:
            self.applied.warnings.append(f"A step stays {step.status}; {target} may not follow it.")

    def _number_assigned(self, group: OrderGroup, request: ImagingServiceRequest | None) -> None:
        if request is None:
            return
        keys = group.keys
        for row in (request, *self.ctx.procedures[request.id]):
            for name, number in (("placer", keys.placer), ("filler", keys.filler)):
                if number.value and not getattr(row, f"{name}_order_number"):
                    setattr(row, f"{name}_order_number", number.value)
                    setattr(row, f"{name}_issuer", number.issuer)
        for procedure in self.ctx.procedures[request.id]:
            procedure.request = request
            if history.keep(procedure, self.unit, request.patient_id):
                self.changed_rows.add(procedure.id)
        self._touch(request)

    def _end(self, group: OrderGroup, request: ImagingServiceRequest) -> None:
        """Cancel, discontinue, hold or release everything that the group's keys reach.

        Refused when all of it has gone too far for that: the sender must not believe that it is done.
        """
        target = _ENDING[group.action]
        self._move_all(request, group, target)
        met = _MET.get(target)
        steps = [s for _, s in self._steps_to_end(request, group)]
        if met and steps and not any(s.status in met or self._is_late_word(s) for s in steps):
            raise NotAllowed(
                f"The examination is {steps[0].status}; {target} may not follow.",
                attribute="order_control",
                group=self.index,
            )
        self._touch(request)

    def _move_all(self, request: ImagingServiceRequest, group: OrderGroup, target: str) -> None:
        steps = self._steps_to_end(request, group)
        started = (StepStatus.STARTED, StepStatus.DEPARTED)
        if target == StepStatus.CANCELED and any(s.status in started for _, s in steps):
            raise NotAllowed(
                "The examination has started and cannot be cancelled; discontinue it instead.",
                attribute="order_control",
                group=self.index,
            )
        for procedure, step in steps:
            step.procedure = procedure
            procedure.request = request
            if self._is_late_word(step):
                self.applied.warnings.append(f"A step stays {step.status}: a newer message has said so.")
                continue
            if step.status != target:
                self._move(step, target)
            self._note_word(step)
            self._keep_step(step, procedure)

    def _steps_to_end(
        self, request: ImagingServiceRequest, group: OrderGroup
    ) -> list[tuple[RequestedProcedure, ScheduledProcedureStep]]:
        """The steps that a group means, without those that a replacement named before it has kept."""
        steps = self._steps_meant(request, group)
        replaced = group.action is OrderAction.REPLACED
        return [(p, s) for p, s in steps if s.id not in self.claimed] if replaced else steps

    def _steps_meant(
        self, request: ImagingServiceRequest, group: OrderGroup
    ) -> list[tuple[RequestedProcedure, ScheduledProcedureStep]]:
        """The steps under the group's narrowest key: its step, its procedure, its order number, else all."""
        keys, procedures = group.keys, self.ctx.procedures[request.id]
        narrow = [p for p in procedures if _is_narrow(p, keys)] or [
            p for p in procedures if _is_procedure(p, keys)
        ]
        pairs = [(p, s) for p in narrow or procedures for s in self.ctx.steps[p.id]]
        if keys.scheduled_procedure_step_id:
            own = [(p, s) for p, s in pairs if _has_id(s, "scheduled_procedure_step_id", keys)]
            return own or pairs
        return pairs

    # -- telling -----------------------------------------------------------------------------------------

    def _touch(self, request: ImagingServiceRequest) -> None:
        self.touched[request.id] = request

    def _check_lengths(self, keys: OrderKeys) -> None:
        if len(keys.accession_number) > SH:
            raise BadValue(
                f"An accession number has at most {SH} characters in DICOM and is never cut; map it in the profile.",
                attribute="accession_number",
                group=self.index,
            )
        if keys.study_instance_uid and not is_loose_uid(keys.study_instance_uid):
            raise BadValue(
                "A Study Instance UID has digits and dots only, at most 64.",
                attribute="study_instance_uid",
                group=self.index,
            )

    def finish(self) -> None:
        for request in self.touched.values():
            patient = self.ctx.patient_of(request)
            self._keep_ages(request)
            request.status = derived_status([s.status for s in self.ctx.steps_of(request)], request.status)
            changed = history.keep(request, self.unit, patient.id)
            procedures = self.ctx.procedures[request.id]
            steps = [(p, s) for p in procedures for s in self.ctx.steps[p.id]]
            for procedure, step in steps:
                _relate(procedure, "request", request)
                _relate(step, "procedure", procedure)
            self.applied.request_ids.append(request.id)
            self.applied.accession_numbers.append(request.accession_number)
            self.applied.step_ids += [s.id for _, s in steps if s.id in self.changed_rows]
            rows = [*procedures, *(s for _, s in steps)]
            if changed or any(r.id in self.changed_rows for r in rows):
                self._tell(request, patient, procedures, [s for _, s in steps], changed)

    def _tell(
        self,
        request: ImagingServiceRequest,
        patient: Patient,
        procedures: list[RequestedProcedure],
        steps: list[ScheduledProcedureStep],
        whole: bool,
    ) -> None:
        ids = self.changed_rows
        parents = {p.id for p in procedures if p.id in ids}
        self.unit.go_ahead()
        self.unit.publish(
            OrderChanged(
                request=request,
                patient=patient,
                identifiers=self.ctx.identifiers_of(patient),
                visit=request.visit if self.visit is None else self.visit,
                procedures=tuple(p for p in procedures if whole or p.id in ids),
                steps=tuple(s for s in steps if whole or s.id in ids or s.procedure_id in parents),
                created=request.id in self.created,
            )
        )
        for step, before in self.moves:
            if step.procedure.request_id == request.id and step.status != before:
                self.unit.publish(
                    StepMoved(
                        step=step,
                        procedure=step.procedure,
                        request=request,
                        patient=patient,
                        before=before,
                        actor="order",
                    )
                )


def derived_status(steps: list[str], present: str) -> str:
    """The status of an order, from those of its steps; without steps it stays what it is."""
    status = ImagingServiceRequest.Status
    if not steps:
        return present
    if all(s == StepStatus.CANCELED for s in steps):
        return status.CANCELED
    if all(s in TERMINAL for s in steps):
        return status.COMPLETED if StepStatus.COMPLETED in steps else status.DISCONTINUED
    if all(s == StepStatus.HELD or s in TERMINAL for s in steps):
        return status.HELD
    return status.ACTIVE


def _relate(row: Any, name: str, other: Any) -> None:
    """Have a row lead to the very object that is at hand (Django looks twice at each assignment)."""
    if row._state.fields_cache.get(name) is not other:
        setattr(row, name, other)


def _made(row: Any) -> set[str]:
    details = row.made if isinstance(row, ScheduledProcedureStep) else row.details
    return set(details.get(_MADE, ()))


def _unmake(row: Any, name: str) -> None:
    rest = [n for n in row.details.get(_MADE, ()) if n != name]
    row.details = {k: v for k, v in row.details.items() if k != _MADE}
    if rest:
        row.details[_MADE] = rest


def _has_id(row: Any, name: str, keys: OrderKeys) -> bool:
    details = row.made if isinstance(row, ScheduledProcedureStep) else row.details
    wanted = getattr(keys, name)
    return getattr(row, name) == wanted or details.get(f"sender_{name}") == wanted


def _same_number(number: OrderNumber, value: str, issuer: str) -> bool:
    return (
        bool(number.value)
        and number.value == value
        and (number.issuer == issuer or "" in (number.issuer, issuer))
    )


def _is_procedure(procedure: RequestedProcedure, keys: OrderKeys) -> bool:
    """Whether an order number or the study of the keys is this procedure's."""
    if keys.study_instance_uid and procedure.study_instance_uid == keys.study_instance_uid:
        return True
    if _same_number(keys.placer, procedure.placer_order_number, procedure.placer_issuer):
        return True
    return _same_number(keys.filler, procedure.filler_order_number, procedure.filler_issuer)


def _is_narrow(procedure: RequestedProcedure, keys: OrderKeys) -> bool:
    if keys.requested_procedure_id and _has_id(procedure, "requested_procedure_id", keys):
        return True
    return bool(keys.study_instance_uid) and procedure.study_instance_uid == keys.study_instance_uid


def _may_be(procedure: RequestedProcedure, keys: OrderKeys) -> bool:
    """Whether a procedure of other ids can be the one that the keys name: where theirs differ, its own is made up."""
    made = _made(procedure)
    if keys.requested_procedure_id and (
        "requested_procedure_id" not in made or procedure.details.get("sender_requested_procedure_id")
    ):
        return False
    return not keys.study_instance_uid or "study_instance_uid" in made


def _fits(procedure: RequestedProcedure, group: OrderGroup, keys: OrderKeys) -> bool:
    """Whether a group may speak of this procedure although no id says so: same code, or one that says none."""
    code = group.procedure.get("code_value")
    return not code or not procedure.code_value or procedure.code_value == code


def _assign(row: Any, values: Mapping[str, Any]) -> None:
    """Set the attributes that the model has; keep the others in `details` where it has them."""
    extra: dict[str, Any] = {}
    limits = _limits(row._meta)
    for name, value in values.items():
        if name in limits:
            limit = limits[name]
            # Descriptions may be shortened to what fits; identifiers do not come through here.
            setattr(row, name, value[:limit] if limit and isinstance(value, str) else value)
        else:
            extra[name] = value
    if extra and "details" in limits:
        merged = {**row.details, **extra}
        row.details = {k: v for k, v in merged.items() if v not in ("", None)}
    if "" in values.values() or patients.EMPTIED in (
        row.made if isinstance(row, ScheduledProcedureStep) else row.details
    ):
        _note_emptied(row, values)


# What is one statement: of an older one nothing is taken when the newer ones said any of it.
_TOGETHER = (
    ("start", "start_has_time", "timezone_offset_from_utc"),
    ("code_value", "coding_scheme_designator", "code_meaning", "requested_procedure_description"),
    ("requesting_physician", "requesting_physician_id"),
    ("referring_physician_name", "referring_physician_id"),
    ("reason_for_the_requested_procedure", "reason_code"),
    ("scheduled_station_ae_titles", "scheduled_station_names", "scheduled_procedure_step_location"),
)

_PARTS = frozenset(name for together in _TOGETHER for name in together)


def _fill(row: Any, values: Mapping[str, Any]) -> None:
    """Set what is empty here and was not emptied on purpose."""
    details = _details(row)
    names = {f.name for f in row._meta.concrete_fields}
    known = {n for n in values if (getattr(row, n) if n in names else details.get(n))} - {"start_has_time"}
    known |= set(details.get(patients.EMPTIED, ()))
    for together in _TOGETHER:
        if any(n in names and getattr(row, n) for n in together if n != "start_has_time"):
            known |= set(together)
    _assign(row, {n: v for n, v in values.items() if n not in known and v not in ("", None)})


def _take_numbers(row: Any, keys: OrderKeys) -> None:
    """Order numbers that are not known yet."""
    for name, number in (("placer", keys.placer), ("filler", keys.filler)):
        if number.value and not getattr(row, f"{name}_order_number"):
            setattr(row, f"{name}_order_number", number.value)
            setattr(row, f"{name}_issuer", number.issuer)


def _details(row: Any) -> dict[str, Any]:
    return dict(row.made if isinstance(row, ScheduledProcedureStep) else row.details)


def _note_emptied(row: Any, values: Mapping[str, Any]) -> None:
    """Remember what a message emptied (`""`), so that an older one that comes late does not fill it again."""
    details = _details(row)
    before = set(details.get(patients.EMPTIED, ()))
    emptied = {n for n, v in values.items() if v == "" and n not in _PARTS}
    after = {n for n in before if not values.get(n)} | emptied
    if after == before:
        return
    details.pop(patients.EMPTIED, None)
    if after:
        details[patients.EMPTIED] = sorted(after)
    if isinstance(row, ScheduledProcedureStep):
        row.made = details
    else:
        row.details = details


@cache
def _limits(options: Any) -> dict[str, int | None]:
    """The attributes of a model, and how long their text may be."""
    return {f.name: getattr(f, "max_length", None) for f in options.concrete_fields}


def _give_stations(step: ScheduledProcedureStep) -> None:
    """AE titles by the station table, where the order names none."""
    if step.scheduled_station_ae_titles:
        return
    found = catalogue.stations_for(
        step.scheduled_station_names, step.scheduled_procedure_step_location, step.modality
    )
    step.scheduled_station_ae_titles = [s.ae_title for s in found if s.ae_title]
