"""`text2seg calibrate`: a model card from images with true masks, cross-validated over images.

Four passes over the images: the first gathers the numbers that are fitted, the second tries bounds of regions, the
third compares the methods, the last is about region classification. In the second and third, each image is segmented
with a card that was fitted to other images.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from text2seg._version import __version__
from text2seg.calibration.fit import (
    SHOWS,
    Bools,
    Floats,
    far_below,
    fit_choice,
    fit_presence,
    interval,
    sigmoid,
    single_quality,
)
from text2seg.calibration.regions import MOST_IMAGES, fit_regions, gather_rows, least_something, most_shown
from text2seg.coco import rle
from text2seg.coco.lookup import ImageFinder
from text2seg.coco.reader import check_dataset
from text2seg.coco.truth import TruthImage, category_names, sha256_of_truth, truth_images
from text2seg.config import MaskSettings, PointSettings, PresenceSettings, Settings
from text2seg.errors import DatasetError, Text2SegError
from text2seg.grids import iou, minmax, resize
from text2seg.model_card import (
    CalibratedOn,
    ModelCard,
    PresenceCalibration,
    RegionClassification,
    Regions,
    Score,
    WeightsFile,
)
from text2seg.pipeline import Session, Text2Seg
from text2seg.queries import Query
from text2seg.records import Failure, Segment
from text2seg.sam.candidates import separation

log = logging.getLogger(__name__)

FOLDS = 5
FEWEST_IMAGES, FEW_IMAGES = 10, 100
"""With fewer images than the first nothing is fitted; with fewer than the second, the intervals are said to be wide."""
BOUNDS = tuple((floor, prominence) for floor in (0.4, 0.5, 0.6) for prominence in (0.02, 0.05, 0.1))
BOUNDS_IMAGES = 100
"""Bounds of regions are compared on this many images, because each takes a run of SAM's decoder."""
USUAL_BOUNDS = (0.5, 0.05)
CLEARLY_BETTER = 0.005
MILD_SLOPE = 0.2
"""Presence must not saturate while it is gathered."""
NEVER_ABSENT = PresenceSettings(0)
EVERY_REGION = Settings(presence=NEVER_ABSENT, masks=MaskSettings(overlap=1, quality=-9))
METHODS = {
    "reference": Settings(points=PointSettings(method="reference"), presence=NEVER_ABSENT),
    "uncalibrated": Settings(presence=NEVER_ABSENT),
    "calibrated": Settings(presence=NEVER_ABSENT),
}
IOU, QUALITY = "mean IoU, asked for what is there", "quality of single masks"
LOST, FOUND = "present things lost", "absent things found"

Mask = NDArray[np.bool_]
Things = dict[str, tuple[list[Mask], Mask]]
"""By category that an image shows: the masks of its things, and the pixels of crowds, which do not count."""


@dataclass(frozen=True, slots=True, eq=False)
class Gathered:
    """What the first pass gathers from one image.

    `logits` and `present` are of the categories that count in this image; a category with crowds alone does not count.
    `names` are those categories; `something` is what `regions.most_shown` returns. `rows` float [K, 3] have SAM's
    score, separation and true IoU of the candidates of each region, `gaps` how far its logit is below the best of its
    query.
    """

    shown: TruthImage
    path: Path
    names: list[str]
    logits: Floats
    present: Bools
    rows: list[Floats]
    gaps: list[float]
    something: list[float]


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Result of a calibration: the card, and what the page shows.

    `scores` has for each method and image float [T, 2]: for each category shown the IoU of the union of its masks, and
    the quality of its single masks. `presence` and `present` are of all pairs, with presence fitted to other images.
    """

    card: ModelCard
    scores: Mapping[str, Sequence[Floats]]
    presence: Floats
    present: Bools
    failures: tuple[Failure, ...]
    missing: int
    unknown: tuple[str, ...]

    @property
    def images(self) -> int:
        """Number of images that were used."""
        return len(next(iter(self.scores.values())))

    @property
    def few(self) -> bool:
        return self.images < FEW_IMAGES


def calibrate(
    models: Text2Seg,
    truth: Mapping[str, Any],
    images: Path,
    *,
    data: str,
    folds: int = FOLDS,
    progress: bool = False,
) -> Calibration:
    """Calibrate models on images with true masks.

    The card keeps what the models' card says besides the calibration, such as its vocabulary and notes. Its name is
    that of the weights.

    Args:
        truth: A COCO dataset. Categories that the models do not know and crowds are left out.
        images: The folder of its images.
        data: The name of the data for people.

    Raises:
        DatasetError: The ground truth is damaged, or has no category that the models know, no image that is in the
            folder, or too few of them.
    """
    checked = check_dataset(truth, "the ground truth")
    names = category_names(checked)
    vocabulary = models.closed_vocabulary
    known = {number: name for number, name in names.items() if vocabulary is None or vocabulary.knows(name)}
    if not known:
        theirs = ", ".join(sorted(names.values())[:10]) or "none"
        raise DatasetError(f"the ground truth has no category that these models know; its categories are {theirs}")
    finder, found, missing = ImageFinder(images=images), [], 0
    for shown in truth_images(checked):
        path = finder.find_or_none(shown.file_name)
        missing += path is None
        if path is not None:
            found.append((shown, path))
    if not found:
        raise DatasetError(f"{images}: none of the {missing} images of the ground truth is there")
    base = models.card.uncalibrated()
    gatherer = models.with_card(base.model_copy(update={"presence": _mild(models)}))
    failures: dict[str, Failure] = {}  # by file name
    gathered = list(_gather(gatherer, found, known, failures, progress=progress))
    with_things = sum(bool(each.present.any()) for each in gathered)
    if with_things < FEWEST_IMAGES:
        why = f"; the first failure: {_first(failures)}" if failures else ""
        raise DatasetError(
            f"{images}: only {with_things} image{'s show' if with_things != 1 else ' shows'} a thing that the models "
            f"know, and {FEWEST_IMAGES} are needed to calibrate ({FEW_IMAGES} or more for narrow intervals){why}"
        )
    if not any((~each.present).any() for each in gathered):
        raise DatasetError("every image shows every category, so presence cannot be calibrated; give more categories")
    fold_of = np.arange(len(gathered)) % folds
    np.random.default_rng(0).shuffle(fold_of)
    cards = [
        _fitted(models, base, [g for g, at in zip(gathered, fold_of, strict=True) if at != f]) for f in range(folds)
    ]
    quality = _bounds(models, cards, fold_of, gathered, known, failures, progress=progress)
    cards = [_with_bounds(card, quality[fold_of != fold]) for fold, card in enumerate(cards)]
    scores = _compare(models, base, cards, fold_of, gathered, known, failures, progress=progress)
    if not any(map(len, scores["calibrated"])):
        raise DatasetError(f"{images}: no image could be used to compare the methods: {_first(failures)}")
    pairs = [_presence_pairs(cards[fold], each) for fold, each in zip(fold_of, gathered, strict=True)]
    card = _with_bounds(_fitted(models, base, gathered), quality)
    card = card.model_copy(
        update={
            "region_classification": _fitted_regions(
                models.with_card(card), gathered, known, failures, progress=progress
            ),
            "scores": tuple(_scores(scores, pairs)),
            "calibrated_on": CalibratedOn(
                data=data,
                sha256=sha256_of_truth(truth),
                images=len(gathered),
                pairs=int(sum(each.present.sum() for each in gathered)),
                date=date.today().isoformat(),
                version=__version__,
            ),
        }
    )
    together = np.concatenate(pairs)
    unknown = tuple(name for number, name in names.items() if number not in known)
    return Calibration(card, scores, together[:, 0], together[:, 1] > 0, tuple(failures.values()), missing, unknown)


def _mild(models: Text2Seg) -> PresenceCalibration:
    return PresenceCalibration(
        distractors=models.clip.presence.distractors, slope=MILD_SLOPE, offset=0.0, threshold=0.5
    )


@contextmanager
def _counted(failures: dict[str, Failure], shown: TruthImage, path: Path) -> Iterator[None]:
    """Add an image that fails to `failures`, once, and go on after it."""
    try:
        yield
    except (Text2SegError, MemoryError, RuntimeError) as error:  # torch raises RuntimeError without memory
        failures.setdefault(shown.file_name, Failure.from_error(shown.file_name, "segment", error, path))


def _first(failures: Mapping[str, Failure]) -> str:
    return next(iter(failures.values())).message


# ---- first pass


def _gather(
    models: Text2Seg,
    found: Sequence[tuple[TruthImage, Path]],
    known: Mapping[int, str],
    failures: dict[str, Failure],
    *,
    progress: bool,
) -> Iterator[Gathered]:
    for shown, path in tqdm(found, desc="gathering", unit="image", disable=not progress):
        with _counted(failures, shown, path):
            yield _gather_one(models, shown, path, known)


def _gather_one(models: Text2Seg, shown: TruthImage, path: Path, known: Mapping[int, str]) -> Gathered:
    session = models.open(shown.load(path))
    (tokens,) = models.clip.encode_images([session.image], size=models.input_size)
    session.tokens[models.clip.input_hw(models.input_size), "surgery"] = tokens
    things = _things(shown, known)
    counted = [number for number, name in known.items() if name in things or not shown.crowds_of(number)]
    names = [known[number] for number in counted]
    logits = _logit(models.clip.patch_presence(tokens, names).max((1, 2))) if names else np.zeros(0)
    rows, gaps = _regions(models, session, things) if things else ([], [])
    present = np.array([name in things for name in names], np.bool_)
    something = most_shown(models, tokens, [mask for masks, _ in things.values() for mask in masks])
    return Gathered(shown, path, names, logits, present, rows, gaps, something)


def _things(shown: TruthImage, known: Mapping[int, str]) -> Things:
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


# ---- fit and second pass


def _fitted(models: Text2Seg, base: ModelCard, gathered: Sequence[Gathered]) -> ModelCard:
    """Return the card with everything fitted to these images."""
    logits = np.concatenate([each.logits for each in gathered])
    present = np.concatenate([each.present for each in gathered])
    rows = [row for each in gathered for row in each.rows]
    if not present.any() or present.all() or not rows:
        raise DatasetError(
            "too few images show a thing that the models know to leave a part of them out for validation; give more"
        )
    slope, offset = fit_presence(logits, present)
    candidates, gaps = np.stack(rows), np.array([gap for each in gathered for gap in each.gaps])
    ratio = far_below(gaps[candidates[:, :, 2].max(1) >= SHOWS], slope)
    candidates = candidates[slope * gaps <= np.log(ratio)]  # the choice is only asked about regions that are kept
    names: Any = models.provenance()
    return base.model_copy(
        update={
            "name": " with ".join(dict.fromkeys(names[kind]["name"] for kind in ("clip", "sam"))),
            "clip": WeightsFile.model_validate(names["clip"]),
            "sam": WeightsFile.model_validate(names["sam"]),
            "presence": PresenceCalibration(
                distractors=models.clip.presence.distractors,
                slope=round(slope, 4),
                offset=round(offset, 4),
                threshold=0.5,
            ),
            "choice": fit_choice(candidates),
            "regions": Regions(floor=USUAL_BOUNDS[0], prominence=USUAL_BOUNDS[1], far_below=ratio),
        }
    )


def _bounds(
    models: Text2Seg,
    cards: Sequence[ModelCard],
    fold_of: NDArray[np.int64],
    gathered: Sequence[Gathered],
    known: Mapping[int, str],
    failures: dict[str, Failure],
    *,
    progress: bool,
) -> Floats:
    """Return the quality of single masks with each of `BOUNDS`, float [images, bounds].

    It is NaN for images that are not used or fail.
    """
    fitted = [models.with_card(card) for card in cards]
    quality = np.full((len(gathered), len(BOUNDS)), np.nan)
    used = [at for at, each in enumerate(gathered) if each.present.any()]
    used = used[:: -(-len(used) // BOUNDS_IMAGES)]  # from all parts of the data
    for at in tqdm(used, desc="bounds of regions", unit="image", disable=not progress):
        each, other = gathered[at], fitted[fold_of[at]]
        with _counted(failures, each.shown, each.path):
            session, things = other.open(each.shown.load(each.path)), _things(each.shown, known)
            for column, (floor, prominence) in enumerate(BOUNDS):
                settings = Settings(points=PointSettings(floor=floor, prominence=prominence), presence=NEVER_ABSENT)
                quality[at, column] = _judge(other, session, things, settings)[:, 1].mean()
    return quality


def _with_bounds(card: ModelCard, quality: Floats) -> ModelCard:
    """Return the card with the best bounds, or the usual ones unless others are clearly better."""
    assert card.regions is not None  # it was fitted
    known = quality[np.isfinite(quality).all(1)]
    if not len(known):
        return card
    means = known.mean(0)
    best, usual = int(means.argmax()), BOUNDS.index(USUAL_BOUNDS)
    floor, prominence = BOUNDS[best if means[best] > means[usual] + CLEARLY_BETTER else usual]
    regions = card.regions.model_copy(update={"floor": floor, "prominence": prominence})
    return card.model_copy(update={"regions": regions})


def _fitted_regions(
    models: Text2Seg,
    gathered: Sequence[Gathered],
    known: Mapping[int, str],
    failures: dict[str, Failure],
    *,
    progress: bool,
) -> RegionClassification | None:
    """Calibrate region classification on a part of the images."""
    something = least_something([each for of_image in gathered for each in of_image.something])
    rows, used = [], gathered[:: -(-len(gathered) // MOST_IMAGES)]
    for each in tqdm(used, desc="regions", unit="image", disable=not progress):
        with _counted(failures, each.shown, each.path):
            things = {name: masks for name, (masks, _) in _things(each.shown, known).items()}
            rows.append(gather_rows(models, models.open(each.shown.load(each.path)), things, each.names, something))
    return fit_regions(rows, something)


def _presence_pairs(card: ModelCard, each: Gathered) -> Floats:
    """Return presence by a card, and whether the category is present, of all pairs of an image: float [C, 2]."""
    assert card.presence is not None  # it was fitted
    return np.column_stack([sigmoid(card.presence.slope * each.logits + card.presence.offset), each.present])


def _compare(
    models: Text2Seg,
    base: ModelCard,
    cards: Sequence[ModelCard],
    fold_of: NDArray[np.int64],
    gathered: Sequence[Gathered],
    known: Mapping[int, str],
    failures: dict[str, Failure],
    *,
    progress: bool,
) -> dict[str, list[Floats]]:
    """Return the scores of each method on the images that do not fail; see `Calibration`."""
    bare, fitted = models.with_card(base), [models.with_card(card) for card in cards]
    scores: dict[str, list[Floats]] = {method: [] for method in METHODS}
    for each, fold in zip(tqdm(gathered, desc="comparing", unit="image", disable=not progress), fold_of, strict=True):
        with _counted(failures, each.shown, each.path):
            session, things = bare.open(each.shown.load(each.path)), _things(each.shown, known)
            judged = {
                method: _judge(fitted[fold] if method == "calibrated" else bare, session, things, settings)
                for method, settings in METHODS.items()
            }
            for method, rows in judged.items():
                scores[method].append(rows)
    return scores


def _judge(models: Text2Seg, session: Session, things: Things, settings: Settings) -> Floats:
    """Return for each thing the IoU of the union of its masks, and the quality of its single masks, float [T, 2]."""
    (result,) = models.segment_sessions([session], _queries(things), settings)
    rows = []
    for name, (true, crowds) in things.items():
        all_true = np.any(true, axis=0)
        outside = crowds & ~all_true
        masks = [segment.mask & ~outside for segment in result.of(name)]
        masks = [mask for mask, found in zip(masks, result.of(name), strict=True) if 2 * mask.sum() >= found.area]
        union = np.any([np.zeros_like(all_true), *masks], axis=0)
        rows.append((iou(union, all_true), single_quality(masks, true)))
    return np.array(rows, np.float64).reshape(-1, 2)


def _scores(scores: Mapping[str, Sequence[Floats]], pairs: Sequence[Floats]) -> Iterator[Score]:
    def mean(column: int, rows: Floats) -> float:
        return float(rows[:, column].mean()) if len(rows) else float("nan")

    def lost(rows: Floats) -> float:
        shown = rows[rows[:, 1] == 1]
        return float((shown[:, 0] < 0.5).mean()) if len(shown) else float("nan")

    def found(rows: Floats) -> float:
        absent = rows[rows[:, 1] == 0]
        return float((absent[:, 0] >= 0.5).mean()) if len(absent) else float("nan")

    measured: list[tuple[str, str, Sequence[Floats], Callable[[Floats], float]]] = []
    for method, rows in scores.items():
        measured += [(method, IOU, rows, partial(mean, 0)), (method, QUALITY, rows, partial(mean, 1))]
    measured += [("calibrated", LOST, pairs, lost), ("calibrated", FOUND, pairs, found)]
    for method, measure, rows, value in measured:
        low, high = interval(rows, value)
        point = value(np.concatenate(rows))
        yield Score.model_validate(
            {"method": method, "measure": measure}
            | {"value": round(point, 4), "low": round(low, 4), "high": round(high, 4)}
        )
