"""The story of an order: everything that happened to it, on one line of time. Upper rooms add what they know."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.contrib.auth import get_user_model

from common.desk import desk_url
from common.templatetags.orderly import words
from ris.models import (
    Change,
    ImagingServiceRequest,
    PerformedProcedureStep,
    ReportVersion,
    RequestedProcedure,
    ScheduledProcedureStep,
    StudyMatch,
)


@dataclass(frozen=True)
class Entry:
    """Something that happened: when, what, by whom; `tone` as in the chips, `url` the page that shows it."""

    at: datetime
    what: str
    detail: str = ""
    tone: str = ""
    url: str = ""
    by: str = ""


@dataclass(frozen=True)
class Subject:
    """The rows whose story is told."""

    request: ImagingServiceRequest
    procedures: list[RequestedProcedure]
    steps: list[ScheduledProcedureStep]
    matches: list[StudyMatch]
    versions: list[ReportVersion]
    performed: list[PerformedProcedureStep]
    causes: set[str] = field(default_factory=set)


Teller = Callable[[Subject], Iterable[Entry]]
Explainer = Callable[[str], tuple[str, str] | None]

_tellers: list[Teller] = []
_explainers: dict[str, Explainer] = {}


def tells(teller: Teller) -> Teller:
    """Register an upper room's part of the story."""
    _tellers.append(teller)
    return teller


def explains(kind: str, explainer: Explainer) -> None:
    """Register what a cause of this kind (`hl7`) means: its number → (words, address)."""
    _explainers[kind] = explainer


def explain(cause: str) -> tuple[str, str]:
    """A cause in words, and the page that shows it (or an empty address)."""
    kind, _, number = cause.partition(":")
    if kind in _explainers and (known := _explainers[kind](number)):
        return known
    return cause, ""


def _user(number: str) -> tuple[str, str] | None:
    user = get_user_model().objects.filter(pk=int(number)).first() if number.isdigit() else None
    return (f"by {user.get_full_name() or user.get_username()}", "") if user else None


def _study(number: str) -> tuple[str, str] | None:
    return "when its images had arrived", desk_url("pacs.study", number)


explains("user", _user)
explains("study", _study)
explains("mpps", lambda number: ("by the scanner's MPPS", ""))
explains("system", lambda part: (f"by Orderly ({part})", ""))

_NAMES = {
    "imagingservicerequest": "Order",
    "requestedprocedure": "Procedure",
    "scheduledprocedurestep": "Step",
    "report": "Report",
}
# What a person wants to read of a change; other attributes are only named.
_SPOKEN = frozenset(
    {
        "status",
        "start",
        "requested_procedure_priority",
        "scheduled_station_names",
        "accession_number",
        "modality",
    }
)
_LEFT_OUT = frozenset({"details", "made", "draft_version", "findings", "impression", "reader_id"})


def tell(subject: Subject) -> list[Entry]:
    """The whole story, newest first."""
    entries = (
        list(_changes(subject)) + list(_studies(subject)) + list(_reports(subject)) + list(_scans(subject))
    )
    for teller in _tellers:
        entries += teller(subject)
    return sorted(entries, key=lambda entry: entry.at, reverse=True)


def _changes(subject: Subject) -> Iterable[Entry]:
    ids = [subject.request.pk, *(p.pk for p in subject.procedures), *(s.pk for s in subject.steps)]
    for change in Change.objects.filter(object_id__in=ids).order_by("id")[:400]:
        subject.causes.add(change.cause)
        by, url = explain(change.cause)
        name = _NAMES.get(change.what, change.what)
        if change.values.get("created"):
            yield Entry(change.at, f"{name} made", by=by, url=url)
            continue
        values = {k: v for k, v in change.values.items() if k not in _LEFT_OUT}
        if values:
            status = values.get("status")
            what = f"{name}: {_say(status[0])} → {_say(status[1])}" if status else f"{name} changed"
            rest = "; ".join(_spoken(k, v) for k, v in values.items() if k != "status")
            yield Entry(change.at, what, rest, tone=_tone(status), by=by, url=url)


def _say(value: Any) -> str:
    if value in (None, "", []):
        return "nothing"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value).lower() if str(value).isupper() else str(value)


def _spoken(name: str, pair: Any) -> str:
    label = words(name)
    if name in _SPOKEN and isinstance(pair, list) and len(pair) == 2:
        return f"{label}: {_say(pair[0])} → {_say(pair[1])}"
    return label


def _tone(status: Any) -> str:
    after = status[1] if isinstance(status, list) and len(status) == 2 else ""
    return {"COMPLETED": "ok", "CANCELED": "bad", "DISCONTINUED": "bad"}.get(str(after), "")


def _studies(subject: Subject) -> Iterable[Entry]:
    for match in subject.matches:
        url = desk_url("pacs.study", match.study_id)
        count = match.study.number_of_study_related_instances
        yield Entry(match.study.received_at, "Images began to arrive", f"{count} so far", url=url)
        by, _ = explain(match.cause)
        yield Entry(match.at, "Study linked", match.get_method_display(), tone="ok", url=url, by=by)
        if match.undone_at:
            by, _ = explain(match.undone_cause)
            yield Entry(match.undone_at, "Link undone", tone="bad", url=url, by=by)


def _reports(subject: Subject) -> Iterable[Entry]:
    for version in subject.versions:
        signer = version.signer_name.replace("^", " ")
        yield Entry(
            version.signed_at,
            f"Report signed: {version.get_status_display().lower()}",
            tone="ok",
            by=f"by {signer}",
        )


def _scans(subject: Subject) -> Iterable[Entry]:
    for performed in subject.performed:
        url = desk_url("ris.performedprocedurestep", performed.pk)
        where = performed.performed_station_ae_title
        if performed.started_at:
            yield Entry(performed.started_at, "Scan began", f"on {where}", url=url)
        if performed.ended_at:
            yield Entry(
                performed.ended_at,
                f"Scan {performed.get_status_display().lower()}",
                performed.problem or f"on {where}",
                tone="bad" if performed.status == "DISCONTINUED" else "ok",
                url=url,
            )
