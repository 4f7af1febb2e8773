"""Why a segment is as it is: its map, its points, what SAM offered, what was taken and by which rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from text2seg.app.segment.document import Piece
from text2seg.app.segment.visit import Visit
from text2seg.coco.entries import plain_number
from text2seg.errors import Text2SegError
from text2seg.grids import map_score
from text2seg.records import Segmentation, SimilarityMaps
from text2seg.render import maps_with_points


def why(visit: Visit, number: int) -> tuple[dict[str, Any], NDArray[np.uint8]]:
    """What is known of a piece, as plain JSON values, and a picture of it, RGB uint8[h, w, 3].

    Raises:
        Text2SegError: there is no such piece.
    """
    piece = visit.document.piece(number)
    if visit.session is None or visit.found is None:
        raise Text2SegError("nothing was looked for yet")
    segment, maps = piece.segment, visit.found.maps
    place = maps.queries.index(segment.query)
    threshold = visit.found.thresholds[place] if visit.found.thresholds else 0.0
    candidates = [
        {
            "sam": plain_number(score),
            "map": plain_number(map_score(maps.scores[place], visit.session.candidate_mask(segment, index))),
            "won": index == segment.chosen,
        }
        for index, score in enumerate(segment.candidates.scores)
    ]
    told = {
        "number": number,
        "query": segment.query,
        "points": [
            {"x": plain_number(x), "y": plain_number(y), "positive": bool(label), "map": plain_number(similarity)}
            for (x, y), label, similarity in zip(
                segment.points.xy, segment.points.labels, segment.points.similarity, strict=True
            )
        ],
        "candidates": candidates,
        "reason": f"{_presence(segment.presence, threshold)} {_reason(visit, piece, candidates)}",
    }
    alone = Segmentation(visit.session.image, (segment,), _only(maps, place), (threshold,))
    return told, maps_with_points(alone)


def _only(maps: SimilarityMaps, place: int) -> SimilarityMaps:
    rows = slice(place, place + 1)
    return replace(maps, queries=maps.queries[rows], scores=maps.scores[rows], presence=maps.presence[rows])


def _presence(presence: float, threshold: float) -> str:
    if threshold <= 0:
        return f"Presence {presence:.2f}, which was not asked for."
    if presence >= threshold:
        return f"It is there: presence {presence:.2f} ≥ {threshold:.2f}."
    return f"The models do not see it there (presence {presence:.2f} < {threshold:.2f}), but you do."


def _reason(visit: Visit, piece: Piece, candidates: list[dict[str, Any]]) -> str:
    """Which candidate was taken, by which rule, in a sentence or two."""
    chosen = piece.segment.chosen
    if len(candidates) == 1:
        return "SAM offered one mask only."
    best_of_sam = max(range(len(candidates)), key=lambda index: candidates[index]["sam"])
    which = f"Candidate {chosen + 1} was taken"
    if piece.by_hand or visit.settings.masks.choice == "sam":
        who = "after your points, " if piece.by_hand else ""
        return f"{which}: {who}SAM's own score decides."
    if chosen == best_of_sam:
        return f"{which}: SAM likes it best, and the map has nothing against it."
    return (
        f"{which}, although SAM likes candidate {best_of_sam + 1} better: "
        "inside it the map is high and outside low, and the map knows what was looked for."
    )
