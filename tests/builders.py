"""Tiny records for tests. Images are 24 rows by 32 columns, never square, so that a swapped x and y shows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from text2seg.records import Candidates, Image, PointPrompts, Segment, Segmentation, SimilarityMaps

HW = (24, 32)


def pixels(hw: tuple[int, int] = HW, *, seed: int = 0) -> NDArray[np.uint8]:
    """Noise with different corners, so that every flip and turn shows."""
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3)).astype(np.uint8)


def image(hw: tuple[int, int] = HW, *, file_name: str = "one.png", image_id: int = 1) -> Image:
    return Image(pixels(hw), file_name, image_id)


def box_mask(
    hw: tuple[int, int] = HW, *, left: int = 10, top: int = 4, width: int = 12, height: int = 6
) -> NDArray[np.bool_]:
    mask = np.zeros(hw, np.bool_)
    mask[top : top + height, left : left + width] = True
    return mask


def ring_mask(hw: tuple[int, int] = HW) -> NDArray[np.bool_]:
    """A box with a hole, off centre."""
    mask = box_mask(hw, left=3, top=5, width=20, height=15)
    mask[8:12, 6:15] = False
    return mask


def grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask with every pixel that touches it, also at a corner: what tools make of a polygon that they draw with
    its outline."""
    padded = np.pad(mask, 1)
    rows = padded[:-2] | padded[1:-1] | padded[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]


def points(*rows: tuple[float, float, int, float]) -> PointPrompts:
    """Points from rows of x, y, label, similarity; by default one positive and one negative."""
    table = np.array(rows or [(15.5, 6.5, 1, 0.9), (2.0, 20.0, 0, 0.1)], np.float32).reshape(-1, 4)
    return PointPrompts(table[:, :2].copy(), table[:, 2].astype(np.int8), table[:, 3].copy())


def candidates(mask: NDArray[np.bool_], *, side: int = 16, count: int = 3) -> Candidates:
    """The mask in SAM's square frame, its long side filling the square, and the same a little bolder or thinner."""
    height, width = mask.shape
    at = (np.arange(side) + 0.5) * max(height, width) / side
    rows, columns = np.minimum(at, height - 1).astype(int), np.minimum(at, width - 1).astype(int)
    inside = mask[rows][:, columns] & (at < height)[:, None] & (at < width)[None]
    logits = np.stack([np.where(inside, 4.0, -4.0 + bold) for bold in range(count)]).astype(np.float32)
    return Candidates(logits, np.linspace(0.5, 0.9, count).astype(np.float32))


def segment(query: str = "ball", mask: NDArray[np.bool_] | None = None, *, sam_score: float = 0.9) -> Segment:
    mask = box_mask() if mask is None else mask
    options = candidates(mask)
    return Segment(query, mask, sam_score, 0.5, 0.25, points(), options, len(options) - 1)


def maps(
    queries: Sequence[str] = ("ball",), hw: tuple[int, int] = HW, *, grid_hw: tuple[int, int] = (3, 4)
) -> SimilarityMaps:
    scores = np.random.default_rng(1).random((len(queries), *grid_hw), np.float32)
    return SimilarityMaps(tuple(queries), scores, np.full(len(queries), 0.25, np.float32), hw)


def segmentation(
    *segments: Segment,
    queries: Sequence[str] | None = None,
    hw: tuple[int, int] = HW,
    file_name: str = "one.png",
    image_id: int = 1,
) -> Segmentation:
    """All segments in one noisy image; the queries are theirs unless given."""
    asked = tuple(dict.fromkeys(each.query for each in segments)) if queries is None else tuple(queries)
    return Segmentation(image(hw, file_name=file_name, image_id=image_id), segments, maps(asked, hw))
