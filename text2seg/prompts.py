"""From similarity maps to prompts for SAM: regions of a map, and positive and negative points in them
(CLIP Surgery's text2points; arXiv 2304.05653, section 4.4)."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from text2seg.config import PointSettings, Prompt
from text2seg.grids import minmax, resize
from text2seg.records import PointPrompts, SamPrompt


def regions(scores: NDArray[np.float32], settings: PointSettings) -> list[NDArray[np.int64]]:
    """The regions of one min-max map [h, w] in [0, 1], the highest first.

    Cells below `settings.floor` belong to none. Two regions stay apart where the lower peak is at least
    `settings.prominence` above the saddle between them.

    Returns:
        For each region its cells, as indices into the flattened map, the highest first. A constant map has none.
    """
    height, width = scores.shape
    flat = scores.ravel()
    order = np.argsort(-flat, kind="stable")
    order = order[flat[order] >= settings.floor]
    if not len(order) or np.ptp(flat) == 0:
        return []
    parent = np.full(flat.size, -1, np.int64)  # of each flooded cell; a root is its region's peak

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
            if flat[other] - flat[cell] < settings.prominence:
                parent[other] = highest
    found: dict[int, list[int]] = {}
    for cell in order.tolist():
        found.setdefault(peak(cell), []).append(cell)
    return [np.array(cells) for cells in found.values()]


log = logging.getLogger(__name__)

MOST_POINTS = 8  # positives of one region; more of one peak's neighbours tell SAM nothing new
FAR_BELOW = 20.0  # keeps 0.95 of the right regions and drops half of the false ones (docs/measurements/experiments.md)
BOX_LEVEL = 0.7  # of 0.5 to 0.9 the best on scenes of the demo world: at 0.5 boxes are wider than the things
FINE_GRID = 16  # the original takes its points from 16 × 16 cells: 512 px of patches of 16, halved

NO_POINTS = PointPrompts(np.zeros((0, 2), np.float32), np.zeros(0, np.int8), np.zeros(0, np.float32))
NO_MAPS = np.zeros((0, 1, 1), np.float32)


def sam_prompts(
    parts: NDArray[np.float32],
    patch_presence: NDArray[np.float32],
    image_hw: tuple[int, int],
    settings: PointSettings,
    negatives: NDArray[np.float32] = NO_MAPS,
    prompt: Prompt = "points",
    *,
    least_presence: float,
) -> tuple[SamPrompt, ...]:
    """What SAM is asked for one query: one aim for each region of its map, or one for all of it.

    Args:
        parts: float32 [parts, gh, gw], the maps of the query's parts. Several, as of `a+b`, give one aim together.
        evidence: float32 [gh, gw], presence patch by patch.
        image_hw: the image that the grid covers.
        negatives: float32 [negatives, gh, gw], in [0, 1], where what is not wanted is. Its peaks outside an aim's
            region become negative points, in place of some of the map's lowest cells; not in `reference`.
        prompt: box gives each region's tight box and its peak in place of many points, box-mask a rough mask as well.
        least_presence: no aim for what is less present, be it a region or the whole.

    Returns:
        The highest region first; none for a map that is constant or not finite.
    """
    if not patch_presence.max() >= least_presence:
        return ()
    stretched = minmax(parts)
    if len(parts) == 1 and settings.instances == "regions":
        least = max(least_presence, _far_below(float(patch_presence.max())))
        found = [cells for cells in regions(stretched[0], settings) if patch_presence.ravel()[cells].max() >= least]
        wanted = [_region_prompt(stretched[0], cells, image_hw, settings) for cells in found]
    else:
        wanted = _whole_prompt(parts, stretched.mean(0), image_hw, settings)
    wanted = [
        replace(sam_prompt, presence=float(patch_presence[sam_prompt.region].max(initial=0))) for sam_prompt in wanted
    ]
    if prompt != "points":
        wanted = [_boxed(sam_prompt, image_hw, with_mask=prompt == "box-mask") for sam_prompt in wanted]
    if settings.method != "reference":
        peaks = _peaks(negatives, settings)
        wanted = [_away_from(sam_prompt, peaks, image_hw) for sam_prompt in wanted]
    return tuple(wanted)


def _far_below(presence: float) -> float:
    """The presence whose odds are `FAR_BELOW` times lower: what is less sure beside it is something else."""
    return presence / (presence + FAR_BELOW * (1 - presence))


def _region_prompt(
    scores: NDArray[np.float32], cells: NDArray[np.int64], image_hw: tuple[int, int], settings: PointSettings
) -> SamPrompt:
    """Positives: the region's cells at `threshold` times its peak or above; negatives: as many of the map's lowest."""
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
    """One aim for all that the maps show; its region is what lies at `floor` times the mean map's peak or above."""
    points = (
        text2points(parts, image_hw, settings)[0] if len(parts) == 1 else combined_points(parts, image_hw, settings)
    )
    return [SamPrompt(points, mean, mean >= settings.floor * mean.max())] if len(points) else []


def _boxed(sam_prompt: SamPrompt, image_hw: tuple[int, int], *, with_mask: bool) -> SamPrompt:
    """The aim with the tight box around what lies at `BOX_LEVEL` times its region's peak or above, its highest cell as
    the only point, and its part of the map as rough mask.

    Source: Shi et al., "Harnessing Vision Foundation Models for High-Performance, Training-Free Open Vocabulary
    Segmentation" (Trident, arXiv 2411.09219).
    """
    height, width = sam_prompt.scores.shape
    inside = np.where(sam_prompt.region, sam_prompt.scores, np.float32(0))
    core = sam_prompt.region & (sam_prompt.scores >= BOX_LEVEL * inside.max())
    rows, columns = np.flatnonzero(core.any(1)), np.flatnonzero(core.any(0))
    corners = np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], np.float64)
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
    """The highest cell of each region of the maps [N, gh, gw], each once, the highest first, `MOST_POINTS` at most."""
    found = [(-each.ravel()[cells[0]], int(cells[0])) for each in maps for cells in regions(each, settings)]
    cells = dict.fromkeys(cell for height, cell in sorted(found) if height < 0)
    return np.array(list(cells)[:MOST_POINTS], np.int64)


def _away_from(sam_prompt: SamPrompt, peaks: NDArray[np.int64], image_hw: tuple[int, int]) -> SamPrompt:
    """The aim with these cells as negative points, unless they belong to its region. Of its own negatives as many stay,
    the lowest first, as are wanted beside them to have one for each positive."""
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


def text2points(
    scores: NDArray[np.float32], image_hw: tuple[int, int], settings: PointSettings
) -> tuple[PointPrompts, ...]:
    """Positive and negative points for every map.

    The grid is made coarser by `settings.downsample`, then min-max. The n cells at or above the threshold, but
    at most half of all cells, are positive; the n lowest cells are negative.

    Args:
        scores: float32 [Q, gh, gw], similarity per patch.
        image_hw: the image that the grid covers; points are in its pixels, at the centres of the cells.

    Returns:
        One set per map, each in ascending similarity, positives first; a constant map, or one that is not
        finite, has no points, and so has a grid of one cell.
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
        _prompts(order[query], flat[query], centres, int(counts[query])) if np.ptp(flat[query]) > 0 else NO_POINTS
        for query in range(len(maps))
    )


def combined_points(scores: NDArray[np.float32], image_hw: tuple[int, int], settings: PointSettings) -> PointPrompts:
    """One set for several maps together, as the original's `person+bench`: positives from each map,
    negatives from the mean of the min-max maps [Q, gh, gw].

    Where several maps choose the same cell it is one point, not several; `reference` keeps them all.
    """
    stretched = minmax(scores)
    each = text2points(stretched, image_hw, settings)
    (mean,) = text2points(stretched.mean(0, keepdims=True), image_hw, settings)
    parts = [_take(prompts, 1) for prompts in each]
    if settings.method == "reference":
        return _join([_take(mean, 0), *parts])
    return _join([_distinct(_join(parts)), _take(mean, 0)])


def coarse_maps(scores: NDArray[np.float32], settings: PointSettings) -> NDArray[np.float32]:
    """The min-max maps [Q, h, w] on the coarser grid that points are taken from."""
    height, width = scores.shape[1:]
    factor = settings.downsample or (2 if min(height, width) > FINE_GRID else 1)
    return minmax(resize(scores, (max(height // factor, 1), max(width // factor, 1))))


def _centres(height: int, width: int, image_hw: tuple[int, int], *, whole: bool) -> NDArray[np.float32]:
    """Centres xy [h·w, 2] of the cells, in pixels of the image and inside it."""
    rows, columns = np.mgrid[:height, :width].reshape(2, -1)
    xy = np.stack([(columns + 0.5) * (image_hw[1] / width), (rows + 0.5) * (image_hw[0] / height)], axis=1)
    xy = np.minimum(xy, [image_hw[1] - 1, image_hw[0] - 1])
    return (np.trunc(xy) if whole else xy).astype(np.float32)


def _prompts(order: NDArray, scores: NDArray, centres: NDArray, count: int) -> PointPrompts:
    cells = np.concatenate([order[len(order) - count :], order[:count]])
    labels = np.repeat(np.array([1, 0], np.int8), count)
    return PointPrompts(centres[cells], labels, scores[cells])


def _take(prompts: PointPrompts, label: int) -> PointPrompts:
    wanted = prompts.labels == label
    return PointPrompts(prompts.xy[wanted], prompts.labels[wanted], prompts.similarity[wanted])


def _join(parts: list[PointPrompts]) -> PointPrompts:
    return PointPrompts(
        np.concatenate([part.xy for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.similarity for part in parts]),
    )


def _distinct(prompts: PointPrompts) -> PointPrompts:
    _, first = np.unique(prompts.xy, axis=0, return_index=True)
    first.sort()
    return PointPrompts(prompts.xy[first], prompts.labels[first], prompts.similarity[first])
