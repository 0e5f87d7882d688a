"""ORM^O01 with ORC-1 SC: how far an order is (chapter 4.5.1; ORC-5 is table 0038)."""

from collections.abc import Mapping
from typing import Any

from integration.destinations import setting
from integration.hl7v2.outgoing import (
    Segments,
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


def compose(facts: Mapping[str, Any], destination: Destination, control_id: str) -> bytes:
    """The status message of one procedure of an order; the same facts give the same bytes.

    `facts["status"]` is ORC-5: SC, IP, CM, CA, DC or HD. Raises ComposeError.
    """
    style = style_of(destination)
    placer, filler = numbers(facts, destination)
    order, procedure, status = facts["order"], facts["procedure"], facts["status"]
    requester = xcn(order["requested_by_id"], order["requested_by"], style)
    segments: Segments = [
        header(destination, style, "ORM", "O01", control_id, facts["at"]),
        pid(facts["patient"]),
    ]
    if facts["visit"]:
        segments.append(pv1(facts["visit"], order, style))
    segments += [
        (
            "ORC",
            {
                1: setting(destination, "status_control").get(status, "SC"),
                2: placer,
                3: filler,
                5: setting(destination, "order_status").get(status, status),
                9: instant(facts["at"]),
                12: requester,
            },
        ),
        (
            "OBR",
            {
                1: "1",
                2: placer,
                3: filler,
                4: service(procedure),
                16: requester,
                18: order["accession"] if setting(destination, "accession") == "OBR-18" else "",
                19: procedure["requested_procedure_id"],
                20: facts["step_id"],
                24: facts["modality"],
            },
        ),
    ]
    return encode(segments, style)
