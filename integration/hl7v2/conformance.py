"""hl7apy's check of a message against the standard: structure, cardinality and data types, where it can pass.

hl7apy 1.3.5 cannot pass right messages of other versions and structures (2.3 has no MSH-9.3 to go by; from 2.7 on
its tables demand what the standard leaves open). In ORM_O01 it demands every segment of a choice; here one is enough.
"""

from typing import Any

_FROM_2_4 = ("2.4", "2.5", "2.5.1", "2.6")
_PASSES = {
    "ORU_R01": _FROM_2_4,
    "ORM_O01": ("2.3.1", *_FROM_2_4),
    "OMG_O19": _FROM_2_4,
    "ORG_O20": _FROM_2_4,
    "OMI_O23": ("2.5", "2.5.1", "2.6"),
    "ORI_O24": ("2.5", "2.5.1", "2.6"),
    "ADT_A01": ("2.3.1", *_FROM_2_4),
    "ADT_A05": _FROM_2_4,
    "ADT_A39": ("2.3.1", *_FROM_2_4),
    "MDM_T01": ("2.3.1", *_FROM_2_4),
    "MDM_T02": _FROM_2_4,
}

# Beginnings of hl7apy's texts that only name elements; another may quote a value.
_NAMING = ("Missing required child", "Child limit exceeded", "Datatype ")


def can_check(structure: str, version: str) -> bool:
    """Whether hl7apy passes right messages of this structure (MSH-9.3) and version (MSH-12)."""
    return version in _PASSES.get(structure, ())


def fault(text: str) -> str:
    """What hl7apy finds wrong with a message, without any of its data; empty when it passes."""
    from hl7apy.exceptions import HL7apyException
    from hl7apy.parser import parse_message
    from hl7apy.validation import Validator

    try:
        message = parse_message(text, find_groups=True)
        Validator.validate(message, reference=_one_of_each_choice(message.reference))
    except HL7apyException as error:
        said = str(error)
        return f"{type(error).__name__}: {said if said.startswith(_NAMING) else 'see the message'}"
    except Exception as error:  # hl7apy raises AttributeError, TypeError and others on what its tables lack
        return f"it cannot be checked ({type(error).__name__})"
    return ""


def _one_of_each_choice(reference: Any) -> Any:
    """A structure's reference in which no member of a choice group is required."""
    if not isinstance(reference, tuple | list) or not reference or reference[0] not in ("sequence", "choice"):
        return reference
    kind, children = reference[0], reference[1]
    fixed = []
    for name, below, (least, most), what in children:
        loose = 0 if kind == "choice" else least
        fixed.append((name, _one_of_each_choice(below) if what == "GRP" else below, (loose, most), what))
    return (kind, tuple(fixed), *reference[2:])
