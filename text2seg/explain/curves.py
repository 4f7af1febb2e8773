"""How far a saliency map can be trusted: what the score does when the picture's cells are taken away or put back in the
map's order (deletion and insertion, RISE, arXiv 1806.07421), and whether the map's peak lies on the thing (the pointing
game, arXiv 1608.00507).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from text2seg.explain.catalogue.faithfulness import Fill
from text2seg.grids import minmax

Scorer = Callable[[Tensor], Tensor]
"""Normalised pixels float32 [B, 3, H, W] to scores float32 [B]."""

BLUR = 0.1
"""Standard deviation of the blur as a share of the picture's shorter side: so much that nothing can be told apart."""


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """The score, float32 [steps + 1], while the share of cells that is gone (`deletion`) or back (`insertion`) grows
    from 0 to 1 in equal steps. Of a faithful map the one falls early and the other rises early."""

    deletion: NDArray[np.float32]
    insertion: NDArray[np.float32]

    @property
    def deleted(self) -> float:
        """Area under the deletion curve: the mean score on the way; lower is better."""
        return area(self.deletion)

    @property
    def inserted(self) -> float:
        """Area under the insertion curve; higher is better."""
        return area(self.insertion)

    @property
    def gap(self) -> float:
        """How much more the score is with what the map calls important than without it."""
        return self.inserted - self.deleted


def area(curve: NDArray[np.float32]) -> float:
    """Under a curve of equal steps over [0, 1], by trapezes.

    >>> area(np.array([1, 0, 0], np.float32))
    0.25
    """
    return float((curve[:-1] + curve[1:]).mean() / 2)


def ranks(saliency: NDArray[np.float32]) -> NDArray[np.int64]:
    """The place of every cell of a map [gh, gw] in its order, 0 for the most salient; int64 [gh, gw].

    Cells that are alike come in an order of chance, the same every time: many methods give 0 to most cells, and any
    other order would favour a side of the picture.
    """
    values = minmax(saliency).ravel()
    chance = np.random.default_rng(0).permutation(values.size)
    places = np.empty(values.size, np.int64)
    places[np.lexsort((chance, -values))] = np.arange(values.size)
    return places.reshape(saliency.shape)


def filling(pixels: Tensor, fill: Fill) -> Tensor:
    """What stands where cells are gone, of the shape of `pixels` float32 [3, H, W]: the picture blurred beyond
    recognition, or the mean colour of what CLIP was trained on (0 in its pixels)."""
    if fill == "mean":
        return torch.zeros_like(pixels)
    planes = pixels.permute(1, 2, 0).cpu().numpy()
    blurred = cv2.GaussianBlur(planes, (0, 0), BLUR * min(planes.shape[:2]))
    return torch.from_numpy(blurred).permute(2, 0, 1).contiguous()


def curves(
    score: Scorer,
    pixels: Tensor,
    filled: Tensor,
    saliency: NDArray[np.float32],
    *,
    steps: int,
    ends: tuple[float, float] | None = None,
) -> Curves:
    """Deletion and insertion by a map, all pictures between in one call of `score`.

    Args:
        pixels: float32 [3, H, W], normalised.
        filled: of the same shape, see `filling`.
        saliency: float32 [gh, gw], covers the picture.
        steps: equal shares of the cells, at least 2.
        ends: the scores of `pixels` and of `filled` where they are known: they are the same for all maps.
    """
    places = torch.from_numpy(ranks(saliency))
    shares = torch.arange(1, steps, dtype=torch.float64, device="cpu") / steps * places.numel()
    first = (places[None] < shares[:, None, None]).float()
    first = F.interpolate(first[:, None], size=pixels.shape[1:], mode="nearest")  # [steps − 1, 1, H, W]
    between = torch.cat([torch.where(first > 0, filled, pixels), torch.where(first > 0, pixels, filled)])
    full, blank = ends or score(torch.stack([pixels, filled])).tolist()
    without, with_first = score(between).float().cpu().numpy().reshape(2, -1)
    return Curves(
        np.concatenate([[full], without, [blank]]).astype(np.float32),
        np.concatenate([[blank], with_first, [full]]).astype(np.float32),
    )


def points_at(saliency: NDArray[np.float32], mask: NDArray[np.bool_]) -> bool:
    """Whether the middle of the map's highest cell lies on the mask bool [H, W]. A map that is the same everywhere
    points nowhere."""
    stretched = minmax(saliency)
    if not stretched.any():
        return False
    row, column = np.unravel_index(stretched.argmax(), stretched.shape)
    (rows, columns), (height, width) = stretched.shape, mask.shape
    return bool(mask[int((row + 0.5) * height / rows), int((column + 0.5) * width / columns)])
