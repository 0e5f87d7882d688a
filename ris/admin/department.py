"""What the department is made of: stations, the procedure catalogue, practitioners, authorities. Edited here."""

from typing import Any

from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import URLPattern

from common.desk import DeskAdmin, desk_url
from ris.deeds import carry_out
from ris.errors import BadValue
from ris.models import AssigningAuthority, Practitioner, ProcedureDefinition, Station
from ris.services import authorities, catalogue, catalogue_file

MOST_SHOWN = 500
"""Changed procedures that a preview shows; their number is always said."""


def _counts(result: catalogue_file.Preview) -> str:
    said = [f"{result.count(kind)} {words}" for kind, words in _KINDS.items()]
    return ", ".join([*said, f"{len(result.absent)} not in the file (they stay)"])


_KINDS = {"new": "new", "changed": "changed", "same": "as they were"}


def _text_of(request: HttpRequest) -> str:
    """The file that was chosen, else the text of the form; empty when there is neither. Raises BadValue."""
    chosen = request.FILES.get("file")
    if chosen is None:
        return request.POST.get("text", "")
    if chosen.size is None or chosen.size > 2 * catalogue_file.LARGEST:
        raise BadValue("The file is too large for a catalogue.", attribute="file")
    return catalogue_file.decode(chosen.read())


@admin.register(Station)
class StationAdmin(DeskAdmin):
    """Scanners as the schedule knows them."""

    writable = deletable = True
    list_display = ("name", "ae_title", "modality", "room")
    list_filter = ("modality",)
    search_fields = ("name", "ae_title", "room")
    exclude = ("temporary",)
    empty_hint = "Add the scanners, so that steps can be planned on them; or load them with site.toml."

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        catalogue.forget()


@admin.register(ProcedureDefinition)
class CatalogueAdmin(DeskAdmin):
    """What an order code means here, and which steps it has."""

    called = ("procedure", "procedure catalogue")
    writable = deletable = True
    list_display = ("code", "name", "modality", "minutes", "step_count", "where")
    list_filter = ("modality",)
    search_fields = ("code", "name")
    exclude = ("temporary",)
    list_before_template = "admin/ris/catalogue_before.html"
    empty_hint = "Add the exams that can be ordered; or load them from a CSV file or with site.toml."

    def own_urls(self) -> list[URLPattern]:
        return [
            self.door("file/", self.file, "file", action="add"),
            self.door("file/dump/", self.dump, "dump", action="view"),
        ]

    def file(self, request: HttpRequest) -> HttpResponse:
        """A CSV file: first what it would change and what is wrong with it, then taken over."""
        text, result = "", None
        try:
            text = _text_of(request)
        except BadValue as refusal:
            messages.error(request, refusal.text)
        if text and "apply" in request.POST:
            done = carry_out(
                request,
                lambda unit: catalogue_file.take_over(text, unit),
                what="procedure catalogue",
                action="import",
                done="The catalogue is as the file says.",
            )
            if done is not None:
                return redirect(desk_url("ris.proceduredefinition"))
        if text:
            result = catalogue_file.preview(text)
        return self.page(
            request,
            "admin/ris/catalogue_file.html",
            title="Catalogue from a file",
            text=text,
            result=result,
            counts=_counts(result) if result else "",
            shown=[d for d in result.differences if d.kind != "same"][:MOST_SHOWN] if result else [],
            columns=catalogue_file.COLUMNS,
            back=desk_url("ris.proceduredefinition"),
        )

    def dump(self, request: HttpRequest) -> HttpResponse:
        """The catalogue as a CSV file."""
        response = HttpResponse(catalogue_file.dump(), content_type="text/csv; charset=utf-8")
        response["Content-Disposition"] = 'attachment; filename="procedures.csv"'
        return response

    @admin.display(description="Stations")
    def where(self, row: ProcedureDefinition) -> str:
        return ", ".join(row.stations) or "all of its modality"

    @admin.display(description="Steps")
    def step_count(self, row: ProcedureDefinition) -> int:
        return len(row.steps) or 1

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        catalogue.forget()


@admin.register(Practitioner)
class PractitionerAdmin(DeskAdmin):
    """Physicians and technologists, and the accounts that belong to them."""

    writable = True
    list_display = ("name", "identifier", "issuer", "user")
    search_fields = ("person_name", "identifier")
    empty_hint = "A referrer's account sees the reports of orders that carry the number written here."

    @admin.display(description="Name", ordering="person_name")
    def name(self, row: Practitioner) -> str:
        return str(row)


@admin.register(AssigningAuthority)
class AuthorityAdmin(DeskAdmin):
    """Who gives patient identifiers."""

    writable = True
    list_display = ("name", "namespace", "universal_id", "universal_id_type")
    search_fields = ("namespace", "universal_id")
    empty_hint = "They come with the first message that names one."

    @admin.display(description="Authority")
    def name(self, row: AssigningAuthority) -> str:
        return str(row)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        authorities.forget()
