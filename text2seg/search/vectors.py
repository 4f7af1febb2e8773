"""A picture as a few vectors: those of its patches that differ most from each other.

A small thing is one or two patches of many hundred. It hardly moves the CLS token or the mean, and k-means gives its
clusters to the background. Patches that lie far from all others chosen so far, one after the other, keep it: no patch
is left farther from a chosen one than need be, up to a factor of two.

Source: T. F. Gonzalez, "Clustering to minimize the maximum intercluster distance", Theoretical Computer Science 38
(1985), the greedy algorithm. What else was measured stands in docs/measurements/search.md.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from text2seg.maps.clip import ImageTokens
from text2seg.runtime import FULL, autocast

VECTORS = 16


@torch.inference_mode()
def picture_vectors(tokens: ImageTokens, count: int = VECTORS) -> NDArray[np.float32]:
    """Unit vectors float32 [min(count, patches), C]; the first is the patch that is least like the picture's mean."""
    patches = tokens.features[1:]
    with autocast(patches.device, FULL):  # no autocast of the caller's
        chosen = _farthest(patches, count)
    return np.ascontiguousarray(torch.cat(chosen).float().cpu().numpy())


def _farthest(patches: Tensor, count: int) -> list[Tensor]:
    """Patches [1, C], each the one that is least like those before it."""
    chosen = [_least(patches, patches @ patches.mean(0))]
    closest = patches @ chosen[0][0]  # of each patch, the cosine to the nearest one chosen
    while len(chosen) < min(count, len(patches)):
        chosen.append(_least(patches, closest))
        closest = torch.maximum(closest, patches @ chosen[-1][0])
    return chosen


def _least(patches: Tensor, values: Tensor) -> Tensor:
    """The patch [1, C] of the lowest value; its number stays on the device."""
    return patches.index_select(0, values.argmin()[None])
