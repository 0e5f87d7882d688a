"""Routing: studies that came in are sent on to the nodes that a rule names, with retry and resume.

When a study settles, a row for each matching rule is written in the same transaction; that row is the queue.
A thread for each destination that has something due sends what has not arrived there yet, and notes what
has; after a crash or a broken line it goes on from that note. A node that is away holds up no other. A rule
may wait until the study is linked to its order; the floors above say so by `linked`.
"""

from __future__ import annotations

import itertools
import logging
import random
import threading
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from django.db import close_old_connections, transaction
from django.db.models import Q, QuerySet

from common import alerts, audit
from common.clock import now
from common.crashpoints import crashpoint
from common.process import Context
from pacs.models import Forwarding, Instance, Overlay, RoutingRule, Study
from pacs.services.move import Transfer, destination_of
from pacs.services.retrieve import Stored, Unsendable
from pacs.storage.part10 import Origin

if TYPE_CHECKING:
    from common.store import Unit

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
NOTED_EVERY = 25  #: objects; so many are sent again at most after a crash
PAUSES = (5, 30, 120, 600, 1800, 3600)  #: seconds after each attempt that got no further; the last repeats
PARKED_AFTER = 30  #: such attempts: a day
THREADS = 8


def on_settled(study: Study, unit: Unit) -> None:
    """Let each rule that the study meets send it on; once more when it has grown."""
    known = {row.rule_id: row for row in Forwarding.objects.filter(study=study)}
    for rule in RoutingRule.objects.filter(enabled=True):
        if not meets(study, rule):
            continue
        row = known.get(rule.pk) or Forwarding(rule=rule, study=study, created_at=unit.at)
        # Whether it is linked is said right after, in the same transaction.
        row.state = Forwarding.State.HELD if rule.after_match else Forwarding.State.WAITING
        row.attempts, row.next_attempt_at = 0, unit.at
        unit.save(row)


def linked(study: Study, yes: bool, unit: Unit) -> None:
    """The study is linked to its order: what waited for that may go. Or it is not any more: what has not
    gone waits again."""
    if unit.pending(Forwarding):
        unit.flush()
    held, waiting = Forwarding.State.HELD, Forwarding.State.WAITING
    rows = Forwarding.objects.filter(study=study, state=held if yes else waiting)
    if not yes:
        rows = rows.filter(rule__after_match=True)
    rows.update(state=waiting if yes else held, attempts=0, next_attempt_at=unit.at)


def meets(study: Study, rule: RoutingRule) -> bool:
    """Whether a rule is about this study."""
    if rule.modalities and not set(rule.modalities) & set(study.modalities_in_study):
        return False
    if rule.calling_aes and study.calling_ae not in rule.calling_aes:
        return False
    words = rule.description.casefold().split()
    return all(word in study.study_description.casefold() for word in words)


def due() -> QuerySet[Forwarding]:
    """What should be sent now; also what a rule held back that holds nothing back any more."""
    return Forwarding.objects.filter(
        Q(state=Forwarding.State.WAITING) | Q(state=Forwarding.State.HELD, rule__after_match=False),
        next_attempt_at__lte=now(),
        rule__enabled=True,
        rule__destination__enabled=True,
        study__hidden=False,
    )


def drain(title: str, stopping: threading.Event) -> int:
    """Send everything that is due to one node, oldest first; gives the number of studies that got through."""
    count = 0
    tried: list[UUID] = []
    while not stopping.is_set():
        rows = due().filter(rule__destination__title=title).exclude(pk__in=tried).order_by("created_at")
        row = rows.select_related("rule", "study").first()
        if row is None:
            break
        tried.append(row.pk)
        count += forward(row, title, stopping)
    return count


def forward(row: Forwarding, title: str, stopping: threading.Event) -> bool:
    """Send what has not arrived of one study; True when all of it has now."""
    waiting = _waiting(row)
    before = len(row.sent)
    trouble = "the destination has no address and port" if destination_of(title) is None else ""
    if waiting and not trouble:
        audit.record(
            "system:routing", "send", "study", objects=[row.study_id],
            detail={"destination": title, "instances": len(waiting)},
        )  # fmt: skip
        trouble = _send(row, title, waiting, stopping)
    if stopping.is_set() and trouble == _STOPPED:
        return False
    return _conclude(row, title, trouble, progress=len(row.sent) > before)


_STOPPED = "stopping"


def _send(row: Forwarding, title: str, waiting: list[tuple[UUID, Stored]], stopping: threading.Event) -> str:
    """Send and note; "" when everything went through, else what did not (the last failure)."""
    destination = destination_of(title)
    assert destination is not None
    transfer = Transfer(destination, [stored.origin for _, stored in waiting])
    trouble = ""
    unnoted = 0
    try:
        following = [stored for _, stored in waiting[1:]]
        for (key, stored), after in itertools.zip_longest(waiting, following):
            if stopping.is_set():
                return _STOPPED
            try:
                code = transfer.send(stored, after)
            except (Unsendable, OSError) as error:
                trouble = str(error)
                if transfer.given_up:
                    break
                continue
            if code == 0 or code >> 12 == 0xB:
                crashpoint("routing.sent")
                row.sent.append(key)
                unnoted += 1
                if unnoted >= NOTED_EVERY:
                    Forwarding.objects.filter(pk=row.pk).update(sent=row.sent)
                    unnoted = 0
            else:
                trouble = f"the destination refused an object with {code:04X}"
    finally:
        Forwarding.objects.filter(pk=row.pk).update(sent=row.sent)
        transfer.end()
    return trouble


def _waiting(row: Forwarding) -> list[tuple[UUID, Stored]]:
    overlay = Overlay.objects.filter(study=row.study_id).values_list("attributes", flat=True).first() or {}
    instances = (
        Instance.objects.filter(series__study=row.study_id, hidden=False)
        .exclude(pk__in=row.sent)
        .order_by("series__series_number", "series_id", "instance_number", "id")
    )
    return [
        (
            one.pk,
            Stored(
                Origin(one.sop_class_uid, one.sop_instance_uid, one.transfer_syntax_uid),
                one.path,
                one.volume,
                one.data_set_offset,
                row.study_id,
                overlay,
            ),
        )
        for one in instances
    ]


def _conclude(row: Forwarding, title: str, trouble: str, *, progress: bool) -> bool:
    """Write how an attempt ended. Objects that came meanwhile leave the row waiting."""
    with transaction.atomic():
        held = Forwarding.objects.select_for_update().get(pk=row.pk)
        held.detail = trouble[:300]
        if not trouble and not _waiting(held):
            held.state, held.sent_at, held.next_attempt_at, held.attempts = (
                Forwarding.State.SENT,
                now(),
                None,
                0,
            )
        elif not trouble:
            held.next_attempt_at = now()
        else:
            held.attempts = 1 if progress else held.attempts + 1
            held.next_attempt_at = _later(held.attempts)
            if held.attempts >= PARKED_AFTER:
                held.state = Forwarding.State.PARKED
        held.save(update_fields=["state", "detail", "sent_at", "attempts", "next_attempt_at"])
    key = f"routing:{title}"
    if trouble and held.attempts >= 3:
        alerts.raise_alert(key, f"Studies do not reach {title}: {trouble}"[:300])
    elif not trouble:
        alerts.recover(key)
    return held.state == Forwarding.State.SENT


def _later(attempts: int) -> datetime:
    pause = PAUSES[min(attempts, len(PAUSES)) - 1]
    return now() + timedelta(seconds=pause * random.uniform(0.8, 1.2))


class Router:
    """A thread for each destination that has something due; at most THREADS at once."""

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._threads: dict[str, threading.Thread] = {}

    def tend(self) -> None:
        """Start a thread for each destination that has something due and none at work."""
        self._threads = {title: thread for title, thread in self._threads.items() if thread.is_alive()}
        for title in due().values_list("rule__destination__title", flat=True).distinct().order_by():
            if title not in self._threads and len(self._threads) < THREADS:
                thread = threading.Thread(
                    target=self._drain, args=(title,), name=f"routing {title}", daemon=True
                )
                self._threads[title] = thread
                thread.start()

    def _drain(self, title: str) -> None:
        try:
            drain(title, self._stopping)
        except Exception as error:
            log.error("sending on to %s failed: %s", title, type(error).__name__)
        finally:
            close_old_connections()

    def join(self, seconds: float) -> None:
        """Wait for what is at work to stop; each ends between two objects."""
        for thread in self._threads.values():
            thread.join(seconds)


def run(ctx: Context) -> None:
    """Tend the routing until told to stop; a thread of the process `indexer`."""
    router = Router(ctx.stopping)
    while not ctx.stopping.is_set():
        try:
            router.tend()
        except Exception as error:
            log.error("routing waits: %s", type(error).__name__)
        finally:
            close_old_connections()
        ctx.stopping.wait(POLL_SECONDS)
    router.join(5)


def again(row: Forwarding) -> None:
    """Send once more: what a person asks of a parked study."""
    Forwarding.objects.filter(pk=row.pk).update(
        state=Forwarding.State.WAITING, attempts=0, next_attempt_at=now()
    )
