"""What another profile would make of messages that came before: each value side by side, nothing changed."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

from django.db import transaction

from common import cause
from common.store import Unit
from integration import inbox
from integration.hl7v2 import translate
from integration.hl7v2.errors import Problem, Refused
from integration.hl7v2.reading import parse
from integration.hl7v2.scope import Head
from integration.models import Message, Source
from integration.sources import Profile, compile_profile


@dataclass(frozen=True)
class Difference:
    """One value: where it goes, what the present profile makes of the message, and what the new one would."""

    path: str
    before: str
    after: str


@dataclass
class Outcome:
    """What would become different for one message."""

    message_id: int
    title: str
    differences: list[Difference] = field(default_factory=list)
    before: str = ""
    """Why the present profile refuses the message; empty: it does not."""
    after: str = ""
    """Why the new one would."""

    @property
    def same(self) -> bool:
        """Whether nothing would change."""
        return not self.differences and self.before == self.after


def dry_run(source: Source, profile: Mapping[str, Any], last: int = 100) -> list[Outcome]:
    """Read the source's last messages by its present profile and by the new one, and try to apply the latter.

    Everything happens in transactions that are rolled back. Raises ProfileError for a profile that cannot be used.
    """
    present = compile_profile(source.profile, source.name, source.pk)
    wanted = compile_profile(profile, source.name, source.pk)
    rows = Message.objects.filter(source=source).order_by("-id")[:last]
    return [_compared(row, present, wanted) for row in rows]


def _compared(row: Message, present: Profile, wanted: Profile) -> Outcome:
    outcome = Outcome(row.pk, str(row))
    before, outcome.before = _values(row, present)
    after, outcome.after = _values(row, wanted)
    for path in dict.fromkeys([*before, *after]):
        one, other = before.get(path, ""), after.get(path, "")
        if one != other:
            outcome.differences.append(Difference(path, one, other))
    if not outcome.after:
        outcome.after = _would_be_refused(row, wanted)
        if not outcome.before and outcome.after and not outcome.differences:
            outcome.before = outcome.after  # refused today as well, by what is known meanwhile
    return outcome


def _values(row: Message, profile: Profile) -> tuple[dict[str, str], str]:
    """Everything the commands of a message say, flat; and why there are none."""
    try:
        translated = _translated(row, profile)
    except Refused as refusal:
        return {}, _said(refusal.problem)
    if translated is None:
        return {}, ""
    found: dict[str, str] = {}
    for number, command in enumerate(translated.commands, 1):
        prefix = f"{number}." if len(translated.commands) > 1 else ""
        found.update({prefix + path: value for path, value in _flat(command) if value})
    return found, ""


def _translated(row: Message, profile: Profile) -> translate.Translated | None:
    message = parse(bytes(row.raw), profile["charset"], profile["force_charset"])
    head = Head(message, profile, row.received_at)
    translate.check_header(message, head)
    return translate.translate(head)


def _would_be_refused(row: Message, profile: Profile) -> str:
    """What `ris` would answer; nothing of it stays."""
    answer = ""
    try:
        with transaction.atomic():
            translated = _translated(row, profile)
            if translated is not None:
                unit = Unit(cause.system("dry run"))
                inbox.carry_out(translated, unit, Message(id=row.pk))
                unit.flush()
            transaction.set_rollback(True)
    except Refused as refusal:
        answer = _said(refusal.problem)
    return answer


def _said(problem: Problem) -> str:
    return str(problem)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """A command as pairs of path (`groups.1.step.modality`) and text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for one in dataclasses.fields(value):
            yield from _flat(getattr(value, one.name), f"{path}.{one.name}" if path else one.name)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value, 1):
            yield from _flat(inner, f"{path}.{number}")
    elif isinstance(value, datetime):
        yield path, value.isoformat()
    elif isinstance(value, Enum):
        yield path, str(value.value)
    else:
        yield path, "" if value is None else str(value)
