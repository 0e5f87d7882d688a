"""What the department is made of: stations, the procedure catalogue, practitioners, authorities. Edited here."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from common.desk import DeskAdmin
from ris.models import AssigningAuthority, Practitioner, ProcedureDefinition, Station
from ris.services import authorities, catalogue


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
    list_display = ("code", "name", "modality", "minutes", "step_count")
    list_filter = ("modality",)
    search_fields = ("code", "name")
    exclude = ("temporary",)
    empty_hint = "Add the exams that can be ordered; or load them with site.toml."

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
