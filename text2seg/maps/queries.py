"""From what a person asks for to one map each: parts joined, wordings averaged, negatives taken off."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from text2seg.config import MapSettings
from text2seg.grids import minmax
from text2seg.maps.clip import Clip, ImageTokens
from text2seg.maps.pamr import on_grid
from text2seg.records import SimilarityMaps
from text2seg.vocabulary import Query, Wordings


def texts_of(queries: Iterable[Query]) -> list[Wordings]:
    """All that needs a map of its own, once each: the parts with their wordings, and the negatives."""
    queries = list(queries)
    parts = [part for query in queries for part in query.parts]
    negatives = [(negative,) for query in queries for negative in query.negatives]
    return list(dict.fromkeys([*parts, *negatives]))


@dataclass(frozen=True, slots=True, eq=False)
class QueryMap:
    """What a query's map was made of: `parts` float32 [parts, gh, gw], and the `evidence` float32 [gh, gw] of where
    it is, presence patch by patch, on the tokens' grid. `negatives` float32 [negatives, gh, gw] are the min-max maps of
    what is not wanted, 0 where the query itself scores higher."""

    parts: NDArray[np.float32]
    evidence: NDArray[np.float32]
    negatives: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 1, 1), np.float32))


def query_maps(
    clip: Clip, tokens: ImageTokens, queries: Sequence[Query], settings: MapSettings
) -> tuple[SimilarityMaps, list[QueryMap]]:
    """One map per query, and what each was made of, brought to the tokens' grid.

    What a negative scores above 0 is taken off each part. Parts that are joined are averaged after min-max, as the
    original's `person+bench`; the presence of all together is that of the one least sure.

    Raises:
        QueryError: as `Clip.scores`.
    """
    texts = texts_of(queries)
    of_texts = clip.scores(tokens, texts, settings)
    row_of = {wordings: row for row, wordings in enumerate(texts)}
    evidence = clip.evidence(tokens, texts)
    scores, presence, made = [], [], []
    for query in queries:
        rows = [row_of[part] for part in query.parts]
        own = wanted = of_texts[rows]
        if query.negatives:
            unwanted = of_texts[[row_of[(negative,)] for negative in query.negatives]]
            own = wanted - unwanted.max(0).clip(min=0)
        scores.append(own[0] if len(own) == 1 else minmax(own).mean(0))
        presence.append(evidence[rows].max((1, 2)).min())
        where = np.minimum(evidence[rows].max(0), presence[-1])
        made.append(QueryMap(on_grid(own, tokens.grid_hw), where))
        if query.negatives:
            wanted, unwanted = on_grid(wanted, tokens.grid_hw), on_grid(unwanted, tokens.grid_hw)
            more_like_it = unwanted > wanted.max(0)
            made[-1] = replace(made[-1], negatives=np.where(more_like_it, minmax(unwanted), np.float32(0)))
    names = tuple(query.name for query in queries)
    return SimilarityMaps(names, np.stack(scores), np.array(presence, np.float32), tokens.image_hw), made
