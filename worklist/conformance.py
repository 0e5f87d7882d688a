"""What the worklist says of itself: its keys as a table, for docs/worklist.md and the conformance statement."""

from pacs.matching import Matching
from worklist.attributes import INNER_BY_TAG, OUTER_BY_TAG, Entry

_WORDS = {
    Matching.NONE: "return key",
    Matching.UID: "list of UID",
    Matching.SINGLE: "single value",
    Matching.CODE: "single value",
    Matching.WILDCARD: "single value, wildcard",
    Matching.NAME: "name, wildcard, any group",
    Matching.DATE: "date, range",
    Matching.DATE_TEXT: "date, range",
    Matching.TIME: "time, range; with a range of dates one period",
    Matching.NUMBER: "number",
    Matching.SEQUENCE: "sequence",
}


def keys_table() -> str:
    """Every attribute of the worklist as a Markdown table: keyword, tag, VR, matching."""
    rows = ["| attribute | tag | VR | matching |", "|---|---|---|---|"]
    for entry in OUTER_BY_TAG.values():
        rows += _rows(entry, "")
    rows.append("| ScheduledProcedureStepSequence | 0040,0100 | SQ | sequence, one item |")
    for entry in INNER_BY_TAG.values():
        rows += _rows(entry, "> ")
    return "\n".join(rows)


def _rows(entry: Entry, indent: str) -> list[str]:
    words = _WORDS[entry.kind] + (", any of several" if entry.array and entry.columns else "")
    tag = f"{entry.tag >> 16:04X},{entry.tag & 0xFFFF:04X}"
    rows = [f"| {indent}{entry.keyword} | {tag} | {entry.vr} | {words} |"]
    for item in entry.items:
        if item.columns:
            rows += _rows(item, f"{indent}> ")
    return rows
