"""Deciding whether a study surely belongs to a procedure. Pure: a guess is never a match."""

from collections.abc import Sequence
from dataclasses import dataclass

from ris.reconciliation.evidence import ProcedureFacts, StudyFacts, Weighed, weigh

MAX_CANDIDATES = 8
"""How many a clerk is shown."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A sure match (`winner`, by `method`), or why there is none; `candidates` are weighed, best first."""

    winner: Weighed | None
    method: str
    reason: str
    candidates: tuple[Weighed, ...]


def decide(study: StudyFacts, procedures: Sequence[ProcedureFacts]) -> Decision:
    """Match by Study Instance UID, else accession, else evidence; in each case the patient must agree."""
    weighed = sorted((weigh(study, p) for p in procedures), key=lambda w: -w.score)
    shown = tuple(weighed[:MAX_CANDIDATES])
    by_uid = [w for w in weighed if w.procedure.study_instance_uid == study.study_instance_uid]
    if by_uid:
        if by_uid[0].patient_agrees:
            return Decision(by_uid[0], "study_instance_uid", "", shown)
        return Decision(None, "", _against(by_uid[0], "the Study Instance UID"), shown)
    if study.accession_number:
        by_accession = [w for w in weighed if w.procedure.accession_number == study.accession_number]
        if by_accession:
            return _by_accession(by_accession, shown)
    return _by_evidence(study, weighed, shown)


def _by_accession(found: list[Weighed], shown: tuple[Weighed, ...]) -> Decision:
    agreeing = [w for w in found if w.patient_agrees]
    if not agreeing:
        return Decision(None, "", _against(found[0], "the accession number"), shown)
    fitting = [w for w in agreeing if not w.contradicts("modality")]
    if len(fitting) == 1:
        return Decision(fitting[0], "accession_number", "", shown)
    named = [
        w for w in fitting if w.agrees("requested_procedure_id") or w.agrees("scheduled_procedure_step_id")
    ]
    if len(named) == 1:
        return Decision(named[0], "accession_number", "", shown)
    if not fitting:
        return Decision(None, "", "The order with this accession number asks for another modality.", shown)
    return Decision(
        None, "", "The accession number has several procedures and the images do not say which.", shown
    )


def _by_evidence(study: StudyFacts, weighed: list[Weighed], shown: tuple[Weighed, ...]) -> Decision:
    if study.accession_number:
        return Decision(None, "", "No order has this accession number.", shown)
    strong = [
        w
        for w in weighed
        if w.patient_agrees
        and w.procedure.is_open
        and w.agrees("patient_name", "patient_birth_date", "modality")
        and (
            w.agrees("time") or w.agrees("requested_procedure_id") or w.agrees("scheduled_procedure_step_id")
        )
    ]
    same_patient = [
        w for w in weighed if w.agrees("patient_id") and w.procedure.is_open and not w.contradicts("modality")
    ]
    if len(strong) == 1 and len(same_patient) == 1:
        return Decision(strong[0], "evidence", "", shown)
    if not weighed:
        return Decision(None, "", "No order is known for this patient, study or accession number.", shown)
    if len(same_patient) > 1:
        return Decision(None, "", "Several open orders of this patient would fit.", shown)
    return Decision(None, "", "The images name no order, and what they say is not enough to be sure.", shown)


def _against(candidate: Weighed, key: str) -> str:
    """Why a candidate found by a key is no match."""
    said = {
        "patient_id": "the patient identifier",
        "patient_name": "the patient name",
        "patient_birth_date": "the birth date",
    }
    wrong = [text for about, text in said.items() if candidate.contradicts(about)]
    if wrong:
        return f"An order has {key} of the images, but {' and '.join(wrong)} contradict it: wrong worklist entry?"
    return f"An order has {key} of the images, but they carry no patient identifier to confirm it."
