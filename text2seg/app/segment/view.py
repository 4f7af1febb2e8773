"""The state of a session as the page shows it: plain JSON values, never pixels; and why a segment is as it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from text2seg.app.segment.command import as_command, as_python
from text2seg.app.segment.document import Piece
from text2seg.app.segment.session import Visit
from text2seg.coco.dataset import plain_number
from text2seg.errors import Text2SegError
from text2seg.grids import map_score
from text2seg.records import Segmentation, SimilarityMaps
from text2seg.render import colour_of, maps_with_points


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


Json = dict[str, Any]


def view_of(visit: Visit) -> Json:
    """All that the page needs to know, but for the picture itself."""
    return {
        "texts": list(visit.texts),
        "queries": _queries(visit),
        "pieces": [_piece(piece) for piece in visit.document.pieces],
        "canUndo": bool(visit.history.past),
        "canRedo": bool(visit.history.future),
        "threshold": visit.settings.points.threshold,
        "presence": _least_presence(visit),
        "command": as_command(visit) if visit.found else "",
        "python": as_python(visit) if visit.found else "",
    }


def _queries(visit: Visit) -> list[Json]:
    """Each query with what became of it, corrections counted in."""
    if visit.found is None:
        return []
    now = visit.segmentation()
    removed = {segment.query for segment in visit.document.removed}
    told = []
    for name in now.maps.queries:
        found = bool(now.of(name))
        verdict = "removed by hand" if not found and name in removed else now.verdict(name)
        told.append({"name": name, "colour": _colour(name), "verdict": verdict, "found": found})
    return told


def _piece(piece: Piece) -> Json:
    points = piece.segment.points
    return {
        "number": piece.number,
        "query": piece.segment.query,
        "colour": _colour(piece.segment.query),
        "path": piece.outline.path,
        "parts": piece.outline.parts,
        "area": piece.outline.area,
        "score": plain_number(piece.segment.sam_score),
        "points": [
            [plain_number(x), plain_number(y), int(label)]
            for (x, y), label in zip(points.xy, points.labels, strict=True)
        ],
        "byHand": piece.by_hand,
        "accepted": piece.accepted,
    }


def _least_presence(visit: Visit) -> float:
    """Where the slider stands: at what was asked for, else at the models' own threshold."""
    if visit.presence is not None:
        return visit.presence
    return plain_number(max(visit.found.thresholds, default=0.0)) if visit.found else 0.0


def _colour(query: str) -> str:
    red, green, blue = colour_of(query)
    return f"#{red:02x}{green:02x}{blue:02x}"
