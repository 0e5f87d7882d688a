"""What clients accept: FHIR JSON under its various names, with `fhirVersion` and `charset` parameters or without."""

from collections.abc import Mapping
from typing import Any

import orjson
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import FormParser
from rest_framework.renderers import BaseRenderer

from integration.fhir.api.outcome import NotAcceptable

_JSON = frozenset({"application/fhir+json", "application/json", "text/json", "application/json+fhir", "json"})
_ANY = frozenset({"*/*", "application/*", "text/*", "text/html"})


class FhirJson(BaseRenderer):
    """A resource as JSON."""

    media_type = "application/fhir+json"
    format = "json"
    charset = "utf-8"

    def render(
        self, data: Any, accepted_media_type: str | None = None, renderer_context: Any = None
    ) -> bytes:
        """The bytes of a resource; nothing for an empty answer."""
        return b"" if data is None else orjson.dumps(data)


class Form(FormParser):
    """The body of POST _search."""


class Negotiation(BaseContentNegotiation):
    """Chooses JSON unless the client wants something else alone. Raises NotAcceptable (406)."""

    def select_parser(self, request: Any, parsers: Any) -> Any:
        """The form of a search; None (415) for any other body."""
        kind = (request.content_type or "").partition(";")[0].strip().lower()
        return next((p for p in parsers if p.media_type == kind), None)

    def select_renderer(self, request: Any, renderers: Any, format_suffix: str | None = None) -> Any:
        """The one renderer, if it is acceptable in the version that this door speaks."""
        version = getattr(request, "_fhir_version", "4.0")
        wanted = request.query_params.get("_format") or request.headers.get("Accept", "*/*")
        for one in wanted.split(","):
            kind, parameters = _parsed(one)
            if kind in _JSON | _ANY and parameters.get("fhirversion", version).startswith(version):
                return renderers[0], renderers[0].media_type
        raise NotAcceptable(f"Answers are application/fhir+json of FHIR {version}.")


def _parsed(text: str) -> tuple[str, Mapping[str, str]]:
    """A media range and its parameters. A `+` in a query string that arrived as a space is one again."""
    kind, *rest = (part.strip().lower() for part in text.split(";"))
    pairs = (part.partition("=") for part in rest)
    return kind.replace(" ", "+"), {name.strip(): value.strip(' "') for name, _, value in pairs}
