"""Where one can go: the navigation of all pages and the desk's sidebar, each entry with who sees it."""

from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest
from django.urls import reverse

from common.alerts import open_alerts
from common.models import Site
from common.roles import Role, has_role, roles_of

C, T, R, F, A, X = (
    Role.CLERK,
    Role.TECHNOLOGIST,
    Role.RADIOLOGIST,
    Role.REFERRER,
    Role.ANALYST,
    Role.ADMINISTRATOR,
)
STAFF = (C, T, R, A, X)


@dataclass(frozen=True)
class Place:
    """An entry of the top navigation. `below` are the addresses that mark it as the present place."""

    label: str
    url_name: str
    roles: tuple[Role, ...]
    query: str = ""
    icon: str = ""


PLACES = (
    Place("Today", "home", STAFF, icon="today"),
    Place("Reading", "reading:list", (R,), icon="read"),
    Place("Unmatched", "admin:ris_reconciliationcase_changelist", (C, T, R, X), icon="link"),
    Place("Patients", "admin:ris_patient_changelist", STAFF, icon="person"),
    Place("Orders", "admin:ris_imagingservicerequest_changelist", STAFF, icon="order"),
    Place("Schedule", "admin:ris_scheduledprocedurestep_changelist", (C, T, X), icon="schedule"),
    Place("Why not?", "admin:worklist_worklistitem_why", (C, T, A, X), icon="search"),
    Place("Messages", "admin:integration_message_changelist", (C, A, X), icon="message"),
    Place("My reports", "portal:list", (F,), icon="read"),
    Place("Desk", "admin:index", STAFF, icon="desk"),
)

# Sidebar: room → (title, model, symbol). Entries whose model the person may not view are left out.
ROOMS: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "People and work",
        (
            ("Patients", "ris.patient", "person"),
            ("Orders", "ris.imagingservicerequest", "assignment"),
            ("Schedule", "ris.scheduledprocedurestep", "calendar_month"),
            ("Unmatched studies", "ris.reconciliationcase", "link_off"),
            ("Worklist", "worklist.worklistitem", "view_list"),
            ("Worklist queries", "worklist.querylog", "contact_support"),
            ("Performed steps", "ris.performedprocedurestep", "task_alt"),
            ("Reports", "ris.report", "description"),
            ("Merges", "ris.patientmerge", "merge"),
        ),
    ),
    (
        "Messages",
        (
            ("Messages in", "integration.message", "inbox"),
            ("Outbox", "integration.outboxitem", "outbox"),
            ("Sources", "integration.source", "login"),
            ("Destinations", "integration.destination", "logout"),
        ),
    ),
    (
        "Images",
        (
            ("Studies", "pacs.study", "imagesmode"),
            ("Set aside", "pacs.setaside", "report"),
            ("Application entities", "pacs.applicationentity", "lan"),
            ("Routing rules", "pacs.routingrule", "alt_route"),
            ("Studies sent on", "pacs.forwarding", "forward"),
        ),
    ),
    (
        "Department",
        (
            ("Procedure catalogue", "ris.proceduredefinition", "menu_book"),
            ("Stations", "ris.station", "settings_input_component"),
            ("Practitioners", "ris.practitioner", "stethoscope"),
            ("Assigning authorities", "ris.assigningauthority", "badge"),
        ),
    ),
    (
        "House",
        (
            ("Alerts", "common.alert", "notifications"),
            ("Audit trail", "common.auditevent", "policy"),
            ("Changes", "ris.change", "history"),
            ("Users", "auth.user", "group"),
            ("Roles", "auth.group", "admin_panel_settings"),
            ("Access tokens", "common.apitoken", "key"),
            ("Site", "common.site", "domain"),
        ),
    ),
)


def places(request: HttpRequest) -> list[dict[str, Any]]:
    """The top navigation for this person, the present place marked."""
    shown: list[dict[str, Any]] = [
        {"label": p.label, "url": reverse(p.url_name), "icon": p.icon}
        for p in PLACES
        if has_role(request.user, *p.roles)
    ]
    best = max((len(e["url"]) for e in shown if request.path.startswith(e["url"])), default=0)
    for entry in shown:
        url = entry["url"]
        entry["here"] = (
            request.path == url if url == "/" else request.path.startswith(url) and len(url) == best
        )
    return shown


def sidebar(request: HttpRequest) -> list[dict[str, Any]]:
    """The desk's sidebar in django-unfold's shape."""
    groups: list[dict[str, Any]] = [
        {
            "items": [
                {"title": "Today", "icon": "today", "link": reverse("home"), "active": lambda request: False}
            ]
        }
    ]
    if has_role(request.user, R):
        groups[0]["items"].append(
            {
                "title": "Reading list",
                "icon": "radiology",
                "link": reverse("reading:list"),
                "active": lambda request: False,
            }
        )
    for title, entries in ROOMS:
        items = [
            {
                "title": label,
                "icon": symbol,
                "link": reverse("admin:{}_{}_changelist".format(*model.split("."))),
            }
            for label, model, symbol in entries
            if _may_view(request, model)
        ]
        if items:
            groups.append({"title": title, "items": items})
    return groups


def _may_view(request: HttpRequest, model: str) -> bool:
    app, name = model.split(".")
    return request.user.has_perm(f"{app}.view_{name}") or request.user.has_perm(f"{app}.change_{name}")


def everywhere(request: HttpRequest) -> dict[str, Any]:
    """Context processor of all pages: site, navigation, roles, and open alerts for the department's own people."""
    user = getattr(request, "user", None)
    if user is None or not user.is_authenticated:
        return {"house_name": _site_name()}
    return {
        "house_name": _site_name(),
        "places": places(request),
        "roles": [Role(r).label for r in Role.values if r in roles_of(user)],
        "alerts": open_alerts() if has_role(user, *STAFF) else [],
    }


def _site_name() -> str:
    return Site.objects.values_list("name", flat=True).first() or "Orderly"
