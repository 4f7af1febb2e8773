"""Curves as a picture: one small panel per category."""

from __future__ import annotations

import io
from pathlib import Path

from text2seg.errors import SettingsError
from text2seg.files import write_atomically
from text2seg.render.lettering import fitted, text_width
from text2seg.tuning.choice import THRESHOLDS
from text2seg.tuning.sweep import Tuned, Tuning

_COLUMNS, _WIDTH, _HEIGHT, _TITLE = 4, 2.9, 2.3, 9  # panels side by side; inches of one; points of its title
_USED, _CHOSEN, _LINE = "#888888", "#d95f02", "#1f5fa8"


def check_plot(path: Path) -> None:
    """Raises `SettingsError` where the name is not one of a PNG file."""
    if path.suffix.lower() != ".png":
        raise SettingsError(f"the curves are drawn as PNG, so the name must end in .png, got {path}")


def plot(tuning: Tuning, path: Path) -> Path:
    """Draw the curve of every category, the threshold used now (dashed) and the one chosen (full); gives the path.

    Raises:
        SettingsError: the name is not one of a PNG file.
        OutputError: it cannot be written.
    """
    check_plot(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from text2seg.render.plot import letter

    count = len(tuning.categories)
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(columns, 2) * _WIDTH, rows * _HEIGHT + 0.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for panel, tuned in zip(panels.flat, tuning.categories, strict=False):
        _draw(panel, tuned)
    for panel in panels.flat[count:]:
        panel.set_visible(False)
    for panel in panels.flat[max(count - columns, 0) : count]:  # the lowest that shows in each column
        panel.tick_params(labelbottom=True)
    what = "mean IoU with the truth" if tuning.by_truth else "agreement of neighbouring thresholds (IoU)"
    figure.supxlabel("threshold", fontsize=9)
    figure.supylabel(what, fontsize=9)
    figure.suptitle("dashed: used now, orange: chosen", fontsize=9)
    buffer = io.BytesIO()
    letter(figure)
    figure.savefig(buffer, format="png", metadata={"Software": None})  # so that the same curves give the same bytes
    return write_atomically(path, [buffer.getvalue()])


def _draw(panel, tuned: Tuned) -> None:  # type: ignore[no-untyped-def]
    of = tuned.curve
    count = f" ({of.images} image{'s' * (of.images != 1)})"
    name = fitted(tuned.category, _TITLE, _WIDTH * 72 - text_width(count, _TITLE) - 4 * _TITLE)  # 72 points an inch
    panel.set_title(f"{name}{count}", fontsize=_TITLE, parse_math=False)
    panel.set_xlim(THRESHOLDS[0] - 0.03, 1.0)
    panel.set_ylim(-0.03, 1.03)
    panel.tick_params(labelsize=8)
    panel.grid(alpha=0.25)
    panel.axvline(tuned.used, color=_USED, linestyle="--", linewidth=1.2)
    if tuned.chosen is not None:
        panel.axvline(tuned.chosen, color=_CHOSEN, linewidth=1.6)
    if of.scores:
        panel.plot(of.at, of.scores, color=_LINE, marker=".", markersize=5, linewidth=1.4)
    else:
        panel.text(0.5, 0.5, "not seen", transform=panel.transAxes, ha="center", va="center", color=_USED)
