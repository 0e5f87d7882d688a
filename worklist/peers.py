"""How a scanner wants its worklist and MPPS: the tables `worklist` and `mpps` of an application entity's settings.

In site.toml it stands below the AE, and everything in it is optional:

    [[ae]]
    title = "CT01"
    services = ["echo", "worklist", "mpps"]
    worklist = { see = "own", days_before = 1, days_after = 1, character_set = ["ISO_IR 100"] }

see                which steps it is told of:
                   `all` (the default: its own query keys decide), `own` (its AE title is among the step's
                   stations), `group` (one of `titles` is), `room` (a station of its room, or the room itself),
                   `modality` (one of `modalities`, else those of its stations)
unassigned         true: steps without any station are its own, too, and answer a query for its AE title
titles             AE titles whose steps it sees under `group`, beside its own
modalities         see `modality`
days_before/after  the day window of a query that names no start date, in days around today; absent: no window
statuses           what a query sees that names no status (default SCHEDULED, ARRIVED, READY)
timezone           the zone of its clock, such as "Europe/Lisbon" (default: the site's)
strict             true: malformed keys are refused with A900; false (default): read as meant, and noted
wildcards          true: * and ? also in Patient ID, AE title and modality, which are single values by the standard
character_set      its Specific Character Set, for queries that name none or one that cannot hold the names
only_character_set true: it can read nothing else; what its character set lacks is replaced (charsets.adapt)
lengths            characters it can show: { PatientName = 32, RequestedProcedureDescription = 20 }
limit              most answers to one query (default 10000); then what `limit_status` says
limit_status       `A700` (default: the standard's "out of resources") or `success`

and of `mpps`:

strict             true: what is missing or empty against PS3.4 table F.7.2-1 is refused; false (default): only
                   what type 1 demands, the rest is taken and shown to a clerk
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from pydicom.datadict import tag_for_keyword

from common.clock import site_zone
from ris.models.schedule import StepStatus
from ris.transitions import ON_WORKLIST
from worklist import charsets

SETTING_KEYS = frozenset({"worklist", "mpps"})
"""What `[[ae]]` of site.toml may hold for this room."""
SEE = ("all", "own", "group", "room", "modality")
LIMIT = 10_000


@dataclass(frozen=True)
class Profile:
    """One scanner's profile; see the module for what each entry means."""

    see: str = "all"
    unassigned: bool = False
    titles: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    days_before: int | None = None
    days_after: int | None = None
    statuses: tuple[str, ...] = ()
    timezone: str = ""
    strict: bool = False
    wildcards: bool = False
    character_set: tuple[str, ...] = ()
    only_character_set: bool = False
    lengths: tuple[tuple[int, int], ...] = ()
    limit: int = LIMIT
    limit_status: str = "A700"

    @property
    def zone(self) -> tzinfo:
        """The zone of the scanner's clock."""
        return ZoneInfo(self.timezone) if self.timezone else site_zone()

    @property
    def shown(self) -> frozenset[str]:
        """The statuses that a query sees which names none."""
        return frozenset(self.statuses) or ON_WORKLIST


def read(settings: Mapping[str, Any] | None) -> Profile:
    """The profile that an AE's settings hold. Raises ValueError that names the entry and what it may be."""
    given = dict((settings or {}).get("worklist") or {})
    known = {field.name for field in fields(Profile)}
    for name in given:
        if name not in known:
            raise ValueError(f"worklist.{name} is no setting; there are {', '.join(sorted(known))}.")
    values: dict[str, Any] = {}
    for name, value in given.items():
        values[name] = _CHECKS[name](name, value)
    return Profile(**values)


def lenient(settings: Mapping[str, Any] | None) -> Profile:
    """As `read`, but a profile that makes no sense is the default one: a scanner is never left without a list."""
    try:
        return read(settings)
    except ValueError:
        return Profile()


def _choice(*allowed: str) -> Any:
    def check(name: str, value: Any) -> str:
        if value not in allowed:
            raise ValueError(f"worklist.{name} must be one of {', '.join(allowed)}.")
        return str(value)

    return check


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"worklist.{name} must be true or false.")
    return value


def _number(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"worklist.{name} must be a number from 0.")
    return value


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
        raise ValueError(f"worklist.{name} must be a list of texts.")
    return tuple(value)


def _statuses(name: str, value: Any) -> tuple[str, ...]:
    found = _texts(name, value)
    for status in found:
        if status not in StepStatus.values:
            raise ValueError(
                f"worklist.{name}: {status!r} is no status; there are {', '.join(StepStatus.values)}."
            )
    return found


def _character_set(name: str, value: Any) -> tuple[str, ...]:
    terms = _texts(name, value)
    if not charsets.known(terms):
        raise ValueError(f"worklist.{name}: {terms!r} is no Specific Character Set that we write.")
    return terms


def _zone(name: str, value: Any) -> str:
    try:
        ZoneInfo(value)
    except Exception:
        raise ValueError(f"worklist.{name} must be a zone such as Europe/Lisbon.") from None
    return str(value)


def _lengths(name: str, value: Any) -> tuple[tuple[int, int], ...]:
    if not isinstance(value, Mapping):
        raise ValueError(f"worklist.{name} must be a table of keyword = characters.")
    limits = []
    for keyword, limit in value.items():
        tag = tag_for_keyword(keyword)
        if tag is None:
            raise ValueError(f"worklist.{name}: {keyword!r} is no DICOM keyword.")
        limits.append((tag, _number(f"{name}.{keyword}", limit)))
    return tuple(sorted(limits))


_CHECKS: Mapping[str, Any] = {
    "see": _choice(*SEE),
    "unassigned": _flag,
    "titles": _texts,
    "modalities": _texts,
    "days_before": _number,
    "days_after": _number,
    "statuses": _statuses,
    "timezone": _zone,
    "strict": _flag,
    "wildcards": _flag,
    "character_set": _character_set,
    "only_character_set": _flag,
    "lengths": _lengths,
    "limit": _number,
    "limit_status": _choice("A700", "success"),
}
