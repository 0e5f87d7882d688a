"""From a scanner's query to tests on the table: one test a key and a rule, all in SQL, each with its name.

The scanner's answer is "all tests hold"; the why-not page asks the same tests one by one. So both always agree.
Sources: PS3.4 C.2.2.2 and K.6 (matching), Table K.6-1 (keys).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from pydicom.datadict import dictionary_VR, keyword_for_tag

from common.clock import now, site_zone
from pacs import matching
from pacs.matching import Attribute, BadKey, Keys, Level, Matching
from ris.transitions import ON_WORKLIST
from worklist import charsets
from worklist.answers import Wanted
from worklist.attributes import (
    INNER_BY_TAG,
    OUTER_BY_TAG,
    SCHEDULED_PROCEDURE_STEP_SEQUENCE,
    SPECIFIC_CHARACTER_SET,
    TIMEZONE_OFFSET_FROM_UTC,
    Entry,
)
from worklist.peers import Profile

START_DATE, START_TIME, STATUS, STATION_AE_TITLE = 0x00400002, 0x00400003, 0x00400020, 0x00400001
MAX_KEYS = 500
"""Keys of one query; the table has about a hundred."""

# Keys that belong to other services; scanners send them all the same, and they say nothing about a step.
_MISPLACED = frozenset((0x00080052, 0x00080054, 0x00080056))


@dataclass(frozen=True, slots=True)
class Test:
    """One condition that an item must meet. `tag` 0: a rule of ours, no key of the scanner's."""

    tag: int
    name: str
    """Keyword of the key, or the name of the rule: `status`, `withheld`, `sees`, `window`."""
    asked: str
    """The key as it was asked, or the rule in words."""
    sql: str
    params: tuple[Any, ...] = ()
    columns: tuple[str, ...] = ()
    """What an item has there; for the why-not page."""


@dataclass
class Question:
    """A query, read: what must hold, what to return, and how."""

    tests: list[Test] = field(default_factory=list)
    wanted: Wanted = Wanted((), None)
    unsupported: list[int] = field(default_factory=list)
    """Tags of optional keys that are not matched: answers carry 0xFF01."""
    notes: list[str] = field(default_factory=list)
    """What was read tolerantly; no values."""
    charset: tuple[str, ...] | None = None
    """Specific Character Set of the query; None when it names none."""
    zone: tzinfo = UTC
    offset: str = ""
    """(0008,0201) of the answers, when the query asks for it."""
    other_zone: bool = False
    """The zone is not the site's: starts are moved, in the comparison and in the answer."""

    def where(self) -> tuple[str, list[Any]]:
        """All tests as one SQL condition, with its parameters."""
        return " AND ".join(test.sql for test in self.tests) or "TRUE", [
            param for test in self.tests for param in test.params
        ]

    def table(self) -> tuple[str, list[Any]]:
        """The table to ask, as SQL: with starts on the scanner's clock where that is not the site's."""
        if not self.other_zone:
            return "worklist_worklistitem", []
        place, value = _sql_zone(self.zone)
        moved = "CASE WHEN start_has_time THEN (start AT TIME ZONE {})::{} ELSE {} END AS {}"
        day = moved.format(place, "date", "start_date", "start_date")
        clock = moved.format(place, "time", "start_time", "start_time")
        others = ", ".join(_COLUMNS)
        return (
            f"(SELECT {others}, {day}, {clock} FROM worklist_worklistitem) AS worklist_worklistitem",
            [value, value],
        )


def _columns() -> list[str]:
    from worklist.models import WorklistItem

    names = [f.column for f in WorklistItem._meta.concrete_fields]
    return [f'"{name}"' for name in names if name not in ("start_date", "start_time")]


_COLUMNS = _columns()


def _sql_zone(zone: tzinfo) -> tuple[str, Any]:
    """A zone for AT TIME ZONE: its name, or an interval, since PostgreSQL reads signs in names the POSIX way."""
    if isinstance(zone, ZoneInfo):
        return "%s", zone.key
    return "make_interval(mins => %s)", int((zone.utcoffset(None) or timedelta()).total_seconds() // 60)


# -- reading a query


def read(keys: Keys, profile: Profile, calling_ae: str) -> Question:
    """The question that a query's keys ask. Raises BadKey with the offending tag."""
    keys = _without_escapes(keys)
    question = Question()
    question.charset = _charset_of(keys)
    _read_zone(keys, profile, question)
    outer = {t: k for t, k in keys.items() if t not in (SPECIFIC_CHARACTER_SET, TIMEZONE_OFFSET_FROM_UTC)}
    if len(outer) > MAX_KEYS:
        raise BadKey(next(iter(outer)), f"and others: more than {MAX_KEYS} keys")
    steps = outer.pop(SCHEDULED_PROCEDURE_STEP_SEQUENCE, None)
    inner = _step_item(steps, profile, question)
    returns = _read_level(outer, OUTER_BY_TAG, profile, calling_ae, question)
    step_returns = None
    if inner is not None:
        step_returns = _read_level(inner, INNER_BY_TAG, profile, calling_ae, question)
    question.wanted = Wanted(
        tuple(returns), None if step_returns is None else tuple(step_returns), question.wanted.items
    )
    question.tests = [*_rules(inner or {}, profile, calling_ae, question), *question.tests]
    return question


_ESCAPE = re.compile(r"\x1b\$?[()\-]?[0-9A-Za-z@]")


def _without_escapes(keys: Keys) -> Keys:
    """Keys without the ISO 2022 sequences that a decoder left in them (pydicom 3.0: those of GB 2312)."""
    return {
        tag: _ESCAPE.sub("", key) if isinstance(key, str) else [_without_escapes(item) for item in key]
        for tag, key in keys.items()
    }


def today(profile: Profile) -> date:
    """The day on the scanner's clock: what a question means may change with it."""
    return now().astimezone(profile.zone).date()


def _charset_of(keys: Keys) -> tuple[str, ...] | None:
    given = keys.get(SPECIFIC_CHARACTER_SET)
    return tuple(term.strip() for term in given.split("\\")) if isinstance(given, str) else None


def _read_zone(keys: Keys, profile: Profile, question: Question) -> None:
    """The zone is that of (0008,0201), else the scanner's, else the site's."""
    given = keys.get(TIMEZONE_OFFSET_FROM_UTC)
    question.zone = profile.zone
    if isinstance(given, str) and given.strip(" \0"):
        question.zone = _offset(given.strip(" \0"))
    question.other_zone = question.zone != site_zone()
    if given is not None:
        local = datetime.now(question.zone).strftime("%z")
        question.offset = local[:5]


def _offset(text: str) -> tzinfo:
    """`+0100` as a zone (PS3.3 C.12.1.1.8)."""
    if not re.fullmatch(r"[+-](?:0[0-9]|1[0-4])[0-5][0-9]", text):
        raise BadKey(TIMEZONE_OFFSET_FROM_UTC, "is an offset such as +0100")
    minutes = int(text[1:3]) * 60 + int(text[3:5])
    return timezone(timedelta(minutes=-minutes if text[0] == "-" else minutes))


def _step_item(steps: str | Sequence[Keys] | None, profile: Profile, question: Question) -> Keys | None:
    """The keys of the step; {} for an empty sequence (universal), None when it was not asked for."""
    if steps is None:
        return None
    if isinstance(steps, str):
        if steps:
            raise BadKey(SCHEDULED_PROCEDURE_STEP_SEQUENCE, "is a sequence and takes no text")
        return {}
    if len(steps) > 1:
        if profile.strict:
            raise BadKey(SCHEDULED_PROCEDURE_STEP_SEQUENCE, "takes a single item")
        question.notes.append("ScheduledProcedureStepSequence: items after the first ignored")
    return steps[0] if steps else {}


def _read_level(
    keys: Keys, table: Mapping[int, Entry], profile: Profile, calling_ae: str, question: Question
) -> list[tuple[int, str]]:
    """Tests of the keys at one level are added to the question; gives the return keys (tag, VR), in tag order."""
    returns: list[tuple[int, str]] = []
    done: set[int] = set()
    for tag in sorted(keys):
        key = keys[tag]
        entry = table.get(tag)
        if entry is None:
            _unknown(tag, key, returns, question)
            continue
        returns.append((tag, entry.vr))
        if tag in done:
            continue
        if tag == START_DATE and _is_period(key, keys.get(START_TIME)):
            pair = {START_DATE: key, START_TIME: keys[START_TIME]}
            question.tests += _planned(
                entry,
                {START_DATE: _DATE, START_TIME: _TIME},
                pair,
                f"{key} {keys[START_TIME]}",
                profile,
                question,
            )
            done.add(START_TIME)
        elif tag == STATION_AE_TITLE and profile.unassigned and key == calling_ae:
            question.tests.append(_own_or_none(entry, calling_ae))
        else:
            question.tests += _tests_of(entry, key, profile, question)
    return returns


def _unknown(tag: int, key: str | Sequence[Keys], returns: list[tuple[int, str]], question: Question) -> None:
    """A key that the table does not know: never a reason to fail. A standard one is returned empty."""
    if tag in _MISPLACED:
        return
    try:
        vr = dictionary_VR(tag).split(" or ")[0]
    except KeyError:
        return
    returns.append((tag, vr))
    asked = key if isinstance(key, str) else any(v for item in key for v in item.values())
    if asked and asked != "*":
        question.unsupported.append(tag)


def _is_period(day: str | Sequence[Keys], clock: str | Sequence[Keys] | None) -> bool:
    """Ranges of date and of time are one period (Table K.6-1)."""
    return isinstance(day, str) and isinstance(clock, str) and "-" in day and "-" in clock


def _attribute(entry: Entry, items: tuple[Attribute, ...] = ()) -> Attribute:
    other = START_TIME if entry.tag == START_DATE else None
    return Attribute(
        entry.keyword, entry.tag, entry.vr, Level.STEP, "", entry.kind, entry.columns, other, items
    )


_DATE, _TIME = _attribute(INNER_BY_TAG[START_DATE]), _attribute(INNER_BY_TAG[START_TIME])
_WITH_WILDCARDS = frozenset((0x00100020, 0x00080060, STATION_AE_TITLE))


def _tests_of(entry: Entry, key: str | Sequence[Keys], profile: Profile, question: Question) -> list[Test]:
    if entry.vr == "SQ":
        return _sequence_tests(entry, key, profile, question)
    if not isinstance(key, str):
        raise BadKey(entry.tag, "is no sequence")
    text = key.strip(" \0")
    if not text:
        return []
    if entry.kind is Matching.NONE:
        if text.strip("*"):
            question.unsupported.append(entry.tag)
        return []
    if text == "*" and entry.kind is Matching.SINGLE and not profile.strict:
        return []
    if entry.kind is Matching.NUMBER and text == "0" and not profile.strict:
        # Some clients cannot write an empty number; no status that we match is 0 (PS3.3 C.7.2.2, Pregnancy Status).
        question.notes.append(f"{entry.keyword}: 0 read as empty")
        return []
    wild = profile.wildcards and entry.tag in _WITH_WILDCARDS and ("*" in text or "?" in text)
    if entry.array:
        return _array_tests(entry, text, wild, profile, question)
    attribute = _attribute(entry)
    if wild:
        attribute = Attribute(
            entry.keyword, entry.tag, entry.vr, Level.STEP, "", Matching.WILDCARD, entry.columns
        )
    return _planned(entry, {entry.tag: attribute}, {entry.tag: key}, text, profile, question)


def _planned(
    entry: Entry,
    table: Mapping[int, Attribute],
    keys: Keys,
    asked: str,
    profile: Profile,
    question: Question,
) -> list[Test]:
    """The test that the archive's matching rules make of a key (pacs/matching.py)."""
    plan = matching.plan(table, keys, strict=profile.strict, combined=True)
    question.notes += [f"{keyword_for_tag(tag)}: read tolerantly" for tag in plan.repaired]
    question.unsupported += plan.unsupported
    if plan.where == matching.EVERYTHING:
        return []
    sql, params = matching.as_sql(plan.where)
    columns = tuple(column for row in table.values() for column in row.match_on)
    return [Test(entry.tag, entry.keyword, asked, sql, tuple(params), columns)]


def _sequence_tests(
    entry: Entry, key: str | Sequence[Keys], profile: Profile, question: Question
) -> list[Test]:
    """Keys inside the item of a code or issuer sequence."""
    if isinstance(key, str):
        if key:
            raise BadKey(entry.tag, "is a sequence and takes no text")
        return []
    if len(key) > 1 and profile.strict:
        raise BadKey(entry.tag, "takes a single item")
    if not key or not key[0]:
        return []
    inner = {e.tag: e for e in entry.items}
    asked = tuple(sorted(tag for tag in key[0] if tag in inner))
    question.wanted = Wanted((), None, (*question.wanted.items, (entry.tag, asked)))
    tests: list[Test] = []
    for tag, value in key[0].items():
        if tag not in inner:
            if value:
                question.unsupported.append(tag)
        else:
            tests += _tests_of(inner[tag], value, profile, question)
    return tests


def _array_tests(entry: Entry, text: str, wild: bool, profile: Profile, question: Question) -> list[Test]:
    """A key on an attribute with several values: any of them may match."""
    values = [value for part in text.split("\\") if (value := matching.text_key(part))]
    if len(values) > 1:
        if profile.strict and entry.kind is Matching.SINGLE:
            raise BadKey(entry.tag, "takes a single value")
        question.notes.append(f"{entry.keyword}: several values, any of them matches")
    column = f'"{entry.columns[0]}"'
    patterns = [v for v in values if (wild or entry.kind is Matching.WILDCARD) and ("*" in v or "?" in v)]
    if any(not pattern.strip("*") for pattern in patterns):
        return []
    parts: list[str] = []
    params: list[Any] = []
    exact = [v for v in values if v not in patterns]
    if exact:
        parts.append(f"{column} && %s::varchar[]")
        params.append(exact)
    for pattern in patterns:
        parts.append(f"EXISTS (SELECT 1 FROM unnest({column}) AS one WHERE one LIKE %s)")
        params.append(matching.like_pattern(pattern))
    if not parts:
        return []
    sql = parts[0] if len(parts) == 1 else f"({' OR '.join(parts)})"
    return [Test(entry.tag, entry.keyword, text, sql, tuple(params), entry.columns)]


def _own_or_none(entry: Entry, calling_ae: str) -> Test:
    sql = '("scheduled_station_ae_titles" && %s::varchar[] OR "scheduled_station_ae_titles" = \'{}\')'
    return Test(entry.tag, entry.keyword, calling_ae, sql, ([calling_ae],), entry.columns)


# -- our own rules


def _rules(inner: Keys, profile: Profile, calling_ae: str, question: Question) -> list[Test]:
    """What a scanner is told of at all: visibility, its rule, its day window."""
    tests = []
    names_status = bool(str(inner.get(STATUS) or "").strip(" \0*"))
    if not names_status and profile.shown == ON_WORKLIST:
        tests.append(Test(0, "status", _words(profile.shown), '"waiting"', (), ("status", "withheld")))
    else:
        tests.append(Test(0, "withheld", "what can be told in DICOM", "\"withheld\" = ''", (), ("withheld",)))
        if not names_status:
            sql = '"status" = ANY(%s)'
            tests.append(Test(0, "status", _words(profile.shown), sql, (sorted(profile.shown),), ("status",)))
    tests += _sees(profile, calling_ae)
    if not str(inner.get(START_DATE) or "").strip(" \0*"):
        tests += _window(profile, question)
    return tests


def _words(statuses: frozenset[str]) -> str:
    return ", ".join(sorted(statuses))


_IN_ROOM = (
    '("scheduled_station_ae_titles" && ARRAY(SELECT s.ae_title FROM ris_station s JOIN ris_station o '
    "ON o.room = s.room WHERE o.ae_title = %s AND o.room <> '' AND s.ae_title <> '')::varchar[] "
    "OR \"scheduled_procedure_step_location\" IN (SELECT room FROM ris_station WHERE ae_title = %s AND room <> ''))"
)
_OF_MODALITY = "\"modality\" IN (SELECT modality FROM ris_station WHERE ae_title = %s AND modality <> '')"


def _sees(profile: Profile, calling_ae: str) -> list[Test]:
    """The rule which steps this AE is told of."""
    titles = sorted({calling_ae, *(profile.titles if profile.see == "group" else ())})
    columns: tuple[str, ...] = ("scheduled_station_ae_titles",)
    params: tuple[Any, ...]
    if profile.see in ("own", "group"):
        sql, params = '"scheduled_station_ae_titles" && %s::varchar[]', (titles,)
        words = f"steps for {' or '.join(titles)}"
    elif profile.see == "room":
        sql, params, words = _IN_ROOM, (calling_ae, calling_ae), "steps of its room"
        columns = (*columns, "scheduled_procedure_step_location")
    elif profile.see == "modality" and profile.modalities:
        sql, params = '"modality" = ANY(%s)', (sorted(profile.modalities),)
        words, columns = f"steps of {', '.join(sorted(profile.modalities))}", ("modality",)
    elif profile.see == "modality":
        sql, params, words = _OF_MODALITY, (calling_ae,), "steps of its stations' modality"
        columns = ("modality",)
    else:
        return []
    if profile.unassigned:
        sql, words = (
            f"({sql} OR \"scheduled_station_ae_titles\" = '{{}}')",
            f"{words}, and those without a station",
        )
    return [Test(0, "sees", words, sql, params, columns)]


def _window(profile: Profile, question: Question) -> list[Test]:
    """Days around today for a query that names none."""
    today_ = now().astimezone(question.zone).date()
    tests = []
    if profile.days_before is not None:
        first = today_ - timedelta(days=profile.days_before)
        words = f"from {first:%Y-%m-%d} ({profile.days_before} days before today)"
        tests.append(Test(0, "window", words, '"start_date" >= %s', (first,), ("start_date",)))
    if profile.days_after is not None:
        last = today_ + timedelta(days=profile.days_after)
        words = f"until {last:%Y-%m-%d} ({profile.days_after} days after today)"
        tests.append(Test(0, "window", words, '"start_date" <= %s', (last,), ("start_date",)))
    return tests


# -- how to answer


def character_sets(question: Question, profile: Profile) -> list[tuple[str, ...]]:
    """In which Specific Character Sets to try an answer, in order; all but the last may prove too small.

    The query's own, where we can write it; the scanner's setting; UTF-8, unless it can read nothing else.
    """
    if profile.character_set and profile.only_character_set:
        return [profile.character_set]
    order: list[tuple[str, ...]] = []
    if question.charset is not None and any(question.charset) and charsets.known(question.charset):
        order.append(question.charset)
    if profile.character_set:
        order.append(profile.character_set)
    order.append(charsets.UTF_8)
    return order[: order.index(charsets.UTF_8) + 1]
