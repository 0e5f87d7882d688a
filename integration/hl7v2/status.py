"""How far an order is, as ORM^O01, OMG^O19 or OMI^O23 with ORC-1 SC (chapter 4; ORC-5 is table 0038)."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from integration.destinations import setting
from integration.hl7v2.outgoing import (
    ComposeError,
    Segments,
    encode,
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

# Message type → its event and the first version that has it.
FORMS = {"ORM": ("O01", "2.1"), "OMG": ("O19", "2.4"), "OMI": ("O23", "2.5")}


def compose(
    facts: Mapping[str, Any], destination: Destination, control_id: str, message_type: str = "ORM"
) -> bytes:
    """The status message of one procedure of an order; the same facts give the same bytes.

    `facts["status"]` is ORC-5: SC, IP, CM, CA, DC or HD. Raises ComposeError.
    """
    style = style_of(destination)
    event, since = FORMS[message_type]
    if not style.at_least(since):
        raise ComposeError(f"{message_type}^{event} exists from version {since} on.")
    order, status = facts["order"], facts["status"]
    requester = xcn(order["requested_by_id"], order["requested_by"], style)
    orc: dict[int, Any] = {
        1: setting(destination, "status_control").get(status, "SC"),
        5: setting(destination, "order_status").get(status, status),
        9: instant(facts["at"]),
        12: requester,
    }
    obr: dict[int, Any] = {1: "1", 4: service(facts["procedure"]), 16: requester, 24: facts["modality"]}
    zds = place_ids(facts, destination, orc, obr)
    segments: Segments = [
        header(destination, style, message_type, event, control_id, facts["at"]),
        pid(facts["patient"]),
    ]
    if facts["visit"]:
        segments.append(pv1(facts["visit"], order, style))
    segments += [("ORC", orc), ("OBR", obr), *zds]
    if message_type == "OMI":
        segments.append(_ipc(facts))
    return encode(segments, style)


compose_omg = partial(compose, message_type="OMG")
compose_omi = partial(compose, message_type="OMI")


def _ipc(facts: Mapping[str, Any]) -> tuple[str, dict[int, Any]]:
    """IPC: the ids of imaging procedure control (chapter 4.5.6)."""
    order, procedure = facts["order"], facts["procedure"]
    return (
        "IPC",
        {
            1: (order["accession"], order["accession_issuer"]),
            2: (procedure["requested_procedure_id"],),
            3: (procedure.get("study_instance_uid", ""),),
            4: (facts["step_id"],),
            5: (facts["modality"],),
        },
    )
