"""From SAM's low-resolution logits to masks of the image: only the part of a mask that is not empty is computed.

Upscaling is linear and works on rows and columns apart, so it is rows @ logits @ columns.T with two matrices, and any
part of the result can be computed alone. It averages: a pixel is above a bound only if a cell that it is computed from
is. For a mask that covers a twentieth of a large photograph that is ten times as fast as upscaling everything.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from text2seg.grids import place, tight_box
from text2seg.records import Box
from text2seg.runtime import FULL, autocast


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
        self._rows, self._columns = rows.to(device), columns.to(device)
        self._reaches = [_Reach(matrix.numpy() != 0) for matrix in (rows, columns)]
        self._threshold, self._device = threshold, device
        self.image_hw = len(rows), len(columns)

    def mask(self, logits: NDArray[np.float32], offset: float = 0.0) -> TightMask | None:
        """Return the mask of logits [h, w]; None if it is empty. The stability is that at the threshold plus and minus
        `offset`."""
        near: NDArray[np.bool_] = logits > self._threshold - offset
        rows, columns = (reach.of(np.any(near, axis=1 - axis)) for axis, reach in enumerate(self._reaches))
        if rows is None or columns is None:
            return None
        part = torch.tensor(logits[rows.cells, columns.cells], dtype=torch.float32, device=self._device)
        to_rows, to_columns = self._rows[rows.pixels, rows.cells], self._columns[columns.pixels, columns.cells]
        with autocast(self._device, FULL):
            window = to_rows @ part @ to_columns.T
        mask: NDArray[np.bool_] = (window > self._threshold).cpu().numpy()
        tight = tight_box(mask)
        if tight is None:
            return None
        stability = 1.0
        if offset:
            inside, around = (int((window > self._threshold + sign * offset).sum()) for sign in (1, -1))
            stability = inside / around
        x, y, width, height = tight
        tight_mask = mask[y : y + height, x : x + width].copy()
        return TightMask(tight_mask, (columns.pixels.start + x, rows.pixels.start + y, width, height), stability)

    def in_image(self, logits: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return the mask of logits [h, w] as bool[H, W]."""
        found = self.mask(logits)
        return np.zeros(self.image_hw, np.bool_) if found is None else place(found.mask, found.xywh, self.image_hw)


@dataclass(frozen=True, slots=True)
class _Range:
    """Pixels that some cells reach, and the cells that these pixels are computed from."""

    pixels: slice
    cells: slice


class _Reach:
    """Which pixels a cell reaches along one axis. `used` bool[pixels, cells] marks the cells of each pixel."""

    def __init__(self, used: NDArray[np.bool_]) -> None:
        pixels, cells = used.shape
        self._first, self._end = used.argmax(0), pixels - used[::-1].argmax(0)
        self._reaches: NDArray[np.bool_] = np.any(used, axis=0)
        self._starts, self._ends = used.argmax(1), cells - used[:, ::-1].argmax(1)

    def of(self, marked: NDArray[np.bool_]) -> _Range | None:
        """Return the range of marked cells bool[cells]; None if they reach no pixel."""
        marked = marked & self._reaches
        if not marked.any():
            return None
        pixels = slice(int(self._first[marked].min()), int(self._end[marked].max()))
        return _Range(pixels, slice(int(self._starts[pixels].min()), int(self._ends[pixels].max())))


def stretched(cells: Tensor, length: int) -> Tensor:
    """Resize one axis bilinearly, as `interpolate` does for images: [length, C] from [n, C]."""
    return F.interpolate(cells.T[None], length, mode="linear", align_corners=False)[0].T
