"""From SAM's candidates to the segment: which of them, at full size, and how well the map agrees."""

from __future__ import annotations

from text2seg.grids import map_score
from text2seg.masks.choice import choose
from text2seg.masks.sam import Sam, SamEmbedding
from text2seg.records import Candidates, PointPrompts, Segment, SimilarityMaps


def cut(
    sam: Sam, embedding: SamEmbedding, maps: SimilarityMaps, query: int, points: PointPrompts, candidates: Candidates
) -> Segment:
    """The segment of the maps' `query`-th query. Its mask may be empty."""
    chosen = choose(candidates)
    mask = sam.mask(embedding, candidates, chosen)
    return Segment(
        query=maps.queries[query],
        mask=mask,
        sam_score=float(candidates.scores[chosen]),
        map_score=map_score(maps.scores[query], mask),
        presence=float(maps.presence[query]),
        points=points,
        candidates=candidates,
        chosen=chosen,
    )
