"""A visit as the page shows it: plain JSON values, a few kilobytes for each segment, never pixels."""

from __future__ import annotations

from typing import Any

from text2seg.app.segment.command import as_command, as_python
from text2seg.app.segment.document import Piece
from text2seg.app.segment.visit import Visit
from text2seg.coco.entries import plain_number
from text2seg.render import colour_of

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
