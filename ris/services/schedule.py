"""Giving a step its time and place."""

from datetime import datetime
from uuid import UUID

from common.store import Unit
from ris import context, history
from ris.errors import NotAllowed, UnknownKey
from ris.events import OrderChanged
from ris.models import ScheduledProcedureStep, Station
from ris.services import lanes
from ris.transitions import TERMINAL


def place(
    step_id: UUID,
    start: datetime | None,
    unit: Unit,
    *,
    station_id: UUID | None = None,
    minutes: int | None = None,
) -> ScheduledProcedureStep:
    """Schedule a step: its start (aware; None takes the time away), station and length.

    Raises UnknownKey for no such step or station, NotAllowed for a step that has ended.
    """
    step = ScheduledProcedureStep.objects.filter(pk=step_id).select_related("procedure__request").first()
    if step is None:
        raise UnknownKey("This step does not exist (any more).", attribute="scheduled_procedure_step_id")
    lanes.lock_patients([step.procedure.request.patient_id])
    ctx = context.load(requests=[step.procedure.request_id])
    request = ctx.requests[step.procedure.request_id]
    procedure = next(p for p in ctx.procedures[request.id] if p.id == step.procedure_id)
    step = next(s for s in ctx.steps[procedure.id] if s.id == step_id)
    procedure.request, step.procedure = request, procedure
    if step.status in TERMINAL:
        raise NotAllowed(f"The step is {step.status}; it cannot be scheduled.", attribute="status")
    step.start, step.start_has_time = start, True
    if minutes:
        step.minutes = minutes
    if station_id is not None:
        station = Station.objects.filter(pk=station_id).first()
        if station is None:
            raise UnknownKey("This station does not exist (any more).", attribute="scheduled_station_name")
        step.scheduled_station_names = [station.name]
        step.scheduled_station_ae_titles = [station.ae_title] if station.ae_title else []
        step.scheduled_procedure_step_location = station.room or step.scheduled_procedure_step_location
    patient = ctx.patient_of(request)
    if history.keep(step, unit, patient.id):
        unit.publish(
            OrderChanged(
                request=request,
                patient=patient,
                identifiers=ctx.identifiers_of(patient),
                visit=ctx.visit_of(request),
                procedures=(),
                steps=(step,),
            )
        )
    return step
