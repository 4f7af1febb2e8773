"""Which of SAM's candidates becomes the segment.

SAM's own score picks the best of its three candidates only about half the time: it does not know what was looked for.
The map does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from text2seg.records import Candidates

SAM_WEIGHT, SEPARATION_WEIGHT, CONSTANT = 1.23, 0.76, -0.72
"""Least squares of candidates' true IoU on scenes of the demo world (scripts/fit_choice.py)."""


def by_sam(candidates: Candidates) -> NDArray[np.float32]:
    """How good each candidate is by SAM's predicted IoU alone, float32[K].

    Source: Kirillov et al., "Segment Anything" (arXiv 2304.02643): the masks are ranked by SAM's own score.
    """
    return candidates.scores


def by_map(masks: NDArray[np.bool_], candidates: Candidates, scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """How good each candidate is by the map and SAM together, float32[K]: the IoU that is to be expected of it.

    Args:
        masks: the candidates as bool[K, h, w], in the part of SAM's low-resolution frame that the picture fills.
        scores: the query's min-max map [h, w] there.
    """
    quality = SAM_WEIGHT * candidates.scores + SEPARATION_WEIGHT * separation(masks, scores) + CONSTANT
    return quality.astype(np.float32)


def separation(masks: NDArray[np.bool_], scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """How well a map [h, w] tells the inside of each mask bool[K, h, w] from its outside: difference of the means."""
    flat, values = masks.reshape(len(masks), -1).astype(np.float32), scores.ravel()
    inside = flat.sum(1)
    mass = flat @ values
    apart: NDArray[np.float32] = mass / np.maximum(inside, 1) - (values.sum() - mass) / np.maximum(
        values.size - inside, 1
    )
    return apart
