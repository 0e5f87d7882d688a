"""What people search for, kept in their session under a token: a name never becomes part of an address."""

import secrets
from typing import Any

from django.http import HttpRequest

_KEY = "searches"
_MOST = 50


def keep(request: HttpRequest, term: str) -> str:
    """Remember the term for this session and return the token that stands for it in addresses."""
    token = "~" + secrets.token_urlsafe(6)
    pairs: list[Any] = request.session.get(_KEY, [])
    request.session[_KEY] = [*pairs, [token, term]][-_MOST:]
    return token


def term_of(request: HttpRequest, token: str) -> str | None:
    """The term behind a token; None for one that this session does not know (any more)."""
    return next((term for known, term in request.session.get(_KEY, []) if known == token), None)
