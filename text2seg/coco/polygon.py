"""Masks as polygons along the edges of their pixels, without loss, and back.

Corners are integers: the pixel in row y and column x is the square from (x, y) to (x + 1, y + 1). If pycocotools
rasterises the polygons, it returns exactly the mask, and their shoelace areas add up to its pixel count.
COCO has no holes (a further polygon would be filled), and tools refuse polygons that touch themselves. So a region
with holes, or with pockets that are open only at the corner of a pixel, is cut into parts that have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from text2seg.grids import tight_box

MIN_AREA = 1e-6
"""Polygons with a smaller area, in pixels, are lines and points and are dropped."""

MAX_CROSSINGS = 1000
"""Polygons that cross a border more often are clipped as pixels."""

Loop = NDArray[np.int64]  # [N, 2] corners x, y in order, with the inside of the mask on the right


def encode(mask: NDArray[np.bool_]) -> list[list[int]]:
    """Return the polygons of a mask.

    Args:
        mask: bool[H, W].

    Returns:
        Polygons [x1, y1, x2, y2, …] of at least four corners that neither overlap nor touch themselves: one for each
        4-connected region, more for a region with holes or pockets; empty for an empty mask.

    Raises:
        ValueError: the mask has another dtype or number of axes.
    """
    return [corners.ravel().tolist() for region in regions(mask) for corners in region]


def regions(mask: NDArray[np.bool_]) -> list[list[Loop]]:
    """Return the polygons of each 4-connected region of a mask; see `encode`."""
    if mask.dtype != np.bool_ or mask.ndim != 2:
        raise ValueError(f"a mask must be bool[H, W], got {mask.dtype}{list(mask.shape)}")
    part, left, top = _crop(mask, 0, 0)
    loops = _trace(part)
    pierced = _pierced(part, loops)
    found = [[np.add(loop, (left, top))] for loop in loops if _region(loop, pierced.labels) not in pierced.openings]
    return found + [_without_openings(pierced.cut(region, left, top)) for region in pierced.openings]


def _without_openings(todo: list[tuple[NDArray[np.bool_], int, int]]) -> list[Loop]:
    """Return the polygons of the parts of a region, each cut until none has a hole or pocket."""
    polygons: list[Loop] = []
    while todo:
        part, left, top = todo.pop()
        part, left, top = _crop(part, left, top)
        loops = _trace(part)
        pierced = _pierced(part, loops)
        for region in pierced.openings:
            todo += pierced.cut(region, left, top)
        polygons += [
            np.add(loop, (left, top)) for loop in loops if _region(loop, pierced.labels) not in pierced.openings
        ]
    return polygons


@dataclass(frozen=True, slots=True)
class _Pierced:
    """The holes and pockets of the regions of a mask, by the label of the region, and the box of each region."""

    labels: NDArray[Any]
    boxes: NDArray[Any]
    openings: dict[int, list[Loop]]

    def cut(self, region: int, left: int, top: int) -> list[tuple[NDArray[np.bool_], int, int]]:
        """Cut one region in two."""
        x, y, width, height = (int(side) for side in self.boxes[region, :4])
        alone = self.labels[y : y + height, x : x + width] == region
        return _cut(alone, [opening - (x, y) for opening in self.openings[region]], left + x, top + y)


def _pierced(mask: NDArray[np.bool_], loops: list[Loop]) -> _Pierced:
    found = [(loop, opening) for loop in loops for opening in _openings(loop)]
    if not found:
        return _Pierced(np.zeros((1, 1), np.int32), np.zeros((1, 5), np.int32), {})
    import cv2  # imported here to keep the start-up fast

    _, labels, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    openings: dict[int, list[Loop]] = {}
    for loop, opening in found:
        openings.setdefault(_region(loop, np.asarray(labels)), []).append(opening)
    return _Pierced(np.asarray(labels), np.asarray(boxes), openings)


def decode(polygons: Sequence[Sequence[float]], hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the union of polygons as a mask bool[H, W], rasterised by pycocotools.

    Raises:
        ValueError: a polygon has fewer than three corners or an odd count of numbers.
    """
    height, width = hw
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon needs an even count of at least 6 numbers, got {len(polygon)}")
    if not polygons:
        return np.zeros(hw, np.bool_)
    parts = coco_mask.frPyObjects([list(polygon) for polygon in polygons], height, width)
    return np.ascontiguousarray(coco_mask.decode(coco_mask.merge(parts)).astype(np.bool_))


def clip(polygons: Sequence[Sequence[float]], hw: tuple[int, int]) -> list[list[float]]:
    """Clip polygons to an image of `hw` (rows, columns).

    Polygons inside the image are kept unchanged. The border may cut others into several parts. Polygons outside the
    image or without area are dropped. Polygons that cross themselves are rasterised and come back along the edges of
    their pixels, so corners must be within the limits of `rle.checked_rle`.
    """
    kept: list[list[float]] = []
    for polygon in polygons:
        corners = np.array(polygon, np.float64).reshape(-1, 2)
        if (corners >= 0).all() and (corners <= hw[::-1]).all():
            kept += [list(polygon)] * (_area(corners) > MIN_AREA)
            continue
        if (loops := _inside(corners, hw)) is None:
            kept += [[float(each) for each in part] for part in encode(decode([polygon], hw))]
        else:
            kept += [loop.ravel().tolist() for loop in loops if _area(loop) > MIN_AREA]
    return kept


def reaches_out(polygons: Sequence[Sequence[float]], hw: tuple[int, int]) -> bool:
    """Return whether a corner is outside the image by more than rounding."""
    corners = np.array([side for polygon in polygons for side in polygon], np.float64).reshape(-1, 2)
    return bool((corners < -MIN_AREA).any() or (corners > np.add(hw[::-1], MIN_AREA)).any())


def area(polygons: Sequence[Sequence[float]]) -> float:
    """Return the sum of the areas of polygons."""
    return sum(_area(np.array(polygon, np.float64).reshape(-1, 2)) for polygon in polygons)


def _area(corners: NDArray[np.float64]) -> float:
    return abs(_shoelace(corners))


def _shoelace(corners: NDArray[np.float64]) -> float:
    x, y = (corners - corners[0]).T
    return float(x @ np.roll(y, -1) - np.roll(x, -1) @ y) / 2


def _inside(corners: NDArray[np.float64], hw: tuple[int, int]) -> list[NDArray[np.float64]] | None:
    """Return the parts of a polygon inside an image, or None if it must be clipped as pixels (see `_one_side`)."""
    loops = [corners]
    for axis, sign, border in ((0, 1, 0), (0, -1, hw[1]), (1, 1, 0), (1, -1, hw[0])):
        parts = []
        for loop in loops:
            if (found := _one_side(loop, axis, sign, border)) is None:
                return None
            parts += found
        loops = parts
    areas = [_shoelace(loop) for loop in loops]
    return None if min(areas, default=0) < -MIN_AREA and max(areas) > MIN_AREA else loops


def _one_side(corners: NDArray[np.float64], axis: int, sign: int, border: float) -> list[NDArray[np.float64]] | None:
    """Return the parts of a polygon on one side of a vertical (axis 0) or horizontal (axis 1) line.

    On this side the boundary consists of chains that enter and leave over the line. Along the line, the polygon is
    between the first and second crossing, the third and fourth, and so on; these pieces of the line close the chains.
    Corners on the line count as outside.

    Returns:
        The parts, or None if the polygon crosses itself in a way that leaves them undefined, or crosses the line more
        than `MAX_CROSSINGS` times.
    """
    depth = sign * (corners[:, axis] - border)
    if (depth >= 0).all():
        return [corners]
    inside = depth > 0
    first, last = np.flatnonzero(inside & ~np.roll(inside, 1)), np.flatnonzero(inside & ~np.roll(inside, -1))
    if len(first) > MAX_CROSSINGS:
        return None
    if len(first) and last[0] < first[0]:  # the last chain continues at the first corner
        last = np.append(last[1:], last[0] + len(corners))
    chains = []
    for start, stop in zip(first.tolist(), last.tolist(), strict=True):
        chain = corners[np.arange(start - 1, stop + 2) % len(corners)]
        chain[0], chain[-1] = _crossing(chain[0], chain[1], axis, border), _crossing(chain[-1], chain[-2], axis, border)
        chains.append(chain)
    comes_in = sign * (1 - 2 * axis) * _shoelace(corners) > 0
    ends = [(float(chain[end][1 - axis]), number, end) for number, chain in enumerate(chains) for end in (0, -1)]
    order: list[int] = []
    for _, found in groupby(sorted(ends), itemgetter(0)):
        here: dict[bool, list[int]] = {True: [], False: []}
        for _, number, end in found:
            here[end == 0].append(number)
        while here[True] or here[False]:
            if not here[comes_in]:
                return None
            order.append(here[comes_in].pop())
            comes_in = not comes_in
    pairs = (order[1::2], order[::2]) if comes_in else (order[::2], order[1::2])  # as many of one as of the other
    following = dict(zip(*pairs, strict=True))
    parts, seen = [], set[int]()
    for number in range(len(chains)):
        loop = []
        while number not in seen:
            seen.add(number)
            loop.append(chains[number])
            number = following[number]
        if not loop:
            continue
        part = np.concatenate(loop)
        part = part[(part != np.roll(part, 1, axis=0)).any(1)]
        if len(part) > 2:
            parts.append(part)
    return parts


def _crossing(
    outside: NDArray[np.float64], inside: NDArray[np.float64], axis: int, border: float
) -> NDArray[np.float64]:
    """Return the point where the edge between two corners crosses the line."""
    if outside[axis] == border:
        return outside.copy()
    share = (border - inside[axis]) / (outside[axis] - inside[axis])
    point = inside + share * (outside - inside)
    point[axis] = border
    return np.asarray(point)


def _crop(mask: NDArray[np.bool_], left: int, top: int) -> tuple[NDArray[np.bool_], int, int]:
    box = tight_box(mask)
    if box is None:
        return mask[:0, :0], left, top
    x, y, width, height = box
    return mask[y : y + height, x : x + width], left + x, top + y


def _trace(mask: NDArray[np.bool_]) -> list[Loop]:
    """Return all boundaries of a mask: clockwise (on screen) around regions, counter-clockwise around holes.

    A boundary consists of straight runs: east along the top of pixels, south along their right side, and so on. Runs
    of one heading neither nest nor cross, so in their row or column the n-th start belongs to the n-th end.
    """
    padded = np.pad(mask, 1)
    # The four pixels around each corner of the grid, and the unit steps along the boundary that begin and end there.
    nw, ne, sw, se = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    steps = {
        "E": (se & ~ne, sw & ~nw),
        "S": (sw & ~se, nw & ~ne),
        "W": (nw & ~sw, ne & ~se),
        "N": (ne & ~nw, se & ~sw),
    }
    starts: dict[str, NDArray[np.int64]] = {}
    ends: dict[str, NDArray[np.int64]] = {}
    for heading, (leaves, arrives) in steps.items():
        starts[heading] = _keys(leaves & ~arrives, heading)
        ends[heading] = _keys(arrives & ~leaves, heading)
    return _link(starts, ends, mask.shape[1] + 1)


def _keys(corners: NDArray[np.bool_], heading: str) -> NDArray[np.int64]:
    """Return corners as row * columns + column, in row order for runs east and west, else in column order."""
    if heading in "EW":
        return np.flatnonzero(corners)
    columns, rows = np.nonzero(corners.T)
    return np.asarray(rows * corners.shape[1] + columns)


def _link(starts: dict[str, NDArray[np.int64]], ends: dict[str, NDArray[np.int64]], columns: int) -> list[Loop]:
    """Link runs into loops. Runs turn right if they can, so that pixels that touch only at a corner stay apart."""
    offsets, total = {}, 0
    for heading in "ESWN":
        offsets[heading] = total
        total += len(starts[heading])
    following = np.empty(total, np.int64)
    for index, heading in enumerate("ESWN"):
        after = np.full(len(ends[heading]), -1, np.int64)
        for turn in ("ESWN"[index - 1], "ESWN"[(index + 1) % 4]):  # left, then right, which wins
            order = np.argsort(starts[turn])
            ordered = starts[turn][order]
            found = np.searchsorted(ordered, ends[heading])
            hit = found < len(ordered)
            hit[hit] = ordered[found[hit]] == ends[heading][hit]
            after[hit] = offsets[turn] + order[found[hit]]
        following[offsets[heading] : offsets[heading] + len(after)] = after
    corner = np.concatenate([starts[heading] for heading in "ESWN"])

    loops, chain, seen = [], following.tolist(), bytearray(total)
    for first in range(len(starts["E"])):  # every loop has a run east
        if seen[first]:
            continue
        runs, run = [], first
        while not seen[run]:
            seen[run] = 1
            runs.append(run)
            run = chain[run]
        rows, cols = np.divmod(corner[runs], columns)
        loops.append(np.stack([cols, rows], axis=1))
    return loops


def _signed_area(loop: Loop) -> int:
    x, y = loop[:, 0], loop[:, 1]
    return int(x[:-1] @ y[1:] - x[1:] @ y[:-1] + x[-1] * y[0] - x[0] * y[-1]) // 2


def _openings(loop: Loop) -> list[Loop]:
    """Return what keeps a boundary from being a simple polygon: the boundary itself if it is around a hole, else its
    pockets.

    The boundary is split wherever it returns to a corner. Of the resulting simple loops, the pockets are those that
    run counter-clockwise.
    """
    if _signed_area(loop) < 0:
        return [loop]
    if len(loop) < 10 or len(set(map(tuple, loop.tolist()))) == len(loop):  # nine corners close no pocket
        return []
    simple: list[Loop] = []
    path: list[tuple[int, int]] = []
    position: dict[tuple[int, int], int] = {}
    for x, y in [*loop.tolist(), loop[0].tolist()]:
        if (x, y) in position:
            at = position[x, y]
            simple.append(np.array(path[at:]))
            for corner in path[at:]:
                del position[corner]
            del path[at:]
        position[x, y] = len(path)
        path.append((x, y))
    return [part for part in simple if _signed_area(part) < 0]


def _region(loop: Loop, labels: NDArray[Any]) -> int:
    """Return the label of the region in a loop: loops begin with a run east, and the region is just below it. It is 0
    if there are no labels, because no region is pierced."""
    x, y = loop[0] if labels.size > 1 else (0, 0)
    return int(labels[y, x])


def _cut(region: NDArray[np.bool_], holes: list[Loop], left: int, top: int) -> list[tuple[NDArray[np.bool_], int, int]]:
    """Cut a region in two through its middle hole or pocket, vertically or horizontally, whichever opens more."""
    low, high = np.array([hole.min(0) for hole in holes]), np.array([hole.max(0) for hole in holes])
    middle = np.median((low + high) // 2, axis=0)
    best: tuple[int, int, int] = (0, 0, 0)
    for axis in (0, 1):
        nearest = np.argmin(np.abs((low[:, axis] + high[:, axis]) / 2 - middle[axis]))
        at = int(low[nearest, axis] + high[nearest, axis]) // 2
        opened = int(((low[:, axis] <= at) & (at <= high[:, axis])).sum())
        if opened > best[0]:
            best = (opened, axis, at)
    _, axis, at = best
    if axis == 0:
        return [(region[:, at:], left + at, top), (region[:, :at], left, top)]
    return [(region[at:], left, top + at), (region[:at], left, top)]
