"""Category-given: how well things are cut out whose names are known to be right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from text2seg.coco.rle import Rle, union
from text2seg.coco.truth import Region, iou_outside
from text2seg.errors import DatasetError
from text2seg.evaluation.datasets import Aligned, Scene, align


@dataclass(frozen=True, slots=True)
class CategoryGiven:
    """Scores with the categories given: every (image, category present) pair counts once.

    `mean_iou` is the mean over the pairs of the IoU between the union of the category's true masks and the union
    of those predicted, 0 where nothing was predicted; `by_category` the same for each category that is present.
    """

    mean_iou: float
    pairs: int
    by_category: dict[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A category that is present in an image: the union of its true masks, its crowds and its predictions."""

    scene: Scene
    category: int
    truth: Rle
    ignored: Rle | None
    predicted: tuple[Region, ...]

    @property
    def iou(self) -> float:
        """IoU of the unions; pixels of the category's crowds do not count, unless they are in the truth as well."""
        return self.iou_of([each.rle for each in self.predicted])

    def iou_of(self, masks: list[Rle]) -> float:
        """The same for other masks in place of those predicted."""
        return iou_outside(union(masks), self.truth, self.ignored) if masks else 0.0


def category_given(truth: Mapping[str, Any], predicted: Mapping[str, Any]) -> CategoryGiven:
    """The protocol of the published 0.500 of CLIP Surgery with SAM on COCO.

    Args:
        truth, predicted: COCO datasets with RLE or polygon masks, matched by image file name and category name.

    Raises:
        DatasetError: they do not fit, or the truth has no annotations.
    """
    return score_pairs(align(truth, predicted, match="file-name"))


def score_pairs(aligned: Aligned) -> CategoryGiven:
    """The mean over `pairs_of`, and by category in the order of their names."""
    scores: dict[str, list[float]] = defaultdict(list)
    for pair in pairs_of(aligned):
        scores[aligned.categories[pair.category]].append(pair.iou)
    every = [iou for ious in scores.values() for iou in ious]
    if not every:
        raise DatasetError("the ground truth has no annotations, so there is nothing to score")
    means = {category: sum(ious) / len(ious) for category, ious in sorted(scores.items())}
    return CategoryGiven(sum(every) / len(every), len(every), means)


def pairs_of(aligned: Aligned) -> Iterator[Pair]:
    """Every (image, category present), by image and then category id. Crowds alone make no category present."""
    for scene in aligned.scenes:
        for category in scene.present():
            crowds = scene.crowds_of(category)
            yield Pair(
                scene,
                category,
                union(scene.true_of(category)),
                union(crowds) if crowds else None,
                tuple(scene.predicted_of(category)),
            )
