"""ORU^R01: a signed report version as a destination wants it (chapter 7.3; OBR, OBX of 7.4.1 and 7.4.2)."""

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from common.clock import to_site
from common.names import parse_pn
from integration.destinations import setting
from integration.hl7v2.composing import Encoded
from integration.hl7v2.escapes import escape
from integration.hl7v2.outgoing import (
    ComposeError,
    Payload,
    Segments,
    Style,
    cnn,
    encode,
    facility_of,
    header,
    instant,
    pid,
    place_ids,
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
    "document": "18748-4^Diagnostic Imaging Report^LN",
    "note": "R^REPORT^L",
}

_RETRACTED = "This report has been retracted."
_LEFT_OUT = "The document of this report is larger than this interface takes and is not part of this message."


def compose(facts: Mapping[str, Any], destination: Destination, control_id: str) -> bytes:
    """The message of one report version. Pure but for the site's name; the same facts give the same bytes.

    `facts` are those of integration/outbox.py (`order`, `patient`, `procedure`, `report`, …). Raises
    ComposeError when the destination's settings or the facts make no message.
    """
    style = style_of(destination)
    report = facts["report"]
    if report["status"] not in STATUS:
        raise ComposeError(f"A report version of status {report['status']} is not sent.")
    companions = facts.get("companions", []) if setting(destination, "combined") else []
    segments: Segments = [
        header(destination, style, "ORU", "R01", control_id, facts["at"]),
        pid(facts["patient"]),
    ]
    if facts["visit"]:
        segments.append(pv1(facts["visit"], facts["order"], style))
    control = "CN" if companions else str(setting(destination, "order_control"))
    segments += _group(facts, destination, style, control, 1)
    text = sections(facts, str(setting(destination, "addendum")))
    segments += observations(facts, destination, style, text)
    for number, companion in enumerate(companions, start=2):
        segments += _group(facts, destination, style, control, number, companion)
    return encode(segments, style)


def _group(
    facts: Mapping[str, Any],
    destination: Destination,
    style: Style,
    control: str,
    number: int,
    companion: Mapping[str, Any] | None = None,
) -> Segments:
    """ORC (unless the destination wants none), OBR and ZDS of the report's procedure, or of one it reports with."""
    order, report = facts["order"], facts["report"]
    procedure = companion or facts["procedure"]
    obr_25, _, orc_5 = STATUS[report["status"]]
    requester = xcn(order["requested_by_id"], order["requested_by"], style)
    orc: dict[int, Any] = {1: control, 5: orc_5, 12: requester}
    obr: dict[int, Any] = {
        1: str(number),
        4: service(procedure),
        7: instant(facts["started"] or report["signed_at"]),
        16: requester,
        22: instant(report["signed_at"]),
        24: facts["modality"] or "RAD",
        25: setting(destination, "result_status").get(obr_25, obr_25),
        31: ("", procedure["reason"]) if procedure["reason"] else None,
        32: cnn(report["signer_id"], report["signer_name"]),
    }
    zds = place_ids(facts, destination, orc, obr, companion)
    return [*([("ORC", orc)] if control else []), ("OBR", obr), *zds]


# ---------------------------------------------------------------------------------------------- observations


_TEXT_STYLES = ("lines", "FT", "repeat")


def observations(
    facts: Mapping[str, Any], destination: Destination, style: Style, text: list[tuple[str, list[str]]]
) -> Segments:
    """OBX: study UIDs, then the sections of text, then the document, as `obx_style` says. Raises ComposeError."""
    codes = {**OBX_CODES, **setting(destination, "obx_codes")}
    mapped = STATUS[facts["report"]["status"]][1]
    status = setting(destination, "observation_status").get(mapped, mapped)
    written: Segments = []

    def add(kind: str, section: str, value: Any, part: str = "") -> None:
        code = tuple(codes[section].split("^"))
        written.append(("OBX", {1: len(written) + 1, 2: kind, 3: code, 4: part, 5: value, 11: status}))

    if setting(destination, "send_study_uids"):
        for uid in facts["study_instance_uids"]:
            add("ST", "study", uid)
    texts, document = _styles(destination)
    pdf = _document(facts, destination, text) if document else None
    left_out = pdf is not None and _too_large(pdf, destination)
    for section, lines in text:
        for how in texts or (("lines",) if left_out else ()):
            pieces = list(_pieces(lines, how, destination, style))
            several = how != "lines" and len(pieces) > 1
            for number, value in enumerate(pieces, start=1):
                add("FT" if how == "FT" else "TX", section, value, str(number) if several else "")
    if left_out:
        add("TX", "note", _LEFT_OUT)
    elif pdf is not None:
        kind, _, subtype = str(setting(destination, "pdf_subtype")).partition("^")
        payload = Payload(base64.b64encode(pdf).decode())
        add("ED", "document", ("", kind, subtype, "Base64", payload))
    return written


def _styles(destination: Destination) -> tuple[tuple[str, ...], bool]:
    """The text styles a destination wants, and whether it wants the document."""
    said = [part.strip() for part in str(setting(destination, "obx_style")).split("+")]
    texts = tuple(part for part in said if part in _TEXT_STYLES)
    if len(texts) > 1 or set(said) - {*_TEXT_STYLES, "PDF"}:
        raise ComposeError(
            f"Setting `obx_style` of {destination.name} must be one of {', '.join(_TEXT_STYLES)}, PDF, or one and PDF."
        )
    return texts, "PDF" in said


def _document(facts: Mapping[str, Any], destination: Destination, text: list[tuple[str, list[str]]]) -> bytes:
    from integration.documents import CannotDraw, report_pdf  # fonts and all: only where a document is drawn

    try:
        return report_pdf(facts, text, facility_of(destination), setting(destination, "pdf_fonts"))
    except CannotDraw as error:
        raise ComposeError(str(error)) from None


def _too_large(pdf: bytes, destination: Destination) -> bool:
    """Whether the document is left out, which the message then says. Raises ComposeError where a person decides."""
    most = int(setting(destination, "pdf_most_kb"))
    if not most or len(pdf) <= most * 1000:
        return False
    if setting(destination, "pdf_too_large") != "text":
        raise ComposeError(
            f"The PDF has {len(pdf) // 1000} kB, `pdf_most_kb` of {destination.name} is {most}."
        )
    return True


def _pieces(lines: list[str], how: str, destination: Destination, style: Style) -> Iterator[Any]:
    """The values of OBX-5 of one section, none longer than the destination takes; nothing is lost between them."""
    most = int(setting(destination, "obx_5_most"))
    lines = list(_wrapped(lines, int(setting(destination, "line_length"))))
    separators = style.separators
    if most:
        lines = [part for line in lines for part in broken(line, most, lambda c: len(escape(c, separators)))]
    if how == "lines":
        yield from (line or " " for line in lines)  # an empty OBX-5 would say "no change"
        return
    mark = f"{separators.escape}.br{separators.escape}" if how == "FT" else separators.repetition
    for part in _filled(lines, most, mark, lambda text: len(escape(text, separators))):
        if how == "FT":
            yield Encoded(mark.join(escape(line, separators) for line in part))
        else:
            yield [line or " " for line in part]


def _filled(lines: list[str], most: int, mark: str, length: Callable[[str], int]) -> Iterator[list[str]]:
    """The lines in groups that are not longer than `most` together with the marks between them; 0: one group."""
    group: list[str] = []
    filled = 0
    for line in lines:
        size = max(length(line), 1)
        if group and most and filled + len(mark) + size > most:
            yield group
            group, filled = [], 0
        filled += size + (len(mark) if group else 0)
        group.append(line)
    if group:
        yield group


def _wrapped(lines: list[str], width: int) -> Iterator[str]:
    for line in lines:
        yield from broken(line, width) if width > 0 else (line,)


def broken(line: str, most: int, length: Callable[[str], int] = len) -> Iterator[str]:
    """A line in parts of at most `most` characters, broken at a space (which the break stands for) where it can be.

    `length` says how long one character becomes. Raises ComposeError when a single character is too long.
    """
    start = 0
    while True:
        end, size, space = start, 0, 0
        while end < len(line) and size + length(line[end]) <= most:
            size += length(line[end])
            end += 1
        if end == len(line):
            yield line[start:]
            return
        if end == start:
            raise ComposeError(
                "Settings `obx_5_most` and `line_length` are too small for a single character."
            )
        space = end if line[end] == " " else line.rfind(" ", start + 1, end)
        if space > start:
            yield line[start:space]
            start = space + 1
        else:
            yield line[start:end]
            start = end


# --------------------------------------------------------------------------------------------------- the text


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
