"""Overlays: an image with coloured segments and a legend. Cut-outs: single segments on a transparent backdrop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw

from text2seg.grids import tight_box
from text2seg.records import UNNAMED, Image, Segment, Segmentation
from text2seg.render.drawing import (
    FAINT,
    INK,
    PAPER,
    Colour,
    blend,
    colour_of_number,
    colours_of,
    draw_text,
    outline,
    text_width,
)

OPACITY = 0.5
LEAST_SIDE = 480
"""With a legend, smaller images are enlarged by an integer factor to at least this long side, pixels."""
LEAST_OUTLINED = 160
"""Images with a shorter long side, in pixels, get no outlines: they would hide small segments."""


def overlay(segmentation: Segmentation, *, legend: bool = True) -> NDArray[np.uint8]:
    """Draw the segments on their image, each in the colour of its query. Returns RGB uint8[h, w, 3].

    Without `legend` it has the size of the image. With it, small images are enlarged, and a strip below names each
    query with its number of segments and best SAM score, or says that it was not found. If nobody named anything, each
    segment has a colour of its own, and there is no strip. Raises `ValueError` if a mask has another size than the
    image.
    """
    image = segmentation.image
    factor = -(-LEAST_SIDE // max(image.hw)) if legend else 1
    pixels: NDArray[np.uint8] = _enlarged(image.pixels, factor).copy()
    long_side = max(pixels.shape[:2])
    is_named = set(segmentation.maps.queries) != {UNNAMED} or len(segmentation.segments) == 1
    colours = colours_of([*segmentation.maps.queries, *(segment.query for segment in segmentation.segments)])
    largest_first = sorted(segmentation.segments, key=lambda segment: -segment.area)  # keeps small ones visible
    for number, segment in enumerate(largest_first):
        _check_size(segment, image)
        mask = _enlarged(segment.mask.view(np.uint8), factor).view(np.bool_)
        colour = colours[segment.query] if is_named else colour_of_number(number)
        pixels = blend(pixels, mask, colour, OPACITY)
        if long_side >= LEAST_OUTLINED:
            outline(pixels, mask, colour, max(2, round(long_side / 320)))
    if not legend or not segmentation.maps.queries or not is_named:
        return pixels
    strip = _legend(segmentation, max(pixels.shape[1], 200), max(16, round(pixels.shape[1] / 60)))
    return _stacked(pixels, strip)


def numbered_overlay(image: Image, things: Sequence[tuple[int, str, NDArray[np.bool_]]]) -> NDArray[np.uint8]:
    """Draw masks on their image, each in the colour of its number, with number and name at its top. Returns RGB
    uint8[H, W, 3] of the size of the image.

    Args:
        things: number, name and mask bool[H, W] of each.
    """
    pixels: NDArray[np.uint8] = image.pixels.copy()
    for number, _, mask in things:
        pixels = blend(pixels, mask, colour_of_number(number), OPACITY)
        outline(pixels, mask, colour_of_number(number), max(2, round(max(image.hw) / 320)))
    canvas = PillowImage.fromarray(pixels)
    draw, size = ImageDraw.Draw(canvas), max(11, round(max(image.hw) / 45))
    for number, name, mask in things:
        if box := tight_box(mask):
            text = f"{number} {name}"
            width = min(text_width(text, size), image.hw[1])
            left = min(max(box[0], 0), image.hw[1] - width)
            top = max(box[1] - size * 1.4, 0)
            draw.rectangle((left - 2, top, left + width + 2, top + size * 1.4), fill=colour_of_number(number))
            draw_text(draw, (left, top + size * 0.7), text, size=size, colour=PAPER, width=width + 1)
    return np.asarray(canvas)


def cut_out(segment: Segment, image: Image, *, crop: bool = False) -> NDArray[np.uint8]:
    """Return the segment on a transparent backdrop, RGBA uint8[H, W, 4]; all four channels are 0 outside the mask.

    With `crop`, return only the tight box around the mask, unless the mask is empty. Raises `ValueError` if the mask
    has another size than the image.
    """
    _check_size(segment, image)
    cut: NDArray[np.uint8] = np.zeros((*image.hw, 4), np.uint8)
    cut[segment.mask, :3] = image.pixels[segment.mask]
    cut[segment.mask, 3] = 255
    if crop and segment.area:
        x, y, width, height = segment.box_xywh
        cut = cut[y : y + height, x : x + width].copy()
    return cut


def _check_size(segment: Segment, image: Image) -> None:
    if segment.mask.shape != image.hw:
        raise ValueError(f"the mask must have the image size {list(image.hw)}, got {list(segment.mask.shape)}")


def _enlarged(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    return pixels if factor == 1 else pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def _stacked(pixels: NDArray[np.uint8], strip: NDArray[np.uint8]) -> NDArray[np.uint8]:
    missing = strip.shape[1] - pixels.shape[1]
    if missing > 0:
        pixels = np.pad(pixels, ((0, 0), (missing // 2, missing - missing // 2), (0, 0)), constant_values=PAPER[0])
    return np.concatenate([pixels, strip])


def _entries(segmentation: Segmentation) -> list[tuple[str, str, Colour | None]]:
    """Return name, verdict and colour of each query; the colour is None if the query was not found."""
    entries: list[tuple[str, str, Colour | None]] = []
    for query, own in colours_of(segmentation.maps.queries).items():
        colour = own if segmentation.of(query) else None
        entries.append((query, segmentation.verdict(query), colour))
    return entries


def _legend(segmentation: Segmentation, width: int, size: int) -> NDArray[np.uint8]:
    """Draw the entries from left to right, in as many lines as needed. Returns uint8[h, width, 3]."""
    line, swatch, gap = round(size * 1.9), size, size // 2
    placed: list[tuple[int, int, str, str, Colour | None, float]] = []
    x, row = gap * 2, 0
    for name, note, colour in _entries(segmentation):
        room = width - 4 * gap - swatch - 2 * gap - text_width(note, size)
        name_width = min(text_width(name, size), max(room, size * 3))
        whole = swatch + gap + name_width + gap + text_width(note, size)
        if x > gap * 2 and x + whole > width - 2 * gap:
            x, row = gap * 2, row + 1
        placed.append((x, row, name, note, colour, name_width))
        x += round(whole) + 4 * gap
    strip = PillowImage.new("RGB", (width, line * (row + 1) + gap * 2), PAPER)
    draw = ImageDraw.Draw(strip)
    for x, row, name, note, colour, name_width in placed:
        middle = gap + line * row + line / 2
        box = (x, middle - swatch / 2, x + swatch, middle + swatch / 2)
        draw.rounded_rectangle(box, size // 5, fill=colour, outline=colour or FAINT, width=max(1, size // 10))
        at = x + swatch + gap
        draw_text(draw, (at, middle), name, size=size, colour=INK if colour else FAINT, width=name_width + 1)
        draw_text(draw, (at + name_width + gap, middle), note, size=size, colour=FAINT, width=width)
    return np.asarray(strip)
