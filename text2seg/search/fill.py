"""Bring an index up to date with a folder: encode new and changed images, drop deleted ones."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock
from tqdm import tqdm

from text2seg.errors import CheckpointError, ImageError, SettingsError, Text2SegError
from text2seg.io.files import exists, resolve_path
from text2seg.io.images import decode_ahead, load_image
from text2seg.io.storage import Place, Stamp
from text2seg.io.writing import acquire_lock, make_folder
from text2seg.pipeline import Text2Seg
from text2seg.records import Failure, Image
from text2seg.search.index import VECTORS, VectorIndex, image_vectors

AHEAD = 2  # images decoded ahead per thread
UNSAVED_SHARE, UNSAVED_LEAST = 8, 64  # saved when an eighth is new, so that writing costs a fixed share of encoding

# Entries of the provenance that vectors do not depend on; `precision` is SAM's.
_OF_NO_MATTER = frozenset({"text2seg", "sam", "settings", "precision", "compiled"})

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class IndexedImage:
    """An image to index: its path in the folder, and its file's size in bytes and time of change."""

    file: str
    stamp: Stamp


def indexed_images(files: Sequence[str], stamp: Callable[[int], Stamp]) -> list[IndexedImage]:
    """Make indexed images from the files of a scan; `stamp` returns size and time of the file with a number."""
    return [IndexedImage(file, stamp(number)) for number, file in enumerate(files)]


@dataclass(slots=True)
class Filled:
    """Result of filling an index: images `encoded` now, `held` before, `dropped`; `stopped` if it was stopped early."""

    encoded: int = 0
    held: int = 0
    dropped: int = 0
    failures: list[Failure] = field(default_factory=list)
    stopped: bool = False


def index_key(models: Text2Seg) -> dict[str, Any]:
    """Return everything besides the file that the vectors of an image depend on: weights, precision, device, input,
    rule.

    Raises:
        SettingsError: The models do not know the hash of their weights, so vectors of two models could be mixed, or
            CLIP alone cannot follow the attention rule.
    """
    models.clip.check(models.settings.maps.architecture)
    made_by = models.provenance()
    clip = made_by.get("clip")
    if not isinstance(clip, dict) or "sha256" not in clip:
        raise SettingsError("an index needs models that know the hash of their weights, as those of Text2Seg.load do")
    maps = models.settings.maps
    runtime = {name: value for name, value in made_by.items() if name not in _OF_NO_MATTER}
    return {
        **runtime,
        "clip": clip["sha256"],
        "precision": models.clip.precision.name,
        "device": models.clip.device.type,
        "input_hw": list(models.clip.input_hw(maps.input_size or models.input_size)),
        "attention": maps.architecture,
        "vectors": VECTORS,
    }


def index_path(folder: Place, key: dict[str, Any], where: Path | None = None) -> Path:
    """Return the file of a folder's index, in `where` or in the user's cache folder; each key has its own file."""
    whole = str(resolve_path(folder) if isinstance(folder, Path) else folder)
    name = hashlib.sha256(json.dumps([whole, key], sort_keys=True).encode()).hexdigest()[:24]
    return (where or platformdirs.user_cache_path("text2seg", appauthor=False) / "search") / f"{name}.index"


@contextmanager
def filled_index(
    models: Text2Seg,
    folder: Place,
    images: Sequence[IndexedImage],
    *,
    where: Path | None = None,
    workers: int = 4,
    stopping: Callable[[], bool] = lambda: False,
    progress: bool = False,
) -> Iterator[tuple[VectorIndex, Filled]]:
    """Open the index of a folder, bring it up to date and save it.

    Waits while another process fills the same index. Encoded images are kept even after `stopping`, an error or
    Ctrl-C.

    Args:
        images: Images that the index must hold. Others of the folder stay in it as long as their files exist.
        where: The folder of indexes. Default: one in the user's cache.
        workers: Threads that decode images.

    Raises:
        SettingsError: FAISS is not installed, or the models do not know the hash of their weights.
        OutputError: The index cannot be written.
        CheckpointError: CLIP's features are not finite.
    """
    key = index_key(models)
    path = index_path(folder, key, where)
    with _held(path, stopping) as mine:
        index = VectorIndex.open(path, key)
        filled = Filled(stopped=not mine)
        if mine:
            filled = _fill(index, models, folder, images, workers, stopping, progress)
    yield index, filled


@contextmanager
def _held(path: Path, stopping: Callable[[], bool]) -> Iterator[bool]:
    """Take the lock of an index; yield False if stopped while waiting."""
    make_folder(path.parent, flag="--index")
    lock, waited = FileLock(path.with_name(path.name + ".lock")), False
    try:
        while not stopping() and not acquire_lock(lock, 0.5, advice="; choose another --index"):
            if not waited:
                _log.warning("another process is filling %s; waiting for it", path)
            waited = True
        yield lock.is_locked
    finally:
        lock.release()


def _fill(
    index: VectorIndex,
    models: Text2Seg,
    folder: Place,
    images: Sequence[IndexedImage],
    workers: int,
    stopping: Callable[[], bool],
    progress: bool,
) -> Filled:
    filled = Filled(dropped=index.drop(_gone(index, folder, {image.file for image in images})))
    fresh = [each for each in images if (entry := index.entry(each.file)) is None or entry.stamp != each.stamp]
    filled.held = len(images) - len(fresh)
    unsaved, looked_at = filled.dropped, 0
    try:
        for image, decoded in _decoded(fresh, folder, workers, stopping, progress):
            looked_at += 1
            unsaved += 1
            try:
                _encode(index, models, image, decoded.result())
                filled.encoded += 1
            except CheckpointError:
                raise
            except Exception as error:  # decoders raise any error, and one bad file must not end a long run
                index.drop([image.file])
                stage = "read" if isinstance(error, ImageError) else "index"
                filled.failures.append(Failure.from_error(image.file, stage, error, folder / image.file))
            if unsaved >= max(UNSAVED_LEAST, len(index) // UNSAVED_SHARE):
                index.save()
                unsaved = 0
    except BaseException:
        try:
            if unsaved:
                index.save()
        except Text2SegError as second:  # the first error is more important
            _log.warning("%s", second)
        raise
    if unsaved:
        index.save()
    filled.stopped = looked_at < len(fresh)
    return filled


def _gone(index: VectorIndex, folder: Place, wanted: set[str]) -> list[str]:
    """Return indexed images with deleted files. Files outside the shard or pattern are kept; object stores are not
    checked."""
    if not isinstance(folder, Path):
        return []
    return [file for file in index.files() if file not in wanted and not exists(folder / file, ImageError)]


def _decoded(
    images: Sequence[IndexedImage], folder: Place, workers: int, stopping: Callable[[], bool], progress: bool
) -> Iterator[tuple[IndexedImage, Future[Image]]]:
    """Yield the images in order, decoded by threads; the number decoded ahead is bounded."""

    def load(image: IndexedImage) -> Image:
        return load_image(folder / image.file, file_name=image.file)

    decoded = decode_ahead(([each] for each in images), load, threads=workers, ahead=AHEAD * workers, stopping=stopping)
    with tqdm(total=len(images), unit="image", desc="index", disable=not progress or not images) as bar:
        for (image,), (future,) in decoded:
            yield image, future
            bar.update()


def _encode(index: VectorIndex, models: Text2Seg, entry: IndexedImage, image: Image) -> None:
    """Encode one image.

    Images are not batched, because rounding depends on the batch and vectors must depend on the file alone: a
    labelling job that was stopped must skip the same images as one that was not.
    """
    maps = models.settings.maps
    size = maps.input_size or models.input_size
    (tokens,) = models.clip.encode_images([image], size=size, architecture=maps.architecture)
    index.put(entry.file, entry.stamp, image.hw, image_vectors(tokens))
