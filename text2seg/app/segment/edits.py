"""What a visitor does to the segments of an image: points, boxes, other candidates, picked masks, names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from text2seg.app.segment.document import NO_POINTS, Place, with_point
from text2seg.app.segment.session import EditSession
from text2seg.config import AutomaticSettings
from text2seg.errors import Text2SegError
from text2seg.grids import map_score
from text2seg.queries import cleaned
from text2seg.records import PointPrompts, Segment
from text2seg.sam.automatic import seconds_of_regions

EVERYTHING = AutomaticSettings(points_per_side=16, predicted_iou=0.7, stability=0.8, suppression="masks")
"""Fewer points than by default, so that people wait a quarter of the time, and doubtful masks, which people can judge.
Of parts and wholes both are kept."""
LONGEST_NAME = 100


def add_point(session: EditSession, number: int, query: str, xy: tuple[float, float], *, positive: bool) -> EditSession:
    """Add a point to the segment with this number, or start a new segment of a query if the number is 0.

    Args:
        xy: in pixels of the image.

    Raises:
        Text2SegError: there is no such segment or query, or no query has been run yet.
    """
    piece = session.document.piece(number) if number else None
    name = piece.segment.query if piece else query
    maps = session.segmentation().maps
    if name not in maps.queries:
        raise Text2SegError(f"{name!r} is no longer one of the queries")
    before = piece.segment.points if piece else NO_POINTS
    if not positive and not before.labels.any() and not len(before.boxes_xyxy):
        raise Text2SegError("the first point must be on the object")
    scores = maps.scores[maps.queries.index(name)]
    points = with_point(before, xy, positive=positive, scores=scores, hw=session.opened.image.hw)
    segment, is_named = _answer(session, name, points)
    if not segment.area:
        raise Text2SegError("this point leaves nothing of the segment; try another place")
    x, y = points.xy[-1].tolist()
    place: Place = (x, y)
    if piece:
        document = session.document.corrected(number, segment, place)
    else:
        document = session.document.added(segment, place, is_named=is_named)
    return replace(session, history=session.history.step(document))


def _answer(session: EditSession, name: str, prompt: PointPrompts) -> tuple[Segment, bool]:
    """Return SAM's segment for points or a box, and whether its name is only a name. For a query, the segment has the
    presence and the map score of this query; other names say nothing about the image."""
    parsed = next((each for each in session.queries if each.name == name), None)
    if parsed:
        return session.opened.segment_points(parsed, prompt, session.settings), False
    segment = session.opened.segment_prompt(prompt)
    return replace(segment, query=name or segment.query), True


def take_candidate(session: EditSession, number: int, index: int) -> EditSession:
    """Replace the mask of a segment by another of SAM's candidates.

    Raises:
        Text2SegError: there is no such segment or candidate, or the candidate is empty.
    """
    segment = session.document.piece(number).segment
    if not 0 <= index < len(segment.candidates):
        raise Text2SegError("there is no such candidate; open “Why this mask” again")
    mask = session.opened.candidate_mask(segment, index)
    if not mask.any():
        raise Text2SegError("this candidate is empty; choose another")
    maps = session.segmentation().maps
    taken = replace(
        segment,
        mask=mask,
        chosen=index,
        sam_score=float(segment.candidates.scores[index]),
        map_score=map_score(maps.scores[maps.queries.index(segment.query)], mask),
        region_presence=None,
    )
    return replace(session, history=session.history.step(session.document.corrected(number, taken)))


def find_everything(session: EditSession) -> EditSession:
    """Find everything in the image without words. Raises `Text2SegError` if there is no image."""
    regions = session.opened.automatic_regions(EVERYTHING)
    return replace(session, regions=tuple(regions))


def seconds_for_everything(session: EditSession) -> float:
    """Return how long `find_everything` takes, estimated from a few points on this image."""
    return seconds_of_regions(session.opened.automatic_regions, EVERYTHING)


def pick(session: EditSession, number: int) -> EditSession:
    """Make a segment of a region. Its name is "object", until the visitor types another.

    Raises:
        Text2SegError: there is no such region.
    """
    image_session = session.opened
    if not 0 < number <= len(session.regions):
        raise Text2SegError("this mask is no longer there; press “Everything” again")
    region = session.regions[number - 1]
    segment = image_session.segment_prompt(region.point)  # its candidates are not kept with the region
    mask, score = region.in_image(image_session.image.hw), region.predicted_iou
    segment = replace(segment, mask=mask, chosen=region.chosen, sam_score=score)
    return replace(session, history=session.history.step(session.document.added(segment, is_named=True, region=number)))


def draw_box(session: EditSession, box: tuple[float, float, float, float], query: str) -> EditSession:
    """Make a segment of what SAM finds in a box.

    Args:
        box: left, top, right and bottom in pixels of the image; it is cut off at the edges of the image.
        query: a name or query of the session, or "" for a segment whose name is not known yet.

    Raises:
        Text2SegError: the box is empty or outside the image, or nothing is found in it.
    """
    if query and query not in session.segmentation().maps.queries:
        raise Text2SegError(f"{query!r} is no longer one of the queries")
    height, width = session.opened.image.hw
    corners = np.clip(np.array(box, np.float32), 0, np.array([width, height, width, height], np.float32))
    if (corners[2:] - corners[:2]).min() < 1:
        raise Text2SegError("this box is too small; drag it around a thing")
    segment, is_named = _answer(session, query, replace(NO_POINTS, boxes_xyxy=corners[None]))
    if not segment.area:
        raise Text2SegError("nothing was found in this box; draw another")
    return replace(session, history=session.history.step(session.document.added(segment, is_named=is_named)))


def give_name(session: EditSession, number: int, name: str) -> EditSession:
    """Give a segment another name. One that differs only in case from a query or a name counts as that one. The same
    name again changes nothing.

    Raises:
        Text2SegError: there is no such segment, it is an annotation of a job, the name is empty or too long, or it is
            no category of the job that is edited.
    """
    if session.document.piece(number).is_labelled:
        raise Text2SegError("the category of an annotation is corrected in the review")
    name = " ".join(cleaned(name).split())
    if not 0 < len(name) <= LONGEST_NAME:
        raise Text2SegError(f"a name has 1 to {LONGEST_NAME} letters")
    if session.editing:
        name = session.editing.category(name)
    same = (each for each in session.segmentation().maps.queries if each.casefold() == name.casefold())
    name = next(same, name)
    if name == session.document.piece(number).segment.query:
        return session
    return replace(session, history=session.history.step(session.document.named(number, name)))
