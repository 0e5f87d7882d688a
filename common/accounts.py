"""Who may see and change what at the desk: one table of models and roles, kept as permissions of Django groups."""

from typing import Any

from django.apps import apps

from common.roles import Role

C, T, R, A, X = Role.CLERK, Role.TECHNOLOGIST, Role.RADIOLOGIST, Role.ANALYST, Role.ADMINISTRATOR
_CARE = (C, T, R, X)
_ALL = (C, T, R, A, X)
_WIRES = (A, X)

# model → action → roles. What is not named here is closed; a referrer has no desk, but the portal.
# `change` of what messages and people make (a patient, a step, a case) means: may use its actions.
GRANTS: dict[str, dict[str, tuple[Role, ...]]] = {
    "ris.patient": {"view": _ALL, "add": (C, X), "change": (C, X)},
    "ris.visit": {"view": _ALL},
    "ris.patientmerge": {"view": (C, A, X)},
    "ris.assigningauthority": {"view": (C, A, X), "add": _WIRES, "change": _WIRES},
    "ris.imagingservicerequest": {"view": _ALL, "add": (C, X), "change": (C, X)},
    "ris.requestedprocedure": {"view": _ALL},
    "ris.scheduledprocedurestep": {"view": _ALL, "change": (C, T, X)},
    "ris.performedprocedurestep": {"view": _ALL, "change": (C, T, X)},
    "ris.reconciliationcase": {"view": _CARE, "change": _CARE},
    "ris.studymatch": {"view": _CARE},
    "ris.report": {"view": (R, X)},
    "ris.practitioner": {"view": (C, A, X), "add": (C, X), "change": (C, X)},
    "ris.station": {"view": _ALL, "add": _WIRES, "change": _WIRES, "delete": _WIRES},
    "ris.proceduredefinition": {"view": _ALL, "add": _WIRES, "change": _WIRES, "delete": _WIRES},
    "ris.change": {"view": (A, X)},
    "worklist.worklistitem": {"view": _ALL},
    "worklist.querylog": {"view": (C, T, A, X)},
    "pacs.study": {"view": _CARE},
    "pacs.setaside": {"view": (C, T, A, X), "change": (C, A, X)},
    "pacs.applicationentity": {"view": (T, A, X), "add": _WIRES, "change": _WIRES, "delete": _WIRES},
    "pacs.routingrule": {"view": (T, A, X), "add": _WIRES, "change": _WIRES, "delete": _WIRES},
    "pacs.forwarding": {"view": (T, A, X), "change": (A, X)},
    "integration.message": {"view": (C, A, X), "change": (C, A, X)},
    "integration.outboxitem": {"view": (C, A, X), "change": (C, A, X)},
    "integration.source": {"view": _WIRES, "add": _WIRES, "change": _WIRES},
    "integration.destination": {"view": _WIRES, "add": _WIRES, "change": _WIRES},
    "common.alert": {"view": _ALL},
    "common.auditevent": {"view": (X,)},
    "common.apitoken": {"view": (X,), "add": (X,), "change": (X,)},
    "common.site": {"view": _WIRES, "change": (X,)},
    "auth.user": {"view": (X,), "add": (X,), "change": (X,)},
    "auth.group": {"view": (X,)},
}


def may(model: str, action: str, roles: frozenset[str]) -> bool:
    """Whether one of the roles may do the action (`view`, `add`, `change`, `delete`) on a model (`ris.patient`)."""
    granted = GRANTS.get(model, {})
    allowed = set(granted.get(action, ()))
    if action == "view":  # Django lets whoever may change also view
        allowed |= set(granted.get("change", ()))
    return bool(allowed & roles)


def ensure_roles(**_: Any) -> None:
    """Make the group of each role and give it exactly the permissions of GRANTS. Safe to repeat.

    Called after `migrate`; a model whose permissions are not made yet gets its grants when its application's turn
    has come, as the signal comes once for each application.
    """
    from django.contrib.auth.models import Group, Permission

    wanted: dict[str, set[tuple[str, str]]] = {role: set() for role in Role.values}
    for model, actions in GRANTS.items():
        app, name = model.split(".")
        for action, roles in actions.items():
            for role in roles:
                wanted[role].add((app, f"{action}_{name}"))
    known = {
        (app, codename): pk
        for pk, app, codename in Permission.objects.filter(
            content_type__app_label__in={m.split(".")[0] for m in GRANTS}
        ).values_list("pk", "content_type__app_label", "codename")
    }
    for name, permissions in wanted.items():
        group, _made = Group.objects.get_or_create(name=name)
        group.permissions.set([known[p] for p in permissions if p in known])


def connect() -> None:
    """Let `migrate` end with the roles in place; called once, when Django is ready."""
    from django.db.models.signals import post_migrate

    last = [config for config in apps.get_app_configs() if config.models_module is not None][-1]
    post_migrate.connect(ensure_roles, sender=last, dispatch_uid="orderly.roles")
