"""The state of a session as plain JSON for the page, and the explanation of one mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from text2seg.app.segment.document import Piece, outline_of
from text2seg.app.segment.export import as_command, as_python
from text2seg.app.segment.session import EditSession, preview
from text2seg.coco.dataset import segment_score
from text2seg.coco.json_file import plain_number
from text2seg.errors import Text2SegError
from text2seg.grids import map_score
from text2seg.records import Image, Segment, Segmentation, calibration_note, told_apart
from text2seg.render.drawing import Colour, colour_of_number, colours_of, heat, is_flat
from text2seg.render.panels import shrunk

Json = dict[str, Any]

MAP_SIDE = 640
"""Longest side of the similarity map in the explanation, in pixels."""


def view_of(session: EditSession) -> Json:
    """Return everything the page needs, except the image itself."""
    colours = _colours(session)
    now = session.segmentation() if session.is_answered else None
    return {
        "token": session.token,
        "texts": list(session.asked),
        "refused": [asdict(each) for each in session.refused],
        "halfKnown": dict(session.half_known),
        "isUnfamiliar": session.is_unfamiliar,
        "queries": _queries(session, now, colours) if now else [],
        "pieces": [_piece(each, colours, segment_score(each.segment, now)) for each in session.document.pieces if now],
        "canUndo": bool(session.history.past),
        "canRedo": bool(session.history.future),
        "threshold": session.settings.points.threshold,
        "presence": _presence_threshold(session),
        "given": {"threshold": session.threshold, "presence": session.presence},
        "isLabelled": session.editing is not None,
        "command": as_command(session) if session.is_answered else "",
        "python": as_python(session) if session.is_answered else "",
    }


BY_NAME = "You gave this mask its name; no word led to it."
RENAMED = "You gave this mask its name; the word “{}” led to it."
IN_MASK = "In this mask alone, the model hardly sees “{}”: presence {:.2f}."
SEEN = 0.5
"""Presence in the mask alone below which a mask is marked as uncertain."""
PART = "This mask is only a part of it, because you split it; a candidate that you take brings back all parts."
NOT_RECORDED = "This mask is in the dataset, which does not record how it was chosen. The models did not find it again."


def why(session: EditSession, number: int) -> tuple[Json, bytes]:
    """Explain a segment: return its points, candidates and reasons, and its similarity map as a JPEG.

    Raises:
        Text2SegError: there is no such segment.
    """
    piece = session.document.piece(number)
    segment, result, image_session = piece.segment, session.segmentation(), session.opened
    maps = result.maps
    word, is_renamed = piece.found_as or segment.query, piece.found_as in maps.queries
    index = maps.queries.index(word if is_renamed else segment.query)
    threshold = result.thresholds[index] if result.thresholds else 0.0
    candidates: list[Json] = []
    is_part = False
    for place, score in enumerate(segment.candidates.scores if piece.is_explained else ()):
        mask = image_session.candidate_mask(segment, place)
        is_part |= place == segment.chosen and piece.by_hand and int(mask.sum()) > segment.area
        candidates.append(
            {
                "sam": plain_number(score),
                "map": plain_number(map_score(maps.scores[index], mask)),
                "chosen": place == segment.chosen,
                "path": outline_of(mask).path,
            }
        )
    explanation = {
        "number": number,
        "query": segment.query,
        "colour": _colours(session)[segment.query],
        "points": _points(piece),
        "candidates": candidates,
        "isFlat": is_flat(maps.scores[index]),
        "isNamed": piece.is_named and not is_renamed,  # then there is no map
        "reason": " ".join(
            [
                _because(piece) or _presence(segment.presence, threshold, calibrated=maps.calibrated),
                *([IN_MASK.format(word, segment.region_presence)] if _is_uncertain(segment) else ()),
                _reason(session, piece, candidates),
                *([PART] if is_part else ()),
                *_in_coco(segment, segment_score(segment, result)),
            ]
        )
        if piece.is_explained
        else NOT_RECORDED,
    }
    return explanation, _map_jpeg(image_session.image, maps.scores[index])


def why_not(session: EditSession, query: str) -> tuple[Json, bytes]:
    """Explain why a query has no segment: return the reason, and its similarity map as a JPEG.

    Raises:
        Text2SegError: the query was not searched for.
    """
    if session.image_session is None or session.found is None or query not in session.found.maps.queries:
        raise Text2SegError(f"{query!r} was not searched for; add it to the words")
    found = session.found
    index = found.maps.queries.index(query)
    presence = float(found.maps.presence[index])
    threshold = found.thresholds[index] if found.thresholds else 0.0
    note, told = calibration_note(found.maps.calibrated), told_apart(presence, threshold)
    if session.document.had(query):
        reason = _presence(presence, threshold, calibrated=found.maps.calibrated)
    elif presence < threshold:
        reason = (
            f"The model does not find it: presence {told[0]}{note}, below {told[1]}. The map shows where "
            "the image is most like this word, which proves nothing. A lower “Presence” gives a mask there."
        )
    else:
        reason = (
            f"{_presence(presence, threshold, calibrated=found.maps.calibrated)} But no mask is left: each was too "
            "small, repeated another, or did not look like this word. Add one by hand with +."
        )
    explanation = {
        "number": 0,
        "query": query,
        "colour": _colours(session)[query],
        "points": [],
        "candidates": [],
        "isFlat": is_flat(found.maps.scores[index]),
        "reason": reason,
    }
    return explanation, _map_jpeg(session.image_session.image, found.maps.scores[index])


def _because(piece: Piece) -> str:
    """Return a sentence about a name that the visitor gave."""
    return RENAMED.format(piece.found_as) if piece.found_as else BY_NAME if piece.is_named else ""


def _in_coco(segment: Segment, score: float) -> tuple[str, ...]:
    """Return a sentence with the score in a COCO file, if it is another one than SAM's."""
    shown = f"{score:.2f}"
    if shown == f"{segment.sam_score:.2f}":
        return ()
    return (f"Its score in a COCO file is {shown}: SAM {segment.sam_score:.2f}, times presence.",)


def _map_jpeg(image: Image, scores: NDArray[np.float32]) -> bytes:
    """Return a similarity map float32[gh, gw] over the image, as a JPEG; a flat map gives the image alone."""
    small = shrunk(image.pixels, MAP_SIDE)
    return preview(small if is_flat(scores) else heat(scores, small))


def _presence(presence: float, threshold: float, *, calibrated: bool) -> str:
    if not calibrated and threshold <= 0:
        return f"Presence ({presence:.2f}) is not calibrated for these weights, so nothing counts as absent."
    if threshold <= 0:
        return f"The presence score is {presence:.2f}; no minimum is set."
    note, (value, least) = calibration_note(calibrated), told_apart(presence, threshold)
    if presence >= threshold:
        return f"The model finds it in the image: presence {value}{note}, at least {least}."
    return f"The model does not find it (presence {value}{note}, below {least}); you added it."


def _reason(session: EditSession, piece: Piece, candidates: list[Json]) -> str:
    """Return one or two sentences: which candidate was chosen, by which rule."""
    chosen = piece.segment.chosen
    if len(candidates) == 1:
        return "SAM returned one mask only."
    best_of_sam = max(range(len(candidates)), key=lambda index: candidates[index]["sam"])
    name = f"Candidate {chosen + 1} was chosen"
    if piece.by_hand and chosen != best_of_sam:
        return f"You chose candidate {chosen + 1}; SAM prefers candidate {best_of_sam + 1}."
    if piece.by_hand or session.settings.masks.choice == "sam":
        return f"{name}: it has the highest SAM score{' for your points' if piece.placed else ''}."
    if chosen == best_of_sam:
        return f"{name}: it has the highest SAM score, and it fits the similarity map."
    return (
        f"{name}: SAM prefers candidate {best_of_sam + 1}, but candidate {chosen + 1} fits the similarity map better. "
        "The map is high inside it and low outside."
    )


def _points(piece: Piece) -> list[Json]:
    points = piece.segment.points
    return [
        {
            "x": plain_number(x),
            "y": plain_number(y),
            "positive": bool(label),
            "map": plain_number(similarity),
            "own": (x, y) in piece.placed,
        }
        for (x, y), label, similarity in zip(points.xy.tolist(), points.labels, points.similarity, strict=True)
    ]


def _queries(session: EditSession, now: Segmentation, colours: Mapping[str, str]) -> list[Json]:
    """Return each query with its verdict after all edits. `now` is the result after these."""
    names = session.names
    removed, changed = ({each.query for each in gone} for gone in (session.document.removed, session.document.changed))
    queries = []
    for name in now.maps.queries:
        found = bool(now.of(name))
        gone = "" if found else "deleted" if name in removed else "renamed" if name in changed else ""
        verdict = gone or now.verdict(name)
        if name in names:
            verdict = f"{len(now.of(name))} added by hand"
        queries.append(
            {
                "name": name,
                "colour": colours[name],
                "verdict": verdict,
                "found": found,
                "isGone": bool(gone),
                "isWord": name not in names,
            }
        )
    return queries


def _piece(piece: Piece, colours: Mapping[str, str], coco_score: float) -> Json:
    return {
        "number": piece.number,
        "query": piece.segment.query,
        "colour": colours[piece.segment.query],
        "path": piece.outline.path,
        "parts": piece.outline.parts,
        "area": piece.outline.area,
        "score": plain_number(piece.segment.sam_score),
        "cocoScore": plain_number(coco_score),
        "points": _points(piece),
        "byHand": piece.by_hand,
        "region": piece.region,
        "canBeNamed": not piece.is_labelled,
        "accepted": piece.accepted,
        "isUncertain": _is_uncertain(piece.segment) and not piece.accepted,
    }


def _is_uncertain(segment: Segment) -> bool:
    """Return whether the model does not see the thing in the mask alone, although it sees it in the image."""
    return segment.region_presence is not None and segment.region_presence < SEEN


def regions_of(session: EditSession) -> list[Json]:
    """Return everything that was found without words. Regions are numbered from 1."""
    if session.image_session is None:
        return []
    hw = session.image_session.image.hw
    regions = []
    for number, region in enumerate(session.regions, start=1):
        outline = outline_of(region.in_image(hw))
        score = plain_number(region.predicted_iou)
        colour = _hex(colour_of_number(number))
        regions.append({"number": number, "path": outline.path, "area": outline.area, "score": score, "colour": colour})
    return regions


def _presence_threshold(session: EditSession) -> float:
    """Return the position of the presence slider: the visitor's value, or the threshold of the models."""
    if session.presence is not None:
        return session.presence
    if session.found and session.found.thresholds:
        return plain_number(max(session.found.thresholds))
    settings = session.settings
    default = session.models.default_presence(settings) if session.models else None
    return plain_number(settings.presence.threshold(None, default) or 0.0)


def _colours(session: EditSession) -> dict[str, str]:
    """Return the colour of each query and of each name that the visitor gave."""
    words = session.segmentation().maps.queries if session.is_answered else ()
    names = [*words, *(piece.segment.query for piece in session.document.pieces)]
    before = [name for name in session.shown if name in names]
    return {name: _hex(colour) for name, colour in colours_of([*before, *names]).items()}


def _hex(colour: Colour) -> str:
    return "#" + bytes(colour).hex()
