"""ORU^R01: a signed report version as a destination wants it (chapter 7.3; OBR, OBX of 7.4.1 and 7.4.2)."""

import textwrap
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from common.clock import to_site
from common.names import parse_pn
from integration.destinations import setting
from integration.hl7v2.composing import Encoded
from integration.hl7v2.escapes import escape
from integration.hl7v2.outgoing import (
    ComposeError,
    Segments,
    Style,
    cnn,
    encode,
    header,
    instant,
    numbers,
    pid,
    pv1,
    service,
    style_of,
    xcn,
)
from integration.models import Destination

# Status of a report version → OBR-25 (table 0123), OBX-11 (table 0085), ORC-5 (table 0038).
STATUS = {
    "PRELIMINARY": ("P", "P", "A"),
    "FINAL": ("F", "F", "CM"),
    "ADDENDED": ("C", "C", "CM"),
    "CORRECTED": ("C", "C", "CM"),
    "RETRACTED": ("X", "D", "CM"),
}

# OBX-3 by section; a destination maps them with `obx_codes`.
OBX_CODES = {
    "study": "113014^DICOM Study^DCM",
    "findings": "R^REPORT^L",
    "impression": "I^IMPRESSION^L",
    "addendum": "R^REPORT^L",
}

_RETRACTED = "This report has been retracted."


def compose(facts: Mapping[str, Any], destination: Destination, control_id: str) -> bytes:
    """The message of one report version. Pure but for the site's name; the same facts give the same bytes.

    `facts` are those of integration/outbox.py (`order`, `patient`, `procedure`, `report`, …). Raises
    ComposeError when the destination's settings or the facts make no message.
    """
    style = style_of(destination)
    report = facts["report"]
    if report["status"] not in STATUS:
        raise ComposeError(f"A report version of status {report['status']} is not sent.")
    obr_25, obx_11, orc_5 = STATUS[report["status"]]
    segments: Segments = [
        header(destination, style, "ORU", "R01", control_id, facts["at"]),
        pid(facts["patient"]),
    ]
    if facts["visit"]:
        segments.append(pv1(facts["visit"], facts["order"], style))
    if control := setting(destination, "order_control"):
        segments.append(_orc(facts, destination, style, control, orc_5))
    segments.append(_obr(facts, destination, style, obr_25))
    segments += _obx(facts, destination, style, obx_11)
    return encode(segments, style)


def _orc(facts: Mapping[str, Any], destination: Destination, style: Style, control: str, status: str) -> Any:
    placer, filler = numbers(facts, destination)
    order = facts["order"]
    return (
        "ORC",
        {
            1: control,
            2: placer,
            3: filler,
            5: status,
            12: xcn(order["requested_by_id"], order["requested_by"], style),
        },
    )


def _obr(facts: Mapping[str, Any], destination: Destination, style: Style, status: str) -> Any:
    placer, filler = numbers(facts, destination)
    order, procedure, report = facts["order"], facts["procedure"], facts["report"]
    in_18 = order["accession"] if setting(destination, "accession") == "OBR-18" else ""
    return (
        "OBR",
        {
            1: "1",
            2: placer,
            3: filler,
            4: service(procedure),
            7: instant(facts["started"] or report["signed_at"]),
            16: xcn(order["requested_by_id"], order["requested_by"], style),
            18: in_18,
            19: procedure["requested_procedure_id"],
            20: facts["step_id"],
            22: instant(report["signed_at"]),
            24: facts["modality"] or "RAD",
            25: setting(destination, "result_status").get(status, status),
            31: ("", procedure["reason"]) if procedure["reason"] else None,
            32: cnn(report["signer_id"], report["signer_name"]),
        },
    )


def _obx(facts: Mapping[str, Any], destination: Destination, style: Style, status: str) -> Segments:
    """Study UIDs first, then the text by sections, in the destination's style."""
    codes = {**OBX_CODES, **setting(destination, "obx_codes")}
    written: Segments = []

    def add(kind: str, section: str, value: Any) -> None:
        code = tuple(codes[section].split("^"))
        written.append(("OBX", {1: len(written) + 1, 2: kind, 3: code, 5: value, 11: status}))

    if setting(destination, "send_study_uids"):
        for uid in facts["study_instance_uids"]:
            add("ST", "study", uid)
    for section, lines in sections(facts, str(setting(destination, "addendum"))):
        if setting(destination, "obx_style") == "FT":
            add("FT", section, _formatted(lines, style))
            continue
        for line in _wrapped(lines, int(setting(destination, "line_length"))):
            add("TX", section, line or " ")  # an empty OBX-5 would say "no change"
    return written


def sections(facts: Mapping[str, Any], addendum_style: str = "replace") -> list[tuple[str, list[str]]]:
    """The text of a version as (section, lines). `replace`: all of it with every addendum; `append`: what is new."""
    report = facts["report"]
    if report["status"] == "RETRACTED":
        return [("findings", [_RETRACTED, *report["addendum"].splitlines()])]
    addenda = [v for v in _since_last_full_text([*facts["previous"], report]) if v["addendum"]]
    if addendum_style == "append" and report["addendum"]:
        return [("addendum", _addendum(report))]
    parts = [("findings", report["findings"].splitlines()), ("impression", report["impression"].splitlines())]
    parts += [("addendum", _addendum(version)) for version in addenda]
    return [(section, lines) for section, lines in parts if lines]


def _since_last_full_text(versions: list[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """The versions from the last one that is no addendum on: a corrected text makes earlier addenda part of itself."""
    start = 0
    for index, version in enumerate(versions):
        if not version["addendum"]:
            start = index
    return versions[start:]


def _addendum(version: Mapping[str, Any]) -> list[str]:
    signed = to_site(datetime.fromisoformat(version["signed_at"]))
    head = f"ADDENDUM {signed:%Y-%m-%d %H:%M}, {parse_pn(version['signer_name']).display()}:"
    return [head, *version["addendum"].splitlines()]


def _formatted(lines: list[str], style: Style) -> Encoded:
    mark = style.separators.escape
    return Encoded(f"{mark}.br{mark}".join(escape(line, style.separators) for line in lines))


def _wrapped(lines: list[str], width: int) -> Iterable[str]:
    for line in lines:
        if width <= 0 or len(line) <= width:
            yield line
        else:
            yield from textwrap.wrap(line, width, break_long_words=True) or [""]
