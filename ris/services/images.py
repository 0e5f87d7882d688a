"""Whether the images that a scanner says it made are in the archive: complete, or short by so many.

An instance that a performed series names counts as one; a series that names none counts as one, there as soon as
the archive has anything of it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from common.clock import now
from common.store import Unit, unit_of_work
from pacs.events import StudySettled
from pacs.models import Instance
from ris import history
from ris.errors import NotAllowed, UnknownKey
from ris.models import PerformedProcedureStep

LOOKED_FOR = timedelta(days=30)
"""So long after the end images that are missing are looked for without being asked."""


@dataclass(frozen=True)
class SeriesImages:
    """One performed series: what was said to be made, and how much of it is here."""

    series_instance_uid: str
    name: str
    expected: int
    held: int

    @property
    def missing(self) -> int:
        """How many are not here."""
        return self.expected - self.held


def by_series(performed: PerformedProcedureStep) -> list[SeriesImages]:
    """Each series that the scanner named, compared with the archive as it is now."""
    wanted = {uid for series in performed.series for uid in _instances(series)}
    held = _held(wanted)
    bare = [s["series_instance_uid"] for s in performed.series if not _instances(s)]
    found = _series_held(uid for uid in bare if uid)
    result = []
    for series in performed.series:
        uid, uids = series.get("series_instance_uid", ""), _instances(series)
        name = series.get("series_description") or series.get("protocol_name") or "Series"
        if uids:
            result.append(SeriesImages(uid, name, len(uids), len(uids & held)))
        elif uid:
            result.append(SeriesImages(uid, name, 1, int(uid in found)))
    return result


def _instances(series: dict[str, Any]) -> set[str]:
    return {uid for uid in series.get("sop_instance_uids", ()) if uid}


def _held(uids: set[str]) -> set[str]:
    rows = Instance.objects.filter(sop_instance_uid__in=uids, hidden=False)
    return set(rows.values_list("sop_instance_uid", flat=True)) if uids else set()


def _series_held(uids: Iterable[str]) -> set[str]:
    wanted = list(uids)
    rows = Instance.objects.filter(series__series_instance_uid__in=wanted, hidden=False)
    return set(rows.values_list("series__series_instance_uid", flat=True)) if wanted else set()


def count(performed: PerformedProcedureStep, at: datetime) -> bool:
    """Write the counts into the row, which its caller saves; True when they changed."""
    series = by_series(performed)
    before = (performed.images_expected, performed.images_missing)
    performed.images_expected = sum(one.expected for one in series)
    performed.images_missing = sum(one.missing for one in series)
    performed.images_since = performed.images_since or at
    return before != (performed.images_expected, performed.images_missing)


def on_study_settled(event: StudySettled, unit: Unit) -> None:
    """More of a study is here: whoever waits for its images is counted again."""
    waiting = PerformedProcedureStep.objects.select_for_update().filter(
        study_instance_uids__contains=[event.study.study_instance_uid], images_missing__gt=0
    )
    for performed in waiting.order_by("id"):
        if count(performed, unit.at):
            unit.save(performed)


def count_again(limit: int = 200) -> int:
    """Count those that are short once more, in case news of them was missed; gives how many changed."""
    since = now() - LOOKED_FOR
    short = PerformedProcedureStep.objects.filter(images_missing__gt=0, images_since__gt=since)
    changed = 0
    for pk in list(short.order_by("-images_since").values_list("pk", flat=True)[:limit]):
        with unit_of_work("system:images") as unit:
            changed += look_again(pk, unit)
    return changed


def look_again(performed_id: UUID, unit: Unit) -> bool:
    """Count one of them now; True when the count changed. Raises UnknownKey."""
    performed = _held_row(performed_id)
    changed = performed.status != PerformedProcedureStep.Status.IN_PROGRESS and count(performed, unit.at)
    if changed:
        unit.save(performed)
    return changed


def accept(performed_id: UUID, unit: Unit) -> None:
    """A person says that no more images will come. Raises NotAllowed when none are missing."""
    performed = _held_row(performed_id)
    if not performed.is_short:
        raise NotAllowed("No image is missing here.", attribute="images_missing")
    performed.images_accepted = unit.cause
    history.keep(performed, unit, performed.patient_id)


def _held_row(performed_id: UUID) -> PerformedProcedureStep:
    row = PerformedProcedureStep.objects.select_for_update().filter(pk=performed_id).first()
    if row is None:
        raise UnknownKey("This performed step does not exist (any more).", attribute="sop_instance_uid")
    return row
