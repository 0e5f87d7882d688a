"""Attribute tables and matching rules, used alike by C-FIND, QIDO-RS and (with a table of its own) the worklist.

A query is a mapping of tags to key texts. `plan` turns it into a tree of conditions over columns, which
`as_sql` renders as an SQL fragment with parameters and `as_q` as a Django Q. A value of a peer only ever
becomes a parameter; column names only ever come from the tables of this module or of the worklist.

Rules: PS3.4 C.2.2.2 (matching), K.2.2 and Table K.6-1 (worklist), PS3.5 6.2 (value representations).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from enum import Enum, StrEnum
from typing import Any

from django.db.models import Field, Lookup, Q
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset

MAX_KEY_LENGTH = 1024
"""Characters; the longest key that makes sense is a person name of three groups (3 x 64)."""
MAX_VALUES = 10_000
"""Values of one list key; a list of UID may be long, but has an end."""

SPECIFIC_CHARACTER_SET = 0x00080005
TIMEZONE_OFFSET_FROM_UTC = 0x00080201


class Level(StrEnum):
    """Query/retrieve levels (PS3.4 C.6.1.1) and the step level of a worklist."""

    PATIENT = "PATIENT"
    STUDY = "STUDY"
    SERIES = "SERIES"
    IMAGE = "IMAGE"
    STEP = "STEP"


class Matching(Enum):
    """How the key of an attribute is compared."""

    NONE = "return key only"
    UID = "one UID or a list of UID"
    SINGLE = "the whole value, case-sensitive; several values mean any of them"
    CODE = "as SINGLE for CS: tolerant sites may write it in lower case"
    WILDCARD = "the whole value, case-sensitive, with * and ?"
    NAME = "person name, any group, case-insensitive, with * and ?"
    DATE = "a date or a range of dates"
    DATE_TEXT = "as DATE, the column holding text YYYYMMDD"
    TIME = "a time or a range of times"
    NUMBER = "an integer, by value"
    ANY_OF = "any of the values that an array column holds"
    SEQUENCE = "the item's own keys"


class BadKey(ValueError):
    """A key that cannot be matched. `tag` is the offending element; the text carries no peer's value."""

    def __init__(self, tag: int, comment: str) -> None:
        super().__init__(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) {comment}")
        self.tag = tag
        self.comment = comment


# --- Conditions ------------------------------------------------------------------------------------------


class Op(Enum):
    """Comparisons that a condition may make; the value is the SQL operator."""

    EQ = "="
    IN = "= ANY"
    LIKE = "LIKE"
    GT = ">"
    GE = ">="
    LT = "<"
    LE = "<="
    OVERLAP = "&&"


@dataclass(frozen=True, slots=True)
class Compare:
    """One column against one value. `column` is `name` or `model.name`, from an attribute table."""

    column: str
    op: Op
    value: Any


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every part holds; no parts: always true."""

    parts: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one part holds; no parts: never true."""

    parts: tuple[Condition, ...] = ()


Condition = Compare | AllOf | AnyOf
EVERYTHING = AllOf()
NOTHING = AnyOf()


@Field.register_lookup
class Like(Lookup):
    """`column__like=pattern`: LIKE with the pattern as given (see `like_pattern`)."""

    lookup_name = "like"
    prepare_rhs = False

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, tuple[Any, ...]]:
        lhs, lhs_params = self.process_lhs(compiler, connection)
        rhs, rhs_params = self.process_rhs(compiler, connection)
        return f"{lhs} LIKE {rhs}", (*lhs_params, *rhs_params)


def _split(column: str) -> tuple[str, str]:
    model, dot, name = column.rpartition(".")
    return (model, name) if dot else ("", column)


def as_sql(condition: Condition, aliases: Mapping[str, str] | None = None) -> tuple[str, list[Any]]:
    """Render as an SQL expression with %s placeholders and its parameters (psycopg).

    `aliases` maps the model part of a column ("study") to a table alias ("s"); columns without a model
    part use the alias of "" or none at all.
    """
    aliases = aliases or {}
    match condition:
        case Compare(column, op, value):
            model, name = _split(column)
            alias = aliases.get(model, model)
            quoted = f'"{alias}"."{name}"' if alias else f'"{name}"'
            placeholder = "(%s)" if op is Op.IN else "%s"
            return f"{quoted} {op.value} {placeholder}", [value]
        case AllOf(()):
            return "TRUE", []
        case AnyOf(()):
            return "FALSE", []
        case AllOf(parts) | AnyOf(parts):
            rendered = [as_sql(part, aliases) for part in parts]
            glue = " AND " if isinstance(condition, AllOf) else " OR "
            params = [param for _, part_params in rendered for param in part_params]
            return "(" + glue.join(sql for sql, _ in rendered) + ")", params
    raise TypeError(f"no condition: {condition!r}")


_LOOKUPS = {
    Op.EQ: "exact",
    Op.IN: "in",
    Op.LIKE: "like",
    Op.GT: "gt",
    Op.GE: "gte",
    Op.LT: "lt",
    Op.LE: "lte",
    Op.OVERLAP: "overlap",
}


def as_q(condition: Condition, paths: Mapping[str, str] | None = None) -> Q:
    """Render as a Django Q. `paths` maps the model part of a column to a lookup prefix ("study__")."""
    paths = paths or {}
    match condition:
        case Compare(column, op, value):
            model, name = _split(column)
            return Q(**{f"{paths.get(model, '')}{name}__{_LOOKUPS[op]}": value})
        case AnyOf(()):
            return Q(pk__in=[])
        case AllOf(parts):
            q = Q()
            for part in parts:
                q &= as_q(part, paths)
            return q
        case AnyOf(parts):
            q = as_q(parts[0], paths)
            for part in parts[1:]:
                q |= as_q(part, paths)
            return q
    raise TypeError(f"no condition: {condition!r}")


# --- Normal forms of stored values and keys --------------------------------------------------------------

_FIRST_CYRILLIC = "\u0400"
"""From here on a combining mark makes another letter, not an accent."""


def name_key(group: str) -> str:
    """The normal form of one component group of a person name, for columns and keys alike.

    Case folded, accents of Latin and Greek letters removed, NFC, spaces at the edges of components and
    trailing empty components dropped (PS3.5 6.2.1: they carry nothing). "MÜLLER ^John^^" -> "muller^john".
    """
    bare: list[str] = []
    base = ""
    for char in unicodedata.normalize("NFD", group.casefold()):
        if not unicodedata.combining(char):
            base = char
        elif base < _FIRST_CYRILLIC:
            continue
        bare.append(char)
    parts = [" ".join(part.split()) for part in unicodedata.normalize("NFC", "".join(bare)).split("^")]
    return "^".join(parts).rstrip("^")


def name_keys(name: str) -> tuple[str, str, str]:
    """Normal forms of the alphabetic, ideographic and phonetic group of a PN value; "" where absent."""
    groups = [name_key(group) for group in name.split("=")[:3]]
    return tuple(groups + [""] * (3 - len(groups)))  # type: ignore[return-value]


def text_key(value: str) -> str:
    """The normal form of a text value: NFC, without the insignificant spaces (PS3.5 6.2) and NULs."""
    return unicodedata.normalize("NFC", value).strip(" \0")


def like_pattern(key: str) -> str:
    """A key with * and ? as a LIKE pattern; everything else, % _ and \\ too, stands for itself."""
    escaped = key.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%").replace("?", "_")


def parse_date(text: str, *, strict: bool = True) -> date:
    """YYYYMMDD; when not strict also YYYY.MM.DD (ACR-NEMA) and YYYY-MM-DD. Raises ValueError."""
    digits = text.strip()
    if not strict and len(digits) == 10 and digits[4] in ".-" and digits[7] == digits[4]:
        digits = digits.replace(digits[4], "")
    if len(digits) != 8 or not (digits.isascii() and digits.isdigit()):
        raise ValueError("a date is YYYYMMDD")
    return date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))


def parse_time(text: str, *, strict: bool = True, end_of_unit: bool = False) -> time:
    """HH[MM[SS[.F{1,6}]]]; when not strict also HH:MM[:SS]. Raises ValueError.

    `end_of_unit` completes a truncated time to its last microsecond (upper bounds of ranges). A leap
    second (60) is taken as the last microsecond of its minute.
    """
    raw = text.strip()
    if not strict:
        raw = raw.replace(":", "")
    whole, dot, fraction = raw.partition(".")
    if not (whole.isascii() and whole.isdigit()) or len(whole) not in (2, 4, 6):
        raise ValueError("a time is HHMMSS.FFFFFF, cut from the right")
    if dot and (len(whole) != 6 or not 1 <= len(fraction) <= 6 or not fraction.isdigit()):
        raise ValueError("a fraction of a second has one to six digits")
    filler = "59" if end_of_unit else "00"
    hours, minutes, seconds = int(whole[:2]), int(whole[2:4] or filler), int(whole[4:6] or filler)
    micros = int((fraction or "").ljust(6, "9" if end_of_unit else "0"))
    if seconds == 60:
        seconds, micros = 59, 999_999
    return time(hours, minutes, seconds, micros)


# --- Attribute tables ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attribute:
    """A row of an attribute table: what C-FIND or QIDO-RS may ask for, and where we keep it."""

    keyword: str
    tag: int
    vr: str
    level: Level
    column: str
    """Column of the value that is returned; "" for one that the answering service computes."""
    kind: Matching
    match_on: tuple[str, ...] = ()
    """Columns that are compared; for NAME the keys of the alphabetic, ideographic and phonetic group."""
    combined_with: int | None = None
    """For a DATE: the tag of the time that makes one moment with it (Table K.6-1, C.2.2.2.5.2)."""
    items: tuple[Attribute, ...] = ()
    """For a SEQUENCE: the attributes of its item."""


def attribute(
    keyword: str,
    level: Level,
    column: str,
    kind: Matching = Matching.NONE,
    *,
    match_on: Sequence[str] = (),
    combined_with: str = "",
    items: Iterable[Attribute] = (),
) -> Attribute:
    """Build a row; tag and VR come from the DICOM dictionary. Raises KeyError for an unknown keyword."""
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    other = tag_for_keyword(combined_with) if combined_with else None
    matched = tuple(match_on) or ((column,) if column and kind is not Matching.NONE else ())
    return Attribute(keyword, tag, dictionary_VR(tag), level, column, kind, matched, other, tuple(items))


Table = Mapping[int, Attribute]


def table(*attributes: Attribute) -> Table:
    """A table by tag, in tag order."""
    return {row.tag: row for row in sorted(attributes, key=lambda row: row.tag)}


# --- From keys to a plan ---------------------------------------------------------------------------------

Keys = Mapping[int, "str | Sequence[Keys]"]
"""What a peer asks: tag -> key text (values joined by a backslash; "" asks for the value), or for a
sequence its items (none or one)."""


@dataclass(slots=True)
class Plan:
    """What to do about a query: the condition, what to return, and what could not be honoured."""

    where: Condition = EVERYTHING
    requested: list[int] = field(default_factory=list)
    """Tags of the outer level that were asked for and that the table knows."""
    requested_items: dict[int, list[int]] = field(default_factory=dict)
    """For each sequence asked for: the tags asked for within its item; empty means all of them."""
    unsupported: list[int] = field(default_factory=list)
    """Tags with a key that is not matched (answer 0xFF01) or that the table does not know."""
    unknown: list[int] = field(default_factory=list)
    """Tags that the table does not know; they are returned empty."""
    repaired: list[int] = field(default_factory=list)
    """Tags whose malformed key was read tolerantly; worth a line in the log."""


def keys_of(ds: Dataset) -> Keys:
    """The keys of a decoded C-FIND identifier, private and group-length elements left out."""
    keys: dict[int, str | Sequence[Keys]] = {}
    for elem in ds:
        if elem.tag.is_private or elem.tag.element == 0:
            continue
        if elem.VR == "SQ":
            keys[int(elem.tag)] = [keys_of(item) for item in elem.value or []]
        else:
            keys[int(elem.tag)] = _text_of(elem.value)
    return keys


def _text_of(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue":
        return "\\".join(_text_of(part) for part in value)
    if isinstance(value, bytes):
        return value.decode("ascii", "replace")
    return str(value)


def plan(
    attributes: Table, keys: Keys, *, strict: bool = False, combined: bool = True, fuzzy: bool = False
) -> Plan:
    """Turn the keys of a query into a plan over the columns of a table.

    `strict` refuses malformed keys that can be understood all the same; `combined` reads a range of dates
    with a range of times as one period (worklist and QIDO-RS always, C-FIND of Q/R when negotiated);
    `fuzzy` lets each word of a person name match anywhere in the name. Raises BadKey.
    """
    result = Plan()
    parts = _walk(attributes, keys, result, result.requested, strict, combined, fuzzy)
    result.where = AllOf(tuple(parts)) if len(parts) != 1 else parts[0]
    return result


def _walk(
    attributes: Table,
    keys: Keys,
    result: Plan,
    requested: list[int],
    strict: bool,
    combined: bool,
    fuzzy: bool,
) -> list[Condition]:
    parts: list[Condition] = []
    done: set[int] = {SPECIFIC_CHARACTER_SET, TIMEZONE_OFFSET_FROM_UTC}
    for tag, key in keys.items():
        if tag in done:
            continue
        row = attributes.get(tag)
        if row is None:
            result.unknown.append(tag)
            if key:
                result.unsupported.append(tag)
            continue
        requested.append(tag)
        if row.kind is Matching.SEQUENCE:
            parts += _sequence(row, key, result, strict, combined, fuzzy)
        elif not isinstance(key, str):
            raise BadKey(tag, "is no sequence")
        elif row.kind is Matching.NONE:
            if not _is_universal(key):
                result.unsupported.append(tag)
        else:
            other = attributes.get(row.combined_with) if row.combined_with else None
            other_key = keys.get(row.combined_with) if row.combined_with else None
            if combined and other and isinstance(other_key, str) and "-" in key and "-" in other_key:
                parts.append(_period(row, key, other, other_key, result, strict))
                requested.append(other.tag)
                done.add(other.tag)
            else:
                condition = _condition(row, key, result, strict, fuzzy)
                if condition is not None:
                    parts.append(condition)
    return parts


def _sequence(
    row: Attribute,
    key: str | Sequence[Keys],
    result: Plan,
    strict: bool,
    combined: bool,
    fuzzy: bool,
) -> list[Condition]:
    """Matching inside the one item of a sequence (PS3.4 C.2.2.2.6); no item is universal."""
    inner: list[int] = result.requested_items.setdefault(row.tag, [])
    if isinstance(key, str):
        if key:
            raise BadKey(row.tag, "is a sequence and takes no text")
        return []
    if len(key) > 1:
        if strict:
            raise BadKey(row.tag, "takes a single item")
        result.repaired.append(row.tag)
    if not key:
        return []
    return _walk(table(*row.items), key[0], result, inner, strict, combined, fuzzy)


def match_key(row: Attribute, key: str, *, strict: bool = False, fuzzy: bool = False) -> Condition | None:
    """The condition of one key of one attribute, or None when it matches everything. Raises BadKey."""
    return _condition(row, key, Plan(), strict, fuzzy)


def _is_universal(key: str) -> bool:
    """Zero length, or nothing but * (PS3.4 C.2.2.2.3)."""
    return not key.strip(" \0*")


def _condition(row: Attribute, key: str, result: Plan, strict: bool, fuzzy: bool) -> Condition | None:
    key = key.strip(" \0")
    if not key:
        return None
    if len(key) > MAX_KEY_LENGTH and row.kind is not Matching.UID:
        raise BadKey(row.tag, f"is longer than {MAX_KEY_LENGTH} characters")
    try:
        match row.kind:
            case Matching.UID:
                return _uids(row, key)
            case Matching.SINGLE | Matching.CODE | Matching.ANY_OF:
                return _values(row, key, result, strict)
            case Matching.WILDCARD:
                return _wildcard(row, key)
            case Matching.NAME:
                return _name(row, key, fuzzy)
            case Matching.DATE | Matching.DATE_TEXT:
                return _date(row, key, result, strict)
            case Matching.TIME:
                return _time(row, key, result, strict)
            case Matching.NUMBER:
                return None if _is_universal(key) else Compare(row.match_on[0], Op.EQ, int(key))
    except BadKey:
        raise
    except ValueError as error:
        # int() repeats the peer's text in its message; ours never do.
        comment = "is no integer" if row.kind is Matching.NUMBER else str(error)
        raise BadKey(row.tag, comment) from None
    raise BadKey(row.tag, "cannot be matched")


def _any_column(row: Attribute, op: Op, value: Any) -> Condition:
    parts = tuple(Compare(column, op, value) for column in row.match_on)
    return parts[0] if len(parts) == 1 else AnyOf(parts)


def _uids(row: Attribute, key: str) -> Condition | None:
    uids = [uid.strip(" \0") for uid in key.split("\\")]
    uids = [uid for uid in uids if uid]
    if not uids or uids == ["*"]:
        return None
    if len(uids) > MAX_VALUES:
        raise BadKey(row.tag, f"lists more than {MAX_VALUES} UIDs")
    # A UID with other characters than digits and dots is no error: it is just nobody's UID.
    return _any_column(row, Op.EQ, uids[0]) if len(uids) == 1 else _any_column(row, Op.IN, uids)


def _values(row: Attribute, key: str, result: Plan, strict: bool) -> Condition | None:
    values = [text_key(value) for value in key.split("\\")]
    values = [value for value in values if value]
    if not values or (row.kind is not Matching.SINGLE and values == ["*"]):
        return None
    if row.kind is not Matching.SINGLE and any(value != value.upper() for value in values):
        if strict:
            raise BadKey(row.tag, "is a code string: capital letters only")
        result.repaired.append(row.tag)
        values = [value.upper() for value in values]
    if row.kind is Matching.ANY_OF:
        return _any_column(row, Op.OVERLAP, values)
    if len(values) > 1:
        if strict:
            raise BadKey(row.tag, "takes a single value")
        result.repaired.append(row.tag)
        return _any_column(row, Op.IN, values)
    return _any_column(row, Op.EQ, values[0])


def _wildcard(row: Attribute, key: str) -> Condition | None:
    """Text with * and ?. Several values mean any of them, as peers expect of Q/R and QIDO-RS."""
    values = [text_key(value) for value in key.split("\\")] if row.vr not in ("ST", "LT", "UT") else [key]
    parts: list[Condition] = []
    for value in values:
        if not value:
            continue
        if _is_universal(value):
            return None
        if "*" in value or "?" in value:
            parts.append(_any_column(row, Op.LIKE, like_pattern(value)))
        else:
            parts.append(_any_column(row, Op.EQ, value))
    return None if not parts else parts[0] if len(parts) == 1 else AnyOf(tuple(parts))


def _name(row: Attribute, key: str, fuzzy: bool) -> Condition | None:
    """A person name. A key of one group may match any group; of several, each matches its own."""
    groups = [name_key(group) for group in key.split("=")[:3]]
    filled = [(at, group) for at, group in enumerate(groups) if group.strip("*^ ")]
    if not filled:
        return None
    if len(filled) == 1:
        return AnyOf(tuple(_name_group(column, filled[0][1], fuzzy) for column in row.match_on))
    columns = row.match_on
    return AllOf(tuple(_name_group(columns[at], group, fuzzy) for at, group in filled if at < len(columns)))


def _name_group(column: str, group: str, fuzzy: bool) -> Condition:
    if fuzzy:
        words = group.replace("^", " ").replace("*", " ").split()
        return AllOf(tuple(Compare(column, Op.LIKE, f"%{like_pattern(word)}%") for word in words))
    parts: list[Condition] = []
    # Trailing empty components are not stored, so "doe^*" must find "doe" too.
    while group.endswith("^*"):
        parts.append(Compare(column, Op.LIKE, like_pattern(group)))
        group = group[:-2].rstrip("^")
    has_wildcard = "*" in group or "?" in group
    parts.append(
        Compare(column, Op.LIKE, like_pattern(group)) if has_wildcard else Compare(column, Op.EQ, group)
    )
    return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))


def date_bounds(key: str, *, strict: bool = True) -> tuple[date | None, date | None]:
    """First and last day of a date key, both included; None for an open end. Raises ValueError."""
    if not strict and len(key) == 10 and key.count("-") == 2:
        day = parse_date(key, strict=False)
        return day, day
    low, dash, high = key.partition("-")
    if "-" in high:
        raise ValueError("a range has one hyphen")
    if not dash:
        day = parse_date(low, strict=strict)
        return day, day
    first = parse_date(low, strict=strict) if low.strip() else None
    last = parse_date(high, strict=strict) if high.strip() else None
    if first is None and last is None:
        raise ValueError("a range has at least one end")
    return first, last


def time_bounds(key: str, *, strict: bool = True) -> tuple[time | None, time | None]:
    """First and last moment of a time range, both included; a truncated end reaches the end of its unit.

    A single value is its own first and last moment: 1015 is 10:15:00. Raises ValueError.
    """
    low, dash, high = key.partition("-")
    if "-" in high:
        raise ValueError("a range has one hyphen")
    if not dash:
        moment = parse_time(low, strict=strict)
        return moment, moment
    first = parse_time(low, strict=strict) if low.strip() else None
    last = parse_time(high, strict=strict, end_of_unit=True) if high.strip() else None
    if first is None and last is None:
        raise ValueError("a range has at least one end")
    return first, last


def period_bounds(
    date_key: str, time_key: str, *, strict: bool = True
) -> tuple[datetime | None, datetime | None]:
    """First and last moment, without zone, of two ranges read as one period (PS3.4 Table K.6-1).

    The end time may be earlier than the start time: each belongs to its own date. An end that names no
    date has no bound; one that names no time takes the whole day. Raises ValueError.
    """
    first_day, last_day = date_bounds(date_key, strict=strict)
    first_time, last_time = time_bounds(time_key, strict=strict)
    start = datetime.combine(first_day, first_time or time.min) if first_day else None
    end = datetime.combine(last_day, last_time or time.max) if last_day else None
    return start, end


def _between(column: str, first: Any, last: Any) -> Condition:
    if first is not None and first == last:
        return Compare(column, Op.EQ, first)
    parts: list[Condition] = []
    if first is not None:
        parts.append(Compare(column, Op.GE, first))
    if last is not None:
        parts.append(Compare(column, Op.LE, last))
    return parts[0] if len(parts) == 1 else AllOf(tuple(parts))


def _date(row: Attribute, key: str, result: Plan, strict: bool) -> Condition | None:
    if key == "*" and not strict:
        return None
    first, last = date_bounds(key, strict=strict)
    if not strict:
        _note_repair(row, key, result, date_bounds)
    if row.kind is Matching.DATE:
        return _between(row.match_on[0], first, last)
    # An empty text is before every date, yet an unknown value matches no key.
    return _between(row.match_on[0], dicom_text(first) or "0", dicom_text(last) or None)


def _time(row: Attribute, key: str, result: Plan, strict: bool) -> Condition | None:
    if key == "*" and not strict:
        return None
    first, last = time_bounds(key, strict=strict)
    if not strict:
        _note_repair(row, key, result, time_bounds)
    return _between(row.match_on[0], first, last)


def _note_repair(row: Attribute, key: str, result: Plan, bounds: Any) -> None:
    try:
        bounds(key, strict=True)
    except ValueError:
        result.repaired.append(row.tag)


def _period(
    day: Attribute, day_key: str, clock: Attribute, clock_key: str, result: Plan, strict: bool
) -> Condition:
    try:
        start, end = period_bounds(day_key.strip(" \0"), clock_key.strip(" \0"), strict=strict)
    except ValueError as error:
        raise BadKey(day.tag, str(error)) from None
    parts: list[Condition] = []
    day_column, clock_column = day.match_on[0], clock.match_on[0]
    if start is not None:
        parts.append(_moment(day_column, clock_column, start, Op.GT, Op.GE))
    if end is not None:
        parts.append(_moment(day_column, clock_column, end, Op.LT, Op.LE))
    return parts[0] if len(parts) == 1 else AllOf(tuple(parts))


def _moment(day_column: str, clock_column: str, bound: datetime, beyond: Op, up_to: Op) -> Condition:
    """The pair (date, time) beyond or at a bound; written so that an index on the date still serves."""
    whole_day = bound.time() == (time.min if beyond is Op.GT else time.max)
    if whole_day:
        return Compare(day_column, up_to, bound.date())
    same_day: Condition = AllOf(
        (Compare(day_column, Op.EQ, bound.date()), Compare(clock_column, up_to, bound.time()))
    )
    return AllOf(
        (
            Compare(day_column, up_to, bound.date()),
            AnyOf((Compare(day_column, beyond, bound.date()), same_day)),
        )
    )


# --- The archive's own tables ----------------------------------------------------------------------------

_PATIENT = (
    attribute(
        "PatientName",
        Level.PATIENT,
        "study.patient_name",
        Matching.NAME,
        match_on=(
            "study.patient_name_search",
            "study.patient_name_ideographic_search",
            "study.patient_name_phonetic_search",
        ),
    ),
    attribute("PatientID", Level.PATIENT, "study.patient_id", Matching.WILDCARD),
    attribute("IssuerOfPatientID", Level.PATIENT, "study.issuer_of_patient_id", Matching.WILDCARD),
    attribute("PatientBirthDate", Level.PATIENT, "study.patient_birth_date", Matching.DATE_TEXT),
    attribute("PatientSex", Level.PATIENT, "study.patient_sex", Matching.CODE),
)
_STUDY = (
    attribute("StudyInstanceUID", Level.STUDY, "study.study_instance_uid", Matching.UID),
    attribute("StudyDate", Level.STUDY, "study.study_date", Matching.DATE, combined_with="StudyTime"),
    attribute("StudyTime", Level.STUDY, "study.study_time", Matching.TIME),
    attribute("AccessionNumber", Level.STUDY, "study.accession_number", Matching.WILDCARD),
    attribute(
        "IssuerOfAccessionNumberSequence",
        Level.STUDY,
        "",
        Matching.SEQUENCE,
        items=(
            attribute(
                "LocalNamespaceEntityID", Level.STUDY, "study.issuer_of_accession_number", Matching.WILDCARD
            ),
        ),
    ),
    attribute("StudyID", Level.STUDY, "study.study_id", Matching.WILDCARD),
    attribute("StudyDescription", Level.STUDY, "study.study_description", Matching.WILDCARD),
    attribute(
        "ReferringPhysicianName",
        Level.STUDY,
        "study.referring_physician_name",
        Matching.NAME,
        match_on=("study.referring_physician_name_search",),
    ),
    attribute("ModalitiesInStudy", Level.STUDY, "study.modalities_in_study", Matching.ANY_OF),
    attribute("SOPClassesInStudy", Level.STUDY, "study.sop_classes_in_study", Matching.ANY_OF),
    attribute(
        "NumberOfStudyRelatedSeries", Level.STUDY, "study.number_of_study_related_series", Matching.NUMBER
    ),
    attribute(
        "NumberOfStudyRelatedInstances",
        Level.STUDY,
        "study.number_of_study_related_instances",
        Matching.NUMBER,
    ),
)
_SERIES = (
    attribute("SeriesInstanceUID", Level.SERIES, "series.series_instance_uid", Matching.UID),
    attribute("Modality", Level.SERIES, "series.modality", Matching.CODE),
    attribute("SeriesNumber", Level.SERIES, "series.series_number", Matching.NUMBER),
    attribute("SeriesDescription", Level.SERIES, "series.series_description", Matching.WILDCARD),
    attribute("SeriesDate", Level.SERIES, "series.series_date", Matching.DATE, combined_with="SeriesTime"),
    attribute("SeriesTime", Level.SERIES, "series.series_time", Matching.TIME),
    attribute("BodyPartExamined", Level.SERIES, "series.body_part_examined", Matching.CODE),
    attribute("Laterality", Level.SERIES, "series.laterality", Matching.CODE),
    attribute("ProtocolName", Level.SERIES, "series.protocol_name", Matching.WILDCARD),
    attribute("StationName", Level.SERIES, "series.station_name", Matching.WILDCARD),
    attribute("InstitutionName", Level.SERIES, "series.institution_name", Matching.WILDCARD),
    attribute("Manufacturer", Level.SERIES, "series.manufacturer", Matching.WILDCARD),
    attribute("ManufacturerModelName", Level.SERIES, "series.manufacturer_model_name", Matching.WILDCARD),
    attribute("PerformingPhysicianName", Level.SERIES, "series.performing_physician_name"),
    attribute(
        "PerformedProcedureStepStartDate",
        Level.SERIES,
        "series.performed_procedure_step_start_date",
        Matching.DATE,
        combined_with="PerformedProcedureStepStartTime",
    ),
    attribute(
        "PerformedProcedureStepStartTime",
        Level.SERIES,
        "series.performed_procedure_step_start_time",
        Matching.TIME,
    ),
    attribute(
        "PerformedProcedureStepID", Level.SERIES, "series.performed_procedure_step_id", Matching.WILDCARD
    ),
    attribute(
        "RequestAttributesSequence",
        Level.SERIES,
        "",
        Matching.SEQUENCE,
        items=(
            attribute(
                "ScheduledProcedureStepID",
                Level.SERIES,
                "series.scheduled_procedure_step_id",
                Matching.WILDCARD,
            ),
            attribute(
                "RequestedProcedureID", Level.SERIES, "series.requested_procedure_id", Matching.WILDCARD
            ),
        ),
    ),
    attribute("FrameOfReferenceUID", Level.SERIES, "series.frame_of_reference_uid", Matching.UID),
    attribute(
        "NumberOfSeriesRelatedInstances",
        Level.SERIES,
        "series.number_of_series_related_instances",
        Matching.NUMBER,
    ),
)
_IMAGE = (
    attribute("SOPInstanceUID", Level.IMAGE, "instance.sop_instance_uid", Matching.UID),
    attribute("SOPClassUID", Level.IMAGE, "instance.sop_class_uid", Matching.UID),
    attribute("AvailableTransferSyntaxUID", Level.IMAGE, "instance.transfer_syntax_uid", Matching.UID),
    attribute("InstanceNumber", Level.IMAGE, "instance.instance_number", Matching.NUMBER),
    attribute(
        "ContentDate", Level.IMAGE, "instance.content_date", Matching.DATE, combined_with="ContentTime"
    ),
    attribute("ContentTime", Level.IMAGE, "instance.content_time", Matching.TIME),
    attribute("Rows", Level.IMAGE, "instance.rows", Matching.NUMBER),
    attribute("Columns", Level.IMAGE, "instance.columns", Matching.NUMBER),
    attribute("BitsAllocated", Level.IMAGE, "instance.bits_allocated", Matching.NUMBER),
    attribute("NumberOfFrames", Level.IMAGE, "instance.number_of_frames", Matching.NUMBER),
)

TABLES: Mapping[Level, Table] = {
    Level.PATIENT: table(*_PATIENT),
    Level.STUDY: table(*_PATIENT, *_STUDY),
    Level.SERIES: table(*_PATIENT, *_STUDY, *_SERIES),
    Level.IMAGE: table(*_PATIENT, *_STUDY, *_SERIES, *_IMAGE),
}
"""What may be asked at each level, levels above included. Columns are `study.x`, `series.x`, `instance.x`;
whatever a table lacks may still stand in the row's `attributes` (DICOM JSON) and be returned from there."""

PATHS: Mapping[Level, Mapping[str, str]] = {
    Level.STUDY: {"study": ""},
    Level.SERIES: {"study": "study__", "series": ""},
    Level.IMAGE: {"study": "series__study__", "series": "series__", "instance": ""},
}
"""Lookup prefixes for `as_q` on a queryset of Study, Series or Instance."""


def dicom_text(value: Any) -> str | list[str]:
    """A column's value as DICOM text: "20260310", "101500.250000", "" for None; a list for an array."""
    match value:
        case None:
            return ""
        case datetime():
            return value.strftime("%Y%m%d%H%M%S.%f")
        case date():
            return f"{value.year:04d}{value.month:02d}{value.day:02d}"
        case time():
            return value.strftime("%H%M%S.%f" if value.microsecond else "%H%M%S")
        case list() | tuple():
            return [str(part) for part in value]
    return str(value)
