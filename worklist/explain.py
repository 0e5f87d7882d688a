"""Why is a patient not on a scanner? Replays what the scanner asked against the order, test by test.

The tests are the very ones that answer the scanner (questions.py), asked one at a time of one item; so what is
said here is what happened, with the profile and the item as they are now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time
from typing import Any

from django.db import connection
from django.db.models import Q

from common.clock import to_site
from common.models import AuditEvent
from pacs.dimse import datasets, status
from pacs.dimse.command import CODES, Command
from pacs.dimse.registry import Refused
from pacs.matching import BadKey, keys_of
from pacs.models import ApplicationEntity
from ris.models import ImagingServiceRequest, ScheduledProcedureStep
from ris.transitions import TERMINAL
from worklist import peers, questions
from worklist.answers import Answers, Form
from worklist.models import QueryLog, WorklistItem
from worklist.peers import Profile
from worklist.querylog import KEEP_DAYS
from worklist.questions import Question, Test

_FIND = Command({"CommandField": CODES["C-FIND"]})
REPLAYED = 10
"""Different queries of a scanner that are replayed, the newest first."""


@dataclass(frozen=True)
class Reason:
    """One thing that keeps an item out of an answer: what was asked, what the item has, what to change."""

    what: str
    asked: str
    has: str
    change: str

    def __str__(self) -> str:
        return f"{self.what}: asked for {self.asked}; here it is {self.has}. {self.change}"


@dataclass
class Replay:
    """One remembered query, asked again of one item."""

    log: QueryLog
    reasons: list[Reason] = field(default_factory=list)
    note: str = ""

    @property
    def finds(self) -> bool:
        """Whether the query would bring the item now."""
        return not self.reasons

    @property
    def told(self) -> str:
        """The query's keys in words."""
        return ", ".join(f"{name.rpartition(' > ')[2]} {key}" for name, key in self.log.keys) or "everything"


@dataclass
class StepStory:
    """One step of the order, and what became of it in the scanner's queries."""

    step: ScheduledProcedureStep
    item: WorklistItem | None
    replays: list[Replay] = field(default_factory=list)


@dataclass
class Explanation:
    """The whole answer. `verdict` is the one sentence to read first."""

    accession: str
    ae_title: str
    verdict: str = ""
    findings: list[str] = field(default_factory=list)
    steps: list[StepStory] = field(default_factory=list)
    last_asked: datetime | None = None

    @property
    def found(self) -> bool:
        """Whether some step of the order would be found by the scanner's newest query."""
        return any(story.replays and story.replays[0].finds for story in self.steps)


def explain(accession: str, ae_title: str) -> Explanation:
    """Why the order with this accession (placer or filler) number is or is not on this scanner's worklist."""
    accession, ae_title = accession.strip(), ae_title.strip()
    result = Explanation(accession, ae_title)
    entity = _entity(ae_title, result)
    requests = _requests(accession)
    logs = list(QueryLog.objects.filter(ae_title=ae_title).order_by("-last_at")[:REPLAYED])
    result.last_asked = logs[0].last_at if logs else None
    if not requests:
        result.verdict = (
            "No order here has this accession, placer or filler number. It has not come in, was refused, or has "
            "another number: look at Messages in."
        )
        return result
    if not logs:
        result.findings += _never_asked(ae_title)
    profile = _profile(entity, result)
    for step in ScheduledProcedureStep.objects.filter(procedure__request__in=requests).order_by(
        "start", "id"
    ):
        item = WorklistItem.objects.filter(pk=step.pk).first()
        story = StepStory(step, item)
        if item is not None:
            story.replays = [_replay(log, item, profile) for log in logs]
        result.steps.append(story)
    result.verdict = _verdict(result)
    return result


def _entity(ae_title: str, result: Explanation) -> ApplicationEntity | None:
    entity = (
        ApplicationEntity.objects.filter(title=ae_title).order_by("-enabled").first()
        or ApplicationEntity.objects.filter(title="*").order_by("-enabled").first()
    )
    if entity is None:
        result.findings.append(
            f"No application entity {ae_title} is known here, so it may only C-ECHO. Titles are case-sensitive; "
            "add it with the service `worklist`."
        )
    elif not entity.enabled:
        result.findings.append(f"The application entity {entity.title} is switched off here. Enable it.")
    elif "worklist" not in entity.services:
        result.findings.append(
            f"The application entity {entity.title} may not use the service `worklist`. Add it to its services."
        )
    return entity


def _profile(entity: ApplicationEntity | None, result: Explanation) -> Profile:
    settings = entity.settings if entity else None
    try:
        return peers.read(settings)
    except ValueError as trouble:
        result.findings.append(f"The scanner's settings are ignored, as one makes no sense: {trouble}")
        return Profile()


def _requests(accession: str) -> list[ImagingServiceRequest]:
    if not accession:
        return []
    numbers = (
        Q(accession_number=accession) | Q(placer_order_number=accession) | Q(filler_order_number=accession)
    )
    numbers |= Q(procedures__placer_order_number=accession) | Q(procedures__filler_order_number=accession)
    return list(ImagingServiceRequest.objects.filter(numbers).distinct()[:20])


def _never_asked(ae_title: str) -> list[str]:
    """What is known of a scanner without a query: it was turned away, or never came."""
    findings = [
        f"{ae_title} has not asked for its worklist in the last {KEEP_DAYS} days. Let it query, and check that it "
        "calls this host, port and AE title."
    ]
    turned_away = AuditEvent.objects.filter(actor=f"ae:{ae_title}", action="refuse").order_by("-id").first()
    if turned_away is not None:
        findings.append(
            f"It was turned away at {_clock(turned_away.at)} from {turned_away.address}: "
            f"{turned_away.detail.get('reason', 'no reason kept')}."
        )
    similar = QueryLog.objects.filter(ae_title__iexact=ae_title).exclude(ae_title=ae_title).first()
    if similar is not None:
        findings.append(f"A scanner called {similar.ae_title} asked; titles are case-sensitive.")
    return findings


# -- one query against one item


def _replay(log: QueryLog, item: WorklistItem, profile: Profile) -> Replay:
    replay = Replay(log)
    try:
        ds = datasets.decode(bytes(log.identifier), log.transfer_syntax, _FIND)
        question = questions.read(keys_of(ds), profile, log.ae_title)
    except BadKey as bad:
        replay.reasons.append(
            Reason("Refused (A900)", str(bad), "not matched at all", "Correct this key at the scanner.")
        )
        return replay
    except Refused as refused:
        replay.reasons.append(
            Reason(
                "Refused", refused.comment, "not matched at all", "Ask the scanner's maker about its query."
            )
        )
        return replay
    has = _values(question, item)
    for test, holds in zip(question.tests, _holds(question, item), strict=True):
        if not holds:
            replay.reasons.append(_reason(test, item, has, question))
    if not replay.reasons:
        _check_answer(replay, item, question, profile, log)
    replay.note = _note(replay, item)
    return replay


def _holds(question: Question, item: WorklistItem) -> list[bool]:
    """Which tests the item passes, in one statement."""
    if not question.tests:
        return []
    table, table_params = question.table()
    parts = ", ".join(f"COALESCE({test.sql}, FALSE)" for test in question.tests)
    params = [param for test in question.tests for param in test.params]
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {parts} FROM {table} WHERE step_id = %s",
            [*params, *table_params, item.pk],
        )
        return list(cursor.fetchone() or [])


def _values(question: Question, item: WorklistItem) -> Mapping[str, Any]:
    """The item's match columns, starts on the scanner's clock."""
    values = {f.attname: getattr(item, f.attname) for f in WorklistItem._meta.concrete_fields}
    if question.other_zone and item.start is not None and item.start_has_time:
        moved = item.start.astimezone(question.zone)
        values["start_date"], values["start_time"] = moved.date(), moved.time()
    return values


def _check_answer(
    replay: Replay, item: WorklistItem, question: Question, profile: Profile, log: QueryLog
) -> None:
    """The item matches; could it be told in the scanner's own lengths?"""
    sets = questions.character_sets(question, profile)
    forms = [Form(log.transfer_syntax, s, profile.only_character_set, profile.lengths) for s in sets]
    answers = Answers(question.wanted, forms, own_ae=log.ae_title)
    if answers.answer(bytes(item.answer), item.ascii, item.start, item.start_has_time) is None:
        what = ", ".join(sorted(answers.adapted))
        replay.reasons.append(
            Reason(
                "Length",
                f"what fits the scanner's own limits ({what})",
                "longer",
                "Raise `worklist.lengths` of the scanner, or give the order a shorter number.",
            )
        )
    elif log.status == status.OUT_OF_RESOURCES and item.pk not in log.item_ids:
        replay.note = f"The answer was cut off: {log.comment}."


def _note(replay: Replay, item: WorklistItem) -> str:
    if replay.note:
        return replay.note
    log = replay.log
    if item.pk in log.item_ids:
        return (
            "It was told to the scanner then."
            if replay.finds
            else "It was told to the scanner then, and is not now."
        )
    if replay.finds and log.last_at < item.updated_at:
        return "The order came or changed after this query: let the scanner ask again."
    return ""


_RULES = {
    "status": "Status",
    "withheld": "Not to be told",
    "sees": "The scanner's rule",
    "window": "The day window",
}
_SEE = {
    "sees": "Give the step a station of this scanner, or widen `worklist.see` of the application entity.",
    "window": "Let the scanner ask for the day, schedule the step nearer, or widen its day window.",
}


def _reason(test: Test, item: WorklistItem, has: Mapping[str, Any], question: Question) -> Reason:
    if item.withheld and (test.name == "withheld" or (test.name == "status" and not item.waiting)):
        return Reason("Not to be told", "what fits DICOM", "withheld", item.withheld)
    if test.name == "status":
        return Reason("Status", test.asked, item.status, _status_change(item))
    if test.tag == 0:
        return Reason(_RULES[test.name], test.asked, _shown(test, has), _SEE[test.name])
    return Reason(test.name, test.asked, _shown(test, has), _key_change(test, has, question))


def _status_change(item: WorklistItem) -> str:
    if item.status in TERMINAL:
        return "The step has ended; a clerk or a new order can open it again."
    if item.status == "HELD":
        return "The order is on hold; release it."
    if item.status in ("STARTED", "DEPARTED"):
        return "A scanner or a person has begun it; set it back to SCHEDULED if that was a mistake."
    return "Name this status in the query, or add it to `worklist.statuses` of the scanner."


def _shown(test: Test, has: Mapping[str, Any]) -> str:
    """What the item has in the columns of a test."""
    said = []
    for column in test.columns:
        value = has.get(column)
        if isinstance(value, (list, tuple)):
            value = ", ".join(value)
        elif isinstance(value, (date, datetime, time)):
            value = value.isoformat()
        if value not in (None, ""):
            said.append(str(value))
    return " / ".join(said) or "empty"


_CHANGES = {
    "Modality": "Correct the step's modality (or the procedure catalogue's), or the scanner's query.",
    "ScheduledStationAETitle": "Schedule the step on this station, or correct the title in the station table.",
    "ScheduledStationName": "Schedule the step on this station, or correct its name in the station table.",
    "ScheduledProcedureStepStartDate": "Schedule the step within it, or let the scanner ask for the day.",
    "ScheduledProcedureStepStartTime": "Schedule the step within it, or let the scanner ask without a time.",
}


def _key_change(test: Test, has: Mapping[str, Any], question: Question) -> str:
    value = has.get(test.columns[0]) if test.columns else ""
    text = str(value or "")
    asked = test.asked.strip()
    if "\ufffd" in asked or (not asked.isascii() and not question.charset):
        named = "\\".join(question.charset) if question.charset else "none"
        return f"Characters of the key cannot be read in its Specific Character Set ({named}); set it at the scanner."
    if value in (None, "", []):
        if test.name == "ScheduledStationAETitle":
            return "The step has no station yet: schedule it on one, or set `worklist.unassigned` of the scanner."
        return (
            "The order says nothing there, and an unknown value matches no key: add it, or do not ask for it."
        )
    if isinstance(value, str) and asked != text:
        if asked.casefold() == text.casefold():
            return "They differ in capital letters only, which count here."
        if asked.lstrip("0") == text.lstrip("0"):
            return "They differ in leading zeros only, which count here."
    if ("*" in asked or "?" in asked) and test.name in ("PatientID", "Modality", "ScheduledStationAETitle"):
        return "This is a single value by the standard; set `worklist.wildcards` of the scanner to allow * and ?."
    if question.other_zone and test.name.startswith("ScheduledProcedureStepStart"):
        return f"The clock is {question.zone}'s, as the query or the scanner's settings say. {_CHANGES[test.name]}"
    return _CHANGES.get(test.name, "Correct the order, or what was typed at the scanner.")


# -- in words


def _verdict(result: Explanation) -> str:
    if not result.steps:
        return "The order has no step, so there is nothing to put on a worklist. Add a procedure to it."
    if result.last_asked is None:
        waiting = [s for s in result.steps if s.item is not None and s.item.waiting]
        return (
            f"The order is on the worklist, but {result.ae_title} never asked."
            if waiting
            else f"{result.ae_title} never asked, and no step of the order is on the worklist: see below."
        )
    at = _clock(result.last_asked)
    if result.found:
        return f"{result.ae_title} asked last at {at}; the same query finds the order now."
    if all(story.item is None for story in result.steps):
        return "The order's steps ended so long ago that they left the worklist."
    best = min(
        (replay for story in result.steps for replay in story.replays[:1]), key=lambda r: len(r.reasons)
    )
    return f"{result.ae_title} asked last at {at}, and did not find it. {best.reasons[0]}"


def _clock(moment: datetime) -> str:
    return f"{to_site(moment):%Y-%m-%d %H:%M:%S}"


def lines(result: Explanation) -> list[str]:
    """The explanation as text for a terminal."""
    said = [result.verdict, *(f"  ! {finding}" for finding in result.findings)]
    for story in result.steps:
        step, item = story.step, story.item
        when = _clock(step.start) if step.start else "no start"
        stations = ", ".join(step.scheduled_station_ae_titles) or "no station"
        said.append(f"Step {step}: {step.status}, {step.modality or 'no modality'}, {when}, {stations}")
        if item is None:
            said.append("  has left the worklist")
        elif item.withheld:
            said.append(f"  withheld: {item.withheld}")
        elif item.adapted:
            said.append(f"  shortened or left out to fit DICOM: {', '.join(item.adapted)}")
        for replay in story.replays:
            times = f", {replay.log.times} times" if replay.log.times > 1 else ""
            said.append(
                f"  {_clock(replay.log.last_at)}{times}: {replay.told} -> {replay.log.count} answers; "
                + ("finds it" if replay.finds else "does not find it")
            )
            said += [f"    {reason}" for reason in replay.reasons]
            if replay.note:
                said.append(f"    {replay.note}")
    return said
