"""Pictures of stored frames: one frame decoded, windowed and scaled to PNG or JPEG in a child with limits.

Decoders are native code that meets bytes of strangers, so none of it runs in the process that serves:
`render` hands the work to a child started by exec (`python -m pacs.rendering`), with an end to its memory
and to its time; a child that overruns or dies is replaced, and the request gets a RenderingError.

Order of the steps (PS3.4 N.2): palette or colour to 8 bits; or modality LUT or rescale, VOI LUT or window
(one asked for wins; without any, the 1st to 99th percentile), inversion of MONOCHROME1; then scaling.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from pacs import children
from pacs.children import Child

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

CHILDREN = max(1, min(4, (os.cpu_count() or 2)))
MEMORY_BYTES = 3 * 1024**3
"""Address space of a child; its libraries alone map about half a gigabyte."""
SECONDS = 20.0
"""For one frame, decoding to encoding; the largest mammograms take about two."""
WAIT_SECONDS = 30.0
"""For a free child."""
FRAMES_PER_CHILD = 2_000
MAX_FRAME_BYTES = 512 * 1024**2
"""Decoded; a frame of 16,000 x 16,000 x 16 bits still passes."""
MAX_VIEWPORT = 8_192
MEDIA_TYPES = {"image/jpeg": "JPEG", "image/png": "PNG"}

_DEFLATED = "1.2.840.10008.1.2.1.99"
_DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"


class RenderingError(Exception):
    """No picture. `reason` is `no_such_frame`, `not_an_image`, `no_decoder`, `broken`, `too_large`,
    `too_slow`, `busy` or `gone`; the text says what to do and holds no value of the object."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Window:
    """A window asked for: centre and width in modality units, VOI LUT Function of PS3.3 C.11.2.1.3."""

    center: float
    width: float
    function: str = "LINEAR"


@dataclass(frozen=True, slots=True)
class Picture:
    """What is wanted of a stored object: `frame` counts from 1; None is the middle one."""

    path: str
    frame: int | None = 1
    window: Window | None = None
    viewport: tuple[int, int] | None = None
    """Width and height that the picture must fit into, its proportions kept; None for its own size."""
    enlarge: bool = True
    """Whether a picture smaller than the viewport is scaled up."""
    media_type: str = "image/jpeg"
    quality: int = 85


# --- The side that serves --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Made:
    """A finished picture, and the window it shows; None for colour and for look-up tables."""

    body: bytes
    window: Window | None = None


def render(picture: Picture) -> Made:
    """Make a picture. Waits for a free child and for the frame, both bounded. Raises RenderingError."""
    head, body = _pool().ask({"task": "picture", **asdict(picture)})
    return Made(body, Window(*head["window"]) if head["window"] else None)


def native_frame(path: str, frame: int) -> bytes:
    """A frame decoded to native pixels, little endian, colour as RGB by pixel. Raises RenderingError."""
    return _pool().ask({"task": "native", "path": path, "frame": frame})[1]


def decompressed(path: str) -> bytes:
    """The object as a Part 10 file in Explicit VR Little Endian, pixels decoded. Raises RenderingError."""
    return _pool().ask({"task": "decompress", "path": path})[1]


class _Pool:
    """As many places as children may run; a place is empty until its first use and after a death."""

    def __init__(self, places: int) -> None:
        self.owner = os.getpid()
        self.places: queue.LifoQueue[Child | None] = queue.LifoQueue()
        for _ in range(places):
            self.places.put(None)
        self.running: set[Child] = set()

    def ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        try:
            child = self.places.get(timeout=WAIT_SECONDS)
        except queue.Empty:
            raise RenderingError("busy", "every decoder is at work; try again") from None
        try:
            if child is None or child.process.poll() is not None:
                if child is not None:
                    self._drop(child)
                child = Child("pacs.rendering")
                self.running.add(child)
            head, body = child.ask(request, time.monotonic() + SECONDS)
        except BaseException as error:
            if child is not None:
                self._drop(child)
                child = None
            if isinstance(error, TimeoutError):
                raise RenderingError("too_slow", f"the frame took more than {SECONDS:.0f} s") from None
            if isinstance(error, (EOFError, OSError, ValueError)):
                raise RenderingError("broken", "the decoder died on this frame") from None
            raise
        finally:
            if child is not None and child.asked >= FRAMES_PER_CHILD:
                self._drop(child)
                child = None
            self.places.put(child)
        if head["reason"]:
            raise RenderingError(head["reason"], head["detail"])
        return head, body

    def _drop(self, child: Child) -> None:
        self.running.discard(child)
        child.end()

    def end(self) -> None:
        if self.owner == os.getpid():
            for child in list(self.running):
                self._drop(child)


_lock = threading.Lock()
_current: _Pool | None = None


def _pool() -> _Pool:
    """This process's pool; made at first use, and anew in a process that was forked since."""
    global _current
    with _lock:
        if _current is None or _current.owner != os.getpid():
            _current = _Pool(CHILDREN)
            atexit.register(_current.end)
        return _current


# --- The child -------------------------------------------------------------------------------------------


def main() -> None:
    """Answer requests, one JSON line each, until standard input ends."""
    answers = children.limit(MEMORY_BYTES, SECONDS, FRAMES_PER_CHILD)
    for wanted in children.requests(SECONDS):
        reason = detail = ""
        made = Made(b"")
        try:
            made = _TASKS[wanted.pop("task")](**wanted)
        except RenderingError as error:
            reason, detail = error.reason, error.detail
        except MemoryError:
            reason, detail = "too_large", "the frame does not fit the decoder's memory"
        except FileNotFoundError:
            reason, detail = "gone", "the file is not in its volume"
        except Exception as error:
            reason, detail = "broken", f"the frame cannot be decoded ({type(error).__name__})"
        window = list(astuple(made.window)) if made.window else None
        children.answer(answers, {"reason": reason, "detail": detail, "window": window}, made.body)


def _picture(window: dict[str, Any] | None, viewport: list[int] | None, **rest: Any) -> Made:
    return make(
        Picture(
            **rest,
            window=Window(**window) if window else None,
            viewport=(viewport[0], viewport[1]) if viewport else None,
        )
    )


def _native(path: str, frame: int) -> Made:
    from pydicom import dcmread

    ds = dcmread(path, stop_before_pixels=True)
    frames = _count_of_frames(ds)
    if not 1 <= frame <= frames:
        raise RenderingError("no_such_frame", f"the object has frames 1 to {frames}")
    pixels = _decode(path, ds, frame - 1)
    return Made(pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes())


def _decompress(path: str) -> Made:
    from pydicom import dcmread, dcmwrite
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

    ds = dcmread(path)
    if "PixelData" in ds:
        _count_of_frames(ds)
    syntax = ds.file_meta.TransferSyntaxUID
    if "PixelData" in ds and syntax == _DEFLATED_FRAMES:
        ds.PixelData = _inflated_frames(ds)
    elif "PixelData" in ds and syntax == ExplicitVRBigEndian:
        ds.PixelData = _swapped(ds)
    elif syntax == _JPEG_EXTENDED and int(ds.get("BitsStored") or 8) > 8:
        frames = range(int(ds.get("NumberOfFrames") or 1))
        ds.PixelData = b"".join(_jpeg12(ds, index).astype("<u2").tobytes() for index in frames)
        ds["PixelData"].VR = "OW"
        ds["PixelData"].is_undefined_length = False
    elif syntax.is_encapsulated:
        ds.decompress(generate_instance_uid=False)
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return Made(buffer.getvalue())


def _inflated_frames(ds: Dataset) -> bytes:
    """All frames of Deflated Image Frame Compression as native pixels."""
    from pydicom.encaps import generate_frames

    count = int(ds.get("NumberOfFrames") or 1)
    if ds.BitsAllocated == 1 and ds.Rows * ds.Columns % 8:
        raise RenderingError("no_decoder", "frames of single bits that end within a byte are not joined")
    frames = generate_frames(ds.PixelData, number_of_frames=count)
    whole = b"".join(
        zlib.decompressobj(-zlib.MAX_WBITS).decompress(frame, MAX_FRAME_BYTES) for frame in frames
    )
    return whole + b"\0" * (len(whole) % 2)


def _swapped(ds: Dataset) -> bytes:
    """Native pixels of Explicit VR Big Endian with their words turned (PS3.5 7.3)."""
    import numpy as np

    width = 2 if ds["PixelData"].VR == "OW" and ds.BitsAllocated <= 16 else max(1, ds.BitsAllocated // 8)
    raw = ds.PixelData[: len(ds.PixelData) // width * width]
    return bytes(np.frombuffer(raw, f">u{width}").astype(f"<u{width}").tobytes())


_TASKS: dict[str, Callable[..., Made]] = {
    "picture": _picture,
    "native": _native,
    "decompress": _decompress,
}


def make(picture: Picture) -> Made:
    """Read, decode, window, scale and encode in this process. Raises RenderingError and what codecs raise."""
    from PIL import Image
    from pydicom import dcmread

    if picture.media_type not in MEDIA_TYPES:
        raise RenderingError("not_an_image", "pictures are made as image/jpeg or image/png")
    ds = dcmread(picture.path, stop_before_pixels=True)
    frames = _count_of_frames(ds)
    number = (frames + 1) // 2 if picture.frame is None else picture.frame
    if not 1 <= number <= frames:
        raise RenderingError("no_such_frame", f"the object has frames 1 to {frames}")
    pixels = _decode(picture.path, ds, number - 1)
    levels, window = _to_8_bits(pixels, ds, number - 1, picture.window)
    image = Image.fromarray(levels)
    if picture.viewport:
        image = _fit(image, ds, picture.viewport, picture.enlarge)
    buffer = BytesIO()
    kind = MEDIA_TYPES[picture.media_type]
    if kind == "JPEG":
        image.save(buffer, kind, quality=max(1, min(100, picture.quality)))
    else:
        image.save(buffer, kind, compress_level=1)
    return Made(buffer.getvalue(), window)


def _count_of_frames(ds: Dataset) -> int:
    rows, columns = ds.get("Rows"), ds.get("Columns")
    if not rows or not columns:
        raise RenderingError("not_an_image", "the object has no pixels")
    samples, allocated = int(ds.get("SamplesPerPixel") or 1), int(ds.get("BitsAllocated") or 8)
    if rows * columns * samples * max(1, allocated // 8) > MAX_FRAME_BYTES:
        raise RenderingError("too_large", f"a frame of more than {MAX_FRAME_BYTES >> 20} MiB is not decoded")
    try:
        return max(1, int(ds.get("NumberOfFrames") or 1))
    except (TypeError, ValueError):
        return 1


def _decode(path: str, ds: Dataset, index: int) -> NDArray[Any]:
    """One frame as stored: (rows, columns) or (rows, columns, samples), YBR already as RGB."""
    from pydicom import dcmread
    from pydicom.pixels import get_decoder, pixel_array

    syntax = ds.file_meta.TransferSyntaxUID
    if syntax == _DEFLATED_FRAMES:
        return _inflated(dcmread(path), index)
    if syntax == _JPEG_EXTENDED and int(ds.get("BitsStored") or 8) > 8:
        return _jpeg12(dcmread(path), index)
    try:
        get_decoder(syntax)
    except NotImplementedError:
        raise RenderingError("no_decoder", "no decoder for this transfer syntax") from None
    try:
        if syntax == _DEFLATED:
            return pixel_array(dcmread(path), index=index)
        return pixel_array(path, index=index)
    except AttributeError as error:
        raise RenderingError("not_an_image", "an attribute of the pixels is missing") from error
    except RuntimeError as error:
        # pydicom names missing plug-ins and failing ones by the same class.
        if "missing" in str(error) or "dependencies" in str(error):
            raise RenderingError("no_decoder", "no decoder for this transfer syntax is installed") from error
        raise RenderingError("broken", "every decoder failed on this frame") from error


def _jpeg12(ds: Dataset, index: int) -> NDArray[Any]:
    """A frame of JPEG Extended of more than 8 bits, which no other decoder here reads."""
    from pydicom.encaps import get_frame

    from pacs.jpeg12 import BadJpeg, decode

    frame = get_frame(ds.PixelData, index, number_of_frames=int(ds.get("NumberOfFrames") or 1))
    try:
        pixels = decode(frame)
    except BadJpeg as error:
        raise RenderingError("broken", str(error)) from error
    if pixels.shape != (ds.Rows, ds.Columns):
        raise RenderingError("broken", "the frame has another size than the object says")
    return pixels


def _inflated(ds: Dataset, index: int) -> NDArray[Any]:
    """A frame of Deflated Image Frame Compression (PS3.5 A.4.13): native pixels in a raw deflate stream."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import get_frame
    from pydicom.pixels import pixel_array
    from pydicom.uid import ExplicitVRLittleEndian

    frame = get_frame(ds.PixelData, index, number_of_frames=int(ds.get("NumberOfFrames") or 1))
    native = Dataset()
    for elem in ds.group_dataset(0x0028):
        native.add(elem)
    native.NumberOfFrames = 1
    native.PixelData = zlib.decompressobj(-zlib.MAX_WBITS).decompress(frame, MAX_FRAME_BYTES)
    native["PixelData"].VR = "OW" if native.BitsAllocated > 8 else "OB"
    native.file_meta = FileMetaDataset()
    native.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return pixel_array(native)


def _to_8_bits(
    pixels: NDArray[Any], ds: Dataset, index: int, window: Window | None
) -> tuple[NDArray[np.uint8], Window | None]:
    import numpy as np
    from pydicom.pixels import apply_color_lut

    photometric = str(ds.get("PhotometricInterpretation") or "MONOCHROME2")
    if photometric == "PALETTE COLOR":
        return _shifted(apply_color_lut(pixels, ds)[..., :3]), None
    if pixels.ndim == 3:
        return _shifted(pixels[..., :3], int(ds.get("BitsStored") or 8)), None
    values = _modality(pixels, ds, index)
    if window is None and ds.get("VOILUTSequence"):
        levels = _looked_up(values, ds)
    else:
        window = window or _own_window(values, pixels, ds, index)
        levels = apply_window(values, window)
    if photometric == "MONOCHROME1":
        levels = 1.0 - levels
    return np.rint(levels * 255.0).astype(np.uint8), window


def _shifted(pixels: NDArray[Any], stored: int | None = None) -> NDArray[np.uint8]:
    """Colour of more than 8 bits cut to its upper 8."""
    import numpy as np

    bits = stored if stored is not None else pixels.dtype.itemsize * 8
    if pixels.dtype != np.uint8:
        pixels = pixels >> max(0, bits - 8)
    return np.ascontiguousarray(pixels.astype(np.uint8))


def _group(ds: Dataset, index: int, sequence: str) -> Dataset:
    """The item of a functional group macro for a frame, else the data set itself (PS3.3 C.7.6.16)."""
    for outer, at in (("PerFrameFunctionalGroupsSequence", index), ("SharedFunctionalGroupsSequence", 0)):
        items = ds.get(outer)
        if items and at < len(items):
            inner = items[at].get(sequence)
            if inner:
                found: Dataset = inner[0]
                return found
    return ds


def _modality(pixels: NDArray[Any], ds: Dataset, index: int) -> NDArray[np.float32]:
    """Stored values to modality units, e.g. Hounsfield (PS3.3 C.11.1)."""
    import numpy as np
    from pydicom.pixels import apply_modality_lut

    if ds.get("ModalityLUTSequence"):
        return apply_modality_lut(pixels, ds).astype(np.float32)
    group = _group(ds, index, "PixelValueTransformationSequence")
    slope = _number(group.get("RescaleSlope"), 1.0) or 0.0
    intercept = _number(group.get("RescaleIntercept"), 0.0)
    values = pixels.astype(np.float32)
    if slope not in (0.0, 1.0):
        values *= slope
    if intercept:
        values += intercept
    return values


def _looked_up(values: NDArray[np.float32], ds: Dataset) -> NDArray[np.float32]:
    """Through the first VOI LUT; 0.0 to 1.0."""
    import numpy as np
    from pydicom.pixels import apply_voi

    looked_up = apply_voi(np.rint(values).astype(np.int64), ds, 0).astype(np.float32)
    top = max(float(looked_up.max(initial=0)), 1.0)
    full = float(2 ** int(ds.VOILUTSequence[0].LUTDescriptor[2]) - 1)
    # Some makers name 16 bits for entries of fewer.
    result: NDArray[np.float32] = looked_up / (full if top > full / 2 else top)
    return result


def _own_window(values: NDArray[np.float32], pixels: NDArray[Any], ds: Dataset, index: int) -> Window:
    """The object's first window, else all of 8 bits, else the 1st to 99th percentile."""
    import numpy as np

    group = _group(ds, index, "FrameVOILUTSequence")
    center, width = _number(group.get("WindowCenter")), _number(group.get("WindowWidth"))
    if center is not None and width is not None and width >= 1:
        return Window(center, width, str(group.get("VOILUTFunction") or "LINEAR"))
    if int(ds.get("BitsStored") or 0) == 8 and not ds.get("PixelRepresentation"):
        # Captured screens and ultrasound are already as they should look.
        low, high = (float(value) for value in _modality(np.array([[0, 255]]), ds, index)[0])
        return Window((low + high) / 2, max(high - low, 1e-6), "LINEAR_EXACT")
    return _percentiles(values, pixels, ds)


def _percentiles(values: NDArray[np.float32], pixels: NDArray[Any], ds: Dataset) -> Window:
    import numpy as np

    seen = values.reshape(-1)
    padding = ds.get("PixelPaddingValue")
    if padding is not None:
        limit = ds.get("PixelPaddingRangeLimit", padding)
        from_value, to_value = sorted((int(padding), int(limit)))
        inside = ((pixels < from_value) | (pixels > to_value)).reshape(-1)
        if inside.any():
            seen = seen[inside]
    seen = seen[:: max(1, seen.size // 250_000)]
    low, high = (float(value) for value in np.percentile(seen, (1, 99)))
    if high - low < 1e-6:
        low, high = float(seen.min()), float(seen.max())
    width = max(high - low, 1e-6)
    return Window(low + width / 2, width, "LINEAR_EXACT")


def apply_window(values: NDArray[np.float32], window: Window) -> NDArray[np.float32]:
    """Values to 0.0 (black) to 1.0 (white) by PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    import numpy as np

    center, width = float(window.center), float(window.width)
    if window.function == "SIGMOID":
        levels = 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / max(width, 1e-6), -60, 60)))
    elif window.function == "LINEAR_EXACT":
        levels = (values - center) / max(width, 1e-6) + 0.5
    elif width <= 1:
        levels = (values > center - 0.5).astype(np.float32)
    else:
        levels = (values - (center - 0.5)) / (width - 1.0) + 0.5
    result: NDArray[np.float32] = np.clip(levels, 0.0, 1.0).astype(np.float32)
    return result


def _number(value: Any, default: float | None = None) -> float | None:
    """The first value of a DS as a float; the default when absent, empty or no number."""
    if isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue":
        value = value[0] if len(value) else None
    try:
        return default if value in (None, "") else float(value)
    except (TypeError, ValueError):
        return default


def _fit(image: Any, ds: Dataset, viewport: tuple[int, int], enlarge: bool) -> Any:
    """The picture scaled into the viewport, its pixels made square by their spacing (PS3.3 C.7.6.3.1.7)."""
    from PIL import Image

    tall = 1.0
    spacing = ds.get("PixelAspectRatio") or ds.get("PixelSpacing") or ds.get("ImagerPixelSpacing")
    if spacing and len(spacing) == 2 and float(spacing[0]) > 0 and float(spacing[1]) > 0:
        tall = float(spacing[0]) / float(spacing[1])
        if not 0.02 < tall < 50:
            tall = 1.0
    width, height = float(image.width), image.height * tall
    limit = (min(viewport[0], MAX_VIEWPORT), min(viewport[1], MAX_VIEWPORT))
    scale = min(limit[0] / width, limit[1] / height)
    if not enlarge:
        scale = min(scale, 1.0)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if size == image.size:
        return image
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


if __name__ == "__main__":
    main()
