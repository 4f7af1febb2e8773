"""What one image with true masks says about a pair of models: the numbers that are fitted, and the scores of methods.

Each image is opened and encoded once: the first pass keeps its session for the others while memory allows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from text2seg.calibration.fit import Bools, Floats, single_quality
from text2seg.calibration.regions import MOST_IMAGES, RegionRows, gather_rows, most_shown
from text2seg.coco import rle
from text2seg.coco.truth import TruthImage
from text2seg.config import MaskSettings, PointSettings, PresenceSettings, RegionFeatures, Settings
from text2seg.errors import Text2SegError
from text2seg.grids import iou, minmax, resize
from text2seg.model_card import PresenceCalibration
from text2seg.pipeline import Text2Seg
from text2seg.queries import Query
from text2seg.records import Failure, Segment
from text2seg.regions import GRID
from text2seg.runtime import free_memory
from text2seg.sam.candidates import separation
from text2seg.session import Session

BOUNDS = tuple((floor, prominence) for floor in (0.4, 0.5, 0.6) for prominence in (0.02, 0.05, 0.1))
"""Bounds of regions that are compared: `PointSettings.floor` and `prominence`."""
BOUNDS_IMAGES = 100
"""Bounds of regions are compared on this many images, because each takes a run of SAM's decoder."""
KEPT_SHARE = 0.5
"""Share of the free memory, of the machine and of the models' device, in which sessions are kept. One of base takes
about 7 MB."""
MILD_SLOPE = 0.2
"""Presence must not saturate while it is gathered."""
NEVER_ABSENT = PresenceSettings(0)
EVERY_REGION = Settings(presence=NEVER_ABSENT, masks=MaskSettings(overlap=1, quality=-9))
METHODS = {
    "reference": Settings(points=PointSettings(method="reference"), presence=NEVER_ABSENT),
    "uncalibrated": Settings(presence=NEVER_ABSENT),
    "calibrated": Settings(presence=NEVER_ABSENT),
}

Sampled = TypeVar("Sampled")
Mask = NDArray[np.bool_]
Things = dict[str, tuple[list[Mask], Mask]]
"""By category that an image shows: the masks of its things, and the pixels of crowds, which do not count."""


@dataclass(frozen=True, slots=True, eq=False)
class Gathered:
    """What the first pass gathers from one image.

    `names`, `logits` and `present` are of the categories that count in this image; a category with crowds alone does
    not count. `something` is what `regions.most_shown` returns.
    `rows` float [K, 3] have SAM's score, separation and true IoU of the candidates of each region, `gaps` how far the
    region's logit is below the best of its query. `session` is kept for the other passes if memory allows.
    """

    shown: TruthImage
    path: Path
    names: list[str]
    logits: Floats
    present: Bools
    rows: list[Floats]
    gaps: list[float]
    something: list[float]
    session: Session | None


@dataclass
class Images:
    """The images of a calibration, and those that failed so far.

    Attributes:
        models: the models, with a card without calibration.
        known: the categories that the models know, by number.
        found: the images of the ground truth that are in the folder, with their files.
        failures: by file name. An image that fails once takes no part from then on.
    """

    models: Text2Seg
    known: Mapping[int, str]
    found: Sequence[tuple[TruthImage, Path]]
    progress: bool = False
    failures: dict[str, Failure] = field(default_factory=dict)

    @property
    def with_things(self) -> list[str]:
        """File names of the images that show a thing that the models know."""
        return [shown.file_name for shown, _ in self.found if any(number in self.known for number in shown.present())]

    @property
    def first_failure(self) -> str:
        return next(iter(self.failures.values())).message

    # ---- first pass

    def gather(self) -> Iterator[Gathered]:
        """Yield what each image says; see `Gathered`."""
        mild = PresenceCalibration(
            distractors=self.models.clip.presence.distractors, slope=MILD_SLOPE, offset=0.0, threshold=0.5
        )
        gatherer = self.models.with_card(self.models.card.model_copy(update={"presence": mild}))
        devices = (torch.device("cpu"), self.models.device)
        room = {each.type: KEPT_SHARE * free_memory(each) for each in devices}
        for shown, path in tqdm(self.found, desc="gathering", unit="image", disable=not self.progress):
            with self._counted(shown, path):
                session = self.models.open(shown.load(path))
                gathered = gather_one(gatherer, session, shown, path, self.known)
                for device, size in session.nbytes_by_device().items():
                    room[device] -= size
                yield gathered if min(room.values()) > 0 else replace(gathered, session=None)

    # ---- second and third pass

    def compare_bounds(self, gathered: Sequence[Gathered], fitted: Sequence[Text2Seg]) -> Floats:
        """Return the quality of single masks with each of `BOUNDS`, float [images, bounds].

        It is NaN for images that are not used or fail.

        Args:
            fitted: for each image, the models with the card that its bounds are chosen for.
        """
        quality: Floats = np.full((len(gathered), len(BOUNDS)), np.nan)
        used = [at for at, each in enumerate(gathered) if each.present.any()]
        used = used[:: -(-len(used) // BOUNDS_IMAGES)]  # from all parts of the data
        for at in tqdm(used, desc="bounds of regions", unit="image", disable=not self.progress):
            each = gathered[at]
            with self._counted(each.shown, each.path):
                session, things = each.session or self._opened(each), things_of(each.shown, self.known)
                for column, (floor, prominence) in enumerate(BOUNDS):
                    settings = Settings(points=PointSettings(floor=floor, prominence=prominence), presence=NEVER_ABSENT)
                    quality[at, column] = judge(fitted[at], session, things, settings)[:, 1].mean()
        return quality

    def compare(self, gathered: Sequence[Gathered], calibrated: Sequence[Text2Seg]) -> dict[str, list[Floats]]:
        """Return for each method and image that does not fail float [T, 2]; see `judge`.

        Args:
            calibrated: for each image, the models with a card that was fitted to other images.
        """
        scores: dict[str, list[Floats]] = {method: [] for method in METHODS}
        images = tqdm(gathered, desc="comparing", unit="image", disable=not self.progress)
        for each, fitted in zip(images, calibrated, strict=True):
            if each.shown.file_name in self.failures:
                continue
            with self._counted(each.shown, each.path):
                session, things = each.session or self._opened(each), things_of(each.shown, self.known)
                judged = [
                    judge(fitted if method == "calibrated" else self.models, session, things, settings)
                    for method, settings in METHODS.items()
                ]
                for method, rows in zip(METHODS, judged, strict=True):
                    scores[method].append(rows)
        return scores

    # ---- last pass

    def gather_regions(
        self, gathered: Sequence[Gathered], models: Text2Seg, something: float
    ) -> list[dict[RegionFeatures, RegionRows]]:
        """Return what a part of the images says about region classification; see `regions.gather_rows`."""
        rows = []
        for each in tqdm(_sample(gathered), desc="region classification", unit="image", disable=not self.progress):
            if each.shown.file_name in self.failures:
                continue
            with self._counted(each.shown, each.path):
                things = {name: masks for name, (masks, _) in things_of(each.shown, self.known).items()}
                session = each.session or self._opened(each)
                rows.append(gather_rows(models, session, things, each.names, something))
        return rows

    def effort(self) -> tuple[int, float] | None:
        """Return in how many images the last pass cuts out everything, and about how many seconds it takes, measured
        on the first image that is not damaged; None if there is none."""
        for shown, path in self.found:
            with self._counted(shown, path):
                session, start = self.models.open(shown.load(path)), time.perf_counter()
                self.models.automatic_regions(session, GRID)
                count = len(_sample(self.found))
                return count, count * (time.perf_counter() - start)
        return None

    def _opened(self, each: Gathered) -> Session:
        return self.models.open(each.shown.load(each.path))

    @contextmanager
    def _counted(self, shown: TruthImage, path: Path) -> Iterator[None]:
        """Add an image that fails to `failures`, and go on after it."""
        try:
            yield
        except (Text2SegError, OSError, MemoryError, RuntimeError) as error:  # torch raises RuntimeError without memory
            self.failures.setdefault(shown.file_name, Failure.from_error(shown.file_name, "segment", error, path))


def _sample(images: Sequence[Sampled]) -> Sequence[Sampled]:
    """Return up to `MOST_IMAGES` images, from all parts of the data."""
    return images[:: -(-len(images) // MOST_IMAGES)]


def gather_one(models: Text2Seg, session: Session, shown: TruthImage, path: Path, known: Mapping[int, str]) -> Gathered:
    """Return what one image says. Presence of the models has `MILD_SLOPE`."""
    things = things_of(shown, known)
    (tokens,) = models.clip.encode_images([session.image], size=models.input_size)
    session.tokens[models.clip.input_hw(models.input_size), "surgery"] = tokens
    counted = [number for number, name in known.items() if name in things or not shown.crowds_of(number)]
    names = [known[number] for number in counted]
    logits = _logit(models.clip.patch_presence(tokens, names).max((1, 2))) if names else np.zeros(0)
    rows, gaps = _regions(models, session, things) if things else ([], [])
    present = np.array([name in things for name in names], np.bool_)
    something = most_shown(models, tokens, [mask for masks, _ in things.values() for mask in masks])
    return Gathered(shown, path, names, logits, present, rows, gaps, something, session)


def things_of(shown: TruthImage, known: Mapping[int, str]) -> Things:
    """Return the true masks of the known categories that an image shows."""
    things: Things = {}
    for number in shown.present():
        if number in known:
            crowds = np.any([np.zeros(shown.hw, np.bool_), *map(rle.decode, shown.crowds_of(number))], axis=0)
            things[known[number]] = (list(map(rle.decode, shown.true_of(number))), crowds)
    return things


def _logit(presence: NDArray[Any]) -> Floats:
    """Return the logits before calibration of presence that was computed with `MILD_SLOPE`."""
    p = presence.astype(np.float64).clip(1e-7, 1 - 1e-7)
    logits: Floats = np.log(p / (1 - p)) / MILD_SLOPE
    return logits


def _queries(things: Things) -> list[Query]:
    return [Query(name, ((name,),)) for name in things]


def _regions(models: Text2Seg, session: Session, things: Things) -> tuple[list[Floats], list[float]]:
    """Return rows and gaps of all regions; see `Gathered`."""
    (result,) = models.segment_sessions([session], _queries(things), EVERY_REGION)
    stretched = dict(zip(result.maps.queries, minmax(result.maps.scores), strict=True))
    rows: list[Floats] = []
    gaps: list[float] = []
    for name, (masks, _) in things.items():
        segments = result.of(name)
        logits = _logit(np.array([segment.presence for segment in segments]))
        for segment, logit in zip(segments, logits.tolist(), strict=True):
            rows.append(_candidates(models, session, segment, masks, stretched[name]))
            gaps.append(float(logits.max()) - logit)
    return rows, gaps


def _candidates(
    models: Text2Seg, session: Session, segment: Segment, true: Sequence[Mask], scores: NDArray[np.float32]
) -> Floats:
    """Return SAM's score, separation and IoU with the best true mask of each candidate, float [K, 3]."""
    assert session.embedding is not None  # it has segments
    low = models.sam.coarse_masks(session.embedding, segment.candidates)
    hw = (low.shape[1], low.shape[2])
    apart = separation(low, resize(scores[None], hw)[0])
    coarse = [cv2.resize(each.astype(np.float32), hw[::-1], interpolation=cv2.INTER_AREA) > 0.5 for each in true]
    ious = [max(iou(mask, each) for each in coarse) for mask in low]
    return np.column_stack([segment.candidates.scores, apart, ious]).astype(np.float64)


def judge(models: Text2Seg, session: Session, things: Things, settings: Settings) -> Floats:
    """Return for each thing the IoU of the union of its masks, and the quality of its single masks, float [T, 2]."""
    if not things:
        return np.zeros((0, 2))
    (result,) = models.segment_sessions([session], _queries(things), settings)
    rows = []
    for name, (true, crowds) in things.items():
        all_true = np.any(true, axis=0)
        outside = crowds & ~all_true
        masks = [segment.mask & ~outside for segment in result.of(name)]
        masks = [mask for mask, found in zip(masks, result.of(name), strict=True) if 2 * mask.sum() >= found.area]
        union = np.any([np.zeros_like(all_true), *masks], axis=0)
        rows.append((iou(union, all_true), single_quality(masks, true)))
    return np.array(rows, np.float64)
