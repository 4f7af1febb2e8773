"""Load images: files, Pillow images and arrays become an `Image`, upright and RGB uint8.

Colour profiles are not applied, because CLIP and SAM were trained without them.
"""

from __future__ import annotations

import io
import logging
import os
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageCms, ImageFile, TiffImagePlugin, UnidentifiedImageError

from text2seg.errors import ImageError
from text2seg.io.deep_images import eight_bits, read_samples
from text2seg.io.files import open_file, status
from text2seg.io.storage import Url, is_url, read_bytes
from text2seg.io.tiff import AnyTiff, read_tiff
from text2seg.records import Image

T = TypeVar("T")
ImageSource = str | os.PathLike[str] | Url | PillowImage.Image | NDArray[np.uint8]

PIXEL_LIMIT = 178_000_000
"""Images with more pixels are refused. Slightly lower than the limit of Pillow."""

EXIF_ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap rows and columns
TIFF_WIDTH, TIFF_HEIGHT = 256, 257  # tags
_UNREADABLE = (
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
ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")

_log = logging.getLogger(__name__)
_strict_lock = threading.Lock()
_limit_lock = threading.RLock()


def load_image(source: ImageSource, *, image_id: int = 1, file_name: str | None = None) -> Image:
    """Load an image.

    EXIF orientation is applied, transparent parts become white, and samples of more than 8 bits are scaled to 8 (see
    `text2seg.io.deep_images`), which is logged if the range had to be chosen. Of an animation or a file with several
    pages, the first one is used, which is logged. Of an open Pillow image, the current frame is used.

    Args:
        source: a path (text is always a path), an object in a store, a Pillow image, or an RGB uint8[H, W, 3] or grey
            uint8[H, W] array.
        image_id: number of the image in results.
        file_name: name of the image in results. By default the name of the file without its folder.

    Raises:
        ImageError: the file does not exist, cannot be read, is a folder, empty, damaged, not an image or larger than
            `PIXEL_LIMIT`, or an array has the wrong dtype or shape. The message names the source.
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


def check_images(images: object) -> None:
    """Raise `ImageError` unless these are several images, not one."""
    one = isinstance(images, (str, os.PathLike, PillowImage.Image, Image)) or (
        isinstance(images, np.ndarray) and images.ndim < 4
    )
    if one or not isinstance(images, Iterable):
        raise ImageError(f"images are a list, such as ['a.jpg', 'b.jpg'], got one {type(images).__name__}")


def decode_ahead(
    batches: Iterable[Sequence[T]],
    load: Callable[[T], Image],
    *,
    threads: int,
    ahead: int,
    stopping: Callable[[], bool] = lambda: False,
) -> Generator[tuple[Sequence[T], list[Future[Image]]], None, None]:
    """Yield batches with the futures of their images, which threads decode before they are needed.

    Args:
        batches: what to load.
        load: returns the image of one item. Its errors are raised by the future.
        threads: number of threads that decode.
        ahead: number of batches that are decoded or being decoded at the same time.
        stopping: no further batch is yielded once this returns True.
    """
    waiting: deque[tuple[Sequence[T], list[Future[Image]]]] = deque()
    pool, source = ThreadPoolExecutor(threads, thread_name_prefix="text2seg-decode"), iter(batches)
    try:
        while not stopping():
            while len(waiting) < ahead and (batch := next(source, None)) is not None:
                waiting.append((batch, [pool.submit(load, item) for item in batch]))
            if not waiting:
                break
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def _from_array(array: NDArray[Any]) -> NDArray[np.uint8]:
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype != np.uint8 or not fits or 0 in array.shape:
        got = f"{array.dtype}{list(array.shape)}"
        scale = "; scale it to 0..255, because white cannot be known" if array.dtype != np.uint8 else ""
        raise ImageError(f"an array must be RGB uint8[H, W, 3] or grey uint8[H, W] and not empty, got {got}{scale}")
    return np.repeat(array[:, :, None], 3, axis=2) if array.ndim == 2 else array.copy()


def check_file(path: Path) -> None:
    """Raise `ImageError` unless the path is a regular file that is not empty. Opening a pipe could block forever."""
    found = status(path, ImageError)
    if found is None:
        open_file(path, ImageError).close()  # raises an error that says why
        return
    if stat.S_ISDIR(found.st_mode):
        raise ImageError(f"{path} is a folder, not an image; `text2seg label` takes folders")
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
    """Return the height and width of the upright image, and its EXIF orientation, without decoding it.

    Raises `ImageError` as `load_image` does, except for faults that only decoding shows.
    """
    check_file(path)
    with open_image(path, str(path)) as image:
        orientation = _orientation(image, str(path))
        return _upright_hw(image, orientation), orientation


def _decoded(source: Path | BinaryIO, name: str) -> NDArray[np.uint8]:
    with open_image(source, name) as image:
        return _from_pillow(image, name)


def open_image(source: Path | BinaryIO, name: str, *, formats: tuple[str, ...] | None = None) -> PillowImage.Image:
    """Open a file as `PIL.Image.open` does. TIFFs with samples that Pillow does not support give only size and tags.

    Args:
        source: the file.
        name: its name, for messages.
        formats: Pillow's names of the allowed formats. By default all are allowed.

    Raises:
        ImageError: it cannot be opened.
    """
    try:
        try:
            return _open_any(source, formats)
        except (PillowImage.DecompressionBombError, PillowImage.DecompressionBombWarning):
            with _own_limit():
                return _within_limit(_open_any(source, formats), name)
    except ImageError:
        raise
    except PermissionError as error:
        raise ImageError(f"{name}: no permission to read it") from error
    except UnidentifiedImageError:
        what = _unreadable_kind(source) or "not an image that can be read here"
        raise ImageError(f"{name} is {what}; save it as PNG or JPEG") from None
    except Exception as error:
        raise _undecodable(name, error) from error


def _open_any(file: Path | BinaryIO, formats: tuple[str, ...] | None = None) -> PillowImage.Image:
    """Open a file as `PIL.Image.open` does, and also TIFFs with samples that Pillow does not support."""
    try:
        return PillowImage.open(file, formats=formats) if formats else PillowImage.open(file)
    except UnidentifiedImageError:
        if formats is not None and "TIFF" not in formats:
            raise
        if _start(file)[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            raise
    return AnyTiff(file)


def _unreadable_kind(file: Path | BinaryIO) -> str:
    """Return what a file is if its first bytes are those of a known format that cannot be read here, else nothing."""
    start = _start(file)
    for kind, at, magic in _UNREADABLE:
        if start[at:].startswith(magic):
            return f"{kind}, which cannot be read here"
    return ""


def _start(file: Path | BinaryIO) -> bytes:
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return opened.read(256)
    file.seek(0)
    start = file.read(256)
    file.seek(0)
    return start


def _from_pillow(image: PillowImage.Image, name: str) -> NDArray[np.uint8]:
    """Return the decoded, upright RGB pixels uint8[H, W, 3]. The Pillow image is not changed."""
    width, height = _within_limit(image, name).size
    if 0 in image.size:
        raise ImageError(f"{name} is empty ({width} x {height} pixels)")
    if image.format == "EPS":  # decoding it would run Ghostscript on the file
        raise ImageError(f"{name} is PostScript, not an image of pixels; save it as PNG")
    try:
        # Many phones write ordinary photos as MPO: a JPEG followed by a second image.
        if getattr(image, "is_animated", False) and image.format != "MPO":
            _log.warning("%s has several frames; frame %d is used", name, image.tell() + 1)
        pillows = PillowImage.MAX_IMAGE_PIXELS
        lifted = _own_limit() if pillows and width * height > pillows else nullcontext()
        is_tiff = isinstance(image, TiffImagePlugin.TiffImageFile)  # libtiff prints lines about damaged data
        with lifted, _truncation_is_an_error(), _not_mapped(image), quiet_libraries(if_true=is_tiff):
            samples = (
                read_tiff(image, name)
                if isinstance(image, TiffImagePlugin.TiffImageFile)
                else read_samples(image, name)
            )
            pixels = _rgb(image) if samples is None else eight_bits(samples, name)
        # After loading, because Pillow itself turns some formats upright while it loads them.
        return _upright(pixels, _orientation(image, name))
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, IndexError …
        raise _undecodable(name, error) from error


def _within_limit(image: PillowImage.Image, name: str) -> PillowImage.Image:
    """Return the image. Raises `ImageError` if it has more pixels than `PIXEL_LIMIT`."""
    width, height = image.size
    if width * height > PIXEL_LIMIT:
        raise ImageError(f"{name} is {width} x {height}, over the limit of {PIXEL_LIMIT:,} pixels; make it smaller")
    return image


@contextmanager
def _own_limit() -> Iterator[None]:
    """Lift Pillow's pixel limit, which any program may change. `PIXEL_LIMIT` applies instead."""
    with _limit_lock:
        previous, PillowImage.MAX_IMAGE_PIXELS = PillowImage.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            PillowImage.MAX_IMAGE_PIXELS = previous


def _undecodable(name: str, error: Exception) -> ImageError:
    return ImageError(f"{name} cannot be decoded, it may be damaged or truncated: {error}")


@contextmanager
def _truncation_is_an_error() -> Iterator[None]:
    """Make Pillow raise for truncated files. Other packages tell it to fill them with grey."""
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
    """Make Pillow read from the open file instead of mapping a TIFF into memory by its name.

    A mapped TIFF that is stored sideways has its rows and columns swapped, and another file may have the name by now.
    """
    if not isinstance(image, ImageFile.ImageFile):
        yield
        return
    known, image.filename = image.filename, ""
    try:
        yield
    finally:
        image.filename = known


_quiet_lock = threading.Lock()
_quiet: list[int] = []
"""File descriptors of stderr, one for each piece of work that is quiet; the first is to be put back."""


@contextmanager
def quiet_libraries(*, if_true: bool = True) -> Iterator[None]:
    """Drop the lines that C code of libraries prints to stderr, unless Python prints to the same descriptor."""
    if not if_true or _python_prints_to(2):
        yield
        return
    with _quiet_lock:
        _quiet.append(os.dup(2))
        if len(_quiet) == 1:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        with _quiet_lock:
            if len(_quiet) == 1:
                os.dup2(_quiet[0], 2)
            os.close(_quiet.pop())


def _python_prints_to(descriptor: int) -> bool:
    try:
        return sys.stderr.fileno() == descriptor
    except (AttributeError, OSError, ValueError):  # a stream that is no file, as in notebooks, or none
        return False


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
    """Return the EXIF orientation, 1 to 8. It is 1 if missing, invalid, or already applied by Pillow."""
    try:
        tag = int(image.getexif().get(EXIF_ORIENTATION, 1))
        return tag if 1 <= tag <= 8 else 1
    except Exception as error:  # a broken EXIF block raises anything, but the pixels are still good
        _log.warning("%s: its EXIF block cannot be read, so it is used without rotation (%s)", name, error)
        return 1


def _upright_hw(image: PillowImage.Image, orientation: int) -> tuple[int, int]:
    """Return the height and width of the upright image.

    For a TIFF, Pillow may report the stored size or the upright size, so the tags of the file are used.
    """
    width, height = image.size
    if orientation not in SIDEWAYS:
        return height, width
    tags = getattr(image, "tag_v2", {})
    return int(tags.get(TIFF_WIDTH, width)), int(tags.get(TIFF_HEIGHT, height))


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return pixels with an EXIF orientation undone. Unknown orientations change nothing."""
    if orientation in (3, 4, 6, 7):
        pixels = pixels[::-1]
    if orientation in (2, 3, 7, 8):
        pixels = pixels[:, ::-1]
    return pixels.swapaxes(0, 1) if orientation in SIDEWAYS else pixels
