"""What every map goes through: stretching to [0, 1], changing its grid, comparing it with a mask. numpy in and out."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

Maps = NDArray[np.float32]


def minmax(maps: Maps) -> Maps:
    """Each map of float32 [..., h, w] stretched to [0, 1]. A constant map has no peak, and one that is not
    finite no meaning: both become 0 everywhere.

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
    """Maps float32 [Q, h, w] bilinear on another grid, pixel centres aligned, without antialiasing."""
    if not len(maps):
        return np.zeros((0, *hw), np.float32)
    grid = torch.from_numpy(np.array(maps))[None]
    return F.interpolate(grid, size=hw, mode="bilinear", align_corners=False)[0].numpy()


def map_score(scores: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    """How well a map [gh, gw] separates a mask bool [H, W]: mean of the min-max map inside less outside, in [-1, 1];
    0 where the mask is empty or full."""
    inside = np.count_nonzero(mask)
    if inside in (0, mask.size):
        return 0.0
    height, width = mask.shape
    stretched = resize(minmax(scores)[None], (height, width))[0]
    return float(stretched[mask].mean() - stretched[~mask].mean())


def iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Of two masks; 1 where both are empty."""
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 1.0
