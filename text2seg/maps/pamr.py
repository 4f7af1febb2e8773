"""Pixel-adaptive mask refinement: maps drawn to the edges of the picture.

Source: Araslanov and Roth, "Single-Stage Semantic Segmentation from Image Labels" (arXiv 2005.08104), section 3.2.
Every pixel becomes, again and again, the mean of pixels around it, in which those of its own colour weigh most.
10 rounds with dilations 8 and 16 are what NACLIP (arXiv 2404.08181) uses on the maps of a CLIP.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PilImage
from torch import Tensor
from torch.nn import functional as F

from text2seg.records import Image

ITERATIONS = 10
DILATIONS = (8, 16)
CONTRAST = 0.1  # how many local standard deviations apart two colours are when a neighbour's weight falls by e
WORKING_SIDE = 448
STEPS = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)]
NEIGHBOURS = [step for step in STEPS if step != (0, 0)]


def refine_maps(maps: Tensor, image: Image) -> Tensor:
    """Maps float32 [Q, gh, gw] that cover the image, drawn to its edges.

    Returns:
        float32 [Q, h, w]: the grid is the image with a long side of at most 448 pixels.
    """
    height, width = image.hw
    scale = min(1.0, WORKING_SIDE / max(height, width))
    hw = max(round(height * scale), 1), max(round(width * scale), 1)
    picture = PilImage.fromarray(image.pixels).resize(hw[::-1], PilImage.Resampling.BILINEAR)
    guide = torch.from_numpy(np.array(picture, np.float32)).permute(2, 0, 1).to(maps.device) / 255
    fine = F.interpolate(maps.float()[None], size=hw, mode="bilinear", align_corners=False)[0]
    return pamr(guide, fine)


def pamr(guide: Tensor, maps: Tensor, *, iterations: int = ITERATIONS, dilations: Sequence[int] = DILATIONS) -> Tensor:
    """Maps float [Q, H, W] after so many rounds of the local mean that the guide's colours, float [C, H, W], weigh."""
    weights = affinity(guide, dilations)
    for _ in range(iterations):
        refined = torch.zeros_like(maps)
        for weight, neighbour in zip(weights, shifted(maps, dilations, NEIGHBOURS), strict=True):
            refined.addcmul_(weight, neighbour)
        maps = refined
    return maps


def affinity(guide: Tensor, dilations: Sequence[int]) -> Tensor:
    """How much each neighbour counts: float [8 · dilations, H, W], which sums to 1 over the neighbours.

    softmax of −|I_i − I_j| / (0.1 · σ_i), averaged over the channels, where σ_i is the standard deviation of the pixel
    and its neighbours of all dilations (the pixel counts once for each, as in the original).
    """
    spread = torch.stack(list(shifted(guide, dilations, STEPS))).std(0)
    nearness = [
        (-(guide - neighbour).abs() / (CONTRAST * spread + 1e-8)).mean(0)
        for neighbour in shifted(guide, dilations, NEIGHBOURS)
    ]
    return torch.stack(nearness).softmax(0)


def shifted(images: Tensor, dilations: Sequence[int], steps: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
    """Views [K, H, W] in which each pixel is its neighbour at step times dilation; at the border the edge goes on."""
    height, width = images.shape[-2:]
    for dilation in dilations:
        padded = F.pad(images[None], [dilation] * 4, mode="replicate")[0]
        for row, column in steps:
            top, left = dilation * (1 + row), dilation * (1 + column)
            yield padded[:, top : top + height, left : left + width]


def on_grid(maps: NDArray[np.float32], grid_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Maps float32 [Q, h, w] averaged over the cells of a coarser grid; on their own grid they stay as they are."""
    if maps.shape[1:] == grid_hw:
        return maps
    return F.adaptive_avg_pool2d(torch.from_numpy(np.array(maps)), grid_hw).numpy()
