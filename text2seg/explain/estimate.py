"""Estimate of the time that a run of a tool takes, made before it starts: its work times the speed of this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from text2seg.records import Image

if TYPE_CHECKING:
    from text2seg.explain.tool import Tool
    from text2seg.pipeline import Text2Seg

SLOW = 10.0
"""Runs that take longer, in seconds, are announced before they start."""
GRADIENT = 4.0
"""Work of a saliency map that needs a gradient, in encoded images: forward with all attention, and backward."""


BATCH, TIMES = 4, 3
"""Number of images that are encoded at once to measure the speed; number of measurements, of which the best counts."""


@dataclass(frozen=True, slots=True)
class Work:
    """Work of one run: images that CLIP encodes, images that SAM encodes, steps of gradient ascent on texts, and images
    that SAM encodes and in which it cuts out everything.

    `text_steps` counts steps on 16 texts of 4 free tokens, the defaults of `opinion`.
    """

    clip_images: float = 0.0
    sam_images: float = 0.0
    text_steps: float = 0.0
    regions: float = 0.0


class Speed:
    """Speed of a pair of models on this machine. Each value is measured when it is first needed. Thread-safe."""

    def __init__(self, models: Text2Seg) -> None:
        self.models = models
        self._seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    def seconds(self, work: Work) -> float:
        """Return the time that the work takes, in seconds."""
        measures: dict[str, Callable[[], float]] = {
            "clip_images": self._clip_image,
            "sam_images": self._sam_image,
            "text_steps": self._text_step,
            "regions": self._regions,
        }
        total = 0.0
        for name, measure in measures.items():
            if amount := getattr(work, name):
                with self._lock:
                    if name not in self._seconds:
                        self._seconds[name] = measure()
                total += amount * self._seconds[name]
        return total

    def _clip_image(self) -> float:
        images = [self._blank()] * BATCH
        return _timed(lambda: self.models.clip.encode_images(images, architecture="raw")) / BATCH

    def _sam_image(self) -> float:
        image = self._blank()
        return _timed(lambda: self.models.sam.embed([image]))

    def _text_step(self) -> float:
        from text2seg.explain.opinion import seconds_of_a_step

        return seconds_of_a_step(self.models.clip)

    def _regions(self) -> float:
        from text2seg.regions import GRID
        from text2seg.sam.automatic import seconds_of_regions

        session = self.models.open(self._blank())
        return self._sam_image() + seconds_of_regions(partial(self.models.automatic_regions, session), GRID)

    def _blank(self) -> Image:
        side = self.models.clip.default_size
        return Image(np.full((side, side, 3), 127, np.uint8))


def _timed(run: Callable[[], object]) -> float:
    """Return the shortest time of a few calls, in seconds. The first one may be slower, and others may use the
    machine."""
    times = []
    for number in range(TIMES):
        if number and not threading.main_thread().is_alive():  # the process ends
            break
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def estimate(tool: Tool, speed: Speed, images: int, settings: Any) -> float | None:
    """Return the seconds that a run takes, or None for a tool that is always quick.

    Args:
        images: number of images.

    Raises:
        SettingsError, DatasetError: the run would fail in the same way.
    """
    return None if tool.work is None else speed.seconds(tool.work(speed.models, images, settings))


def words_for(seconds: float) -> str:
    """Return a duration in words, rounded as estimates are.

    >>> words_for(8.2), words_for(52), words_for(200), words_for(9000)
    ('8 s', '50 s', '3 min', '2.5 h')
    """
    if seconds < 10:
        return f"{max(1, round(seconds))} s"
    if seconds < 90:
        return f"{round(seconds / 5) * 5} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{seconds / 3600:.1f} h"
