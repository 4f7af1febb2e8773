"""Score `text2seg refine` on scenes with known masks: boxes, and masks that were made worse. See accuracy.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt

import cv2
import numpy as np
from agreement import Mask, Scene

from text2seg import Text2Seg
from text2seg.config import RefineSettings
from text2seg.grids import iou, tight_box
from text2seg.refining import refine_image
from text2seg.sam.refinement import Region

SMALLEST = 60
"""Pixels of the smallest true mask; of smaller ones nothing is left after an erosion."""
SLACK = 0.02
"""A mask whose IoU falls by more than this became worse."""


def radius(mask: Mask) -> int:
    """Return by how many pixels a mask is eroded and dilated: 0.08 times the side of a square of its area, so that
    its IoU falls to about 0.6 to 0.7."""
    return max(2, round(0.08 * sqrt(mask.sum())))


def _disc(mask: Mask) -> np.ndarray:
    side = 2 * radius(mask) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))


def _coarse(mask: Mask) -> Mask:
    """Return the mask in squares with a side of 0.15 times that of a square of its area."""
    rows, columns = mask.shape
    side = max(4, round(0.15 * sqrt(mask.sum())))
    size = max(1, round(columns / side)), max(1, round(rows / side))
    small = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) >= 0.5
    return cv2.resize(small.astype(np.uint8), (columns, rows), interpolation=cv2.INTER_NEAREST) > 0


def _few_corners(mask: Mask) -> Mask:
    """Return the mask with outlines of few corners, off by up to a tenth of the side of a square of its area."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    drawn = np.zeros(mask.shape, np.uint8)
    for outline in outlines:
        cv2.fillPoly(drawn, [cv2.approxPolyDP(outline, 0.1 * sqrt(mask.sum()), True)], 1)
    return drawn > 0


WORSE: dict[str, Callable[[Mask], Mask]] = {
    "eroded": lambda mask: cv2.erode(mask.astype(np.uint8), _disc(mask)) > 0,
    "dilated": lambda mask: cv2.dilate(mask.astype(np.uint8), _disc(mask)) > 0,
    "coarse squares": _coarse,
    "few corners": _few_corners,
}
"""Functions that make a true mask worse."""


def refinement(
    models: Text2Seg, scenes: Sequence[Scene], settings: RefineSettings | None = None
) -> dict[str, dict[str, float]]:
    """Return a row for boxes and for each of `WORSE`.

    `before` and `after` are mean IoUs with the true mask; of a box, before is that of the filled box. `better` is the
    share of masks whose IoU grew, `worse` of those whose IoU fell by more than `SLACK`, `kept` of those that were
    refused and stayed as they were.
    """
    rows: dict[str, list[tuple[float, float, bool]]] = {"true box": [], **{name: [] for name in WORSE}}
    for session, things in scenes:
        cases = [case for masks in things.values() for mask in masks if mask.sum() >= SMALLEST for case in _cases(mask)]
        found = refine_image(models, session.image, [region for _, _, region in cases], settings)
        for (name, mask, region), refined in zip(cases, found, strict=True):
            rows[name].append((_iou_before(region, mask), iou(refined.mask, mask), refined.kept))
    return {name: _row(np.array(values, np.float64)) for name, values in rows.items()}


def _cases(mask: Mask) -> list[tuple[str, Mask, Region]]:
    box = tight_box(mask)
    assert box is not None
    worse = [(name, mask, make(mask)) for name, make in WORSE.items()]
    return [("true box", mask, box), *(case for case in worse if case[2].any())]


def _iou_before(region: Region, mask: Mask) -> float:
    if isinstance(region, np.ndarray):
        return iou(region, mask)
    x, y, width, height = map(int, region)
    filled = np.zeros(mask.shape, np.bool_)
    filled[y : y + height, x : x + width] = True
    return iou(filled, mask)


def _row(values: np.ndarray) -> dict[str, float]:
    before, after, kept = values.T
    return {
        "before": float(before.mean()),
        "after": float(after.mean()),
        "better": float((after > before).mean()),
        "worse": float((after < before - SLACK).mean()),
        "kept": float(kept.mean()),
        "masks": len(values),
    }
