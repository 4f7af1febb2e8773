"""Semantic segmentation: one label for each pixel, mean IoU over the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from text2seg.coco import rle
from text2seg.coco.rle import area
from text2seg.coco.truth import Region
from text2seg.evaluation.datasets import Aligned, Scene

BACKGROUND = "background"
IGNORED = -1
AT_ONCE = 1 << 22  # pixels that are counted together


@dataclass(frozen=True, slots=True, eq=False)
class Semantic:
    """Scores of label maps. Label 0 is the background: no annotation covers it. `None`: a label that is nowhere.

    `miou` is the mean of the IoU of all labels that are in the ground truth or in the predictions, background included;
    `confusion` int64 [labels, labels] counts pixels by true label (rows) and predicted label (columns); `ignored` are
    pixels of crowds, which count nowhere.
    """

    miou: float
    miou_without_background: float | None
    pixel_accuracy: float
    background: float | None
    by_category: dict[str, float | None]
    labels: tuple[str, ...]
    confusion: NDArray[np.int64]
    ignored: int


def score_semantic(aligned: Aligned) -> Semantic:
    """Paint both label maps of one image at a time and count.

    Where annotations overlap the smaller one wins in the ground truth, the one with the higher score in the
    predictions, of equal scores the smaller. Pixels of a crowd that no other true annotation covers are ignored.
    """
    places = {number: place for place, number in enumerate(aligned.categories, start=1)}
    confusion = np.zeros((len(places) + 1, len(places) + 1), np.int64)
    ignored = 0
    for scene in aligned.scenes:
        used = sorted({each.category for each in (*scene.truth, *scene.predicted)})
        local = {number: label for label, number in enumerate(used, start=1)}
        true, predicted = label_maps(scene, local)
        at = np.array([0, *(places[number] for number in used)])
        rows = max(1, AT_ONCE // true.shape[1])
        for top in range(0, len(true), rows):
            part, found = true[top : top + rows], predicted[top : top + rows]
            valid = part != IGNORED
            pairs = part[valid].astype(np.int64) * (len(used) + 1) + found[valid]
            if len(at) ** 2 <= AT_ONCE:
                counts = np.bincount(pairs)
                cells = np.flatnonzero(counts)
                counts = counts[cells]
            else:
                cells, counts = np.unique(pairs, return_counts=True)
            confusion[at[cells // (len(used) + 1)], at[cells % (len(used) + 1)]] += counts
            ignored += int(valid.size - np.count_nonzero(valid))
    return _scores(tuple(aligned.categories.values()), confusion, ignored)


def label_maps(scene: Scene, labels: dict[int, int]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The true and the predicted label of each pixel, int32 [H, W]; `labels` says which for a category id."""
    crowds = [each for each in scene.truth if each.crowd]
    things = [each for each in scene.truth if not each.crowd]
    things.sort(key=lambda each: (-area(each.rle), -each.category))
    true = np.zeros(scene.hw, np.int32)
    _paint(true, crowds, [IGNORED] * len(crowds))
    _paint(true, things, [labels[each.category] for each in things])
    found = sorted(scene.predicted, key=lambda each: (each.score, -area(each.rle), -each.category))
    predicted = np.zeros(scene.hw, np.int32)
    _paint(predicted, found, [labels[each.category] for each in found])
    return true, predicted


def _paint(canvas: NDArray[np.int32], regions: Sequence[Region], labels: Sequence[int]) -> None:
    for region, label in zip(regions, labels, strict=True):
        canvas[rle.decode(region.rle)] = label


def _scores(names: tuple[str, ...], confusion: NDArray[np.int64], ignored: int) -> Semantic:
    hits = np.diag(confusion)
    unions = confusion.sum(0) + confusion.sum(1) - hits
    ious = [int(hit) / int(both) if both else None for hit, both in zip(hits, unions, strict=True)]
    known = [iou for iou in ious if iou is not None]
    things = [iou for iou in ious[1:] if iou is not None]
    total = int(confusion.sum())
    return Semantic(
        miou=sum(known) / len(known) if known else 0.0,
        miou_without_background=sum(things) / len(things) if things else None,
        pixel_accuracy=int(hits.sum()) / total if total else 0.0,
        background=ious[0],
        by_category=dict(zip(names, ious[1:], strict=True)),
        labels=(BACKGROUND, *names),
        confusion=confusion,
        ignored=ignored,
    )
