"""An interface specification in Markdown, generated from a source's live profile: what it sends, where we look."""

from integration.hl7v2 import orders, patients, reports, schedule, tables, translate
from integration.models import Source
from integration.sources import FIELDS, POLICIES, Profile, compile_profile

_TITLES = {
    "ADT": "Patients and visits",
    "SIU": "Appointments",
    "ORM": "Orders",
    "OMG": "Orders",
    "OMI": "Orders",
}


def of_source(source: Source) -> str:
    """The specification of one source, with what differs from the defaults marked."""
    profile = compile_profile(source.profile, source.name, source.pk)
    parts = [
        f"# Interface of {source.name}",
        "",
        *_who(source),
        *_accepted(),
        *_places(profile),
        *_choices(profile),
    ]
    return "\n".join(parts) + "\n"


def defaults() -> str:
    """The tables of docs/hl7.md: what is applied, and every key of a profile with its default."""
    profile = compile_profile({})
    return "\n".join([*_accepted(), *_places(profile), *_choices(profile)]).strip() + "\n"


def _who(source: Source) -> list[str]:
    return [
        "| | |",
        "|---|---|",
        f"| sending application (MSH-3) | {source.application} |",
        f"| sending facility (MSH-4) | {source.facility} |",
        f"| address | {source.address} |",
        f"| version of the profile | {source.version} |",
        "",
    ]


def _accepted() -> list[str]:
    lines = ["## Messages that are applied", "", "| message | event | what it does |", "|---|---|---|"]
    for kind, event in translate.applied_events():
        lines.append(f"| {kind} | {event or 'any'} | {_effect(kind, event)} |")
    lines += [
        "",
        "Any other type or event changes nothing, is kept as it came, stands on the messages page under *Kept*, and is",
        "answered AA, or AR where the policy `unknown_type` is `refuse` (it then stands on the list of open messages).",
        "",
        "| kept | event | what it says |",
        "|---|---|---|",
        *(f"| {kind} | {event} | {tables.EVENTS[event]} |" for kind, event in kept_events()),
        "",
    ]
    lines += ["| ORC-1 | meaning (table 0119) | what it does |", "|---|---|---|"]
    for code, action in orders.ACTIONS.items():
        lines.append(f"| {code} | {tables.ORDER_CONTROL[code]} | {action.value} |")
    lines += ["", "| ORC-5 | meaning (table 0038) | the step becomes |", "|---|---|---|"]
    for code, status in orders.STATUSES.items():
        lines.append(f"| {code} | {tables.ORDER_STATUS[code]} | {status or '(unchanged)'} |")
    return [*lines, ""]


def kept_events() -> list[tuple[str, str]]:
    """Events of the standard, of types that are applied, that are not applied themselves."""
    applied = set(translate.applied_events())
    types = {"A": "ADT", "S": "SIU"}
    named = ((types[event[0]], event) for event in tables.EVENTS if event[0] in types)
    return sorted(one for one in named if one not in applied)


def _effect(kind: str, event: str) -> str:
    if kind == "ADT":
        if event in patients.MERGES:
            return f"{tables.EVENTS[event]}: MRG-1 goes into PID-3"
        if event == "A43":
            return "move patient identifiers: those in MRG-1 go to the patient of PID-3, with what came in under them"
        if event in patients.MOVES:
            to = "as PV1-19" if event in patients.VISIT_MOVES else "as PID-18"
            what = "the visit in MRG-5" if event in patients.VISIT_MOVES else "the account in MRG-3"
            return f"{tables.EVENTS[event]}: {what} goes to the patient of PID-3, {to}, with its orders"
        if event == "A47":
            return "change identifier: MRG-1 becomes PID-3, the old one stays as an alias"
        visit = patients.VISIT_STATUS[event]
        return tables.EVENTS[event] + (f"; the visit becomes {visit}" if visit else "")
    if kind == "SIU":
        return tables.EVENTS[event] + (
            ": the step gets time and room" if schedule.BOOKS[event] else ": time given back"
        )
    if kind in ("ORU", "MDM"):
        which = f"{tables.EVENTS[event]}: " if event else ""
        if event in reports.ANNOUNCED:
            return f"{which}as {reports.ANNOUNCED[event]} where it brings the text (OBX), else kept"
        return f"{which}a version of the order's report, where the policy `results` is `file`"
    return (
        "answer to an order: numbers assigned"
        if kind in ("ORR", "ORG", "ORI")
        else "orders, by ORC-1 and ORC-5"
    )


def _places(profile: Profile) -> list[str]:
    lines = ["## Which field holds what", "", "| key | where we look, in this order |", "|---|---|"]
    for key in FIELDS:
        expression = profile.fields[key]
        words = [str(p) for p in expression.places]
        if expression.constant:
            words.append(f"'{expression.constant}'")
        if expression.word:
            words.append(f"*{expression.word}*")
        lines.append(f"| `{key}` | {', '.join(words)} |")
    return [*lines, ""]


def _choices(profile: Profile) -> list[str]:
    lines = ["## How gaps and oddities are handled", "", "| key | value | meaning |", "|---|---|---|"]
    for key, policy in POLICIES.items():
        lines.append(f"| `{key}` | {_shown(profile[key])} | {policy.note} |")
    return [*lines, ""]


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} → {v}" for k, v in value.items()) or "(empty)"
    if isinstance(value, list):
        return ", ".join(str(v) for v in value) or "(empty)"
    return str(value) or "(empty)"
