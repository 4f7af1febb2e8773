"""The HTML page of a calibration."""

from __future__ import annotations

import numpy as np

from text2seg._version import __version__
from text2seg.calibration import FEW_IMAGES
from text2seg.calibration.card import FOUND, IOU, LOST, QUALITY, Calibration
from text2seg.calibration.fit import Floats
from text2seg.calibration.measure import METHODS
from text2seg.render.saving import render_template

BINS = 10


def render_page(calibration: Calibration) -> str:
    """Return the HTML page of a calibration, which needs nothing from elsewhere."""
    card, present, presence = calibration.card, calibration.present, calibration.presence
    at: Floats = np.linspace(0, 1, 101, dtype=np.float64)
    lost = [(presence[present] < each).mean() for each in at]
    found = [(presence[~present] >= each).mean() for each in at]
    bins = np.minimum((presence * BINS).astype(int), BINS - 1)
    reliability = [
        (float(presence[bins == k].mean()), float(present[bins == k].mean()), int((bins == k).sum()))
        for k in range(BINS)
        if (bins == k).any()
    ]
    ious = {method: np.concatenate(rows)[:, 0] for method, rows in calibration.scores.items()}
    counts = {method: np.histogram(values, BINS, (0, 1))[0].tolist() for method, values in ious.items()}
    table = {
        measure: {score.method: score for score in card.scores if score.measure == measure}
        for measure in (IOU, QUALITY, LOST, FOUND)
    }
    return render_template(
        "text2seg.calibration",
        {},
        version=__version__,
        card=card,
        facts=card.facts(),
        methods=list(METHODS),
        table=table,
        lost=_line(at, np.array(lost)),
        found=_line(at, np.array(found)),
        reliability=reliability,
        counts=counts,
        highest=max(max(row) for row in counts.values()),
        failures=calibration.failures,
        missing=calibration.missing,
        unknown=calibration.unknown,
        few=calibration.few,
        few_images=FEW_IMAGES,
        threshold=0.5,
    )


def _line(x: Floats, y: Floats) -> str:
    """Return points of an SVG line in a square of 100 units, y upwards."""
    return " ".join(f"{100 * a:.1f},{100 - 100 * b:.1f}" for a, b in zip(x, y, strict=True))
