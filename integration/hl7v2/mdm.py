"""MDM: a report version as a document, for those who file documents rather than results (chapter 9.6).

T02 a new document, T04 the final text of a preliminary one, T06 an addendum, T10 a replacement, T11 a cancellation.
"""

import base64
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from integration.destinations import setting
from integration.hl7v2.outgoing import (
    ComposeError,
    Segments,
    Style,
    encode,
    evn,
    header,
    instant,
    numbers,
    pid,
    pv1,
    style_of,
    xcn,
)
from integration.hl7v2.results import observations, sections
from integration.models import Destination

# TXA-17, document completion status (table 0271): pre-authenticated, authenticated.
_COMPLETION = {"PRELIMINARY": "PA", "FINAL": "AU", "ADDENDED": "AU", "CORRECTED": "AU", "RETRACTED": "AU"}


def compose(facts: Mapping[str, Any], destination: Destination, control_id: str) -> bytes:
    """The document message of one report version; the same facts give the same bytes. Raises ComposeError."""
    style = style_of(destination)
    report = facts["report"]
    if report["status"] not in _COMPLETION:
        raise ComposeError(f"A report version of status {report['status']} is not sent.")
    event = event_of(report, facts["previous"])
    segments: Segments = [
        header(destination, style, "MDM", event, control_id, facts["at"]),
        evn(facts["at"], style, event),
        pid(facts["patient"]),
        pv1(facts["visit"], facts["order"], style),
        _txa(facts, destination, style, event),
    ]
    if event != "T11":
        text = sections(facts, "append" if event == "T06" else "replace")
        segments += observations(facts, destination, style, text)
    return encode(segments, style)


def event_of(report: Mapping[str, Any], previous: list[Mapping[str, Any]]) -> str:
    """The trigger event of a version, given those before it."""
    if report["status"] == "RETRACTED":
        return "T11"
    if report["status"] == "ADDENDED":
        return "T06"
    if report["status"] == "CORRECTED":
        return "T10"
    return "T04" if previous else "T02"


def documents(versions: list[Mapping[str, Any]]) -> list[str]:
    """The document number of each version: addendum and correction are documents of their own, a final text is not."""
    found: list[str] = []
    for index, version in enumerate(versions):
        own = index == 0 or event_of(version, versions[:index]) in ("T06", "T10")
        found.append(_short(version["id"]) if own else found[-1])
    return found


def _short(row_id: str) -> str:
    """A row id in 26 characters, for TXA-12 holds 30."""
    return base64.b32encode(UUID(row_id).bytes).decode().rstrip("=")


def _txa(facts: Mapping[str, Any], destination: Destination, style: Style, event: str) -> Any:
    report = facts["report"]
    placer, filler = numbers(facts, destination)
    chain = documents([*sorted(facts["previous"], key=lambda v: v["number"]), report])
    signer = xcn(report["signer_id"], report["signer_name"], style)
    fields: dict[int, Any] = {
        1: "1",
        2: setting(destination, "document_type"),
        3: "AP" if setting(destination, "obx_style") == "PDF" else "TX",
        4: instant(facts["started"] or report["signed_at"]),
        5: signer,
        6: instant(report["signed_at"]),
        9: signer,
        12: (chain[-1],),
        13: (chain[-2],) if event in ("T06", "T10") and len(chain) > 1 else None,
        17: _COMPLETION[report["status"]],
        19: "CA" if event == "T11" else "AV",
    }
    if style.at_least("2.3.1"):
        fields[14], fields[15] = placer, filler
    return ("TXA", fields)
