"""Who may see or change which study: a small protocol that an upper floor plugs into by a setting.

`ORDERLY_ACCESS_POLICY` names a class by its dotted path. The default is the policy of a plain archive, which
knows roles and no orders; a RIS above it narrows `scope`, for example to the studies a referrer asked for.
"""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from typing import Any, Protocol

from django.conf import settings
from django.db.models import QuerySet
from django.utils.module_loading import import_string

from common.roles import Role, has_role
from pacs.models import Study


class Action(StrEnum):
    """What one may want to do with a study."""

    READ = "read"
    STORE = "store"
    CHANGE = "change"


class AccessPolicy(Protocol):
    """The judgement. `scope` filters in SQL, so that lists are never filtered row by row."""

    def may(self, user: Any, study: Study, action: Action) -> bool:
        """Whether the user may do this with this study."""
        ...

    def scope(self, user: Any) -> QuerySet[Study]:
        """The studies that the user may read; hidden ones are none of them."""
        ...


READERS = frozenset({Role.CLERK, Role.TECHNOLOGIST, Role.RADIOLOGIST, Role.ADMINISTRATOR})
WRITERS = frozenset({Role.TECHNOLOGIST, Role.RADIOLOGIST, Role.ADMINISTRATOR})


class PlainArchive:
    """Staff reads every study; those who make or read images also store; nobody else sees any."""

    def may(self, user: Any, study: Study, action: Action) -> bool:
        """By role alone."""
        if action is Action.READ:
            return not study.hidden and has_role(user, *READERS)
        return has_role(user, *WRITERS)

    def scope(self, user: Any) -> QuerySet[Study]:
        """All studies that are not hidden, or none."""
        if not has_role(user, *READERS):
            return Study.objects.none()
        return Study.objects.filter(hidden=False)


@cache
def _made(path: str) -> AccessPolicy:
    made: AccessPolicy = import_string(path)()
    return made


def policy() -> AccessPolicy:
    """The policy that the setting names."""
    return _made(getattr(settings, "ORDERLY_ACCESS_POLICY", "pacs.access.PlainArchive"))


def may(user: Any, study: Study, action: Action) -> bool:
    """Whether the user may do this with this study."""
    return policy().may(user, study, action)


def scope(user: Any) -> QuerySet[Study]:
    """The studies that the user may read."""
    return policy().scope(user)
