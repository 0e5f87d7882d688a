"""Dry run: the last messages of a source, tried by its present profile and by a changed one; what would differ.

Both trials begin with what was known before the first of these messages, and apply all of them in their order, in a
sandbox. Nothing is kept but the comparison.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

from django.db import connections

from common.clock import now
from integration.analyst import versions
from integration.analyst.sandbox import Keys, Tried, attempt, copied, fill, rolled_back, sandbox
from integration.models import DryRun, Message, Source
from integration.sources import Profile, compile_profile

logger = logging.getLogger(__name__)

MESSAGES, MOST_MESSAGES = 200, 2000
SECONDS, MOST_SECONDS = 30, 120
_SHOWN = 200  # messages whose differences are kept
_DEAD_SECONDS = 15
_KEPT = timedelta(days=7)

Progress = Callable[[int, int], None]


@dataclass
class Line:
    """One attribute that would differ: of what, which, as it is and as it would be."""

    what: str
    attribute: str
    before: Any
    after: Any


@dataclass
class Differs:
    """One message whose outcome or effect would differ."""

    message_id: int
    kind: str
    control_id: str
    received_at: str
    before: str
    after: str
    problem_before: str = ""
    problem_after: str = ""
    lines: list[Line] = field(default_factory=list)


@dataclass
class Comparison:
    """What a dry run found. `attributes` counts the messages in which an attribute would differ."""

    messages: int = 0
    of: int = 0
    stopped: bool = False
    same: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    """`applied → refused` → how many messages."""
    attributes: list[tuple[str, int]] = field(default_factory=list)
    warnings: list[tuple[str, int]] = field(default_factory=list)
    """Warnings that only the changed profile gives."""
    differs: list[Differs] = field(default_factory=list)


def compare(
    source: Source,
    values: Mapping[str, Any],
    messages: int = MESSAGES,
    seconds: float = SECONDS,
    progress: Progress = lambda done, total: None,
) -> Comparison:
    """Try the last messages of a source by its present profile and by `values["profile"]`.

    At most so many messages and seconds; `progress` is told how many trials of how many are done. Raises
    ProfileError when the changed profile cannot be used. (The present one may be unusable: then all is new.)
    """
    changed = compile_profile(values["profile"], source.name, source.pk)
    present = compile_profile(source.profile, source.name, source.pk)
    deadline = time.monotonic() + seconds
    newest = Message.objects.filter(source=source).exclude(state=Message.State.FAULT).order_by("-id")
    rows = list(reversed(newest.defer("ack")[:messages]))
    if not rows:
        return Comparison()
    keys = Keys()
    for row in rows:
        keys.add(row, present)
        keys.add(row, changed)
    copies = copied(keys, before=rows[0].received_at)
    with sandbox():
        fill(copies)
        half = time.monotonic() + (deadline - time.monotonic()) / 2
        before = _tried(rows, present, half, lambda n: progress(n, 2 * len(rows)))
        after = _tried(
            rows[: len(before)], changed, deadline, lambda n: progress(len(before) + n, 2 * len(rows))
        )
    found = _compared(rows, before, after)
    found.of, found.stopped = len(rows), len(after) < len(rows)
    return found


def _tried(
    rows: list[Message], profile: Profile, deadline: float, told: Callable[[int], None]
) -> list[Tried]:
    done: list[Tried] = []
    with rolled_back():
        for row in rows:
            if time.monotonic() > deadline:
                break
            done.append(attempt(row, profile))
            if len(done) % 10 == 0:
                told(len(done))
    return done


def _compared(rows: list[Message], before: list[Tried], after: list[Tried]) -> Comparison:
    found = Comparison(messages=len(after))
    outcomes: Counter[str] = Counter()
    attributes: Counter[str] = Counter()
    warned: Counter[str] = Counter()
    for row, old, new in zip(rows, before, after, strict=False):
        lines = _lines(old, new)
        warned.update(set(new.warnings) - set(old.warnings))
        if old.state == new.state and not lines and old.problem == new.problem:
            found.same += 1
            continue
        if old.state != new.state:
            outcomes[f"{old.state} → {new.state}"] += 1
        attributes.update({f"{line.what.partition(' ')[0]}: {line.attribute}" for line in lines})
        if len(found.differs) < _SHOWN:
            kind = f"{row.message_type}^{row.trigger_event}"
            found.differs.append(
                Differs(
                    row.pk,
                    kind,
                    row.control_id,
                    row.received_at.isoformat(),
                    old.state,
                    new.state,
                    old.problem,
                    new.problem,
                    lines,
                )  # fmt: skip
            )
    found.outcomes = dict(outcomes.most_common())
    found.attributes, found.warnings = attributes.most_common(60), warned.most_common(20)
    return found


def _lines(old: Tried, new: Tried) -> list[Line]:
    """What would differ of the rows after this message; of a message that is refused on one side, only that."""
    if bool(old.rows) != bool(new.rows):
        return []
    lines = []
    for name in [*old.rows, *(n for n in new.rows if n not in old.rows)]:
        was, would = old.rows.get(name, {}), new.rows.get(name, {})
        for key in [*was, *(k for k in would if k not in was)]:
            if was.get(key) != would.get(key):
                lines.append(Line(name, key, was.get(key), would.get(key)))
    return lines


# -- in the background, with progress


def start(source: Source, values: Mapping[str, Any], by: str, messages: int, seconds: int) -> DryRun:
    """Begin a dry run in a thread of this process; its row tells how far it is. At most one a source at a time."""
    compile_profile(values["profile"])
    DryRun.objects.filter(ended_at__lt=now() - _KEPT).delete()
    run = DryRun.objects.create(
        source=source, values=dict(values), by=by,
        messages=min(max(messages, 1), MOST_MESSAGES), seconds=min(max(seconds, 1), MOST_SECONDS),
        started_at=now(), beat_at=now(),
    )  # fmt: skip
    threading.Thread(target=_in_background, args=(run.pk,), name=f"dry-run-{run.pk}", daemon=True).start()
    return run


def _in_background(pk: int) -> None:
    try:
        carry_out(pk)
    finally:
        connections.close_all()


def carry_out(pk: int) -> DryRun:
    """Do a dry run and keep what it found on its row."""
    run = DryRun.objects.select_related("source").get(pk=pk)
    beside = connections.create_connection("default")  # the trial's own transaction shows nobody anything

    def told(done: int, total: int) -> None:
        with beside.cursor() as cursor:
            cursor.execute(
                "UPDATE integration_dryrun SET done = %s, total = %s, beat_at = now() WHERE id = %s",
                [done, total, pk],
            )

    try:
        found = compare(run.source, run.values, run.messages, run.seconds, told)
    except Exception as error:
        logger.exception("dry run %s failed", pk) if not isinstance(error, ValueError) else None
        run.state, run.result = DryRun.State.FAILED, {"error": _said(error)}
    else:
        run.state = DryRun.State.STOPPED if found.stopped else DryRun.State.DONE
        run.result = asdict(found)
    finally:
        beside.close()
    run.ended_at = run.beat_at = now()
    run.save(update_fields=["state", "result", "ended_at", "beat_at"])
    return run


def _said(error: Exception) -> str:
    if isinstance(error, ValueError):
        return str(error)
    return f"A fault of ours ({type(error).__name__}); the log of the web process says where."


def is_dead(run: DryRun) -> bool:
    """Whether a run that says it is running is not: its process has gone."""
    return run.state == DryRun.State.RUNNING and (now() - run.beat_at).total_seconds() > _DEAD_SECONDS


def use(run: DryRun, by: str, why: str) -> int:
    """Bring the source to the values that were tried; returns the number of the version."""
    return versions.use(run.source, run.values, by, why).number
