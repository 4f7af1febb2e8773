"""Bring an index up to a folder: encode what is new or has changed, forget what has gone."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock
from tqdm import tqdm

from text2seg.errors import CheckpointError, ImageError, SettingsError, Text2SegError
from text2seg.io.files import exists, make_folder, resolved, take_lock
from text2seg.io.images import load_image
from text2seg.io.storage import Place, Stamp
from text2seg.pipeline import Text2Seg
from text2seg.records import Failure, Image
from text2seg.search.index import VECTORS, VectorIndex, image_vectors

AHEAD = 2  # images that each thread may have decoded before their turn
UNSAVED_SHARE, UNSAVED_LEAST = 8, 64  # written when an eighth is new: writing costs a share of encoding, not its square

_OF_NO_MATTER = frozenset({"text2seg", "sam", "settings", "precision", "compiled"})  # SAM's precision

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class IndexedImage:
    """An image to have in the index: its name from the folder on, its file's bytes and time of change."""

    file: str
    stamp: Stamp


def indexed_images(files: Sequence[str], stamp: Callable[[int], Stamp]) -> list[IndexedImage]:
    """Images from the files of a scan and the stamp of each by its place there."""
    return [IndexedImage(file, stamp(number)) for number, file in enumerate(files)]


@dataclass(slots=True)
class Filled:
    """What filling an index came to: images `encoded` now, `held` already, `dropped`; `stopped` before all were."""

    encoded: int = 0
    held: int = 0
    dropped: int = 0
    failures: list[Failure] = field(default_factory=list)
    stopped: bool = False


def index_key(models: Text2Seg) -> dict[str, Any]:
    """All that the vectors of an image depend on beside its file: weights, precision, device, input and attention.

    Raises:
        SettingsError: the models do not say which weights they are, so vectors of two could be mixed.
    """
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
    """The file of a folder's index, in `where` or in the user's cache folder; another key has another file."""
    whole = str(resolved(folder) if isinstance(folder, Path) else folder)
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
    """The index of a folder, brought up to these images and saved.

    Another process that fills the same index is waited for. What was encoded is kept whatever happens: `stopping`,
    an error, Ctrl-C.

    Args:
        images: those to have; others of the folder stay in the index as long as their files are there.
        where: the folder of indexes, by default one in the user's cache.
        workers: threads that decode.

    Raises:
        SettingsError: FAISS is not installed, or the models do not know the hash of their weights.
        OutputError: the index cannot be written.
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
    """Whether this process alone may write the index: true, unless it was stopped while it waited."""
    make_folder(path.parent, flag="--index")
    lock, waited = FileLock(path.with_name(path.name + ".lock")), False
    try:
        while not stopping() and not take_lock(lock, 0.5, way_out="; choose another --index"):
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
            except Exception as error:  # decoders let anything out, and one bad file must not end a night's run
                index.drop([image.file])
                filled.failures.append(_failure(image, error, str(folder / image.file)))
            if unsaved >= max(UNSAVED_LEAST, len(index) // UNSAVED_SHARE):
                index.save()
                unsaved = 0
    except BaseException:
        try:
            if unsaved:
                index.save()
        except Text2SegError as second:  # the first error is the one to be told
            _log.warning("%s", second)
        raise
    if unsaved:
        index.save()
    filled.stopped = looked_at < len(fresh)
    return filled


def _gone(index: VectorIndex, folder: Place, wanted: set[str]) -> list[str]:
    """Images whose files are no more. A shard or a pattern leaves others out that are; a store is not asked."""
    if not isinstance(folder, Path):
        return []
    return [file for file in index.files() if file not in wanted and not exists(folder / file, ImageError)]


def _decoded(
    images: Sequence[IndexedImage], folder: Place, workers: int, stopping: Callable[[], bool], progress: bool
) -> Iterator[tuple[IndexedImage, Future[Image]]]:
    """Each image as threads have decoded it, a bounded number ahead of their turn."""
    ahead: deque[tuple[IndexedImage, Future[Image]]] = deque()
    pool, source = ThreadPoolExecutor(workers, thread_name_prefix="text2seg-decode"), iter(images)
    try:
        with tqdm(total=len(images), unit="image", desc="index", disable=not progress or not images) as bar:
            while not stopping():
                while len(ahead) < AHEAD * workers and (one := next(source, None)) is not None:
                    ahead.append((one, pool.submit(load_image, folder / one.file, file_name=one.file)))
                if not ahead:
                    break
                yield ahead.popleft()
                bar.update()
    finally:
        pool.shutdown(cancel_futures=True)


def _encode(index: VectorIndex, models: Text2Seg, entry: IndexedImage, image: Image) -> None:
    """One image at a time: rounding depends on what shares a batch, and an image's vectors are to depend on its file
    alone, so that a label job that was stopped leaves out the same images as one that never was."""
    maps = models.settings.maps
    size = maps.input_size or models.input_size
    (tokens,) = models.clip.encode_images([image], size=size, architecture=maps.architecture)
    index.put(entry.file, entry.stamp, image.hw, image_vectors(tokens))


def _failure(entry: IndexedImage, error: Exception, path: str) -> Failure:
    if isinstance(error, ImageError):
        message = " ".join(str(error).replace(path, entry.file).split())
        return Failure(entry.file, "read", message if entry.file in message else f"{entry.file}: {message}")
    _log.info("%s", path, exc_info=error)
    return Failure(entry.file, "index", f"{entry.file}: {type(error).__name__}: {' '.join(str(error).split())}")
