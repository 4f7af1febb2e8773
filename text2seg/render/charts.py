"""Bars with names, and matplotlib diagrams as pixels, drawn without a screen and without pyplot's global state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.text import Text
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw

from text2seg.render.drawing import FAINT, INK, PAPER, Colour, draw_text, readable, text_width

Pixels = NDArray[np.uint8]

WIDTH, DPI = 9.0, 100  # inches and pixels per inch: the width of the largest image of a sheet
COLOURS = ("#1f5fa8", "#d95f02", "#2a9d5c", "#8e44ad", "#c0392b", "#7f6a00")
STRIP = 2.2  # inches of height for a row of images
BARS_WIDTH, LINE, TEXT, GAP = 640, 38, 22, 14
NAMES = 0.4
"""Highest share of the width for names; longer names are cut off."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its name, its length as a share of the longest possible (below 0: none), the text at its end, and its
    colour."""

    name: str
    share: float
    note: str
    colour: Colour


def bars(lines: Sequence[Bar]) -> NDArray[np.uint8]:
    """Draw bars from top to bottom, at least one. Returns RGB uint8[h, 640, 3]."""
    names = min(max(text_width(line.name, TEXT) for line in lines) + 1, NAMES * BARS_WIDTH)
    notes = max(text_width(line.note, TEXT) for line in lines) + 1
    room = BARS_WIDTH - names - notes - 4 * GAP
    image = PillowImage.new("RGB", (BARS_WIDTH, LINE * len(lines) + 2 * GAP), PAPER)
    pen = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        middle = GAP + LINE * (number + 0.5)
        draw_text(pen, (GAP, middle), line.name, size=TEXT, colour=INK, width=names)
        left = 2 * GAP + names
        right = left + max(2.0, room * min(max(line.share, 0.0), 1.0))
        pen.rounded_rectangle((left, middle - LINE * 0.3, right, middle + LINE * 0.3), 3, fill=line.colour)
        draw_text(pen, (right + GAP, middle), line.note, size=TEXT, colour=FAINT, width=notes)
    return np.asarray(image)


def strip_and_panels(cells: Sequence[tuple[str, Pixels]], panels: int, *, height: float = 4.0) -> tuple[Figure, Any]:
    """Return a figure with a row of small captioned images uint8[h, w, 3] above `panels` diagrams side by side, and an
    array of the diagrams' axes. `height` is the height of the diagrams, in inches of 100 pixels."""
    figure = Figure(figsize=(WIDTH, STRIP + height), dpi=DPI, layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(STRIP, height))
    upper, lower = parts
    for axes, (caption, pixels) in zip(upper.subplots(1, len(cells), squeeze=False)[0], cells, strict=True):
        axes.imshow(pixels, interpolation="antialiased")
        axes.set_title(caption, fontsize=9, parse_math=False)
        axes.set_axis_off()
    axes = lower.subplots(1, panels, squeeze=False)[0]
    for each in axes:
        each.grid(alpha=0.25)
        each.tick_params(labelsize=9)
    return figure, axes


def draw_spread(axes: Any, at: NDArray[Any], values: NDArray[Any], name: str, colour: str) -> None:
    """Draw one curve: the mean of several runs [runs, N] over `at` [N], with their range as a band."""
    axes.plot(at, values.mean(0), color=colour, marker=".", markersize=6, linewidth=1.6, label=name)
    if len(values) > 1:
        axes.fill_between(at, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)


def draw_legend(axes: Any) -> None:
    """Draw a legend if there are curves."""
    if axes.lines:
        axes.legend(fontsize=9)


def letter(figure: Figure) -> None:
    """Set each text of a figure in fonts that have its letters; letters that no font has are spelled out. Call it
    before drawing, when all texts are set."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if text.get_text().isascii():
            continue
        words, files = readable(text.get_text())
        for file in files:
            if not any(entry.fname == file for entry in fontManager.ttflist):
                fontManager.addfont(file)
        names = [FontProperties(fname=file).get_name() for file in files]
        text.set_text(words)
        text.set_fontfamily([*text.get_fontfamily(), *names])


def pixels_of(figure: Figure) -> Pixels:
    """Draw a figure. Returns uint8[h, w, 3]; the same figure gives the same pixels."""
    letter(figure)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba(), dtype=np.uint8)[:, :, :3])
