"""Words in a line, the more coloured the more they count."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw

from text2seg.render.colours import FAINT, INK, PAPER, Colour
from text2seg.render.lettering import draw_text, text_width

WIDTH, MARGIN = 560, 20
SIZE, SMALL = 30, 18
LINE, BOX, PAD, GAP = 92, 46, 8, 10
STRONG: Colour = (255, 146, 43)


def word_picture(
    words: Sequence[str], weights: NDArray[np.float32], values: Sequence[str], colours: Sequence[Colour] = ()
) -> NDArray[np.uint8]:
    """Words in the order of reading on a ground of colour, a value below each: uint8[h, 560, 3] RGB.

    Args:
        words: what stands there; one that does not end with a blank belongs together with the next.
        weights: float32 [n], how strong each colour is, from 0 to 1.
        values: what stands below each.
        colours: of each word at full weight; default: all orange.
    """
    placed, x, line = [], float(MARGIN), 0
    for word, value in zip(words, values, strict=True):
        width = min(max(text_width(word.strip(), SIZE), text_width(value, SMALL)) + 2 * PAD, WIDTH - 2 * MARGIN)
        if x + width > WIDTH - MARGIN and x > MARGIN:
            x, line = float(MARGIN), line + 1
        placed.append((x, line, width))
        x += width + (GAP if word.endswith(" ") else 2)
    picture = PillowImage.new("RGB", (WIDTH, LINE * (line + 1) + MARGIN), PAPER)
    pen = ImageDraw.Draw(picture)
    full = colours or [STRONG] * len(words)
    for (x, line, width), word, weight, value, colour in zip(placed, words, weights, values, full, strict=True):
        top = MARGIN + line * LINE
        pen.rounded_rectangle((x, top, x + width, top + BOX), 6, fill=_towards(colour, float(weight)))
        _centred(pen, x, top + BOX / 2, width, word.strip(), SIZE, INK)
        _centred(pen, x, top + BOX + SMALL * 0.8, width, value, SMALL, FAINT)
    return np.asarray(picture)


def _centred(
    pen: ImageDraw.ImageDraw, x: float, middle: float, width: float, text: str, size: int, colour: Colour
) -> None:
    inset = max((width - text_width(text, size)) / 2, 2)
    draw_text(pen, (x + inset, middle), text, size=size, colour=colour, width=width - 2)


def _towards(colour: Colour, weight: float) -> Colour:
    """From nearly white to the colour."""
    share = 0.06 + 0.94 * min(max(weight, 0.0), 1.0)
    red, green, blue = (round(255 + (channel - 255) * share) for channel in colour)
    return red, green, blue
