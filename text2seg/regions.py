"""From a similarity map to the regions where the thing stands: one for each of several of a kind.

Published text2points takes everything at 0.8 of the highest peak, and so one of three dogs (its issue #18). Here the
map is flooded from above: each peak grows a region downhill; where two meet, the lower one becomes part of the higher,
unless it rises far enough above their saddle to be a thing of its own (0-dimensional persistence; Edelsbrunner et al.,
"Topological Persistence and Simplification", 2002).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from text2seg.config import PointSettings


def regions(scores: NDArray[np.float32], settings: PointSettings) -> list[NDArray[np.int64]]:
    """The regions of one min-max map [h, w] in [0, 1], the highest first.

    Cells below `settings.floor` belong to none. Two regions stay apart where the lower peak is at least
    `settings.prominence` above the saddle between them.

    Returns:
        For each region its cells, as indices into the flattened map, the highest first. A constant map has none.
    """
    height, width = scores.shape
    flat = scores.ravel()
    order = np.argsort(-flat, kind="stable")
    order = order[flat[order] >= settings.floor]
    if not len(order) or np.ptp(flat) == 0:
        return []
    parent = np.full(flat.size, -1, np.int64)  # of each flooded cell; a root is its region's peak

    def peak(cell: int) -> int:
        while parent[cell] != cell:
            parent[cell] = parent[parent[cell]]
            cell = int(parent[cell])
        return cell

    for cell in order.tolist():
        row, column = divmod(cell, width)
        parent[cell] = cell
        near = {
            peak(r * width + c)
            for r in range(max(row - 1, 0), min(row + 2, height))
            for c in range(max(column - 1, 0), min(column + 2, width))
            if parent[r * width + c] >= 0
        } - {cell}
        if not near:
            continue
        highest, *others = sorted(near, key=lambda p: (-flat[p], p))
        parent[cell] = highest
        for other in others:
            if flat[other] - flat[cell] < settings.prominence:
                parent[other] = highest
    found: dict[int, list[int]] = {}
    for cell in order.tolist():
        found.setdefault(peak(cell), []).append(cell)
    return [np.array(cells) for cells in found.values()]
