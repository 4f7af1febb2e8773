"""Tiles for small things in large images: where tiles are, and how segments of several views are merged.

A view is the whole image or one of its tiles. Boxes are `xywh` in pixels of the image; None stands for the whole image.
Everything here is computed from records; the pipeline runs the models on the views.

The idea is from SAHI (Akyon et al., "Slicing Aided Hyper Inference and Fine-tuning for Small Object Detection",
arXiv 2202.06934), which merges boxes. Here masks are merged, query by query:

1. A segment that its tile cuts is dropped: most of its mask is connected to a border of the tile inside the image.
   Things smaller than the overlap of tiles are whole in another tile, and large things are found in the whole image.
   Things between the two that are whole in no view are not found; larger tiles or more overlap find them.
2. A segment of a tile is dropped if its expected IoU is below `MIN_QUALITY`, because many tiles make many mistakes.
   Segments of the whole image are filtered as without tiles.
3. Of segments that show the same thing (see `sam.candidates.suppress`), the one with the highest expected IoU is kept,
   whether it is from a tile or from the whole image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import cv2
import numpy as np
from numpy.typing import NDArray

from text2seg.config import MaskSettings, TileSettings
from text2seg.grids import minmax, place, resize
from text2seg.model_card import Choice
from text2seg.records import Box, Candidates, Image, PointPrompts, Segment, Segmentation
from text2seg.sam.candidates import by_map, least_quality, suppress_by_intersection

VIEWS_PER_CALL = 8
"""Number of tiles in one call of the models."""
KEPT_VIEWS = 32
"""Tiles of one image whose tokens and embeddings are kept: about 6 MB each with ViT-B."""
MARGIN = 0.01
"""Share of a tile's side that counts as its border, because SAM's masks may end a low-resolution pixel before it."""
MAX_CUT = 0.5
"""Share of a mask's pixels that may be connected to a border; so specks at the border do not count."""
MIN_QUALITY = 0.5
"""Expected IoU that a segment of a tile must have."""
QUALITY_GRID = 256
"""Largest side, in cells, of the grid on which the expected IoU is computed."""


def tiles_of(hw: tuple[int, int], settings: TileSettings) -> list[Box]:
    """Return the tiles of an image, row by row; empty if one tile covers the whole image.

    All tiles have one size and are evenly spread. Neighbours overlap by `tile_overlap` of the side or more. A side of
    the image that is shorter than a tile is not cut.
    """
    height, width = (min(side, settings.tile) for side in hw)
    if not settings.tile or (height, width) == hw:
        return []
    rows = _starts(hw[0], height, settings.tile_overlap)
    columns = _starts(hw[1], width, settings.tile_overlap)
    return [(x, y, width, height) for y in rows for x in columns]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """Return where tiles of `side` begin along `length`; the first begins at 0 and the last ends at `length`."""
    max_step = max(int(side * (1 - overlap)), 1)
    steps = ceil((length - side) / max_step)
    return [(length - side) * step // steps for step in range(steps)] + [length - side]


def crop(image: Image, xywh: Box) -> Image:
    """Return a part of an image, with the image's name and id."""
    x, y, width, height = xywh
    return replace(image, pixels=image.pixels[y : y + height, x : x + width])


def shift(points: PointPrompts, xywh: Box | None, *, back: bool = False) -> PointPrompts:
    """Move points from pixels of a view to pixels of the image, or `back`, which is exact up to the last bit."""
    if xywh is None:
        return points
    by = np.array(xywh[:2], np.float32) * (-1 if back else 1)
    return replace(points, xy=points.xy + by, boxes_xyxy=points.boxes_xyxy + np.tile(by, 2))


@dataclass(frozen=True, slots=True, eq=False)
class ViewSegment:
    """A segment that one view shows. Its mask is kept as the tight box only, so that many fit into memory.

    `mask` bool[h, w] is the mask inside its box `xywh` of the image. `quality` is that of `candidates.by_map`.
    """

    segment: Segment
    view: Box | None
    mask: NDArray[np.bool_]
    xywh: Box
    quality: float

    def within(self, xywh: Box) -> NDArray[np.bool_]:
        """Return the part of the mask inside another box of the image."""
        x, y, width, height = xywh
        left, top = x - self.xywh[0], y - self.xywh[1]
        return self.mask[top : top + height, left : left + width]

    def in_image(self, hw: tuple[int, int]) -> Segment:
        """Return the segment with its mask and points in the frame of the image."""
        mask, points = place(self.mask, self.xywh, hw), shift(self.segment.points, self.view)
        return replace(self.segment, mask=mask, points=points, view_xywh=self.view)


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What one view shows: segments that may be kept, and the presence float32[Q] of the queries."""

    segments: tuple[ViewSegment, ...]
    presence: NDArray[np.float32]


def view_of(
    result: Segmentation,
    box: Box | None,
    image_hw: tuple[int, int],
    settings: MaskSettings,
    fitted: Choice | None = None,
) -> View:
    """Reduce the segmentation of one view to what is needed for merging; drop its bad and cut segments if it is a tile.

    Args:
        box: The view.
        image_hw: Rows and columns of the whole image.
        fitted: The calibrated choice of the models.
    """
    maps = dict(zip(result.maps.queries, minmax(result.maps.scores), strict=True))
    left, top = box[:2] if box else (0, 0)
    segments = []
    for segment in result.segments:
        quality = _quality(segment, maps[segment.query], settings, fitted)
        if box and (
            quality < max(MIN_QUALITY, least_quality(0, settings, fitted)) or is_cut(segment.mask, box, image_hw)
        ):
            continue
        x, y, width, height = segment.box_xywh
        mask = segment.mask[y : y + height, x : x + width].copy()
        xywh = (x + left, y + top, width, height)
        segments.append(ViewSegment(replace(segment, mask=mask), box, mask, xywh, quality))
    return View(tuple(segments), result.maps.presence)


def _quality(segment: Segment, scores: NDArray[np.float32], settings: MaskSettings, fitted: Choice | None) -> float:
    """Return the quality of a segment in its view, by the rule that chose it there."""
    if settings.choice == "sam":
        return segment.sam_score
    step = ceil(max(segment.mask.shape) / QUALITY_GRID)
    mask = segment.mask[::step, ::step]
    chosen = slice(segment.chosen, segment.chosen + 1)
    candidate = Candidates(segment.candidates.logits[chosen], segment.candidates.scores[chosen])
    return float(by_map(mask[None], candidate, resize(scores[None], (mask.shape[0], mask.shape[1]))[0], fitted)[0])


def is_cut(mask: NDArray[np.bool_], tile: Box, image_hw: tuple[int, int]) -> bool:
    """Return whether a tile cuts its mask bool[h, w].

    It does if more than `MAX_CUT` of the mask is connected to pixels within `MARGIN` of a border of the tile that is
    not a border of the image.
    """
    x, y, width, height = tile
    rows, columns = ceil(MARGIN * height), ceil(MARGIN * width)
    border = np.zeros(mask.shape, np.bool_)
    border[:rows] = y > 0
    border[height - rows :] = y + height < image_hw[0]
    border[:, :columns] |= x > 0
    border[:, width - columns :] |= x + width < image_hw[1]
    touching = mask & border
    if not touching.any():
        return False
    _, parts = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    at_border = np.isin(parts, np.unique(np.asarray(parts)[touching]))
    return bool(np.count_nonzero(at_border) > MAX_CUT * np.count_nonzero(mask))


def merge_views(whole: Segmentation, views: Sequence[View], overlap: float) -> Segmentation:
    """Merge what all views of an image show.

    Args:
        whole: The segmentation of the whole image. Its maps are kept; the presence of a query is the highest of all
            views.
        views: All views, the whole image among them.
        overlap: IoU above which two segments show the same thing.
    """
    segments = []
    for query in whole.maps.queries:
        of_query = [each for view in views for each in view.segments if each.segment.query == query]
        segments += [each.in_image(whole.image.hw) for each in merge(of_query, overlap)]
    presence = np.max([view.presence for view in views], axis=0)
    return replace(whole, segments=tuple(segments), maps=replace(whole.maps, presence=presence))


def merge(segments: Sequence[ViewSegment], overlap: float) -> list[ViewSegment]:
    """Return one segment for each thing, the best first, from the segments of one query in all views."""
    shared = np.zeros((len(segments), len(segments)))
    for i, one in enumerate(segments):
        for j, other in enumerate(segments[: i + 1]):
            shared[i, j] = shared[j, i] = _shared_pixels(one, other)
    quality = np.array([each.quality for each in segments])
    return [segments[index] for index in suppress_by_intersection(shared, quality, overlap)]


def _shared_pixels(one: ViewSegment, other: ViewSegment) -> int:
    """Return the number of pixels that are in both masks."""
    left, top = max(one.xywh[0], other.xywh[0]), max(one.xywh[1], other.xywh[1])
    right = min(one.xywh[0] + one.xywh[2], other.xywh[0] + other.xywh[2])
    bottom = min(one.xywh[1] + one.xywh[3], other.xywh[1] + other.xywh[3])
    if right <= left or bottom <= top:
        return 0
    box = (left, top, right - left, bottom - top)
    return int(np.count_nonzero(one.within(box) & other.within(box)))
