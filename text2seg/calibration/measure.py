"""What one image with true masks says about a pair of models: the numbers that are fitted, and the scores of methods.

Each image is opened and encoded once: the first pass keeps its session for the others while memory allows.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
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
from text2seg.errors import OutputError, Text2SegError
from text2seg.grids import iou, minmax, resize
from text2seg.io.files import exists, read_file
from text2seg.io.writing import output_errors
from text2seg.model_card import PresenceCalibration
from text2seg.pipeline import Text2Seg
from text2seg.queries import Query
from text2seg.records import Failure, Segment
from text2seg.regions import GRID
from text2seg.runtime import free_memory
from text2seg.sam.automatic import seconds_of_regions
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

    @classmethod
    def of(cls, shown: TruthImage, path: Path, values: Mapping[str, Any], session: Session | None) -> Gathered:
        """Return what `gather_one` gathered from an image."""
        logits, present = np.array(values["logits"], np.float64), np.array(values["present"], np.bool_)
        rows: list[Floats] = [np.array(each, np.float64).reshape(-1, 3) for each in values["rows"]]
        return cls(shown, path, values["names"], logits, present, rows, values["gaps"], values["something"], session)


class PartialResults:
    """What the passes of a calibration found so far, in a file, so that one that was stopped goes on.

    A line of the file is the SHA-256 of the rest of the line, two spaces, and JSON: a dict of the SHA-256 of all that
    decides a value, and the value.
    """

    def __init__(self, path: Path | None, made_by: object) -> None:
        """Read what is kept. A line that is damaged, or that a stopped process did not finish, is ignored.

        Args:
            path: the file; None keeps nothing.
            made_by: what decides all values, such as the weights, as JSON.

        Raises:
            OutputError: the file cannot be read.
        """
        self._path, self._made_by, self._known = path, made_by, dict[str, Any]()
        if path is not None and exists(path, OutputError):
            for line in read_file(path, OutputError).split(b"\n"):
                digest, _, content = line.partition(b"  ")
                if digest == hashlib.sha256(content).hexdigest().encode():
                    self._known.update(json.loads(content))

    def __len__(self) -> int:
        return len(self._known)

    def of(self, made_from: object, compute: Callable[[], Any]) -> Any:
        """Return the value, JSON, that was made from `made_from`, or compute and keep it.

        Raises:
            OutputError: the file cannot be written.
        """
        if self._path is None:
            return compute()
        content = json.dumps([self._made_by, made_from], sort_keys=True, default=str)
        key = hashlib.sha256(content.encode()).hexdigest()
        if key not in self._known:
            self._known[key] = compute()
            content = json.dumps({key: self._known[key]})
            line = f"\n{hashlib.sha256(content.encode()).hexdigest()}  {content}"
            with output_errors(self._path), self._path.open("a", encoding="utf-8") as file:
                file.write(line)
        return self._known[key]


@dataclass
class Images:
    """The images of a calibration, and those that failed so far.

    Attributes:
        models: the models, with a card without calibration.
        known: the categories that the models know, by number.
        found: the images of the ground truth that are in the folder, with their files.
        failures: by file name. An image that fails once takes no part from then on.
        partial: what a calibration that was stopped has found.
    """

    models: Text2Seg
    known: Mapping[int, str]
    found: Sequence[tuple[TruthImage, Path]]
    progress: bool = False
    failures: dict[str, Failure] = field(default_factory=dict)
    partial: PartialResults = field(default_factory=lambda: PartialResults(None, None))

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
                opened: list[Session] = []  # stays empty if the values are known
                gather = partial(self._gather_one, gatherer, shown, path, opened)
                values = self.partial.of(["gather", *_file_of(shown, path)], gather)
                for device, size in opened[0].nbytes_by_device().items() if opened else ():
                    room[device] -= size
                session = opened[0] if opened and min(room.values()) > 0 else None
                yield Gathered.of(shown, path, values, session)

    def _gather_one(self, gatherer: Text2Seg, shown: TruthImage, path: Path, opened: list[Session]) -> dict[str, Any]:
        opened.append(self.models.open(shown.load(path)))
        return gather_one(gatherer, opened[0], shown, self.known)

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
                made_from = ["bounds", *_file_of(each.shown, each.path), fitted[at].card.sha256]
                quality[at] = self.partial.of(made_from, partial(self._bounds_of, each, fitted[at]))
        return quality

    def _bounds_of(self, each: Gathered, models: Text2Seg) -> list[float]:
        """Return the quality of single masks of an image with each of `BOUNDS`."""
        session, things = each.session or self._opened(each), things_of(each.shown, self.known)
        tried = [
            Settings(points=PointSettings(floor=floor, prominence=prominence), presence=NEVER_ABSENT)
            for floor, prominence in BOUNDS
        ]
        return [float(judge(models, session, things, settings)[:, 1].mean()) for settings in tried]

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
                made_from = ["compare", *_file_of(each.shown, each.path), fitted.card.sha256]
                judged = self.partial.of(made_from, partial(self._compared, each, fitted))
                for method, rows in zip(METHODS, judged, strict=True):
                    scores[method].append(np.array(rows, np.float64).reshape(-1, 2))
        return scores

    def _compared(self, each: Gathered, fitted: Text2Seg) -> list[Any]:
        """Return what `judge` does of an image with each of `METHODS`, as lists."""
        session, things = each.session or self._opened(each), things_of(each.shown, self.known)
        return [
            judge(fitted if method == "calibrated" else self.models, session, things, settings).tolist()
            for method, settings in METHODS.items()
        ]

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
                made_from = ["regions", *_file_of(each.shown, each.path), models.card.sha256, something]
                found = self.partial.of(made_from, partial(self._regions_of, each, models, something))
                rows.append({kind: RegionRows.of(values) for kind, values in found.items()})
        return rows

    def _regions_of(self, each: Gathered, models: Text2Seg, something: float) -> dict[RegionFeatures, Any]:
        things = {name: masks for name, (masks, _) in things_of(each.shown, self.known).items()}
        found = gather_rows(models, each.session or self._opened(each), things, each.names, something)
        return {kind: rows.values() for kind, rows in found.items()}

    def effort(self) -> tuple[int, float] | None:
        """Return in how many images the last pass cuts out everything, and about how many seconds it takes, measured
        on the first image that is not damaged; None if there is none."""
        for shown, path in self.found:
            with self._counted(shown, path):
                start = time.perf_counter()
                session = self.models.open(shown.load(path))
                self.models.automatic_regions(session, replace(GRID, points_per_side=1))  # embeds the image
                encoding = time.perf_counter() - start
                count = len(_sample(self.found))
                regions = seconds_of_regions(partial(self.models.automatic_regions, session), GRID)
                return count, count * (encoding + regions)
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


def _file_of(shown: TruthImage, path: Path) -> list[Any]:
    """Return what tells an image, and whether it changed."""
    found = path.stat()
    return [shown.file_name, found.st_size, found.st_mtime_ns]


def gather_one(models: Text2Seg, session: Session, shown: TruthImage, known: Mapping[int, str]) -> dict[str, Any]:
    """Return what one image says, as JSON with the names of `Gathered`. Presence of the models has `MILD_SLOPE`."""
    things = things_of(shown, known)
    (tokens,) = models.clip.encode_images([session.image], size=models.input_size)
    session.tokens[models.clip.input_hw(models.input_size), "surgery"] = tokens
    counted = [number for number, name in known.items() if name in things or not shown.crowds_of(number)]
    names = [known[number] for number in counted]
    logits = _logit(models.clip.patch_presence(tokens, names).max((1, 2))) if names else np.zeros(0)
    rows, gaps = _regions(models, session, things) if things else ([], [])
    return {
        "names": names,
        "logits": logits.tolist(),
        "present": [name in things for name in names],
        "rows": [row.tolist() for row in rows],
        "gaps": gaps,
        "something": most_shown(models, tokens, [mask for masks, _ in things.values() for mask in masks]),
    }


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
