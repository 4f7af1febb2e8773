"""Masks as the browser draws them: outlines of a few kilobytes in place of pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from text2seg.records import Segment

DETAIL = 1400
"""Outlines are traced on a mask whose long side has about this many pixels: what no screen shows is left out, and the
stairs of small pictures become slopes."""
TOLERANCE = 0.6
"""How far, in pixels of that mask, a straight line may leave the outline."""
SPECK = 0.01
"""Parts smaller than this share of a segment are no parts of their own."""


@dataclass(frozen=True, slots=True)
class Outline:
    """`path` in the words of SVG, in pixels of the image, to be filled by the even-odd rule; `parts` is how many pieces
    the mask is in, specks not counted; `area` in pixels."""

    path: str
    parts: int
    area: int


def outline_of(segment: Segment) -> Outline:
    """The outline of a segment's mask; it is for the eye only, at most about a pixel off."""
    height, width = segment.mask.shape
    scale = DETAIL / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    mask = np.asarray(cv2.resize(segment.mask.view(np.uint8) * 255, size, interpolation=how) >= 128)
    loops, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    to_image = np.array([width / size[0], height / size[1]])
    path = "".join(_loop(cv2.approxPolyDP(loop, TOLERANCE, True)[:, 0], to_image) for loop in loops)
    return Outline(path, len(parts_of(mask)), segment.area)


def parts_of(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """The pieces that a mask bool[H, W] is in, the largest first; specks go with it. Empty: none."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    if count == 1:
        return []
    order = np.argsort(-areas, kind="stable") + 1
    large = [int(label) for label in order if areas[label - 1] >= SPECK * areas.sum()]
    specks = np.isin(labels, [int(label) for label in order if label not in large])
    return [(labels == large[0]) | specks, *(labels == label for label in large[1:])]


def _loop(corners: NDArray[Any], to_image: NDArray[np.float64]) -> str:
    """Corners are middles of pixels at the edge of the mask."""
    points = (corners + 0.5) * to_image
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + "Z"
