"""Why `ris` refuses a command: what is wrong, which attribute, in which group, and whether trying again helps."""


class Refusal(Exception):
    """A command that cannot be carried out. The text names attributes and rules, never a patient's data.

    `attribute` is a snake_case keyword such as `accession_number`; `group` the index of the order group it
    stands in (0 = first), None when it concerns the whole command.
    """

    code = 207
    """The nearest value of HL7 table 0357; a door may answer in another protocol's words."""

    def __init__(self, text: str, *, attribute: str = "", group: int | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.attribute = attribute
        self.group = group


class Missing(Refusal):
    """Something that the policy demands is not there."""

    code = 101


class BadValue(Refusal):
    """A value that cannot be what it should be: too long for its attribute, not a UID, not a date."""

    code = 102


class UnknownKey(Refusal):
    """The order, patient or step that the command names does not exist here."""

    code = 204


class DuplicateKey(Refusal):
    """Two keys of the command lead to different things, or a key is another patient's."""

    code = 205


class NotAllowed(Refusal):
    """What is asked may not follow the present state, for instance cancelling a started step."""

    code = 207


class Stale(Refusal):
    """A page was saved over somebody else's newer save; show both."""
