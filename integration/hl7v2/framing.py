"""MLLP frames: VT data FS CR (HL7 transport specification "MLLP", release 1). Pure; sockets live elsewhere."""

import re
from dataclasses import dataclass
from enum import StrEnum

VT, FS, CR, LF = 0x0B, 0x1C, 0x0D, 0x0A
START, STOP = b"\x0b", b"\x1c\r"

# What may stand between frames without meaning: keep-alives, line ends, padding and the bytes of a UTF-8 BOM.
_IGNORABLE = b"\r\n\x00 \t\xef\xbb\xbf"
_OTHER = re.compile(rb"[^\x0b]")
# As much of a frame that is not wanted as is kept: enough to hold MSH, so that it can be answered.
KEPT = 4096


class FaultKind(StrEnum):
    """What was wrong with bytes that are no frame."""

    ABORTED = "aborted", "a new frame began before this one ended"
    OVERSIZE = "oversize", "longer than the listener allows"
    STRAY = "stray", "bytes outside a frame"
    TRUNCATED = "truncated", "the peer closed before the frame ended"

    note: str

    def __new__(cls, value: str, note: str) -> "FaultKind":
        member = str.__new__(cls, value)
        member._value_ = value
        member.note = note
        return member


class FramingError(ValueError):
    """A payload cannot be framed: it holds one of the framing bytes."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The bytes between VT and FS, unchanged. `notes` names what was tolerated."""

    payload: bytes
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fault:
    """Bytes that are no frame: the first of them (at most the size cap, 4 KiB when over it), and how many."""

    kind: FaultKind
    data: bytes
    length: int


def encode(payload: bytes) -> bytes:
    """The frame around a payload. Raises FramingError when the payload holds VT or FS."""
    if VT in payload or FS in payload:
        raise FramingError(
            "The message holds a framing byte (0x0B or 0x1C); escape it as \\X0B\\ or \\X1C\\."
        )
    return START + payload + STOP


class Decoder:
    """Cuts a byte stream into frames, in time linear in the bytes, whatever their split.

    A frame ends at FS CR. When tolerant, FS also ends it before LF, VT or the end of the stream; any other FS
    is data. VT inside a frame means that the sender gave up on it. Bytes of an open frame are bounded by
    `max_size`; of a longer one the first 4 KiB are kept and the rest is read past.
    """

    def __init__(self, max_size: int, tolerant: bool = True) -> None:
        self.max_size = max_size
        self.tolerant = tolerant
        self._open = False  # inside a frame
        self._held = False  # the last byte seen was an FS whose meaning the next byte tells
        self._body = bytearray()  # of the open frame, or stray bytes outside one
        self._length = 0  # bytes of the open frame, or stray bytes, kept or not
        self._notes: list[str] = []
        self._said = False  # the present stray run has been reported

    @property
    def open_length(self) -> int:
        """Bytes of the frame (or of the stray run) that has not ended yet; 0 between frames."""
        return self._length + (1 if self._open else 0)

    @property
    def waiting_for_end(self) -> bool:
        """Whether FS was the last byte: a peer that never sends CR waits for its answer now (see `settle`)."""
        return self._held

    def feed(self, data: bytes) -> list[Frame | Fault]:
        """Take the next bytes; returns what ended in them, in order."""
        out: list[Frame | Fault] = []
        pos, size = 0, len(data)
        vt = fs = -1  # where the next of each stands; -1: not looked for yet, size: none left
        while pos < size:
            if not self._open:
                pos = self._outside(data, pos, out)
                continue
            if self._held:
                self._held = False
                pos = self._after_fs(data[pos], pos, out)
                continue
            if vt < pos:
                vt = _find(data, VT, pos)
            if fs < pos:
                fs = _find(data, FS, pos)
            stop = min(vt, fs)
            self._keep(data, pos, stop)
            pos = stop + 1
            if stop == size:
                break
            if stop == vt:
                self._abort(out)
                other = _OTHER.search(data, pos)  # a run of VT in one step
                pos = other.start() if other else size
            else:
                self._held = True
        return out

    def settle(self) -> list[Frame | Fault]:
        """The peer has been quiet after an FS: when tolerant, take it as the end of the frame."""
        out: list[Frame | Fault] = []
        if self._held and self.tolerant:
            self._notes.append("FS without CR")
            self._finish(out)
        return out

    def close(self) -> list[Frame | Fault]:
        """The stream has ended; returns the last frame (tolerant, after FS) or what was left of it as a fault."""
        out = self.settle()
        if self._open:
            if self._held:
                self._keep(b"\x1c", 0, 1)
                self._held = False
            if self._length > self.max_size:
                out.append(Fault(FaultKind.OVERSIZE, bytes(self._body), self._length))
            elif self._length:
                out.append(Fault(FaultKind.TRUNCATED, bytes(self._body), self._length))
        else:
            self._tell_stray(out)
        self._reset()
        return out

    def _outside(self, data: bytes, pos: int, out: list[Frame | Fault]) -> int:
        """Skip what may lie between frames; anything else is a stray run that ends at VT, FS or 4 KiB."""
        vt = _find(data, VT, pos)
        between = data[pos:vt]
        if between and (self._length or between.translate(None, _IGNORABLE)):
            self._stray(between, out)
        if vt < len(data):
            self._tell_stray(out)
            self._reset()
            self._open = True
        return vt + 1

    def _stray(self, chunk: bytes, out: list[Frame | Fault]) -> None:
        self._length += len(chunk)
        self._body += chunk[: KEPT - len(self._body)]
        if FS in chunk or len(self._body) >= KEPT:
            self._tell_stray(out)

    def _tell_stray(self, out: list[Frame | Fault]) -> None:
        if self._length and not self._said:
            out.append(Fault(FaultKind.STRAY, bytes(self._body), self._length))
            self._said = True

    def _after_fs(self, byte: int, pos: int, out: list[Frame | Fault]) -> int:
        """Decide what the FS before `byte` was; returns where to go on."""
        if byte == CR:
            self._finish(out)
            return pos + 1
        if self.tolerant and byte in (LF, VT):
            self._notes.append("FS without CR")
            self._finish(out)
            return pos + (1 if byte == LF else 0)
        self._keep(b"\x1c", 0, 1)
        if "FS inside the message" not in self._notes:
            self._notes.append("FS inside the message")
        return pos

    def _keep(self, data: bytes, start: int, stop: int) -> None:
        self._length += stop - start
        if self._length <= self.max_size:
            self._body += data[start:stop] if (start, stop) != (0, len(data)) else data
            return
        if len(self._body) < KEPT:
            self._body += data[start : start + KEPT - len(self._body)]
        if len(self._body) > KEPT:
            del self._body[KEPT:]

    def _abort(self, out: list[Frame | Fault]) -> None:
        """VT inside a frame: what came before is set aside, a new frame is open."""
        if self._length > self.max_size:
            out.append(Fault(FaultKind.OVERSIZE, bytes(self._body), self._length))
        elif self._length:
            out.append(Fault(FaultKind.ABORTED, bytes(self._body), self._length))
        self._reset()
        self._open = True

    def _finish(self, out: list[Frame | Fault]) -> None:
        """The open frame has ended; an empty one is nothing."""
        if self._length > self.max_size:
            out.append(Fault(FaultKind.OVERSIZE, bytes(self._body), self._length))
        elif self._length:
            out.append(Frame(bytes(self._body), tuple(self._notes)))
        self._reset()

    def _reset(self) -> None:
        self._open = self._held = self._said = False
        self._body = bytearray()
        self._length = 0
        self._notes = []


def _find(data: bytes, byte: int, pos: int) -> int:
    """Where the byte stands at or after `pos`, or the length of the data when it does not."""
    found = data.find(byte, pos)
    return len(data) if found < 0 else found
