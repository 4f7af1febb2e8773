"""What all visitors share: the models, loaded once, and the embeddings of the pictures last looked at."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from text2seg.app.settings import AppSettings
from text2seg.config import PresenceSettings, Settings
from text2seg.errors import Text2SegError
from text2seg.pipeline import Queries, Session, Text2Seg
from text2seg.queries import Query
from text2seg.records import Image, PointPrompts, Segment, Segmentation

log = logging.getLogger(__name__)

MEGABYTE = 1_000_000
WARM_UP_SIDE = 64
WARM_UP = Settings(presence=PresenceSettings(0))

Key = tuple[int, str]
"""Which models, counted from the first, and the hash of the pixels."""


@dataclass(slots=True, eq=False)
class Held:
    """A session that is kept for whoever looks at its picture, and the bytes that it took when it was last used."""

    session: Session
    lock: threading.Lock = field(default_factory=threading.Lock)
    size: int = 0


class ModelPool:
    """Models and a bounded cache of sessions. Safe to share between threads."""

    def __init__(
        self, models: Text2Seg, settings: AppSettings, load: Callable[[str], Text2Seg] = Text2Seg.load
    ) -> None:
        """`load` makes other models, by the name of a pair."""
        self.settings, self.load = settings, load
        self._models = models
        self._generation = 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, Held] = OrderedDict()
        self._turns = threading.BoundedSemaphore(settings.workers)

    @property
    def models(self) -> Text2Seg:
        """What new work is done with."""
        return self._models

    def use(self, models: Text2Seg) -> None:
        """Do all new work with other models. Sessions that are open stay with those that they were opened with."""
        with self._lock:
            self._models = models
            self._generation += 1
            self._kept.clear()

    def session(self, image: Image) -> Session:
        """A session on a picture. What it computes is kept while there is memory for it, found again by the picture's
        pixels and shared with everyone who looks at the same ones; name and number of the picture stay the visitor's.

        Its calls wait for their turn and may come from several threads. It holds no embedding itself, so it can be kept
        as long as one likes.
        """
        with self._lock:
            return SharedSession(self, self._models, image, (self._generation, digest(image.pixels)))

    def warm_up(self) -> None:
        """Let the models do once what the first visitor would wait for; nothing of it is kept but text features."""
        pixels = np.zeros((WARM_UP_SIDE, WARM_UP_SIDE, 3), np.uint8)
        models = self._models
        try:
            with self.turn():
                models.segment(Image(pixels), [models.things.names[0] if models.things else "thing"], WARM_UP)
        except Text2SegError as error:  # graphs for another size of input, say: visitors will be told the same
            log.error("nothing can be segmented with these models: %s", error)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until the models have a place free, and take it. Not to be entered twice by one thread."""
        with self._turns:
            yield

    @contextmanager
    def at_work(self, models: Text2Seg, image: Image, key: Key) -> Iterator[Session]:
        """The kept session of a picture, for one thread at a time."""
        with self._lock:
            held = self._kept.setdefault(key, Held(Session(models, replace(image, file_name="", image_id=1))))
            self._kept.move_to_end(key)
        with held.lock:  # first the picture, then a turn: whoever waits for another's picture keeps nobody waiting
            try:
                with self.turn():
                    yield held.session
            finally:
                self._settle(held)

    def _settle(self, held: Held) -> None:
        """Weigh what was used, and let go of what was not for longest until the rest fits."""
        held.size = held.session.nbytes
        with self._lock:
            while self._kept and self.bytes_kept > self.settings.cache_mb * MEGABYTE:
                _, dropped = self._kept.popitem(last=False)
                log.debug("let go of %d bytes of embeddings", dropped.size)

    @property
    def bytes_kept(self) -> int:
        """Bytes of the embeddings and pictures in the cache."""
        return sum(held.size for held in self._kept.values())


class SharedSession(Session):
    """One visitor's session on a picture, on top of the kept one that all share."""

    def __init__(self, model_pool: ModelPool, models: Text2Seg, image: Image, key: Key) -> None:
        super().__init__(models, image)
        self._model_pool, self._key = model_pool, key

    @contextmanager
    def _kept(self) -> Iterator[Session]:
        with self._model_pool.at_work(self._models, self.image, self._key) as session:
            yield session

    def segment(self, queries: Queries, settings: Settings | None = None) -> Segmentation:
        with self._kept() as session:
            return replace(session.segment(queries, settings), image=self.image)

    def segment_points(self, query: str | Query, points: PointPrompts, settings: Settings | None = None) -> Segment:
        with self._kept() as session:
            return session.segment_points(query, points, settings)

    def candidate_mask(self, segment: Segment, index: int) -> NDArray[np.bool_]:
        with self._kept() as session:
            return session.candidate_mask(segment, index)


def digest(pixels: NDArray[np.uint8]) -> str:
    """The same for the same picture, whatever it is called; shape and values count."""
    return hashlib.blake2b(f"{pixels.shape}".encode() + pixels.tobytes(), digest_size=16).hexdigest()
