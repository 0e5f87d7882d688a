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

from common.models import Site
from common.uids import is_uid
from integration.models import Destination, Source
from pacs.models import ApplicationEntity
from ris.models import ProcedureDefinition, Station


class SiteError(ValueError):
    """A site file that cannot be loaded; the text names file, line and key, and what is allowed."""


@dataclass(frozen=True)
class Section:
    """How one kind of table of site.toml becomes rows: key → (attribute, kind), and the natural key.

    `rest` names the JSON attribute that takes every key of `rest_keys()`.
    """

    model: type[models.Model]
    natural: tuple[str, ...]
    keys: dict[str, tuple[str, type]]
    rest: str = ""
    rest_keys: Callable[[], frozenset[str]] = frozenset
    required: tuple[str, ...] = ()


def _profile_keys() -> frozenset[str]:
    """The keys of a source's profile, as the HL7 door knows them."""
    return _keys_of("integration.sources", "PROFILE_KEYS")


def _destination_keys() -> frozenset[str]:
    """The settings of a destination, as the sender knows them."""
    return _keys_of("integration.destinations", "SETTING_KEYS")


def _ae_keys() -> frozenset[str]:
    """The settings of a DICOM peer, as the archive and the worklist know them."""
    return _keys_of("pacs.peers", "SETTING_KEYS") | _keys_of("worklist.peers", "SETTING_KEYS")


def _keys_of(module: str, table: str) -> frozenset[str]:
    try:
        return frozenset(getattr(import_module(module), table))
    except ModuleNotFoundError:
        return frozenset()


SITE_SETTINGS = frozenset(
    {"alert_mail", "alert_webhook", "alert_after_minutes", "quiet_seconds", "work_list_url"}
)

SECTIONS = {
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
        rest_keys=_profile_keys,
        required=("name",),
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
        rest_keys=_destination_keys,
        required=("name",),
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
        required=("title",),
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
        },
        required=("code", "name"),
    ),
}
SITE_KEYS = {"name": str, "timezone": str, "live": bool, "uid_root": str, "settings": dict}


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
        if name != "site" and name not in SECTIONS:
            known = ", ".join(["[site]", *(f"[[{one}]]" for one in SECTIONS)])
            raise file.error(name, 0, "", f"unknown section {name!r}; there are {known}")
    done: dict[str, Loaded] = {}
    with transaction.atomic():
        if "site" in file.content:
            done["site"] = _load_site(file)
        for name, section in SECTIONS.items():
            tables = file.content.get(name, [])
            if not isinstance(tables, list):
                raise file.error(name, 0, "", f"write [[{name}]] with two brackets: there may be several")
            for number, table in enumerate(tables):
                _load_row(file, name, section, number, table, done.setdefault(name, Loaded()))
    write_site_file()
    return done


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


def _load_site(file: _File) -> Loaded:
    table = file.content["site"]
    if not isinstance(table, dict):
        raise file.error("site", 0, "", "write [site] with one bracket: there is one site")
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in SITE_KEYS:
            known = ", ".join(SITE_KEYS)
            raise file.error("site", 0, key, f"unknown key {key!r} in [site]; there are {known}")
        values[key] = _checked(file, "site", 0, key, value, SITE_KEYS[key])
    for key in values.get("settings", {}):
        if key not in SITE_SETTINGS:
            known = ", ".join(sorted(SITE_SETTINGS))
            raise file.error("site", 0, key, f"unknown key {key!r} in [site.settings]; there are {known}")
    try:
        ZoneInfo(values.get("timezone", "UTC"))
    except (ZoneInfoNotFoundError, ValueError):
        raise file.error(
            "site",
            0,
            "timezone",
            f"there is no time zone {values['timezone']!r}; write it like Europe/Berlin",
        ) from None
    if (root := values.get("uid_root")) and not (is_uid(root) and len(root) <= 24):
        raise file.error("site", 0, "uid_root", "uid_root must be a UID of at most 24 characters")
    return _stored(file, "site", 0, Site.objects.filter(pk=1).first() or Site(pk=1), values, Loaded())


def _load_row(
    file: _File, name: str, section: Section, number: int, table: dict[str, Any], done: Loaded
) -> Loaded:
    for key in section.required:
        if key not in table:
            raise file.error(name, number, "", f"[[{name}]] needs a {key}")
    values: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for key, value in table.items():
        if key in section.keys:
            attribute, kind = section.keys[key]
            values[attribute] = _checked(file, name, number, key, value, kind)
        elif key in (others := section.rest_keys()):
            rest[key] = value
        else:
            known = ", ".join([*section.keys, *sorted(others)])
            raise file.error(name, number, key, f"unknown key {key!r} in [[{name}]]; there are {known}")
    if section.rest:
        values[section.rest] = rest
    natural = {attribute: values.get(attribute, "") for attribute in section.natural}
    row = section.model._default_manager.filter(**natural).first() or section.model(**natural)
    return _stored(file, name, number, row, values, done)


def _checked(file: _File, section: str, number: int, key: str, value: Any, kind: type) -> Any:
    if type(value) is kind:
        return value
    words = {str: "text in quotes", int: "a number", bool: "true or false", list: "a list", dict: "a table"}
    raise file.error(section, number, key, f"{key} in {section} must be {words[kind]}")


def _stored(
    file: _File, section: str, number: int, row: models.Model, values: dict[str, Any], done: Loaded
) -> Loaded:
    new = row._state.adding
    changed = new or any(getattr(row, attribute) != value for attribute, value in values.items())
    if not changed:
        done.unchanged += 1
        return done
    for attribute, value in values.items():
        setattr(row, attribute, value)
    if isinstance(row, Source) and not new:
        row.version += 1
    try:
        row.full_clean(validate_unique=False, validate_constraints=False)
    except ValidationError as trouble:
        attribute, texts = next(iter(trouble.message_dict.items()))
        raise file.error(section, number, attribute, f"{attribute} in {section}: {texts[0]}") from None
    row.save()
    done.created += new
    done.changed += not new
    return done


# -------------------------------------------------------------------------------------------------- dump


def dump() -> str:
    """The site as TOML that `load` reads back to the same rows; a rehearsal's own rows are left out."""
    site = Site.objects.filter(pk=1).first() or Site(pk=1)
    parts = [_table("[site]", {key: getattr(site, key) for key in SITE_KEYS})]
    for name, section in SECTIONS.items():
        rows = section.model._default_manager.order_by(*section.natural)
        if any(f.name == "temporary" for f in section.model._meta.get_fields()):
            rows = rows.filter(temporary=False)
        for row in rows:
            values = {key: getattr(row, attribute) for key, (attribute, _) in section.keys.items()}
            if section.rest:
                values |= getattr(row, section.rest)
            parts.append(_table(f"[[{name}]]", values))
    return "\n".join(parts)


def _table(header: str, values: dict[str, Any]) -> str:
    kept = {key: value for key, value in values.items() if value not in (None, "", [], {})}
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
