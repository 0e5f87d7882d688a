"""The desk for images: studies, series and corrections, objects set aside, and who may speak DICOM with us."""

from collections.abc import Callable, Iterable
from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.urls import URLPattern

from common import audit
from common.desk import DefaultFilter, DeskAdmin, chip
from common.templatetags.orderly import moment, pn, short, size
from pacs import aside, routing
from pacs.models import ApplicationEntity, Forwarding, Overlay, RoutingRule, SetAside, Study

Beside = Callable[[Study], Iterable[tuple[str, str]]]
beside: list[Beside] = []
"""What upper rooms know of a study: functions study → (words, address), shown on its page."""

remarks: list[Beside] = []
"""Upper rooms' word on a study's state: functions study → (tone, words), shown as chips on its page."""

owners: list[Callable[[list[Study]], list[Any]]] = []
"""Upper rooms' answer to whose studies these are, for the audit trail: studies → patient ids."""


@admin.register(Study)
class StudyAdmin(DeskAdmin):
    """Studies in the archive, as they are answered."""

    patient_data = "study"
    detail_template = "admin/pacs/study.html"
    list_display = (
        "received",
        "patient",
        "patient_id",
        "what",
        "accession_number",
        "modalities",
        "images",
        "calling_ae",
        "settled",
    )
    list_display_links = ("received", "patient")
    list_filter = ("study_date", "calling_ae")
    search_fields = ("patient_id",)
    search_help_text = "Name, patient ID, accession or UID"
    ordering = ("-received_at",)
    empty_hint = "Send images to us by C-STORE or STOW-RS; each study appears here within seconds."

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).filter(hidden=False)

    def find(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        if not term:
            return queryset
        name = Q()
        for word in term.split():
            name &= Q(patient_name__icontains=word)
        numbers = Q(patient_id=term) | Q(accession_number=term) | Q(study_instance_uid=term)
        return queryset.filter(name | numbers)

    def patients_of(self, rows: Iterable[Any]) -> list[Any]:
        rows = list(rows)
        return [pk for owner in owners for pk in owner(rows)]

    @admin.display(description="Arrived", ordering="received_at")
    def received(self, row: Study) -> str:
        return moment(row.received_at)

    @admin.display(description="Patient", ordering="patient_name_search")
    def patient(self, row: Study) -> str:
        return pn(row.patient_name)

    @admin.display(description="Study")
    def what(self, row: Study) -> str:
        return row.study_description or "–"

    @admin.display(description="Modality")
    def modalities(self, row: Study) -> str:
        return ", ".join(row.modalities_in_study)

    @admin.display(description="Images", ordering="number_of_study_related_instances")
    def images(self, row: Study) -> int:
        return row.number_of_study_related_instances

    @admin.display(description="State", ordering="settled_at")
    def settled(self, row: Study) -> str:
        return chip("ready", "settled") if row.settled_at else chip("STARTED", "growing")

    def detail(self, request: HttpRequest, row: Study) -> dict[str, Any]:
        overlay = Overlay.objects.filter(study=row).first()
        return {
            "title": "Study",
            "series": row.series.order_by("series_number", "id"),
            "corrections": sorted(overlay.attributes.items()) if overlay else [],
            "overlay": overlay,
            "links": [link for tell in beside for link in tell(row)],
            "remarks": [remark for tell in remarks for remark in tell(row)],
        }


class AsideFilter(DefaultFilter):
    """Objects that wait, unless asked otherwise."""

    title = "state"
    parameter_name = "state"
    default = SetAside.State.OPEN

    def options(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        return SetAside.State.choices

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset if self.value() == "all" else queryset.filter(state=self.value())


@admin.register(SetAside)
class SetAsideAdmin(DeskAdmin):
    """Objects that were taken and kept, but could not be indexed."""

    patient_data = "object set aside"
    detail_template = "admin/pacs/set_aside.html"
    list_display = ("received", "reason", "detail", "calling_ae", "amount", "uid", "state_chip")
    list_filter = (AsideFilter, "reason", "calling_ae")
    search_fields = ("sop_instance_uid", "study_instance_uid", "calling_ae")
    search_help_text = "UID or AE title"
    empty_hint = "Every object could be read. One that cannot be is kept, with its reason, and stands here."

    @admin.display(description="Received", ordering="received_at")
    def received(self, row: SetAside) -> str:
        return moment(row.received_at)

    @admin.display(description="Size", ordering="size")
    def amount(self, row: SetAside) -> str:
        return size(row.size)

    @admin.display(description="SOP Instance UID")
    def uid(self, row: SetAside) -> str:
        return short(row.sop_instance_uid, 32) or "–"

    @admin.display(description="State", ordering="state")
    def state_chip(self, row: SetAside) -> str:
        return chip(row.state, row.get_state_display())

    def detail(self, request: HttpRequest, row: SetAside) -> dict[str, Any]:
        return {"title": "Object set aside", "waits": row.state == SetAside.State.OPEN}

    def own_urls(self) -> list[URLPattern]:
        return [
            self.door("<uuid:pk>/again/", self.again, "again", post=True),
            self.door("<uuid:pk>/leave/", self.leave, "leave", post=True),
        ]

    def again(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """Try to index it again."""
        row = get_object_or_404(SetAside, pk=pk)
        why_not = aside.try_again(row)
        self.record(request, "index", [row])
        if why_not:
            messages.error(request, f"It still cannot be indexed: {why_not}")
        else:
            messages.success(request, "It is indexed now; its study is in the archive.")
        return redirect(self.url_of(row))

    def leave(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """Take it from the list; the file stays."""
        row = get_object_or_404(SetAside, pk=pk)
        aside.leave(row)
        self.record(request, "leave", [row])
        messages.success(request, "It is off the list; row and file stay.")
        return redirect(self.url_of(row))


@admin.register(ApplicationEntity)
class ApplicationEntityAdmin(DeskAdmin):
    """DICOM peers: who may call us and for what, and where we find them."""

    writable = deletable = True
    list_display = ("title", "host", "port", "may", "tls", "enabled", "description")
    list_filter = ("enabled", "tls")
    search_fields = ("title", "host", "description")
    exclude = ("temporary",)
    empty_hint = "An AE that is not listed may only C-ECHO. Add the scanners, or load them with site.toml."

    @admin.display(description="May ask for")
    def may(self, row: ApplicationEntity) -> str:
        return ", ".join(row.services)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        audit.record_request(request, "configure", "application entity", objects=[obj.pk])


@admin.register(RoutingRule)
class RoutingRuleAdmin(DeskAdmin):
    """Which arriving studies are sent on, and where to."""

    writable = deletable = True
    list_display = (
        "name",
        "destination",
        "modalities",
        "calling_aes",
        "description",
        "after_match",
        "enabled",
    )
    list_filter = ("enabled", "destination")
    search_fields = ("name", "description")
    empty_hint = "Without a rule nothing is sent on. A rule without conditions sends every study."

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        audit.record_request(request, "configure", "routing rule", objects=[obj.pk])


@admin.register(Forwarding)
class ForwardingAdmin(DeskAdmin):
    """Studies on their way to other nodes."""

    detail_template = "admin/pacs/forwarding.html"
    list_display = ("created", "destination", "uid", "arrived", "state_chip", "attempts", "detail_shown")
    list_filter = ("state", "rule")
    search_fields = ("study__study_instance_uid", "rule__name")
    search_help_text = "Study Instance UID or rule"
    empty_hint = "Nothing was sent on yet. Routing rules say what is."

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("rule__destination", "study")

    @admin.display(description="Since", ordering="created_at")
    def created(self, row: Forwarding) -> str:
        return moment(row.created_at)

    @admin.display(description="Destination")
    def destination(self, row: Forwarding) -> str:
        return row.rule.destination.title

    @admin.display(description="Study Instance UID")
    def uid(self, row: Forwarding) -> str:
        return short(row.study.study_instance_uid, 32)

    @admin.display(description="Arrived there")
    def arrived(self, row: Forwarding) -> str:
        return f"{len(row.sent)} of {row.study.number_of_study_related_instances}"

    @admin.display(description="State", ordering="state")
    def state_chip(self, row: Forwarding) -> str:
        return chip(row.state, row.get_state_display())

    @admin.display(description="Trouble")
    def detail_shown(self, row: Forwarding) -> str:
        return row.detail or "–"

    def detail(self, request: HttpRequest, row: Forwarding) -> dict[str, Any]:
        return {"title": "Study sent on", "waits": row.state != Forwarding.State.SENT}

    def own_urls(self) -> list[URLPattern]:
        return [self.door("<uuid:pk>/again/", self.again, "again", post=True)]

    def again(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """Send now what has not arrived."""
        row = get_object_or_404(Forwarding, pk=pk)
        routing.again(row)
        audit.record_request(request, "send", "study", objects=[row.study_id])
        messages.success(request, "It is sent again now.")
        return redirect(self.url_of(row))
