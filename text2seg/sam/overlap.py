"""No pixel twice: where segments of different queries overlap, the query that the map speaks for takes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from text2seg.grids import map_score, minmax, resize
from text2seg.records import Segment, SimilarityMaps

MOST_LOST = 0.85
"""A segment that loses more than this share of its pixels shows what another query is for. (As `nms.CONTAINED`.)"""


def settle(segments: Sequence[Segment], maps: SimilarityMaps, smallest: Sequence[int] | None = None) -> list[Segment]:
    """The segments of one image, none of which shares a pixel with one of another query.

    A contested pixel goes to the query whose min-max map there, times its presence, is highest; of equal ones to the
    first asked for. Segments of one query may still overlap. One that loses more than `MOST_LOST` of its pixels, or
    gets smaller than its query's `smallest` area, is dropped, and what it held goes to the others.
    """
    least = dict(zip(maps.queries, smallest or [0] * len(maps.queries), strict=True))
    held = list(segments)
    while True:
        masks = _settled(held, maps)
        stays = [
            np.count_nonzero(mask) >= max((1 - MOST_LOST) * segment.area, least[segment.query])
            for segment, mask in zip(held, masks, strict=True)
        ]
        if all(stays):
            break
        held = [segment for segment, stay in zip(held, stays, strict=True) if stay]
    return [
        segment if mask is segment.mask else _with_mask(segment, mask, maps)
        for segment, mask in zip(held, masks, strict=True)
        if mask.any()
    ]


def _settled(segments: Sequence[Segment], maps: SimilarityMaps) -> list[NDArray[np.bool_]]:
    """What is left of each mask, bool[H, W]; the mask itself where that is all of it."""
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
