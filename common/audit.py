"""The audit trail: each access to a patient's data leaves one append-only row. No health data in it, only ids."""

from collections.abc import Iterable
from typing import Any

from common.models import AuditEvent


def actor_of(user: Any) -> str:
    """How a user or token bearer stands in the audit trail."""
    token = getattr(user, "token", None)
    if token is not None:
        return f"token:{token.pk}"
    return f"user:{user.pk}" if getattr(user, "pk", None) else "anonymous"


def record(
    actor: str,
    action: str,
    what: str,
    *,
    patients: Iterable[Any] = (),
    objects: Iterable[Any] = (),
    detail: dict[str, Any] | None = None,
    address: str | None = None,
) -> None:
    """Write one audit row, in the caller's transaction when there is one, so before any answer leaves."""
    AuditEvent.objects.create(
        actor=actor,
        action=action,
        what=what,
        patient_ids=[str(p) for p in list(patients)[:100]],
        object_ids=[str(o) for o in list(objects)[:100]],
        detail=detail or {},
        address=address,
    )


def record_request(request: Any, action: str, what: str, **kwargs: Any) -> None:
    """The same for a web request: actor and address are taken from it."""
    record(actor_of(request.user), action, what, address=request.META.get("REMOTE_ADDR"), **kwargs)
