"""Every URL with every role and with none: what is not opened to a role in words is closed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from django.conf import settings
from django.contrib import admin
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, resolve

from common.accounts import GRANTS, may
from common.desk import DESK_ROLES
from common.roles import Role
from tests import factories as make

pytestmark = pytest.mark.django_db

# Open without login, each with its reason. Nothing else is.
OPEN = {
    "healthz": "says only that the process lives",
    "readyz": "says which processes serve",
    "metrics": "guards itself: loopback or token",
    "login": "the way in",
    "logout": "the way out",
}
# Views of the admin site that belong to no model, and to whom they are open.
DESK_VIEWS = {
    "index", "search", "login", "logout", "password_change", "password_change_done", "jsi18n",
    "view_on_site", "app_list", "",
}  # fmt: skip
ROLES = [*Role.values, ""]


@dataclass(frozen=True)
class Door:
    """One URL pattern: its address with the arguments filled in, its name, and its view."""

    url: str
    name: str
    view: Any
    namespace: str

    @property
    def label(self) -> str:
        return f"{self.namespace}:{self.name}" if self.namespace else self.name


FILLED = {
    "uuid": "0197a000-0000-7000-8000-000000000001",
    "int": "1",
    "slug": "final",
    "path": "1",
    "str": "1.2.3",
}


def doors() -> list[Door]:
    """Every pattern of the product."""
    return list(_walk(get_resolver(settings.ROOT_URLCONF), "/", ""))


def _walk(resolver: Any, prefix: str, namespace: str) -> Iterator[Door]:
    for one in resolver.url_patterns:
        if isinstance(one, URLResolver):
            yield from _walk(one, prefix + _address(one.pattern), one.namespace or namespace)
        elif isinstance(one, URLPattern):
            yield Door(prefix + _address(one.pattern), one.name or "", one.callback, namespace)


def _address(pattern: Any) -> str:
    """A pattern with something plausible in the place of its arguments."""
    text = str(pattern)
    for name, converter in pattern.converters.items():
        kind = type(converter).__name__.removesuffix("Converter").lower()
        value = FILLED.get({"string": "str"}.get(kind, kind), "1.2.3")
        for spelled in (f"<{name}>", *(f"<{k}:{name}>" for k in (*FILLED, kind))):
            text = text.replace(spelled, value)
    if pattern.__class__.__name__ == "RegexPattern":
        return _plain(text)
    return text


BY_NAME = {"frames": "1", "path": "00420011", "kind": "Patient", "app_label": "ris"}


def _plain(text: str) -> str:
    """A regular expression with its named groups filled in by their names; others are not among the patterns."""
    text = text.lstrip("^").rstrip("$").replace("\\Z", "").replace(".*", "nothing/of/the/kind")
    while (begin := text.find("(?P<")) >= 0:
        depth, end = 0, begin
        for end in range(begin, len(text)):
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            if depth == 0:
                break
        name = text[begin + 4 : text.index(">", begin)]
        text = text[:begin] + BY_NAME.get(name, "1.2.3") + text[end + 1 :]
    return text.replace("/?", "/")


def roles_of_view(view: Any) -> frozenset[str] | None:
    """The roles a view names: as a function's attribute, or its class's."""
    for holder in (view, getattr(view, "view_class", None), getattr(view, "cls", None)):
        found = getattr(holder, "roles", None)
        if found is not None:
            return frozenset(found)
    return None


def expected(door: Door) -> frozenset[str] | None:
    """The roles a door is open to; None when nothing says so."""
    named = roles_of_view(door.view)
    if named is not None:
        return named
    if door.namespace == "admin":
        return _of_desk(door)
    return None


def _of_desk(door: Door) -> frozenset[str] | None:
    if door.name == "autocomplete":  # Django's own; no list here offers it, for it would search by address
        return frozenset()
    if door.name in DESK_VIEWS:
        return DESK_ROLES
    model_admin = getattr(door.view, "model_admin", None)
    if model_admin is None:
        model_admin = next(
            (
                a
                for m, a in admin.site._registry.items()
                if door.name.startswith(f"{m._meta.app_label}_{m._meta.model_name}_")
            ),
            None,
        )
    if model_admin is None:
        return None
    model = f"{model_admin.opts.app_label}.{model_admin.opts.model_name}"
    action = _action(door.name)
    if action == "delete" and not model_admin.deletable:
        return frozenset()
    own = "add_view" in type(model_admin).__dict__ or "has_add_permission" in type(model_admin).__dict__
    if action == "add" and not (model_admin.writable or own):
        return frozenset()
    return frozenset(r for r in Role.values if may(model, action, frozenset({r})))


def _action(name: str) -> str:
    ending = name.rpartition("_")[2]
    if name == "auth_user_password_change":
        return "change"
    return {"add": "add", "delete": "delete"}.get(ending, "view")


def test_every_url_says_whom_it_is_for():
    silent = [f"{d.url} ({d.label})" for d in doors() if d.label not in OPEN and expected(d) is None]
    assert silent == [], (
        "these URLs name no roles: mark their views with common.roles.require, or roles = {...}"
    )


def test_every_model_at_the_desk_stands_in_the_table_of_grants():
    shown = {f"{m._meta.app_label}.{m._meta.model_name}" for m in admin.site._registry}
    assert shown <= GRANTS.keys()


def test_the_groups_have_exactly_the_permissions_of_the_table():
    from django.contrib.auth.models import Group

    for role in Role.values:
        group = Group.objects.get(name=role)
        found = {
            (p.content_type.app_label, p.codename) for p in group.permissions.select_related("content_type")
        }
        wanted = {
            (model.split(".")[0], f"{action}_{model.split('.')[1]}")
            for model, actions in GRANTS.items()
            for action, roles in actions.items()
            if role in roles
        }
        assert found == wanted


@pytest.fixture
def clients() -> dict[str, Client]:
    """One logged-in client a role, and an anonymous one under the empty name."""
    made: dict[str, Client] = {"": Client(raise_request_exception=True)}
    for role in Role.values:
        made[role] = Client(raise_request_exception=True)
        made[role].force_login(make.user(f"walk.{role}", role))
    return made


def test_every_url_opens_to_its_roles_and_to_nobody_else(clients: dict[str, Client]):
    make.department()
    wrong = []
    walked = 0
    for door in doors():
        if door.label in OPEN:
            continue
        allowed = expected(door) or frozenset()
        assert resolve(door.url).func is door.view, f"{door.url} does not lead to {door.label}"
        for role in ROLES:
            walked += 1
            response = clients[role].get(door.url)
            opened = _is_open(response)
            if opened != (role in allowed):
                wrong.append(f"{door.label} {door.url}: {role or 'anonymous'} got {response.status_code}")
    assert not wrong, "\n".join(wrong)
    assert walked > 500


def _is_open(response: Any) -> bool:
    """Whether the door let one in: anything but a refusal or the way to the login page."""
    if response.status_code in (401, 403):
        return False
    return not (response.status_code == 302 and response["Location"].startswith("/login/"))


def test_what_is_open_without_login_shows_no_patient(client: Client):
    make.patient("4711", "Sommer^Clara", "19600512", "F")
    for url in ("/healthz", "/readyz", "/login/", "/admin/", "/nowhere/"):
        response = client.get(url, follow=True)
        assert b"Sommer" not in response.content and b"4711" not in response.content


def test_a_password_is_never_set_by_an_administrator_for_a_superuser(client: Client):
    from django.contrib.auth.models import User

    boss = User.objects.create_superuser("boss", password=make.PASSWORD)
    client.force_login(make.user("ada", Role.ADMINISTRATOR))
    response = client.post(
        f"/admin/auth/user/{boss.pk}/password/", {"password1": "x" * 14, "password2": "x" * 14}
    )
    assert response.status_code == 403
    boss.refresh_from_db()
    assert boss.check_password(make.PASSWORD)


def test_roles_come_from_groups_and_not_from_the_staff_flag(client: Client):
    nobody = make.user("nobody", is_staff=True)
    client.force_login(nobody)
    assert client.get("/admin/").status_code == 403
    assert client.get("/").status_code == 403
