"""site.toml: what differs from site to site, loaded into rows and dumped from them.

Loading is idempotent: a row is found by its natural key, made or changed; rows the file does not name stay.
An unknown key, or a value of the wrong kind, is an error that names its line; then nothing is changed.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models, transaction

from common import cause
from common.models import Site
from common.uids import is_uid
from integration import destinations, sources
from integration.analyst import versions
from integration.models import Destination, Source
from pacs.models import ApplicationEntity, RoutingRule
from ris.models import ProcedureDefinition, Station

LONGEST_UID_ROOT = 24  # 39 digits of a random number and a dot follow it, of 64 characters


class SiteError(ValueError):
    """A site file that cannot be loaded; the text names file, line and key, and what is allowed."""


@dataclass(frozen=True)
class Section:
    """How one kind of table of site.toml becomes rows: key → (attribute, kind), and the natural key.

    `rest` names the JSON attribute that takes every key of `rest_keys()`; `check` looks at what it got and
    raises an error with the `key` at fault. `rows_of` are keys that name a row of another section: key →
    (attribute, model, the name's attribute).
    """

    model: type[models.Model]
    natural: tuple[str, ...]
    keys: dict[str, tuple[str, type]]
    rest: str = ""
    rest_keys: Callable[[], frozenset[str]] = frozenset
    rows_of: dict[str, tuple[str, type[models.Model], str]] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    check: Callable[[dict[str, Any]], None] = lambda rest: None


def _ae_keys() -> frozenset[str]:
    """The settings of a DICOM peer, as the archive and the worklist know them."""
    return _keys_of("pacs.peers") | _keys_of("worklist.peers")


def _keys_of(module: str) -> frozenset[str]:
    try:
        return frozenset(import_module(module).SETTING_KEYS)
    except ModuleNotFoundError:
        return frozenset()


def _check_destination(rest: dict[str, Any]) -> None:
    for key, value in rest.items():
        default = destinations.described()[key].default
        number = isinstance(default, float) and type(value) is int
        if type(value) is not type(default) and not number:
            raise KeyFault(key, f"must be {_KINDS[type(default)]}")


def _check_ae(rest: dict[str, Any]) -> None:
    from worklist import peers

    try:
        peers.read(rest)
    except ValueError as trouble:
        raise KeyFault("worklist", str(trouble)) from None


class KeyFault(ValueError):
    """A value that a room does not take; `key` is at fault."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(f"{key}: {text}")
        self.key = key


_KINDS = {
    str: "text in quotes",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list in [ ]",
    dict: "a table in { }",
}
# Read by integration/sweeper.py (alert_…) and pacs/indexing.py.
SITE_SETTINGS = frozenset(
    {"alert_mail", "alert_webhook", "alert_after_minutes", "quiet_seconds", "fhir_systems"}
)

SECTIONS = {
    "site": Section(
        Site,
        (),
        {
            "name": ("name", str),
            "timezone": ("timezone", str),
            "live": ("live", bool),
            "uid_root": ("uid_root", str),
        },
        rest="settings",
        rest_keys=lambda: SITE_SETTINGS,
    ),
    "source": Section(
        Source,
        ("name",),
        {
            "name": ("name", str),
            "application": ("application", str),
            "facility": ("facility", str),
            "address": ("address", str),
            "enabled": ("enabled", bool),
        },
        rest="profile",
        rest_keys=lambda: sources.PROFILE_KEYS,
        required=("name",),
        check=sources.check,
    ),
    "destination": Section(
        Destination,
        ("name",),
        {
            "name": ("name", str),
            "kind": ("kind", str),
            "host": ("host", str),
            "port": ("port", int),
            "url": ("url", str),
            "version": ("version", str),
            "messages": ("messages", list),
            "enabled": ("enabled", bool),
        },
        rest="settings",
        rest_keys=lambda: destinations.SETTING_KEYS,
        required=("name",),
        check=_check_destination,
    ),
    "ae": Section(
        ApplicationEntity,
        ("title", "host"),
        {
            "title": ("title", str),
            "host": ("host", str),
            "port": ("port", int),
            "services": ("services", list),
            "description": ("description", str),
            "enabled": ("enabled", bool),
            "tls": ("tls", bool),
            "certificate_sha256": ("certificate_sha256", str),
        },
        rest="settings",
        rest_keys=_ae_keys,
        required=("title", "services"),
        check=_check_ae,
    ),
    "route": Section(
        RoutingRule,
        ("name",),
        {
            "name": ("name", str),
            "modalities": ("modalities", list),
            "calling_aes": ("calling_aes", list),
            "description": ("description", str),
            "after_match": ("after_match", bool),
            "enabled": ("enabled", bool),
        },
        rows_of={"destination": ("destination", ApplicationEntity, "title")},
        required=("name", "destination"),
    ),
    "station": Section(
        Station,
        ("name",),
        {
            "name": ("name", str),
            "ae": ("ae_title", str),
            "modality": ("modality", str),
            "room": ("room", str),
        },
        required=("name",),
    ),
    "procedure": Section(
        ProcedureDefinition,
        ("code",),
        {
            "code": ("code", str),
            "name": ("name", str),
            "modality": ("modality", str),
            "steps": ("steps", list),
            "minutes": ("minutes", int),
            "stations": ("stations", list),
        },
        required=("code", "name"),
    ),
}


# -------------------------------------------------------------------------------------------------- load


@dataclass
class Loaded:
    """What a load did, per section."""

    created: int = 0
    changed: int = 0
    unchanged: int = 0


@dataclass
class _File:
    """A site file, with the places of its keys for errors."""

    path: Path
    content: dict[str, Any]
    lines: dict[tuple[str, int, str], int] = field(default_factory=dict)

    def error(self, section: str, number: int, key: str, text: str) -> SiteError:
        line = self.lines.get((section, number, key)) or self.lines.get((section, number, ""))
        return SiteError(f"{self.path}, line {line or '?'}: {text}")


def load(path: Path) -> dict[str, Loaded]:
    """Bring the database to what the file says, all or nothing. Raises SiteError."""
    file = _read(path)
    for name in file.content:
        if name not in SECTIONS:
            known = ", ".join("[site]" if one == "site" else f"[[{one}]]" for one in SECTIONS)
            raise file.error(name, 0, "", f"unknown section {name!r}; there are {known}")
    done: dict[str, Loaded] = {}
    with transaction.atomic(), versions.author(cause.system("site load"), f"Loaded from {path.name}"):
        for name, section in SECTIONS.items():
            if name in file.content:
                done[name] = Loaded()
                for number, table in enumerate(_tables(file, name)):
                    _load_row(file, name, section, number, table, done[name])
    write_site_file()
    return done


def _tables(file: _File, name: str) -> list[dict[str, Any]]:
    found = file.content[name]
    if name == "site":
        if not isinstance(found, dict):
            raise file.error(name, 0, "", "write [site] with one bracket: there is one site")
        _check_site(file, found)
        return [found]
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise file.error(name, 0, "", f"write [[{name}]] with two brackets: there may be several")
    return found


def _read(path: Path) -> _File:
    try:
        text = path.read_text(encoding="utf-8")
        return _File(path, tomllib.loads(text), dict(_places(text)))
    except OSError as trouble:
        raise SiteError(f"{path} cannot be read: {trouble.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as trouble:
        raise SiteError(f"{path} is no TOML file: {trouble}.") from None


def _places(text: str) -> Iterator[tuple[tuple[str, int, str], int]]:
    """(section, number of its table, key) → line, for headers (key "") and keys at a line's beginning."""
    counts: dict[str, int] = {}
    section, number = "", 0
    for line, content in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*(\[\[?)\s*\"?([\w-]+)", content):
            section = header.group(2)
            if header.group(1) == "[[":
                counts[section] = counts.get(section, -1) + 1
            number = counts.get(section, 0)
            yield (section, number, ""), line
        elif key := re.match(r"\s*\"?([\w-]+)\"?\s*[=.]", content):
            yield (section or key.group(1), number, key.group(1) if section else ""), line


def _check_site(file: _File, table: dict[str, Any]) -> None:
    try:
        ZoneInfo(str(table.get("timezone", "UTC")))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        text = f"there is no time zone {table['timezone']!r}; write it like Europe/Berlin"
        raise file.error("site", 0, "timezone", text) from None
    root = str(table.get("uid_root", ""))
    if root and not (is_uid(root) and len(root) <= LONGEST_UID_ROOT):
        text = f"uid_root must be a UID of at most {LONGEST_UID_ROOT} characters"
        raise file.error("site", 0, "uid_root", text)


def _load_row(
    file: _File, name: str, section: Section, number: int, table: dict[str, Any], done: Loaded
) -> None:
    for key in section.required:
        if key not in table:
            raise file.error(name, number, "", f"[[{name}]] needs a {key}")
    values: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    others = section.rest_keys()
    for key, value in table.items():
        if key in section.keys:
            attribute, kind = section.keys[key]
            if type(value) is not kind:
                raise file.error(name, number, key, f"{key} must be {_KINDS[kind]}")
            values[attribute] = value
        elif key in section.rows_of:
            attribute, model, named = section.rows_of[key]
            found = model._default_manager.filter(**{named: value}).order_by("pk").first()
            if not isinstance(value, str) or found is None:
                raise file.error(name, number, key, f"{key}: nothing is called {value!r} here")
            values[attribute] = found
        elif key in others:
            rest[key] = value
        else:
            known = ", ".join([*section.keys, *section.rows_of, *sorted(others)])
            raise file.error(name, number, key, f"unknown key {key!r} in {name}; there are {known}")
    if section.rest:
        try:
            section.check(rest)
        except (KeyFault, sources.ProfileError) as trouble:
            raise file.error(name, number, trouble.key, str(trouble)) from None
        values[section.rest] = rest
    natural = {attribute: values.get(attribute, "") for attribute in section.natural} or {"pk": 1}
    row = section.model._default_manager.filter(**natural).first() or section.model(**natural)
    _store(file, name, number, row, values, done)


def _store(
    file: _File, section: str, number: int, row: models.Model, values: dict[str, Any], done: Loaded
) -> None:
    new = row._state.adding
    if not new and all(getattr(row, attribute) == value for attribute, value in values.items()):
        done.unchanged += 1
        return
    for attribute, value in values.items():
        setattr(row, attribute, value)
    try:
        row.full_clean(validate_unique=False, validate_constraints=False)
    except ValidationError as trouble:
        attribute, texts = next(iter(trouble.message_dict.items()))
        key = {made: key for key, (made, _) in SECTIONS[section].keys.items()}.get(attribute, attribute)
        raise file.error(section, number, key, f"{key}: {texts[0]}") from None
    row.save()
    done.created += new
    done.changed += not new


# -------------------------------------------------------------------------------------------------- dump


def dump() -> str:
    """The site as TOML that `load` reads back to the same rows; a rehearsal's own rows are left out."""
    parts = []
    for name, section in SECTIONS.items():
        rows = section.model._default_manager.order_by(*section.natural)
        if any(one.name == "temporary" for one in section.model._meta.get_fields()):
            rows = rows.filter(temporary=False)
        for row in rows:
            values = {key: getattr(row, attribute) for key, (attribute, _) in section.keys.items()}
            for key, (attribute, _, named) in section.rows_of.items():
                values[key] = getattr(getattr(row, attribute), named)
            if section.rest:
                values |= getattr(row, section.rest)
            parts.append(_table("[site]" if name == "site" else f"[[{name}]]", values))
    return "\n".join(parts)


def _table(header: str, values: dict[str, Any]) -> str:
    kept = {key: value for key, value in values.items() if value is not None and value != ""}
    return "\n".join([header, *(f"{_key(key)} = {_toml(value)}" for key, value in kept.items())]) + "\n"


def _key(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else json.dumps(text)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, dict):
        inner = ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items() if v is not None)
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(one) for one in value)}]"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML's basic string


# --------------------------------------------------------------------------------------------- site.json


def write_site_file() -> None:
    """Keep in the data directory what a process must know before it can ask the database (settings.py)."""
    site = Site.objects.filter(pk=1).first()
    if site is None:
        return
    path = Path(settings.DATA_DIR) / "site.json"
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps({"timezone": site.timezone, "uid_root": site.uid_root}))
    draft.replace(path)
