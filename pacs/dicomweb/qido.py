"""QIDO-RS: searches for studies, series and instances (PS3.18 10.6)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.db import OperationalError, connection, transaction
from django.db.models import F, Model, QuerySet
from django.http import HttpResponse, QueryDict
from pydicom.datadict import dictionary_VR, tag_for_keyword
from rest_framework.exceptions import APIException, ParseError
from rest_framework.request import Request

from pacs import access, overlay
from pacs.dicomweb.base import DicomwebView, NotAcceptable, json_response
from pacs.dicomweb.negotiation import takes_json
from pacs.matching import PATHS, TABLES, Attribute, BadKey, Keys, Level, as_q, dicom_text, plan
from pacs.models import Instance, Series, Study

MAX_RESULTS = {Level.STUDY: 1_000, Level.SERIES: 5_000, Level.IMAGE: 10_000}
"""Rows of one answer; more are fetched by `offset`."""
STATEMENT_SECONDS = 5
_MULTIPLE = frozenset((0x00080061, 0x00080062))


class TooBroad(APIException):
    """503: the search did not end in time."""

    status_code = 503
    default_detail = (
        f"The search took longer than {STATEMENT_SECONDS} s. Narrow it, for example by a date range."
    )


@dataclass(slots=True)
class Search:
    """A query string, read."""

    keys: dict[int, Any] = field(default_factory=dict)
    include: set[int] = field(default_factory=set)
    include_all: bool = False
    limit: int | None = None
    offset: int = 0
    fuzzy: bool = False
    unknown: list[str] = field(default_factory=list)


def read_query(params: QueryDict) -> Search:
    """Read the parameters of a search. Raises ParseError (400) for a number that is none."""
    search = Search()
    for name, values in params.lists():
        if name == "includefield":
            for value in values:
                for entry in value.split(","):
                    _include(search, entry.strip())
        elif name in ("limit", "offset"):
            try:
                setattr(search, name, max(0, int(values[-1])))
            except ValueError:
                raise ParseError(f"{name} is no number.") from None
        elif name == "fuzzymatching":
            search.fuzzy = values[-1].lower() == "true"
        elif name != "accept":
            _key(search, name, values)
    return search


def _include(search: Search, entry: str) -> None:
    if entry.lower() == "all":
        search.include_all = True
        return
    path = _path(entry)
    if path:
        search.include.add(path[0])
    elif entry:
        search.unknown.append("includefield")


def _key(search: Search, name: str, values: list[str]) -> None:
    path = _path(name)
    if not path:
        search.unknown.append("attribute")
        return
    vr = dictionary_VR(path[-1]) if len(path) == 1 else ""
    text = "\\".join(values)
    if vr == "UI" or path[-1] in _MULTIPLE:
        text = text.replace(",", "\\")
    keys = search.keys
    for tag in path[:-1]:
        items = keys.setdefault(tag, [{}])
        if isinstance(items, str):
            search.unknown.append("attribute")
            return
        keys = items[0]
    keys[path[-1]] = text


def _path(name: str) -> list[int]:
    """Tags of an attribute path such as `00400275.00400009` or by keywords; [] when one is not known."""
    path = []
    for part in name.split("."):
        tag = tag_for_keyword(part)
        if tag is None and len(part) == 8:
            try:
                tag = int(part, 16)
                dictionary_VR(tag)
            except (ValueError, KeyError):
                tag = None
        if tag is None:
            return []
        path.append(int(tag))
    return path


# --- Rows as DICOM JSON ----------------------------------------------------------------------------------

_DEFAULTS: Mapping[Level, frozenset[int]] = {
    level: frozenset(tag_for_keyword(keyword) or 0 for keyword in keywords.split())
    for level, keywords in {
        Level.STUDY: "StudyDate StudyTime AccessionNumber ModalitiesInStudy ReferringPhysicianName"
        " StudyDescription PatientName PatientID IssuerOfPatientID PatientBirthDate PatientSex StudyInstanceUID"
        " StudyID NumberOfStudyRelatedSeries NumberOfStudyRelatedInstances",
        Level.SERIES: "Modality SeriesDate SeriesTime SeriesDescription BodyPartExamined SeriesInstanceUID"
        " SeriesNumber NumberOfSeriesRelatedInstances PerformedProcedureStepStartDate"
        " PerformedProcedureStepStartTime RequestAttributesSequence",
        Level.IMAGE: "SOPClassUID SOPInstanceUID AvailableTransferSyntaxUID InstanceNumber Rows Columns"
        " BitsAllocated NumberOfFrames",
    }.items()
}
"""What is returned without being asked for (PS3.18 Tables 10.6.3-3 to -5)."""

_MODELS: Mapping[Level, str] = {Level.STUDY: "study", Level.SERIES: "series", Level.IMAGE: "instance"}


def _value(vr: str, value: Any) -> dict[str, Any] | None:
    """One attribute as DICOM JSON; None for an empty one, which is left out (viewers stumble over those)."""
    if value is None or value == "" or value == []:
        return None
    values = value if isinstance(value, list) else [value]
    if vr == "PN":
        return {"vr": vr, "Value": [_name(text) for text in values]}
    if vr in ("IS", "US", "UL", "SS", "SL"):
        return {"vr": vr, "Value": [int(number) for number in values]}
    return {"vr": vr, "Value": [dicom_text(part) for part in values]}


def _name(text: str) -> dict[str, str]:
    groups = zip(("Alphabetic", "Ideographic", "Phonetic"), text.split("="), strict=False)
    return {name: group for name, group in groups if group}


def describe(
    level: Level, rows: Mapping[str, Model], search: Search, levels: Iterable[Level]
) -> dict[str, Any]:
    """A result: the attributes of these levels that are returned always, were asked for, or were matched."""
    document: dict[str, Any] = {}
    wanted = search.include | set(search.keys)
    for one in levels:
        row = rows[_MODELS[one]]
        held = getattr(row, "attributes", {})
        wanted |= _DEFAULTS[one]
        for key, element in held.items():
            if search.include_all or int(key, 16) in wanted:
                document[key] = element
    for attribute in TABLES[level].values():
        if attribute.column and (search.include_all or attribute.tag in wanted):
            element = _column(attribute, rows)
            if element:
                document[f"{attribute.tag:08X}"] = element
    study = rows["study"]
    assert isinstance(study, Study)
    for tag, element in overlay.json_of(overlay.attributes_of(study)).items():
        if search.include_all or int(tag, 16) in wanted:
            document[tag] = element
    _request(document, rows, wanted)
    return {tag: element for tag, element in document.items() if element.get("Value")}


def _column(attribute: Attribute, rows: Mapping[str, Model]) -> dict[str, Any] | None:
    model, _, name = attribute.column.partition(".")
    row = rows.get(model)
    return _value(attribute.vr, getattr(row, name)) if row is not None else None


def _request(document: dict[str, Any], rows: Mapping[str, Model], wanted: set[int]) -> None:
    """The sequences that our columns stand for, where the rows do not hold them whole."""
    series, study = rows.get("series"), rows["study"]
    if isinstance(series, Series) and 0x00400275 in wanted and "00400275" not in document:
        item = {
            "00400009": _value("SH", series.scheduled_procedure_step_id),
            "00401001": _value("SH", series.requested_procedure_id),
        }
        filled = {tag: element for tag, element in item.items() if element}
        if filled:
            document["00400275"] = {"vr": "SQ", "Value": [filled]}
    if isinstance(study, Study) and 0x00080051 in wanted and study.issuer_of_accession_number:
        issuer = {"00400031": {"vr": "UT", "Value": [study.issuer_of_accession_number]}}
        document["00080051"] = {"vr": "SQ", "Value": [issuer]}


def retrieve_url(request: Request, path: str) -> dict[str, Any]:
    """Retrieve URL (0008,1190), which must be absolute."""
    root = getattr(settings, "ORDERLY_PUBLIC_URL", "")
    return {"vr": "UR", "Value": [root + path if root else request.build_absolute_uri(path)]}


# --- Views -----------------------------------------------------------------------------------------------


class _SearchView(DicomwebView):
    level: Level

    def rows(self, request: Request, study: str | None, series: str | None) -> QuerySet[Any]:
        """All rows of the level below the path that the caller may see, in their order."""
        raise NotImplementedError

    def result(self, request: Request, row: Any, search: Search, nested: str | None) -> dict[str, Any]:
        """One row as DICOM JSON."""
        raise NotImplementedError

    def get(self, request: Request, study: str | None = None, series: str | None = None) -> HttpResponse:
        """Search. 200 with a list that may be empty; Warning 299 when rows or keys were left out."""
        if not takes_json(self.ranges(request)):
            raise NotAcceptable("Searches are answered as application/dicom+json.")
        search = read_query(request.query_params)
        keys: Keys = search.keys
        try:
            planned = plan(TABLES[self.level], keys, fuzzy=search.fuzzy)
        except BadKey as error:
            raise ParseError(str(error)) from None
        cap = MAX_RESULTS[self.level]
        limit = cap if search.limit is None else min(search.limit, cap)
        rows = self.rows(request, study, series).filter(as_q(planned.where, PATHS[self.level]))
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(f"SET LOCAL statement_timeout = {STATEMENT_SECONDS * 1000}")
                found = list(rows[search.offset : search.offset + limit + 1])
                cursor.execute("SET LOCAL statement_timeout = DEFAULT")
        except OperationalError:
            raise TooBroad from None
        shown = found[:limit]
        studies = list(dict.fromkeys(self.study_of(row).pk for row in shown))
        self.audit(request, "search", studies, found=len(shown))
        documents = [dict(sorted(self.result(request, row, search, study).items())) for row in shown]
        response = json_response(request, documents)
        warnings = self._warnings(planned.unsupported, search, len(found) > limit)
        if warnings:
            response["Warning"] = ", ".join(warnings)
        return response

    @staticmethod
    def study_of(row: Any) -> Study:
        """The study that a row belongs to."""
        raise NotImplementedError

    def _warnings(self, unsupported: list[int], search: Search, more: bool) -> list[str]:
        texts = []
        if more and search.limit is None:
            texts.append("There are additional results that can be requested.")
        if unsupported or search.unknown:
            tags = " ".join(f"{tag:08X}" for tag in unsupported[:20])
            texts.append(f"Parameters that are not matched were ignored. {tags}".strip())
        return [f'299 orderly "{text}"' for text in texts]


class SearchStudies(_SearchView):
    """GET /studies; the newest come first."""

    level = Level.STUDY

    def rows(self, request: Request, study: str | None, series: str | None) -> QuerySet[Study]:
        """The caller's studies."""
        return (
            access.scope(request.user)
            .select_related("overlay")
            .order_by(
                F("study_date").desc(nulls_last=True),
                F("study_time").desc(nulls_last=True),
                "-received_at",
                "id",
            )
        )

    def result(self, request: Request, row: Study, search: Search, nested: str | None) -> dict[str, Any]:
        """A study."""
        document = describe(self.level, {"study": row}, search, [Level.STUDY])
        document["00080056"] = {"vr": "CS", "Value": ["ONLINE"]}
        document["00081190"] = retrieve_url(request, f"/dicomweb/studies/{row.study_instance_uid}")
        return document

    @staticmethod
    def study_of(row: Study) -> Study:
        """Itself."""
        return row


class SearchSeries(_SearchView):
    """GET /series and /studies/{study}/series."""

    level = Level.SERIES

    def rows(self, request: Request, study: str | None, series: str | None) -> QuerySet[Series]:
        """Series with something in them, of the caller's studies."""
        studies = access.scope(request.user)
        if study is not None:
            studies = studies.filter(study_instance_uid=study)
        return (
            Series.objects.filter(study__in=studies, number_of_series_related_instances__gt=0)
            .select_related("study__overlay")
            .order_by("study_id", "series_number", "id")
        )

    def result(self, request: Request, row: Series, search: Search, nested: str | None) -> dict[str, Any]:
        """A series; with its study's attributes where the path names none."""
        levels = [Level.SERIES] if nested else [Level.STUDY, Level.SERIES]
        rows = {"study": row.study, "series": row}
        document = describe(self.level, rows, search, levels)
        document["0020000D"] = {"vr": "UI", "Value": [row.study.study_instance_uid]}
        document["00080056"] = {"vr": "CS", "Value": ["ONLINE"]}
        path = f"/dicomweb/studies/{row.study.study_instance_uid}/series/{row.series_instance_uid}"
        document["00081190"] = retrieve_url(request, path)
        return document

    @staticmethod
    def study_of(row: Series) -> Study:
        """Its study."""
        return row.study


class SearchInstances(_SearchView):
    """GET /instances, /studies/{study}/instances and /studies/{study}/series/{series}/instances."""

    level = Level.IMAGE

    def rows(self, request: Request, study: str | None, series: str | None) -> QuerySet[Instance]:
        """Objects that are not hidden, of the caller's studies."""
        studies = access.scope(request.user)
        if study is not None:
            studies = studies.filter(study_instance_uid=study)
        rows = Instance.objects.filter(series__study__in=studies, hidden=False)
        if series is not None:
            rows = rows.filter(series__series_instance_uid=series)
        return rows.select_related("series__study__overlay").order_by("series_id", "instance_number", "id")

    def result(self, request: Request, row: Instance, search: Search, nested: str | None) -> dict[str, Any]:
        """An object; with the attributes of the levels that the path does not name."""
        series, study = row.series, row.series.study
        levels = [Level.IMAGE] if nested else [Level.STUDY, Level.SERIES, Level.IMAGE]
        document = describe(self.level, {"study": study, "series": series, "instance": row}, search, levels)
        document["0020000D"] = {"vr": "UI", "Value": [study.study_instance_uid]}
        document["0020000E"] = {"vr": "UI", "Value": [series.series_instance_uid]}
        document["00080056"] = {"vr": "CS", "Value": ["ONLINE"]}
        path = (
            f"/dicomweb/studies/{study.study_instance_uid}/series/{series.series_instance_uid}"
            f"/instances/{row.sop_instance_uid}"
        )
        document["00081190"] = retrieve_url(request, path)
        return document

    @staticmethod
    def study_of(row: Instance) -> Study:
        """The study of its series."""
        return row.series.study
