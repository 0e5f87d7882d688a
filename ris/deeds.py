"""What a person at a page asks of a service: one unit of work, its audit row, and the answer in words."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from django.contrib import messages
from django.db import transaction
from django.http import HttpRequest

from common import audit, cause
from common.store import Unit, unit_of_work
from ris.errors import Refusal

T = TypeVar("T")


def carry_out(
    request: HttpRequest,
    deed: Callable[[Unit], T],
    *,
    what: str,
    done: str,
    patients: Iterable[Any] = (),
    objects: Iterable[Any] = (),
    action: str = "change",
) -> T | None:
    """Do it in one transaction with its audit row; None when `ris` refuses, which the page then says.

    `what` is the kind of thing for the audit trail, `done` the sentence for the person (no patient's data).
    """
    try:
        result = audited(request, deed, what=what, patients=patients, objects=objects, action=action)
    except Refusal as refusal:
        messages.error(request, refusal.text)
        return None
    if done:
        messages.success(request, done)
    return result


def audited(
    request: HttpRequest,
    deed: Callable[[Unit], T],
    *,
    what: str,
    patients: Iterable[Any] = (),
    objects: Iterable[Any] = (),
    action: str = "change",
) -> T:
    """The same without words; raises the Refusal."""
    with transaction.atomic():
        with unit_of_work(cause.user(request.user.pk or 0)) as unit:
            result = deed(unit)
        audit.record_request(request, action, what, patients=patients, objects=objects)
    return result
