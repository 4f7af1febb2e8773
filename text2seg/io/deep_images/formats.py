"""Opening files of every kind, and the exact samples of those that Pillow would reduce to 8 bits."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image as PillowImage
from PIL import TiffImagePlugin, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile

from text2seg.errors import ImageError
from text2seg.io.deep_images.depth import WAY_OUT, Array, Samples, by_pillow, content_of
from text2seg.io.deep_images.tiff import AnyTiff, read_tiff

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


def open_any(file: Path | BinaryIO, formats: tuple[str, ...] | None = None) -> PillowImage.Image:
    """`PIL.Image.open`, which also opens TIFFs whose kind of sample Pillow does not know, for their size and tags."""
    try:
        return PillowImage.open(file, formats=formats) if formats else PillowImage.open(file)
    except UnidentifiedImageError:
        if formats is not None and "TIFF" not in formats:
            raise
        if _start(file)[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            raise
    return AnyTiff(file)


def other_kind(file: Path | BinaryIO) -> str:
    """What a file is by its first bytes, where it is one of the usual kinds of image that cannot be read here."""
    start = _start(file)
    for kind, at, magic in OTHER_KINDS:
        if start[at:].startswith(magic):
            return f"{kind}, which cannot be read here"
    return ""


def read_samples(image: PillowImage.Image, name: str) -> Samples | None:
    """The exact samples of an opened image, at the frame where it is; none where it is one of 8 bits, which Pillow
    reads itself.

    Raises `ImageError`, naming the image, where it is of a kind whose colours or range cannot be known, and what the
    decoders raise where it is damaged.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return read_tiff(image, name)
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
        raise ImageError(f"{name}: of its 16 bits the upper ones are not used, and no others are read; {WAY_OUT}")
    return by_pillow(image) if image.mode[0] in "IF" else None


def _png(content: bytes) -> Samples:
    """A PNG of 16 bits. Pillow gives one byte of each sample at a time, so it is asked for both."""

    def read(mode: str) -> Array:
        image = PngImageFile(io.BytesIO(content))
        image.tile = [(tile[0], tile[1], tile[2], mode) for tile in image.tile]  # type: ignore[misc]
        image.load()
        return np.asarray(image)

    kind = content[25]
    chunks = _png_chunks(content)
    values: Array
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


def _ppm(image: PpmImageFile) -> Samples | None:
    """PGM and PPM with more than 255 shades; the header says how many, 65,535 being the container's own."""
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
    """Pillow scales by the declared depth; 16 bits are the container's own."""
    content = content_of(image)
    start = (content or b"").find(b"\xff\x4f\xff\x51")
    depth = (content[start + 42] & 0x7F) + 1 if content and 0 <= start < len(content) - 42 else 16
    if image.mode[0] in "IF":
        samples = by_pillow(image)
        return samples if depth == 16 else Samples(samples.colour, white=65535.0)
    if depth < 16 or content is None or image.mode not in ("RGB", "RGBA"):
        return None
    import cv2  # here, because text2seg is imported without it

    values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.ndim != 3 or values.dtype != np.uint16:
        raise ImageError(f"{name} is a JPEG 2000 of a kind that cannot be read here; {WAY_OUT}")
    return Samples(values[:, :, 2::-1], values[:, :, 3] if values.shape[2] == 4 else None)


def _frame(image: PillowImage.Image) -> int:
    return image.tell() if getattr(image, "is_animated", False) else 0


def _start(file: Path | BinaryIO) -> bytes:
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return opened.read(256)
    file.seek(0)
    start = file.read(256)
    file.seek(0)
    return start
