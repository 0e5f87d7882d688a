"""C-FIND Study Root and Patient Root (PS3.4 annex C.4.1): one SQL query, answers encoded row by row as they come.

Keys and their matching are those of pacs/matching.py. Levels above the one asked for may be queried too
(relational queries are always served). Columns carry the overlay, and so do all other attributes here.
"""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.db import OperationalError, connection, transaction
from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element

from common import audit
from pacs import overlay
from pacs.dimse import status
from pacs.dimse.registry import (
    EXPLICIT_VR_BIG_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    Outcome,
    Refused,
    Registry,
    Request,
)
from pacs.matching import TABLES, Attribute, BadKey, Level, Matching, Plan, as_sql, dicom_text, keys_of, plan

log = logging.getLogger(__name__)

PATIENT_ROOT = "1.2.840.10008.5.1.4.1.2.1.1"
STUDY_ROOT = "1.2.840.10008.5.1.4.1.2.2.1"

LIMIT = 100_000  #: answers of one query; a peer's own may be set as `find_limit`
STATEMENT_SECONDS = 10
FETCHED_AT_ONCE = 500

_CHARACTER_SET, _LEVEL, _RETRIEVE_AE, _AVAILABILITY = 0x00080005, 0x00080052, 0x00080054, 0x00080056
_TIMEZONE = 0x00080201
_OWN = frozenset((_CHARACTER_SET, _LEVEL, _RETRIEVE_AE, _AVAILABILITY))
_UNIQUE = {
    Level.PATIENT: 0x00100020,
    Level.STUDY: 0x0020000D,
    Level.SERIES: 0x0020000E,
    Level.IMAGE: 0x00080018,
}
#: Computed at patient level: tag → SQL.
PATIENT_COUNTS = {
    0x00201200: "count(*) OVER patient",
    0x00201202: "sum(study.number_of_study_related_series) OVER patient",
    0x00201204: "sum(study.number_of_study_related_instances) OVER patient",
}
_FROM = {
    Level.PATIENT: "pacs_study study",
    Level.STUDY: "pacs_study study",
    Level.SERIES: "pacs_study study JOIN pacs_series series ON series.study_id = study.id",
    Level.IMAGE: "pacs_study study JOIN pacs_series series ON series.study_id = study.id"
    " JOIN pacs_instance instance ON instance.series_id = series.id",
}
_WITH_ATTRIBUTES = {
    Level.PATIENT: (),
    Level.STUDY: ("study",),
    Level.SERIES: ("study", "series"),
    Level.IMAGE: ("study", "series", "instance"),
}
_LONG = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"))
_NUMBERS = {"US": "H", "UL": "I", "SS": "h", "SL": "i"}


def register(registry: Registry) -> None:
    """Serve C-FIND of both information models; relational queries are agreed to."""
    for uid in (STUDY_ROOT, PATIENT_ROOT):
        registry.add(uid, "C-FIND", find, service="find", application_information=b"\1\0\0\0\0")


def find(request: Request) -> Iterator[tuple[int, bytes] | Outcome]:
    """Answer one query. Raises Refused: A900 for a key that cannot be matched, A700 when it takes too long."""
    question = read(request)
    pending = status.PENDING_UNSUPPORTED_KEYS if question.plan.unsupported else status.PENDING
    options = request.assoc.peer.options if request.assoc.peer else {}
    limit = int(options.get("find_limit", LIMIT))
    encoder = Encoder(request.context.transfer_syntax, question)
    count, studies = 0, dict[str, None]()
    try:
        with closing(_rows(question, limit + 1)) as rows:
            for row in rows:
                if count >= limit:
                    yield Outcome(status.RESPONSE_LIMIT_REACHED, comment=f"more than {limit} matches")
                    return
                count += 1
                if len(studies) < 100:
                    studies[str(row[0])] = None
                yield pending, encoder.answer(row)
    except OperationalError as error:
        if "statement timeout" in str(error):
            raise Refused(status.OUT_OF_RESOURCES, "query takes too long; narrow it") from None
        raise Refused(status.OUT_OF_RESOURCES, "database not available; ask again") from None
    finally:
        _audit(request, question.level, count, list(studies))


@dataclass(slots=True)
class Question:
    """A query, read: its level, its plan, and which columns answer it."""

    level: Level
    plan: Plan
    character_set: str
    columns: list[str] = field(default_factory=list)  #: SQL expressions behind the study's id
    returned: list[tuple[int, Attribute | None]] = field(default_factory=list)  #: in tag order

    def column(self, expression: str) -> int:
        """The index in a row of this column, which is selected from now on."""
        if expression not in self.columns:
            self.columns.append(expression)
        return self.columns.index(expression) + 1


def read(request: Request) -> Question:
    """The question that an identifier asks. Raises Refused."""
    ds = request.dataset
    level = _level(
        str(ds.get("QueryRetrieveLevel", "") or "").strip().upper(), request.context.abstract_syntax
    )
    named = ds.get("SpecificCharacterSet")
    keys = {tag: key for tag, key in keys_of(ds).items() if tag not in _OWN}
    counts = [tag for tag in PATIENT_COUNTS if tag in keys and level is Level.PATIENT]
    try:
        planned = plan(
            TABLES[level], {tag: key for tag, key in keys.items() if tag not in counts}, combined=False
        )
    except BadKey as bad:
        raise Refused(status.DATA_SET_MISMATCH, bad.comment, OffendingElement=[bad.tag]) from None
    question = Question(level, planned, named if isinstance(named, str) else "")
    wanted = {*keys, _UNIQUE[level]} - {_TIMEZONE}
    question.returned = [(tag, TABLES[level].get(tag)) for tag in sorted(wanted)]
    return question


def _level(name: str, sop_class: str) -> Level:
    levels = (
        ["STUDY", "SERIES", "IMAGE"] if sop_class == STUDY_ROOT else ["PATIENT", "STUDY", "SERIES", "IMAGE"]
    )
    if name not in levels:
        raise Refused(
            status.DATA_SET_MISMATCH,
            f"Query/Retrieve Level is one of {', '.join(levels)}",
            OffendingElement=[_LEVEL],
        )
    return Level(name)


# -- rows


def _rows(question: Question, limit: int) -> Generator[Sequence[Any], None, None]:
    """The matching rows: the study's id, then the question's columns. A slow reader holds the cursor open."""
    statement, params = _statement(question, limit)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL statement_timeout = {STATEMENT_SECONDS * 1000}")
        with connection.chunked_cursor() as rows:
            rows.execute(statement, params)
            while chunk := rows.fetchmany(FETCHED_AT_ONCE):
                yield from chunk


def _statement(question: Question, limit: int) -> tuple[str, list[Any]]:
    level = question.level
    where, params = as_sql(question.plan.where)
    hidden = "NOT study.hidden" + (" AND NOT instance.hidden" if level is Level.IMAGE else "")
    distinct, window, order = "", "", ""
    if level is Level.PATIENT:
        distinct = "DISTINCT ON (study.patient_id, study.issuer_of_patient_id) "
        window = " WINDOW patient AS (PARTITION BY study.patient_id, study.issuer_of_patient_id)"
        order = " ORDER BY study.patient_id, study.issuer_of_patient_id, study.received_at DESC"
    columns = ", ".join(["study.id", *question.columns])
    return (
        f"SELECT {distinct}{columns} FROM {_FROM[level]} WHERE {hidden} AND {where}{window}{order} LIMIT {limit}",
        params,
    )


# -- answers


class Encoder:
    """Turns rows into identifiers in one transfer syntax: the requested attributes, in tag order, no others."""

    def __init__(self, transfer_syntax: str, question: Question) -> None:
        self._implicit = transfer_syntax == IMPLICIT_VR_LITTLE_ENDIAN
        self._order = ">" if transfer_syntax == EXPLICIT_VR_BIG_ENDIAN else "<"
        self._character_set = question.character_set
        self._question = question
        self._level = question.level.value.encode()
        # (tag, VR, index of the column; None: to be looked for in attributes and overlay)
        self._plain: list[tuple[int, str, int | None]] = []
        for tag, attribute in question.returned:
            if tag in PATIENT_COUNTS and question.level is Level.PATIENT:
                self._plain.append((tag, "IS", question.column(PATIENT_COUNTS[tag])))
            elif attribute is not None and attribute.kind is not Matching.SEQUENCE and attribute.column:
                self._plain.append((tag, attribute.vr, question.column(attribute.column)))
            else:
                self._plain.append((tag, _vr(tag), None))
        others = [tag for tag, _, index in self._plain if index is None]
        self._attributes: list[int] = []
        self._overlay: int | None = None
        self._issuer = self._steps = (0, 0)
        if others:
            self._select_others(question, others)

    def _select_others(self, question: Question, others: list[int]) -> None:
        models = _WITH_ATTRIBUTES[question.level]
        self._attributes = [question.column(f"{model}.attributes") for model in reversed(models)]
        self._overlay = question.column(
            "(SELECT overlay.attributes FROM pacs_overlay overlay WHERE overlay.study_id = study.id)"
        )
        if 0x00080051 in others and question.level is not Level.PATIENT:
            self._issuer = (question.column("study.issuer_of_accession_number"), 0)
        if 0x00400275 in others and "series" in models:
            self._steps = (
                question.column("series.scheduled_procedure_step_id"),
                question.column("series.requested_procedure_id"),
            )

    def answer(self, row: Sequence[Any]) -> bytes:
        """One identifier."""
        texts: list[tuple[int, str, str | None, DataElement | None, Any]] = []
        others = self._others(row) if self._overlay is not None else {}
        plain_ascii = True
        for tag, vr, index in self._plain:
            if index is None:
                element = others.get(tag)
                texts.append((tag, vr, None, element, None))
                plain_ascii = plain_ascii and (element is None or _is_ascii(element))
            elif vr in _NUMBERS:
                texts.append((tag, vr, None, None, row[index]))
            else:
                text = dicom_text(row[index])
                text = "\\".join(text) if isinstance(text, list) else text
                plain_ascii = plain_ascii and text.isascii()
                texts.append((tag, vr, text, None, None))
        name, codec = ("", "ascii") if plain_ascii else self._character_set_for(texts)
        parts = {_LEVEL: self._element(_LEVEL, "CS", self._level), _RETRIEVE_AE: self._retrieve_ae()}
        if name:
            parts[_CHARACTER_SET] = self._element(_CHARACTER_SET, "CS", name.encode())
        for tag, vr, plain, element, number in texts:
            if plain is not None:
                parts[tag] = self._element(tag, vr, plain.encode(codec))
            elif element is not None:
                parts[tag] = self._written(element, codec)
            else:
                raw = b"" if number is None else struct.pack(self._order + _NUMBERS[vr], number)
                parts[tag] = self._element(tag, vr, raw)
        return b"".join(parts[tag] for tag in sorted(parts))

    def _retrieve_ae(self) -> bytes:
        return self._element(_RETRIEVE_AE, "AE", settings.ORDERLY_AE_TITLE.encode())

    def _character_set_for(
        self, texts: list[tuple[int, str, str | None, DataElement | None, Any]]
    ) -> tuple[str, str]:
        """The query's character set, where all of the answer fits it; else Unicode."""
        codec = python_encoding.get(self._character_set, "")
        if codec and not any(element is not None for _, _, _, element, _ in texts):
            try:
                for _, _, text, _, _ in texts:
                    (text or "").encode(codec)
                return self._character_set, codec
            except (UnicodeEncodeError, LookupError):
                pass
        return "ISO_IR 192", "utf8"

    def _element(self, tag: int, vr: str, raw: bytes) -> bytes:
        if len(raw) % 2:
            raw += b"\0" if vr == "UI" else b" "
        group, number = tag >> 16, tag & 0xFFFF
        if self._implicit:
            return struct.pack("<HHI", group, number, len(raw)) + raw
        if vr in _LONG:
            return struct.pack(self._order + "HH2sHI", group, number, vr.encode(), 0, len(raw)) + raw
        return struct.pack(self._order + "HH2sH", group, number, vr.encode(), len(raw)) + raw

    def _written(self, element: DataElement, codec: str) -> bytes:
        buffer = DicomBytesIO()
        buffer.is_little_endian = self._order == "<"
        buffer.is_implicit_VR = self._implicit
        write_data_element(buffer, element, [codec])
        return buffer.getvalue()

    def _others(self, row: Sequence[Any]) -> dict[int, DataElement]:
        """Attributes that have no column: from the rows' DICOM JSON, the overlay's values over them."""
        found: dict[int, DataElement] = {}
        wanted = {tag for tag, _, index in self._plain if index is None}
        for index in self._attributes:
            for key, document in _loaded(row[index]).items():
                if int(key, 16) in wanted:
                    found.setdefault(int(key, 16), Dataset.from_json({key: document})[int(key, 16)])
        self._column_items(row, wanted, found)
        for element in overlay.dataset_of(_loaded(row[self._overlay or 0])):
            if element.tag in wanted:
                found[int(element.tag)] = element
        return found

    def _column_items(self, row: Sequence[Any], wanted: set[int], found: dict[int, DataElement]) -> None:
        """Sequences that our columns stand for."""
        if self._issuer[0] and row[self._issuer[0]] and 0x00080051 in wanted:
            item = Dataset()
            item.LocalNamespaceEntityID = row[self._issuer[0]]
            found[0x00080051] = DataElement(0x00080051, "SQ", [item])
        step, procedure = (row[index] if index else "" for index in self._steps)
        if (step or procedure) and 0x00400275 not in found:
            item = Dataset()
            item.ScheduledProcedureStepID, item.RequestedProcedureID = step, procedure
            found[0x00400275] = DataElement(0x00400275, "SQ", [item])


def _loaded(value: Any) -> Mapping[str, Any]:
    held = json.loads(value) if isinstance(value, str | bytes) else value
    return held or {}


def _is_ascii(element: DataElement) -> bool:
    if element.VR == "SQ":
        return all(_is_ascii(inner) for item in element.value for inner in item)
    return str(element.value).isascii()


def _vr(tag: int) -> str:
    try:
        return dictionary_VR(tag).split(" or ")[0]
    except KeyError:
        return "UN"


def _audit(request: Request, level: Level, count: int, studies: list[str]) -> None:
    try:
        audit.record(
            f"ae:{request.assoc.calling_ae}",
            "search",
            "study",
            objects=studies,
            detail={"service": "C-FIND", "level": level.value, "answers": count},
            address=request.assoc.address,
        )
    except Exception as error:
        log.error("a query of %s could not be audited: %s", request.assoc.id, type(error).__name__)
        raise Refused(status.OUT_OF_RESOURCES, "the query cannot be audited") from None
