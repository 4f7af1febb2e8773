"""Models and embeddings of recent images, shared by all visitors."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from text2seg.app.settings import AppSettings
from text2seg.config import AutomaticSettings, PresenceSettings, Settings
from text2seg.errors import Text2SegError
from text2seg.pipeline import Text2Seg
from text2seg.queries import Query
from text2seg.records import Image, PointPrompts, Segment, Segmentation
from text2seg.runtime import before_call
from text2seg.sam.automatic import Region
from text2seg.session import Pipeline, Queries, Session

log = logging.getLogger(__name__)

MEGABYTE = 1_000_000
ASK_SECONDS = 0.2
"""How often a thread that waits for the models asks whether it was stopped, in seconds."""
WARM_UP_SIDE = 64
WARM_UP = Settings(presence=PresenceSettings(0))

Key = tuple[int, str]
"""Number of the models, which grows with each switch, and hash of the pixels."""


@dataclass(slots=True, eq=False)
class CachedSession:
    """A cached session, and its size in bytes after its last use."""

    session: Session
    lock: threading.Lock = field(default_factory=threading.Lock)
    size: int = 0


class ModelPool:
    """Models and a bounded cache of sessions. Safe to share between threads."""

    def __init__(
        self, models: Text2Seg, settings: AppSettings, load: Callable[[str], Text2Seg] = Text2Seg.load
    ) -> None:
        """`load` loads a pair of models by its name."""
        self.settings, self.load = settings, load
        self._models, self._since = models, datetime.now()
        self._generation = 0
        self._lock = threading.Lock()
        self._cache: OrderedDict[Key, CachedSession] = OrderedDict()
        self._turns = threading.BoundedSemaphore(settings.workers)

    @property
    def models(self) -> Text2Seg:
        """The models for new work."""
        return self._models

    @property
    def since(self) -> datetime:
        """When the models were chosen, in the time of this machine."""
        return self._since

    def use(self, models: Text2Seg) -> None:
        """Switch the models for all new work. Open sessions keep their models."""
        with self._lock:
            self._models, self._since = models, datetime.now()
            self._generation += 1
            self._cache.clear()

    def session(self, image: Image) -> SharedSession:
        """Return a session on an image.

        Its embeddings are cached by the pixels of the image and shared by all visitors with the same image. Its calls
        wait for their turn and are thread-safe. It holds no embeddings itself, so keeping it costs little memory.
        """
        with self._lock:
            return SharedSession(self, self._models, image, (self._generation, digest(image.pixels)))

    def warm_up(self) -> None:
        """Run the models once, so that the first visitor need not wait for it."""
        pixels = np.zeros((WARM_UP_SIDE, WARM_UP_SIDE, 3), np.uint8)
        models = self._models
        try:
            with self.turn():
                models.segment(
                    Image(pixels), [models.closed_vocabulary.names[0] if models.closed_vocabulary else "thing"], WARM_UP
                )
        except Text2SegError as error:  # for instance graphs with another input size; visitors get the same error
            log.error("these models cannot segment: %s", error)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn with the models. A thread must not enter it twice. A watch can end the wait; see
        `runtime.watched`."""
        with _acquired(self._turns):
            yield

    @contextmanager
    def at_work(self, models: Pipeline, image: Image, key: Key) -> Iterator[Session]:
        """Yield the cached session of an image, for one thread at a time."""
        with self._lock:
            held = self._cache.setdefault(key, CachedSession(Session(models, replace(image, file_name="", image_id=1))))
            self._cache.move_to_end(key)
        with _acquired(
            held.lock
        ):  # the lock of the image comes before the turn, so that threads waiting for it hold no turn
            try:
                with self.turn():
                    yield held.session
            finally:
                self._evict(held)

    def _evict(self, held: CachedSession) -> None:
        """Update the size of a session, and drop the least recently used ones until the rest fits."""
        held.size = held.session.nbytes
        with self._lock:
            while self._cache and self.bytes_kept > self.settings.cache_mb * MEGABYTE:
                _, dropped = self._cache.popitem(last=False)
                log.debug("dropped %d bytes of embeddings", dropped.size)

    @property
    def bytes_kept(self) -> int:
        """Size of the embeddings and images in the cache, in bytes."""
        return sum(held.size for held in self._cache.values())


class SharedSession(Session):
    """One visitor's session on an image. It uses the cached session that all visitors share. `models` are those of the
    app when it was made."""

    def __init__(self, model_pool: ModelPool, models: Text2Seg, image: Image, key: Key) -> None:
        super().__init__(models, image)
        self.models = models
        self._model_pool, self._key = model_pool, key

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with self._model_pool.at_work(self._models, self.image, self._key) as session:
            yield session

    def segment(self, queries: Queries, settings: Settings | None = None) -> Segmentation:
        with self._session() as session:
            return replace(session.segment(queries, settings), image=self.image)

    def segment_points(self, query: str | Query, points: PointPrompts, settings: Settings | None = None) -> Segment:
        with self._session() as session:
            return session.segment_points(query, points, settings)

    def segment_prompt(self, points: PointPrompts) -> Segment:
        """See `Text2Seg.segment_prompt`."""
        with self._session() as session:
            return self.models.segment_prompt(session, points)

    def automatic_regions(self, settings: AutomaticSettings) -> list[Region]:
        """See `Text2Seg.automatic_regions`."""
        with self._session() as session:
            return self.models.automatic_regions(session, settings)

    def candidate_mask(self, segment: Segment, index: int) -> NDArray[np.bool_]:
        with self._session() as session:
            return session.candidate_mask(segment, index)


@contextmanager
def _acquired(lock: threading.Lock | threading.Semaphore) -> Iterator[None]:
    """Hold a lock. The watch of this thread is asked again and again while it waits."""
    while not lock.acquire(timeout=ASK_SECONDS):
        before_call()
    try:
        yield
    finally:
        lock.release()


def digest(pixels: NDArray[np.uint8]) -> str:
    """Return a hash of the shape and values of pixels."""
    return hashlib.blake2b(f"{pixels.shape}".encode() + pixels.tobytes(), digest_size=16).hexdigest()
