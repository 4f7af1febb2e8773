"""From SAM's candidates to segments: which of them, without repeats, at full size, and how well the map agrees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from text2seg.config import MaskSettings
from text2seg.grids import map_score, resize
from text2seg.masks.any_sam import AnySam, SamEmbedding
from text2seg.masks.choice import by_map, by_sam
from text2seg.masks.fallback import or_region
from text2seg.masks.nms import suppress
from text2seg.records import Aim, Candidates, Segment, SimilarityMaps


def cut(
    sam: AnySam,
    embedding: SamEmbedding,
    maps: SimilarityMaps,
    query: int,
    answers: Sequence[tuple[Aim, Candidates]],
    settings: MaskSettings,
) -> list[Segment]:
    """The segments of one query in one picture, the best first.

    Of each aim the best candidate is chosen; of those that show the same thing one stays; beside the best, one that is
    expected to be bad is left out. All this happens at SAM's low resolution; only what stays is brought to full size.
    Masks that are empty are left out. With `fallback`, SAM's candidate may give way to the region of the map; it is as
    good as what it replaces then.
    """
    offered, chosen, masks, qualities = [], [], [], []
    for aim, candidates in answers:
        low = sam.coarse_masks(embedding, candidates)
        expected = by_map(low, candidates, resize(aim.scores[None], (low.shape[1], low.shape[2]))[0])
        quality = expected if settings.choice == "map" else by_sam(candidates)
        best = int(quality.argmax())
        qualities.append(quality[best])
        if settings.fallback:
            candidates, best = or_region(sam, embedding, aim, candidates, best, float(expected[best]))
            low = sam.coarse_masks(embedding, candidates)
        offered.append((aim, candidates))
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
    aim: Aim,
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
        presence=aim.presence,
        points=aim.points,
        candidates=candidates,
        chosen=chosen,
    )
