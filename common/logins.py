"""Who may try a password now: after some failures each further try of one name from one address must wait.

The wait grows and is bounded. It concerns the name *and* the address: nobody can lock somebody else out from
elsewhere. A try is counted before its password is looked at, in one statement, so that many at once are counted, too.
Names and addresses are kept as digests only: people type their password where the name belongs.
"""

import ipaddress
import os
from datetime import timedelta
from typing import Any, cast

from django.contrib.auth import get_user_model
from django.contrib.auth.forms import AuthenticationForm
from django.core.exceptions import ValidationError
from django.db import connection
from django.http import HttpRequest
from django.utils.crypto import salted_hmac

from common import audit
from common.clock import now
from common.models import LoginTries
from common.templatetags.orderly import span

FREE = 5
"""Failures without a wait."""
FIRST_SECONDS, MOST_SECONDS = 4, 900
FORGOTTEN = timedelta(days=1)
"""After so long without a try, earlier failures no longer count."""

# One statement counts a try, or finds that it comes too early (no row). A free try waits until a time long past: until
# `now` it would turn away one that read its clock a moment earlier and came a moment later.
_COUNT = """
INSERT INTO common_logintries AS t (key, failures, last_at, wait_until) VALUES (%(key)s, 1, %(now)s, %(forgotten)s)
ON CONFLICT (key) DO UPDATE SET
    failures = CASE WHEN t.last_at < %(forgotten)s THEN 1 ELSE t.failures + 1 END,
    last_at = %(now)s,
    wait_until = CASE WHEN t.last_at < %(forgotten)s OR t.failures + 1 < %(free)s THEN %(forgotten)s
        ELSE %(now)s + least(%(first)s * 2.0 ^ least(t.failures + 1 - %(free)s, 20), %(most)s) * interval '1 second' END
WHERE t.wait_until <= %(now)s
RETURNING failures, wait_until
"""


class TooEarly(Exception):
    """The next try has to wait; `seconds` says how long, at least one."""

    def __init__(self, seconds: int) -> None:
        self.seconds = max(seconds, 1)
        super().__init__(f"Wait {span(self.seconds)} and try again.")


def count(name: str, address: str) -> tuple[int, int]:
    """Count a try as failed until it has succeeded; returns (failures, seconds that the next must wait).

    Raises TooEarly, and counts nothing, while a wait lasts.
    """
    key, moment = _key(name, address), now()
    given: dict[str, Any] = {
        "key": key, "now": moment, "forgotten": moment - FORGOTTEN, "free": FREE, "first": FIRST_SECONDS,
        "most": MOST_SECONDS,
    }  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(_COUNT, given)
        row = cursor.fetchone()
    if row is None:
        until = LoginTries.objects.filter(key=key).values_list("wait_until", flat=True).first()
        raise TooEarly(round((until - moment).total_seconds()) if until else 1)
    failures, until = row
    return int(failures), max(round((until - moment).total_seconds()), 0)


def forget(name: str, address: str) -> None:
    """The password was right: earlier failures of this name from this address no longer count."""
    LoginTries.objects.filter(key=_key(name, address)).delete()
    LoginTries.objects.filter(last_at__lt=now() - FORGOTTEN).delete()


def _key(name: str, address: str) -> str:
    return salted_hmac(
        "orderly.logins", f"{name.strip().casefold()}\n{address}", algorithm="sha256"
    ).hexdigest()


def address_of(request: HttpRequest) -> str:
    """The address a request comes from: the peer's, or where that is a proxy of ORDERLY_PROXIES, what it names."""
    peer = str(request.META.get("REMOTE_ADDR") or "")
    trusted = {one.strip() for one in os.environ.get("ORDERLY_PROXIES", "").split(",") if one.strip()}
    named = [one.strip() for one in request.META.get("HTTP_X_FORWARDED_FOR", "").split(",") if one.strip()]
    while peer in trusted and named and _is_address(named[-1]):  # what stands further left may be made up
        peer = named.pop()
    return peer


def _is_address(text: str) -> bool:
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return False


class LoginForm(AuthenticationForm):
    """The login form: it counts each try, and refuses one that comes too early without looking at the password."""

    wait_seconds = 0
    """How long the next try has to wait, after `is_valid` said no."""
    is_early = False
    """Whether this one came too early, and its password was not looked at."""

    def clean(self) -> dict[str, Any]:
        name, address = self.cleaned_data.get("username") or "", address_of(cast(HttpRequest, self.request))
        try:
            failures, wait = count(name, address)
        except TooEarly as early:
            self.wait_seconds, self.is_early = early.seconds, True
            raise ValidationError(str(early), code="too_early") from None
        try:
            cleaned: dict[str, Any] = super().clean()
        except ValidationError:
            self.wait_seconds = wait
            known = get_user_model().objects.filter(username=name).values_list("pk", flat=True).first()
            self._audit("login failed", known, address, failures=failures, wait_seconds=wait)
            raise
        forget(name, address)
        user = self.get_user()
        self._audit("login", user.pk if user else None, address)
        return cleaned

    def _audit(self, action: str, pk: int | None, address: str, **detail: int) -> None:
        actor = f"user:{pk}" if action == "login" else "anonymous"
        objects = [pk] if pk is not None else []
        audit.record(actor, action, "account", objects=objects, detail=detail, address=address or None)
