"""Automatic masks: everything in an image, without words.

SAM answers every point of a grid alone. Candidates that SAM rates low, or whose outline depends on the threshold, are
dropped, then those that repeat a better one. Crops of the image are searched in the same way, for small things. With
the default settings the masks are those of `segment_anything.SamAutomaticMaskGenerator`, faster for two reasons: the
decoder projects an image once for all points, and a candidate is upscaled only if SAM rates it high enough, and only
where its logits are near or above the threshold.

Source: Kirillov et al., "Segment Anything" (arXiv 2304.02643), section 5 and appendix B.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import ceil, inf

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from text2seg.config import AutomaticSettings
from text2seg.grids import place, tight_box
from text2seg.records import UNNAMED, Box, Candidates, Image, PointPrompts, Segment, Segmentation, SimilarityMaps
from text2seg.sam.base import AnySam, SamEmbedding
from text2seg.sam.candidates import CONTAINED, suppress_by_intersection

EDGE = 20
"""Distance in pixels up to which a box touches the edge of a crop; the crop may cut such a thing."""
OVERLAP_GRID = 256
"""Largest side, in cells, of the grid on which masks are compared."""


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """One thing: a candidate that was kept, in the frame of the whole image.

    `mask` bool[h, w] is the mask inside its tight box `xywh`. `point` is the point that SAM answered, and `chosen` the
    number of the candidate among its answers in the crop `view_xywh` (None: the whole image). `stability` is the IoU of
    its masks at a higher and a lower threshold.
    """

    mask: NDArray[np.bool_] = field(repr=False)
    xywh: Box
    point: PointPrompts
    chosen: int
    predicted_iou: float
    stability: float
    view_xywh: Box | None = None

    def in_image(self, hw: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the mask bool[H, W] of the whole image."""
        return place(self.mask, self.xywh, hw)


FEW_POINTS = 4
"""Points per side with which the time of a grid is measured."""


def seconds_of_regions(regions: Callable[[AutomaticSettings], object], settings: AutomaticSettings) -> float:
    """Return about how many seconds automatic masks take, from those of a grid of few points.

    Args:
        regions: makes the automatic masks of an image with the settings given. The first call may also embed the image.
        settings: those of the masks whose time is estimated; without crops, it grows with the number of points.
    """
    regions(replace(settings, points_per_side=1))
    before = time.perf_counter()
    regions(replace(settings, points_per_side=FEW_POINTS))
    return (time.perf_counter() - before) * (settings.points_per_side / FEW_POINTS) ** 2


Embed = Callable[[Box | None], SamEmbedding]
"""Function that embeds a crop of the image; None is the whole image."""


def automatic_masks(
    sam: AnySam,
    embed: Embed,
    image: Image,
    settings: AutomaticSettings,
    name: str = UNNAMED,
    say_stage: Callable[[str], None] = lambda stage: None,
) -> Segmentation:
    """Return everything in an image as segments of one query `name`, those with the highest predicted IoU first.

    `say_stage` is called with how far the search is, such as "crop 2 of 5, point 65 of 256". There are no words, so the
    map is zero everywhere, `map_score` is 0, and `presence` is 1.
    """
    maps = SimilarityMaps.flat((name,), image.hw)
    regions = automatic_regions(sam, embed, image.hw, settings, say_stage=say_stage)
    segments = [
        Segment(
            query=name,
            mask=region.in_image(image.hw),
            sam_score=region.predicted_iou,
            map_score=0.0,
            presence=1.0,
            points=region.point,
            candidates=candidates,
            chosen=region.chosen,
            view_xywh=region.view_xywh,
        )
        for region, candidates in zip(regions, candidates_of(sam, embed, regions, settings), strict=True)
    ]
    return Segmentation(image, tuple(segments), maps)


def candidates_of(
    sam: AnySam, embed: Embed, regions: Sequence[Region], settings: AutomaticSettings
) -> list[Candidates]:
    """Return the candidates of each region's point. They are decoded once more, because those of all points together
    would need several times the memory of those that are kept. Each crop is embedded once, each point decoded once."""
    found: dict[int, Candidates] = {}
    for crop in dict.fromkeys(region.view_xywh for region in regions):
        embedding = embed(crop)
        of_point: dict[bytes, list[int]] = {}
        for number, region in enumerate(regions):
            if region.view_xywh == crop:
                of_point.setdefault(region.point.xy.tobytes(), []).append(number)
        sets = list(of_point.values())
        for start in range(0, len(sets), settings.points_per_call):
            part = sets[start : start + settings.points_per_call]
            answers = sam.decode([(embedding, _moved(regions[numbers[0]].point, crop)) for numbers in part])
            for numbers, each in zip(part, answers, strict=True):
                found |= dict.fromkeys(numbers, Candidates(each.logits.copy(), each.scores.copy()))
    return [found[number] for number in range(len(regions))]


def _moved(point: PointPrompts, crop: Box | None) -> PointPrompts:
    """Return a point of the image in the frame of a crop."""
    return point if crop is None else _positive(point.xy[0] - crop[:2])


@torch.no_grad()
def automatic_regions(
    sam: AnySam,
    embed: Embed,
    image_hw: tuple[int, int],
    settings: AutomaticSettings,
    *,
    where: NDArray[np.bool_] | None = None,
    say_stage: Callable[[str], None] = lambda stage: None,
) -> list[Region]:
    """Return the regions of one image, those with the highest predicted IoU first.

    Crops are searched one after the other. With `crop_layers`, regions of smaller crops come first, because they are
    kept where they repeat one of a larger crop.

    Args:
        where: bool [h, w], a grid that covers the image; points in its other cells are left out. Default: all points.
        say_stage: see `automatic_masks`.
    """
    crops = crops_of(image_hw, settings)
    regions: list[Region] = []
    for number, (crop, layer) in enumerate(crops, start=1):
        of = f"crop {number} of {len(crops)}, " if len(crops) > 1 else ""

        def say(stage: str, of: str = of) -> None:
            say_stage(of + stage)

        regions += _regions_of_crop(sam, embed, crop, layer, image_hw, settings, where, say)
    if len(crops) > 1:
        areas = [(region.view_xywh or (0, 0, *image_hw))[2:] for region in regions]
        smallest_first = [1 / (height * width) for height, width in areas]
        regions = [regions[index] for index in _nms(regions, smallest_first, settings.box_overlap)]
    if settings.suppression != "boxes":
        regions = _without_repeats(regions, image_hw, settings)
    if settings.min_region:
        regions = _cleaned(regions, image_hw, settings)
    return regions


def crops_of(image_hw: tuple[int, int], settings: AutomaticSettings) -> list[tuple[Box | None, int]]:
    """Return the crops of an image, each with its layer: the whole image, then 4 crops, 16, and so on."""
    height, width = image_hw
    crops: list[tuple[Box | None, int]] = [(None, 0)]
    for layer in range(1, settings.crop_layers + 1):
        count = 2**layer
        overlap = int(settings.crop_overlap * min(image_hw) * (2 / count))
        crop_width, crop_height = (ceil((overlap * (count - 1) + length) / count) for length in (width, height))
        for column, row in product(range(count), repeat=2):
            x, y = (crop_width - overlap) * column, (crop_height - overlap) * row
            crops.append(((x, y, min(crop_width, width - x), min(crop_height, height - y)), layer))
    return crops


def grid(side: int) -> NDArray[np.float64]:
    """Return `side` × `side` points float64 [N, 2] as shares of width and height, at the centres of cells, by rows."""
    centres = (np.arange(side) + 0.5) / side
    return np.stack([np.tile(centres, side), np.repeat(centres, side)], axis=1)


def _regions_of_crop(
    sam: AnySam,
    embed: Embed,
    crop: Box | None,
    layer: int,
    image_hw: tuple[int, int],
    settings: AutomaticSettings,
    where: NDArray[np.bool_] | None,
    say_stage: Callable[[str], None],
) -> list[Region]:
    """Return the regions of one crop without repeats, those with the highest predicted IoU first."""
    x, y, width, height = crop or (0, 0, image_hw[1], image_hw[0])
    side = settings.points_per_side // settings.crop_points_divisor**layer
    points = (grid(side) * (width, height)).astype(np.float32)
    if where is not None:
        cells = ((points + np.array([x, y])) * (where.shape[::-1] / np.array(image_hw[::-1]))).astype(np.int64)
        points = points[where[cells[:, 1], cells[:, 0]]]
    if not len(points):
        return []
    embedding, above = embed(crop), settings.predicted_iou or -inf
    upscaling = sam.upscaling(embedding)
    regions = []
    for start in range(0, len(points), settings.points_per_call):
        say_stage(f"point {start + 1} of {len(points)}")
        prompts = [_positive(point) for point in points[start : start + settings.points_per_call]]
        answers = sam.decode([(embedding, prompt) for prompt in prompts], above=above)
        for prompt, candidates in zip(prompts, answers, strict=True):
            for index in np.flatnonzero(candidates.scores > above).tolist():
                found = upscaling.mask(candidates.logits[index], settings.stability_offset)
                if found is None or found.stability < settings.stability:
                    continue
                left, top, columns, rows = found.xywh
                xywh = (left + x, top + y, columns, rows)
                if crop is not None and _is_cut(xywh, crop, image_hw):
                    continue
                point, score = _positive(prompt.xy[0] + (x, y)), float(candidates.scores[index])
                regions.append(Region(found.mask, xywh, point, index, score, found.stability, crop))
    return [regions[index] for index in _nms(regions, [each.predicted_iou for each in regions], settings.box_overlap)]


def _positive(xy: NDArray[np.floating]) -> PointPrompts:
    """Return one positive point."""
    return PointPrompts(np.asarray(xy, np.float32)[None], np.ones(1, np.int8), np.ones(1, np.float32))


def _is_cut(xywh: Box, crop: Box, image_hw: tuple[int, int]) -> bool:
    """Return whether a box touches an edge of its crop that is not an edge of the image."""
    box, (x, y, width, height) = _corners(xywh), crop
    cropped, image = np.array([x, y, x + width, y + height]), np.array([0, 0, image_hw[1], image_hw[0]])
    return bool(((abs(box - cropped) <= EDGE) & (abs(box - image) > EDGE)).any())


def _corners(xywh: Box) -> NDArray[np.int64]:
    """Return the first and the last column and row of a box, as segment-anything counts them: left, top, right,
    bottom."""
    x, y, width, height = xywh
    return np.array([x, y, x + width - 1, y + height - 1])


def _nms(regions: Sequence[Region], scores: Sequence[float], overlap: float) -> list[int]:
    """Return the indices of the regions whose boxes do not repeat one with a higher score, the highest first."""
    if not regions:
        return []
    boxes = np.stack([_corners(each.xywh) for each in regions])
    first, last = boxes[:, :2], boxes[:, 2:]
    shared = (np.minimum(last[:, None], last) - np.maximum(first[:, None], first)).clip(0).prod(-1).astype(np.float64)
    np.fill_diagonal(shared, shared.diagonal().clip(1))  # a box one pixel wide has no area, and is kept
    return suppress_by_intersection(shared, np.array(scores), overlap, contained=inf)


def _without_repeats(regions: Sequence[Region], image_hw: tuple[int, int], settings: AutomaticSettings) -> list[Region]:
    """Drop regions whose masks repeat one with a higher predicted IoU, and with "parts" those inside or around one."""
    if not regions:
        return []
    step = ceil(max(image_hw) / OVERLAP_GRID)
    low = np.stack([coarse(region, step, image_hw).ravel() for region in regions]).astype(np.float32)
    scores = np.array([region.predicted_iou for region in regions])
    contained = CONTAINED if settings.suppression == "parts" else inf
    kept = suppress_by_intersection(low @ low.T, scores, settings.box_overlap, contained=contained)
    return [regions[index] for index in kept]


def coarse(region: Region, step: int, image_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which cells of `step` × `step` pixels have a pixel of the region, bool[rows, columns] of the image."""
    x, y, width, height = region.xywh
    top, left, bottom, right = y // step, x // step, -(-(y + height) // step), -(-(x + width) // step)
    part = np.zeros(((bottom - top) * step, (right - left) * step), np.bool_)
    part[y - top * step :, x - left * step :][:height, :width] = region.mask
    cells = np.zeros([-(-side // step) for side in image_hw], np.bool_)
    cells[top:bottom, left:right] = part.reshape(bottom - top, step, right - left, step).any((1, 3))
    return cells


def owners(regions: Sequence[Region], image_hw: tuple[int, int]) -> NDArray[np.int32]:
    """Return the number of the smallest region that holds each pixel, int32 [H, W]; -1 outside all regions."""
    owner = np.full(image_hw, -1, np.int32)
    areas = [np.count_nonzero(region.mask) for region in regions]
    for number in np.argsort(areas, kind="stable")[::-1].tolist():
        x, y, width, height = regions[number].xywh
        owner[y : y + height, x : x + width][regions[number].mask] = number
    return owner


def _cleaned(regions: Sequence[Region], image_hw: tuple[int, int], settings: AutomaticSettings) -> list[Region]:
    """Fill small holes, remove small islands, and drop regions that repeat another after that; unchanged ones first."""
    cleaned, scores = [], []
    for region in regions:
        mask = region.in_image(image_hw)
        filled = _without_small(mask, settings.min_region, holes=True)
        tidy = _without_small(filled, settings.min_region, holes=False)
        scores.append(float(np.array_equal(tidy, mask)))
        tight = tight_box(tidy)
        assert tight is not None, "the largest island stays"
        x, y, width, height = tight
        cleaned.append(replace(region, mask=tidy[y : y + height, x : x + width].copy(), xywh=tight))
    return [cleaned[index] for index in _nms(cleaned, scores, settings.box_overlap)]


def _without_small(mask: NDArray[np.bool_], min_area: int, *, holes: bool) -> NDArray[np.bool_]:
    """Fill holes, or remove islands, of fewer than `min_area` pixels. The largest island always stays."""
    parts = (mask != holes).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(parts, connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    small = areas < min_area
    if not small.any():
        return mask
    if holes:
        return mask | np.isin(labels, np.flatnonzero(small) + 1)
    kept = np.flatnonzero(~small) if not small.all() else areas.argmax(keepdims=True)
    return np.isin(labels, kept + 1)
