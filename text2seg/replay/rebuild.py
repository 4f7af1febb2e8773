"""The mask that an annotation's points give, with what is taken from the map where points alone do not say it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from text2seg.config import Settings
from text2seg.errors import Text2SegError
from text2seg.masks.any_sam import AnySam
from text2seg.pipeline import Session
from text2seg.records import PointPrompts, Segment


def rebuilt_mask(
    sam: AnySam,
    session: Session,
    points: PointPrompts,
    chosen: int,
    again: Segment | None,
    settings: Settings,
    annotation_id: int,
) -> NDArray[np.bool_]:
    """SAM's mask bool[H, W] of the session's image, for the recorded points and candidate.

    A rough mask for SAM, the region of the map as a segment, and what competing segments left of one another are not
    recorded: they are as they come out now, `again`.

    Raises:
        Text2SegError: there is no such candidate, or the thing is not found again and that is needed.
    """
    masks = settings.masks
    if masks.prompt == "box-mask":
        if again is None:
            raise _lost(annotation_id, "SAM was given the map as a rough mask")
        points = replace(points, masks=again.points.masks)
    embedding = session.embedding or sam.embed([session.image])[0]
    (candidates,) = sam.decode([(embedding, points)])
    if chosen > len(candidates) or (chosen == len(candidates) and not masks.fallback):
        raise Text2SegError(f"annotation {annotation_id} is of candidate {chosen}, SAM has {len(candidates)} only")
    if chosen < len(candidates) and not masks.compete:
        return sam.mask(embedding, candidates, chosen)
    if masks.compete and settings.tiles.tile:
        raise _lost(annotation_id, "it competed with what was seen in all tiles")
    if again is None or again.chosen != chosen:
        what = "it competed with other queries" if masks.compete else "it is the region of the map itself"
        raise _lost(annotation_id, what)
    return again.mask


def _lost(annotation_id: int, what: str) -> Text2SegError:
    return Text2SegError(
        f"annotation {annotation_id} cannot be made again: {what}, which is not recorded and does not come out again"
    )
