"""Arithmetic of similarity maps and masks in numpy: min-max, resizing, map score, boxes, intersection over union."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from text2seg.errors import SettingsError

Maps = NDArray[np.float32]

BAND = 64
"""Rows of a mask that are turned into floating-point numbers at once."""


def minmax(maps: Maps) -> Maps:
    """Stretch each map of float32 [..., h, w] to [0, 1]. Maps that are constant or not finite become 0 everywhere.

    >>> minmax(np.array([[1.0, 3.0], [2.0, 1.0]], np.float32))
    array([[0. , 1. ],
           [0.5, 0. ]], dtype=float32)
    """
    finite = np.isfinite(maps).all(axis=(-2, -1), keepdims=True)
    maps = np.where(finite, maps, np.float32(0))
    low = maps.min(axis=(-2, -1), keepdims=True)
    span = maps.max(axis=(-2, -1), keepdims=True) - low
    return np.divide(maps - low, span, out=np.zeros_like(maps), where=span > 0)


def resize(maps: Maps, hw: tuple[int, int]) -> Maps:
    """Resize maps float32 [Q, h, w] bilinearly to `hw`, with aligned pixel centres and without antialiasing."""
    if not len(maps):
        return np.zeros((0, *hw), np.float32)
    # Imported here, because reading COCO files needs this module but not torch.
    import torch
    from torch.nn import functional as F

    grid = torch.from_numpy(np.array(maps))[None]
    return F.interpolate(grid, size=hw, mode="bilinear", align_corners=False)[0].numpy()


def map_score(scores: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    """Return how well a map [gh, gw] separates a mask bool [H, W] from the rest of the image.

    It is the mean of the min-max map inside the mask minus the mean outside, in [-1, 1]; 0 for an empty or full mask.
    """
    count = np.count_nonzero(mask)
    if count in (0, mask.size):
        return 0.0
    # Instead of the map to the size of the mask, the mask is brought to the grid of the map, with the same weights: the
    # sum over pixels of mask · (rows map columnsᵀ) is the sum over cells of (rowsᵀ mask columns) · map.
    box = tight_box(mask)
    assert box is not None  # the mask is not empty
    left, top, width, height = box
    rows, columns = (_axis(cells, length) for cells, length in zip(scores.shape, mask.shape, strict=True))
    part = mask[top : top + height, left : left + width]
    of_rows = np.zeros((len(scores), width))
    for start in range(0, height, BAND):  # a band has weights on few cells, and as numbers it fits into the cache
        weights = rows[top + start : top + height][:BAND]
        used = np.flatnonzero(weights.any(0))
        cells = slice(used[0], used[-1] + 1)
        of_rows[cells] += weights[:, cells].T @ part[start : start + BAND].astype(np.float64)
    stretched = minmax(scores).astype(np.float64)
    inside = ((of_rows @ columns[left : left + width]) * stretched).sum()
    everywhere = rows.sum(0) @ stretched @ columns.sum(0)
    return float(inside / count - (everywhere - inside) / (mask.size - count))


@lru_cache(16)
def _axis(cells: int, length: int) -> NDArray[np.float64]:
    """Return the matrix [length, cells] that `resize` applies along one axis."""
    place = ((np.arange(length) + 0.5) * (cells / length) - 0.5).clip(0, cells - 1)
    first = np.minimum(place.astype(np.int64), max(cells - 2, 0))
    matrix = np.zeros((length, cells))
    np.add.at(matrix, (np.arange(length), first), 1 - (place - first))
    np.add.at(matrix, (np.arange(length), np.minimum(first + 1, cells - 1)), place - first)
    matrix.flags.writeable = False
    return matrix


def tight_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """Return the tight box xywh of a mask bool[H, W], or None if it is empty."""
    rows = np.flatnonzero(mask.any(1))
    if not len(rows):
        return None
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[top:bottom].any(0))
    left = int(columns[0])
    return left, top, int(columns[-1]) + 1 - left, bottom - top


def depth_of(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the distance in pixels, float32[H, W], of each pixel of a mask bool[H, W] to the nearest pixel outside of
    it; beyond the image everything is outside. It is 0 outside the mask."""
    import cv2  # imported here, as torch above

    depth = cv2.distanceTransform(np.pad(mask, 1).view(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    return np.asarray(depth, np.float32)


def highest(values: NDArray[Any]) -> tuple[int, int]:
    """Return the column x and the row y of the highest of values [h, w]. That of `depth_of` is the deepest pixel."""
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    return int(column), int(row)


def place(mask: NDArray[np.bool_], xywh: tuple[int, int, int, int] | None, hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask bool[h, w] of a part of an image as a mask bool[H, W] of the whole; None is the whole."""
    if xywh is None:
        return mask
    x, y, width, height = xywh
    placed = np.zeros(hw, np.bool_)
    placed[y : y + height, x : x + width] = mask
    return placed


def iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Return the intersection over union of two masks of one shape; see `iou_of_areas` for empty masks."""
    return iou_of_areas(np.count_nonzero(one & other), np.count_nonzero(one), np.count_nonzero(other))


def iou_of_areas(shared: int, one: int, other: int) -> float:
    """Return the intersection over union from the areas of two masks and of what they share.

    Two empty masks are equal, so their IoU is 1.
    """
    union = one + other - shared
    return shared / union if union else 1.0


def outside_of(image_hw: tuple[int, int]) -> str:
    """Return how messages say that something is not in an image.

    >>> outside_of((20, 28))
    'outside the image, which is 28 x 20 pixels'
    """
    return f"outside the image, which is {image_hw[1]} x {image_hw[0]} pixels"


def check_inside(x: float, y: float, image_hw: tuple[int, int]) -> None:
    """Raise `SettingsError` if a point that a person set, in pixels of the image, is outside the image."""
    if not (0 <= x <= image_hw[1] and 0 <= y <= image_hw[0]):
        raise SettingsError(f"the point {x:g}, {y:g} is {outside_of(image_hw)}")
