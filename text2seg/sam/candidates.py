"""From SAM's candidates to segments: the choice among candidates, repeats removed, masks at full size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from text2seg.config import MaskSettings
from text2seg.grids import iou, map_score, resize
from text2seg.records import Candidates, SamPrompt, Segment, SimilarityMaps
from text2seg.sam.base import AnySam, SamEmbedding
from text2seg.sam.nms import suppress

SAM_WEIGHT, SEPARATION_WEIGHT, CONSTANT = 1.23, 0.76, -0.72
"""Least squares of candidates' true IoU on scenes of the demo world (scripts/fit_choice.py)."""


def by_sam(candidates: Candidates) -> NDArray[np.float32]:
    """How good each candidate is by SAM's predicted IoU alone, float32[K].

    Source: Kirillov et al., "Segment Anything" (arXiv 2304.02643): the masks are ranked by SAM's own score.
    """
    return candidates.scores


def by_map(masks: NDArray[np.bool_], candidates: Candidates, scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """How good each candidate is by the map and SAM together, float32[K]: the IoU that is to be expected of it.

    Args:
        masks: the candidates as bool[K, h, w], in the part of SAM's low-resolution frame that the image fills.
        scores: the query's min-max map [h, w] there.
    """
    quality = SAM_WEIGHT * candidates.scores + SEPARATION_WEIGHT * separation(masks, scores) + CONSTANT
    return quality.astype(np.float32)


def separation(masks: NDArray[np.bool_], scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """How well a map [h, w] tells the inside of each mask bool[K, h, w] from its outside: difference of the means."""
    flat, values = masks.reshape(len(masks), -1).astype(np.float32), scores.ravel()
    inside = flat.sum(1)
    mass = flat @ values
    apart: NDArray[np.float32] = mass / np.maximum(inside, 1) - (values.sum() - mass) / np.maximum(
        values.size - inside, 1
    )
    return apart


LEVEL = 0.7
"""The region's mask is what lies above this share of its peak."""
BELOW = 1e-3
"""Cells of other regions are cut off at this share below the level, or rounding while they are made larger would lift
some of them above it on some processors."""
WORST_QUALITY, LEAST_SHARED = 0.5, 0.1
"""SAM is overruled where the expected IoU of its best candidate and its IoU with the region are both below
these. All three are the best of a grid that loses none of the things (scripts/compare_options.py --fit)."""


def with_region(sam: AnySam, embedding: SamEmbedding, sam_prompt: SamPrompt, candidates: Candidates) -> Candidates:
    """The candidates and, last and with a score of 0, the aim's region: its part of the map, bilinear, less `LEVEL`.

    The logits are in SAM's low-resolution frame, as the others', so that all that is done with those works with it.
    """
    level = LEVEL * float(sam_prompt.scores[sam_prompt.region].max(initial=0))
    part = np.where(
        sam_prompt.region, sam_prompt.scores, np.minimum(sam_prompt.scores, level - BELOW * abs(level))
    ).astype(np.float32)
    side = candidates.logits.shape[-1]
    rows, columns = sam.filled(embedding, side)
    filled = resize(part[None], (rows, columns))[0] - np.float32(level)
    own = np.pad(filled, ((0, side - rows), (0, side - columns)), mode="edge")
    return Candidates(np.concatenate([candidates.logits, own[None]]), np.append(candidates.scores, np.float32(0)))


def or_region(
    sam: AnySam, embedding: SamEmbedding, sam_prompt: SamPrompt, candidates: Candidates, best: int, quality: float
) -> tuple[Candidates, int]:
    """The candidates and which is the best; where SAM is overruled, with the region as the last one, which then is.

    `quality` is the IoU that is to be expected of the best of SAM's.
    """
    if quality >= WORST_QUALITY:
        return candidates, best
    more = with_region(sam, embedding, sam_prompt, candidates)
    low = sam.coarse_masks(embedding, more)
    if not low[-1].any() or iou(low[best], low[-1]) >= LEAST_SHARED:
        return candidates, best
    return more, len(candidates)


def cut(
    sam: AnySam,
    embedding: SamEmbedding,
    maps: SimilarityMaps,
    query: int,
    answers: Sequence[tuple[SamPrompt, Candidates]],
    settings: MaskSettings,
) -> list[Segment]:
    """The segments of one query in one image, the best first.

    Of each aim the best candidate is chosen; of those that show the same thing one stays; beside the best, one that is
    expected to be bad is left out. All this happens at SAM's low resolution; only what stays is brought to full size.
    Masks that are empty are left out. With `fallback`, SAM's candidate may give way to the region of the map; it is as
    good as what it replaces then.
    """
    offered, chosen, masks, qualities = [], [], [], []
    for sam_prompt, candidates in answers:
        low = sam.coarse_masks(embedding, candidates)
        expected = by_map(low, candidates, resize(sam_prompt.scores[None], (low.shape[1], low.shape[2]))[0])
        quality = expected if settings.choice == "map" else by_sam(candidates)
        best = int(quality.argmax())
        qualities.append(quality[best])
        if settings.fallback:
            candidates, best = or_region(sam, embedding, sam_prompt, candidates, best, float(expected[best]))
            low = sam.coarse_masks(embedding, candidates)
        offered.append((sam_prompt, candidates))
        chosen.append(best)
        masks.append(low[best])
    kept = suppress(np.stack(masks), np.array(qualities), settings.overlap) if answers else []
    good = [*kept[:1], *(other for other in kept[1:] if qualities[other] >= settings.quality)]
    segments = [segment_of(sam, embedding, maps, query, *offered[index], chosen[index]) for index in good]
    return [segment for segment in segments if segment.area]


def segment_of(
    sam: AnySam,
    embedding: SamEmbedding,
    maps: SimilarityMaps,
    query: int,
    sam_prompt: SamPrompt,
    candidates: Candidates,
    chosen: int,
) -> Segment:
    """The segment that one candidate gives, at full size; its mask may be empty."""
    mask = sam.mask(embedding, candidates, chosen)
    return Segment(
        query=maps.queries[query],
        mask=mask,
        sam_score=float(candidates.scores[chosen]),
        map_score=map_score(maps.scores[query], mask),
        presence=sam_prompt.presence,
        points=sam_prompt.points,
        candidates=candidates,
        chosen=chosen,
    )
