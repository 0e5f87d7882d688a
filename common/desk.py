"""The clerk's desk (Django admin): who enters, what its pages share. Read-only and audited unless said otherwise."""

from collections.abc import Callable, Iterable
from functools import update_wrapper
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.contrib.admin import SimpleListFilter
from django.contrib.admin.utils import unquote
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.views.decorators.http import require_POST
from unfold.admin import ModelAdmin
from unfold.sites import UnfoldAdminSite
from unfold.views import ChangeList

from common import audit, searches
from common.accounts import GRANTS
from common.roles import Role, has_role, require
from common.templatetags.orderly import tone

DESK_ROLES = frozenset({Role.CLERK, Role.TECHNOLOGIST, Role.RADIOLOGIST, Role.ANALYST, Role.ADMINISTRATOR})


class Desk(UnfoldAdminSite):
    """The admin site: open to the desk's roles, whatever Django's staff flag says; login is the one of all pages."""

    site_title = site_header = "Orderly"
    index_title = "Desk"
    enable_nav_sidebar = True

    def has_permission(self, request: HttpRequest) -> bool:
        return has_role(request.user, *DESK_ROLES)

    def admin_view(
        self, view: Callable[..., HttpResponse], cacheable: bool = False
    ) -> Callable[..., HttpResponse]:
        """As Django's, but there is one login page for all pages, and who has no desk gets 403, not a login page."""
        guarded = super().admin_view(view, cacheable)

        def entered(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            if not request.user.is_authenticated:
                return redirect_to_login(request.get_full_path())
            if not self.has_permission(request):
                raise PermissionDenied("Your role has no desk.")
            return guarded(request, *args, **kwargs)

        return update_wrapper(entered, view)

    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The login page of all pages; who is logged in goes on to the desk, or learns that there is none."""
        wanted = request.GET.get("next") or reverse("admin:index")
        if not request.user.is_authenticated:
            return redirect_to_login(wanted, settings.LOGIN_URL)
        if not self.has_permission(request):
            raise PermissionDenied("Your role has no desk.")
        return redirect("admin:index")


class DeskChangeList(ChangeList):
    """A list whose search term stays out of the address; see common/searches.py."""

    def __init__(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        super().__init__(request, *args, **kwargs)
        self.title = capfirst(self.opts.verbose_name_plural)
        self.shown_query = searches.term_of(request, self.query) or ""
        for spec in self.filter_specs:
            if isinstance(spec, DefaultFilter):
                spec.tabs = list(spec.choices(self))


class DeskAdmin(ModelAdmin):
    """A page of the desk. It changes nothing unless `writable`, deletes nothing unless `deletable`.

    With `patient_data`, lists and details leave an audit row naming it so; `patients_of` says whose data it is.
    With `detail_template`, a row is shown by that template with what `detail()` returns, not by a form.
    """

    writable = False
    deletable = False
    patient_data = ""
    detail_template = ""
    empty_hint = ""
    called: tuple[str, str] | None = None
    """The desk's words for one and for several rows, where the standard's noun is not what people say."""
    list_filter_submit = False
    list_fullwidth = True
    list_per_page = 50
    list_before_template = "admin/parts/tabs.html"
    show_full_result_count = False
    actions_selection_counter = True

    def __init__(self, model: Any, admin_site: Any) -> None:
        super().__init__(model, admin_site)
        if self.called:  # only what pages show: the model's own state, and so its migrations, are untouched
            self.opts.verbose_name, self.opts.verbose_name_plural = self.called

    # -- addresses of its own

    def own_urls(self) -> list[URLPattern]:
        """Further pages and actions of this model, each made by `door`."""
        return []

    def door(
        self,
        route: str,
        view: Callable[..., HttpResponse],
        name: str,
        *,
        action: str = "change",
        post: bool = False,
    ) -> URLPattern:
        """One of them, open to the roles that GRANTS lets do `action` on this model; with `post` for POST only."""
        roles = GRANTS[f"{self.opts.app_label}.{self.opts.model_name}"][action]
        guarded = require(*roles)(require_POST(view) if post else view)
        label = f"{self.opts.app_label}_{self.opts.model_name}_{name}"
        return path(route, self.admin_site.admin_view(guarded), name=label)

    def get_urls(self) -> list[URLPattern]:
        return self.own_urls() + super().get_urls()

    # -- who may

    def has_add_permission(self, request: HttpRequest) -> bool:
        return self.writable and super().has_add_permission(request)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.writable and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.deletable and super().has_delete_permission(request, obj)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_view_permission(request, obj) or self.may_act(request)

    def may_act(self, request: HttpRequest) -> bool:
        """Whether this person may use the actions on these rows (GRANTS: `change`)."""
        return bool(request.user.has_perm(f"{self.opts.app_label}.change_{self.opts.model_name}"))

    # -- audit

    def patients_of(self, rows: Iterable[Any]) -> list[Any]:
        """The ids of the patients whose data these rows show."""
        return []

    def record(self, request: HttpRequest, action: str, rows: Iterable[Any], **detail: Any) -> None:
        """Leave an audit row about access to these rows, when they are patient data."""
        if self.patient_data:
            rows = list(rows)
            audit.record_request(
                request,
                action,
                self.patient_data,
                patients=[p for p in dict.fromkeys(self.patients_of(rows)) if p],
                objects=[row.pk for row in rows],
                detail={"page": f"{self.opts.app_label}.{self.opts.model_name}", **detail},
            )

    # -- lists

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return DeskChangeList

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if request.method == "POST" and "_search" in request.POST:
            return self._search(request)
        response = super().changelist_view(request, extra_context)
        shown = getattr(response, "context_data", None) or {}
        if "cl" in shown:
            cl = shown["cl"]
            self.record(request, "search" if cl.query else "list", cl.result_list, count=cl.result_count)
        return response

    def _search(self, request: HttpRequest) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        query = request.GET.copy()
        for gone in ("q", "p"):
            query.pop(gone, None)
        term = request.POST["_search"].strip()[:200]
        if term:
            query["q"] = searches.keep(request, term)
        return HttpResponseRedirect(f"{request.path}?{query.urlencode()}" if query else request.path)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        term = searches.term_of(request, search_term)
        if search_term and term is None:
            messages.warning(request, "This search is no longer known; type it again.")
        return self.find(request, queryset, term or ""), False

    def find(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        """The rows that a term finds; the default looks into `search_fields` as Django does."""
        found, duplicates = super().get_search_results(request, queryset, term)
        return found.distinct() if duplicates else found

    # -- details

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        if not self.has_view_permission(request):  # before Django says that the row is not there
            raise PermissionDenied
        own_page = self.detail_template or type(self).goes_to is not DeskAdmin.goes_to
        if own_page and request.method == "GET":
            return self.detail_view(request, object_id)
        row = self.get_object(request, unquote(object_id)) if self.patient_data else None
        if row is not None:
            self.record(request, "read", [row])
        return super().change_view(request, object_id, form_url, extra_context)

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        return super().history_view(request, object_id, extra_context)

    def detail_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """The page about one row."""
        row = self.get_object(request, unquote(object_id))
        if row is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)
        if not self.has_view_permission(request, row):
            raise PermissionDenied
        if elsewhere := self.goes_to(request, row):
            return redirect(elsewhere)
        self.record(request, "read", [row])
        return self.page(request, self.detail_template, row=row, **self.detail(request, row))

    def goes_to(self, request: HttpRequest, row: Any) -> str:
        """The address of the page that shows this row, where it is not one of this model's own."""
        return ""

    def detail(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        """What the detail template shows beside `row`."""
        return {}

    def page(self, request: HttpRequest, template: str, **context: Any) -> HttpResponse:
        """A page of this room in the desk's frame. `title` is in the browser's history: no health data in it."""
        frame = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": str(self.opts.verbose_name).capitalize(),
            "list_url": reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_changelist"),
            "may_act": self.may_act(request),
            **context,
        }
        return TemplateResponse(request, template, frame)

    def url_of(self, row: Any) -> str:
        """The address of a row's page."""
        return reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_change", args=[row.pk])


def desk_url(model: str, pk: Any = None) -> str:
    """The address of a model's list at the desk (`ris.patient`), or of one row's page."""
    app, name = model.split(".")
    if pk is None:
        return reverse(f"admin:{app}_{name}_changelist")
    return reverse(f"admin:{app}_{name}_change", args=[pk])


def chip(state: Any, label: str = "") -> SafeString:
    """A state as a chip: its tone and its words."""
    return format_html('<span class="o-chip o-{}">{}</span>', tone(state), label or str(state).capitalize())


class DefaultFilter(SimpleListFilter):
    """A filter of a list that begins with `default` instead of everything; `all` shows everything."""

    default = "all"
    tabs: list[dict[str, Any]] = []
    """Its choices, for the row above a list (templates/admin/parts/tabs.html)."""

    def options(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, str]]:
        """The choices beside `all`."""
        raise NotImplementedError

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [*self.options(request, model_admin), ("all", "All")]

    def value(self) -> str:
        known = {str(value) for value, _ in self.lookup_choices}
        asked = super().value()
        return asked if asked in known else self.default

    def choices(self, changelist: Any) -> Iterable[dict[str, Any]]:
        for value, title in self.lookup_choices:
            yield {
                "selected": self.value() == str(value),
                "query_string": changelist.get_query_string({self.parameter_name: value}),
                "display": title,
            }
