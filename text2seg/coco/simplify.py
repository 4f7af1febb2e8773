"""Polygons of a mask with fewer corners, for people who edit them in labelling tools.

A slanted edge of a mask is a staircase along the pixels. The line through the middles of the steps, or through their
corners, is thinned out with the method of Douglas and Peucker: what is left out is within the tolerance of what stays.
Each region is checked, and gets a smaller tolerance if its polygons would cross or touch themselves, fill a hole, or
have an IoU below `MIN_IOU` with it.

Corners are counted in half pixels here, so that they are whole numbers and the checks are exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from text2seg.coco import polygon

MIN_IOU = 0.98
"""Lowest IoU of a region with its polygons."""
FEWEST = 8
"""Regions with fewer corners keep them all."""
SHARES = tuple(share / 10 for share in range(10, 0, -1))
"""Shares of the tolerance that are tried."""
SMALLEST = 0.3
"""Smallest tolerance that is tried, in pixels; a staircase stays as it is below it."""
MOST_CHECKED = 4000
"""Largest number of corners of a polygon that is checked; the time grows with its square. A region whose polygons would
have more, which looks like noise, keeps all its corners."""
_AT_ONCE = 1 << 20  # pairs of edges compared at a time

Corners = NDArray[np.int64]  # [N, 2] x, y in half pixels


def encode(mask: NDArray[np.bool_], tolerance: float) -> list[list[float]]:
    """Return the polygons of a mask.

    Args:
        mask: bool[H, W].
        tolerance: the largest distance, in pixels, of what is left out from the polygon. 0 is exact, as
            `polygon.encode`.

    Returns:
        Polygons [x1, y1, x2, y2, …] that neither cross nor touch themselves. A region with holes has several.

    Raises:
        ValueError: the mask has another dtype or number of axes.
    """
    if tolerance < SMALLEST:
        return [list[float](each) for each in polygon.encode(mask)]
    return [_flat(corners) for region in polygon.regions(mask) for corners in _simplified(region, tolerance)]


def _flat(corners: Corners) -> list[float]:
    return [float(side) for side in (corners / 2).ravel()]


def _simplified(region: Sequence[Corners], tolerance: float) -> Sequence[Corners]:
    """Return the polygons of one region with as few corners as the checks allow. Its corners are in pixels."""
    exact = [2 * corners for corners in region]
    if _count(exact) < FEWEST:
        return exact
    everything = np.concatenate(region)
    low = everything.min(0)
    hw = tuple((everything.max(0) - low)[::-1].tolist())
    mask = _filled(exact, low, hw)
    middles = [_middles(corners) for corners in region]
    tolerances = [tolerance * share for share in SHARES if tolerance * share >= SMALLEST]
    found = [[_thinned(corners, each) for corners in lines] for lines in (exact, middles) for each in tolerances]
    for thinned in sorted(found, key=_count):
        if _count(thinned) >= _count(exact):
            break
        if not all(3 <= len(each) <= MOST_CHECKED for each in thinned):
            continue
        if _is_like(mask, _filled(thinned, low, hw)) and all(map(is_simple, thinned)):
            return thinned
    return exact


def _count(region: Sequence[Corners]) -> int:
    return sum(map(len, region))


def _middles(corners: Corners) -> Corners:
    """Return the middles of the first and last pixel edge of each straight run, in half pixels."""
    ends = np.roll(corners, -1, axis=0)
    steps = np.sign(ends - corners)
    return np.stack([2 * corners + steps, 2 * ends - steps], axis=1).reshape(-1, 2)


def _thinned(corners: Corners, tolerance: float) -> Corners:
    """Return the corners (in half pixels) that stay with a tolerance in pixels."""
    import cv2

    return np.asarray(cv2.approxPolyDP(corners.astype(np.int32)[:, None], 2 * tolerance, True)[:, 0], np.int64)


def _filled(region: Sequence[Corners], low: Corners, hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask of polygons in the box of their region, which begins at `low` (in pixels)."""
    return polygon.decode([_flat(corners - 2 * low) for corners in region], hw)


def _is_like(exact: NDArray[np.bool_], thinned: NDArray[np.bool_]) -> bool:
    """Return whether a mask is nearly the exact one, and each hole of the exact one is still open."""
    import cv2

    both = int(np.count_nonzero(exact & thinned))
    if both < MIN_IOU * np.count_nonzero(exact | thinned):
        return False
    outside = np.pad(~exact, 1, constant_values=True).view(np.uint8)
    count, labels = cv2.connectedComponents(outside, connectivity=8)
    holes = np.asarray(labels)[1:-1, 1:-1]
    still_open = np.unique(holes[~exact & ~thinned])
    surrounding = np.asarray(labels)[0, 0]
    return set(range(1, count)) - {int(surrounding)} <= set(still_open.tolist())


def is_simple(corners: Corners) -> bool:
    """Return whether a polygon has at least three corners and an area, and neither crosses nor touches itself."""
    count = len(corners)
    ends = np.roll(corners, -1, axis=0)
    if count < 3 or (corners == ends).all(1).any() or len(np.unique(corners, axis=0)) < count:
        return False
    rows = max(1, _AT_ONCE // count)
    for start in range(0, count, rows):
        edges = slice(start, start + rows)
        first, second = corners[edges, None], ends[edges, None]
        sides = [
            _side(first, second, corners[None]),
            _side(first, second, ends[None]),
            _side(corners[None], ends[None], first),
            _side(corners[None], ends[None], second),
        ]
        meet = (sides[0] * sides[1] <= 0) & (sides[2] * sides[3] <= 0)
        meet &= (np.minimum(first, second) <= np.maximum(corners, ends)[None]).all(2)
        meet &= (np.minimum(corners, ends)[None] <= np.maximum(first, second)).all(2)
        numbers = np.arange(count)[edges, None]
        apart = (np.arange(count)[None] - numbers) % count
        if (meet & (apart != 0) & (apart != 1) & (apart != count - 1)).any():
            return False
        following = np.arange(count)[edges]
        turns_back = _side(corners[following], ends[following], ends[(following + 1) % count]) == 0
        along = ((ends[following] - corners[following]) * (ends[(following + 1) % count] - ends[following])).sum(1)
        if (turns_back & (along < 0)).any():
            return False
    return True


def _side(start: Corners, end: Corners, point: Corners) -> NDArray[np.int64]:
    """Return on which side of a line points are: -1, 0 (on it) or 1."""
    cross = (end[..., 0] - start[..., 0]) * (point[..., 1] - start[..., 1])
    cross = cross - (end[..., 1] - start[..., 1]) * (point[..., 0] - start[..., 0])
    return np.asarray(np.sign(cross))
