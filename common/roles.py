"""Roles and who may pass a door: deny by default, one decorator, one permission class, one token check."""

import hashlib
import secrets
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import Any

from django.contrib.auth.models import AnonymousUser
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.db import models
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import BasePermission

from common.clock import now


class Role(models.TextChoices):
    """Kinds of users; a user has one or more, as Django groups of the same name."""

    CLERK = "clerk", "Clerk"
    TECHNOLOGIST = "technologist", "Technologist"
    RADIOLOGIST = "radiologist", "Radiologist"
    REFERRER = "referrer", "Referrer"
    ANALYST = "analyst", "Interface analyst"
    ADMINISTRATOR = "administrator", "Administrator"


def roles_of(user: Any) -> frozenset[str]:
    """The roles of a user; a superuser has all of them, an inactive or anonymous one none. Cached on the user."""
    if not getattr(user, "is_authenticated", False) or not user.is_active:
        return frozenset()
    if user.is_superuser:
        return frozenset(Role.values)
    cached = getattr(user, "_orderly_roles", None)
    if cached is None:
        cached = frozenset(user.groups.values_list("name", flat=True)) & frozenset(Role.values)
        user._orderly_roles = cached
    return cached


def has_role(user: Any, *roles: str) -> bool:
    """Whether the user has at least one of the roles."""
    return bool(roles_of(user) & frozenset(roles))


def require(*roles: str) -> Callable[[Callable[..., HttpResponseBase]], Callable[..., HttpResponseBase]]:
    """A view for these roles only: others get 403, the anonymous the login page. Marks the view for the URL walk."""

    def decorate(view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
        @wraps(view)
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            if not request.user.is_authenticated:
                return redirect_to_login(request.get_full_path())
            if not has_role(request.user, *roles):
                raise PermissionDenied("Your role does not open this page. Ask an administrator for it.")
            return view(request, *args, **kwargs)

        guarded.roles = frozenset(roles)  # type: ignore[attr-defined]
        return guarded

    return decorate


class TokenUser(AnonymousUser):
    """The bearer of a token that is no person: has the token's role, and nothing else."""

    is_active = True  # type: ignore[assignment]  # the stubs know only the nobody that has no token
    is_superuser = False

    def __init__(self, token: Any) -> None:
        super().__init__()
        self.token = token
        self._orderly_roles = frozenset({token.role})

    @property
    def is_authenticated(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_anonymous(self) -> bool:  # type: ignore[override]
        return False


def create_token(name: str, role: str, days: int = 365, user: Any = None) -> str:
    """Make a bearer token and return it; only its SHA-256 is stored. Raises ValueError for an unknown role."""
    from common.models import ApiToken

    if role not in Role.values:
        raise ValueError(f"There is no role {role!r}. Choose one of: {', '.join(Role.values)}.")
    text = "ord_" + secrets.token_urlsafe(32)
    ApiToken.objects.create(
        name=name,
        role=role,
        user=user,
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        expires_at=now() + timedelta(days=days),
    )
    return text


def bearer(text: str) -> Any:
    """The live ApiToken of this text, or None when unknown, expired or revoked."""
    from common.models import ApiToken

    digest = hashlib.sha256(text.encode()).hexdigest()
    return (
        ApiToken.objects.select_related("user")
        .filter(sha256=digest, revoked_at__isnull=True, expires_at__gt=now())
        .first()
    )


class BearerAuthentication(BaseAuthentication):
    """`Authorization: Bearer ord_…` for the REST doors (RFC 6750)."""

    def authenticate(self, request: Any) -> tuple[Any, Any] | None:
        parts = get_authorization_header(request).split()
        if not parts or parts[0].lower() != b"bearer":
            return None
        if len(parts) != 2:
            raise AuthenticationFailed("The Authorization header must read: Bearer <token>.")
        token = bearer(parts[1].decode("ascii", "replace"))
        if token is None:
            raise AuthenticationFailed("This token is unknown, expired or revoked; ask for a new one.")
        return (token.user or TokenUser(token), token)

    def authenticate_header(self, request: Any) -> str:
        return 'Bearer realm="orderly"'


class RolePermission(BasePermission):
    """DRF: the view names its roles as `roles = frozenset({...})`; a view without any is closed."""

    message = "Your role does not open this resource."

    def has_permission(self, request: Any, view: Any) -> bool:
        return has_role(request.user, *getattr(view, "roles", ()))
