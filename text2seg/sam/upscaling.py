"""From SAM's low-resolution logits to masks of the image: only where a mask begins or ends are its pixels computed.

Upscaling is linear and works on rows and columns apart, so it is rows @ logits @ columns.T with two matrices, and any
part of the result can be computed alone. It averages: pixels that are computed from cells above a bound are above it,
and so for cells below it. The image is cut into tiles; those inside and outside of the mask need no products.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from text2seg.grids import tight_box
from text2seg.records import Box

TILE = 128
"""Side of a tile, pixels of the image. Its products are so small that numpy uses one thread for them: more would wait
for each other on a busy machine."""
MOST_TILES = 64
"""Number of tiles that are computed at once."""


@dataclass(frozen=True, slots=True, eq=False)
class TightMask:
    """A mask bool[h, w] inside its tight box `xywh` of the image. `stability` is the IoU of the masks at a higher and
    at a lower threshold."""

    mask: NDArray[np.bool_]
    xywh: Box
    stability: float


class Upscaling:
    """Upscales logits of one image, with the matrices `rows` float32 [H, h] and `columns` float32 [W, w]."""

    def __init__(self, rows: NDArray[np.float32], columns: NDArray[np.float32], *, threshold: float) -> None:
        """
        Args:
            threshold: pixels with a logit above it are in the mask.
        """
        self._rows, self._columns = _Axis(rows), _Axis(columns)
        self._threshold = threshold
        self.image_hw = len(rows), len(columns)

    def mask(self, logits: NDArray[np.float32], offset: float = 0.0) -> TightMask | None:
        """Return the mask of logits [h, w]; None if it is empty. The stability is that at the threshold plus and minus
        `offset`."""
        touched, full = self._tiles(logits, offset)
        box = tight_box(touched)
        if box is None:
            return None
        left, top = self._columns.pixels[box[0]].start, self._rows.pixels[box[1]].start
        right, bottom = self._columns.pixels[box[0] + box[2] - 1].stop, self._rows.pixels[box[1] + box[3] - 1].stop
        mask = np.zeros((bottom - top, right - left), np.bool_)
        stability = self._fill(mask, (top, left), logits, touched, full, offset)
        tight = tight_box(mask)
        if tight is None:
            return None
        x, y, width, height = tight
        return TightMask(mask[y : y + height, x : x + width].copy(), (left + x, top + y, width, height), stability)

    def in_image(self, logits: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return the mask of logits [h, w] as bool[H, W]."""
        mask = np.zeros(self.image_hw, np.bool_)
        self._fill(mask, (0, 0), logits, *self._tiles(logits, 0.0), 0.0)
        return mask

    def _tiles(self, logits: NDArray[np.float32], offset: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which tiles, bool [rows, columns], may have pixels above the lower threshold, and which are above the
        higher one everywhere."""
        touched = self._counts(logits > self._threshold - offset) > 0
        full = self._counts(logits > self._threshold + offset) == np.outer(self._rows.lengths, self._columns.lengths)
        return touched, full

    def _counts(self, marked: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return how many of the cells that each tile is computed from are marked: [rows, columns] of tiles."""
        counts: NDArray[np.float32] = self._rows.members @ marked.astype(np.float32) @ self._columns.members.T
        return counts

    def _fill(
        self,
        mask: NDArray[np.bool_],
        origin: tuple[int, int],
        logits: NDArray[np.float32],
        touched: NDArray[np.bool_],
        full: NDArray[np.bool_],
        offset: float,
    ) -> float:
        """Draw the touched tiles into a mask that begins at the row and column `origin` of the image. Return the
        stability, or 1 without an offset."""
        inside = around = 0  # pixels above the higher and above the lower threshold
        for row, column in np.argwhere(touched & full).tolist():
            of_tile = self._pixels(mask, origin, row, column)
            of_tile[:] = True
            inside, around = inside + of_tile.size, around + of_tile.size
        edges = np.argwhere(touched & ~full)
        for start in range(0, len(edges), MOST_TILES):
            places = edges[start : start + MOST_TILES]
            for (row, column), tile in zip(places.tolist(), self._tiles_of(logits, places), strict=True):
                of_tile = self._pixels(mask, origin, row, column)
                values = tile[: of_tile.shape[0], : of_tile.shape[1]]
                np.greater(values, self._threshold, out=of_tile)
                if offset:
                    inside += int(np.count_nonzero(values > self._threshold + offset))
                    around += int(np.count_nonzero(values > self._threshold - offset))
        return inside / around if offset and around else 1.0

    def _tiles_of(self, logits: NDArray[np.float32], places: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return the logits of the tiles at rows and columns `places` [n, 2], float32 [n, TILE, TILE]. A smaller tile
        at the end of an axis is filled up with zeros."""
        rows, columns = places.T
        cells = logits[self._rows.cells[rows][:, :, None], self._columns.cells[columns][:, None, :]]
        tiles: NDArray[np.float32] = (
            self._rows.weights[rows] @ cells @ self._columns.weights[columns].transpose(0, 2, 1)
        )
        return tiles

    def _pixels(self, mask: NDArray[np.bool_], origin: tuple[int, int], row: int, column: int) -> NDArray[np.bool_]:
        """Return the part of a mask that is a tile of the image."""
        rows, columns, (top, left) = self._rows.pixels[row], self._columns.pixels[column], origin
        return mask[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]


class _Axis:
    """One axis cut into n tiles. Of each tile: its `pixels`, the `cells` that they are computed from, int64 [n, k], and
    their `weights`, float32 [n, TILE, k]. `members` float32 [n, all cells] is 1 for a tile's cells; `lengths` counts
    them."""

    def __init__(self, matrix: NDArray[np.float32]) -> None:
        length, count = matrix.shape
        used = matrix != 0
        edges = [*range(0, length, TILE), length]
        self.pixels = [slice(*both) for both in pairwise(edges)]
        starts = np.minimum.reduceat(used.argmax(1), edges[:-1])
        ends = np.maximum.reduceat(count - used[:, ::-1].argmax(1), edges[:-1])
        places = np.arange(count)
        self.members = ((places >= starts[:, None]) & (places < ends[:, None])).astype(np.float32)
        self.lengths = self.members.sum(1)
        most = int((ends - starts).max())  # tiles of fewer cells get more of them, whose weights are 0
        self.cells = np.minimum(starts, count - most)[:, None] + np.arange(most)
        filled = np.zeros((len(starts) * TILE, count), np.float32)
        filled[:length] = matrix
        self.weights = np.take_along_axis(filled.reshape(len(starts), TILE, count), self.cells[:, None, :], 2)


def stretched(cells: Tensor, length: int) -> Tensor:
    """Resize one axis bilinearly, as `interpolate` does for images: [length, C] from [n, C]."""
    return F.interpolate(cells.T[None], length, mode="linear", align_corners=False)[0].T
