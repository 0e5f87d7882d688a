"""Every change of a source is a version: who, when, why, and what differs; any version can be used again.

Versions are written where a source is saved, whoever saves it: a page, `site load`, a shell. `author` says who.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models.signals import post_save

from common import cause
from common.clock import now
from integration import sources
from integration.models import Source, SourceVersion

WHO = ("application", "facility", "address", "enabled")
"""The attributes that belong to a version beside its profile."""

_author: ContextVar[tuple[str, str]] = ContextVar("author", default=("", ""))


@dataclass(frozen=True)
class Difference:
    """One key that differs: its value before and after, as a profile or a site file writes it (None: default)."""

    key: str
    before: Any
    after: Any


@contextmanager
def author(by: str, why: str = "") -> Iterator[None]:
    """Whose changes the saves within are: a cause such as `user:17`, and the reason."""
    token = _author.set((by, why))
    try:
        yield
    finally:
        _author.reset(token)


def values_of(source: Source) -> dict[str, Any]:
    """What a version keeps of a source."""
    return {**{name: getattr(source, name) for name in WHO}, "profile": dict(source.profile)}


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    """What differs between two versions' values, key by key; profile keys stand beside the source's own."""
    flat = [_flat(before), _flat(after)]
    keys = [*flat[0], *(k for k in flat[1] if k not in flat[0])]
    return [Difference(k, flat[0].get(k), flat[1].get(k)) for k in keys if flat[0].get(k) != flat[1].get(k)]


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    own = {k: values.get(k) for k in WHO if k in values}
    return {**own, **values.get("profile", {})}


def use(source: Source, values: Mapping[str, Any], by: str, why: str) -> SourceVersion:
    """Bring a source to these values, as a new version. Raises ProfileError or ValidationError, and changes nothing."""
    sources.check(values["profile"])
    with transaction.atomic(), author(by, why):
        row = Source.objects.select_for_update().get(pk=source.pk)
        for name in WHO:
            if name in values:
                setattr(row, name, values[name])
        row.profile = dict(values["profile"])
        row.full_clean(validate_unique=False, validate_constraints=False)
        row.save()
        version = row.versions.first()
        assert version is not None
    source.refresh_from_db()
    sources.forget()
    return version


def go_back(source: Source, number: int, by: str, why: str) -> SourceVersion:
    """Use an earlier version again; this is a new version too. Raises SourceVersion.DoesNotExist."""
    earlier = source.versions.get(number=number)
    return use(source, earlier.values, by, f"Back to version {number}. {why}".strip()[:300])


def keep(source: Source) -> SourceVersion:
    """The version of a source as it is now; a new one when it differs from the last."""
    with transaction.atomic():
        Source.objects.select_for_update().filter(pk=source.pk).values("pk").first()
        last = source.versions.first()
        values = values_of(source)
        if last is not None and last.values == values:
            return last
        by, why = _author.get()
        number = max(source.version, last.number + 1 if last else 1)
        made = SourceVersion.objects.create(
            source=source,
            number=number,
            at=now(),
            by=by or cause.system("unknown"),
            why=why[:300],
            values=values,
        )
        if source.version != number:
            Source.objects.filter(pk=source.pk).update(version=number)
            source.version = number
        return made


def history(source: Source) -> list[tuple[SourceVersion, list[Difference]]]:
    """All versions, newest first, each with what differs from the one before it."""
    keep(source)  # a source made before there were versions
    rows = list(source.versions.all()[:200])
    before = [row.values for row in rows[1:]] + [{"profile": {}}]
    return [(row, differences(old, row.values)) for row, old in zip(rows, before, strict=True)]


def _saved(instance: Source, raw: bool = False, **_: Any) -> None:
    if not raw and not instance.temporary:
        keep(instance)


def connect() -> None:
    """Keep a version at each save; called once, when Django is ready."""
    post_save.connect(_saved, sender=Source, dispatch_uid="source-versions")


__all__ = [
    "Difference",
    "ValidationError",
    "author",
    "connect",
    "differences",
    "go_back",
    "history",
    "keep",
    "use",
]
