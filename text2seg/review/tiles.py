"""Thumbnails: a picture with its segments in colour, each with its number, small enough to stand in a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw

from text2seg.coco.lookup import PictureFinder
from text2seg.coco.results import mask_of
from text2seg.errors import Text2SegError
from text2seg.images import load_image
from text2seg.render.colours import INK, PAPER, Colour, blend, outline
from text2seg.render.lettering import draw_text, text_width
from text2seg.review.contents import Item, Picture

LONG_SIDE, QUALITY = 360, 82
NUMBER = 13  # height of a segment's number, pixels
MOST_ITEMS = 100
"""So many annotations of a picture are drawn and listed, the most doubtful ones. No eye tells more apart, and each one
takes memory and time."""
LEAST_NUMBERED = 60  # pixels of the thumbnail; a number would hide a smaller segment


def tile(picture: Picture, colours: Mapping[str, Colour], *, finder: PictureFinder) -> tuple[str, tuple[int, int], str]:
    """The thumbnail as a data URL, its width and height, and what is to be said of it; the URL is empty where there is
    nothing to show, and the words say why."""
    try:
        path = finder.find(picture.file_name)
        pixels = load_image(path).pixels
    except Text2SegError as error:
        return "", _size(picture.hw or (3, 4)), str(error)
    hw = (pixels.shape[0], pixels.shape[1])
    if picture.hw and picture.hw != hw:
        mine, theirs = f"{hw[1]} x {hw[0]}", f"{picture.hw[1]} x {picture.hw[0]}"
        return (
            "",
            _size(hw),
            f"{path} is {mine} pixels, in the dataset it is {theirs}: not the picture that was labelled",
        )
    width, height = _size(hw)
    how = cv2.INTER_AREA if max(hw) > LONG_SIDE else cv2.INTER_NEAREST
    small = np.asarray(cv2.resize(pixels, (width, height), interpolation=how), dtype=np.uint8)
    painted, unreadable = _painted(small, picture.items, colours, hw)
    words = f"no mask that can be read: {', '.join(unreadable)}" if unreadable else ""
    return _data_url(painted), (width, height), words


def _size(hw: tuple[int, int]) -> tuple[int, int]:
    scale = LONG_SIDE / max(hw)
    return max(1, round(hw[1] * scale)), max(1, round(hw[0] * scale))


def _painted(
    small: NDArray[np.uint8], items: Sequence[Item], colours: Mapping[str, Colour], hw: tuple[int, int]
) -> tuple[NDArray[np.uint8], list[str]]:
    """The thumbnail with its first `MOST_ITEMS` segments, large ones below, and those whose mask cannot be read."""
    masks: list[tuple[int, Item, NDArray[np.bool_]]] = []
    unreadable = []
    for number, item in enumerate(items[:MOST_ITEMS], start=1):
        try:
            mask = _mask(item, hw)
        except Text2SegError as error:
            unreadable.append(f"{item.category} ({error})")
            continue
        covered = cv2.resize(mask.view(np.uint8) * 255, small.shape[1::-1], interpolation=cv2.INTER_AREA) > 127
        masks.append((number, item, covered))
    masks.sort(key=lambda each: -np.count_nonzero(each[2]))
    for _, item, mask in masks:
        small = blend(small, mask, colours[item.category], 0.45)
    small = np.ascontiguousarray(small)
    for _, item, mask in masks:
        outline(small, mask, colours[item.category], 2)
    return _numbered(small, [(number, mask) for number, _, mask in masks]), unreadable


def _mask(item: Item, hw: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask, or the box where a dataset has boxes only."""
    box = item.annotation.get("bbox")
    if item.annotation.get("segmentation") or box is None:
        return mask_of(item.annotation, hw)
    x, y, width, height = box
    mask = np.zeros(hw, np.bool_)
    mask[max(round(y), 0) : max(round(y + height), 0), max(round(x), 0) : max(round(x + width), 0)] = True
    return mask


def _numbered(small: NDArray[np.uint8], masks: Sequence[tuple[int, NDArray[np.bool_]]]) -> NDArray[np.uint8]:
    """Each segment's number where the segment is broadest and no lower number stands."""
    canvas = PillowImage.fromarray(small)
    draw = ImageDraw.Draw(canvas)
    free = np.ones(small.shape[:2], np.uint8)
    for number, mask in sorted(masks, key=lambda each: each[0]):
        depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1] * free
        y, x = (int(at) for at in np.unravel_index(np.argmax(depth), depth.shape))
        if np.count_nonzero(mask) < LEAST_NUMBERED or not depth[y, x]:
            continue
        half = (round(text_width(str(number), NUMBER) / 2) + 4, NUMBER // 2 + 3)
        x = min(max(x, half[0]), max(canvas.width - half[0] - 1, 0))
        y = min(max(y, half[1]), max(canvas.height - half[1] - 1, 0))
        draw.rounded_rectangle((x - half[0], y - half[1], x + half[0], y + half[1]), 4, fill=PAPER)
        draw_text(draw, (x - half[0] + 4, y), str(number), size=NUMBER, colour=INK, width=100)
        free[max(y - 2 * half[1], 0) : y + 2 * half[1] + 1, max(x - 2 * half[0], 0) : x + 2 * half[0] + 1] = 0
    return np.asarray(canvas)


def _data_url(pixels: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    PillowImage.fromarray(pixels).save(file, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
