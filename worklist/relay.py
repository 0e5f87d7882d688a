"""MPPS told on (SCU): an N-CREATE or N-SET that a scanner sent us, repeated to another receiver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydicom import Dataset

from pacs.dimse import datasets, sender, status
from pacs.dimse.command import CODES, Command
from pacs.dimse.registry import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from pacs.dimse.sender import Destination, RequestedAssociation
from worklist.mpps import MPPS, NO_LONGER_UPDATED

SYNTAXES = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)
# PS3.7 annex C: attribute list error and value out of range are warnings, the rest of the message was taken.
TAKEN = frozenset({status.SUCCESS, 0x0001, 0x0107, 0x0116})
# What may go by itself: a failure of the moment, no resources, a duplicate invocation.
PASSING = frozenset({status.PROCESSING_FAILURE, status.RESOURCE_LIMITATION, 0x0210})


class Receiver:
    """The way to one MPPS receiver; the association is opened at the first message and kept until `close`."""

    def __init__(self, destination: Destination, *, connect_seconds: float, answer_seconds: float) -> None:
        self._destination = destination
        self._connect_seconds, self._answer_seconds = connect_seconds, answer_seconds
        self._assoc: RequestedAssociation | None = None

    def tell(self, command: str, uid: str, attributes: Mapping[str, Any]) -> Command:
        """Send one `N-CREATE` or `N-SET` (attributes in DICOM JSON) and give the response.

        Raises AssociationRefused or an Ended; then the association is gone and the next call opens another.
        """
        assoc = self._assoc or sender.associate(
            self._destination, [(MPPS, (syntax,)) for syntax in SYNTAXES], seconds=self._connect_seconds
        )
        self._assoc = None
        context = next(iter(assoc.contexts.values()))
        data = encoded(attributes, context.transfer_syntax)
        names = "Affected" if command == "N-CREATE" else "Requested"
        request = {
            f"{names}SOPClassUID": MPPS,
            f"{names}SOPInstanceUID": uid,
            "CommandField": CODES[command],
        }
        try:
            response = assoc.exchange(context, request, data, seconds=self._answer_seconds)
        except BaseException:
            assoc.wire.close()
            raise
        self._assoc = assoc
        return response

    def close(self) -> None:
        """Release the association."""
        if self._assoc is not None:
            self._assoc.release()
            self._assoc = None


def encoded(attributes: Mapping[str, Any], syntax: str) -> bytes:
    """A data set from its DICOM JSON (PS3.18 annex F) in a transfer syntax; text beyond ASCII goes as UTF-8.

    Raises ValueError for what is no data set.
    """
    try:
        ds = Dataset.from_json(dict(attributes))
    except Exception as error:
        raise ValueError(f"no data set in DICOM JSON: {type(error).__name__}") from None
    if any(not str(elem.value).isascii() for elem in ds.iterall() if elem.VR != "SQ"):
        ds.SpecificCharacterSet = "ISO_IR 192"
    return datasets.encode(ds, syntax)


def verdict(command: str, response: Command, *, repeated: bool) -> str:
    """What a response means: `taken`, `known` (it has it already), `again` (try later) or `refused`.

    `repeated`: the message may have arrived before, its answer lost. Then "exists already" and "may no longer be
    updated" say that it did.
    """
    code = response.status
    if code in TAKEN or code >> 12 == 0xB:
        return "taken"
    if command == "N-CREATE" and code == status.DUPLICATE_SOP_INSTANCE:
        return "known"
    if code == status.PROCESSING_FAILURE and response.get("ErrorID") == NO_LONGER_UPDATED:
        return "known" if repeated and command == "N-SET" else "refused"
    return "again" if code in PASSING else "refused"
