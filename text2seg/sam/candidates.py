"""From SAM's candidates to segments: choose a candidate, remove repeats, upscale the masks, resolve overlaps.

Overlaps are found on masks instead of boxes: two objects side by side have boxes that overlap, and a part of an object
has a different box from the whole. Containment counts too, because a point on a wheel gives the wheel, and a point on
the car gives the car with its wheels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from text2seg.config import MaskSettings
from text2seg.grids import map_score, minmax, resize
from text2seg.model_card import Choice
from text2seg.queries import Query
from text2seg.records import Candidates, SamPrompt, Segment, Segmentation, SimilarityMaps
from text2seg.sam.base import AnySam, SamEmbedding

LEAST_SHARE = 0.7
"""Without a calibrated choice: share of the quality of its query's best segment that another segment needs."""


def by_sam(candidates: Candidates) -> NDArray[np.float32]:
    """Return the quality of each candidate by SAM's predicted IoU alone, float32 [K].

    Source: Kirillov et al., "Segment Anything" (arXiv 2304.02643), which ranks masks by this score.
    """
    return candidates.scores


def by_map(
    masks: NDArray[np.bool_], candidates: Candidates, scores: NDArray[np.float32], fitted: Choice | None = None
) -> NDArray[np.float32]:
    """Return the quality of each candidate, float32 [K], from SAM's score and the map's separation together.

    Args:
        masks: the candidates as bool [K, h, w] at SAM's low resolution, cropped to the image.
        scores: the query's min-max map [h, w] on the same grid.
        fitted: weights of both; the quality is then the expected IoU. Without them it is their product, which has
            nothing to fit: a mask must be good for SAM and on the map.
    """
    apart = separation(masks, scores)
    if fitted is None:
        quality = candidates.scores * apart.clip(min=0)
    else:
        quality = fitted.sam * candidates.scores + fitted.separation * apart + fitted.constant
    return quality.astype(np.float32)


def least_quality(best: float, settings: MaskSettings, fitted: Choice | None) -> float:
    """Return the quality that a segment needs beside the best one of its query."""
    if settings.quality is not None:
        return settings.quality
    return LEAST_SHARE * best if fitted is None else fitted.quality


def separation(masks: NDArray[np.bool_] | NDArray[np.float32], scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of a map [h, w] inside each mask minus its mean outside, float32 [K].

    Masks are bool [K, h, w], or float32 shares of cells.
    """
    flat, values = masks.reshape(len(masks), -1).astype(np.float32), scores.ravel()
    inside = flat.sum(1)
    mass = flat @ values
    apart: NDArray[np.float32] = mass / np.maximum(inside, 1) - (values.sum() - mass) / np.maximum(
        values.size - inside, 1
    )
    return apart


def cut(
    sam: AnySam,
    embedding: SamEmbedding,
    maps: SimilarityMaps,
    query: int,
    answers: Sequence[tuple[SamPrompt, Candidates]],
    settings: MaskSettings,
    fitted: Choice | None = None,
) -> list[Segment]:
    """Return the segments of one query in one image, the best first.

    Choose the best candidate of each prompt, suppress repeats, and drop masks of low quality, but never the best one.
    This happens at SAM's low resolution; only the remaining masks are upscaled. Empty masks are dropped.

    Args:
        query: the row of the query in `maps`.
        answers: each SAM prompt of the query with SAM's candidates.
        fitted: the calibrated choice of these models.
    """
    chosen, masks, qualities = [], [], []
    for sam_prompt, candidates in answers:
        low = sam.coarse_masks(embedding, candidates)
        scores = resize(sam_prompt.scores[None], (low.shape[1], low.shape[2]))[0]
        quality = by_map(low, candidates, scores, fitted) if settings.choice == "map" else by_sam(candidates)
        best = int(quality.argmax())
        qualities.append(quality[best])
        chosen.append(best)
        masks.append(low[best])
    kept = suppress(np.stack(masks), np.array(qualities), settings.overlap) if answers else []
    good = [n for n in kept if n == kept[0] or qualities[n] >= least_quality(qualities[kept[0]], settings, fitted)]
    segments = [segment_of(sam, embedding, maps, query, *answers[index], chosen[index]) for index in good]
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
    """Return the segment of one candidate at full size; its mask may be empty."""
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


# ---- overlapping masks: repeats within one query are suppressed, pixels shared by different queries go to one of them

CONTAINED = 0.85
"""Share of a mask's pixels inside another mask from which it counts as a part of that mask."""
MOST_LOST = 0.85
"""Share of its pixels that a segment may lose to other queries; with more it shows what another query asks for."""


def suppress(masks: NDArray[np.bool_], scores: NDArray[np.floating], overlap: float) -> list[int]:
    """Non-maximum suppression on masks: drop every mask that repeats a better one.

    Args:
        masks: bool [N, H, W]. Empty masks are dropped.
        scores: float [N]. Of equal scores the first counts as higher.
        overlap: IoU above which two masks show the same object. A mask contained in the other counts as the same too.

    Returns:
        The indices of the masks to keep, the highest score first.
    """
    flat = masks.reshape(len(masks), -1).astype(np.float32)
    return suppress_by_intersection(flat @ flat.T, scores, overlap)


def suppress_by_intersection(
    intersections: NDArray[np.floating], scores: NDArray[np.floating], overlap: float, *, contained: float = CONTAINED
) -> list[int]:
    """`suppress` for masks that do not share one frame: `intersections` [N, N] counts the pixels two masks share. Masks
    with a share of `contained` inside another are a part of it; with infinity there are no parts."""
    area = np.diagonal(intersections)
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable").tolist():
        shared, other = intersections[index, kept], area[kept]
        same = shared > overlap * (area[index] + other - shared)
        inside = shared >= contained * np.maximum(np.minimum(area[index], other), 1)
        if area[index] and not (same | inside).any():
            kept.append(index)
    return kept


def without_overlaps(result: Segmentation, queries: Sequence[Query]) -> Segmentation:
    """Give each pixel of an image to one query only; see `resolve_overlaps`."""
    min_areas = [query.min_area for query in queries]
    return replace(result, segments=tuple(resolve_overlaps(result.segments, result.maps, min_areas)))


def resolve_overlaps(
    segments: Sequence[Segment], maps: SimilarityMaps, min_areas: Sequence[int] | None = None
) -> list[Segment]:
    """Give every pixel that segments of different queries share to one query.

    The pixel goes to the query whose min-max map times presence is highest there; of equal ones to the first in
    `maps.queries`. Segments of one query may still overlap. A segment that loses more than `MOST_LOST` of its pixels,
    or becomes smaller than its query's minimum area, is dropped, and its pixels go to the other queries.

    Args:
        segments: of one image.
        maps: of the same image, with all queries of the segments.
        min_areas: minimum area in pixels for each query of `maps`; default 0.
    """
    min_area = dict(zip(maps.queries, min_areas or [0] * len(maps.queries), strict=True))
    kept = list(segments)
    while True:
        masks = _resolved_masks(kept, maps)
        stays = [
            np.count_nonzero(mask) >= max((1 - MOST_LOST) * segment.area, min_area[segment.query])
            for segment, mask in zip(kept, masks, strict=True)
        ]
        if all(stays):
            break
        kept = [segment for segment, stay in zip(kept, stays, strict=True) if stay]
    return [
        segment if mask is segment.mask else _with_mask(segment, mask, maps)
        for segment, mask in zip(kept, masks, strict=True)
        if mask.any()
    ]


def _resolved_masks(segments: Sequence[Segment], maps: SimilarityMaps) -> list[NDArray[np.bool_]]:
    """Return the mask bool [H, W] that each segment keeps; the same object if it loses nothing."""
    queries = [query for query in maps.queries if any(segment.query == query for segment in segments)]
    if len(queries) < 2:
        return [segment.mask for segment in segments]
    hw = segments[0].mask.shape
    strongest, owner = np.full(hw, -np.inf, np.float32), np.full(hw, -1, np.int32)
    for number, query in enumerate(queries):
        row = maps.queries.index(query)
        covered = np.any([segment.mask for segment in segments if segment.query == query], axis=0)
        strength = resize(minmax(maps.scores[[row]]), (hw[0], hw[1]))[0] * maps.presence[row]
        wins = covered & (strength > strongest)
        strongest[wins], owner[wins] = strength[wins], number
    left = [segment.mask & (owner == queries.index(segment.query)) for segment in segments]
    return [
        segment.mask if np.array_equal(segment.mask, mask) else mask
        for segment, mask in zip(segments, left, strict=True)
    ]


def _with_mask(segment: Segment, mask: NDArray[np.bool_], maps: SimilarityMaps) -> Segment:
    row = maps.queries.index(segment.query)
    return replace(segment, mask=mask, map_score=map_score(maps.scores[row], mask))
