"""Why a row changed: a short string such as `hl7:812` or `user:17`, kept where a foreign key may not point."""

Cause = str


def hl7(message_id: int) -> Cause:
    """The inbound HL7 message with this id."""
    return f"hl7:{message_id}"


def user(user_id: int) -> Cause:
    """A person at a page."""
    return f"user:{user_id}"


def study(study_id: object) -> Cause:
    """The arrival of a study."""
    return f"study:{study_id}"


def mpps(sop_instance_uid: str) -> Cause:
    """A scanner's Modality Performed Procedure Step."""
    return f"mpps:{sop_instance_uid}"


def system(part: str) -> Cause:
    """Orderly itself, by the name of the acting part."""
    return f"system:{part}"
