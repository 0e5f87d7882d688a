"""What the archive's routing hears of matching: a rule may wait until a study is linked to its order."""

from common.store import Unit
from pacs import routing
from ris.events import StudyGrew, StudyMatched


def on_study_matched(event: StudyMatched, unit: Unit) -> None:
    """Linked, or unlinked again."""
    routing.linked(event.study, event.match.undone_at is None, unit)


def on_study_grew(event: StudyGrew, unit: Unit) -> None:
    """Its match stays: what came later goes as well."""
    if event.match is not None:
        routing.linked(event.study, True, unit)
