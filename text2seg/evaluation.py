"""COCO masks against COCO masks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pycocotools import mask as coco_mask


@dataclass(frozen=True, slots=True)
class CategoryGiven:
    """Scores with the categories given: every (image, category present) pair counts once.

    `mean_iou` is the mean over the pairs of the IoU between the union of the category's true masks and the union
    of those predicted, 0 where nothing was predicted; `by_category` the same for each category that is present.
    """

    mean_iou: float
    pairs: int
    by_category: dict[str, float]


def category_given(truth: Mapping[str, Any], predicted: Mapping[str, Any]) -> CategoryGiven:
    """The protocol of the published 0.500 of CLIP Surgery with SAM on COCO.

    Args:
        truth, predicted: COCO datasets with RLE or polygon masks, matched by image file name and category name.

    Raises:
        ValueError: the truth has no annotations.
    """
    ours = _unions(predicted)
    scores: dict[str, list[float]] = defaultdict(list)
    for (file_name, category), mask in _unions(truth).items():
        guess = ours.get((file_name, category))
        iou = float(coco_mask.iou([guess], [mask], [0])[0][0]) if guess is not None else 0.0
        scores[category].append(iou)
    if not scores:
        raise ValueError("the ground truth has no annotations, so there is nothing to score")
    every = [iou for ious in scores.values() for iou in ious]
    means = {category: sum(ious) / len(ious) for category, ious in sorted(scores.items())}
    return CategoryGiven(sum(every) / len(every), len(every), means)


def _unions(dataset: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """One RLE per (file name, category name): the union of its annotations."""
    images = {image["id"]: image for image in dataset["images"]}
    names = {category["id"]: category["name"] for category in dataset["categories"]}
    parts: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for annotation in dataset["annotations"]:
        image = images[annotation["image_id"]]
        parts[image["file_name"], names[annotation["category_id"]]].append(_rle(annotation["segmentation"], image))
    return {key: coco_mask.merge(masks) for key, masks in parts.items()}


def _rle(segmentation: Any, image: Mapping[str, Any]) -> Any:
    """A compressed RLE of any of the three forms that COCO knows."""
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, image["height"], image["width"]))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, image["height"], image["width"])
    return segmentation
