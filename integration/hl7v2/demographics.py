"""ADT for those who want to know of patients: new, changed, merged (chapter 3.3)."""

from collections.abc import Mapping
from typing import Any

from common.names import parse_pn
from integration.destinations import setting
from integration.hl7v2.names import write_xpn
from integration.hl7v2.outgoing import ComposeError, Segments, cx, encode, evn, header, pid, pv1, style_of
from integration.hl7v2.tables import structure_of
from integration.models import Destination

# What happened → trigger event, unless the destination's `adt_events` say otherwise.
EVENTS = {"created": "A04", "changed": "A08", "merged": "A40"}
_MERGES = ("A18", "A34", "A39", "A40")


def event_of(destination: Destination, happened: str) -> str:
    """The trigger event for `created`, `changed` or `merged`; empty: the destination does not want it."""
    return str(setting(destination, "adt_events").get(happened, EVENTS[happened])).upper()


def compose(facts: Mapping[str, Any], destination: Destination, control_id: str) -> bytes:
    """The message of one change of a patient; the same facts give the same bytes.

    `facts`: `happened`, `patient`, `visit` and, of a merge, `retired` (name, identifiers). Raises ComposeError.
    """
    style = style_of(destination)
    event = event_of(destination, facts["happened"])
    merges = facts["happened"] == "merged"
    if not structure_of("ADT", event) or merges != (event in _MERGES):
        raise ComposeError(f"Setting `adt_events`: {event or 'nothing'} does not say `{facts['happened']}`.")
    if event == "A40" and not style.at_least("2.3.1"):
        event = "A34"
    segments: Segments = [
        header(destination, style, "ADT", event, control_id, facts["at"]),
        evn(facts["at"], style, event),
        pid(facts["patient"]),
    ]
    if merges:
        retired = facts["retired"]
        prior: dict[int, Any] = {1: [cx(i) for i in retired["identifiers"]]}
        if style.at_least("2.3.1"):
            prior[7] = write_xpn(parse_pn(retired["name"])) or None
        segments.append(("MRG", prior))
    else:
        segments.append(pv1(facts["visit"], None, style))
    return encode(segments, style)
