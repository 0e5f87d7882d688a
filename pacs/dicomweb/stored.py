"""A stored object as DICOMweb shows it: its metadata, frames and bulk data, read from the file by offset."""

from __future__ import annotations

import base64
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from types import TracebackType
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame, parse_fragments
from pydicom.filereader import read_dataset

from pacs import header, overlay, rendering
from pacs.models import Instance
from pacs.storage.volume import path_of

INLINE_BYTES = 1024
"""Binary values up to this size stand in the metadata itself; larger ones are fetched by their URI."""

_BINARY = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "UN"))
_WORDS = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}
"""Bytes of a word of each VR whose byte order matters."""
_SAMPLES, _FRAMES, _ROWS, _COLUMNS, _BITS = 0x00280002, 0x00280008, 0x00280010, 0x00280011, 0x00280100
_OFFSETS, _LENGTHS = 0x7FE00001, 0x7FE00002
_WANTED = frozenset((_SAMPLES, _FRAMES, _ROWS, _COLUMNS, _BITS, _OFFSETS, _LENGTHS))


class NotThere(LookupError):
    """The object has no such frame or bulk data; the text says what it has."""


@dataclass(frozen=True, slots=True)
class Source:
    """What is needed to read an object after the database has been left."""

    path: str
    transfer_syntax_uid: str
    data_set_offset: int
    overlay: dict[str, Any]
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    sha256: str

    @classmethod
    def of(cls, instance: Instance) -> Source:
        """From a row whose series, study and overlay were selected with it."""
        series = instance.series
        return cls(
            str(path_of(instance)),
            instance.transfer_syntax_uid,
            instance.data_set_offset,
            overlay.attributes_of(series.study),
            series.study.study_instance_uid,
            series.series_instance_uid,
            instance.sop_instance_uid,
            instance.sop_class_uid,
            instance.sha256,
        )

    @property
    def url(self) -> str:
        """Where the object is found, root-relative: an absolute address would be wrong behind a proxy."""
        return (
            f"/dicomweb/studies/{self.study_instance_uid}/series/{self.series_instance_uid}"
            f"/instances/{self.sop_instance_uid}"
        )


class Stored:
    """An open file; a context manager, for one thread.

    `body` is the data set's bytes: mapped, or opened in memory when it is deflated. Reading may raise
    HeaderError, for what is stored was taken as it came.
    """

    def __init__(self, source: Source) -> None:
        self.source = source

    def __enter__(self) -> Stored:
        with open(self.source.path, "rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._whole = memoryview(self.data)
        if self.source.transfer_syntax_uid in header.DEFLATED_SYNTAXES:
            self.body = memoryview(overlay.inflate(self.data, self.source.data_set_offset))
        else:
            self.body = self._whole[self.source.data_set_offset :]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.body.release()
            self._whole.release()
            self.data.close()
        except BufferError:
            pass  # a frame of a traceback still looks at it; it closes with the last of them

    @cached_property
    def outline(self) -> header.Header:
        """The walk to Pixel Data; its offsets count from the beginning of `body`."""
        return header.walk(self.body, self.source.transfer_syntax_uid, _WANTED)

    @property
    def has_pixels(self) -> bool:
        """Whether there is Pixel Data."""
        return self.outline.encapsulated or self.outline.pixel_end is not None

    @property
    def frames(self) -> int:
        """How many frames the object says it has; 1 when it says nothing."""
        return max(1, self.outline.integer(_FRAMES) or 1)

    # --- Pixels

    def frame(self, number: int, *, decode: bool) -> bytes:
        """A frame, counted from 1: native little endian pixels when `decode`, else as it is stored.

        Raises NotThere or RenderingError.
        """
        if not self.has_pixels:
            raise NotThere("the object has no pixels")
        if not 1 <= number <= self.frames:
            raise NotThere(f"the object has frames 1 to {self.frames}")
        if self.outline.encapsulated:
            if decode:
                return rendering.native_frame(self.source.path, number)
            return self._compressed(number)
        return self._native(number)

    def _compressed(self, number: int) -> bytes:
        offsets, lengths = self.outline.values.get(_OFFSETS), self.outline.values.get(_LENGTHS)
        extended = (offsets, lengths) if offsets and lengths else None
        try:
            return get_frame(
                self._seekable(self.outline.end),
                number - 1,
                extended_offsets=extended,
                number_of_frames=self.frames,
            )
        except (ValueError, IndexError) as error:
            raise NotThere(f"frame {number} is not among the fragments") from error

    def _seekable(self, at: int) -> Any:
        """The mapped file as a readable buffer that stands at an offset of the data set."""
        self.data.seek(self.source.data_set_offset + at)
        return self.data

    def _native(self, number: int) -> bytes:
        outline = self.outline
        bits = outline.integer(_BITS) or 8
        samples = max(1, outline.integer(_SAMPLES) or 1)
        size = (outline.integer(_ROWS) or 0) * (outline.integer(_COLUMNS) or 0) * samples * bits
        first, last = (number - 1) * size, number * size
        start, stop = outline.end + first // 8, outline.end + (last + 7) // 8
        if outline.pixel_end is None or not size or stop > outline.pixel_end:
            raise NotThere(f"the pixels end before frame {number} does")
        raw = bytes(self.body[start:stop])
        if size % 8:
            # Single bits: frames follow one another without gaps, so one may begin within a byte.
            one_by_one = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")
            return np.packbits(one_by_one[first % 8 : first % 8 + size], bitorder="little").tobytes()
        if outline.little_endian:
            return raw
        return _turned(raw, 2 if self._pixel_vr == "OW" and bits <= 16 else bits // 8)

    @property
    def _pixel_vr(self) -> str:
        if self.outline.implicit:
            return "OW"
        return bytes(self.body[self.outline.end - 8 : self.outline.end - 6]).decode("ascii", "replace")

    @property
    def _pixel_tag(self) -> int:
        back = 8 if self.outline.implicit else 12
        order = "little" if self.outline.little_endian else "big"
        at = self.outline.end - back
        group = int.from_bytes(self.body[at : at + 2], order)  # type: ignore[arg-type]
        return group << 16 | int.from_bytes(self.body[at + 2 : at + 4], order)  # type: ignore[arg-type]

    def stream(self) -> list[tuple[int, int]]:
        """Where the bytes of encapsulated Pixel Data lie without their framing, for video: (offset, length)."""
        buffer = self._seekable(self.outline.end)
        if self.source.transfer_syntax_uid in header.DEFLATED_SYNTAXES:
            raise NotThere("a deflated object has no video")
        _, starts = parse_fragments(buffer)
        pieces: list[tuple[int, int]] = []
        for at in starts[1:]:
            size = int.from_bytes(self.data[at + 4 : at + 8], "little")
            pieces.append((at + 8, size))
        return pieces

    # --- Attributes

    @cached_property
    def attributes(self) -> Dataset:
        """Everything before Pixel Data, decoded. The bytes are checked before pydicom sees them."""
        if self.has_pixels:
            head = bytes(self.body[: self.outline.end - (8 if self.outline.implicit else 12)])
        else:
            head = bytes(self.body)
        header.check(head, self.source.transfer_syntax_uid)
        return read_dataset(
            BytesIO(head), self.outline.implicit, self.outline.little_endian, bytelength=len(head)
        )

    def document(self) -> dict[str, Any]:
        """The object as DICOM JSON (PS3.18 annex F), as received; empty attributes are left out."""
        document = _json(self.attributes, f"{self.source.url}/bulkdata", "")
        document["00080005"] = {"vr": "CS", "Value": [overlay.UNICODE]}
        document["00083002"] = {"vr": "UI", "Value": [self.source.transfer_syntax_uid]}
        if self.has_pixels:
            tag = f"{self._pixel_tag:08X}"
            vr = "OB" if self.outline.encapsulated else self._pixel_vr
            document[tag] = {"vr": vr, "BulkDataURI": f"{self.source.url}/bulkdata/{tag}"}
        return dict(sorted(document.items()))

    def bulk(self, path: list[str]) -> bytes:
        """A binary value by its path: tags and, between them, item numbers from 1. Raises NotThere."""
        ds: Dataset = self.attributes
        try:
            if len(path) == 1 and self.has_pixels and int(path[0], 16) == self._pixel_tag:
                return self._all_pixels()
            while len(path) > 1:
                ds, path = ds[int(path[0], 16)].value[int(path[1]) - 1], path[2:]
            elem = ds[int(path[0], 16)]
            if elem.VR not in _BINARY:
                raise NotThere("the attribute is no bulk data")
        except (KeyError, IndexError, ValueError, TypeError, AttributeError):
            raise NotThere("the object has no such bulk data") from None
        raw = elem.value or b""
        if not self.outline.little_endian and elem.VR in _WORDS:
            return _turned(raw, _WORDS[elem.VR])
        return bytes(raw)

    def _all_pixels(self) -> bytes:
        if self.outline.encapsulated:
            return b"".join(self.frame(number, decode=False) for number in range(1, self.frames + 1))
        if self.outline.little_endian:
            return bytes(self.body[self.outline.end : self.outline.pixel_end])
        return b"".join(self.frame(number, decode=True) for number in range(1, self.frames + 1))

    def pieces(self) -> Iterator[bytes]:
        """The Part 10 file as it is handed out: as received, the overlay spliced into its header."""
        yield from overlay.pieces(
            self._whole, self.source.data_set_offset, self.source.transfer_syntax_uid, self.source.overlay
        )


def decompressed(source: Source) -> bytes:
    """The object as Part 10 in Explicit VR Little Endian with its overlay. Raises RenderingError."""
    raw = rendering.decompressed(source.path)
    ds = dcmread(BytesIO(raw), stop_before_pixels=True)
    offset = 144 + int(ds.file_meta.FileMetaInformationGroupLength)
    return b"".join(overlay.pieces(raw, offset, "1.2.840.10008.1.2.1", source.overlay))


def _turned(raw: bytes, width: int) -> bytes:
    """Big endian words as little endian ones."""
    if width < 2:
        return raw
    whole = raw[: len(raw) // width * width]
    return np.frombuffer(whole, f">u{width}").astype(f"<u{width}").tobytes()


def _json(ds: Dataset, url: str, path: str) -> dict[str, Any]:
    """A data set as DICOM JSON. An element whose value cannot be read is left out, the others stay."""
    document: dict[str, Any] = {}
    for tag in sorted(ds.keys()):
        if tag.element == 0:
            continue
        try:
            element = _element(ds[tag], url, f"{path}{tag:08X}")
        except Exception:  # pydicom raises anything at all on a malformed value
            continue
        if element:
            document[f"{tag:08X}"] = element
    return document


def _element(elem: DataElement, url: str, path: str) -> dict[str, Any] | None:
    if elem.VR == "SQ":
        items = [_json(item, url, f"{path}/{at}/") for at, item in enumerate(elem.value or [], 1)]
        return {"vr": "SQ", "Value": items} if items else None
    if elem.value is None or elem.is_empty:
        return None
    if elem.VR in _BINARY:
        raw = elem.value if isinstance(elem.value, bytes) else bytes(elem.value)
        if len(raw) > INLINE_BYTES:
            return {"vr": elem.VR, "BulkDataURI": f"{url}/{path}"}
        if not raw:
            return None
        return {"vr": elem.VR, "InlineBinary": base64.b64encode(raw).decode("ascii")}
    try:
        element: dict[str, Any] = elem.to_json_dict(None, 0)
    except ValueError:
        if elem.VR not in ("DS", "IS"):
            raise
        # A number that is none stays text, as PS3.18 F.2.2 allows.
        values = elem.value if elem.VM > 1 else [elem.value]
        element = {"vr": elem.VR, "Value": [str(value) for value in values]}
    return element if element.get("Value") else None
