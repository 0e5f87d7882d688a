"""What the archive tells upward."""

from dataclasses import dataclass
from uuid import UUID

from pacs.models import Study


@dataclass(frozen=True)
class StudySettled:
    """A study has been quiet for a while: first time, or again after it grew."""

    study: Study
    grown: bool
    """False the first time, True when objects came after an earlier settling."""


@dataclass(frozen=True)
class StudyOverlaid:
    """The corrected attributes of a study changed."""

    study: Study


@dataclass(frozen=True)
class ObjectSetAside:
    """An object was kept but not indexed; a person must look."""

    set_aside_id: UUID
    reason: str
