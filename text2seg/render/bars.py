"""Names with bars and numbers: a ranking, or the legend of a coloured image with its shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw

from text2seg.render.colours import FAINT, INK, PAPER, Colour
from text2seg.render.lettering import draw_text, text_width

WIDTH, LINE, TEXT, GAP = 640, 38, 22, 14
NAMES = 0.4
"""The most of the width that names may take; longer ones are cut off."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A line: its name, how long its bar is as a share of the longest there could be (below 0: none), the words at its
    end, and its colour."""

    name: str
    share: float
    note: str
    colour: Colour


def bars(lines: Sequence[Bar]) -> NDArray[np.uint8]:
    """The lines from top to bottom, RGB uint8[h, 640, 3]; at least one."""
    names = min(max(text_width(line.name, TEXT) for line in lines) + 1, NAMES * WIDTH)
    notes = max(text_width(line.note, TEXT) for line in lines) + 1
    room = WIDTH - names - notes - 4 * GAP
    image = PillowImage.new("RGB", (WIDTH, LINE * len(lines) + 2 * GAP), PAPER)
    pen = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        middle = GAP + LINE * (number + 0.5)
        draw_text(pen, (GAP, middle), line.name, size=TEXT, colour=INK, width=names)
        left = 2 * GAP + names
        right = left + max(2.0, room * min(max(line.share, 0.0), 1.0))
        pen.rounded_rectangle((left, middle - LINE * 0.3, right, middle + LINE * 0.3), 3, fill=line.colour)
        draw_text(pen, (right + GAP, middle), line.note, size=TEXT, colour=FAINT, width=notes)
    return np.asarray(image)
