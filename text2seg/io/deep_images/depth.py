"""Samples of any type to RGB of 8 bits: which values are black and white."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from text2seg.errors import ImageError

WAY_OUT = "save it as grey or RGB PNG or TIFF of 8 or 16 bits"

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """An image as its file holds it: `colour` [H, W, C] of any integer or float type, C 1 for grey, 3 for RGB, 4 for
    CMYK; `alpha` [H, W] or none.

    `black` and `white` are the values that the file declares, none where it declares none; pixels of `no_data` are no
    part of the image. `min_is_white`: low values are bright. `premultiplied`: the colour is multiplied by alpha
    already. `note` is what else is to be said of how the file was read.
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
    return Samples(np.asarray(image)[:, :, None])


def content_of(image: PillowImage.Image, most: int = -1) -> bytes | None:
    """The bytes of an opened file, or so many at its start; none where Pillow has read and closed it."""
    file = getattr(image, "fp", None)
    if file is None or getattr(file, "closed", False) or image.format is None:
        return None
    place = file.tell()
    file.seek(0)
    content = bytes(file.read(most))
    file.seek(place)
    return content


def from_space(mode: str, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB of another of Pillow's colour spaces, [H, W, C] each."""
    height, width = values.shape[:2]
    return np.asarray(PillowImage.frombytes(mode, (width, height), values.tobytes()).convert("RGB"))


def most_of(dtype: np.dtype[Any]) -> float:
    """The largest number that a type of integers holds."""
    return float(np.iinfo(dtype).max)


_log = logging.getLogger(__name__)

NO_DATA = (-9999.0, -99999.0, -32768.0, -2147483648.0, -1e20, 1e20, -1e30, 1e30)
NO_DATA_LIMITS = tuple(sign * float(np.finfo(kind).max) for kind in (np.float32, np.float64) for sign in (1, -1))
MOST_LOOKED_AT = 1_000_000  # values, for what is decided from their distribution
BULK = 0.001  # the share of values, at either end, that may lie outside of a range, as dead pixels do
GLINTS, LEAST_MEDIAN = 0.05, 0.05  # the share of fractions that may lie above 1 where the median is this at least
DARK = 16  # a range whose white is so many times the bulk of the values would show them as black


def eight_bits(samples: Samples, name: str) -> NDArray[np.uint8]:
    """RGB uint8[H, W, 3] of the samples: black is 0, white 255, what lies beyond is clipped; transparent parts become
    white, pixels without data black. Logs a warning where the range was decided from the values."""
    colour = samples.colour
    missing = _missing(samples)
    black, white, decided = _range(samples, _unseen(samples, missing), name)
    said = [samples.note, decided]
    scaled = _scaled(colour, black, white)
    if samples.min_is_white:
        scaled = 255 - scaled
    if missing is not None and missing.any():
        scaled[missing] = 0
        said.append(f"pixels without a value ({np.count_nonzero(missing.any(2)):,}) become black")
    if any(said):
        _log.warning("%s: %s", name, "; ".join(filter(None, said)))
    if scaled.shape[2] == 1:
        scaled = np.repeat(scaled, 3, axis=2)
    elif scaled.shape[2] == 4:
        scaled = from_space("CMYK", scaled)
    return scaled if samples.alpha is None else _on_white(scaled, samples.alpha, premultiplied=samples.premultiplied)


def _missing(samples: Samples) -> NDArray[np.bool_] | None:
    """bool[H, W, C], where a sample has no value: NaN, or the no-data value of the file."""
    colour = samples.colour
    missing: NDArray[np.bool_] | None = np.isnan(colour) if colour.dtype.kind == "f" else None
    if samples.no_data is not None and not np.isnan(samples.no_data):
        with np.errstate(over="ignore"):
            value = np.array(samples.no_data).astype(colour.dtype) if colour.dtype.kind == "f" else samples.no_data
        empty = np.asarray(colour == value)
        missing = empty if missing is None else missing | empty
    return missing


def _unseen(samples: Samples, missing: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """What does not count for the range: samples without a value, and those below full transparency, if not all are."""
    if samples.alpha is None or samples.alpha.all() or not samples.alpha.any():
        return missing
    hidden = np.repeat((samples.alpha == 0)[:, :, None], samples.colour.shape[2], axis=2)
    return hidden if missing is None else hidden | missing


def _range(samples: Samples, missing: NDArray[np.bool_] | None, name: str) -> tuple[float, float, str]:
    """The values that are black and white, and a word on it where the values themselves decided."""
    values, weights = _distribution(samples.colour, missing)
    if not len(values):
        raise ImageError(f"{name} has no pixel that holds a number")
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
    clipped = " (what lies beyond is clipped)" if low < black or high > white else ""
    return (
        black,
        white,
        "" if usual and not clipped else f"{depth}; {black:g} is taken as black, {white:g} as white{clipped}",
    )


def _distribution(colour: Array, missing: NDArray[np.bool_] | None) -> tuple[NDArray[np.float64], Array]:
    """Values that are there, float64[N] in ascending order, and how often each is: all of them for small integers, else
    some and both extremes."""
    if colour.dtype.kind in "ui" and colour.dtype.itemsize <= 2:
        first = int(np.iinfo(colour.dtype).min)
        counts = np.zeros(1 << 8 * colour.dtype.itemsize, np.int64)
        for row in range(0, len(colour), 64):
            block = colour[row : row + 64] if missing is None else colour[row : row + 64][~missing[row : row + 64]]
            counts += np.bincount(block.ravel().astype(np.int64) - first, minlength=len(counts))
        (there,) = np.nonzero(counts)
        return (there + first).astype(np.float64), counts[there]
    lowest, highest = np.inf, -np.inf
    kept, step = [], max(1, colour.size // MOST_LOOKED_AT)
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
    """Without a lowest or highest value that stands apart from all others, as no-data values and dead pixels do."""
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
    """Black and white for values that the file says nothing of.

    Whole numbers from 0 fill the fewest bits that hold them all, 8 at least; fractions that stay within 0 and 1, but
    for an overshoot of some, have white at 1; other fractions are as whole numbers where they are large. All others are
    stretched from the lowest to the highest. A few values far above the rest are clipped.
    """
    low, high = float(values[0]), float(values[-1])
    share = np.cumsum(weights) / weights.sum()
    bulk_low, median, most, bulk = (
        float(values[min(int(np.searchsorted(share, at)), len(values) - 1)]) for at in (BULK, 0.5, 1 - GLINTS, 1 - BULK)
    )

    def within(white: float) -> bool:
        """All values lie in 0..white, or fractions overshoot it as resampling makes them."""
        if low >= 0 and high <= white:
            return True
        outside = weights[(values < 0) | (values > white)].sum() / weights.sum()
        return not whole and -white / 4 <= low and high <= white * 1.25 and outside <= GLINTS

    if dtype.kind == "f" and within(1.0):
        return 0.0, 1.0
    if not whole and low >= -0.25 and most <= 1 and median >= LEAST_MEDIAN:  # light beyond white, as HDR has it
        return 0.0, 1.0
    if whole or bulk > DARK:
        for top in (high, bulk):
            white = _filled(top, dtype)
            if within(255.0):
                return 0.0, 255.0
            if low < 0 and not within(white):
                break
            if top == bulk or bulk * DARK >= white:
                return 0.0, white
    if bulk > bulk_low and high - low > DARK * (bulk - bulk_low):
        low, high = bulk_low, bulk
    return low, max(high, np.nextafter(low, np.inf), low + (high == low))


def _filled(top: float, dtype: np.dtype[Any]) -> float:
    """The largest number of as many bits as the value needs, 8 at least; beyond 16 bits the type's own where its last
    bit is used, else the value itself."""
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
