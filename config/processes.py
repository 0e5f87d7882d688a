"""The processes of the engine: what `serve` starts and watches, and what `run NAME` starts alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Process:
    """One row of the table: its name, the function `main(ctx)` that it runs, and the sockets it is handed."""

    name: str
    target: str
    sockets: tuple[str, ...] = ()
    headless: bool = False  #: it shows no page and decodes no pixels: it starts without what those need


TABLE = (
    Process("web", "config.web:main", ("http",)),
    Process("mllp", "integration.hl7v2.listener:main", ("mllp", "mllp_tls")),
    Process("dicom", "pacs.dimse.server:main", ("dicom", "dicom_tls"), headless=True),
    Process("worker", "integration.tasks:main"),
    Process("indexer", "pacs.indexing:main"),
    Process("sweeper", "integration.sweeper:main"),
)


def named(name: str, table: tuple[Process, ...] = TABLE) -> Process:
    """The row of this name. Raises LookupError that lists the names there are."""
    for process in table:
        if process.name == name:
            return process
    raise LookupError(f"There is no process {name!r}. Choose one of: {', '.join(p.name for p in table)}.")
