"""Deletion and insertion curves as a picture: a small diagram for each method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from text2seg.explain.curves import Curves
from text2seg.render.plot import COLOURS, DPI, WIDTH, pixels_of

ACROSS, HEIGHT = 5, 1.75  # diagrams side by side; inches of one
INSERTED, DELETED = COLOURS[:2]


def plot_curves(methods: Mapping[str, Curves]) -> NDArray[np.uint8]:
    """Both curves of each method and the area between them, uint8[h, w, 3], in the order given, all on one scale."""
    rows = -(-len(methods) // ACROSS)
    figure = Figure(figsize=(WIDTH, rows * HEIGHT + 0.5), dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, ACROSS, squeeze=False, sharex=True, sharey=True)
    for axes, (name, curves) in zip(panels.flat, methods.items(), strict=False):
        _draw(axes, name, curves)
    for axes in panels.flat[len(methods) :]:
        axes.set_visible(False)
    for axes in panels.flat[max(len(methods) - ACROSS, 0) : len(methods)]:  # the lowest that shows in each column
        axes.tick_params(labelbottom=True)
    figure.supxlabel("share of the cells", fontsize=9)
    figure.supylabel("score", fontsize=9)
    figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside upper left", ncols=2, fontsize=9)
    return pixels_of(figure)


def _draw(axes: Any, name: str, curves: Curves) -> None:
    shares = np.linspace(0, 1, len(curves.deletion))
    axes.plot(shares, curves.insertion, color=INSERTED, linewidth=1.5, label="put back, most salient first")
    axes.plot(shares, curves.deletion, color=DELETED, linewidth=1.5, label="taken away, most salient first")
    higher = curves.insertion >= curves.deletion
    for colour, where in ((INSERTED, higher), (DELETED, ~higher)):
        axes.fill_between(
            shares, curves.deletion, curves.insertion, where, interpolate=True, color=colour, alpha=0.14, linewidth=0
        )
    axes.set_title(f"{name}  {curves.gap:+.3f}", fontsize=8.5, parse_math=False)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
