"""Deep images: samples of more than 8 bits, signed or floating-point, read exactly and scaled to 8 bits.

Cameras, microscopes and satellites put 10 to 14 bits into 16, so the size of the container does not tell which values
are black and white. A depth, range or no-data value that the file declares is used. Otherwise the range is chosen from
the values, and the choice is logged. Images of 8 unsigned bits are never scaled.

TIFFs are read by `text2seg.io.tiff`, all other formats here.
"""

from __future__ import annotations

import io
import logging
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile

from text2seg.errors import ImageError

WAY_OUT = "save it as grey or RGB PNG or TIFF of 8 or 16 bits"

Array = NDArray[Any]

NO_DATA = (-9999.0, -99999.0, -32768.0, -2147483648.0, -1e20, 1e20, -1e30, 1e30)  # usual no-data values
NO_DATA_LIMITS = tuple(sign * float(np.finfo(kind).max) for kind in (np.float32, np.float64) for sign in (1, -1))
SAMPLED_VALUES = 1_000_000  # values that are examined to choose a range
OUTLIER_SHARE = 0.001  # share of values at either end that may be outside the range, such as dead pixels
GLINT_SHARE, GLINT_MEDIAN = 0.05, 0.05  # fractions: this share may exceed 1 if the median is at least the second number
DARK_FACTOR = 16  # a white this many times above most values would make the image black

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Samples of an image as stored in its file.

    Attributes:
        colour: [H, W, C] of any integer or float dtype; C is 1 for grey, 3 for RGB, 4 for CMYK.
        alpha: [H, W], or None.
        black, white: the values that the file declares as black and white, or None.
        no_data: value of pixels without data, or None.
        min_is_white: low values are bright.
        premultiplied: the colour is already multiplied by alpha.
        note: remark for the log on how the file was read.
    """

    colour: Array
    alpha: Array | None = None
    black: float | None = None
    white: float | None = None
    no_data: float | None = None
    min_is_white: bool = False
    premultiplied: bool = False
    note: str = ""


def by_pillow(image: PillowImage.Image) -> Samples:
    """Return the samples of a grey image as Pillow decodes them."""
    return Samples(np.asarray(image)[:, :, None])


def content_of(image: PillowImage.Image, most: int = -1) -> bytes | None:
    """Return the content of an opened file, or its first `most` bytes; None if Pillow has already closed it."""
    file = getattr(image, "fp", None)
    if file is None or getattr(file, "closed", False) or image.format is None:
        return None
    place = file.tell()
    file.seek(0)
    content = bytes(file.read(most))
    file.seek(place)
    return content


def from_space(mode: str, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert pixels [H, W, C] from one of Pillow's colour spaces to RGB."""
    height, width = values.shape[:2]
    return np.asarray(PillowImage.frombytes(mode, (width, height), values.tobytes()).convert("RGB"))


def most_of(dtype: np.dtype[Any]) -> float:
    """Return the largest value of an integer dtype."""
    return float(np.iinfo(dtype).max)


def read_samples(image: PillowImage.Image, name: str) -> Samples | None:
    """Return the exact samples of the current frame of an opened image, or None if it has 8 bits that Pillow reads.

    Raises:
        ImageError: the colours or range of this kind of image cannot be determined.
        Exception: whatever the decoders raise for a damaged file.
    """
    if image.format == "FITS" and image.mode != "L":  # Pillow takes its bytes in the wrong order
        raise ImageError(f"{name} is a FITS file, which cannot be read here; {WAY_OUT}")
    start = content_of(image, 26) or bytes(26)
    if isinstance(image, PngImageFile) and start[24:25] == b"\x10" and not _frame(image):
        return _png(content_of(image) or b"")
    if isinstance(image, PpmImageFile) and start[:2] in (b"P2", b"P3", b"P5", b"P6"):
        return _ppm(image)
    if image.format == "JPEG2000":
        return _jpeg_2000(image, name)
    if image.format == "SGI" and start[3] == 2 and np.asarray(image).max() < 128:
        raise ImageError(f"{name}: it uses only the lower of its 16 bits, which cannot be read here; {WAY_OUT}")
    return by_pillow(image) if image.mode[0] in "IF" else None


def _png(content: bytes) -> Samples:
    """Read a 16-bit PNG. Pillow returns one byte of each sample, so it is called for both bytes."""

    def read(mode: str) -> Array:
        image = PngImageFile(io.BytesIO(content))
        image.tile = [(tile[0], tile[1], tile[2], mode) for tile in image.tile]  # type: ignore[misc]
        image.load()
        return np.asarray(image)

    colour_type = content[25]
    chunks = _png_chunks(content)
    values: Array
    if colour_type == 0:
        values = np.asarray(PillowImage.open(io.BytesIO(content))).astype(np.uint16)[:, :, None]
    elif colour_type == 4:
        pairs = read("RGBA").astype(np.uint16)
        values = pairs[:, :, 0::2] << 8 | pairs[:, :, 1::2]
    else:
        mode = "RGB" if colour_type == 2 else "RGBA"
        values = read(f"{mode};16B").astype(np.uint16) << 8 | read(f"{mode};16L")
    colours = 1 if colour_type in (0, 4) else 3
    colour, alpha = values[:, :, :colours], values[:, :, colours] if colour_type in (4, 6) else None
    if len(key := chunks.get(b"tRNS", b"")) == 2 * colours:
        alpha = np.where((colour == np.frombuffer(key, ">u2")).all(2), 0, 65535).astype(np.uint16)
    white = None
    if significant := list(chunks.get(b"sBIT", b"")[:colours]):
        depth = max(significant)
        white = float(2**depth - 1) if int(colour.max()) < 2**depth and 1 <= depth <= 16 else 65535.0
    return Samples(colour, alpha, white=white)


def _png_chunks(content: bytes) -> dict[bytes, bytes]:
    """Return the chunks before the pixels, by name."""
    chunks: dict[bytes, bytes] = {}
    at = 8
    while at + 8 <= len(content) and (name := content[at + 4 : at + 8]) != b"IDAT":
        size = int.from_bytes(content[at : at + 4], "big")
        chunks[name] = content[at + 8 : at + 8 + size]
        at += 12 + size
    return chunks


def _ppm(image: PpmImageFile) -> Samples | None:
    """Read a PGM or PPM with more than 255 shades. A header that says 65,535 declares no range."""
    decoder, _, offset, arguments = image.tile[0]
    shades = arguments[1] if decoder != "raw" and isinstance(arguments, tuple) else 65535
    if shades <= 255 or image.mode not in ("I", "I;16", "I;16B", "RGB") or (decoder == "raw" and image.mode == "RGB"):
        return None
    content = content_of(image) or b""
    count = image.width * image.height * (3 if image.mode == "RGB" else 1)
    values: Array = np.zeros(0)
    if decoder == "ppm_plain":
        words = re.sub(rb"#[^\r\n]*", b"", content[offset:]).split(maxsplit=count)[:count]
        values = np.array(words, dtype=np.int64)
    elif len(content) >= offset + 2 * count:
        values = np.frombuffer(content, ">u2", count=count, offset=offset)
    if len(values) < count:
        raise OSError("image file is truncated")
    values = np.clip(values, 0, shades).astype(np.uint16).reshape(image.height, image.width, -1)
    return Samples(values, white=None if shades == 65535 else float(shades))


def _jpeg_2000(image: PillowImage.Image, name: str) -> Samples | None:
    """Read a JPEG 2000. Pillow scales by the declared depth; a depth of 16 bits declares no range."""
    content = content_of(image)
    start = (content or b"").find(b"\xff\x4f\xff\x51")
    depth = (content[start + 42] & 0x7F) + 1 if content and 0 <= start < len(content) - 42 else 16
    if image.mode[0] in "IF":
        samples = by_pillow(image)
        return samples if depth == 16 else Samples(samples.colour, white=65535.0)
    if depth < 16 or content is None or image.mode not in ("RGB", "RGBA"):
        return None
    import cv2  # imported here to keep the start-up fast

    values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.ndim != 3 or values.dtype != np.uint16:
        raise ImageError(f"{name} is a JPEG 2000 of a kind that cannot be read here; {WAY_OUT}")
    return Samples(values[:, :, 2::-1], values[:, :, 3] if values.shape[2] == 4 else None)


def _frame(image: PillowImage.Image) -> int:
    return image.tell() if getattr(image, "is_animated", False) else 0


def eight_bits(samples: Samples, name: str) -> NDArray[np.uint8]:
    """Scale samples to RGB uint8[H, W, 3]. Values outside the range are clipped.

    Transparent parts become white and pixels without data black. A warning is logged if the range was chosen from the
    values.
    """
    colour = samples.colour
    missing = _missing(samples)
    black, white, decided = _range(samples, _unseen(samples, missing), name)
    remarks = [samples.note, decided]
    scaled = _scaled(colour, black, white)
    if samples.min_is_white:
        scaled = 255 - scaled
    if missing is not None and missing.any():
        scaled[missing] = 0
        remarks.append(f"pixels without a value ({np.count_nonzero(missing.any(2)):,}) become black")
    if any(remarks):
        _log.warning("%s: %s", name, "; ".join(filter(None, remarks)))
    if scaled.shape[2] == 1:
        scaled = np.repeat(scaled, 3, axis=2)
    elif scaled.shape[2] == 4:
        scaled = from_space("CMYK", scaled)
    return scaled if samples.alpha is None else _on_white(scaled, samples.alpha, premultiplied=samples.premultiplied)


def _missing(samples: Samples) -> NDArray[np.bool_] | None:
    """Return bool[H, W, C], True for samples that are NaN or have the no-data value of the file."""
    colour = samples.colour
    missing: NDArray[np.bool_] | None = np.isnan(colour) if colour.dtype.kind == "f" else None
    if samples.no_data is not None and not np.isnan(samples.no_data):
        with np.errstate(over="ignore"):
            value = np.array(samples.no_data).astype(colour.dtype) if colour.dtype.kind == "f" else samples.no_data
        empty = np.asarray(colour == value)
        missing = empty if missing is None else missing | empty
    return missing


def _unseen(samples: Samples, missing: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """Return the samples to ignore for the range: those without a value or fully transparent, unless all are."""
    if samples.alpha is None or samples.alpha.all() or not samples.alpha.any():
        return missing
    hidden = np.repeat((samples.alpha == 0)[:, :, None], samples.colour.shape[2], axis=2)
    return hidden if missing is None else hidden | missing


def _range(samples: Samples, missing: NDArray[np.bool_] | None, name: str) -> tuple[float, float, str]:
    """Return the values of black and white, and a remark if they were chosen from the values."""
    values, weights = _distribution(samples.colour, missing)
    if not len(values):
        raise ImageError(f"{name} has no pixel with a value")
    low, high = values[0], values[-1]
    depth = f"its values lie in {low:g}..{high:g}"
    if samples.white is not None and (samples.black or 0.0) <= low and high <= samples.white:
        return samples.black or 0.0, samples.white, ""
    if samples.colour.dtype == np.int8:
        return (-128.0 if low < 0 else 0.0), 127.0, ""
    if samples.colour.dtype == np.uint8:
        return 0.0, 255.0, ""
    whole = samples.colour.dtype.kind != "f" or bool((values == np.rint(values)).all())
    if low < 0 or high > 255:
        values, weights = _without_outliers(values, weights)
    black, white = _decide(values, weights, whole, samples.colour.dtype)
    if not np.isfinite(white - black):
        raise ImageError(f"{name}: {depth}, which is too wide a range to show; {WAY_OUT}")
    usual = white == (1.0 if samples.colour.dtype.kind == "f" else most_of(samples.colour.dtype)) and black == 0
    clipped = " (values outside are clipped)" if low < black or high > white else ""
    return (
        black,
        white,
        "" if usual and not clipped else f"{depth}; {black:g} is taken as black, {white:g} as white{clipped}",
    )


def _distribution(colour: Array, missing: NDArray[np.bool_] | None) -> tuple[NDArray[np.float64], Array]:
    """Return the distinct values, float64[N] in ascending order, and their counts.

    For integers up to 16 bits all values are counted, otherwise a sample with both extremes.
    """
    if colour.dtype.kind in "ui" and colour.dtype.itemsize <= 2:
        first = int(np.iinfo(colour.dtype).min)
        counts = np.zeros(1 << 8 * colour.dtype.itemsize, np.int64)
        for row in range(0, len(colour), 64):
            block = colour[row : row + 64] if missing is None else colour[row : row + 64][~missing[row : row + 64]]
            counts += np.bincount(block.ravel().astype(np.int64) - first, minlength=len(counts))
        (there,) = np.nonzero(counts)
        return (there + first).astype(np.float64), counts[there]
    lowest, highest = np.inf, -np.inf
    kept, step = [], max(1, colour.size // SAMPLED_VALUES)
    for row in range(0, len(colour), 64):
        block = colour[row : row + 64]
        flat = (block.ravel() if missing is None else block[~missing[row : row + 64]].ravel()).astype(np.float64)
        flat = flat[np.isfinite(flat)]
        if len(flat):
            lowest, highest = min(lowest, flat.min()), max(highest, flat.max())
            kept.append(flat[::step])
    if not kept:
        return np.zeros(0), np.zeros(0, np.int64)
    values, counts = np.unique(np.concatenate([*kept, [lowest, highest]]), return_counts=True)
    return values, counts


def _without_outliers(values: NDArray[np.float64], weights: Array) -> tuple[NDArray[np.float64], Array]:
    """Drop lowest and highest values that are far from all others, like no-data values and dead pixels."""
    while len(values) > 1:
        with np.errstate(over="ignore"):
            gap, spread = values[1] - values[0], values[-1] - values[1]
            if _is_no_data(values[0]) or (len(values) > 3 and gap > spread):
                values, weights = values[1:], weights[1:]
                continue
            gap, spread = values[-1] - values[-2], values[-2] - values[0]
            if _is_no_data(values[-1]) or (len(values) > 3 and gap > spread):
                values, weights = values[:-1], weights[:-1]
                continue
        break
    return values, weights


def _is_no_data(value: float) -> bool:
    return value in NO_DATA or any(np.isclose(value, limit, rtol=1e-6, atol=0) for limit in NO_DATA_LIMITS)


def _decide(values: NDArray[np.float64], weights: Array, whole: bool, dtype: np.dtype[Any]) -> tuple[float, float]:
    """Choose black and white if the file declares no range.

    - Whole numbers from 0: white is the largest number of the fewest bits that hold all values, at least 8.
    - Fractions between 0 and 1, with a little overshoot: white is 1.
    - Other fractions: like whole numbers if they are large.
    - Everything else: from the lowest to the highest value.

    A few values far above the rest are clipped.
    """
    low, high = float(values[0]), float(values[-1])
    share = np.cumsum(weights) / weights.sum()
    bulk_low, median, most, bulk = (
        float(values[min(int(np.searchsorted(share, at)), len(values) - 1)])
        for at in (OUTLIER_SHARE, 0.5, 1 - GLINT_SHARE, 1 - OUTLIER_SHARE)
    )

    def within(white: float) -> bool:
        """Return whether all values are in 0..white, except for fractions that overshoot as resampling does."""
        if low >= 0 and high <= white:
            return True
        outside = weights[(values < 0) | (values > white)].sum() / weights.sum()
        return not whole and -white / 4 <= low and high <= white * 1.25 and outside <= GLINT_SHARE

    if dtype.kind == "f" and within(1.0):
        return 0.0, 1.0
    if not whole and low >= -0.25 and most <= 1 and median >= GLINT_MEDIAN:  # HDR: light brighter than white
        return 0.0, 1.0
    if whole or bulk > DARK_FACTOR:
        for top in (high, bulk):
            white = _filled(top, dtype)
            if within(255.0):
                return 0.0, 255.0
            if low < 0 and not within(white):
                break
            if top == bulk or bulk * DARK_FACTOR >= white:
                return 0.0, white
    if bulk > bulk_low and high - low > DARK_FACTOR * (bulk - bulk_low):
        low, high = bulk_low, bulk
    return low, max(high, np.nextafter(low, np.inf), low + (high == low))


def _filled(top: float, dtype: np.dtype[Any]) -> float:
    """Return the largest number with as many bits as the value needs, at least 8.

    Above 16 bits it is the maximum of the dtype if the value uses the highest bit, else the value itself.
    """
    if top <= 65535:
        return float(2 ** max(8, int(np.ceil(top)).bit_length()) - 1)
    return most_of(dtype) if dtype.kind in "ui" and top > most_of(dtype) / 2 else top


def _scaled(colour: Array, black: float, white: float) -> NDArray[np.uint8]:
    def to_eight(values: Array) -> NDArray[np.uint8]:
        scaled = np.nan_to_num((values.astype(np.float64) - black) * (255.0 / (white - black)), nan=0.0)
        return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)

    if colour.dtype.kind in "ui" and colour.dtype.itemsize <= 2:
        limits = np.iinfo(colour.dtype)
        table = to_eight(np.arange(limits.min, limits.max + 1))
        return table[colour.astype(np.int32) - limits.min] if limits.min else table[colour]
    scaled = np.empty(colour.shape, np.uint8)
    for row in range(0, len(colour), 64):
        scaled[row : row + 64] = to_eight(colour[row : row + 64])
    return scaled


def _on_white(colour: NDArray[np.uint8], alpha: Array, *, premultiplied: bool) -> NDArray[np.uint8]:
    most = float(np.nanmax(alpha)) if alpha.size else 1.0
    full = 1.0 if most <= 1 else float(2 ** int(np.ceil(min(most, 2.0**62))).bit_length() - 1)
    opaque = np.clip(np.nan_to_num(alpha.astype(np.float32) / np.float32(full), nan=0.0), 0, 1)[:, :, None]
    front = colour if premultiplied else colour * opaque
    return np.rint(np.clip(front + 255 * (1 - opaque), 0, 255)).astype(np.uint8)
