"""Find the cause of each missed (image, category present) pair, as far as the predictions record it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from text2seg.coco import rle
from text2seg.coco.rle import Rle, checked_rle, is_number
from text2seg.coco.truth import Region
from text2seg.errors import DatasetError
from text2seg.evaluation.alignment import Aligned
from text2seg.evaluation.protocols import Pair, pairs_of

RIGHT = "right"
CAUSES = {
    "not found": "no annotation of the category in the image",
    "points off": "fewer than half of the positive points are on the object",
    "wrong candidate": "another of SAM's candidates would have been right",
    "mask wrong": "the points are right, the mask is not",
    "no provenance": "the predictions do not say how they came about",
}
ENOUGH = 0.5  # lowest IoU that counts as right


@dataclass(frozen=True, slots=True)
class Missed:
    """A pair whose masks have an IoU below `ENOUGH`.

    `points_on` is the share of positive points on the object, `best_iou` the IoU of the best of the recorded
    candidates; None if unknown.
    """

    image_id: int
    file_name: str
    category: str
    iou: float
    cause: str
    points_on: float | None = None
    best_iou: float | None = None


@dataclass(frozen=True, slots=True)
class Misses:
    """Causes of the missed pairs of the category-given protocol.

    `counts` and `by_category` count pairs by cause, with `RIGHT` first. `false` counts (image, category) pairs that
    were predicted but are not present. `missed` lists the worst first. If the predictions have no candidates
    (`candidates_kept`), a wrong choice among candidates counts as a wrong mask.
    """

    counts: dict[str, int]
    by_category: dict[str, dict[str, int]]
    false: int
    false_by_category: dict[str, int]
    missed: tuple[Missed, ...]
    candidates_kept: bool


def find_misses(aligned: Aligned) -> Misses:
    """Attribute every missed pair to the first cause in `CAUSES` that applies.

    Without recorded points the cause is `not found` or `no provenance`.
    """
    counts: dict[str, Counter[str]] = {name: Counter() for name in aligned.categories.values()}
    missed = []
    for pair in pairs_of(aligned):
        name, iou = aligned.categories[pair.category], pair.iou
        if iou >= ENOUGH:
            counts[name][RIGHT] += 1
            continue
        each = _missed(pair, name, iou)
        counts[name][each.cause] += 1
        missed.append(each)
    false = Counter(
        aligned.categories[category]
        for scene in aligned.scenes
        for category in {each.category for each in scene.predicted}
        if scene.predicted_of(category) and not scene.true_of(category) and not scene.crowds_of(category)
    )
    every = (RIGHT, *CAUSES)
    return Misses(
        {cause: sum(count[cause] for count in counts.values()) for cause in every},
        {name: {cause: count[cause] for cause in every} for name, count in sorted(counts.items()) if count},
        sum(false.values()),
        dict(sorted(false.items())),
        tuple(sorted(missed, key=lambda each: (each.iou, each.image_id, each.category))),
        any("candidates" in each.attributes for scene in aligned.scenes for each in scene.predicted),
    )


def _missed(pair: Pair, name: str, iou: float) -> Missed:
    where = (pair.scene.image_id, pair.scene.file_name, name, iou)
    if not pair.predicted:
        return Missed(*where, "not found")
    points_on, best = _points_on(pair), _best_iou(pair)
    if points_on is None:
        cause = "no provenance"
    elif points_on < 0.5:
        cause = "points off"
    else:
        cause = "wrong candidate" if best is not None and best >= ENOUGH else "mask wrong"
    return Missed(*where, cause, points_on, best)


def _points_on(pair: Pair) -> float | None:
    """Return the share of positive points, of all annotations of the pair, that are on the true mask."""
    points = [point for each in pair.predicted for point in _positives(each.attributes)]
    if not points:
        return None
    mask = rle.decode(pair.truth)
    rows, columns = (np.array([int(point[axis]) for point in points]) for axis in (1, 0))
    inside = (rows >= 0) & (rows < mask.shape[0]) & (columns >= 0) & (columns < mask.shape[1])
    return float(mask[rows[inside], columns[inside]].sum()) / len(points)


def _positives(attributes: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Return x, y of the positive points; empty if another tool wrote the attribute in another form."""
    points = attributes.get("points")
    if not isinstance(points, list):
        return []
    return [
        (point[0], point[1])
        for point in points
        if isinstance(point, list) and len(point) >= 3 and all(map(is_number, point[:3])) and point[2] == 1
    ]


def _best_iou(pair: Pair) -> float | None:
    """Return the IoU of the best choice of candidates, searched one annotation at a time; None if none are recorded."""
    masks = [each.rle for each in pair.predicted]
    options = [_candidates(each, pair.scene.hw, pair.scene.file_name) for each in pair.predicted]
    if not any(options):
        return None
    for place, others in enumerate(options):
        swapped = [[*masks[:place], other, *masks[place + 1 :]] for other in others]
        masks = max([masks, *swapped], key=pair.iou_of)
    return pair.iou_of(masks)


def _candidates(region: Region, hw: tuple[int, int], file_name: str) -> list[Rle]:
    kept = region.attributes.get("candidates")
    if not isinstance(kept, list):
        return []
    try:
        return [checked_rle(each, hw) for each in kept]
    except ValueError as error:
        raise DatasetError(f"predictions: a candidate of an annotation of {file_name!r}: {error}") from error
