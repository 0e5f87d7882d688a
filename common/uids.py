"""Identifiers of our own making: row ids (UUID version 7) and DICOM UIDs."""

import os
import re
import time
import uuid

from django.conf import settings

_UID = re.compile(r"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*))+\Z")


def uuid7() -> uuid.UUID:
    """A time-ordered random UUID (RFC 9562, section 5.7): 48 bits of Unix milliseconds, 74 random bits."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return uuid.UUID(int=value)


def new_uid() -> str:
    """A new DICOM UID: below the site's root if it has one, else 2.25 (PS3.5 B.2). At most 64 characters."""
    number = uuid.uuid4().int
    root = getattr(settings, "ORDERLY_UID_ROOT", "")
    if root:
        return f"{root}.{number}"[:64].rstrip(".")
    return f"2.25.{number}"


def is_uid(text: str) -> bool:
    """Whether the text is a UID by PS3.5 section 9.1: digits and dots, no leading zeros, 1 to 64 characters."""
    return len(text) <= 64 and _UID.match(text) is not None


def is_loose_uid(text: str) -> bool:
    """Whether the text has only digits and dots and fits 64 characters: what real devices send."""
    return 0 < len(text) <= 64 and not text.strip("0123456789.")
