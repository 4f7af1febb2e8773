"""From SAM's low-resolution logits to masks of the image: only where a mask begins or ends are its pixels computed.

Upscaling is linear and works on rows and columns apart, so it is rows @ logits @ columns.T with two matrices, and any
part of the result can be computed alone. It averages: pixels that are computed from cells above a bound are above it,
and so for cells below it. On a CPU the image is cut into tiles; those inside and outside of the mask need no products.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from text2seg.grids import tight_box
from text2seg.records import Box
from text2seg.runtime import FULL, autocast

TILE = 128
"""Side of a tile, pixels of the image. On other devices than a CPU the whole image is one tile, because many small
products take longer there."""


@dataclass(frozen=True, slots=True, eq=False)
class TightMask:
    """A mask bool[h, w] inside its tight box `xywh` of the image. `stability` is the IoU of the masks at a higher and
    at a lower threshold."""

    mask: NDArray[np.bool_]
    xywh: Box
    stability: float


class Upscaling:
    """Upscales logits of one image. `rows` float32 [H, h] and `columns` float32 [W, w] are on the CPU."""

    def __init__(self, rows: Tensor, columns: Tensor, *, threshold: float, device: torch.device) -> None:
        """
        Args:
            threshold: pixels with a logit above it are in the mask.
            device: computes the products.
        """
        tile = TILE if device.type == "cpu" else max(len(rows), len(columns))
        self._rows, self._columns = (_Axis(matrix, tile, device) for matrix in (rows, columns))
        self._threshold, self._device = threshold, device
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
        rows, columns, (top, left) = self._rows, self._columns, origin
        inside = around = 0  # pixels above the higher and above the lower threshold
        part = torch.tensor(logits, dtype=torch.float32, device=self._device)
        with autocast(self._device, FULL):
            for row in np.flatnonzero(touched.any(1)).tolist():
                band = None if full[row, touched[row]].all() else rows.weights[row] @ part[rows.cells[row]]
                of_row = mask[rows.pixels[row].start - top : rows.pixels[row].stop - top]
                for column in np.flatnonzero(touched[row]).tolist():
                    pixels = columns.pixels[column]
                    of_tile = of_row[:, pixels.start - left : pixels.stop - left]
                    if band is None or full[row, column]:
                        of_tile[:] = True
                        inside, around = inside + of_tile.size, around + of_tile.size
                        continue
                    tile = band[:, columns.cells[column]] @ columns.weights[column].T
                    of_tile[:] = (tile > self._threshold).cpu().numpy()
                    if offset:
                        inside += int((tile > self._threshold + offset).sum())
                        around += int((tile > self._threshold - offset).sum())
        return inside / around if offset and around else 1.0


class _Axis:
    """One axis cut into tiles: of each, its `pixels`, the `cells` that they are computed from, and their `weights`
    float32 [pixels, cells]. `members` float32 [tiles, all cells] is 1 for a tile's cells; `lengths` counts them."""

    def __init__(self, matrix: Tensor, tile: int, device: torch.device) -> None:
        used = matrix.numpy() != 0
        edges = [*range(0, len(used), tile), len(used)]
        self.pixels = [slice(*both) for both in pairwise(edges)]
        starts = np.minimum.reduceat(used.argmax(1), edges[:-1]).tolist()
        ends = np.maximum.reduceat(used.shape[1] - used[:, ::-1].argmax(1), edges[:-1]).tolist()
        self.cells = [slice(*both) for both in zip(starts, ends, strict=True)]
        self.members = np.zeros((len(starts), used.shape[1]), np.float32)
        for member, cells in zip(self.members, self.cells, strict=True):
            member[cells] = 1
        self.lengths = self.members.sum(1)
        self.weights = [
            matrix[pixels, cells].contiguous().to(device) for pixels, cells in zip(self.pixels, self.cells, strict=True)
        ]


def stretched(cells: Tensor, length: int) -> Tensor:
    """Resize one axis bilinearly, as `interpolate` does for images: [length, C] from [n, C]."""
    return F.interpolate(cells.T[None], length, mode="linear", align_corners=False)[0].T
