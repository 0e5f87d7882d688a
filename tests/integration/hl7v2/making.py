"""Messages for tests: small, readable, each with a control id of its own."""

import itertools

_numbers = itertools.count(1)


def next_id() -> str:
    """A control id that was not used before."""
    return f"T{next(_numbers):06d}"


def msh(
    kind: str, control_id: str | None = None, *, sent: str = "20260301120000+0000", version: str = "2.5.1"
) -> str:
    return (
        f"MSH|^~\\&|HIS|HOSP|RIS|RAD|{sent}||{kind}|{control_id or next_id()}|P|{version}||||||UNICODE UTF-8"
    )


def pid(
    identifier: str = "P1^^^HOSP^MR", name: str = "DOE^JANE", birth: str = "19700102", sex: str = "F"
) -> str:
    return f"PID|1||{identifier}||{name}||{birth}|{sex}"


def message(*segments: str) -> bytes:
    return ("\r".join(segments) + "\r").encode()


def adt(event: str = "A04", control_id: str | None = None, **options: str) -> bytes:
    sent = options.pop("sent", "20260301120000+0000")
    return message(
        msh(f"ADT^{event}", control_id, sent=sent), f"EVN|{event}|{sent}", pid(**options), "PV1|1|O"
    )


def merge(survivor: str, prior: str, control_id: str | None = None, event: str = "A40") -> bytes:
    head = msh(f"ADT^{event}", control_id, sent="20260301130000+0000")
    return message(
        head, f"EVN|{event}|20260301130000+0000", f"PID|1||{survivor}||DOE^JANE||19700102|F", f"MRG|{prior}"
    )


def group(
    placer: str = "PL1",
    *,
    control: str = "NW",
    status: str = "SC",
    filler: str = "",
    accession: str = "",
    procedure_id: str = "",
    step_id: str = "",
    code: str = "CTHEAD^CT Head^L",
    modality: str = "CT",
    start: str = "20260302090000",
    placed: str = "",
) -> list[str]:
    """ORC and OBR of an ORM."""
    return [
        f"ORC|{control}|{placer}|{filler}||{status}||1^once^^{start}^^R||{placed}|||100^SMITH^ANN",
        f"OBR|1|{placer}|{filler}|{code}||||||||||||100^SMITH^ANN||{accession}|{procedure_id}|{step_id}||||{modality}",
    ]


def orm(*segments: str, control_id: str | None = None, patient: str | None = None, **options: str) -> bytes:
    """An ORM^O01; without segments, with one group made of the options."""
    sent = options.pop("sent", "20260301120000+0000")
    return message(msh("ORM^O01", control_id, sent=sent), patient or pid(), *(segments or group(**options)))
