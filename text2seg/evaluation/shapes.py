"""The little arithmetic on compressed RLE that scoring needs, without decoding."""

from __future__ import annotations

from collections.abc import Sequence

from pycocotools import mask as coco_mask

from text2seg.coco.rle import Rle, area, as_text


def union(masks: Sequence[Rle]) -> Rle:
    """All pixels of one or more masks of one size."""
    return masks[0] if len(masks) == 1 else as_text(coco_mask.merge([dict(mask) for mask in masks]))


def common(one: Rle, other: Rle) -> int:
    """Pixels that two masks share."""
    return area(_intersection(one, other))


def iou_outside(predicted: Rle, truth: Rle, ignored: Rle | None) -> float:
    """IoU of two masks where pixels of `ignored` that are not in the truth do not count; 0 where both are empty."""
    shared, predicted_area = common(predicted, truth), area(predicted)
    if ignored is not None:
        inside = _intersection(predicted, ignored)
        predicted_area -= area(inside) - common(inside, truth)
    together = predicted_area + area(truth) - shared
    return shared / together if together else 0.0


def _intersection(one: Rle, other: Rle) -> Rle:
    return as_text(coco_mask.merge([dict(one), dict(other)], True))
