"""`text2seg calibrate`: a model card from images with true masks, cross-validated over images.

Four passes over the images. The first gathers the numbers that are fitted, the second compares bounds of regions, the
third the methods, the last is about region classification. In the third, each image is segmented with a card that was
fitted to other images, bounds included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from text2seg._version import __version__
from text2seg.calibration import FEW_IMAGES, FEWEST_IMAGES
from text2seg.calibration.fit import SHOWS, Bools, Floats, far_below, fit_choice, fit_presence, interval, sigmoid
from text2seg.calibration.measure import BOUNDS, Gathered, Images, PartialResults
from text2seg.calibration.regions import fit_regions, least_something
from text2seg.coco.lookup import ImageFinder
from text2seg.coco.reader import check_dataset
from text2seg.coco.truth import category_names, sha256_of_truth, truth_images
from text2seg.errors import DatasetError
from text2seg.model_card import CalibratedOn, ModelCard, PresenceCalibration, Regions, Score, WeightsFile
from text2seg.pipeline import Text2Seg
from text2seg.records import Failure

FOLDS = 5
USUAL_BOUNDS = (0.5, 0.05)
CLEARLY_BETTER = 0.005
IOU, QUALITY = "mean IoU, asked for what is there", "quality of single masks"
LOST, FOUND = "present things lost", "absent things found"


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
    announce: Callable[[int, int, float], None] | None = None,
    partial_results: Path | None = None,
) -> Calibration:
    """Calibrate models on images with true masks.

    The card keeps what the models' card says besides the calibration, such as its vocabulary and notes. Its name is
    that of the weights.

    Args:
        truth: A COCO dataset. Categories that the models do not know and crowds are left out.
        images: The folder of its images.
        data: The name of the data for people.
        announce: Is called before the first pass with the number of images, in how many of them the last pass cuts
            out everything, and about how many seconds that takes.
        partial_results: A file that keeps what is found of each image, so that the same calibration, if it was
            stopped, goes on. The caller deletes it at the end.

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
        first = next((each.file_name for each in truth_images(checked)), "none, because it has no images")
        raise DatasetError(f"{images}: no image of the ground truth is there, such as {first}")
    plain = models.with_card(models.card.uncalibrated())
    kept = PartialResults(
        partial_results, [__version__, models.provenance(), models.input_size, sha256_of_truth(truth)]
    )
    passes = Images(plain, known, found, progress, partial=kept)
    _check_enough(passes, len(passes.with_things), images)
    if announce is not None and (effort := passes.effort()):
        announce(len(found), *effort)
    gathered = list(passes.gather())
    _check_enough(passes, sum(bool(each.present.any()) for each in gathered), images)
    if not any((~each.present).any() for each in gathered):
        raise DatasetError("every image shows every category, so presence cannot be calibrated; give more categories")
    fold_of = np.arange(len(gathered)) % folds
    np.random.default_rng(0).shuffle(fold_of)
    cards = [
        _fitted(passes.models, [g for g, at in zip(gathered, fold_of, strict=True) if at != fold])
        for fold in range(folds)
    ]
    # The bounds of each card are chosen on the fold before the one that it leaves out, so they never saw the latter.
    fitted = [models.with_card(card) for card in cards]
    quality = passes.compare_bounds(gathered, [fitted[(fold + 1) % folds] for fold in fold_of])
    cards = [_with_bounds(card, quality[fold_of == (fold - 1) % folds]) for fold, card in enumerate(cards)]
    calibrated = [models.with_card(card) for card in cards]
    scores = passes.compare(gathered, [calibrated[fold] for fold in fold_of])
    if not any(map(len, scores["calibrated"])):
        raise DatasetError(f"{images}: no image could be used to compare the methods: {passes.first_failure}")
    pairs = [_presence_pairs(cards[fold], each) for fold, each in zip(fold_of, gathered, strict=True)]
    card = _with_bounds(_fitted(passes.models, gathered), quality)
    something = least_something([each for of_image in gathered for each in of_image.something])
    regions = fit_regions(passes.gather_regions(gathered, models.with_card(card), something), something)
    card = card.model_copy(
        update={
            "region_classification": regions,
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
    failures = tuple(passes.failures.values())
    return Calibration(card, scores, together[:, 0], together[:, 1] > 0, failures, missing, unknown)


def is_worse(card: ModelCard) -> bool:
    """Return whether masks are clearly worse with a card than without calibration: their intervals do not overlap."""
    scores = {each.method: each for each in card.scores if each.measure == IOU}
    return scores["calibrated"].high < scores["uncalibrated"].low


def _check_enough(passes: Images, with_things: int, images: Path) -> None:
    """Raise `DatasetError` if too few images show a thing that the models know."""
    if with_things < FEWEST_IMAGES:
        why = f"; the first failure: {passes.first_failure}" if passes.failures else ""
        raise DatasetError(
            f"{images}: only {with_things} image{'s show' if with_things != 1 else ' shows'} a thing that the models "
            f"know, and {FEWEST_IMAGES} are needed to calibrate ({FEW_IMAGES} or more for narrow intervals){why}"
        )


def _fitted(models: Text2Seg, gathered: Sequence[Gathered]) -> ModelCard:
    """Return the card of models without calibration, with presence and choice fitted to these images."""
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
    return models.card.model_copy(
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


def _with_bounds(card: ModelCard, quality: Floats) -> ModelCard:
    """Return the card with the best bounds, or the usual ones unless others are clearly better.

    Args:
        quality: see `Images.compare_bounds`.
    """
    assert card.regions is not None  # it was fitted
    known = quality[np.isfinite(quality).all(1)]
    if not len(known):
        return card
    means = known.mean(0)
    best, usual = int(means.argmax()), BOUNDS.index(USUAL_BOUNDS)
    floor, prominence = BOUNDS[best if means[best] > means[usual] + CLEARLY_BETTER else usual]
    regions = card.regions.model_copy(update={"floor": floor, "prominence": prominence})
    return card.model_copy(update={"regions": regions})


def _presence_pairs(card: ModelCard, each: Gathered) -> Floats:
    """Return presence by a card, and whether the category is present, of all pairs of an image: float [C, 2]."""
    assert card.presence is not None  # it was fitted
    return np.column_stack([sigmoid(card.presence.slope * each.logits + card.presence.offset), each.present])


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
