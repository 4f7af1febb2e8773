"""Diagrams as pixels: matplotlib's figures, drawn without a screen and without its global state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

WIDTH, DPI = 9.0, 100  # inches and pixels per inch: as wide as the largest picture of a sheet
COLOURS = ("#1f5fa8", "#d95f02", "#2a9d5c", "#8e44ad", "#c0392b", "#7f6a00")
STRIP = 2.2  # inches of height for a row of pictures


def strip_and_panels(cells: Sequence[tuple[str, Pixels]], panels: int, *, height: float = 4.0) -> tuple[Figure, Any]:
    """A figure with a row of small captioned pictures uint8[h, w, 3] above `panels` diagrams side by side, and the
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


def pixels_of(figure: Figure) -> Pixels:
    """The figure drawn, uint8[h, w, 3]; the same figure gives the same pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba(), dtype=np.uint8)[:, :, :3])
