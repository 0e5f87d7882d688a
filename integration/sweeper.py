"""The sweeper: finds what is due and rings for it, watches the age of every queue, tells people.

Any number of sweepers may run; each action is safe to do twice.
"""

import json
import logging
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from threading import Thread
from typing import Any

from django.conf import settings
from django.core.mail import EmailMessage
from django.db import connections, transaction
from django.db.models import Q

from common import alerts, cause, metrics
from common.clock import now, to_site
from common.models import Alert, Site
from common.process import Context
from common.store import unit_of_work
from integration import delivery, inbox, retention, search, tasks
from integration.models import Destination, OutboxItem
from ris.reconciliation import cases
from ris.services import images
from worklist import projection, querylog

logger = logging.getLogger(__name__)

TICK_SECONDS = 1.0
# A destination is rung again only after a while: while all workers are busy, rings must not pile up.
_RING_AGAIN_SECONDS = 5.0
_AGES_SECONDS = 10.0
_TELL_SECONDS = 5.0
_HTTP_SECONDS = 10.0
_HOUSE_SECONDS = 600.0
_COMPARED_AT_ONCE = 100
_COMMITTED_WITHIN = timedelta(minutes=5)  # an order's time is its transaction's, which may end later


def main(ctx: Context) -> None:
    """Sweep until the context says stop. A failing sweep is logged and tried again at the next tick."""
    sweeper = Sweeper()
    teller = Thread(target=_tell_forever, args=(ctx,), name="teller", daemon=True)
    teller.start()
    ctx.ready()
    while not ctx.stopping.wait(TICK_SECONDS):
        sweeper.sweep()
        ctx.beat()
    sweeper.close()
    teller.join(timeout=_HTTP_SECONDS)


class Sweeper:
    """One sweep a tick: rings each tick, ages less often."""

    def __init__(self) -> None:
        self._rung: dict[int, float] = {}
        self._aged = 0.0
        self._kept_house = time.monotonic()
        self._pruning = True
        self._own_workers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="sweeper-drain")
        self._draining: set[int] = set()
        self._compared: datetime | None = None

    def sweep(self) -> None:
        """Ring for what is due; every ten seconds look at the ages. Never raises."""
        try:
            delivery.free_dead_leases()
            delivery.KEPT.close_idle()
            self.ring_due()
            inbox.apply_waiting()
            search.index_new()
            if time.monotonic() - self._aged >= _AGES_SECONDS:
                self._aged = time.monotonic()
                check_ages()
                self.compare_again()
            if time.monotonic() - self._kept_house >= _HOUSE_SECONDS:
                self._kept_house = time.monotonic()
                keep_house()
                self._pruning = True
            if self._pruning:  # a little at each tick, until nothing is due
                self._pruning = sum(retention.prune(0.3)) >= retention.BATCH
        except Exception:
            logger.exception("a sweep failed; the next one is in %s s", TICK_SECONDS)
        finally:
            connections.close_all()

    def compare_again(self) -> None:
        """Studies that wait for a clerk are compared with the orders that came or changed since."""
        started = now()
        due = cases.due_again(_COMPARED_AT_ONCE, self._compared)
        for study in due:
            try:
                with unit_of_work(cause.system("sweeper")) as unit:
                    cases.recheck(study, unit)
            except Exception as error:  # the others are compared all the same; its text may hold a value
                logger.error("study %s could not be compared again: %s", study, type(error).__name__)
        if len(due) < _COMPARED_AT_ONCE:
            self._compared = started - _COMMITTED_WITHIN

    def ring_due(self) -> list[int]:
        """Ring for every destination that has something due and is not being served; returns their ids."""
        rung = []
        for destination_id in due_destinations():
            if time.monotonic() - self._rung.get(destination_id, -_RING_AGAIN_SECONDS) < _RING_AGAIN_SECONDS:
                continue
            self._rung[destination_id] = time.monotonic()
            rung.append(destination_id)
            if not tasks.ring(destination_id):
                self._drain_here(destination_id)
        return rung

    def _drain_here(self, destination_id: int) -> None:
        """The broker is gone: deliver without it."""
        if destination_id not in self._draining:
            self._draining.add(destination_id)
            self._own_workers.submit(self._drained, destination_id)

    def _drained(self, destination_id: int) -> None:
        try:
            delivery.drain(destination_id, tasks.stopping)
        except Exception:
            logger.exception("destination %s could not be drained", destination_id)
        finally:
            self._draining.discard(destination_id)
            connections.close_all()

    def close(self) -> None:
        """Wait for what is being sent here."""
        tasks.stopping.set()
        self._own_workers.shutdown(wait=True)
        delivery.KEPT.close_idle(every=True)


def keep_house() -> None:
    """Let go of what is kept for a while only: scanners' queries, worklist items of steps that ended long ago.

    Images of which no news came are counted again.
    """
    querylog.prune()
    projection.prune()
    images.count_again()


def due_destinations() -> list[int]:
    """Ids of destinations with a due head of a lane that no worker holds, and whose circuit lets it through."""
    moment = now()
    closed = Q(circuit_open_until=None) | Q(circuit_open_until__lte=moment)
    return [
        destination.id
        for destination in Destination.objects.filter(closed, enabled=True)
        if delivery.due_heads(moment).filter(destination=destination).order_by("id").values("id")[:1]
    ]


# --------------------------------------------------------------------------------------------------- ages


def check_ages() -> None:
    """One alert for each part of a queue whose oldest waits too long, and for parked messages; recovery too."""
    site = Site.objects.filter(pk=1).first()
    limits = site.settings.get("alert_after_minutes", {}) if site else {}
    late = set(_parked())
    for queue in metrics.queues():
        limit = _limit(limits, queue)
        for waiting in queue.states():
            if waiting.count and waiting.age_seconds > limit:
                key = f"age:{queue.name}:{waiting.part}"
                late.add(key)
                alerts.raise_alert(
                    key,
                    f"{queue.title} ({waiting.part}): {waiting.count}, the oldest for longer than "
                    f"{_duration(limit)}.",
                    link=waiting.link,
                )
    watched = Q(key__startswith="age:") | Q(key__startswith="parked:")
    for alert in Alert.objects.filter(watched, recovered_at=None):
        if alert.key not in late:
            alerts.recover(alert.key)


def _parked() -> list[str]:
    """An alert for each destination with parked messages; returns their keys."""
    parked = OutboxItem.objects.filter(state=OutboxItem.State.PARKED)
    keys = []
    for destination in Destination.objects.filter(pk__in=parked.values("destination")):
        keys.append(f"parked:{destination.name}")
        count = parked.filter(destination=destination).count()
        alerts.raise_alert(
            keys[-1],
            f"Parked for {destination.name}: {count}. It refused them, or they could not be composed.",
            link=f"/admin/integration/outboxitem/?state=parked&destination__id__exact={destination.pk}",
        )
    return keys


def _limit(limits: Any, queue: metrics.Queue) -> float:
    """Seconds: the site's own for this queue (`alert_after_minutes`: a number, or one a queue), else the room's."""
    said = limits.get(queue.name) if isinstance(limits, dict) else limits
    return float(said) * 60 if isinstance(said, int | float) else queue.late_after


def _duration(seconds: float) -> str:
    if seconds >= 7200:
        return f"{seconds / 3600:.0f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


# ------------------------------------------------------------------------------------------------ telling


def _tell_forever(ctx: Context) -> None:
    while not ctx.stopping.wait(_TELL_SECONDS):
        try:
            tell()
        except Exception:
            logger.exception("alerts could not be told; the next try is in %s s", _TELL_SECONDS)
        finally:
            connections.close_all()


def tell() -> int:
    """Send mail and webhook for alerts that began or ended and were not told yet; returns how many were told.

    An alert that was over before anybody could be told is not sent. One that no channel took is tried again.
    """
    site = Site.objects.filter(pk=1).first() or Site()
    Alert.objects.filter(recovered_at__isnull=False, start_told_at=None).update(
        start_told_at=now(), recovery_told_at=now()
    )
    told = 0
    untold = Q(start_told_at=None) | Q(recovered_at__isnull=False, recovery_told_at=None)
    for pk in list(Alert.objects.filter(untold).order_by("id").values_list("pk", flat=True)[:50]):
        with transaction.atomic():
            alert = Alert.objects.select_for_update(skip_locked=True).filter(untold, pk=pk).first()
            if alert is None:
                continue
            recovered = alert.start_told_at is not None
            if not _sent(alert, recovered, site):
                continue
            if recovered:
                alert.recovery_told_at = now()
            else:
                alert.start_told_at = now()
            alert.save(update_fields=["start_told_at", "recovery_told_at"])
            told += 1
    return told


def _sent(alert: Alert, recovered: bool, site: Site) -> bool:
    """Whether a channel took it; with none configured the page banner alone tells."""
    channels = []
    if addresses := site.settings.get("alert_mail"):
        channels.append(lambda: _mail(alert, recovered, site, addresses))
    if url := site.settings.get("alert_webhook"):
        channels.append(lambda: _post(alert, recovered, site, url))
    took = not channels
    for channel in channels:
        try:
            channel()
            took = True
        except Exception as error:
            logger.error("alert %s could not be sent (%s)", alert.pk, type(error).__name__)
    return took


def _mail(alert: Alert, recovered: bool, site: Site, addresses: str | list[str]) -> None:
    word = "Recovered" if recovered else alert.severity.capitalize()
    since = to_site(alert.started_at)
    lines = [alert.summary, "", f"Since {since:%Y-%m-%d %H:%M %Z}."]
    if recovered and alert.recovered_at:
        lines.append(f"Over since {to_site(alert.recovered_at):%Y-%m-%d %H:%M %Z}.")
    if alert.link:
        lines += ["", settings.ORDERLY_PUBLIC_URL + alert.link]
    to = [addresses] if isinstance(addresses, str) else list(addresses)
    EmailMessage(f"[{site.name}] {word}: {alert.summary[:80]}", "\n".join(lines), to=to).send()


def _post(alert: Alert, recovered: bool, site: Site, url: str) -> None:
    if not url.startswith(("http://", "https://")):
        raise ValueError("alert_webhook must be an http or https address")
    body = {
        "site": site.name,
        "event": "recovered" if recovered else "started",
        "key": alert.key,
        "severity": alert.severity,
        "summary": alert.summary,
        "started_at": alert.started_at.isoformat(),
        "recovered_at": alert.recovered_at.isoformat() if alert.recovered_at else None,
        "link": settings.ORDERLY_PUBLIC_URL + alert.link if alert.link else "",
    }
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=_HTTP_SECONDS):
        pass
