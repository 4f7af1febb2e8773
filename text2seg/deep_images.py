"""Deep images: samples of more than 8 bits, or signed, or floating point, read exactly and scaled to 8 bits.

Which values are black and white follows from what the file says (a declared depth or range, a no-data value), else from
the values themselves; the size of the container says nothing, because cameras, microscopes and satellites put 10 to 14
bits into 16. What was decided from the values is logged. Images of 8 unsigned bits are never scaled.
"""

from __future__ import annotations

import io
import logging
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageFile, TiffImagePlugin, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile

from text2seg.errors import ImageError

WAY_OUT = "save it as grey or RGB PNG or TIFF of 8 or 16 bits"
MOST_BYTES = 1_100_000_000
"""Of all samples of one image: as much as the largest image of three channels with 16 bits has."""

_log = logging.getLogger(__name__)
_Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """An image as its file holds it: `colour` [H, W, C] of any integer or float type, C 1 for grey, 3 for RGB, 4 for
    CMYK; `alpha` [H, W] or none.

    `black` and `white` are the values that the file declares, none where it declares none; pixels of `no_data` are no
    part of the image. `min_is_white`: low values are bright. `premultiplied`: the colour is multiplied by alpha
    already. `note` is what else is to be said of how the file was read.
    """

    colour: _Array
    alpha: _Array | None = None
    black: float | None = None
    white: float | None = None
    no_data: float | None = None
    min_is_white: bool = False
    premultiplied: bool = False
    note: str = ""


def open_any(file: Path | BinaryIO, formats: tuple[str, ...] | None = None) -> PillowImage.Image:
    """`PIL.Image.open`, which also opens TIFFs whose kind of sample Pillow does not know, for their size and tags."""
    try:
        return PillowImage.open(file, formats=formats) if formats else PillowImage.open(file)
    except UnidentifiedImageError:
        if formats is not None and "TIFF" not in formats:
            raise
        if _start(file)[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            raise
    return _AnyTiff(file)


OTHER_KINDS = (
    ("an OpenEXR image", 0, b"\x76\x2f\x31\x01"),
    ("a Radiance HDR image", 0, b"#?R"),
    ("a DICOM image", 128, b"DICM"),
    ("a HEIF image", 4, b"ftyphe"),
    ("a HEIF image", 4, b"ftypmi"),
    ("a JPEG XL image", 0, b"\xff\x0a"),
    ("a JPEG XL image", 4, b"JXL "),
    ("a raw file of a camera", 4, b"ftypcrx"),
    ("a PPM image of floats", 0, b"PF\n"),
    ("an SVG drawing", 0, b"<svg"),
    ("a PDF document", 0, b"%PDF"),
    ("a HDF5 or NetCDF file", 0, b"\x89HDF"),
    ("a NumPy array", 0, b"\x93NUMPY"),
)


def other_kind(file: Path | BinaryIO) -> str:
    """What a file is by its first bytes, where it is one of the usual kinds of image that cannot be read here."""
    start = _start(file)
    for kind, at, magic in OTHER_KINDS:
        if start[at:].startswith(magic):
            return f"{kind}, which cannot be read here"
    return ""


def read_samples(picture: PillowImage.Image, name: str) -> Samples | None:
    """The exact samples of an opened image, at the frame where it is; none where it is one of 8 bits, which Pillow
    reads itself.

    Raises `ImageError`, naming the image, where it is of a kind whose colours or range cannot be known, and what the
    decoders raise where it is damaged.
    """
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        return _tiff(picture, name)
    if picture.format == "FITS" and picture.mode != "L":  # Pillow takes its bytes in the wrong order
        raise ImageError(f"{name} is a FITS file, which cannot be read here; {WAY_OUT}")
    start = _content(picture, 26) or bytes(26)
    if isinstance(picture, PngImageFile) and start[24:25] == b"\x10" and not _frame(picture):
        return _png(_content(picture) or b"")
    if isinstance(picture, PpmImageFile) and start[:2] in (b"P2", b"P3", b"P5", b"P6"):
        return _ppm(picture)
    if picture.format == "JPEG2000":
        return _jpeg_2000(picture, name)
    if picture.format == "SGI" and start[3] == 2 and np.asarray(picture).max() < 128:
        raise ImageError(f"{name}: of its 16 bits the upper ones are not used, and no others are read; {WAY_OUT}")
    return _by_pillow(picture) if picture.mode[0] in "IF" else None


def eight_bits(samples: Samples, name: str) -> NDArray[np.uint8]:
    """RGB uint8[H, W, 3] of the samples: black is 0, white 255, what lies beyond is clipped; transparent parts become
    white, pixels without data black. Logs a warning where the range was decided from the values."""
    colour = samples.colour
    missing = _missing(samples)
    black, white, decided = _range(samples, missing, name)
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
        scaled = _from_space("CMYK", scaled)
    return scaled if samples.alpha is None else _on_white(scaled, samples.alpha, premultiplied=samples.premultiplied)


# --- the range ------------------------------------------------------------------------------------------------------

NO_DATA = (-9999.0, -99999.0, -32768.0, -2147483648.0, -1e20, 1e20, -1e30, 1e30)
NO_DATA_LIMITS = tuple(sign * float(np.finfo(kind).max) for kind in (np.float32, np.float64) for sign in (1, -1))
MOST_LOOKED_AT = 1_000_000  # values, for what is decided from their distribution
BULK = 0.005  # the share of values, at either end, that may lie outside of a range
DARK = 16  # a range whose white is so many times the bulk of the values would show them as black


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
    usual = white == (1.0 if samples.colour.dtype.kind == "f" else _most(samples.colour.dtype)) and black == 0
    clipped = " (what lies beyond is clipped)" if low < black or high > white else ""
    return (
        black,
        white,
        "" if usual and not clipped else f"{depth}; {black:g} is taken as black, {white:g} as white{clipped}",
    )


def _distribution(colour: _Array, missing: NDArray[np.bool_] | None) -> tuple[NDArray[np.float64], _Array]:
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


def _without_outliers(values: NDArray[np.float64], weights: _Array) -> tuple[NDArray[np.float64], _Array]:
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


def _decide(values: NDArray[np.float64], weights: _Array, whole: bool, dtype: np.dtype[Any]) -> tuple[float, float]:
    """Black and white for values that the file says nothing of.

    Whole numbers from 0 fill the fewest bits that hold them all, 8 at least; fractions that stay within 0 and 1, but
    for an overshoot of some, have white at 1; other fractions are as whole numbers where they are large. All others are
    stretched from the lowest to the highest. A few values far above the rest are clipped.
    """
    low, high = float(values[0]), float(values[-1])
    share = np.cumsum(weights) / weights.sum()
    bulk_low, bulk = (float(values[min(int(np.searchsorted(share, at)), len(values) - 1)]) for at in (BULK, 1 - BULK))

    def within(white: float) -> bool:
        """All values lie in 0..white, or fractions overshoot it as resampling makes them."""
        if low >= 0 and high <= white:
            return True
        outside = weights[(values < 0) | (values > white)].sum() / weights.sum()
        return not whole and -white / 4 <= low and high <= white * 1.25 and outside <= 0.05

    if dtype.kind == "f" and within(1.0):
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
    if not whole and low >= 0 and 0 < bulk <= 1 and high > DARK:  # mostly 0..1, with glints
        return 0.0, 1.0
    if bulk > bulk_low and high - low > DARK * (bulk - bulk_low):
        low, high = bulk_low, bulk
    return low, max(high, np.nextafter(low, np.inf), low + (high == low))


def _filled(top: float, dtype: np.dtype[Any]) -> float:
    """The largest number of as many bits as the value needs, 8 at least; beyond 16 bits the type's own where its last
    bit is used, else the value itself."""
    if top <= 65535:
        return float(2 ** max(8, int(np.ceil(top)).bit_length()) - 1)
    return _most(dtype) if dtype.kind in "ui" and top > _most(dtype) / 2 else top


def _most(dtype: np.dtype[Any]) -> float:
    return float(np.iinfo(dtype).max)


def _from_space(mode: str, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB of another of Pillow's colour spaces, [H, W, C] each."""
    height, width = values.shape[:2]
    return np.asarray(PillowImage.frombytes(mode, (width, height), values.tobytes()).convert("RGB"))


def _scaled(colour: _Array, black: float, white: float) -> NDArray[np.uint8]:
    def to_eight(values: _Array) -> NDArray[np.uint8]:
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


def _on_white(colour: NDArray[np.uint8], alpha: _Array, *, premultiplied: bool) -> NDArray[np.uint8]:
    most = float(np.nanmax(alpha)) if alpha.size else 1.0
    full = 1.0 if most <= 1 else float(2 ** int(np.ceil(min(most, 2.0**62))).bit_length() - 1)
    opaque = np.clip(np.nan_to_num(alpha.astype(np.float32) / np.float32(full), nan=0.0), 0, 1)[:, :, None]
    front = colour if premultiplied else colour * opaque
    return np.rint(np.clip(front + 255 * (1 - opaque), 0, 255)).astype(np.uint8)


# --- the formats ----------------------------------------------------------------------------------------------------

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
STRIPS, CHANNELS, STRIP_ROWS, STRIP_BYTES, PLANAR = 273, 277, 278, 279, 284
LOWEST, HIGHEST, SIGNED_LOWEST, SIGNED_HIGHEST = 280, 281, 340, 341
PREDICTOR, COLOUR_MAP, TILE_WIDTH, TILE_HEIGHT, TILES, TILE_BYTES = 317, 320, 322, 323, 324, 325
EXTRA_SAMPLES, SAMPLE_FORMAT, GDAL_NO_DATA = 338, 339, 42113
KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}  # of samples; 4 is "undefined"
SUBSAMPLING = 530
GREY_LOW_IS_WHITE, GREY, RGB, PALETTE, CMYK, YCBCR, CAMERA_RAW = 0, 1, 2, 3, 5, 6, 32803
ASSOCIATED_ALPHA, ALPHA = 1, 2
LOSSLESS = (1, 5, 8, 32773, 32946, 34925, 50000)  # ways of compression: none, LZW, deflate, PackBits, LZMA, Zstandard


class _AnyTiff(TiffImagePlugin.TiffImageFile):
    """A TIFF of which only size and tags are read by Pillow."""

    def _setup(self) -> None:
        if WIDTH not in self.tag_v2 or HEIGHT not in self.tag_v2:
            raise SyntaxError("it does not say its width and height")
        self._size = (int(self.tag_v2[WIDTH]), int(self.tag_v2[HEIGHT]))
        self._mode = "F"
        self.tile = []


class _Bytes(TiffImagePlugin.TiffImageFile):
    """A TIFF of bytes, which are more than the pixels that Pillow's limit is for; `MOST_BYTES` is theirs."""

    def load_prepare(self) -> None:
        ImageFile.ImageFile.load_prepare(self)


def _tiff(picture: TiffImagePlugin.TiffImageFile, name: str) -> Samples | None:
    tags = picture.tag_v2
    bits, kinds = set(_numbers(tags, BITS, 1)), set(_numbers(tags, SAMPLE_FORMAT, 1))
    photometric = tags.get(PHOTOMETRIC, GREY_LOW_IS_WHITE)
    if picture.mode == "P" and max(tags.get(COLOUR_MAP, (256,)), default=0) < 256:  # the colours have 8 bits, not 16
        table = np.array(tags[COLOUR_MAP], np.uint8).reshape(3, -1)
        return Samples(np.moveaxis(table[:, np.asarray(picture)], 0, 2), note="its palette has colours of 8 bits")
    usual = kinds <= {1, 4} and bits <= {1, 2, 4, 8}
    if usual and photometric == YCBCR and tags.get(COMPRESSION, 1) == 1:  # Pillow counts four bytes a pixel
        content = _content(picture)
        if content is None or _numbers(tags, SUBSAMPLING, 2, 2) != (1, 1) or tags.get(CHANNELS, 1) != 3:
            raise ImageError(f"{name} is a TIFF of YCbCr colours that cannot be read here; {WAY_OUT}")
        return Samples(_from_space("YCbCr", _tiff_values(content, tags, 8, "u", name)))
    if not isinstance(picture, _AnyTiff) and (usual or photometric > CMYK):
        return None
    content = _content(picture)
    if content is None:  # it was loaded before it came here
        if picture.mode[0] in "IF":
            samples = _by_pillow(picture)
            unsigned = kinds <= {1, 4} and samples.colour.dtype == np.int32
            return Samples(samples.colour.view(np.uint32)) if unsigned else samples
        if np.asarray(picture).max() < 128:
            raise ImageError(f"{name}: Pillow has kept the upper 8 of its bits only; give the path of the file instead")
        return None
    if photometric == CAMERA_RAW:
        raise ImageError(f"{name} is a camera's raw file; develop it and save it as PNG or JPEG")
    if len(bits) > 1 or len(kinds) > 1 or not kinds <= set(KINDS) or photometric not in (0, 1, 2, 3, 5):
        raise ImageError(f"{name} is a TIFF of a kind that cannot be read here; {WAY_OUT}")
    values = _tiff_values(content, tags, bits.pop(), KINDS[kinds.pop()], name)
    return _tiff_samples(values, tags, photometric, name)


def _tiff_samples(values: _Array, tags: Any, photometric: int, name: str) -> Samples:
    """What the channels are, by the tags."""
    count = values.shape[2]
    extra = _numbers(tags, EXTRA_SAMPLES)
    colours = {RGB: 3, CMYK: 4}.get(photometric, 1)
    alphas = [count - len(extra) + n for n, kind in enumerate(extra) if kind in (ASSOCIATED_ALPHA, ALPHA)]
    note = ""
    if photometric in (GREY_LOW_IS_WHITE, GREY) and count - len(alphas) == 3:  # as GDAL writes RGB of 16 bits
        colours, note = 3, "its three channels are taken as red, green and blue, which it does not say"
    elif colours == 1 and count - len(alphas) > 1:
        raise ImageError(f"{name} has {count} channels and does not say which are red, green and blue; {WAY_OUT}")
    if count < colours:
        raise ImageError(f"{name} has {count} channels where its colours need {colours}; {WAY_OUT}")
    rest = count - colours - len(alphas)
    if rest:
        note = f"channels that are neither colour nor transparency are left out ({rest} of {count})"
    alpha = values[:, :, alphas[0]] if alphas and colours <= alphas[0] < count else None
    premultiplied = bool(alphas) and extra[alphas[0] - count + len(extra)] == ASSOCIATED_ALPHA
    if photometric == PALETTE:
        table = np.array(_numbers(tags, COLOUR_MAP), np.uint16).reshape(3, -1)
        if values.dtype.kind != "u" or int(values.max()) >= table.shape[1]:
            raise ImageError(f"{name} has pixels that its palette lacks; it may be damaged")
        return Samples(np.moveaxis(table[:, values[:, :, 0]], 0, 2), alpha, note=note)
    black, white = _declared(tags, values.dtype)
    return Samples(
        values[:, :, :colours],
        alpha,
        black,
        white,
        _no_data(tags),
        photometric == GREY_LOW_IS_WHITE,
        premultiplied,
        note,
    )


def _declared(tags: Any, dtype: np.dtype[Any]) -> tuple[float | None, float | None]:
    """Black and white where the tags say more than the type does."""
    bits = _numbers(tags, BITS, 1)[0]
    if dtype.kind == "u" and bits != 8 * dtype.itemsize:
        return 0.0, float(2**bits - 1)
    for lowest, highest in ((SIGNED_LOWEST, SIGNED_HIGHEST), (LOWEST, HIGHEST)):
        try:
            black, white = min(_numbers(tags, lowest, 0)), max(_numbers(tags, highest))
        except (ValueError, TypeError):
            continue
        if black < white and (dtype.kind == "f" or white < _most(dtype)):
            return float(black), float(white)
    return None, None


def _no_data(tags: Any) -> float | None:
    try:
        return float(str(tags[GDAL_NO_DATA]).strip("\0 "))
    except (KeyError, ValueError):
        return None


def _numbers(tags: Any, tag: int, *default: int) -> tuple[Any, ...]:
    value = tags.get(tag, default)
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _tiff_values(content: bytes, tags: Any, bits: int, kind: str, name: str) -> _Array:
    """All channels, [H, W, C] in the machine's byte order."""
    width, height, channels = int(tags[WIDTH]), int(tags[HEIGHT]), int(tags.get(CHANNELS, 1))
    direct = bits in ((16, 32, 64) if kind == "f" else (8, 16, 32, 64))
    if not direct and (kind != "u" or not 1 <= bits <= 31 or tags.get(PREDICTOR, 1) != 1):
        raise ImageError(f"{name} has samples of {bits} bits, which cannot be read here; {WAY_OUT}")
    if (compression := tags.get(COMPRESSION, 1)) not in LOSSLESS:
        raise ImageError(
            f"{name} is compressed in a way that cannot be read here (TIFF's number {compression}); {WAY_OUT}"
        )
    if width * height * channels * max(1, -(-bits // 8)) > MOST_BYTES:
        raise ImageError(f"{name} holds over {MOST_BYTES:,} bytes; make it smaller")
    if tags.get(PLANAR, 1) == 2 and channels > 1:
        planes = [_plane(content, tags, n, 1, bits, kind, name) for n in range(channels)]
        return np.concatenate(planes, axis=2)
    return _plane(content, tags, 0, channels, bits, kind, name)


def _plane(content: bytes, tags: Any, plane: int, channels: int, bits: int, kind: str, name: str) -> _Array:
    """One plane of samples. Where it is compressed, Pillow reads it as a grey image of bytes; what the bytes mean is
    known here alone, so that any type of sample can be read."""
    width, height = int(tags[WIDTH]), int(tags[HEIGHT])
    tiled = TILES in tags
    part_width = int(tags[TILE_WIDTH]) if tiled else width
    part_height = int(tags[TILE_HEIGHT]) if tiled else max(1, min(int(tags.get(STRIP_ROWS, height)), height))
    across, down = -(-width // max(part_width, 1)), -(-height // max(part_height, 1))
    row_bytes = -(-part_width * channels * bits // 8)
    rows = down * part_height if tiled else height
    if rows * across * row_bytes > MOST_BYTES + (16 << 20):
        raise ImageError(f"{name} has tiles far larger than its image; it may be damaged")
    offsets, sizes = (
        _numbers(tags, tag)[plane * across * down :][: across * down]
        for tag in ((TILES, TILE_BYTES) if tiled else (STRIPS, STRIP_BYTES))
    )
    if len(offsets) < across * down or 0 < len(sizes) < across * down:
        raise ImageError(f"{name} lacks parts of its image; it may be damaged or truncated")
    if tags.get(COMPRESSION, 1) == 1 and tags.get(FILL_ORDER, 1) == 1:
        lines = (
            np.empty((down, part_height, across, row_bytes), np.uint8)
            if tiled
            else np.empty((rows, row_bytes), np.uint8)
        )
        for part, offset in enumerate(offsets):
            y, x = divmod(part, across)
            place = lines[y, :, x] if tiled else lines[y * part_height : (y + 1) * part_height]
            place[:] = np.frombuffer(content, np.uint8, place.size, offset).reshape(place.shape)
        lines = lines.reshape(rows * across, row_bytes)
    else:
        fake: dict[int, tuple[int, ...]] = {
            **{WIDTH: (across * row_bytes,), HEIGHT: (rows,), BITS: (8,), CHANNELS: (1,), PHOTOMETRIC: (GREY,)},
            COMPRESSION: (int(tags.get(COMPRESSION, 1)),),
            FILL_ORDER: (int(tags.get(FILL_ORDER, 1)),),
            **({TILE_WIDTH: (row_bytes,), TILE_HEIGHT: (part_height,)} if tiled else {STRIP_ROWS: (part_height,)}),
            (TILES if tiled else STRIPS): offsets,
            **({(TILE_BYTES if tiled else STRIP_BYTES): sizes} if sizes else {}),
        }
        image = _Bytes(io.BytesIO(_with_tags(content, fake)))
        image.load()
        lines = np.asarray(image).reshape(rows * across, row_bytes)
    big_endian = content[:2] == b"MM"
    values = _values(lines, part_width, channels, bits, kind, int(tags.get(PREDICTOR, 1)), big_endian=big_endian)
    return values.reshape(rows, across * part_width, channels)[:height, :width]


def _with_tags(content: bytes, tags: dict[int, tuple[int, ...]]) -> bytes:
    """A TIFF with other tags in front of the same bytes of image data."""
    start = len(content) + len(content) % 2
    beyond = start + 2 + 12 * len(tags) + 4
    entries, arrays = [struct.pack("<H", len(tags))], []
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            arrays.append(packed)
            packed = struct.pack("<I", beyond)
            beyond += 4 * len(values)
        entries.append(struct.pack("<HHI", tag, 4, len(values)) + packed)
    header = struct.pack("<4sI", b"II*\0", start)
    return b"".join((header, content[8:], bytes(start - len(content)), *entries, bytes(4), *arrays))


def _values(
    lines: NDArray[np.uint8], width: int, channels: int, bits: int, kind: str, predictor: int, *, big_endian: bool
) -> _Array:
    """[N, width, channels] of N lines of bytes."""
    size = bits // 8
    if bits not in (8, 16, 32, 64):
        packed = np.empty(
            (len(lines), width * channels), np.uint8 if bits < 8 else np.uint16 if bits < 16 else np.uint32
        )
        weights = (1 << np.arange(bits)[::-1]).astype(packed.dtype)
        for row in range(0, len(lines), 64):
            ones = np.unpackbits(lines[row : row + 64], axis=1)[:, : width * channels * bits]
            packed[row : row + 64] = ones.reshape(len(ones), -1, bits) @ weights
        return packed.reshape(len(lines), width, channels)
    if predictor == 3:  # differences of bytes; of each line the highest bytes of all samples come first
        summed = np.cumsum(lines.reshape(len(lines), -1, channels), axis=1, dtype=np.uint8)
        parts = summed.reshape(len(lines), size, width * channels).swapaxes(1, 2)
        return (
            np.ascontiguousarray(parts)
            .view(f">{kind}{size}")
            .astype(f"{kind}{size}")
            .reshape(len(lines), width, channels)
        )
    raw = np.ascontiguousarray(lines).view(f"{'>' if big_endian else '<'}u{size}").astype(f"u{size}", copy=False)
    raw = raw.reshape(len(lines), width, channels)
    if predictor == 2:
        raw = np.cumsum(raw, axis=1, dtype=raw.dtype)
    return raw.view(f"{kind}{size}")


def _png(content: bytes) -> Samples:
    """A PNG of 16 bits. Pillow gives one byte of each sample at a time, so it is asked for both."""

    def read(mode: str) -> _Array:
        image = PngImageFile(io.BytesIO(content))
        image.tile = [(tile[0], tile[1], tile[2], mode) for tile in image.tile]  # type: ignore[misc]
        image.load()
        return np.asarray(image)

    kind = content[25]
    chunks = _png_chunks(content)
    values: _Array
    if kind == 0:
        values = np.asarray(PillowImage.open(io.BytesIO(content))).astype(np.uint16)[:, :, None]
    elif kind == 4:
        pairs = read("RGBA").astype(np.uint16)
        values = pairs[:, :, 0::2] << 8 | pairs[:, :, 1::2]
    else:
        mode = "RGB" if kind == 2 else "RGBA"
        values = read(f"{mode};16B").astype(np.uint16) << 8 | read(f"{mode};16L")
    colours = 1 if kind in (0, 4) else 3
    colour, alpha = values[:, :, :colours], values[:, :, colours] if kind in (4, 6) else None
    if len(key := chunks.get(b"tRNS", b"")) == 2 * colours:
        alpha = np.where((colour == np.frombuffer(key, ">u2")).all(2), 0, 65535).astype(np.uint16)
    white = None
    if significant := list(chunks.get(b"sBIT", b"")[:colours]):
        depth = max(significant)
        white = float(2**depth - 1) if int(colour.max()) < 2**depth and 1 <= depth <= 16 else 65535.0
    return Samples(colour, alpha, white=white)


def _png_chunks(content: bytes) -> dict[bytes, bytes]:
    """The chunks in front of the pixels, by their names."""
    chunks: dict[bytes, bytes] = {}
    at = 8
    while at + 8 <= len(content) and (name := content[at + 4 : at + 8]) != b"IDAT":
        size = int.from_bytes(content[at : at + 4], "big")
        chunks[name] = content[at + 8 : at + 8 + size]
        at += 12 + size
    return chunks


def _ppm(picture: PpmImageFile) -> Samples | None:
    """PGM and PPM with more than 255 shades; the header says how many, 65,535 being the container's own."""
    decoder, _, offset, arguments = picture.tile[0]
    shades = arguments[1] if decoder != "raw" and isinstance(arguments, tuple) else 65535
    if (
        shades <= 255
        or picture.mode not in ("I", "I;16", "I;16B", "RGB")
        or (decoder == "raw" and picture.mode == "RGB")
    ):
        return None
    content = _content(picture) or b""
    count = picture.width * picture.height * (3 if picture.mode == "RGB" else 1)
    values: _Array = np.zeros(0)
    if decoder == "ppm_plain":
        words = re.sub(rb"#[^\r\n]*", b"", content[offset:]).split(maxsplit=count)[:count]
        values = np.array(words, dtype=np.int64)
    elif len(content) >= offset + 2 * count:
        values = np.frombuffer(content, ">u2", count=count, offset=offset)
    if len(values) < count:
        raise OSError("image file is truncated")
    values = np.clip(values, 0, shades).astype(np.uint16).reshape(picture.height, picture.width, -1)
    return Samples(values, white=None if shades == 65535 else float(shades))


def _jpeg_2000(picture: PillowImage.Image, name: str) -> Samples | None:
    """Pillow scales by the declared depth; 16 bits are the container's own."""
    content = _content(picture)
    start = (content or b"").find(b"\xff\x4f\xff\x51")
    depth = (content[start + 42] & 0x7F) + 1 if content and 0 <= start < len(content) - 42 else 16
    if picture.mode[0] in "IF":
        samples = _by_pillow(picture)
        return samples if depth == 16 else Samples(samples.colour, white=65535.0)
    if depth < 16 or content is None or picture.mode not in ("RGB", "RGBA"):
        return None
    import cv2  # here, because text2seg is imported without it

    values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.ndim != 3 or values.dtype != np.uint16:
        raise ImageError(f"{name} is a JPEG 2000 of a kind that cannot be read here; {WAY_OUT}")
    return Samples(values[:, :, 2::-1], values[:, :, 3] if values.shape[2] == 4 else None)


def _by_pillow(picture: PillowImage.Image) -> Samples:
    return Samples(np.asarray(picture)[:, :, None])


def _content(picture: PillowImage.Image, most: int = -1) -> bytes | None:
    """The bytes of an opened file, or so many at its start; none where Pillow has read and closed it."""
    file = getattr(picture, "fp", None)
    if file is None or getattr(file, "closed", False) or picture.format is None:
        return None
    place = file.tell()
    file.seek(0)
    content = bytes(file.read(most))
    file.seek(place)
    return content


def _frame(picture: PillowImage.Image) -> int:
    return picture.tell() if getattr(picture, "is_animated", False) else 0


def _start(file: Path | BinaryIO) -> bytes:
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return opened.read(256)
    file.seek(0)
    start = file.read(256)
    file.seek(0)
    return start
