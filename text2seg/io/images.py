"""Images in: a file, a Pillow image or an array becomes an `Image`, RGB uint8 as people see it.

Colour profiles are not applied: CLIP and SAM were trained without them.
"""

from __future__ import annotations

import io
import logging
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageCms, ImageFile, UnidentifiedImageError

from text2seg.errors import ImageError
from text2seg.io.deep_images import eight_bits, open_any, other_kind, read_samples
from text2seg.io.files import open_file, status
from text2seg.io.storage import Url, is_url, read_bytes
from text2seg.records import Image

ImageSource = str | os.PathLike[str] | Url | PillowImage.Image | NDArray[np.uint8]

PIXEL_LIMIT = 178_000_000
"""Images with more pixels are refused. It sits just under the size at which Pillow itself refuses."""

EXIF_ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)  # orientations in which rows are stored as columns
TIFF_WIDTH, TIFF_HEIGHT = 256, 257  # tags
ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")

_log = logging.getLogger(__name__)
_strict_lock = threading.Lock()
_limit_lock = threading.RLock()


def load_image(source: ImageSource, *, image_id: int = 1, file_name: str | None = None) -> Image:
    """An image from a file, an object in a store (`Url`), a Pillow image, or an RGB uint8 array [H, W, 3] (grey:
    [H, W]), as an `Image`. A text is always the path of a file.

    EXIF orientation is applied; transparent parts become white; images of more than 8 bits and of floats are scaled to
    8, as `text2seg.io.deep_images` says, and what was decided is logged; of an animation or a file of several pages the
    first is used, which is logged (of an open Pillow image: the frame it is at).
    `file_name` is what results call the image; by default the name of the file, without its folder.

    Raises `ImageError`, naming the source, where there is no such file, it may not be read, is a folder, empty, cut
    short, no image or larger than `PIXEL_LIMIT`, or where an array has the wrong type or shape.
    """
    if isinstance(source, np.ndarray):
        pixels, name = _from_array(source), ""
    elif isinstance(source, PillowImage.Image):
        name = Path(str(getattr(source, "filename", ""))).name
        pixels = _from_pillow(source, file_name or name or "the Pillow image")
    elif isinstance(source, Url):
        pixels, name = _from_url(source), source.name
    elif isinstance(source, str) and is_url(source):
        raise ImageError(
            f"{source} is a URL; copy the image here, or put place_of(...) of text2seg.io.storage around it"
        )
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source)
        pixels, name = _from_file(path), path.name
    else:
        raise ImageError(f"an image is a path, a Pillow image or a uint8 array, got {type(source).__name__}")
    return Image(pixels, name if file_name is None else file_name, image_id)


def _from_array(array: NDArray[Any]) -> NDArray[np.uint8]:
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype != np.uint8 or not fits or 0 in array.shape:
        got = f"{array.dtype}{list(array.shape)}"
        scale = "; scale it to 0..255, because white cannot be known" if array.dtype != np.uint8 else ""
        raise ImageError(f"an array must be RGB uint8[H, W, 3] or grey uint8[H, W] and not empty, got {got}{scale}")
    return np.repeat(array[:, :, None], 3, axis=2) if array.ndim == 2 else array.copy()


def check_file(path: Path) -> None:
    """Raise `ImageError` where the path is no file that could hold an image; opening a pipe would wait for ever."""
    found = status(path, ImageError)
    if found is None:
        open_file(path, ImageError).close()  # says why not
        return
    if stat.S_ISDIR(found.st_mode):
        raise ImageError(f"{path} is a folder, not an image")
    if not stat.S_ISREG(found.st_mode):
        raise ImageError(f"{path} is not a regular file")
    if found.st_size == 0:
        raise ImageError(f"{path} is empty (0 bytes)")


def _from_file(path: Path) -> NDArray[np.uint8]:
    check_file(path)
    return _decoded(path, str(path))


def _from_url(url: Url) -> NDArray[np.uint8]:
    content = read_bytes(url)
    if not content:
        raise ImageError(f"{url} is empty (0 bytes)")
    return _decoded(io.BytesIO(content), str(url))


def measure(path: Path) -> tuple[tuple[int, int], int]:
    """Rows and columns of the image as `load_image` gives it, and its EXIF orientation, from the file's header where
    that says both. Raises `ImageError` as `load_image` does, but not for what only decoding shows."""
    check_file(path)
    with open_image(path, str(path)) as image:
        orientation = _orientation(image, str(path))
        return _upright_hw(image, orientation), orientation


def _decoded(source: Path | BinaryIO, name: str) -> NDArray[np.uint8]:
    with open_image(source, name) as image:
        return _from_pillow(image, name)


def open_image(source: Path | BinaryIO, name: str, *, formats: tuple[str, ...] | None = None) -> PillowImage.Image:
    """`PIL.Image.open` for every kind of file that `load_image` reads, also for TIFFs of samples that Pillow does not
    know: of those only size and tags are there. `formats` are Pillow's names of those that are allowed, by default all.

    Raises `ImageError`, with the name, where it cannot be opened.
    """
    try:
        try:
            return open_any(source, formats)
        except (PillowImage.DecompressionBombError, PillowImage.DecompressionBombWarning):
            with _own_limit():
                return _within_limit(open_any(source, formats), name)
    except ImageError:
        raise
    except PermissionError as error:
        raise ImageError(f"{name}: no permission to read it") from error
    except UnidentifiedImageError:
        what = other_kind(source) or "no image that can be read here"
        raise ImageError(f"{name} is {what}; save it as PNG or JPEG") from None
    except Exception as error:
        raise _undecodable(name, error) from error


def _from_pillow(image: PillowImage.Image, name: str) -> NDArray[np.uint8]:
    """The decoded, upright RGB pixels; the image itself is only read."""
    width, height = _within_limit(image, name).size
    if 0 in image.size:
        raise ImageError(f"{name} is empty ({width} x {height} pixels)")
    if image.format == "EPS":  # decoding it would run Ghostscript on whatever the file says
        raise ImageError(f"{name} is PostScript, not an image of pixels; save it as PNG")
    try:
        # MPO is what many phones write for an ordinary photo: a JPEG with a second image behind it.
        if getattr(image, "is_animated", False) and image.format != "MPO":
            _log.warning("%s has several frames; frame %d is used", name, image.tell() + 1)
        pillows = PillowImage.MAX_IMAGE_PIXELS
        lifted = _own_limit() if pillows and width * height > pillows else nullcontext()
        with lifted, _truncation_is_an_error(), _not_mapped(image):
            samples = read_samples(image, name)
            pixels = _rgb(image) if samples is None else eight_bits(samples, name)
        # Only now, because Pillow turns some formats upright itself while it loads them.
        return _upright(pixels, _orientation(image, name))
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # decoders let anything out: OSError, SyntaxError, struct.error, IndexError …
        raise _undecodable(name, error) from error


def _within_limit(image: PillowImage.Image, name: str) -> PillowImage.Image:
    """The image. Raises `ImageError` where it has more pixels than `PIXEL_LIMIT`."""
    width, height = image.size
    if width * height > PIXEL_LIMIT:
        raise ImageError(f"{name} is {width} x {height}, over the limit of {PIXEL_LIMIT:,} pixels; make it smaller")
    return image


@contextmanager
def _own_limit() -> Iterator[None]:
    """Without Pillow's limit of pixels, which others can set as they like: `PIXEL_LIMIT` decides."""
    with _limit_lock:
        before, PillowImage.MAX_IMAGE_PIXELS = PillowImage.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            PillowImage.MAX_IMAGE_PIXELS = before


def _undecodable(name: str, error: Exception) -> ImageError:
    return ImageError(f"{name} cannot be decoded, it may be damaged or truncated: {error}")


@contextmanager
def _truncation_is_an_error() -> Iterator[None]:
    """Other packages tell Pillow to fill up truncated files with grey; a grey half would be segmented like a whole."""
    if not ImageFile.LOAD_TRUNCATED_IMAGES:
        yield
        return
    with _strict_lock:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = True


@contextmanager
def _not_mapped(image: PillowImage.Image) -> Iterator[None]:
    """Without its file name Pillow reads an image from the file that it has open. By the name it would map a TIFF's
    pixels into memory, those of a sideways one with rows and columns mixed up, and from whatever file has the name."""
    if not isinstance(image, ImageFile.ImageFile):
        yield
        return
    known, image.filename = image.filename, ""
    try:
        yield
    finally:
        image.filename = known


def _rgb(image: PillowImage.Image) -> NDArray[np.uint8]:
    image.load()
    if image.mode == "LAB":
        image = ImageCms.profileToProfile(  # type: ignore[assignment]
            image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        if image.mode == "La":
            image = image.convert("LA")
        paper = PillowImage.new("RGBA", image.size, "white")
        paper.alpha_composite(image.convert("RGBA"))
        image = paper
    return np.asarray(image.convert("RGB"))


def _orientation(image: PillowImage.Image, name: str) -> int:
    """The tag, 1 where there is none or it is none of EXIF's eight, or once Pillow has turned the image itself."""
    try:
        tag = int(image.getexif().get(EXIF_ORIENTATION, 1))
        return tag if 1 <= tag <= 8 else 1
    except Exception as error:  # a broken EXIF block raises anything; the pixels are good all the same
        _log.warning("%s: its EXIF block cannot be read, the image is taken as upright (%s)", name, error)
        return 1


def _upright_hw(image: PillowImage.Image, orientation: int) -> tuple[int, int]:
    """Rows and columns that the upright image has, before its pixels are loaded or after. Of a TIFF Pillow may tell
    either the size as stored or the upright one, so the file's own tags are asked."""
    width, height = image.size
    if orientation not in SIDEWAYS:
        return height, width
    tags = getattr(image, "tag_v2", {})
    return int(tags.get(TIFF_WIDTH, width)), int(tags.get(TIFF_HEIGHT, height))


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo one of EXIF's eight orientations; an unknown number changes nothing."""
    if orientation in (3, 4, 6, 7):
        pixels = pixels[::-1]
    if orientation in (2, 3, 7, 8):
        pixels = pixels[:, ::-1]
    return pixels.swapaxes(0, 1) if orientation in SIDEWAYS else pixels
