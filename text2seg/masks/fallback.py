"""Where SAM and the map tell different stories and SAM's is not a good one: the map's own region as the segment."""

from __future__ import annotations

import numpy as np

from text2seg.grids import iou, resize
from text2seg.masks.any_sam import AnySam, SamEmbedding
from text2seg.records import Aim, Candidates

LEVEL = 0.7
"""The region's mask is what lies above this share of its peak."""
BELOW = 1e-3
"""Cells of other regions are cut off at this share below the level, or rounding while they are made larger would lift
some of them above it on some processors."""
WORST_QUALITY, LEAST_SHARED = 0.5, 0.1
"""SAM is overruled where the expected IoU of its best candidate and its IoU with the region are both below
these. All three are the best of a grid that loses none of the things (scripts/compare_options.py --fit)."""


def with_region(sam: AnySam, embedding: SamEmbedding, aim: Aim, candidates: Candidates) -> Candidates:
    """The candidates and, last and with a score of 0, the aim's region: its part of the map, bilinear, less `LEVEL`.

    The logits are in SAM's low-resolution frame, as the others', so that all that is done with those works with it.
    """
    level = LEVEL * float(aim.scores[aim.region].max(initial=0))
    part = np.where(aim.region, aim.scores, np.minimum(aim.scores, level - BELOW * abs(level))).astype(np.float32)
    side = candidates.logits.shape[-1]
    rows, columns = sam.filled(embedding, side)
    filled = resize(part[None], (rows, columns))[0] - np.float32(level)
    own = np.pad(filled, ((0, side - rows), (0, side - columns)), mode="edge")
    return Candidates(np.concatenate([candidates.logits, own[None]]), np.append(candidates.scores, np.float32(0)))


def or_region(
    sam: AnySam, embedding: SamEmbedding, aim: Aim, candidates: Candidates, best: int, quality: float
) -> tuple[Candidates, int]:
    """The candidates and which is the best; where SAM is overruled, with the region as the last one, which then is.

    `quality` is the IoU that is to be expected of the best of SAM's.
    """
    if quality >= WORST_QUALITY:
        return candidates, best
    more = with_region(sam, embedding, aim, candidates)
    low = sam.coarse_masks(embedding, more)
    if not low[-1].any() or iou(low[best], low[-1]) >= LEAST_SHARED:
        return candidates, best
    return more, len(candidates)
