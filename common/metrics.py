"""What is counted and what waits: one registry for `/metrics`, `doctor`, the first page and the alerts.

Everything is asked of the database and of `run.json` at the moment of the question, so it makes no difference
which process answers. A room registers its numbers in its own `metrics.py`, found at the first question:

    @gauge("orderly_studies", "Studies in the archive")
    def studies() -> float: ...

    @queue("outbox", "Messages to send")
    def outbox() -> Iterable[Waiting]: ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from django.conf import settings
from django.utils.module_loading import autodiscover_modules
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from common.clock import now
from common.process import read_run_file

Labelled = tuple[tuple[str, ...], float]
Source = Callable[[], "float | Iterable[Labelled]"]
States = Callable[[], "Iterable[Waiting]"]


@dataclass(frozen=True)
class Waiting:
    """What waits in one part of a queue: how many, and since when the oldest does (None: nothing waits)."""

    part: str
    count: int
    oldest: datetime | None
    link: str = ""
    """The page that shows what waits; alerts lead there."""

    @property
    def age_seconds(self) -> float:
        """How long the oldest has waited; 0 when nothing waits."""
        return max((now() - self.oldest).total_seconds(), 0.0) if self.oldest else 0.0


@dataclass(frozen=True)
class Queue:
    """A registered queue: `states()` says what waits in each of its parts, `late_after` (seconds) what is too long."""

    name: str
    title: str
    late_after: float
    states: States


@dataclass(frozen=True)
class _Number:
    name: str
    title: str
    labels: tuple[str, ...]
    source: Source
    family: type[GaugeMetricFamily] | type[CounterMetricFamily]


_numbers: dict[str, _Number] = {}
_queues: dict[str, Queue] = {}


def gauge(name: str, title: str, labels: tuple[str, ...] = ()) -> Callable[[Source], Source]:
    """Register a number that goes up and down; with `labels` the function yields `((label, …), value)` pairs."""
    return _register(name, title, labels, GaugeMetricFamily)


def counter(name: str, title: str, labels: tuple[str, ...] = ()) -> Callable[[Source], Source]:
    """Register a number that only grows (Prometheus adds `_total` to its name)."""
    return _register(name, title, labels, CounterMetricFamily)


def queue(name: str, title: str, *, late_after: float = 900.0) -> Callable[[States], States]:
    """Register a queue: nothing in it may wait unseen. `late_after` is in seconds."""

    def register(states: States) -> States:
        _queues[name] = Queue(name, title, late_after, states)
        return states

    return register


def queues() -> list[Queue]:
    """Every queue of every room."""
    autodiscover_modules("metrics")
    return list(_queues.values())


def exposition() -> tuple[bytes, str]:
    """All numbers in Prometheus' text format, and its content type."""
    autodiscover_modules("metrics")
    registry = CollectorRegistry()
    registry.register(_Collector())
    return generate_latest(registry), CONTENT_TYPE_LATEST


def _register(
    name: str,
    title: str,
    labels: tuple[str, ...],
    family: type[GaugeMetricFamily] | type[CounterMetricFamily],
) -> Callable[[Source], Source]:
    def register(source: Source) -> Source:
        _numbers[name] = _Number(name, title, labels, source, family)
        return source

    return register


class _Collector:
    """Asks every registered source; one that fails is counted, and hides no other."""

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        failed = 0
        for number in _numbers.values():
            try:
                family = number.family(number.name, number.title, labels=number.labels)
                found = number.source()
                for labels, value in [((), found)] if isinstance(found, int | float) else found:
                    family.add_metric([str(label) for label in labels], float(value))
            except Exception:
                failed += 1
            else:
                yield family
        waiting = GaugeMetricFamily("orderly_queue_waiting", "What waits, by queue", labels=("queue", "part"))
        age = GaugeMetricFamily(
            "orderly_queue_oldest_seconds", "How long the oldest has waited", labels=("queue", "part")
        )
        for one in _queues.values():
            try:
                for state in one.states():
                    waiting.add_metric([one.name, state.part], state.count)
                    age.add_metric([one.name, state.part], state.age_seconds)
            except Exception:
                failed += 1
        yield waiting
        yield age
        yield from _processes()
        yield GaugeMetricFamily(
            "orderly_metrics_failed", "Sources of metrics that raised an error", value=failed
        )


def _processes() -> Iterator[Metric]:
    up = GaugeMetricFamily("orderly_process_up", "1 while the process serves", labels=("process",))
    restarts = CounterMetricFamily("orderly_process_restarts", "Times it was restarted", labels=("process",))
    run = read_run_file(settings.DATA_DIR) or {"processes": {}}
    for name, said in run["processes"].items():
        up.add_metric([name], 1.0 if said["state"] == "ready" else 0.0)
        restarts.add_metric([name], said["restarts"])
    yield up
    yield restarts
