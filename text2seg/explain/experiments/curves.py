"""Curves of several runs, as a diagram and as tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from text2seg.explain.exhibit import Table
from text2seg.explain.experiments.subject import Pixels
from text2seg.render.plot import COLOURS, draw_legend, draw_spread, pixels_of, strip_and_panels


class Curves:
    """The cosines of some ways to change a picture, run by run, over the strengths [N] of the change. A way of which
    no run is done yet is left out of all that is shown."""

    def __init__(self, ways: Sequence[str], strengths: NDArray[np.floating]) -> None:
        self.strengths = strengths
        self._runs: dict[str, list[NDArray[np.floating]]] = {way: [] for way in ways}

    def add(self, way: str, cosines: NDArray[np.float32], at: NDArray[np.floating] | None = None) -> None:
        """One run: the cosines [N], and where on the diagram's axis they stand [N]; default: at the strengths."""
        self._runs[way].append(np.stack([self.strengths if at is None else at, cosines]))

    def drawn(self, cells: Sequence[tuple[str, Pixels]], at: str) -> Pixels:
        """A diagram below captioned pictures; `at` names its axis."""
        figure, (axes,) = strip_and_panels(cells, 1)
        for colour, (way, runs) in zip(COLOURS, self._done(), strict=False):
            draw_spread(axes, runs[:, 0].mean(0), runs[:, 1], way, colour)
        axes.set_xlabel(at)
        axes.set_ylabel("cosine with the text")
        draw_legend(axes)
        return pixels_of(figure)

    def tables(self, strength: str, at: str = "") -> tuple[Table, ...]:
        """The mean cosine of each way, how far apart its runs are at most, and, where `at` names it, the mean place on
        the axis; a row for each strength, which is what `strength` calls it."""
        done = self._done()
        shown = [("cosine with the text, mean of the runs", [runs[:, 1].mean(0) for _, runs in done])]
        shown.append(("range of the runs: highest less lowest", [np.ptp(runs[:, 1], axis=0) for _, runs in done]))
        if at:
            shown.append((at, [runs[:, 0].mean(0) for _, runs in done]))
        columns = (strength, *(way for way, _ in done))
        return tuple(
            Table(
                title,
                columns,
                tuple(tuple(float(value) for value in row) for row in zip(self.strengths, *values, strict=True)),
            )
            for title, values in shown
        )

    def _done(self) -> list[tuple[str, NDArray[np.floating]]]:
        """Each way with its runs [runs, 2, N]: place on the axis and cosine."""
        return [(way, np.stack(runs)) for way, runs in self._runs.items() if runs]
