"""Refinement: a box, or a mask with a poor outline, becomes SAM's mask of the same thing.

A mask gives SAM a point, a negative point, its tight box and itself as logits. Source: Lin et al., "SAMRefiner: Taming
Segment Anything Model for Universal Mask Refinement" (arXiv 2502.06756), section 3.2. A box gives SAM the box and its
centre.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from text2seg.config import RefineSettings
from text2seg.errors import SettingsError
from text2seg.grids import depth_of, highest, iou, resize, tight_box
from text2seg.records import Candidates, PointPrompts
from text2seg.sam.base import MASK_PROMPT_SCALE, SETS_PER_CALL, AnySam, SamEmbedding

FAR = 2.0
"""Pixels that a pixel of the box must be away from the mask to become a negative point."""

NO_LOGITS = np.zeros((0, 1, 1), np.float32)
"""No rough mask, as `PointPrompts.masks`."""

BoxXywh = tuple[float, float, float, float]
Region = NDArray[np.bool_] | BoxXywh
"""What is there already: a mask bool[H, W] of the image, or a box (x, y, width, height) in its pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class Refined:
    """SAM's answer to one region.

    `mask` bool[H, W] is the finer mask or, if `kept`, the mask that was there already. SAM's mask is refused if its
    predicted IoU `sam_score` is low. `agreement` is the IoU of SAM's mask with the old mask or the filled box. `points`
    has the points and the box that SAM got, without the logits of the old mask.
    """

    mask: NDArray[np.bool_] = field(repr=False)
    kept: bool
    sam_score: float
    agreement: float
    points: PointPrompts
    candidates: Candidates


def refine(
    sam: AnySam, regions: Sequence[tuple[SamEmbedding, Region]], settings: RefineSettings
) -> tuple[Refined, ...]:
    """Refine regions of embedded images. A box is never kept: it has no mask.

    Raises:
        SettingsError: a mask or a box has no pixel in the image.
    """
    found: list[Refined] = []
    for start in range(0, len(regions), SETS_PER_CALL):
        found += _refine_part(sam, regions[start : start + SETS_PER_CALL], settings)
    return tuple(found)


def _refine_part(
    sam: AnySam, regions: Sequence[tuple[SamEmbedding, Region]], settings: RefineSettings
) -> Iterator[Refined]:
    """Refine a few regions, whose prompts and candidates are in memory together."""
    prompts = [_prompt(sam, embedding, region, settings.amplitude) for embedding, region in regions]
    answers = sam.decode([(embedding, prompt) for (embedding, _), prompt in zip(regions, prompts, strict=True)])
    for (embedding, region), prompt, candidates in zip(regions, prompts, answers, strict=True):
        mask, score = sam.mask(embedding, candidates, 0), float(candidates.scores[0])
        old = region if isinstance(region, np.ndarray) else _filled(region, embedding.image_hw)
        kept = isinstance(region, np.ndarray) and (score < settings.keep_below or not mask.any())
        points = replace(prompt, masks=NO_LOGITS)
        yield Refined(old if kept else mask, kept, score, iou(mask, old), points, candidates)


def _prompt(sam: AnySam, embedding: SamEmbedding, region: Region, amplitude: float) -> PointPrompts:
    if isinstance(region, np.ndarray):
        return _of_mask(region, amplitude, sam.mask_prompt_hw(embedding))
    return _of_box(region, embedding.image_hw)


def _of_mask(mask: NDArray[np.bool_], amplitude: float, logits_hw: tuple[int, int]) -> PointPrompts:
    """Return the deepest point of a mask, the point of its box farthest from it, the box, and the mask as logits.

    The logits are `-amplitude` outside; inside they fall from `amplitude` at the deepest point to the edge, like a
    Gaussian of the depth with a variance of an eighth of the area. They are resized to `logits_hw`, as SAM takes them.
    """
    box = tight_box(mask)
    if box is None:
        raise SettingsError("a mask has no pixels")
    x, y, width, height = box
    inside = mask[y : y + height, x : x + width]
    depth = depth_of(inside)
    points, labels = [highest(depth)], [1]
    if not inside.all():
        distance = cv2.distanceTransform((~inside).view(np.uint8), cv2.DIST_L2, 5)
        if distance.max() > FAR:
            points.append(highest(distance))
            labels.append(0)
    fall = np.exp(-((depth - depth.max()) ** 2) / (inside.sum() / 4))
    logits = np.full(mask.shape, -amplitude / MASK_PROMPT_SCALE, np.float32)
    logits[y : y + height, x : x + width] = np.where(inside, fall, -1) * (amplitude / MASK_PROMPT_SCALE)
    return PointPrompts(
        (np.array(points) + np.array([x, y])).astype(np.float32),
        np.array(labels, np.int8),
        np.ones(len(labels), np.float32),
        np.array([[x, y, x + width - 1, y + height - 1]], np.float32),
        resize(logits[None], logits_hw),
    )


def _of_box(box: BoxXywh, hw: tuple[int, int]) -> PointPrompts:
    left, top, right, bottom = _corners(box, hw)
    return PointPrompts(
        np.array([[(left + right + 1) / 2, (top + bottom + 1) / 2]], np.float32),
        np.ones(1, np.int8),
        np.ones(1, np.float32),
        np.array([[left, top, right, bottom]], np.float32),
    )


def _corners(box: BoxXywh, hw: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the first and last x and y of a box, cut to the image."""
    x, y, width, height = box
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + width, hw[1]) - 1, min(y + height, hw[0]) - 1
    if right < left or bottom < top:
        raise SettingsError(f"the box {box} has no pixel in the image, which is {hw[1]} x {hw[0]} pixels")
    return left, top, right, bottom


def _filled(box: BoxXywh, hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the box as a mask bool[H, W]."""
    left, top, right, bottom = (round(side) for side in _corners(box, hw))
    mask = np.zeros(hw, np.bool_)
    mask[top : bottom + 1, left : right + 1] = True
    return mask
