"""From similarity maps to prompts for SAM: regions of a map, and positive and negative points in them.

Source: CLIP Surgery's text2points (Li et al., arXiv 2304.05653, section 4.4).
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from text2seg.clip.maps import QueryMap
from text2seg.config import PointSettings, Prompt, Settings
from text2seg.errors import SettingsError
from text2seg.grids import check_inside, minmax, outside_of, resize, tight_box
from text2seg.model_card import ModelCard
from text2seg.queries import Query
from text2seg.records import PointPrompts, SamPrompt
from text2seg.settings_fields import of_type

log = logging.getLogger(__name__)

MOST_POINTS = 8  # largest number of positive points of a region; more points near a peak tell SAM nothing new
FLOOR, PROMINENCE = 0.5, 0.05  # bounds of regions for weights without a card; half of the peak, and any real saddle
BOX_LEVEL = 0.7  # share of the peak; best of 0.5 to 0.9 on drawings: at 0.5, boxes are wider than the objects
FINE_GRID = 16  # cells per side in the original: 512 px in patches of 16, halved

NO_POINTS = PointPrompts(np.zeros((0, 2), np.float32), np.zeros(0, np.int8), np.zeros(0, np.float32))
NO_MAPS = np.zeros((0, 1, 1), np.float32)


def check_prompts(points: PointPrompts, image_hw: tuple[int, int]) -> None:
    """Check the points and the box that a person set on an image.

    Raises:
        SettingsError: there are neither, a point or a corner of the box is outside the image, or the box is empty.
    """
    height, width = image_hw
    given = of_type(points, PointPrompts, "points")
    if not len(given) and not len(given.boxes_xyxy):
        raise SettingsError("there are no points and no box; give at least one point, or a box")
    for x, y in given.xy.tolist():
        check_inside(x, y, image_hw)
    for left, top, right, bottom in given.boxes_xyxy.tolist():
        box = f"the box {left:g}, {top:g}, {right:g}, {bottom:g} (left, top, right, bottom)"
        if not (left >= 0 and top >= 0 and right <= width and bottom <= height):
            raise SettingsError(f"{box} is {outside_of(image_hw)}")
        if not (left < right and top < bottom):
            raise SettingsError(f"{box} is empty")


def query_prompts(
    query: Query,
    query_map: QueryMap,
    image_hw: tuple[int, int],
    settings: Settings,
    card: ModelCard,
    *,
    min_presence: float,
) -> tuple[SamPrompt, ...]:
    """Make SAM's prompts for one query, with the bounds of regions and the threshold that the query, the settings or
    the model card say; see `sam_prompts`."""
    points, bounds = settings.points, card.regions
    threshold = points.threshold if query.threshold is None else query.threshold
    if points.instances == "auto":
        points = replace(points, instances="regions")
    if bounds:
        floor = bounds.floor if points.floor is None else points.floor
        prominence = bounds.prominence if points.prominence is None else points.prominence
        points = replace(points, floor=floor, prominence=prominence)
    calibrated = card.default_presence(settings.maps.architecture, settings.maps.input_size) is not None
    return sam_prompts(
        query_map.parts,
        query_map.patch_presence,
        image_hw,
        replace(points, threshold=threshold),
        query_map.negatives,
        settings.masks.prompt,
        min_presence=min_presence,
        far_below=bounds.far_below if bounds and calibrated else None,
    )


def sam_prompts(
    parts: NDArray[np.float32],
    patch_presence: NDArray[np.float32],
    image_hw: tuple[int, int],
    settings: PointSettings,
    negatives: NDArray[np.float32] = NO_MAPS,
    prompt: Prompt = "points",
    *,
    min_presence: float,
    far_below: float | None = None,
) -> tuple[SamPrompt, ...]:
    """Make SAM's prompts for one query: one prompt for each region of its map, or one for the whole map.

    Args:
        parts: float32 [parts, gh, gw], the maps of the query's parts. Several parts (`a+b`) give one prompt together.
        patch_presence: float32 [gh, gw], the presence of the query in each patch.
        image_hw: rows and columns of the image that the grid covers.
        negatives: float32 [negatives, gh, gw] in [0, 1], the maps of the negative queries. Their peaks outside the
            region of a prompt become negative points and replace some of the map's lowest cells; not with `reference`.
        prompt: `box` gives the tight box and the peak of each region instead of many points; `box-mask` adds a rough
            mask.
        min_presence: regions, or whole maps, with a lower presence give no prompt.
        far_below: regions whose odds of presence are this many times lower than the best ones give no prompt. None: no
            such limit, for presence that is not calibrated.

    Returns:
        Prompts, the highest region first. Empty if the map is constant or not finite.
    """
    if not patch_presence.max() >= min_presence:
        return ()
    stretched = minmax(parts)
    if len(parts) == 1 and settings.instances == "regions":
        minimum = max(min_presence, _lower_odds(float(patch_presence.max()), far_below) if far_below else 0.0)
        found = [cells for cells in regions(stretched[0], settings) if patch_presence.ravel()[cells].max() >= minimum]
        prompts = [_region_prompt(stretched[0], cells, image_hw, settings) for cells in found]
    else:
        prompts = _whole_prompt(parts, stretched.mean(0), image_hw, settings)
    prompts = [
        replace(sam_prompt, presence=float(patch_presence[sam_prompt.region].max(initial=0))) for sam_prompt in prompts
    ]
    if prompt != "points":
        prompts = [_boxed(sam_prompt, image_hw, with_mask=prompt == "box-mask") for sam_prompt in prompts]
    if settings.method != "reference":
        peaks = _peaks(negatives, settings)
        prompts = [_away_from(sam_prompt, peaks, image_hw) for sam_prompt in prompts]
    return tuple(prompts)


def _lower_odds(presence: float, times: float) -> float:
    """Return the presence whose odds are so many times lower."""
    return presence / (presence + times * (1 - presence))


def _floor(settings: PointSettings) -> float:
    return FLOOR if settings.floor is None else settings.floor


def regions(scores: NDArray[np.float32], settings: PointSettings) -> list[NDArray[np.int64]]:
    """Split one min-max map [h, w] in [0, 1] into regions, the highest first.

    Cells below `settings.floor` belong to no region. Two peaks are regions of their own if the lower one is at least
    `settings.prominence` above the saddle between them.

    Returns:
        For each region the indices of its cells in the flattened map, the highest first. Empty for a constant map.
    """
    height, width = scores.shape
    prominence = PROMINENCE if settings.prominence is None else settings.prominence
    flat = scores.ravel()
    order = np.argsort(-flat, kind="stable")
    order = order[flat[order] >= _floor(settings)]
    if not len(order) or np.ptp(flat) == 0:
        return []
    parent = np.full(flat.size, -1, np.int64)  # parent of each flooded cell; the root is the region's peak

    def peak(cell: int) -> int:
        while parent[cell] != cell:
            parent[cell] = parent[parent[cell]]
            cell = int(parent[cell])
        return cell

    for cell in order.tolist():
        row, column = divmod(cell, width)
        parent[cell] = cell
        near = {
            peak(r * width + c)
            for r in range(max(row - 1, 0), min(row + 2, height))
            for c in range(max(column - 1, 0), min(column + 2, width))
            if parent[r * width + c] >= 0
        } - {cell}
        if not near:
            continue
        highest, *others = sorted(near, key=lambda p: (-flat[p], p))
        parent[cell] = highest
        for other in others:
            if flat[other] - flat[cell] < prominence:
                parent[other] = highest
    found: dict[int, list[int]] = {}
    for cell in order.tolist():
        found.setdefault(peak(cell), []).append(cell)
    return [np.array(cells) for cells in found.values()]


def _region_prompt(
    scores: NDArray[np.float32], cells: NDArray[np.int64], image_hw: tuple[int, int], settings: PointSettings
) -> SamPrompt:
    """Make the prompt of one region.

    Positive points are the region's cells at `threshold` times its peak or above; as many of the map's lowest cells
    are negative points.
    """
    flat = scores.ravel()
    positives = cells[flat[cells] >= settings.threshold * flat[cells[0]]][:MOST_POINTS]
    negatives = np.argsort(flat, kind="stable")[: len(positives)]
    both = np.concatenate([positives, negatives])
    labels = np.repeat(np.array([1, 0], np.int8), len(positives))
    height, width = scores.shape
    centres = _centres(height, width, image_hw, whole=False)
    region = np.zeros(flat.size, np.bool_)
    region[cells] = True
    return SamPrompt(PointPrompts(centres[both], labels, flat[both]), scores, region.reshape(scores.shape))


def _whole_prompt(
    parts: NDArray[np.float32], mean: NDArray[np.float32], image_hw: tuple[int, int], settings: PointSettings
) -> list[SamPrompt]:
    """Make one prompt for the whole map. Its region has the cells at `floor` times the peak of the mean map or
    above."""
    points = (
        text2points(parts, image_hw, settings)[0] if len(parts) == 1 else combined_points(parts, image_hw, settings)
    )
    return [SamPrompt(points, mean, mean >= _floor(settings) * mean.max())] if len(points) else []


def text2points(
    scores: NDArray[np.float32], image_hw: tuple[int, int], settings: PointSettings
) -> tuple[PointPrompts, ...]:
    """Choose positive and negative points for every map.

    The grid is made coarser by `settings.downsample` and stretched to [0, 1]. The n cells at or above the threshold,
    but at most half of all cells, are positive; the n lowest cells are negative.

    Args:
        scores: float32 [Q, gh, gw], similarity per patch.
        image_hw: rows and columns of the image that the grid covers. Points are centres of cells, in pixels of the
            image.

    Returns:
        One set for each map, in ascending similarity, positives first. A map has no points if it is constant, not
        finite, or a single cell.
    """
    maps = coarse_maps(scores, settings)
    height, width = maps.shape[1:]
    flat = maps.reshape(len(maps), height * width)
    if flat.shape[1] == 1:
        log.warning("the map has one cell only, so nothing can be found: enlarge the input size or lower downsample")
    order = np.argsort(flat, axis=1, kind="stable")
    counts = np.minimum((flat >= settings.threshold).sum(1), flat.shape[1] // 2)
    centres = _centres(height, width, image_hw, whole=settings.method == "reference")
    return tuple(
        _extremes(order[query], flat[query], centres, int(counts[query])) if np.ptp(flat[query]) > 0 else NO_POINTS
        for query in range(len(maps))
    )


def coarse_maps(scores: NDArray[np.float32], settings: PointSettings) -> NDArray[np.float32]:
    """Return the min-max maps [Q, h, w] on the coarser grid that points are chosen on."""
    height, width = scores.shape[1:]
    factor = settings.downsample or (2 if min(height, width) > FINE_GRID else 1)
    return minmax(resize(scores, (max(height // factor, 1), max(width // factor, 1))))


def _extremes(order: NDArray, scores: NDArray, centres: NDArray, count: int) -> PointPrompts:
    """Return the `count` highest cells as positive and the `count` lowest as negative points."""
    cells = np.concatenate([order[len(order) - count :], order[:count]])
    labels = np.repeat(np.array([1, 0], np.int8), count)
    return PointPrompts(centres[cells], labels, scores[cells])


def combined_points(scores: NDArray[np.float32], image_hw: tuple[int, int], settings: PointSettings) -> PointPrompts:
    """Choose one set of points for several maps together, as CLIP Surgery does for `person+bench`.

    Positive points are from each map, negative points from the mean of the min-max maps [Q, gh, gw]. A cell that
    several maps choose is one point; `reference` repeats it.
    """
    stretched = minmax(scores)
    (mean,) = text2points(stretched.mean(0, keepdims=True), image_hw, settings)
    parts = [_take(prompts, 1) for prompts in text2points(stretched, image_hw, settings)]
    if settings.method == "reference":
        return _join([_take(mean, 0), *parts])
    return _join([_distinct(_join(parts)), _take(mean, 0)])


def _take(prompts: PointPrompts, label: int) -> PointPrompts:
    """Return the points of one label."""
    rows = prompts.labels == label
    return PointPrompts(prompts.xy[rows], prompts.labels[rows], prompts.similarity[rows])


def _join(parts: list[PointPrompts]) -> PointPrompts:
    return PointPrompts(
        np.concatenate([part.xy for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.similarity for part in parts]),
    )


def _distinct(prompts: PointPrompts) -> PointPrompts:
    """Return the points without repeated cells."""
    _, first = np.unique(prompts.xy, axis=0, return_index=True)
    first.sort()
    return PointPrompts(prompts.xy[first], prompts.labels[first], prompts.similarity[first])


def _boxed(sam_prompt: SamPrompt, image_hw: tuple[int, int], *, with_mask: bool) -> SamPrompt:
    """Replace the points of a prompt by a box and its highest cell, and add the map of its region as a rough mask.

    The box is the tight box around the cells at `BOX_LEVEL` times the region's peak or above.

    Source: Shi et al., "Harnessing Vision Foundation Models for High-Performance, Training-Free Open Vocabulary
    Segmentation" (Trident, arXiv 2411.09219).
    """
    height, width = sam_prompt.scores.shape
    inside = np.where(sam_prompt.region, sam_prompt.scores, np.float32(0))
    core = sam_prompt.region & (sam_prompt.scores >= BOX_LEVEL * inside.max())
    box = tight_box(core)
    assert box is not None  # the peak is inside
    x, y, across, down = box
    corners = np.array([[x, y, x + across, y + down]], np.float64)
    scale = np.tile([image_hw[1] / width, image_hw[0] / height], 2)
    peak = np.array([inside.argmax()])
    points = PointPrompts(
        _centres(height, width, image_hw, whole=False)[peak],
        np.ones(1, np.int8),
        inside.ravel()[peak],
        boxes_xyxy=(corners * scale).astype(np.float32),
        masks=inside[None] if with_mask else NO_MAPS,
    )
    return replace(sam_prompt, points=points)


def _peaks(maps: NDArray[np.float32], settings: PointSettings) -> NDArray[np.int64]:
    """Return the highest cell of each region of the maps [N, gh, gw], the highest first, at most `MOST_POINTS`
    cells."""
    found = [(-scores.ravel()[cells[0]], int(cells[0])) for scores in maps for cells in regions(scores, settings)]
    peaks = dict.fromkeys(cell for negative_score, cell in sorted(found) if negative_score < 0)
    return np.array(list(peaks)[:MOST_POINTS], np.int64)


def _away_from(sam_prompt: SamPrompt, peaks: NDArray[np.int64], image_hw: tuple[int, int]) -> SamPrompt:
    """Add cells outside the region of a prompt as negative points.

    The prompt keeps its own lowest negatives as far as they are needed to have one negative for each positive.
    """
    outside = peaks[~sam_prompt.region.ravel()[peaks]]
    if not len(outside):
        return sam_prompt
    points = sam_prompt.points
    positives = np.flatnonzero(points.labels == 1)
    lowest = np.flatnonzero(points.labels == 0)[: max(len(positives) - len(outside), 0)]
    height, width = sam_prompt.scores.shape
    centres = _centres(height, width, image_hw, whole=False)[outside]
    both = replace(
        points,
        xy=np.concatenate([points.xy[positives], centres, points.xy[lowest]]),
        labels=np.repeat(np.array([1, 0], np.int8), [len(positives), len(outside) + len(lowest)]),
        similarity=np.concatenate(
            [points.similarity[positives], sam_prompt.scores.ravel()[outside], points.similarity[lowest]]
        ),
    )
    return replace(sam_prompt, points=both)


def _centres(height: int, width: int, image_hw: tuple[int, int], *, whole: bool) -> NDArray[np.float32]:
    """Return the centres xy [h·w, 2] of the cells in pixels, inside the image."""
    rows, columns = np.mgrid[:height, :width].reshape(2, -1)
    xy = np.stack([(columns + 0.5) * (image_hw[1] / width), (rows + 0.5) * (image_hw[0] / height)], axis=1)
    xy = np.minimum(xy, [image_hw[1] - 1, image_hw[0] - 1])
    return (np.trunc(xy) if whole else xy).astype(np.float32)
