"""What speaks for and against a study belonging to a procedure. Pure: facts in, evidence out, nothing read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from common.names import same_person_name


class Verdict(Enum):
    """What one comparison says."""

    AGREES = "agrees"
    CONTRADICTS = "contradicts"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class Evidence:
    """One comparison: what was compared, its verdict, how much it weighs, and why, in words without health data."""

    about: str
    verdict: Verdict
    weight: float
    reason: str

    def plain(self) -> dict[str, Any]:
        """For storage and pages."""
        return {
            "about": self.about,
            "verdict": self.verdict.value,
            "weight": self.weight,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class StudyFacts:
    """What the images say, as received."""

    study_instance_uid: str
    accession_number: str = ""
    patient_id: str = ""
    issuer_of_patient_id: str = ""
    patient_name: str = ""
    patient_birth_date: str = ""
    patient_sex: str = ""
    modalities: frozenset[str] = frozenset()
    requested_procedure_ids: frozenset[str] = frozenset()
    scheduled_procedure_step_ids: frozenset[str] = frozenset()
    stations: frozenset[str] = frozenset()
    """AE titles that sent it and station names in it."""
    acquired_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ProcedureFacts:
    """What an ordered procedure says. `identifiers` are (value, namespace, universal id), aliases too."""

    procedure_id: str
    study_instance_uid: str
    accession_number: str
    identifiers: frozenset[tuple[str, str, str]]
    patient_name: str = ""
    patient_birth_date: str = ""
    patient_sex: str = ""
    requested_procedure_id: str = ""
    scheduled_procedure_step_ids: frozenset[str] = frozenset()
    modalities: frozenset[str] = frozenset()
    stations: frozenset[str] = frozenset()
    starts: tuple[datetime, ...] = ()
    is_open: bool = True
    """Ordered and not canceled, and no study is linked to it yet."""


@dataclass(frozen=True, slots=True)
class Weighed:
    """A candidate with all its evidence."""

    procedure: ProcedureFacts
    evidence: tuple[Evidence, ...]
    by_about: Mapping[str, Verdict] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """The sum of weights, for the order in which a clerk sees candidates."""
        return round(sum(e.weight for e in self.evidence), 2)

    @property
    def patient_agrees(self) -> bool:
        """Identifier with issuer (or an alias) is the ordered patient's; name and birth date do not contradict."""
        return self.by_about["patient_id"] is Verdict.AGREES and Verdict.CONTRADICTS not in (
            self.by_about["patient_name"],
            self.by_about["patient_birth_date"],
        )

    def agrees(self, *abouts: str) -> bool:
        """Whether all of these comparisons agree."""
        return all(self.by_about[a] is Verdict.AGREES for a in abouts)

    def contradicts(self, about: str) -> bool:
        """Whether this comparison contradicts."""
        return self.by_about[about] is Verdict.CONTRADICTS


_WEIGHTS = {
    # about: (agrees, contradicts)
    "study_instance_uid": (6.0, 0.0),
    "accession_number": (5.0, -2.0),
    "patient_id": (4.0, -6.0),
    "patient_name": (2.0, -4.0),
    "patient_birth_date": (2.0, -4.0),
    "patient_sex": (0.2, -2.0),
    "requested_procedure_id": (2.0, -1.0),
    "scheduled_procedure_step_id": (2.0, -1.0),
    "modality": (1.0, -2.0),
    "station": (1.0, 0.0),
    "time": (1.0, -0.5),
}


def weigh(study: StudyFacts, procedure: ProcedureFacts) -> Weighed:
    """Compare a study with one procedure on every point."""
    points = {
        "study_instance_uid": _same(
            study.study_instance_uid, procedure.study_instance_uid, contradicts=False
        ),
        "accession_number": _same(study.accession_number, procedure.accession_number),
        "patient_id": _patient_id(study, procedure),
        "patient_name": _name(study, procedure),
        "patient_birth_date": _same(study.patient_birth_date, procedure.patient_birth_date, prefix=True),
        "patient_sex": _same(study.patient_sex, procedure.patient_sex),
        "requested_procedure_id": _shared(study.requested_procedure_ids, {procedure.requested_procedure_id}),
        "scheduled_procedure_step_id": _shared(
            study.scheduled_procedure_step_ids, procedure.scheduled_procedure_step_ids
        ),
        "modality": _shared(study.modalities - {"SR", "PR", "KO", "DOC", "OT"}, procedure.modalities),
        "station": _shared(study.stations, procedure.stations, contradicts=False),
        "time": _time(study, procedure),
    }
    evidence = []
    for about, (verdict, reason) in points.items():
        agrees, contradicts = _WEIGHTS[about]
        weight = {Verdict.AGREES: agrees, Verdict.CONTRADICTS: contradicts, Verdict.SILENT: 0.0}[verdict]
        evidence.append(Evidence(about, verdict, weight, reason))
    return Weighed(procedure, tuple(evidence), {a: v for a, (v, _) in points.items()})


Finding = tuple[Verdict, str]


def _same(ours: str, theirs: str, *, contradicts: bool = True, prefix: bool = False) -> Finding:
    if not ours or not theirs:
        return Verdict.SILENT, "one side says nothing"
    if ours == theirs or (prefix and (ours.startswith(theirs) or theirs.startswith(ours))):
        return Verdict.AGREES, "the same on both sides"
    return (Verdict.CONTRADICTS if contradicts else Verdict.SILENT), "different"


def _shared(ours: Any, theirs: Any, *, contradicts: bool = True) -> Finding:
    ours, theirs = {o for o in ours if o}, {t for t in theirs if t}
    if not ours or not theirs:
        return Verdict.SILENT, "one side says nothing"
    if ours & theirs:
        return Verdict.AGREES, "the same on both sides"
    return (Verdict.CONTRADICTS if contradicts else Verdict.SILENT), "different"


def _patient_id(study: StudyFacts, procedure: ProcedureFacts) -> Finding:
    """Identifier and issuer, or an alias; an image without issuer is read as the order's own issuer."""
    if not study.patient_id:
        return Verdict.SILENT, "the images carry no patient identifier"
    issuer = study.issuer_of_patient_id
    for value, namespace, universal_id in procedure.identifiers:
        if value == study.patient_id:
            if not issuer or not (namespace or universal_id):
                return (
                    Verdict.AGREES,
                    "the identifier is the ordered patient's; the images or the order name no issuer",
                )
            if issuer in (namespace, universal_id):
                return Verdict.AGREES, "identifier and issuer are the ordered patient's"
    if any(value == study.patient_id for value, _, _ in procedure.identifiers):
        return Verdict.CONTRADICTS, "the same number from another issuer"
    return Verdict.CONTRADICTS, "not an identifier of the ordered patient"


def _name(study: StudyFacts, procedure: ProcedureFacts) -> Finding:
    same = same_person_name(study.patient_name, procedure.patient_name)
    if same is None:
        return Verdict.SILENT, "one side says nothing, or they are written in different scripts"
    return (Verdict.AGREES, "the same name") if same else (Verdict.CONTRADICTS, "different names")


def _time(study: StudyFacts, procedure: ProcedureFacts) -> Finding:
    if study.acquired_at is None or not procedure.starts:
        return Verdict.SILENT, "no time to compare"
    apart = min(abs(study.acquired_at - start) for start in procedure.starts)
    if apart <= timedelta(hours=24):
        return Verdict.AGREES, "within a day of the schedule"
    return Verdict.CONTRADICTS, f"{apart.days} days from the schedule"
