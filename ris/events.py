"""What `ris` tells upward. Events carry the rows themselves, as they will be after the unit's flush."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pacs.models import Study
from ris.models import (
    ImagingServiceRequest,
    Patient,
    PatientIdentifier,
    PerformedProcedureStep,
    ReconciliationCase,
    Report,
    ReportVersion,
    RequestedProcedure,
    ScheduledProcedureStep,
    StudyMatch,
    Visit,
)


@dataclass(frozen=True)
class PatientChanged:
    """A patient is new or has other demographics, identifiers or visit.

    `steps` are the patient's open steps with `.procedure.request` loaded, for the worklist.
    """

    patient: Patient
    identifiers: tuple[PatientIdentifier, ...]
    visit: Visit | None = None
    steps: tuple[ScheduledProcedureStep, ...] = ()
    created: bool = False


@dataclass(frozen=True)
class PatientsMerged:
    """`retired` has gone into `survivor`; `moved` says what changed owner (model name → row ids).

    With `moves` only some of it went over, and `retired` lives on.
    """

    survivor: Patient
    retired: Patient
    moved: dict[str, list[str]]
    undone: bool = False
    moves: bool = False


@dataclass(frozen=True)
class OrderChanged:
    """An order is new or changed. `procedures` and `steps` are all of it that changed or is new."""

    request: ImagingServiceRequest
    patient: Patient
    identifiers: tuple[PatientIdentifier, ...]
    visit: Visit | None
    procedures: tuple[RequestedProcedure, ...]
    steps: tuple[ScheduledProcedureStep, ...]
    created: bool = False


@dataclass(frozen=True)
class StepMoved:
    """A step's status changed. Published beside OrderChanged; `before` is empty for a new step."""

    step: ScheduledProcedureStep
    procedure: RequestedProcedure
    request: ImagingServiceRequest
    patient: Patient
    before: str
    actor: str
    """Who moved it: `order`, `scanner`, `images`, `clerk`, `report`. What the HIS itself asked is not echoed."""


@dataclass(frozen=True)
class StepPerformed:
    """An MPPS was created or set. `said` is that message alone, as it came."""

    performed: PerformedProcedureStep
    steps: tuple[ScheduledProcedureStep, ...]
    created: bool = False
    said: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyMatched:
    """A study was linked to a procedure (`match.undone_at` set: unlinked again)."""

    study: Study
    match: StudyMatch
    procedure: RequestedProcedure
    request: ImagingServiceRequest
    patient: Patient


@dataclass(frozen=True)
class CaseOpened:
    """A study could not be matched surely and waits for a clerk."""

    case: ReconciliationCase


@dataclass(frozen=True)
class StudyGrew:
    """A study that `ris` already knows got more objects (its match stays)."""

    study: Study
    match: StudyMatch | None


@dataclass(frozen=True)
class ReportSigned:
    """A report version was signed. Everything a result message says, as it was at that moment."""

    report: Report
    version: ReportVersion
    procedure: RequestedProcedure
    request: ImagingServiceRequest
    patient: Patient
    identifiers: tuple[PatientIdentifier, ...]
    visit: Visit | None = None
    studies: tuple[Study, ...] = ()
    previous: tuple[ReportVersion, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
