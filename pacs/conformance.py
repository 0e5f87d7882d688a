"""What the archive says of itself (PS3.2): tables made from the code, for docs/dicom.md and a peer's engineer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from django.conf import settings
from pydicom._uid_dict import UID_dictionary
from pydicom.datadict import keyword_for_tag
from pydicom.uid import UID
from pynetdicom.sop_class import _STORAGE_CLASSES

from pacs.dimse import association, command, negotiation, server, stream
from pacs.dimse.admission import Limits
from pacs.dimse.registry import TRANSFER_SYNTAXES, Entry, Registry, load
from pacs.matching import TABLES, Attribute, Level, Matching
from pacs.services import find
from pacs.services.store import storage_classes

_TABLE = re.compile(
    r"(<!-- table: (\w+), made by `manage\.py conformance --write` -->\n).*?(<!-- end -->)", re.S
)


class NoSuchTable(LookupError):
    """A page asks for a table that is not made here."""


def registry() -> Registry:
    """Everything that the listener serves."""
    return load((*server.SERVICES, *getattr(settings, "ORDERLY_DIMSE_SERVICES", ())))


def _rows(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def services() -> str:
    """Every SOP class but those of storage: what may be asked, and which right it needs."""
    entries = [entry for entry in registry() if entry.service != "store"]
    found = [
        (
            _name(one.sop_class_uid),
            one.sop_class_uid,
            ", ".join(one.handlers),
            f"`{one.service}`",
            _syntaxes(one),
        )
        for one in entries
    ]
    found.append((f"{len(storage_classes())} storage classes, see below", "", "C-STORE", "`store`", "any"))
    return _rows(("SOP class", "UID", "we answer", "right", "transfer syntaxes"), found)


def _syntaxes(entry: Entry) -> str:
    if entry.transfer_syntaxes is None:
        return "any"
    plain = entry.transfer_syntaxes == TRANSFER_SYNTAXES
    return "plain" if plain else ", ".join(UID(uid).name for uid in entry.transfer_syntaxes)


def syntaxes() -> str:
    """What `plain` means in the table of services."""
    return _rows(("plain transfer syntaxes", "UID"), [(UID(uid).name, uid) for uid in TRANSFER_SYNTAXES])


def keys() -> str:
    """What C-FIND matches and returns, level by level."""
    rows = []
    for level in (Level.PATIENT, Level.STUDY, Level.SERIES, Level.IMAGE):
        for row in TABLES[level].values():
            if row.level is level:
                rows.append(_key(level, row))
                rows += [_key(level, item, "› ") for item in row.items]
        for tag in find.PATIENT_COUNTS if level is Level.PATIENT else ():
            rows.append((level.value.lower(), keyword_for_tag(tag), _tag(tag), "IS", Matching.NONE.value))
    return _rows(("level", "key", "tag", "VR", "matching"), rows)


def _key(level: Level, row: Attribute, mark: str = "") -> tuple[str, ...]:
    words = {Matching.CODE: "the whole value, in any case", Matching.DATE_TEXT: Matching.DATE.value}
    said = words.get(row.kind, row.kind.value)
    return level.value.lower(), f"{mark}{row.keyword}", _tag(row.tag), row.vr, said


def limits() -> str:
    """Sizes, times and numbers that the listener holds to."""
    most = Limits()
    rows = [
        ("a P-DATA-TF PDU, either way", f"{stream.MAX_PDU >> 10} KiB"),
        ("any other PDU", f"{stream.MAX_CONTROL_PDU >> 10} KiB"),
        ("a command set", f"{command.MAX_COMMAND_BYTES >> 10} KiB, {command.MAX_COMMAND_ELEMENTS} elements"),
        ("presentation contexts of an association", str(negotiation.MAX_CONTEXTS)),
        ("from the connection to the whole association request", f"{server.SET_UP_SECONDS:.0f} s"),
        ("a PDU from its first byte, and a write", f"{stream.PDU_SECONDS:.0f} s"),
        ("between two PDUs of one message", f"{association.MESSAGE_SECONDS:.0f} s"),
        (
            "between two messages",
            f"{server.IDLE_SECONDS:.0f} s; {server.UNKNOWN_IDLE_SECONDS:.0f} s for a caller that nobody named",
        ),
        ("connections without a whole request, each process", str(server.MAX_PENDING)),
        ("associations in all (`ORDERLY_DICOM_ASSOCIATIONS`)", str(most.total)),
        ("of them with storage classes", str(most.storage)),
        ("of them by callers that nobody named", str(most.unknown)),
        ("of them from one address", str(most.one_address)),
    ]
    return _rows(("what", "at most"), rows)


def storage() -> str:
    """Every storage SOP class of the standard that is taken."""
    return _rows(
        ("storage SOP class", "UID"), [(_name(uid), uid) for uid in sorted(storage_classes(), key=_by_name)]
    )


def installation() -> str:
    """What this installation adds: titles, ports, private classes."""
    titles = getattr(settings, "ORDERLY_AE_TITLES", None) or [settings.ORDERLY_AE_TITLE]
    private = getattr(settings, "ORDERLY_PRIVATE_STORAGE", ()) or ["none"]
    tls = str(settings.ORDERLY_DICOM_TLS_PORT) if settings.ORDERLY_TLS_CERTIFICATE else "off: no certificate"
    return _rows(
        ("this installation", ""),
        [
            ("AE titles", ", ".join(titles)),
            ("port", str(settings.ORDERLY_DICOM_PORT)),
            ("port with TLS", tls),
            ("private storage classes", ", ".join(private)),
        ],
    )


#: Name in a page → the table.
TABLES_OF_PAGES: dict[str, Callable[[], str]] = {
    "services": services,
    "syntaxes": syntaxes,
    "keys": keys,
    "limits": limits,
    "storage": storage,
}


def statement() -> str:
    """All tables, this installation's own first."""
    return "\n".join(table() for table in (installation, *TABLES_OF_PAGES.values()))


def filled(page: str) -> str:
    """A page with its tables made anew. Raises NoSuchTable."""

    def made(match: re.Match[str]) -> str:
        if match[2] not in TABLES_OF_PAGES:
            raise NoSuchTable(f"there is no table {match[2]!r}; there are {', '.join(TABLES_OF_PAGES)}")
        return f"{match[1]}{TABLES_OF_PAGES[match[2]]()}{match[3]}"

    return _TABLE.sub(made, page)


def _tag(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


_KEYWORDS = {str(uid): keyword for keyword, uid in _STORAGE_CLASSES.items()}


def _name(uid: str) -> str:
    known = UID_dictionary.get(uid)
    if known:
        return known[0].replace(" (Retired)", "") + (" (retired)" if known[3] else "")
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", _KEYWORDS.get(uid, uid))


def _by_name(uid: str) -> tuple[str, str]:
    return _name(uid), uid
