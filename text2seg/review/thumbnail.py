"""Thumbnails of images with the outlines and numbers of their segments."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw

from text2seg.coco.lookup import ImageFinder
from text2seg.coco.rle import mask_of
from text2seg.errors import Text2SegError
from text2seg.grids import depth_of, highest
from text2seg.io.images import load_image
from text2seg.render.drawing import INK, PAPER, Colour, blend, draw_text, outline, text_width
from text2seg.render.saving import jpeg_url
from text2seg.review.contents import Item, ReviewImage

LONG_SIDE = 360
"""Longer side of a thumbnail, pixels."""
NUMBER_HEIGHT = 13
"""Height of the number on a segment of a thumbnail, pixels."""
LARGE_SHARE = 0.7
"""The numbers on a larger copy grow with it, by this share, because it is seen from nearer than a thumbnail."""
MAX_ITEMS = 100
"""Limit of annotations drawn and listed per image, the most uncertain first: more cannot be told apart by eye, and each
takes memory and time."""
REJECTED: Colour = (128, 128, 128)
"""Colour of the outline of a rejected segment."""
MIN_NUMBERED_AREA = 60
"""A smaller segment gets no number, which would hide it; in pixels of the thumbnail."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A thumbnail, or why there is none.

    `url` is a data URL, empty if the image cannot be shown. `note` is why it cannot be shown, or which masks cannot be
    read; else empty.
    """

    url: str
    width: int
    height: int
    note: str


def thumbnail(
    image: ReviewImage,
    colours: Mapping[str, Colour],
    *,
    finder: ImageFinder,
    long_side: int = LONG_SIDE,
    rejected: Collection[int] = (),
) -> Thumbnail:
    """Draw the segments of an image on a small copy of it.

    Args:
        colours: RGB colour of each category.
        finder: finds the file of the image.
        long_side: longer side of the copy, pixels.
        rejected: ids of annotations of which only a thin grey outline is drawn, without a number.
    """
    try:
        path = finder.find(image.file_name)
        pixels = load_image(path).pixels
    except Text2SegError as error:
        return Thumbnail("", *_size(image.hw or (3, 4), long_side), str(error))
    hw = (pixels.shape[0], pixels.shape[1])
    width, height = _size(hw, long_side)
    if image.hw and image.hw != hw:
        note = (
            f"{path} is {hw[1]} x {hw[0]} pixels, in the dataset it is {image.hw[1]} x {image.hw[0]}: "
            "not the image that was labelled"
        )
        return Thumbnail("", width, height, note)
    method = cv2.INTER_AREA if max(hw) > long_side else cv2.INTER_NEAREST
    small = np.asarray(cv2.resize(pixels, (width, height), interpolation=method), dtype=np.uint8)
    drawn, unreadable = _draw_segments(small, image.items, colours, hw, rejected)
    note = f"masks that cannot be read: {', '.join(unreadable)}" if unreadable else ""
    return Thumbnail(jpeg_url(drawn), width, height, note)


def _size(hw: tuple[int, int], long_side: int) -> tuple[int, int]:
    """Return (width, height) of the thumbnail of an image of `hw`."""
    scale = long_side / max(hw)
    return max(1, round(hw[1] * scale)), max(1, round(hw[0] * scale))


def _draw_segments(
    small: NDArray[np.uint8],
    items: Sequence[Item],
    colours: Mapping[str, Colour],
    hw: tuple[int, int],
    rejected: Collection[int],
) -> tuple[NDArray[np.uint8], list[str]]:
    """Draw the first `MAX_ITEMS` segments, the largest first.

    Returns:
        The thumbnail uint8[h, w, 3], and the category and error of each mask that cannot be read.
    """
    masks: list[tuple[int, Item, NDArray[np.bool_]]] = []
    unreadable = []
    for number, item in enumerate(items[:MAX_ITEMS], start=1):
        try:
            mask = _mask(item, hw)
        except Text2SegError as error:
            unreadable.append(f"{item.category} ({error})")
            continue
        covered = cv2.resize(mask.view(np.uint8) * 255, small.shape[1::-1], interpolation=cv2.INTER_AREA) > 127
        masks.append((number, item, covered))
    masks.sort(key=lambda each: -np.count_nonzero(each[2]))
    for _, item, mask in masks:
        if item.annotation["id"] not in rejected:
            small = blend(small, mask, colours[item.category], 0.45)
    small = np.ascontiguousarray(small)
    for _, item, mask in sorted(masks, key=lambda each: each[1].annotation["id"] not in rejected):  # kept ones on top
        colour, width = (REJECTED, 1) if item.annotation["id"] in rejected else (colours[item.category], 2)
        outline(small, mask, colour, width)
    kept = [(number, mask) for number, item, mask in masks if item.annotation["id"] not in rejected]
    return _draw_numbers(small, kept), unreadable


def _mask(item: Item, hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask bool[H, W] of an annotation, or its box if the dataset has only boxes."""
    box = item.annotation.get("bbox")
    if item.annotation.get("segmentation") or box is None:
        return mask_of(item.annotation, hw)
    x, y, width, height = box
    mask = np.zeros(hw, np.bool_)
    mask[max(round(y), 0) : max(round(y + height), 0), max(round(x), 0) : max(round(x + width), 0)] = True
    return mask


def _draw_numbers(small: NDArray[np.uint8], masks: Sequence[tuple[int, NDArray[np.bool_]]]) -> NDArray[np.uint8]:
    """Draw each segment's number at its broadest place that no earlier number covers."""
    canvas = PillowImage.fromarray(small)
    draw = ImageDraw.Draw(canvas)
    size = max(NUMBER_HEIGHT, round(NUMBER_HEIGHT * LARGE_SHARE * max(canvas.size) / LONG_SIDE))
    gap = round(size * 4 / NUMBER_HEIGHT)
    free = np.ones(small.shape[:2], np.uint8)
    for number, mask in sorted(masks, key=lambda each: each[0]):
        depth = depth_of(mask) * free
        x, y = highest(depth)
        if np.count_nonzero(mask) < MIN_NUMBERED_AREA or not depth[y, x]:
            continue
        half = (round(text_width(str(number), size) / 2) + gap, size // 2 + gap - 1)
        x = min(max(x, half[0]), max(canvas.width - half[0] - 1, 0))
        y = min(max(y, half[1]), max(canvas.height - half[1] - 1, 0))
        draw.rounded_rectangle((x - half[0], y - half[1], x + half[0], y + half[1]), gap, fill=PAPER)
        draw_text(draw, (x - half[0] + gap, y), str(number), size=size, colour=INK, width=100 * gap)
        free[max(y - 2 * half[1], 0) : y + 2 * half[1] + 1, max(x - 2 * half[0], 0) : x + 2 * half[0] + 1] = 0
    return np.asarray(canvas)
