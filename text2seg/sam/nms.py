"""Of masks that show the same thing, the best: non-maximum suppression by IoU and by containment.

Boxes would not do: two things side by side have boxes that overlap, and a part has the box of nothing else. Containment
matters because a point on a wheel gives the wheel, and a point on the car gives the car with its wheels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CONTAINED = 0.85
"""A mask of which this share lies in another one is a part of it."""


def suppress(masks: NDArray[np.bool_], scores: NDArray[np.floating], overlap: float) -> list[int]:
    """Which masks bool[N, h, w] stay, as indices, the highest score first. Of equal scores the first counts as higher.

    A mask goes where its IoU with one that stays is above `overlap`, or where one of the two lies in the other. Empty
    masks never stay.
    """
    flat = masks.reshape(len(masks), -1).astype(np.float32)
    return best_of_each(flat @ flat.T, scores, overlap)


def best_of_each(shared: NDArray[np.floating], scores: NDArray[np.floating], overlap: float) -> list[int]:
    """`suppress`, from how many pixels each two masks share, [N, N], so that the masks need not lie side by side."""
    area = np.diagonal(shared)
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable").tolist():
        both, other = shared[index, kept], area[kept]
        same = both > overlap * (area[index] + other - both)
        inside = both >= CONTAINED * np.minimum(area[index], other)
        if area[index] and not (same | inside).any():
            kept.append(index)
    return kept
