"""What monitors ask the web process: `/healthz`, `/readyz` and `/metrics`."""

from __future__ import annotations

import ipaddress
from typing import Any

from django.conf import settings
from django.db import DatabaseError, connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache

from common.metrics import exposition
from common.process import read_run_file
from common.roles import Role, bearer


@never_cache
def healthz(request: HttpRequest) -> HttpResponse:
    """200 while this process answers at all."""
    return HttpResponse("ok\n", content_type="text/plain")


@never_cache
def readyz(request: HttpRequest) -> HttpResponse:
    """200 once every process serves and the database answers, else 503; says which does not."""
    state = readiness()
    response = JsonResponse(state, status=200 if state["ready"] else 503)
    response._has_been_logged = True  # type: ignore[attr-defined]  # a monitor's "not yet" is no error
    return response


def readiness() -> dict[str, Any]:
    """`{"ready": bool, "database": state, "processes": {name: state}}`; a web process alone counts itself only."""
    run = read_run_file(settings.DATA_DIR)
    processes = {name: said["state"] for name, said in run["processes"].items()} if run else {"web": "ready"}
    database = "ready" if _database_answers() else "away"
    ready = database == "ready" and all(state == "ready" for state in processes.values())
    return {"ready": ready, "database": database, "processes": processes}


def _database_answers() -> bool:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        return True
    except DatabaseError:
        return False


@never_cache
def metrics(request: HttpRequest) -> HttpResponse:
    """Prometheus' text, for this machine itself and for bearers of an analyst's or administrator's token."""
    if not (_is_local(request) or _has_token(request)):
        return HttpResponse(
            "Metrics are for this machine, or by token.\n", status=403, content_type="text/plain"
        )
    text, content_type = exposition()
    return HttpResponse(text, content_type=content_type)


def _is_local(request: HttpRequest) -> bool:
    """From loopback, and not by a proxy on this machine that speaks for somebody else."""
    if request.headers.get("X-Forwarded-For") or request.headers.get("Forwarded"):
        return False
    try:
        return ipaddress.ip_address(request.META.get("REMOTE_ADDR", "")).is_loopback
    except ValueError:
        return False


def _has_token(request: HttpRequest) -> bool:
    scheme, _, text = request.headers.get("Authorization", "").partition(" ")
    token = bearer(text.strip()) if scheme.lower() == "bearer" else None
    return bool(token and token.role in (Role.ANALYST, Role.ADMINISTRATOR))
