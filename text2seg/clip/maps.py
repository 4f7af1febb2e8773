"""From features to maps: cosines, feature surgery, presence of patches, refinement to the edges of the image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PilImage
from torch import Tensor
from torch.nn import functional as F

from text2seg.records import Image


def cosines(tokens: Tensor, texts: Tensor) -> Tensor:
    """Cosine of every image token and text: unit features [..., N, C] and [Q, C] give [..., N, Q]."""
    return tokens @ texts.T


def without_empty_text(tokens: Tensor, texts: Tensor, empty: Tensor) -> Tensor:
    """Feature surgery for single queries: what the empty text [C] lights up too is taken off.

    Unit features [..., N, C] and [Q, C] give [..., N, Q]; the queries do not influence one another.
    """
    return tokens @ (texts - empty).T


def without_label_set(tokens: Tensor, texts: Tensor) -> Tensor:
    """Feature surgery with a label set: what all its n ≥ 2 texts light up is taken off.

    `w = softmax(2·cos(CLS, texts))`, divided by its mean over the set; `S' = w·cos − mean of w·cos over the set`.
    Each image weighs the texts by its own CLS.

    Args:
        tokens: unit features [..., N, C], CLS first.
        texts: unit features [n, C].

    Returns:
        float [..., N, n].

    Raises:
        ValueError: the set has fewer than two texts, for which this is 0 everywhere.
    """
    count = texts.shape[0]
    if count < 2:
        raise ValueError(f"label-set feature surgery needs two labels or more, got {count}")
    similarity = cosines(tokens, texts)
    weights = (2 * similarity[..., :1, :]).softmax(-1) * count
    weighted = weights * similarity
    return weighted - weighted.mean(-1, keepdim=True)


TEMPLATE = "a photo of a {}."  # one is enough here, and a vocabulary times 85 templates would take long to encode
TOO_CLOSE = 0.7
"""Distractors whose text is this close to the query's, both taken from their mean, are other words for it."""


@dataclass(frozen=True, slots=True)
class PresenceModel:
    """What presence needs to know of one CLIP.

    `distractors` are things that images show. A patch's probability p becomes sigmoid(slope · logit(p) + offset):
    slope and offset are fitted so that 0.5 is where as many present things are lost as absent ones are found.
    `threshold` is the presence below which a thing counts as absent, where nobody says otherwise.
    """

    distractors: tuple[str, ...]
    slope: float = 1.0
    offset: float = 0.0
    threshold: float = 0.0

    @classmethod
    def of_demo(cls, things: tuple[str, ...]) -> PresenceModel:
        """As scripts/fit_presence.py fitted it to the demo CLIP's usual maps."""
        return cls(things, slope=0.956, offset=2.47, threshold=0.5)


def patch_presence(
    patches: Tensor,
    texts: Tensor,
    names: Sequence[Sequence[str]],
    others: Tensor,
    model: PresenceModel,
    *,
    scale: float,
) -> Tensor:
    """How sure each patch is that it shows the query, float32 [N, Q] in [0, 1]; presence is the highest of them.

    Args:
        patches: unit features [N, C] of the image's patches.
        texts: unit features [Q, C] of the queries.
        names: the wordings of each query, so that it does not compete with itself.
        others: unit features [D + 1, C] of the distractors and, last, of the empty text.
        scale: what CLIP multiplies cosines by (the exponential of its logit scale).
    """
    counted = ~_same_thing(texts, names, others, model.distractors)
    ours = scale * patches @ texts.T
    theirs = scale * patches @ others.T
    # One row of exponentials serves all queries: each leaves out the distractors that mean the same as it.
    highest = torch.maximum(theirs.amax(1, keepdim=True), ours.amax(1, keepdim=True))
    rest = (theirs - highest).exp() @ counted.T.to(theirs.dtype)
    logits = ours - highest - rest.clamp(min=1e-30).log()
    return torch.sigmoid(model.slope * logits + model.offset)


def _same_thing(texts: Tensor, names: Sequence[Sequence[str]], others: Tensor, distractors: Sequence[str]) -> Tensor:
    """bool [Q, D + 1]: which distractors are other words for a query; the empty text never is."""
    mean = others[:-1].mean(0)
    close = F.normalize(texts - mean, dim=-1) @ F.normalize(others - mean, dim=-1).T > TOO_CLOSE
    close[:, :-1] |= _shared_words(tuple(map(tuple, names)), tuple(distractors)).to(close.device)
    close[:, -1] = False
    return close


@lru_cache(maxsize=64)
def _shared_words(names: tuple[tuple[str, ...], ...], distractors: tuple[str, ...]) -> Tensor:
    """bool [Q, D]: which distractors have a word of the query's; the same for every image, and slow for long lists."""
    theirs = [set(other.lower().split()) for other in distractors]
    mine = [{word for name in wordings for word in name.lower().split()} for wordings in names]
    shared = [not words.isdisjoint(others) for words in mine for others in theirs]
    return torch.tensor(shared, dtype=torch.bool, device="cpu").reshape(len(names), len(distractors))


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
    small = PilImage.fromarray(image.pixels).resize(hw[::-1], PilImage.Resampling.BILINEAR)
    guide = torch.from_numpy(np.array(small, np.float32)).permute(2, 0, 1).to(maps.device) / 255
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
