"""The series manifest: the attributes of all objects of a series as DICOM JSON, as received, in one compressed file.

It makes metadata of a thousand slices one read instead of a thousand. It is a cache: an object that it lacks,
or whose bytes are others, is read from its own file, and the manifest written anew. Overlays are laid over it
at each answer. The indexer renews it piece by piece when a study has settled and nothing else is to be done.
"""

from __future__ import annotations

import gzip
import logging
import os
import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
from django.conf import settings

from pacs.dicomweb.stored import Source, Stored
from pacs.header import DEFLATED_SYNTAXES, MAX_RATIO, HeaderError
from pacs.models import Instance, Series

log = logging.getLogger(__name__)

VERSION = 1
SMALLEST = 4
"""Objects; below that a manifest is no gain."""
MOST_IN_PASSING = 64 * 1024 * 1024
"""Bytes before Pixel Data of an object that the indexer still reads; a longer one waits for its first reader."""
PIECE = 20
"""Objects that are read before the indexer looks at its spool again."""

Objects = dict[str, tuple[str, dict[str, Any]]]
"""SOP Instance UID → (SHA-256 of the data set, its DICOM JSON)."""


def root() -> Path:
    """Where manifests lie."""
    return Path(settings.DATA_DIR) / "manifests"


def path_of(series: UUID) -> Path:
    """The file of a series, named by our own row id; its last digits are random, its first are not."""
    return root() / series.hex[-2:] / f"{series.hex}.json.gz"


def load(series: UUID) -> Objects:
    """What the manifest of a series holds; nothing when there is none or it cannot be read."""
    try:
        held = orjson.loads(gzip.decompress(path_of(series).read_bytes()))
        if held["version"] != VERSION:
            return {}
        return {uid: (sha256, document) for uid, (sha256, document) in held["objects"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        log.warning("manifest of series %s cannot be read and is made anew", series)
        return {}


def save(series: UUID, objects: Objects) -> None:
    """Write a manifest, whole or not at all. A full disk is no error: the next reader does without."""
    path = path_of(series)
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        fresh.write_bytes(gzip.compress(orjson.dumps({"version": VERSION, "objects": objects}), 1))
        os.replace(fresh, path)
    except OSError as error:
        log.warning("manifest of series %s cannot be written: %s", series, type(error).__name__)
        if fresh.exists():
            fresh.unlink()


def documents(series: UUID, rows: Sequence[Instance]) -> list[dict[str, Any] | None]:
    """DICOM JSON as received of these objects of one series, in their order; None for an unreadable one.

    The rows were selected with series, study and overlay.
    """
    held = load(series) if len(rows) >= SMALLEST else {}
    made: Objects = {}
    result: list[dict[str, Any] | None] = []
    for row in rows:
        sha256, document = held.get(row.sop_instance_uid, ("", None))
        if document is None or sha256 != row.sha256:
            document = read(row)
            if document is not None:
                made[row.sop_instance_uid] = (row.sha256, document)
        result.append(document)
    if made and len(rows) >= SMALLEST:
        save(series, {**held, **made})
    return result


def read(row: Instance, *, in_passing: bool = False) -> dict[str, Any] | None:
    """One object from its own file; None when it cannot be read, or is too long to be read in passing."""
    if (
        in_passing
        and row.transfer_syntax_uid in DEFLATED_SYNTAXES
        and row.size > MOST_IN_PASSING // MAX_RATIO
    ):
        return None
    try:
        with Stored(Source.of(row)) as stored:
            if in_passing and stored.outline.end > MOST_IN_PASSING:
                return None
            return stored.document()
    except (HeaderError, OSError, ValueError, RecursionError):
        return None


# --- Renewal in the indexer's idle moments ---------------------------------------------------------------

_due: deque[UUID] = deque(maxlen=10_000)
_at_work: Iterator[None] | None = None


def due(study: UUID) -> None:
    """Remember a study whose manifests are to be renewed. After a crash its first reader does it."""
    if study not in _due:
        _due.append(study)


def renew_piece() -> bool:
    """Do a little of what is due; False when nothing is."""
    global _at_work
    if _at_work is None:
        if not _due:
            return False
        _at_work = _renewal(_due.popleft())
    try:
        next(_at_work)
    except StopIteration:
        _at_work = None
    except Exception as error:  # whatever is wrong, indexing matters more, and the first reader tries again
        log.warning("renewal of a manifest was given up: %s", type(error).__name__)
        _at_work = None
    return True


def _renewal(study: UUID) -> Iterator[None]:
    """Renew the manifests of a study; yields after each PIECE objects."""
    for series in Series.objects.filter(study=study, number_of_series_related_instances__gte=SMALLEST):
        rows = Instance.objects.filter(series=series).select_related("series__study__overlay")
        held = load(series.pk)
        known = {uid: sha256 for uid, (sha256, _) in held.items()}
        keys = rows.order_by("instance_number", "id").values_list("pk", "sop_instance_uid", "sha256")
        missing = [key for key, uid, sha256 in keys if known.get(uid) != sha256]
        for at in range(0, len(missing), PIECE):
            for row in rows.filter(pk__in=missing[at : at + PIECE]):
                document = read(row, in_passing=True)
                if document is not None:
                    held[row.sop_instance_uid] = (row.sha256, document)
            yield
        if missing:
            save(series.pk, held)
