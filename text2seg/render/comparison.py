"""A mask as it was recorded beside the same one made again, and where they differ."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw

from text2seg.records import Image, PointPrompts
from text2seg.render.colours import INK, NEGATIVE, PAPER, POSITIVE, Colour, blend, colour_of, outline
from text2seg.render.lettering import draw_text

LONG_SIDE, GAP, HEADER, TEXT = 520, 12, 34, 16
ONLY_RECORDED: Colour = (230, 80, 30)
ONLY_REBUILT: Colour = (40, 110, 240)

Pixels = NDArray[np.uint8]
Side = tuple[NDArray[np.bool_], PointPrompts | None]


def compared(image: Image, query: str, recorded: Side, rebuilt: Side) -> Pixels:
    """Panels side by side, RGB uint8[h, w, 3]: recorded, rebuilt, and in grey with what only one of them has.

    Each side is a mask bool[H, W] of the image's size and its points (green: positive, red: negative). Raises
    `ValueError` on a mask of another size.
    """
    for mask, _ in (recorded, rebuilt):
        if mask.shape != image.hw:
            raise ValueError(f"the mask must be of the image's size {list(image.hw)}, got {list(mask.shape)}")
    differing = int(np.count_nonzero(recorded[0] != rebuilt[0]))
    panels = [
        (f"recorded: {query}", _panel(image, query, *recorded)),
        (
            "rebuilt, points as found now" if rebuilt[1] is not None else "rebuilt, points not found again",
            _panel(image, query, *rebuilt),
        ),
        (
            f"{differing:,} pixels differ" if differing else "no pixel differs",
            _difference(image, recorded[0], rebuilt[0]),
        ),
    ]
    height, width = panels[0][1].shape[:2]
    step = max(width, 260) + GAP
    canvas = PillowImage.new("RGB", (GAP + step * len(panels), height + HEADER + GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    for place, (words, pixels) in enumerate(panels):
        left = GAP + step * place
        draw_text(draw, (left, HEADER / 2), words, size=TEXT, colour=INK, width=step - GAP)
        canvas.paste(PillowImage.fromarray(pixels), (left, HEADER))
    return np.asarray(canvas)


def _panel(image: Image, query: str, mask: NDArray[np.bool_], points: PointPrompts | None) -> Pixels:
    small, covered = _sized(image.pixels), _sized(mask.view(np.uint8) * 255) > 127
    painted = np.ascontiguousarray(blend(small, covered, colour_of(query), 0.5))
    outline(painted, covered, colour_of(query), 2)
    if points is None:
        return painted
    scale = np.array([small.shape[1] / image.hw[1], small.shape[0] / image.hw[0]])
    for index in np.argsort(points.labels, kind="stable"):
        x, y = (int(at) for at in np.rint(points.xy[index] * scale * 16 - 8))
        cv2.circle(painted, (x, y), 6 * 16, PAPER, -1, cv2.LINE_AA, 4)
        cv2.circle(painted, (x, y), 4 * 16, POSITIVE if points.labels[index] else NEGATIVE, -1, cv2.LINE_AA, 4)
    return painted


def _difference(image: Image, recorded: NDArray[np.bool_], rebuilt: NDArray[np.bool_]) -> Pixels:
    """Any pixel that differs shows, however much the image is reduced."""
    grey = cv2.cvtColor(_sized(image.pixels), cv2.COLOR_RGB2GRAY) // 2 + 96
    painted = np.repeat(grey[:, :, None], 3, axis=2).astype(np.uint8)
    for only, colour in ((recorded & ~rebuilt, ONLY_RECORDED), (rebuilt & ~recorded, ONLY_REBUILT)):
        painted[_sized(only.view(np.uint8) * 255) > 0] = colour
    return painted


def _sized(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    scale = LONG_SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(np.ascontiguousarray(pixels), size, interpolation=how), dtype=np.uint8)
