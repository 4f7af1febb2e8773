"""Diagrams as pixels: matplotlib's figures, drawn without a screen and without its global state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.text import Text
from numpy.typing import NDArray

from text2seg.render.lettering import readable

Pixels = NDArray[np.uint8]

WIDTH, DPI = 9.0, 100  # inches and pixels per inch: as wide as the largest image of a sheet
COLOURS = ("#1f5fa8", "#d95f02", "#2a9d5c", "#8e44ad", "#c0392b", "#7f6a00")
STRIP = 2.2  # inches of height for a row of images


def strip_and_panels(cells: Sequence[tuple[str, Pixels]], panels: int, *, height: float = 4.0) -> tuple[Figure, Any]:
    """A figure with a row of small captioned images uint8[h, w, 3] above `panels` diagrams side by side, and the
    diagrams' axes, an array. `height` is that of the diagrams, in inches of 100 pixels."""
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
    """One curve: the mean of several runs [runs, N] over `at` [N], and the range that they cover as a band."""
    axes.plot(at, values.mean(0), color=colour, marker=".", markersize=6, linewidth=1.6, label=name)
    if len(values) > 1:
        axes.fill_between(at, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)


def draw_legend(axes: Any) -> None:
    """What the curves are called, where there are any."""
    if axes.lines:
        axes.legend(fontsize=9)


def letter(figure: Figure) -> None:
    """Set each text of a figure in fonts that have its letters, what no font has spelled out; to be called once all
    texts are there, before it is drawn."""
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
    """The figure drawn, uint8[h, w, 3]; the same figure gives the same pixels."""
    letter(figure)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba(), dtype=np.uint8)[:, :, :3])
