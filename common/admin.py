"""The desk for the house itself: alerts, audit trail, access tokens, site, users and roles."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, User
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.urls import URLPattern
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from common import audit
from common.clock import now
from common.desk import DeskAdmin, chip, desk_url
from common.models import Alert, ApiToken, AuditEvent, Site
from common.roles import Role, create_token
from common.templatetags.orderly import moment


@admin.register(Alert)
class AlertAdmin(DeskAdmin):
    """What waited or failed so long that a person had to know; the open ones stand on every page."""

    list_display = ("started", "summary", "severity_chip", "recovered")
    list_filter = ("severity", ("recovered_at", admin.EmptyFieldListFilter))
    search_fields = ("summary", "key")
    empty_hint = (
        "No alert so far. One is raised when something waits too long, and told once more at recovery."
    )

    @admin.display(description="Since", ordering="started_at")
    def started(self, row: Alert) -> str:
        return moment(row.started_at)

    @admin.display(description="Severity", ordering="severity")
    def severity_chip(self, row: Alert) -> str:
        return chip(row.severity, row.get_severity_display())

    @admin.display(description="Recovered", ordering="recovered_at")
    def recovered(self, row: Alert) -> str:
        return moment(row.recovered_at) if row.recovered_at else chip("OPEN", "open")


@admin.register(AuditEvent)
class AuditAdmin(DeskAdmin):
    """Who looked at what: append-only, also for us."""

    called = ("access", "audit trail")
    list_display = ("at", "who", "action", "what", "patients", "address")
    list_filter = ("action", "what", "at")
    search_fields = ("actor",)
    search_help_text = "Actor, such as user:17 or ae:CT01, or a patient's row id"
    empty_hint = "Every access to a patient's data leaves a row here."

    def find(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        return (
            queryset.filter(actor=term) | queryset.filter(patient_ids__contains=[term]) if term else queryset
        )

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        audit.record_request(request, "read", "audit trail")
        return super().changelist_view(request, extra_context)

    @admin.display(description="Who", ordering="actor")
    def who(self, row: AuditEvent) -> str:
        kind, _, number = row.actor.partition(":")
        if kind == "user" and number.isdigit():
            name = User.objects.filter(pk=int(number)).values_list("username", flat=True).first()
            return f"{name} ({row.actor})" if name else row.actor
        return row.actor

    @admin.display(description="Patients")
    def patients(self, row: AuditEvent) -> int:
        return len(row.patient_ids)


class TokenForm(forms.ModelForm):
    """A new bearer token: its name, role and days."""

    role = forms.ChoiceField(choices=Role.choices)
    days = forms.IntegerField(min_value=1, max_value=3650, initial=365, label="Valid for days")

    class Meta:
        model = ApiToken
        fields = ("name",)


@admin.register(ApiToken)
class TokenAdmin(DeskAdmin):
    """Bearer tokens for /dicomweb, /fhir and /metrics: shown once, kept as a digest."""

    called = ("token", "access tokens")
    writable = True
    list_display = ("name", "role", "created_at", "expires_at", "last_used_at", "state")
    list_filter = ("role",)
    search_fields = ("name",)
    empty_hint = (
        "A program that reads DICOMweb or FHIR needs a token. Add one here or with manage.py token create."
    )

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    @admin.display(description="State")
    def state(self, row: ApiToken) -> str:
        if row.revoked_at:
            return chip("refused", "revoked")
        return chip("off", "expired") if row.expires_at <= now() else chip("ready", "valid")

    detail_template = "admin/common/token.html"

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        """Make a token and show it this once."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        form = TokenForm(request.POST or None)
        if request.method == "POST" and form.is_valid():
            data = form.cleaned_data
            text = create_token(data["name"], data["role"], days=data["days"])
            audit.record_request(request, "create", "token", detail={"role": data["role"]})
            return self.page(
                request, "admin/common/new_token.html", title="New token", token=text, name=data["name"]
            )
        return self.page(
            request, "admin/ris/form.html", form=form, title="New token", button="Make token",
            back=desk_url("common.apitoken"),
        )  # fmt: skip

    def own_urls(self) -> list[URLPattern]:
        return [self.door("<int:pk>/revoke/", self.revoke, "revoke", post=True)]

    def revoke(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Make a token useless from now on."""
        token = get_object_or_404(ApiToken, pk=pk)
        if token.revoked_at is None:
            token.revoked_at = now()
            token.save(update_fields=["revoked_at"])
            audit.record_request(request, "revoke", "token", objects=[pk])
            messages.success(request, "The token is revoked.")
        return redirect(self.url_of(token))


@admin.register(Site)
class SiteAdmin(DeskAdmin):
    """What site.toml says about this site."""

    writable = True
    list_display = ("name", "timezone", "live", "uid_root")
    empty_hint = "Load a site file: manage.py site load site.toml"


admin.site.unregister(User)
admin.site.unregister(Group)


@admin.register(User)
class UserAdmin(DjangoUserAdmin, DeskAdmin):
    """People and their roles. What they may do comes from the roles alone."""

    writable = True
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("username", "name", "roles", "is_active", "last_login")
    list_filter = ("groups", "is_active")
    search_fields = ("username", "first_name", "last_name", "email")
    filter_horizontal = ()
    fieldsets = (
        (None, {"fields": ("username", "password")}),
        ("Person", {"fields": ("first_name", "last_name", "email")}),
        ("Roles", {"fields": ("is_active", "groups")}),
    )
    add_fieldsets = ((None, {"fields": ("username", "password1", "password2")}),)
    readonly_fields = ("last_login", "date_joined")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).prefetch_related("groups")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """A superuser's account is changed by superusers only: its password would be a way around the roles."""
        if obj is not None and obj.is_superuser and not request.user.is_superuser:
            return False
        return super().has_change_permission(request, obj)

    @admin.display(description="Name", ordering="last_name")
    def name(self, row: User) -> str:
        return row.get_full_name()

    @admin.display(description="Roles")
    def roles(self, row: User) -> str:
        named = [Role(g.name).label for g in row.groups.all() if g.name in Role.values]
        return "superuser" if row.is_superuser else ", ".join(named) or "none"

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        audit.record_request(request, "change" if change else "create", "user", objects=[obj.pk])


@admin.register(Group)
class RoleAdmin(DjangoGroupAdmin, DeskAdmin):
    """The roles and what each may do; they are made by Orderly (common/accounts.py) and only looked at."""

    called = ("role", "roles")
    list_display = ("name", "people")
    search_fields = ()

    @admin.display(description="People")
    def people(self, row: Group) -> int:
        return row.user_set.count()
