"""Read TIFFs with samples of any type, and what their tags say about colour, range and transparency.

Source of tags and predictors: TIFF 6.0, and its supplements by Adobe.
"""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile, TiffImagePlugin

from text2seg.errors import ImageError
from text2seg.io.deep_images import WAY_OUT, Array, Samples, by_pillow, content_of, from_space, most_of

MOST_BYTES = 1_100_000_000
"""Most bytes of all samples of an image: as many as the largest allowed image has with three 16-bit channels."""

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
STRIPS, CHANNELS, STRIP_ROWS, STRIP_BYTES, PLANAR = 273, 277, 278, 279, 284
LOWEST, HIGHEST, SIGNED_LOWEST, SIGNED_HIGHEST = 280, 281, 340, 341
PREDICTOR, COLOUR_MAP, TILE_WIDTH, TILE_HEIGHT, TILES, TILE_BYTES = 317, 320, 322, 323, 324, 325
EXTRA_SAMPLES, SAMPLE_FORMAT, GDAL_NO_DATA = 338, 339, 42113
KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}  # values of the tag SAMPLE_FORMAT as numpy kinds; 4 is "undefined"
SUBSAMPLING = 530
GREY_LOW_IS_WHITE, GREY, RGB, PALETTE, CMYK, YCBCR, CAMERA_RAW = 0, 1, 2, 3, 5, 6, 32803
ASSOCIATED_ALPHA, ALPHA = 1, 2
LOSSLESS = (1, 5, 8, 32773, 32946, 34925, 50000)  # ways of compression: none, LZW, deflate, PackBits, LZMA, Zstandard


class AnyTiff(TiffImagePlugin.TiffImageFile):
    """TIFF of which Pillow reads only the size and the tags."""

    def _setup(self) -> None:
        if WIDTH not in self.tag_v2 or HEIGHT not in self.tag_v2:
            raise SyntaxError("its tags lack the width and height")
        self._size = (int(self.tag_v2[WIDTH]), int(self.tag_v2[HEIGHT]))
        self._mode = "F"
        self.tile = []


class _Bytes(TiffImagePlugin.TiffImageFile):
    """TIFF of single bytes. Skips Pillow's pixel limit, because `MOST_BYTES` limits them."""

    def load_prepare(self) -> None:
        ImageFile.ImageFile.load_prepare(self)


def read_tiff(image: TiffImagePlugin.TiffImageFile, name: str) -> Samples | None:
    """Return the exact samples of an opened TIFF, or None if Pillow reads it exactly.

    Raises:
        ImageError: this kind of TIFF cannot be read. The message has the name.
    """
    tags = image.tag_v2
    bits, kinds = set(_numbers(tags, BITS, 1)), set(_numbers(tags, SAMPLE_FORMAT, 1))
    photometric = tags.get(PHOTOMETRIC, GREY_LOW_IS_WHITE)
    if image.mode == "P" and max(tags.get(COLOUR_MAP, (256,)), default=0) < 256:  # the colours have 8 bits, not 16
        table = np.array(tags[COLOUR_MAP], np.uint8).reshape(3, -1)
        return Samples(np.moveaxis(table[:, np.asarray(image)], 0, 2), note="its palette has colours of 8 bits")
    usual = kinds <= {1, 4} and bits <= {1, 2, 4, 8}
    if usual and photometric == YCBCR and tags.get(COMPRESSION, 1) == 1:  # Pillow counts four bytes a pixel
        content = content_of(image)
        if content is None or _numbers(tags, SUBSAMPLING, 2, 2) != (1, 1) or tags.get(CHANNELS, 1) != 3:
            raise ImageError(f"{name} is a TIFF of YCbCr colours that cannot be read here; {WAY_OUT}")
        return Samples(from_space("YCbCr", _tiff_values(content, tags, 8, "u", name)))
    if not isinstance(image, AnyTiff) and (usual or photometric > CMYK):
        return None
    content = content_of(image)
    if content is None:  # Pillow has already loaded it and closed the file
        if image.mode[0] in "IF":
            samples = by_pillow(image)
            unsigned = kinds <= {1, 4} and samples.colour.dtype == np.int32
            return Samples(samples.colour.view(np.uint32)) if unsigned else samples
        if np.asarray(image).max() < 128:
            raise ImageError(
                f"{name}: Pillow kept only the upper 8 bits of its samples; give the path of the file instead"
            )
        return None
    if photometric == CAMERA_RAW:
        raise ImageError(f"{name} is a camera's raw file; develop it and save it as PNG or JPEG")
    if len(bits) > 1 or len(kinds) > 1 or not kinds <= set(KINDS) or photometric not in (0, 1, 2, 3, 5):
        raise ImageError(f"{name} is a TIFF of a kind that cannot be read here; {WAY_OUT}")
    values = _tiff_values(content, tags, bits.pop(), KINDS[kinds.pop()], name)
    return _tiff_samples(values, tags, photometric, name)


def _tiff_samples(values: Array, tags: Any, photometric: int, name: str) -> Samples:
    """Assign the channels [H, W, C] to colour and transparency, as the tags say."""
    count = values.shape[2]
    extra = _numbers(tags, EXTRA_SAMPLES)
    colours = {RGB: 3, CMYK: 4}.get(photometric, 1)
    alphas = [count - len(extra) + n for n, kind in enumerate(extra) if kind in (ASSOCIATED_ALPHA, ALPHA)]
    note = ""
    if photometric in (GREY_LOW_IS_WHITE, GREY) and count - len(alphas) == 3:  # GDAL writes 16-bit RGB like this
        colours, note = 3, "its three channels are taken as red, green and blue, although its tags do not say so"
    elif colours == 1 and count - len(alphas) > 1:
        raise ImageError(f"{name} has {count} channels and does not say which are red, green and blue; {WAY_OUT}")
    if count < colours:
        raise ImageError(f"{name} has {count} channels, but its colours need {colours}; {WAY_OUT}")
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
    """Return the values of black and white that the tags declare, or None if they only repeat the dtype's range."""
    bits = _numbers(tags, BITS, 1)[0]
    if dtype.kind == "u" and bits != 8 * dtype.itemsize:
        return 0.0, float(2**bits - 1)
    for lowest, highest in ((SIGNED_LOWEST, SIGNED_HIGHEST), (LOWEST, HIGHEST)):
        try:
            black, white = min(_numbers(tags, lowest, 0)), max(_numbers(tags, highest))
        except (ValueError, TypeError):
            continue
        if black < white and (dtype.kind == "f" or white < most_of(dtype)):
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


def _tiff_values(content: bytes, tags: Any, bits: int, kind: str, name: str) -> Array:
    """Return all channels, [H, W, C] in the byte order of this machine."""
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


def _plane(content: bytes, tags: Any, plane: int, channels: int, bits: int, kind: str, name: str) -> Array:
    """Return one plane of samples, [H, W, channels].

    Pillow decompresses it as a grey image of bytes, and the bytes are interpreted here, so any sample type can be read.
    """
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
    """Return a TIFF with the same image data and other tags."""
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
) -> Array:
    """Convert N lines of bytes to samples [N, width, channels]."""
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
    if predictor == 3:  # byte differences; in each line, the highest bytes of all samples come first
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
