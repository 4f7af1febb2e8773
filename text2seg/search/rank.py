"""What an index says of queries: how sure it is that each picture shows them, and which pictures show one best."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from text2seg.maps.clip import ImageTokens
from text2seg.maps.presence import TEMPLATE
from text2seg.maps.queries import texts_of
from text2seg.pipeline import Text2Seg
from text2seg.search.index import VectorIndex
from text2seg.vocabulary import Query

AT_ONCE = 4096  # pictures whose vectors are unpacked together
SHORTLIST, DEEPER = 4096, 64  # vectors that FAISS finds: at least so many, and so many for each picture asked for


@dataclass(frozen=True, slots=True)
class Hit:
    """A picture found: its `presence` of the query from 0 to 1, and the `cosine` of its vector nearest to the words."""

    file: str
    presence: float
    cosine: float


def presence_in(
    models: Text2Seg, index: VectorIndex, files: Sequence[str], queries: Sequence[Query]
) -> NDArray[np.float32]:
    """How sure the vectors of these pictures are of the queries, float32 [N, Q] in [0, 1].

    As presence in `query_maps`, but with the patches that the index keeps only: up to rounding it is never higher.
    """
    texts = texts_of(queries)
    row_of = {wordings: row for row, wordings in enumerate(texts)}
    found = np.zeros((len(files), len(queries)), np.float32)
    for start in range(0, len(files), AT_ONCE):
        tokens = _as_tokens(models, index.vectors(files[start : start + AT_ONCE]))
        highest = models.clip.evidence(tokens, texts).max(2)
        for number, query in enumerate(queries):
            rows = [row_of[part] for part in query.parts]
            found[start : start + AT_ONCE, number] = highest[rows].min(0)
    return found


def best_pictures(
    models: Text2Seg, index: VectorIndex, query: Query, top: int, among: Collection[str]
) -> tuple[Hit, ...]:
    """The `top` pictures that show a query best, of those in `among`; the surest first, then by name.

    FAISS finds the vectors nearest to the words; of the pictures that they are of, presence decides.
    """
    features = models.clip.encode_texts(query.parts, (TEMPLATE,)).cpu().numpy()
    count = max(SHORTLIST, DEEPER * top)
    near = [index.nearest(feature, count, among) for feature in features]
    files = sorted({file for each in near for file in each})
    presence = presence_in(models, index, files, [query])[:, 0]
    order = np.lexsort((np.arange(len(files)), -presence))[:top]
    cosines = np.einsum("nvc,qc->nqv", index.vectors([files[n] for n in order]), features) if files else np.zeros(0)
    return tuple(
        Hit(files[n], float(presence[n]), float(own.max(1).min())) for n, own in zip(order, cosines, strict=True)
    )


def _as_tokens(models: Text2Seg, vectors: NDArray[np.float32]) -> ImageTokens:
    """Vectors [N, V, C] as the patches of one picture of N rows; what stands for CLS is never looked at."""
    count, each, width = vectors.shape
    patches = torch.from_numpy(vectors.reshape(count * each, width))
    features = torch.cat([torch.zeros(1, width, dtype=torch.float32, device="cpu"), patches]).to(models.clip.device)
    return ImageTokens(features, (count, each), (count, each))
