"""Captioned images on one sheet."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw

from text2seg.render.colours import FRAME, INK, PAPER
from text2seg.render.lettering import draw_text

Pixels = NDArray[np.uint8]

CELL = 300
"""The long side that every image is brought to, unless all are larger still."""
LARGEST = 900
GAP, CAPTION, TITLE = 14, 28, 40


def sheet(cells: Sequence[tuple[str, Pixels]], *, title: str = "", columns: int = 0) -> Pixels:
    """Images uint8[h, w, 3] with a caption above each, row by row, uint8[H, W, 3].

    Args:
        cells: caption and image; at least one.
        title: a line above all.
        columns: how many stand side by side; 0: as many as make the sheet about as wide as a screen.
    """
    long_side = min(max(CELL, min(max(pixels.shape[:2]) for _, pixels in cells)), LARGEST)
    sized = [(caption, _brought_to(pixels, long_side)) for caption, pixels in cells]
    width = max(max(pixels.shape[1] for _, pixels in sized), CELL)
    height = max(pixels.shape[0] for _, pixels in sized)
    columns = columns or min(len(cells), max(1, 1600 // (width + GAP)))
    rows = -(-len(cells) // columns)
    top = TITLE if title else 0
    whole = PillowImage.new("RGB", (columns * (width + GAP) + GAP, top + rows * (height + CAPTION + GAP) + GAP), PAPER)
    pen = ImageDraw.Draw(whole)
    if title:
        draw_text(pen, (GAP, TITLE / 2 + 4), title, size=22, colour=INK, width=whole.width - 2 * GAP)
    for number, (caption, pixels) in enumerate(sized):
        row, column = divmod(number, columns)
        left, upper = GAP + column * (width + GAP), top + row * (height + CAPTION + GAP)
        draw_text(pen, (left, upper + CAPTION / 2 + 4), caption, size=15, colour=INK, width=width)
        upper += CAPTION + 4
        pen.rectangle((left - 1, upper - 1, left + pixels.shape[1], upper + pixels.shape[0]), outline=FRAME)
        whole.paste(PillowImage.fromarray(pixels), (left, upper))
    return np.asarray(whole)


def _brought_to(pixels: Pixels, long_side: int) -> Pixels:
    height, width = pixels.shape[:2]
    scale = long_side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(np.ascontiguousarray(pixels), size, interpolation=how), dtype=np.uint8)
