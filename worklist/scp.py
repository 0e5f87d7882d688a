"""The Modality Worklist service (PS3.4 annex K): C-FIND answered by one SQL statement and a concatenation of bytes."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from datetime import date
from functools import lru_cache
from typing import Any

import psycopg
from django.db import connection
from pydicom.datadict import keyword_for_tag

from common import alerts
from pacs.dimse import datasets, status
from pacs.dimse.command import CODES, Command
from pacs.dimse.registry import Refused, Registry, Request
from pacs.matching import BadKey, Keys, keys_of
from worklist import peers, querylog, questions
from worklist.answers import Answers, Form
from worklist.peers import Profile
from worklist.querylog import Asked
from worklist.questions import Question

log = logging.getLogger(__name__)

MODALITY_WORKLIST_FIND = "1.2.840.10008.5.1.4.31"
_FIND = Command({"CommandField": CODES["C-FIND"]})
SORTED_UP_TO = 500
"""Answers that fit one piece are given by their start; a longer list comes as the database finds it."""


def register(registry: Registry) -> None:
    """Serve Modality Worklist C-FIND."""
    registry.add(MODALITY_WORKLIST_FIND, "C-FIND", find, service="worklist")


def find(request: Request) -> Iterator[tuple[int, bytes]]:
    """Answer one query: a pending response an item. Raises Refused with A900 for keys that cannot be matched.

    Every query is remembered with its count, however it ends.
    """
    began = time.monotonic()
    assoc = request.assoc
    asked = Asked(
        assoc.calling_ae, assoc.called_ae, assoc.address, request.data, request.context.transfer_syntax
    )
    try:
        profile = _profile_of(request)
        asked.keys, question = _read(
            request.data, asked.transfer_syntax, profile, assoc.calling_ae, questions.today(profile)
        )
        if isinstance(question, BadKey):
            raise question
        asked.notes += question.notes
        yield from _answers(request, question, profile, asked)
    except BadKey as bad:
        asked.status, asked.comment = status.DATA_SET_MISMATCH, str(bad)
        raise Refused(status.DATA_SET_MISMATCH, bad.comment, OffendingElement=[bad.tag]) from None
    except Refused as refused:
        asked.status, asked.comment = refused.status, refused.comment
        raise
    except GeneratorExit:
        asked.status, asked.comment = status.CANCELLED, "cancelled, or the connection went away"
        raise
    finally:
        asked.duration_ms = (time.monotonic() - began) * 1000
        _remember(asked)


@lru_cache(maxsize=1024)
def _read(
    data: bytes, transfer_syntax: str, profile: Profile, calling_ae: str, today: date
) -> tuple[list[list[str]], Question | BadKey]:
    """A query's keys in words, and the question they ask. Scanners repeat theirs, so most are read but once a day."""
    keys = keys_of(datasets.decode(data, transfer_syntax, _FIND))
    try:
        return spoken(keys), questions.read(keys, profile, calling_ae)
    except BadKey as bad:
        return spoken(keys), bad


def _profile_of(request: Request) -> Profile:
    peer = request.assoc.peer
    return peers.lenient(peer.options if peer else None)


def _remember(asked: Asked) -> None:
    """A query that cannot be remembered is answered all the same."""
    try:
        querylog.remember(asked)
    except Exception as trouble:
        log.error("worklist query of %s not remembered: %s", asked.ae_title, type(trouble).__name__)


def spoken(keys: Keys) -> list[list[str]]:
    """The keys of a query that were not universal, as [keyword path, text], for people."""
    said: list[list[str]] = []
    for tag, key in keys.items():
        name = keyword_for_tag(tag) or f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
        if isinstance(key, str):
            if key.strip(" \0"):
                said.append([name, key])
        else:
            for item in key:
                said += [[f"{name} > {inner}", text] for inner, text in spoken(item)]
    return said


def _answers(
    request: Request, question: Question, profile: Profile, asked: Asked
) -> Iterator[tuple[int, bytes]]:
    pending = status.PENDING_UNSUPPORTED_KEYS if question.unsupported else status.PENDING
    syntax = request.context.transfer_syntax
    sets = questions.character_sets(question, profile)
    only = profile.only_character_set and bool(profile.character_set)
    forms = [Form(syntax, charset, only, profile.lengths) for charset in sets]
    answers = Answers(
        question.wanted,
        forms,
        own_ae=request.assoc.calling_ae,
        zone=question.zone if question.other_zone else None,
        offset=question.offset,
        show_charset=question.charset is not None,
    )
    with closing(_rows(question, profile.limit + 1 if profile.limit else None)) as rows:
        for step, patient, stored, ascii_only, start, has_time in rows:
            if profile.limit and asked.count == profile.limit:
                _cut_off(asked, profile)
                break
            identifier = answers.answer(stored, ascii_only, start, has_time)
            if identifier is None:
                continue
            asked.count += 1
            if len(asked.items) < querylog.MAX_ITEMS:
                asked.items.append(step)
                asked.patients.append(str(patient))
            yield pending, identifier
    asked.notes += [f"adapted: {what}" for what in sorted(answers.adapted)]
    if answers.adapted:
        log.warning("worklist answers for %s adapted: %s", asked.ae_title, ", ".join(sorted(answers.adapted)))
    if asked.status == status.OUT_OF_RESOURCES:
        raise Refused(status.OUT_OF_RESOURCES, asked.comment)


def _cut_off(asked: Asked, profile: Profile) -> None:
    """More items match than this scanner is to be told; an operator hears of it, the scanner as its profile says."""
    asked.comment = f"more than {profile.limit} items match; ask with more keys"
    if profile.limit_status == "A700":
        asked.status = status.OUT_OF_RESOURCES
    alerts.raise_alert(
        f"worklist:limit:{asked.ae_title}",
        f"The worklist of {asked.ae_title} is longer than its limit of {profile.limit}: let it ask by date, "
        "or give it a day window.",
        link="/admin/worklist/querylog/",
    )


def _rows(question: Question, limit: int | None) -> Generator[tuple[Any, ...], None, None]:
    """What matches, streamed in pieces: step id, patient row id, stored answer, ascii, start, has time."""
    where, params = question.where()
    table, table_params = question.table()
    sql = f"SELECT step_id, patient_row, answer, ascii, start, start_has_time FROM {table} WHERE {where}" + (
        f" LIMIT {int(limit)}" if limit is not None else ""
    )
    connection.ensure_connection()
    raw = connection.connection
    # A plain cursor with values sent beside the statement, in binary: Django's would write them into it.
    with psycopg.Cursor(raw) as cursor:
        rows: Any = cursor.stream(sql, [*table_params, *params], binary=True, size=SORTED_UP_TO)
        with closing(rows):
            first: list[tuple[Any, ...]] = []
            for row in rows:
                first.append(row)
                if len(first) > SORTED_UP_TO:
                    break
            if len(first) <= SORTED_UP_TO:
                first.sort(key=lambda row: (row[4] is None, row[4], row[0]))
            yield from first
            yield from rows
