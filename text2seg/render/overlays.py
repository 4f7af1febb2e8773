"""An image with its segments in colour and a legend, and single segments cut out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw

from text2seg.records import Image, Segment, Segmentation
from text2seg.render.colours import FAINT, INK, PAPER, Colour, blend, colour_of, outline
from text2seg.render.lettering import draw_text, text_width

OPACITY = 0.5
LEAST_SIDE = 480
"""With a legend, smaller images are enlarged by whole numbers until their long side has about this many pixels."""
LEAST_OUTLINED = 160
"""In images smaller than this an outline would hide what it surrounds."""


def overlay(segmentation: Segmentation, *, legend: bool = True) -> NDArray[np.uint8]:
    """The image with each segment in its query's colour, uint8[h, w, 3] RGB.

    Without `legend` it has the image's size. With it, a strip below names each query with the count of its segments
    and the best SAM score, or that it was not found; small images are enlarged first, so that the strip can be read.
    Raises `ValueError` where a mask is not of the image's size.
    """
    image = segmentation.image
    factor = -(-LEAST_SIDE // max(image.hw)) if legend else 1
    pixels: NDArray[np.uint8] = _enlarged(image.pixels, factor).copy()
    long_side = max(pixels.shape[:2])
    for segment in sorted(segmentation.segments, key=lambda segment: -segment.area):  # small ones stay visible
        _check_size(segment, image)
        mask = _enlarged(segment.mask.view(np.uint8), factor).view(np.bool_)
        pixels = blend(pixels, mask, colour_of(segment.query), OPACITY)
        if long_side >= LEAST_OUTLINED:
            outline(pixels, mask, colour_of(segment.query), max(2, round(long_side / 320)))
    if not legend or not segmentation.maps.queries:
        return pixels
    strip = _legend(segmentation, max(pixels.shape[1], 200), max(16, round(pixels.shape[1] / 60)))
    return _stacked(pixels, strip)


def cut_out(segment: Segment, image: Image, *, crop: bool = False) -> NDArray[np.uint8]:
    """The segment alone on a transparent ground, uint8[H, W, 4] RGBA; outside of it all is 0, colour too.

    With `crop`, only the tight box around the mask, unless the mask is empty. Raises `ValueError` where the mask is not
    of the image's size.
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
        raise ValueError(f"the mask must be of the image's size {list(image.hw)}, got {list(segment.mask.shape)}")


def _enlarged(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    return pixels if factor == 1 else pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def _stacked(pixels: NDArray[np.uint8], strip: NDArray[np.uint8]) -> NDArray[np.uint8]:
    missing = strip.shape[1] - pixels.shape[1]
    if missing > 0:
        pixels = np.pad(pixels, ((0, 0), (missing // 2, missing - missing // 2), (0, 0)), constant_values=PAPER[0])
    return np.concatenate([pixels, strip])


def _entries(segmentation: Segmentation) -> list[tuple[str, str, Colour | None]]:
    """For each query its name, what became of it and its colour, which is None where it was not found."""
    entries: list[tuple[str, str, Colour | None]] = []
    for query in dict.fromkeys(segmentation.maps.queries):
        colour = colour_of(query) if segmentation.of(query) else None
        entries.append((query, segmentation.verdict(query), colour))
    return entries


def _legend(segmentation: Segmentation, width: int, size: int) -> NDArray[np.uint8]:
    """The entries from left to right, in as many lines as it takes, uint8[h, width, 3]."""
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
