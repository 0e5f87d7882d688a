"""Finding messages: by what the columns say, by words of their text, and, within bounds, by their raw bytes.

Words are extracted after commit by the sweeper (`index_new`) into a table of their own. A list is read newest
first, a page after a known id, so that the millionth message costs no more than the first.
"""

import logging
import re
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import product
from typing import Any, cast
from uuid import UUID

from django.contrib.postgres.search import SearchVectorField
from django.db import Error, OperationalError, connection, transaction
from django.db.models import F, Lookup, Q, QuerySet

from common.clock import now, to_site
from common.counting import counted, estimate
from integration.hl7v2.errors import Refused
from integration.hl7v2.reading import Message as Parsed
from integration.hl7v2.reading import Segment, parse
from integration.models import Message, MessageText
from ris.models import Patient, PatientIdentifier

logger = logging.getLogger(__name__)

PAGE = 50
LIMIT_MS = 2000
RAW_WINDOW = timedelta(days=31)
_COUNTED = 1000
_RARE = 20_000  # messages that may be gathered and sorted for a page of them
_RAW_STEP = 2000  # messages looked through between two looks at the clock
_WORDS_MOST = 600  # of one message
_TEXT_MOST = 4000  # characters of one value that are looked at
_BATCH = 500


# ------------------------------------------------------------------------------------------------- words


def index_new(limit: int = _BATCH, seconds: float = 0.5) -> int:
    """Extract the words of messages that have none yet, oldest first; returns how many. Bounded in time."""
    deadline, done = time.monotonic() + seconds, 0
    while True:
        found = _unindexed(limit)
        made = [MessageText(message_id=pk, words=_vector(pk, bytes(raw))) for pk, raw in found]
        _insert(made)
        done += len(made)
        if len(found) < limit or time.monotonic() > deadline:
            return done


def _vector(pk: int, raw: bytes) -> str:
    """Its words; none for a message on which this fails, so that it does not keep all others from being found."""
    try:
        return vector_of(raw)
    except Exception as error:
        logger.error("message %s has no words: %s", pk, type(error).__name__)
        return ""


# Ids are taken before COMMIT, so the newest message with words is no border: some before it may have come since.
_BORDER = "(SELECT coalesce(max(message_id), 0) - 20000 FROM integration_messagetext)"
_WITHOUT = f"""
FROM integration_message m
WHERE m.id > {_BORDER}
AND NOT EXISTS (SELECT 1 FROM integration_messagetext t WHERE t.message_id = m.id AND t.message_id > {_BORDER})
"""


def _unindexed(limit: int) -> list[tuple[int, Any]]:
    """The oldest messages without words."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT m.id, m.raw {_WITHOUT} ORDER BY m.id LIMIT %s", [limit])
        return list(cursor.fetchall())


def waiting() -> int:
    """How many messages have no words yet, counted up to 10,000."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM (SELECT 1 {_WITHOUT} LIMIT 10000) s")
        return int(cursor.fetchone()[0])


def _insert(rows: list[MessageText]) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        for row in rows:  # a message may be gone by now, or another sweeper was first
            cursor.execute(
                "INSERT INTO integration_messagetext (message_id, words) "
                "SELECT id, %s::tsvector FROM integration_message WHERE id = %s ON CONFLICT DO NOTHING",
                [row.words, row.message_id],
            )


# Where words of the first two kinds stand: (segment, field) → kind; all other values are of the third.
_KINDS: dict[tuple[str, int], str] = {
    **{("PID", n): "A" for n in (2, 3, 4, 5, 9, 18, 19)},
    ("MRG", 1): "A",
    ("MRG", 4): "A",
    ("MRG", 7): "A",
    **{(s, n): "B" for s in ("ORC", "OBR") for n in (2, 3)},
    ("ORC", 4): "B",
    **{("OBR", n): "B" for n in (18, 19, 20)},
    **{("IPC", n): "B" for n in (1, 2, 3, 4)},
    ("ZDS", 1): "B",
    ("SCH", 1): "B",
    ("SCH", 2): "B",
    ("SCH", 26): "B",
    ("SCH", 27): "B",
    ("MSH", 10): "B",
    ("TXA", 12): "B",
    ("PV1", 19): "B",
}
_HEADER = frozenset({3, 4, 5, 6, 9, 10})
_WORD = re.compile(r"\w+")
_PARTED = re.compile(r"[\s,;]+")


def words_of(raw: bytes) -> dict[str, str]:
    """Word → kind (A: patient, B: numbers of orders and messages, C: the rest) of a message; none of no message."""
    try:
        message = parse(raw)
    except Refused:
        text = raw[:_TEXT_MOST].decode("utf-8", "replace")
        return dict.fromkeys(list(_pieces(text))[:_WORDS_MOST], "C")
    found: dict[str, str] = {}
    for segment, number, text in _values(message):
        kind = _KINDS.get((segment, number), "C")
        for word in _pieces(text):
            if len(found) >= _WORDS_MOST and word not in found:
                continue
            found[word] = min(kind, found.get(word, kind))
    return found


def _values(message: Parsed) -> Iterator[tuple[str, int, str]]:
    """The values of a message that may be searched for: identities first, then the rest, no embedded files."""
    late: list[tuple[str, int, str]] = []
    for segment in message.segments:
        for number in range(1, len(segment.fields)):
            if not segment.field(number) or segment.name == "MSH" and number not in _HEADER:
                continue
            if segment.name == "OBX" and number == 5 and segment.value(2) in ("ED", "RP"):
                continue
            for text in _texts(segment, number):
                one = (segment.name, number, text)
                if (segment.name, number) in _KINDS:
                    yield one
                else:
                    late.append(one)
    yield from late


def _texts(segment: Segment, number: int) -> Iterator[str]:
    if segment.name == "OBX" and number == 5 or segment.name == "NTE":
        yield segment.text(number)[:_TEXT_MOST]
        return
    if segment.name == "MSH" and number == 9:
        yield "^".join(segment.components(9)[:2])
    for repetition in range(1, min(len(segment.repetitions(number)), 20) + 1):
        for component in range(1, len(segment.components(number, repetition)) + 1):
            yield from (t[:_TEXT_MOST] for t in segment.subcomponents(number, component, repetition))


def _pieces(text: str) -> Iterator[str]:
    """The words of a text as they are compared: folded; an identifier whole (`a26-1042`) and in its parts."""
    folded = fold(text)
    for whole in _PARTED.split(folded):
        whole = whole.strip(".:()[]{}\"'!?<>")
        if 1 < len(whole) <= 100:
            yield whole
        parts = _WORD.findall(whole)
        if len(parts) > 1:
            yield from (p for p in parts if 1 < len(p) <= 100)


def fold(text: str) -> str:
    """A text without case and accents."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in plain if not unicodedata.combining(c) and c != "\x00")


def vector_of(raw: bytes) -> str:
    """The words of a message in PostgreSQL's form of a tsvector, each with its kind as weight."""
    return " ".join(f"{_quoted(word)}:1{kind}" for word, kind in words_of(raw).items())


def _quoted(word: str) -> str:
    return "'" + word.replace("\\", "\\\\").replace("'", "''") + "'"


def query_of(term: str, kind: str = "") -> str:
    """A term in the form of a tsquery: all its words, each as a beginning; of one kind only if wanted."""
    words = [w.strip(".:()[]{}\"'!?<>") for w in _PARTED.split(fold(term).replace("^", " "))]
    return " & ".join(f"{_quoted(w)}:*{kind}" for w in words if w)


# ------------------------------------------------------------------------------------------------ asking


@dataclass(frozen=True)
class Wanted:
    """What somebody looks for. The first five may name a person: they never become part of an address."""

    term: str = ""
    patient: str = ""
    accession: str = ""
    control_id: str = ""
    raw: str = ""
    kind: str = ""
    """`ORM`, `ORM^O01` or `A08`."""
    source: int | None = None
    state: str = ""
    """A state, `open` (needs a person), or empty."""
    since: datetime | None = None
    until: datetime | None = None
    before: int | None = None
    """The page of messages older than this id."""
    after: int | None = None
    """The page of messages newer than this id."""

    @property
    def secret(self) -> dict[str, str]:
        """The terms that stay out of addresses."""
        pairs = ((n, getattr(self, n)) for n in ("term", "patient", "accession", "control_id", "raw"))
        return {name: value for name, value in pairs if value}

    @property
    def narrowed(self) -> bool:
        """Whether anything is asked for at all."""
        return replace(self, before=None, after=None) != Wanted()


@dataclass
class Found:
    """A page of messages, newest first; whether there are older and newer ones; how many there are about."""

    rows: list[Message] = field(default_factory=list)
    older: bool = False
    newer: bool = False
    count: int = 0
    exact: bool = True
    note: str = ""
    """Why the answer may not be whole, or nothing."""

    @property
    def first(self) -> int | None:
        """The newest id here."""
        return self.rows[0].pk if self.rows else None

    @property
    def last(self) -> int | None:
        """The oldest id here."""
        return self.rows[-1].pk if self.rows else None


UNSETTLED = Q(state__in=Message.OPEN_STATES, solved_at__isnull=True)
NEEDING = ("refused", "rejected", "fault", "parked")
OPEN = Q(state__in=NEEDING, solved_at__isnull=True)
"""What needs a person; a message that only waits for its turn does not."""
_TYPE = re.compile(r"(?P<kind>[A-Z]{3})(?:\^(?P<event>[A-Z]\d{0,2})?)?\Z|(?P<alone>[A-Z]\d\d)\Z")


def find(wanted: Wanted, size: int = PAGE) -> Found:
    """A page of messages. Bounded to two seconds; what took longer says so and shows what it has."""
    wanted = replace(
        wanted, **cast(Any, {name: text.replace("\x00", "").strip() for name, text in wanted.secret.items()})
    )
    try:
        with transaction.atomic():
            _bound(LIMIT_MS)
            return _raw(wanted, size) if wanted.raw else _page(wanted, size)
    except OperationalError as error:
        if not _is_timeout(error):
            raise
    note = "This took longer than two seconds. Name a source, a state or a shorter time."
    return Found(note=note, exact=False)


def _bound(milliseconds: float) -> None:
    _set("statement_timeout", str(max(1, int(milliseconds))))


def _set(name: str, value: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config(%s, %s, true)", [name, value])


def _is_timeout(error: Error) -> bool:
    return getattr(error.__cause__, "sqlstate", "") == "57014"


def _page(wanted: Wanted, size: int) -> Found:
    upwards = wanted.after is not None
    deadline = time.monotonic() + LIMIT_MS / 1000
    ids: set[int] = set()
    for branch in _branches(wanted):
        rows = _narrowed(branch, wanted)
        ids.update(_first(rows, size + 1, upwards, wanted, deadline))
    _bound((deadline - time.monotonic()) * 1000)
    ordered = sorted(ids, reverse=not upwards)
    more, ordered = len(ordered) > size, sorted(ordered[:size], reverse=True)
    shown = (
        Message.objects.filter(pk__in=ordered).select_related("source").defer("raw", "ack").order_by("-id")
    )
    found = Found(rows=list(shown))
    found.older = bool(ordered) if upwards else more
    found.newer = more if upwards else wanted.before is not None
    found.count, found.exact = _count(wanted, found)
    return found


_TURNS_MS = (120, 500, LIMIT_MS)
_RARE_TURNS_MS = (250, 500, LIMIT_MS)
"""Of what is rare, gathering is bounded by its number: it gets time also on a busy machine."""


def _first(rows: QuerySet[Message], most: int, upwards: bool, wanted: Wanted, deadline: float) -> list[int]:
    """The newest ids of a query (or, upwards, the oldest).

    There are two ways. Rows are walked by id until enough of them fit: good for what is common. Or all that fit are
    gathered from an index and then sorted: good for what is rare. The planner takes for evenly spread what stands
    together, and knows little of a word's beginnings, so it often chooses wrongly. Here each way gets a little time
    in turn, the likely one first. Raises OperationalError when the deadline has come.
    """
    walk = rows.order_by("id" if upwards else "-id")
    key = F("id") + 0  # no index has it: the planner must gather
    gather = rows.order_by(key.asc() if upwards else key.desc())
    rare = bool(wanted.control_id) or bool(wanted.secret) and estimate(rows) < _RARE
    ways = (gather, walk, gather) if rare else (walk, gather, walk)
    for way, turn in zip(ways, _RARE_TURNS_MS if rare else _TURNS_MS, strict=True):
        left = (deadline - time.monotonic()) * 1000
        try:
            with transaction.atomic():
                _bound(min(turn, left))
                if way is walk and wanted.secret:
                    _set("enable_bitmapscan", "off")  # it would gather
                return list(way.values_list("id", flat=True)[:most])
        except OperationalError as error:
            if not _is_timeout(error) or turn >= left or turn == _TURNS_MS[-1]:
                raise
    raise AssertionError("the last turn returns or raises")


def _branches(wanted: Wanted) -> list[QuerySet[Message]]:
    """The ways in which the terms may be meant: queries that an index answers each, and that are joined here."""
    ways = product(_of_term(wanted.term), _of_patient(wanted.patient), _of_accession(wanted.accession))
    return [Message.objects.filter(*(q for q in way if q is not None)) for way in ways]


def _of_term(text: str) -> list[Q | None]:
    text = text.strip()
    if not text:
        return [None]
    ways: list[Q | None] = [Q(control_id=text), Q(accession_numbers__contains=[text])]
    if _TYPE.match(text.upper()):
        ways.append(_of_type(text))
    if query := query_of(text):
        ways.append(Q(text__words__fits=query))
    return ways


def _of_patient(text: str) -> list[Q | None]:
    """Messages about a patient: a row id (with all that were merged into it), an identifier, or a name."""
    text = text.strip()
    if not text:
        return [None]
    try:
        return [Q(patient_ids__overlap=with_merged(UUID(text)))]
    except ValueError:
        pass
    known = PatientIdentifier.objects.filter(value=text).values_list("patient_id", flat=True)[:20]
    ids = [merged for pk in known for merged in with_merged(pk)]
    ways: list[Q | None] = [Q(patient_ids__overlap=ids)] if ids else []
    if query := query_of(text, "A"):
        ways.append(Q(text__words__fits=query))
    return ways or [Q(pk__in=[])]


def about_patient(pk: UUID) -> list[QuerySet[Message]]:
    """All messages about a patient: those that touched the row, and those that only name one of its identifiers."""
    ids = with_merged(pk)
    values = PatientIdentifier.objects.filter(patient__in=ids).values_list("value", flat=True)
    query = " | ".join(f"{_quoted(fold(value))}:A" for value in values if value.strip())
    ways = [Q(patient_ids__overlap=ids)] + ([Q(text__words__fits=query)] if query else [])
    return [Message.objects.filter(way).order_by().values("pk") for way in ways]


def about_accession(number: str) -> list[QuerySet[Message]]:
    """All messages about an order with this accession number, also those that were not applied."""
    ways = (Q(accession_numbers__contains=[number]), Q(text__words__fits=f"{_quoted(fold(number))}:B"))
    return [Message.objects.filter(way).order_by().values("pk") for way in ways]


def _of_accession(text: str) -> list[Q | None]:
    text = text.strip()
    if not text:
        return [None]
    ways: list[Q | None] = [Q(accession_numbers__contains=[text])]
    if query := query_of(text, "B"):
        ways.append(Q(text__words__fits=query))
    return ways


def _narrowed(rows: QuerySet[Message], wanted: Wanted) -> QuerySet[Message]:
    if wanted.control_id:
        rows = rows.filter(control_id__startswith=wanted.control_id)
    if wanted.kind:
        rows = rows.filter(_of_type(wanted.kind))
    if wanted.source is not None:
        rows = rows.filter(source_id=wanted.source)
    if wanted.state == "open":
        rows = rows.filter(OPEN)
    elif wanted.state:
        rows = rows.filter(state=wanted.state)
    rows = _in_time(rows, wanted.since, wanted.until)
    if wanted.before is not None:
        rows = rows.filter(id__lt=wanted.before)
    if wanted.after is not None:
        rows = rows.filter(id__gt=wanted.after)
    return rows


def _of_type(text: str) -> Q:
    match = _TYPE.match(text.strip().upper())
    if not match:
        return Q(message_type=text.strip().upper())
    if match["alone"]:
        kinds = ("ADT", "SIU", "MDM", "ORM", "OMG", "OMI", "ORU", "ORR", "ORG", "ORI")
        return Q(message_type__in=kinds, trigger_event=match["alone"])
    event = match["event"] or ""
    if len(event) == 3:
        return Q(message_type=match["kind"], trigger_event=event)
    return (
        Q(message_type=match["kind"], trigger_event__startswith=event)
        if event
        else Q(message_type=match["kind"])
    )


def with_merged(pk: UUID) -> list[UUID]:
    """A patient's row, those it was merged into and those merged into any of them."""
    found = {pk}
    row = Patient.objects.filter(pk=pk).first()
    while row is not None and row.merged_into_id and row.merged_into_id not in found:
        found.add(row.merged_into_id)
        row = row.merged_into
    fresh = set(found)
    while fresh:
        fresh = set(Patient.objects.filter(merged_into__in=fresh).values_list("pk", flat=True)) - found
        found |= fresh
    return sorted(found)


@SearchVectorField.register_lookup
class Fits(Lookup):  # type: ignore[type-arg]
    """`words__fits=query`: the words fit a tsquery, which is taken as it is."""

    lookup_name = "fits"
    prepare_rhs = False

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, list[Any]]:
        left, parameters = self.process_lhs(compiler, connection)
        return f"{left} @@ %s::tsquery", [*parameters, self.rhs]


def _in_time(rows: QuerySet[Message], since: datetime | None, until: datetime | None) -> QuerySet[Message]:
    """Rows of a time; ids grow with it but for those who waited, which gives lists by id their bounds."""
    slack = timedelta(minutes=5)
    if since is not None:
        rows = rows.filter(received_at__gte=since)
        if (first := _id_near(since - slack)) is not None:
            rows = rows.filter(id__gte=first)
    if until is not None:
        rows = rows.filter(received_at__lt=until)
        if (beyond := _id_near(until + slack)) is not None:
            rows = rows.filter(id__lt=beyond + 1)
    return rows


def _id_near(moment: datetime) -> int | None:
    return (
        Message.objects.filter(received_at__gte=moment)
        .order_by("received_at")
        .values_list("id", flat=True)
        .first()
    )


# --------------------------------------------------------------------------------------------- how many


def _count(wanted: Wanted, found: Found) -> tuple[int, bool]:
    """How many there are: counted while few, else as PostgreSQL estimates."""
    if wanted.before is None and wanted.after is None and not found.older:
        return len(found.rows), True
    everything = replace(wanted, before=None, after=None)
    rows = [_narrowed(branch, everything) for branch in _branches(everything)]
    about = max(estimate(one) for one in rows)
    if len(rows) == 1 and about < _COUNTED * 5:  # few, or nobody has counted them lately
        number = counted(rows[0], _COUNTED)
        if number < _COUNTED:
            return number, True
        return max(number, about), False
    return about, False


# ------------------------------------------------------------------------------------------------ raw text


class NeedsWindow(ValueError):
    """Raw text is searched within a time only; the text says which."""


def _raw(wanted: Wanted, size: int) -> Found:
    """Messages whose bytes hold a text, newest first, looked through piece by piece until the time is up."""
    if wanted.since is None or (wanted.until or now()) - wanted.since > RAW_WINDOW:
        raise NeedsWindow(f"Say from when to when raw text is searched: at most {RAW_WINDOW.days} days.")
    needles = sorted({wanted.raw.encode(c) for c in ("utf-8", "cp1252") if _fits(wanted.raw, c)})
    rest = replace(wanted, raw="")
    if rest.term or rest.patient or rest.accession:
        raise NeedsWindow("Search raw text by itself, or with a source, state, type and time.")
    base = _narrowed(Message.objects.all(), rest)
    deadline = time.monotonic() + LIMIT_MS / 1000
    ids: list[int] = []
    border: int | None = None
    whole = False
    try:
        while time.monotonic() < deadline and len(ids) <= size:
            with transaction.atomic():
                _bound((deadline - time.monotonic()) * 1000)
                step = base if border is None else base.filter(id__lt=border)
                piece = list(step.order_by("-id").values_list("id", flat=True)[:_RAW_STEP])
                if piece:
                    ids += _holding(piece, needles)
                    border = piece[-1]
            if len(piece) < _RAW_STEP:
                whole = True
                break
    except OperationalError as error:
        if not _is_timeout(error):
            raise
    finally:
        _bound(LIMIT_MS)
    rows = (
        Message.objects.filter(pk__in=ids[:size]).select_related("source").defer("raw", "ack").order_by("-id")
    )
    found = Found(rows=list(rows), older=len(ids) > size, newer=wanted.before is not None)
    found.count, found.exact = len(ids), whole
    if not whole and len(ids) <= size:
        found.note = _stopped(border)
    return found


def _stopped(border: int | None) -> str:
    reached = (
        Message.objects.filter(pk=border).values_list("received_at", flat=True).first() if border else None
    )
    if reached is None:
        return "Stopped after two seconds; name a source or a shorter time."
    return f"Stopped after two seconds: searched back to {to_site(reached):%Y-%m-%d %H:%M}. Narrow the time to go on."


def _fits(text: str, codec: str) -> bool:
    try:
        return bool(text.encode(codec))
    except UnicodeEncodeError:
        return False


def _holding(ids: list[int], needles: list[bytes]) -> list[int]:
    tests = " OR ".join(["position(%s in raw) > 0"] * len(needles))
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT id FROM integration_message WHERE id = ANY(%s) AND ({tests}) ORDER BY id DESC",
            [ids, *needles],
        )
        return [pk for (pk,) in cursor.fetchall()]
