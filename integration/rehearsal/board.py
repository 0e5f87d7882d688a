"""How a rehearsal looks on a terminal: a line of progress while it goes on, a board at its end."""

from __future__ import annotations

import time
from typing import Any, TextIO

from integration.rehearsal.day import Progress
from integration.rehearsal.facts import Summary


class Ticker:
    """Progress as lines: on a terminal one that changes, elsewhere a new one every few seconds."""

    def __init__(self, out: TextIO, every: float = 2.0) -> None:
        self.out, self.every = out, every
        self.began = time.monotonic()
        self._last, self._said, self._width = "", 0.0, 0
        self._live = out.isatty()

    def __call__(self, progress: Progress) -> None:
        text = line(progress)
        if text == self._last:
            return
        moment = time.monotonic()
        if self._live:
            shown = f"[{moment - self.began:6.1f} s] {text}"
            self.out.write("\r" + shown.ljust(self._width))
            self._width = len(shown)
        elif moment - self._said >= self.every:
            self.out.write(f"[{moment - self.began:6.1f} s] {text}\n")
            self._said = moment
        else:
            return
        self._last = text
        self.out.flush()

    def end(self) -> None:
        """Leave the line that changed."""
        if self._live and self._width:
            self.out.write("\n")
            self.out.flush()


def line(progress: Progress) -> str:
    """How far it is, in one line."""
    return (
        f"{progress.phase}: {progress.ordered} of {progress.patients} ordered, {progress.scanned} scanned "
        f"({progress.images} images), {progress.linked_by_clerk} linked by the clerk, {progress.reports} read, "
        f"{progress.delivered} results delivered"
    )


def board(summary: Summary) -> list[str]:
    """The lines of the board."""
    said = summary
    rows = [
        ("Messages in", f"{said.messages['sent']} sent, {said.messages['applied']} applied once", said.messages),
        ("Orders", f"{said.orders['placed']} placed, {said.orders['found']} found", {}),
        (
            "Worklist",
            f"{said.worklist['queries']} queries, {said.worklist['orders_found']} orders found, "
            f"{said.worklist['cancelled_gone']} cancelled ones gone",
            said.worklist,
        ),
        ("Images", f"{said.instances['sent']} sent, {said.instances['stored']} stored whole", said.instances),
        (
            "Studies",
            f"{said.studies['sent']} sent, {said.studies['linked']} linked ({_named(said.studies['linked_by'])}), "
            f"{said.studies['open_cases']} rightly open",
            said.studies,
        ),
        (
            "Viewing",
            f"{said.viewing['searched']} studies opened, {said.viewing['rendered']} images shown",
            said.viewing,
        ),
        ("Reports", f"{said.reports['signed']} versions signed, {said.reports['delivered']} delivered", said.reports),
        ("Order status", f"{said.order_status['delivered']} told ({_named(said.order_status['by_status'])})",
         said.order_status),
        ("FHIR", _named(said.fhir["resources"]), said.fhir),
    ]  # fmt: skip
    width = max(len(text) for _, text, _ in rows)
    lines = [f"  {name:<13} {text:<{width}}  {_times(part)}".rstrip() for name, text, part in rows]
    if summary.problems:
        lines += [
            "",
            f"  {len(summary.problems)} problems:",
            *(f"  - {text}" for text in summary.problems[:40]),
        ]
    else:
        lines += ["", f"  Everything is accounted for, after {said.rehearsal['seconds']} s."]
    return lines


def _named(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in counts.items()) or "none"


def _times(part: dict[str, Any]) -> str:
    found = part.get("latency_ms") or {}
    if found.get("median") is None:
        return ""
    return f"median {_ms(found['median'])}, worst {_ms(found['worst'])}"


def _ms(value: float) -> str:
    return f"{value / 1000:.1f} s" if value >= 10_000 else f"{value:.0f} ms"
