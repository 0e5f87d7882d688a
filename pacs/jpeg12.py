"""JPEG of 12 bits, sequential DCT with Huffman coding (ITU-T T.81, processes 4 and 5 of Extended): grey frames.

No decoder that may be shipped freely reads these (transfer syntax 1.2.840.10008.1.2.4.51 with 12 bits), so this
one does, in Python with the transform in numpy: about a second for a million pixels. It runs in the rendering
child like every other decoder.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

MAX_PIXELS = 64 * 1024 * 1024

# T.81 Figure A.6: where each coefficient of the zig-zag sequence stands in the block.
_ZIGZAG = np.array(
    [
        0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7,
        14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39,
        46, 53, 60, 61, 54, 47, 55, 62, 63,
    ]
)  # fmt: skip
_K = np.arange(8)
_DCT = (
    np.cos((2 * _K[None, :] + 1) * _K[:, None] * np.pi / 16) * np.where(_K == 0, np.sqrt(1 / 8), 0.5)[:, None]
)

_EOI, _SOS, _DQT, _DHT, _DRI = 0xD9, 0xDA, 0xDB, 0xC4, 0xDD
_SOF0, _SOF1 = 0xC0, 0xC1


class BadJpeg(ValueError):
    """The bytes are no JPEG that this decoder reads; says which part."""


def precision(data: bytes) -> int:
    """Bits a sample of the frame, 0 when there is no frame header."""
    for marker, segment, _ in _segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (_DHT, 0xC8, 0xCC):
            return segment[0] if segment else 0
        if marker == _SOS:
            break
    return 0


def decode(data: bytes) -> NDArray[np.uint16]:
    """The frame as (rows, columns). Raises BadJpeg."""
    quantisation: dict[int, NDArray[np.float64]] = {}
    huffman: dict[int, list[int]] = {}
    interval = rows = columns = bits = table = 0
    for marker, segment, end in _segments(data):
        if marker == _DQT:
            quantisation.update(_quantisation_tables(segment))
        elif marker == _DHT:
            huffman.update(_huffman_tables(segment))
        elif marker == _DRI:
            interval = int.from_bytes(segment[:2])
        elif marker in (_SOF0, _SOF1):
            if len(segment) < 9 or segment[5] != 1:
                raise BadJpeg("only frames of one component are read")
            bits, rows, columns = segment[0], int.from_bytes(segment[1:3]), int.from_bytes(segment[3:5])
            table = segment[8]
            if not rows or not columns or rows * columns > MAX_PIXELS:
                raise BadJpeg("the frame has no size, or too large a one")
        elif 0xC2 <= marker <= 0xCF and marker not in (0xC8, 0xCC):
            raise BadJpeg("only sequential Huffman coding is read")
        elif marker == _SOS:
            if not bits or table not in quantisation or len(segment) < 6:
                raise BadJpeg("the scan comes before its frame or its tables")
            dc, ac = huffman.get(segment[2] >> 4), huffman.get(0x10 | segment[2] & 15)
            if dc is None or ac is None:
                raise BadJpeg("the scan names a Huffman table that is not there")
            wide, high = (columns + 7) // 8, (rows + 7) // 8
            coefficients = _scan(data, end, wide * high, interval, dc, ac)
            samples = _inverse(coefficients * quantisation[table]) + (1 << (bits - 1))
            picture = samples.reshape(high, wide, 8, 8).transpose(0, 2, 1, 3).reshape(high * 8, wide * 8)
            whole = np.clip(np.rint(picture[:rows, :columns]), 0, (1 << bits) - 1)
            return whole.astype(np.uint16)
    raise BadJpeg("there is no scan")


def _segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """(marker, content, where it ends) of each segment; the caller stops at the first scan."""
    if data[:2] != b"\xff\xd8":
        raise BadJpeg("no start of image")
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise BadJpeg(f"no marker at byte {at}")
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == _EOI:
            return
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if end < at + 4 or end > len(data):
            raise BadJpeg("a segment runs over the end")
        yield marker, data[at + 4 : end], end
        at = end


def _quantisation_tables(segment: bytes) -> dict[int, NDArray[np.float64]]:
    found = {}
    at = 0
    while at < len(segment):
        wide, number = segment[at] >> 4, segment[at] & 15
        size = 128 if wide else 64
        raw = segment[at + 1 : at + 1 + size]
        if len(raw) < size:
            raise BadJpeg("a quantisation table is cut off")
        found[number] = np.frombuffer(raw, ">u2" if wide else np.uint8).astype(np.float64)
        at += 1 + size
    return found


def _huffman_tables(segment: bytes) -> dict[int, list[int]]:
    """By class and number: for each 16 bits that may come next, the code's length times 256 plus its value."""
    found = {}
    at = 0
    while at + 17 <= len(segment):
        number, counts = segment[at], segment[at + 1 : at + 17]
        values = segment[at + 17 : at + 17 + sum(counts)]
        if len(values) < sum(counts):
            raise BadJpeg("a Huffman table is cut off")
        look = [0] * 65536
        code = taken = 0
        for length, count in enumerate(counts, 1):
            for _ in range(count):
                first, span = code << (16 - length), 1 << (16 - length)
                if first + span > 65536:
                    raise BadJpeg("a Huffman table has too many codes")
                look[first : first + span] = [length << 8 | values[taken]] * span
                code += 1
                taken += 1
            code <<= 1
        found[number] = look
        at += 17 + len(values)
    return found


def _scan(
    data: bytes, start: int, blocks: int, interval: int, dc: list[int], ac: list[int]
) -> NDArray[np.int32]:
    """The coefficients of all blocks in zig-zag order (T.81 F.2.2), restart interval by restart interval."""
    result = np.zeros((blocks, 64), np.int32)
    done = 0
    at = start
    while done < blocks:
        raw, at = _entropy_coded(data, at)
        count = min(interval or blocks, blocks - done)
        _interval(raw, result[done : done + count], dc, ac)
        done += count
    return result


def _entropy_coded(data: bytes, at: int) -> tuple[bytes, int]:
    """The bytes up to the next marker, unstuffed, and where to go on behind a restart marker."""
    end = at
    while True:
        end = data.find(b"\xff", end)
        if end < 0 or end + 1 >= len(data):
            end = len(data)
            break
        if data[end + 1] != 0:
            break
        end += 2
    if end == at:
        raise BadJpeg("the scan ends too early")
    return data[at:end].replace(b"\xff\x00", b"\xff"), end + 2


def _interval(raw: bytes, blocks: NDArray[np.int32], dc: list[int], ac: list[int]) -> None:
    raw += b"\xff" * 16  # T.81 F.2.2.5: beyond the end come ones; a cut-off frame is grey below
    held = count = at = 0
    previous = 0
    for number in range(len(blocks)):
        row: dict[int, int] = {}
        k = 0
        look = dc
        while k < 64:
            if count < 32:
                held = (held << 48) | int.from_bytes(raw[at : at + 6].ljust(6, b"\xff"))
                at += 6
                count += 48
                if at > len(raw) + 64:
                    raise BadJpeg("the scan ends too early")
            entry = look[(held >> (count - 16)) & 0xFFFF]
            if not entry:
                raise BadJpeg("a code that no table knows")
            count -= entry >> 8
            symbol = entry & 0xFF
            size = symbol & 15
            if k:
                run = symbol >> 4
                if not size:
                    if run != 15:
                        break  # end of block
                    k += 16
                    held &= (1 << count) - 1
                    continue
                k += run
            elif symbol > 15:
                raise BadJpeg("a difference of more than 15 bits")
            value = 0
            if size:
                count -= size
                value = (held >> count) & ((1 << size) - 1)
                if value < 1 << (size - 1):
                    value -= (1 << size) - 1
            held &= (1 << count) - 1
            if not k:
                previous += value
                row[0] = previous
                look = ac
            elif k < 64:
                row[k] = value
            else:
                raise BadJpeg("a run beyond the block")
            k += 1
        blocks[number, list(row)] = list(row.values())


def _inverse(coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse transform of all blocks at once (T.81 A.3.3)."""
    blocks = np.zeros_like(coefficients)
    blocks[:, _ZIGZAG] = coefficients
    shaped = blocks.reshape(-1, 8, 8)
    result: NDArray[np.float64] = _DCT.T @ shaped @ _DCT
    return result
