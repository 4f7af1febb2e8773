"""Small things in large images: tiles that overlap are looked at beside the whole, and what is seen is put together.

The idea is that of SAHI (Akyon et al., "Slicing Aided Hyper Inference and Fine-tuning for Small Object Detection",
arXiv 2202.06934), which puts boxes together; here it is masks. A view is the whole image or a tile of it. Boxes of
views are `xywh` in pixels of the image; `None` is the whole image.

Which segments of a query stay:

1. One that is cut goes: one most of which hangs together with pixels at a border that its tile has inside the image.
   What is smaller than the tiles' overlap is whole in another tile, what is large enough is found in the whole image,
   and what is in between and whole in no view is not found: larger tiles or more overlap find it.
2. One of a tile goes where an IoU below `LEAST_QUALITY` is to be expected of it, even if it is the best of its tile:
   many tiles make many mistakes. Those of the whole image stay as they are without tiles.
3. Of those that show the same thing, by the rule that holds within an image (`sam.nms`), the one stays of which the
   highest IoU is to be expected, be it seen in the whole image or in a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Protocol, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from text2seg.config import MaskSettings, Settings, TileSettings
from text2seg.grids import minmax, resize
from text2seg.records import Box, Candidates, Image, PointPrompts, Segment, Segmentation
from text2seg.sam.candidates import by_map
from text2seg.sam.nms import best_of_each
from text2seg.sam.overlap import settle

VIEWS_PER_CALL = 8  # tiles that go through the models at once
KEPT_VIEWS = 32  # tiles of one image whose tokens and embeddings are kept: about 6 MB each with ViT-B
MARGIN = 0.01  # of a tile's side: SAM's masks may end a pixel of its low resolution before the border
MOST_CUT = 0.5  # of a mask's pixels; so specks at a border do not count, nor one cut thing in a mask of many
LEAST_QUALITY = 0.5
GRID = 256  # cells, at most, along a side on which the expected IoU is computed


class Viewable(Protocol):
    """What is open on an image and can be opened on a part of it."""

    @property
    def image(self) -> Image: ...

    def view(self: V, xywh: Box | None) -> V: ...


V = TypeVar("V", bound=Viewable)


def tiles_of(hw: tuple[int, int], settings: TileSettings) -> list[Box]:
    """The tiles of an image, row by row: all of one size, evenly spread, each over its neighbours by `tile_overlap` of
    its side or more. A side of the image that is shorter than a tile is not cut. None where one tile is all of it.
    """
    height, width = (min(side, settings.tile) for side in hw)
    if not settings.tile or (height, width) == hw:
        return []
    rows = _starts(hw[0], height, settings.tile_overlap)
    columns = _starts(hw[1], width, settings.tile_overlap)
    return [(x, y, width, height) for y in rows for x in columns]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """Where tiles of `side` begin along `length`, the first at 0 and the last at its end."""
    furthest = max(int(side * (1 - overlap)), 1)
    steps = ceil((length - side) / furthest)
    return [(length - side) * step // steps for step in range(steps)] + [length - side]


def crop(image: Image, xywh: Box) -> Image:
    """A part of the image, with the image's name and number."""
    x, y, width, height = xywh
    return replace(image, pixels=image.pixels[y : y + height, x : x + width])


def place(mask: NDArray[np.bool_], xywh: Box | None, hw: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask of a part of the image as a mask bool[H, W] of all of it."""
    if xywh is None:
        return mask
    x, y, width, height = xywh
    placed = np.zeros(hw, np.bool_)
    placed[y : y + height, x : x + width] = mask
    return placed


def shift(points: PointPrompts, xywh: Box | None, *, back: bool = False) -> PointPrompts:
    """Points of a view in pixels of the image; `back` is the other way round, to the last bit or the one before."""
    if xywh is None:
        return points
    by = np.array(xywh[:2], np.float32) * (-1 if back else 1)
    return replace(points, xy=points.xy + by, boxes_xyxy=points.boxes_xyxy + np.tile(by, 2))


def segment_views(
    whole: V,
    segment: Callable[..., Sequence[Segmentation]],
    settings: Settings,
    smallest: Sequence[int],
) -> Segmentation:
    """All views of one image, a few at a time, and their segments together.

    Between calls a segment's mask is kept as its tight box only. The presence of a query is the highest of all views;
    the maps are those of the whole image.

    Args:
        whole: the image.
        segment: called as `segment(views, settings=…)`, with settings without tiles.
        smallest: the least area of each query's segments.
    """
    tiles = tiles_of(whole.image.hw, settings.tiles)
    plain = replace(settings, tiles=TileSettings())
    if not tiles:
        return segment([whole], settings=plain)[0]
    plain = replace(plain, masks=replace(settings.masks, compete=False))  # over all views together, in the end
    result = segment([whole], settings=plain)[0]
    seen = _seen(result, None, whole.image.hw, settings.masks)
    presence = result.maps.presence
    for start in range(0, len(tiles), VIEWS_PER_CALL):
        boxes = tiles[start : start + VIEWS_PER_CALL]
        for box, found in zip(boxes, segment([whole.view(box) for box in boxes], settings=plain), strict=True):
            seen += _seen(found, box, whole.image.hw, settings.masks)
            presence = np.maximum(presence, found.maps.presence)
    of_query = ([one for one in seen if one.segment.query == query] for query in result.maps.queries)
    kept = [one for own in of_query for one in merge(own, settings.masks.overlap)]
    segments = [one.in_image(whole.image.hw) for one in kept]
    maps = replace(result.maps, presence=presence)
    if settings.masks.compete:
        segments = settle(segments, maps, smallest)
    return replace(result, segments=tuple(segments), maps=maps)


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A segment as one view shows it: `mask` bool[h, w] is what lies in its tight box, `xywh` in the image; `quality`
    the IoU to be expected of it."""

    segment: Segment
    view: Box | None
    mask: NDArray[np.bool_]
    xywh: Box
    quality: float

    def within(self, xywh: Box) -> NDArray[np.bool_]:
        """The part of the mask in a box of the image that lies in the mask's own box."""
        x, y, width, height = xywh
        left, top = x - self.xywh[0], y - self.xywh[1]
        return self.mask[top : top + height, left : left + width]

    def in_image(self, hw: tuple[int, int]) -> Segment:
        return replace(
            self.segment,
            mask=place(self.mask, self.xywh, hw),
            points=shift(self.segment.points, self.view),
            view_xywh=self.view,
        )


def _seen(found: Segmentation, view: Box | None, hw: tuple[int, int], settings: MaskSettings) -> list[Seen]:
    """The segments of one view that can stay, their masks reduced to their boxes until all views are there."""
    maps = dict(zip(found.maps.queries, minmax(found.maps.scores), strict=True))
    left, top = view[:2] if view else (0, 0)
    seen = []
    for segment in found.segments:
        quality = _quality(segment, maps[segment.query], settings)
        if view and (quality < max(LEAST_QUALITY, settings.quality) or is_cut(segment.mask, view, hw)):
            continue
        x, y, width, height = segment.box_xywh
        mask = segment.mask[y : y + height, x : x + width].copy()
        seen.append(Seen(replace(segment, mask=mask), view, mask, (x + left, y + top, width, height), quality))
    return seen


def _quality(segment: Segment, scores: NDArray[np.float32], settings: MaskSettings) -> float:
    """The IoU that is to be expected of a segment in its view, by the same rule that chose it there."""
    if settings.choice == "sam":
        return segment.sam_score
    step = ceil(max(segment.mask.shape) / GRID)
    mask = segment.mask[::step, ::step]
    chosen = slice(segment.chosen, segment.chosen + 1)
    candidate = Candidates(segment.candidates.logits[chosen], segment.candidates.scores[chosen])
    return float(by_map(mask[None], candidate, resize(scores[None], (mask.shape[0], mask.shape[1]))[0])[0])


def is_cut(mask: NDArray[np.bool_], view: Box, hw: tuple[int, int]) -> bool:
    """Whether more than `MOST_CUT` of a tile's mask bool[h, w] hangs together with what is within `MARGIN` of a border
    of the tile that is none of the image's."""
    x, y, width, height = view
    rows, columns = ceil(MARGIN * height), ceil(MARGIN * width)
    border = np.zeros(mask.shape, np.bool_)
    border[:rows] = y > 0
    border[height - rows :] = y + height < hw[0]
    border[:, :columns] |= x > 0
    border[:, width - columns :] |= x + width < hw[1]
    touching = mask & border
    if not touching.any():
        return False
    _, parts = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    at_border = np.isin(parts, np.unique(np.asarray(parts)[touching]))
    return bool(np.count_nonzero(at_border) > MOST_CUT * np.count_nonzero(mask))


def merge(seen: Sequence[Seen], overlap: float) -> list[Seen]:
    """Of the segments of one query in all views of an image, one of each thing, the best first."""
    shared = np.zeros((len(seen), len(seen)))
    for i, one in enumerate(seen):
        for j, other in enumerate(seen[: i + 1]):
            shared[i, j] = shared[j, i] = _shared(one, other)
    quality = np.array([one.quality for one in seen])
    return [seen[index] for index in best_of_each(shared, quality, overlap)]


def _shared(one: Seen, other: Seen) -> int:
    """Pixels that are in both masks."""
    box = common(one.xywh, other.xywh)
    return int(np.count_nonzero(one.within(box) & other.within(box))) if box else 0


def common(one: Box, other: Box) -> Box | None:
    """The box that two boxes share, if any."""
    left, top = max(one[0], other[0]), max(one[1], other[1])
    right, bottom = min(one[0] + one[2], other[0] + other[2]), min(one[1] + one[3], other[1] + other[3])
    return (left, top, right - left, bottom - top) if right > left and bottom > top else None
