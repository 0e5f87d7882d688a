"""The views: metadata, read, search. Every access to patients' data leaves an audit row before the answer."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.db.models import QuerySet
from django.http import Http404
from rest_framework.authentication import SessionAuthentication
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from common import audit
from common.roles import BearerAuthentication, Role, RolePermission
from integration.fhir import loading
from integration.fhir.api import outcome
from integration.fhir.api.capability import statement
from integration.fhir.api.negotiation import FhirJson, Form, Negotiation
from integration.fhir.loading import Surroundings
from integration.fhir.resources.elements import Resource
from integration.fhir.search import (
    TYPES,
    BadSearch,
    ResourceType,
    condition_of,
    ids,
    read_cursor,
    write_cursor,
)

_COUNT, _COUNT_MOST = 20, 100
_SUMMARIES = ("false", "true", "count")


@dataclass(frozen=True)
class Version:
    """A version of FHIR that is served: the name in the path, and what `fhirVersion` says."""

    name: str
    fhir_version: str

    @property
    def short(self) -> str:
        """Major and minor, as media types carry it."""
        return self.fhir_version.rpartition(".")[0]


R4 = Version("r4", "4.0.1")


class FhirView(APIView):
    """What all views of this door have in common."""

    authentication_classes = [BearerAuthentication, SessionAuthentication]
    permission_classes = [RolePermission]
    renderer_classes = [FhirJson]
    parser_classes = [Form]
    content_negotiation_class = Negotiation
    http_method_names = ["get", "head"]
    roles: frozenset[str] = frozenset()
    version: Version = R4

    def initialize_request(self, request: Any, *args: Any, **kwargs: Any) -> Request:
        """The request, which knows the version that it came for."""
        made = super().initialize_request(request, *args, **kwargs)
        made._fhir_version = self.version.short  # type: ignore[attr-defined]
        return made

    def get_exception_handler(self) -> Any:
        """Everything that goes wrong becomes an OperationOutcome."""
        return outcome.handle

    def base(self) -> str:
        """The address of this version's root, as the client reached it."""
        return self.request.build_absolute_uri(f"/fhir/{self.version.name}")


class Metadata(FhirView):
    """GET /metadata: the CapabilityStatement."""

    roles = frozenset(Role.values)

    def get(self, request: Request) -> Response:
        """What this server can do; tells nothing of any patient."""
        return Response(statement(self.base(), self.version.fhir_version, loading.surroundings()))


class ResourceView(FhirView):
    """Something of one resource type."""

    roles = frozenset(
        {Role.CLERK, Role.TECHNOLOGIST, Role.RADIOLOGIST, Role.REFERRER, Role.ADMINISTRATOR}
    )  # a referrer sees what the access policy lets them see

    def type_named(self, kind: str) -> ResourceType:
        """The type. Raises NotFound for one that we do not serve."""
        if kind not in TYPES:
            raise Http404
        return TYPES[kind]

    def audited(self, action: str, kind: ResourceType, resources: list[Resource], **detail: Any) -> None:
        """One audit row for what is about to be shown."""
        audit.record_request(
            self.request,
            action,
            f"fhir:{kind.name}",
            patients=dict.fromkeys(p for r in resources if (p := kind.patient_of(r))),
            objects=[r["id"] for r in resources],
            detail={"count": len(resources), **detail},
        )


class Read(ResourceView):
    """GET /Type/id."""

    def get(self, request: Request, kind: str, pk: str) -> Response:
        """The resource as it is now. 404 when it does not exist or is not for this reader."""
        served = self.type_named(kind)
        around = loading.surroundings()
        if served.rows is None:
            found = [r for r in served.build((), around) if r["id"] == pk]
        else:
            found = served.build(served.rows(request.user).filter(pk__in=ids(pk)), around)
        self.audited("read", served, found)
        if not found:
            raise Http404
        return Response(found[0])


class Search(ResourceView):
    """GET /Type?… and POST /Type/_search: a Bundle of type searchset, newest first, in pages."""

    def get(self, request: Request, kind: str) -> Response:
        """Search by the query string."""
        return self.found(kind, [(k, v) for k, values in request.query_params.lists() for v in values])

    def found(self, kind: str, query: list[tuple[str, str]]) -> Response:
        """The bundle for a query."""
        served = self.type_named(kind)
        around = loading.surroundings()
        control = Control.read(query)
        try:
            condition, unknown = condition_of(served, query, around)
            if unknown and "handling=strict" in self.request.headers.get("Prefer", "").replace(" ", ""):
                raise BadSearch(f"Unknown parameter: {', '.join(sorted(set(unknown)))}.")
            used = [(k, v) for k, v in query if k not in unknown]
            if served.rows is None:
                wanted = {v for k, v in query if k == "_id"}
                everything = [r for r in served.build((), around) if not wanted or r["id"] in wanted]
                page = Page(everything, len(everything))
            else:
                page = self.page(served, served.rows(self.request.user).filter(condition), control, around)
        except BadSearch as error:
            raise outcome.Invalid(str(error)) from None
        names = sorted({k for k, _ in used})
        self.audited("search", served, page.resources, parameters=names)
        return Response(self.bundle(served, used, page, control))

    def page(
        self, served: ResourceType, rows: QuerySet[Any], control: "Control", around: Surroundings
    ) -> "Page":
        """One page by keyset: rows are ordered by id, newest first, so nothing is skipped while others arrive."""
        total = rows.count() if control.total else None
        if control.summary == "count" or control.count == 0:
            return Page([], total if total is not None else rows.count())
        wanted = rows.order_by("-pk")
        if control.cursor:
            wanted = wanted.filter(pk__lt=read_cursor(control.cursor))
        found = list(wanted[: control.count + 1])
        after = write_cursor(found[control.count - 1].pk) if len(found) > control.count else ""
        options = {"instances": False} if control.summary == "true" and served.name == "ImagingStudy" else {}
        resources = served.build(found[: control.count], around, **options)
        for resource in resources if options else ():
            resource["meta"] = {"tag": [_SUBSETTED]}
        return Page(resources, total, after)

    def bundle(
        self, served: ResourceType, used: Iterable[tuple[str, str]], page: "Page", control: "Control"
    ) -> Resource:
        """The searchset; `self` echoes what was used, `next` leads on."""
        address = f"{self.base()}/{served.name}"
        plain = [(k, v) for k, v in used if k not in ("_cursor", "_format")]
        here = [*plain, ("_cursor", control.cursor)] if control.cursor else plain
        links = [{"relation": "self", "url": _with_query(address, here)}]
        if page.after:
            onward = [(k, v) for k, v in plain if k != "_count"]
            onward += [("_count", str(control.count)), ("_cursor", page.after)]
            links.append({"relation": "next", "url": _with_query(address, onward)})
        result: Resource = {"resourceType": "Bundle", "type": "searchset", "link": links}
        if page.total is not None:
            result["total"] = page.total
        if page.resources:
            result["entry"] = [
                {"fullUrl": f"{address}/{r['id']}", "resource": r, "search": {"mode": "match"}}
                for r in page.resources
            ]
        return result


class SearchByForm(Search):
    """POST /Type/_search."""

    http_method_names = ["post"]

    def post(self, request: Request, kind: str) -> Response:
        """Search by a form, and by what the query string adds to it."""
        form: Any = request.data
        asked = [
            (k, v) for said in (request.query_params, form) for k, values in said.lists() for v in values
        ]
        return self.found(kind, asked)


class Unknown(FhirView):
    """Any other address below the root."""

    roles = frozenset(Role.values)

    def get(self, request: Request) -> Response:
        """There is nothing here."""
        raise Http404


@dataclass(frozen=True)
class Control:
    """The parameters that say how results are shown."""

    count: int = _COUNT
    cursor: str = ""
    summary: str = "false"
    total: bool = True

    @classmethod
    def read(cls, query: Iterable[tuple[str, str]]) -> "Control":
        """From a query. Raises Invalid; a `_count` above our most is taken as that."""
        said = dict(query)
        text = said.get("_count", str(_COUNT))
        if not (text.isascii() and text.isdigit()):
            raise outcome.Invalid("_count must be a whole number.")
        summary = said.get("_summary", "false")
        if summary not in _SUMMARIES:
            raise outcome.Invalid(f"_summary must be one of {', '.join(_SUMMARIES)}.")
        return cls(
            min(int(text), _COUNT_MOST), said.get("_cursor", ""), summary, said.get("_total") != "none"
        )


@dataclass(frozen=True)
class Page:
    """What one page shows, how many there are in all (None: not counted), and where the next begins."""

    resources: list[Resource]
    total: int | None
    after: str = ""


_SUBSETTED = {"system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue", "code": "SUBSETTED"}


def _with_query(address: str, query: Iterable[tuple[str, str]]) -> str:
    pairs = list(query)
    return f"{address}?{urlencode(pairs)}" if pairs else address
