"""What `ris` adds to the archive's pages: a study's order, its case, and whose data it is."""

from collections.abc import Iterable
from typing import Any

from django.db.models import QuerySet

from common.desk import desk_url
from pacs import admin as archive
from pacs.models import Study
from ris.models import PerformedProcedureStep, ReconciliationCase, StudyMatch


def links(study: Study) -> Iterable[tuple[str, str]]:
    """The order a study is linked to, and the case that looked for it."""
    match = StudyMatch.objects.filter(study=study, undone_at__isnull=True).select_related("procedure").first()
    if match is not None:
        yield "Order", desk_url("ris.imagingservicerequest", match.procedure.request_id)
    for performed in _performed(study)[:3]:
        where = performed.performed_station_ae_title or "the scanner"
        yield f"Reported by {where}", desk_url("ris.performedprocedurestep", performed.pk)
    case = ReconciliationCase.objects.filter(study=study).first()
    if case is not None:
        yield (
            "Unmatched: why" if match is None else "How it was linked",
            desk_url("ris.reconciliationcase", case.pk),
        )


def _performed(study: Study) -> QuerySet[PerformedProcedureStep]:
    """What scanners reported of this study."""
    rows = PerformedProcedureStep.objects.filter(study_instance_uids__contains=[study.study_instance_uid])
    return rows.order_by("created_at")


def completeness(study: Study) -> Iterable[tuple[str, str]]:
    """Whether all that scanners say they made is here: tone and words; nothing where no scanner said."""
    told = [p for p in _performed(study) if p.images_expected]
    running = any(p.status == PerformedProcedureStep.Status.IN_PROGRESS for p in _performed(study))
    expected = sum(p.images_expected or 0 for p in told)
    missing = sum(p.images_missing or 0 for p in told)
    if missing and all(not p.is_short for p in told):
        yield "off", f"{missing} of {expected} images missing, accepted"
    elif missing:
        yield "bad", f"short by {missing} of {expected} images"
    elif running:
        yield "info", "scan in progress"
    elif expected:
        yield "ok", f"complete: {expected} images"


def patients(studies: list[Study]) -> list[Any]:
    """The patients of linked studies."""
    live = StudyMatch.objects.filter(study__in=studies, undone_at__isnull=True)
    return list(live.values_list("procedure__request__patient_id", flat=True))


archive.beside.append(links)
archive.remarks.append(completeness)
archive.owners.append(patients)
