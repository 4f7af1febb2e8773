"""From features to maps: cosines, feature surgery, patch presence, the map of a query with several parts or negatives,
and refinement of maps by PAMR.

Sources: feature surgery: Li et al., "CLIP Surgery" (arXiv 2304.05653). PAMR, pixel-adaptive mask refinement: Araslanov
and Roth, "Single-Stage Semantic Segmentation from Image Labels" (arXiv 2005.08104).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PilImage
from torch import Tensor
from torch.nn import functional as F

from text2seg.errors import QueryError
from text2seg.grids import minmax
from text2seg.queries import Query, Wordings
from text2seg.records import Image


def cosines(tokens: Tensor, texts: Tensor) -> Tensor:
    """Return the cosine of every image token and text: unit features [..., N, C] and [Q, C] give [..., N, Q]."""
    return tokens @ texts.T


def without_empty_text(tokens: Tensor, texts: Tensor, empty: Tensor) -> Tensor:
    """Feature surgery for single queries: subtract the cosine with the empty text [C].

    Unit features [..., N, C] and [Q, C] give [..., N, Q]; queries do not affect each other.
    """
    return tokens @ (texts - empty).T


def without_label_set(tokens: Tensor, texts: Tensor) -> Tensor:
    """Feature surgery with a label set: subtract the weighted mean over its n ≥ 2 texts.

    `w = softmax(2·cos(CLS, texts))`, divided by its mean over the set; `S' = w·cos − mean of w·cos over the set`.
    Each image weights the texts by its own CLS feature.

    Args:
        tokens: unit features [..., N, C], CLS first.
        texts: unit features [n, C].

    Returns:
        float [..., N, n].

    Raises:
        ValueError: the set has fewer than two texts; the result would be 0 everywhere.
    """
    count = texts.shape[0]
    if count < 2:
        raise ValueError(f"label-set feature surgery needs two labels or more, got {count}")
    similarity = cosines(tokens, texts)
    weights = (2 * similarity[..., :1, :]).softmax(-1) * count
    weighted = weights * similarity
    return weighted - weighted.mean(-1, keepdim=True)


def label_set(queries: Sequence[Wordings], labels: Sequence[str]) -> tuple[Wordings, ...]:
    """Return the queries, then the other labels, without duplicates.

    Raises:
        QueryError: there are fewer than two.
    """
    together = tuple(dict.fromkeys((*queries, *((label,) for label in labels))))
    if len(together) < 2:
        raise QueryError("a label set needs two labels or more: add labels, or use the redundancy `empty`")
    return together


def texts_of(queries: Iterable[Query]) -> list[Wordings]:
    """Return the texts that need a map each, without duplicates: the parts with their wordings, then the negatives."""
    queries = list(queries)
    parts = [part for query in queries for part in query.parts]
    negatives = [(negative,) for query in queries for negative in query.negatives]
    return list(dict.fromkeys([*parts, *negatives]))


@dataclass(frozen=True, slots=True, eq=False)
class QueryMap:
    """Components of a query's map, on the grid of the image tokens: `parts` float32 [parts, gh, gw], `patch_presence`
    float32 [gh, gw], and `negatives` float32 [negatives, gh, gw], the min-max maps of the negatives, 0 where the query
    itself scores higher."""

    parts: NDArray[np.float32]
    patch_presence: NDArray[np.float32]
    negatives: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 1, 1), np.float32))


def combine_maps(
    query: Query,
    row_of: dict[Wordings, int],
    scores: NDArray[np.float32],
    patch_presence: NDArray[np.float32],
) -> tuple[NDArray[np.float32], np.float32, QueryMap]:
    """Combine the maps of a query's parts and negatives.

    The positive scores of the negatives are subtracted from each part. Several parts are averaged after min-max
    scaling, as for `person+bench` in the original; their presence is the lowest of the parts.

    Args:
        row_of: the row of each part and negative in the arrays.
        scores: float32 [rows, h, w].
        patch_presence: float32 [rows, gh, gw].

    Returns:
        The map float32 [h, w], the presence in [0, 1], and the components of the map.
    """
    grid_hw = (patch_presence.shape[1], patch_presence.shape[2])
    rows = [row_of[part] for part in query.parts]
    parts = positive = scores[rows]
    if query.negatives:
        negative = scores[[row_of[(text,)] for text in query.negatives]]
        parts = positive - negative.max(0).clip(min=0)
    presence = patch_presence[rows].max((1, 2)).min()
    components = [on_grid(parts, grid_hw), np.minimum(patch_presence[rows].max(0), presence)]
    if query.negatives:
        positive, negative = on_grid(positive, grid_hw), on_grid(negative, grid_hw)
        components.append(np.where(negative > positive.max(0), minmax(negative), np.float32(0)))
    return parts[0] if len(parts) == 1 else minmax(parts).mean(0), presence, QueryMap(*components)


# ---- presence: how likely each patch shows a query, compared with distractors and the empty text

PRESENCE_TEMPLATE = "a photo of a {}."
"""One template is enough for presence; all distractors in 85 templates would take long to encode."""
TOO_CLOSE = 0.7
"""Cosine between the centred text features of a distractor and a query from which they count as synonyms."""


@dataclass(frozen=True, slots=True)
class PresenceModel:
    """Parameters of patch presence for one CLIP.

    `distractors` are names of objects that images often show. A patch's probability p is calibrated to
    sigmoid(slope · logit(p) + offset).
    """

    distractors: tuple[str, ...]
    slope: float = 1.0
    offset: float = 0.0


def patch_presence(
    patches: Tensor,
    texts: Tensor,
    names: Sequence[Sequence[str]],
    others: Tensor,
    model: PresenceModel,
    *,
    scale: float,
) -> Tensor:
    """Return the probability that each patch shows each query, float32 [N, Q] in [0, 1]. Presence is its maximum.

    Args:
        patches: unit features [N, C] of the image's patches.
        texts: unit features [Q, C] of the queries.
        names: the wordings of each query; distractors that mean the same are left out.
        others: unit features [D + 1, C] of the distractors, then of the empty text.
        scale: factor of CLIP on cosines (the exponential of its logit scale).
    """
    return torch.sigmoid(model.slope * log_odds(patches, texts, names, others, model, scale=scale) + model.offset)


def log_odds(
    patches: Tensor,
    texts: Tensor,
    names: Sequence[Sequence[str]],
    others: Tensor,
    model: PresenceModel,
    *,
    scale: float,
) -> Tensor:
    """Return the log-odds that each patch shows each query and not a distractor or nothing, float32 [N, Q], before
    calibration; arguments as for `patch_presence`."""
    counted = ~_synonyms(texts, names, others, model.distractors)
    query_logits = scale * patches @ texts.T
    other_logits = scale * patches @ others.T
    # The exponentials are shared by all queries; each query leaves out the distractors that mean the same.
    highest = torch.maximum(other_logits.amax(1, keepdim=True), query_logits.amax(1, keepdim=True))
    rest = (other_logits - highest).exp() @ counted.T.to(other_logits.dtype)
    return query_logits - highest - rest.clamp(min=1e-30).log()


def shows_something(patches: Tensor, others: Tensor, *, scale: float) -> Tensor:
    """Return the probability that each patch shows one of the distractors, and not nothing, float32 [N].

    Args:
        others: unit features [D + 1, C] of the distractors, then of the empty text. Distractors that mean the same as
            the empty text are left out.
    """
    logits = scale * patches @ others.T
    logits[:, :-1] = logits[:, :-1].masked_fill(like_nothing(others[:-1], others), -torch.inf)
    return 1 - logits.softmax(1)[:, -1]


def like_nothing(texts: Tensor, others: Tensor) -> Tensor:
    """Return whether texts [Q, C] mean the same as the empty text, the last of `others` [D + 1, C], bool [Q]."""
    mean = others[:-1].mean(0)
    return F.normalize(texts - mean, dim=-1) @ F.normalize(others[-1] - mean, dim=-1) > TOO_CLOSE


def _synonyms(texts: Tensor, names: Sequence[Sequence[str]], others: Tensor, distractors: Sequence[str]) -> Tensor:
    """Return bool [Q, D + 1]: whether a distractor is a synonym of a query. The empty text never is."""
    mean = others[:-1].mean(0)
    close = F.normalize(texts - mean, dim=-1) @ F.normalize(others - mean, dim=-1).T > TOO_CLOSE
    close[:, :-1] |= _shared_words(tuple(map(tuple, names)), tuple(distractors)).to(close.device)
    close[:, -1] = False
    return close


@lru_cache(maxsize=64)
def _shared_words(names: tuple[tuple[str, ...], ...], distractors: tuple[str, ...]) -> Tensor:
    """Return bool [Q, D]: whether a distractor shares a word with a query. Cached, because long lists are slow."""
    words_of_distractors = [set(other.lower().split()) for other in distractors]
    words_of_queries = [{word for name in wordings for word in name.lower().split()} for wordings in names]
    shared = [not words.isdisjoint(others) for words in words_of_queries for others in words_of_distractors]
    return torch.tensor(shared, dtype=torch.bool, device="cpu").reshape(len(names), len(distractors))


# ---- PAMR: refinement of maps to the edges of the image, by averaging neighbours, weighted by similar colour

ITERATIONS = 10
"""Rounds of local means."""
DILATIONS = (8, 16)
"""Distances of the eight neighbours, in pixels of the working image."""
CONTRAST = 0.1
"""Colour difference, in local standard deviations, at which the weight of a neighbour falls by a factor of e."""
WORKING_SIDE = 448
"""Longest side of the working image, in pixels."""
STEPS = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)]
NEIGHBOURS = [step for step in STEPS if step != (0, 0)]


def refine_maps(maps: Tensor, image: Image) -> Tensor:
    """Refine maps float32 [Q, gh, gw] that cover the image to its edges.

    Returns:
        float32 [Q, h, w], on the image scaled to a long side of at most 448 pixels.
    """
    height, width = image.hw
    scale = min(1.0, WORKING_SIDE / max(height, width))
    hw = max(round(height * scale), 1), max(round(width * scale), 1)
    small = PilImage.fromarray(image.pixels).resize(hw[::-1], PilImage.Resampling.BILINEAR)
    guide = torch.from_numpy(np.array(small, np.float32)).permute(2, 0, 1).to(maps.device) / 255
    upscaled = F.interpolate(maps.float()[None], size=hw, mode="bilinear", align_corners=False)[0]
    return pamr(guide, upscaled)


def pamr(guide: Tensor, maps: Tensor, *, iterations: int = ITERATIONS, dilations: Sequence[int] = DILATIONS) -> Tensor:
    """Average maps float [Q, H, W] with their neighbours, weighted by the colours of the guide float [C, H, W]."""
    weights = affinity(guide, dilations)
    for _ in range(iterations):
        refined = torch.zeros_like(maps)
        for weight, neighbour in zip(weights, shifted(maps, dilations, NEIGHBOURS), strict=True):
            refined.addcmul_(weight, neighbour)
        maps = refined
    return maps


def affinity(guide: Tensor, dilations: Sequence[int]) -> Tensor:
    """Return the weight of each neighbour, float [8 · dilations, H, W]; the weights of a pixel sum to 1.

    The weights are softmax(mean over channels of −|I_i − I_j| / (0.1 · σ_i)). σ_i is the standard deviation of the
    pixel and its neighbours at all dilations; the pixel counts once for each dilation, as in the original.
    """
    spread = torch.stack(list(shifted(guide, dilations, STEPS))).std(0)
    nearness = [
        (-(guide - neighbour).abs() / (CONTRAST * spread + 1e-8)).mean(0)
        for neighbour in shifted(guide, dilations, NEIGHBOURS)
    ]
    return torch.stack(nearness).softmax(0)


def shifted(images: Tensor, dilations: Sequence[int], steps: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
    """Yield views [K, H, W] shifted by each step times each dilation; borders repeat the edge pixels."""
    height, width = images.shape[-2:]
    for dilation in dilations:
        padded = F.pad(images[None], [dilation] * 4, mode="replicate")[0]
        for row, column in steps:
            top, left = dilation * (1 + row), dilation * (1 + column)
            yield padded[:, top : top + height, left : left + width]


def on_grid(maps: NDArray[np.float32], grid_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Average maps float32 [Q, h, w] over the cells of a coarser grid; maps on that grid are returned unchanged."""
    if maps.shape[1:] == grid_hw:
        return maps
    return F.adaptive_avg_pool2d(torch.from_numpy(np.array(maps)), grid_hw).numpy()
