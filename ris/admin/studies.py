"""What `ris` adds to the archive's pages: a study's order, its case, and whose data it is."""

from collections.abc import Iterable
from typing import Any

from common.desk import desk_url
from pacs import admin as archive
from pacs.models import Study
from ris.models import ReconciliationCase, StudyMatch


def links(study: Study) -> Iterable[tuple[str, str]]:
    """The order a study is linked to, and the case that looked for it."""
    match = StudyMatch.objects.filter(study=study, undone_at__isnull=True).select_related("procedure").first()
    if match is not None:
        yield "Order", desk_url("ris.imagingservicerequest", match.procedure.request_id)
    case = ReconciliationCase.objects.filter(study=study).first()
    if case is not None:
        yield (
            "Unmatched: why" if match is None else "How it was linked",
            desk_url("ris.reconciliationcase", case.pk),
        )


def patients(studies: list[Study]) -> list[Any]:
    """The patients of linked studies."""
    live = StudyMatch.objects.filter(study__in=studies, undone_at__isnull=True)
    return list(live.values_list("procedure__request__patient_id", flat=True))


archive.beside.append(links)
archive.owners.append(patients)
