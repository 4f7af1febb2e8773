"""Masks as polygons along the edges of their pixels, exactly, and back.

Corners are whole numbers: the pixel in row y and column x is the square from (x, y) to (x + 1, y + 1). Rasterised by
pycocotools the polygons give back every pixel of the mask, and their shoelace areas add up to its pixel count.
COCO cannot say "hole" (one more polygon would be filled), and tools refuse a polygon that touches itself, so a region
with holes, or with pockets that are open at the corner of a pixel only, is cut into parts that have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

LEAST_AREA = 1e-6
"""Polygons of less, in pixels, have none: they are lines and points."""

MOST_CROSSINGS = 1000
"""Polygons that come over a border more often are cut by their pixels."""

Loop = NDArray[np.int64]  # [N, 2] corners x, y in order; the inside of the mask lies on the right hand


def encode(mask: NDArray[np.bool_]) -> list[list[int]]:
    """The polygons of a mask bool[H, W], each [x1, y1, x2, y2, …] with at least four corners; none overlap, none
    touches itself.

    One polygon for each region of pixels that touch along a side; a region with holes or pockets takes more. An empty
    mask has none. Raises `ValueError` on another type or shape.
    """
    if mask.dtype != np.bool_ or mask.ndim != 2:
        raise ValueError(f"a mask must be bool[H, W], got {mask.dtype}{list(mask.shape)}")
    polygons: list[list[int]] = []
    todo = [(mask, 0, 0)]
    while todo:
        part, left, top = todo.pop()
        part, left, top = _crop(part, left, top)
        loops = _trace(part)
        openings = [(loop, opening) for loop in loops for opening in _openings(loop)]
        if openings:
            _, found, boxes, _ = cv2.connectedComponentsWithStats(part.astype(np.uint8), connectivity=4)
            labels = np.asarray(found)
            pierced: dict[int, list[Loop]] = {}
            for loop, opening in openings:
                pierced.setdefault(_region(loop, labels), []).append(opening)
            loops = [loop for loop in loops if _region(loop, labels) not in pierced]
            for region, inside in pierced.items():
                x, y, width, height = (int(side) for side in boxes[region, :4])
                alone = labels[y : y + height, x : x + width] == region
                todo += _cut(alone, [opening - (x, y) for opening in inside], left + x, top + y)
        polygons += [np.add(loop, (left, top)).ravel().tolist() for loop in loops]
    return polygons


def decode(polygons: Sequence[Sequence[float]], hw: tuple[int, int]) -> NDArray[np.bool_]:
    """The union of polygons as a mask bool[H, W], rasterised by pycocotools. Raises `ValueError` on a polygon with
    fewer than three corners or half a corner."""
    height, width = hw
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon needs an even count of at least 6 numbers, got {len(polygon)}")
    if not polygons:
        return np.zeros(hw, np.bool_)
    parts = coco_mask.frPyObjects([list(polygon) for polygon in polygons], height, width)
    return np.ascontiguousarray(coco_mask.decode(coco_mask.merge(parts)).astype(np.bool_))


def clip(polygons: Sequence[Sequence[float]], hw: tuple[int, int]) -> list[list[float]]:
    """What of polygons lies in an image of `hw`: those that lie in it as they are, of the others the part inside, in
    several where the border cuts them apart. Those outside, or without area, are gone.

    Corners must be finite and near enough for pycocotools: polygons that cross themselves are drawn, and come back
    along the edges of their pixels.
    """
    kept: list[list[float]] = []
    for polygon in polygons:
        corners = np.array(polygon, np.float64).reshape(-1, 2)
        if (corners >= 0).all() and (corners <= hw[::-1]).all():
            kept += [list(polygon)] * (_area(corners) > LEAST_AREA)
            continue
        if (loops := _inside(corners, hw)) is None:
            kept += [[float(each) for each in part] for part in encode(decode([polygon], hw))]
        else:
            kept += [loop.ravel().tolist() for loop in loops if _area(loop) > LEAST_AREA]
    return kept


def reaches_out(polygons: Sequence[Sequence[float]], hw: tuple[int, int]) -> bool:
    """Whether a corner lies beyond the border by more than rounding."""
    corners = np.array([side for polygon in polygons for side in polygon], np.float64).reshape(-1, 2)
    return bool((corners < -LEAST_AREA).any() or (corners > np.add(hw[::-1], LEAST_AREA)).any())


def area(polygons: Sequence[Sequence[float]]) -> float:
    """The areas that polygons enclose, added up."""
    return sum(_area(np.array(polygon, np.float64).reshape(-1, 2)) for polygon in polygons)


def _area(corners: NDArray[np.float64]) -> float:
    return abs(_shoelace(corners))


def _shoelace(corners: NDArray[np.float64]) -> float:
    x, y = (corners - corners[0]).T
    return float(x @ np.roll(y, -1) - np.roll(x, -1) @ y) / 2


def _inside(corners: NDArray[np.float64], hw: tuple[int, int]) -> list[NDArray[np.float64]] | None:
    """The parts of a polygon in an image; `None` where they are better told from its pixels, as for `_one_side`."""
    loops = [corners]
    for axis, sign, border in ((0, 1, 0), (0, -1, hw[1]), (1, 1, 0), (1, -1, hw[0])):
        parts = []
        for loop in loops:
            if (found := _one_side(loop, axis, sign, border)) is None:
                return None
            parts += found
        loops = parts
    areas = [_shoelace(loop) for loop in loops]
    return None if min(areas, default=0) < -LEAST_AREA and max(areas) > LEAST_AREA else loops


def _one_side(corners: NDArray[np.float64], axis: int, sign: int, border: float) -> list[NDArray[np.float64]] | None:
    """The parts of a polygon on one side of a vertical (axis 0) or horizontal line; `None` where it crosses itself so
    that they cannot be told, or the line very often.

    On this side the boundary is in chains that come in over the line and go out over it, in turns along the line: the
    polygon lies between the first and the second crossing, the third and the fourth, and so on, which closes the
    chains. Corners on the line count as beyond it.
    """
    depth = sign * (corners[:, axis] - border)
    if (depth >= 0).all():
        return [corners]
    inside = depth > 0
    first, last = np.flatnonzero(inside & ~np.roll(inside, 1)), np.flatnonzero(inside & ~np.roll(inside, -1))
    if len(first) > MOST_CROSSINGS:
        return None
    if len(first) and last[0] < first[0]:  # the last chain goes on at the first corner
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
    pairs = (order[1::2], order[::2]) if comes_in else (order[::2], order[1::2])  # there are as many as before
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
    """Where the edge between two corners crosses a line."""
    if outside[axis] == border:
        return outside.copy()
    share = (border - inside[axis]) / (outside[axis] - inside[axis])
    point = inside + share * (outside - inside)
    point[axis] = border
    return np.asarray(point)


def _crop(mask: NDArray[np.bool_], left: int, top: int) -> tuple[NDArray[np.bool_], int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return mask[:0, :0], left, top
    y, x = int(rows[0]), int(columns[0])
    return mask[y : rows[-1] + 1, x : columns[-1] + 1], left + x, top + y


def _trace(mask: NDArray[np.bool_]) -> list[Loop]:
    """All boundaries of the mask: around each region clockwise (on the screen), around each hole the other way.

    The boundary is a set of straight runs, east along the top of pixels, south along their right side, and so on.
    Runs of one heading neither nest nor cross, so along their rows or columns the n-th start belongs to the n-th end.
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
    """Corners as row * columns + column; along rows for runs east and west, along columns for the others."""
    if heading in "EW":
        return np.flatnonzero(corners)
    columns, rows = np.nonzero(corners.T)
    return np.asarray(rows * corners.shape[1] + columns)


def _link(starts: dict[str, NDArray[np.int64]], ends: dict[str, NDArray[np.int64]], columns: int) -> list[Loop]:
    """Runs into loops. A run turns right where it can, so that pixels that touch at a corner only stay apart."""
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
    """What keeps a boundary from being one simple polygon: itself if it is around a hole, else the pockets that its
    region touches itself around. The boundary is taken apart where it comes back to a corner; of the simple loops that
    this gives, the pockets are those that run the other way."""
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
    """The label of the region that a loop bounds: a loop begins with a run east, and its pixels are just below that."""
    x, y = loop[0]
    return int(labels[y, x])


def _cut(region: NDArray[np.bool_], holes: list[Loop], left: int, top: int) -> list[tuple[NDArray[np.bool_], int, int]]:
    """A region in two, along a line through its middle hole or pocket, down or across, whichever opens more of them."""
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
