"""What `text2seg calibrate` fits, from plain numbers: presence, the choice among candidates, and bounds of regions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from text2seg.grids import iou
from text2seg.model_card import Choice

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SHOWS, RIGHT = 0.3, 0.5
"""A region shows a thing if one of its candidates has at least the first IoU with it. A segment is right from the
second."""
QUALITIES = tuple(round(0.1 + 0.05 * step, 2) for step in range(15))
"""Values tried for `Choice.quality`."""
KEPT_REGIONS = 0.95
"""Share of the regions that show a thing which `Regions.far_below` keeps."""
RESAMPLES = 1000


def equal_error(logits: Floats, present: Bools) -> tuple[float, float]:
    """Return the logit at which equal shares of present things are lost and of absent ones found, and that share.

    Args:
        logits, present: [N], of pairs of an image and a category; some are present and some absent.
    """
    shown, absent = np.sort(logits[present]), np.sort(logits[~present])
    lost = np.arange(len(shown)) / len(shown)
    found = 1 - np.searchsorted(absent, shown) / len(absent)
    at = int(np.abs(lost - found).argmin())
    return float(shown[at]), float((lost[at] + found[at]) / 2)


def fit_presence(logits: Floats, present: Bools) -> tuple[float, float]:
    """Return slope and offset, so that presence is 0.5 where equal shares are lost and found.

    The slope is that of a logistic regression through that point, in which present and absent pairs have equal weight.
    It is at least 0.01, and at most 10 where both kinds can be separated.
    """
    middle, _ = equal_error(logits, present)
    x, y = logits - middle, present.astype(np.float64)
    weight = np.where(present, 0.5 / y.sum(), 0.5 / (1 - y).sum())
    slope = 0.1
    for _ in range(100):
        p = sigmoid(slope * x)
        curvature = (weight * x * x * p * (1 - p)).sum()
        if curvature < 1e-12:
            break
        slope = float(np.clip(slope + (weight * x * (y - p)).sum() / curvature, 0.01, 10))
    return slope, -slope * middle


def sigmoid(x: Floats) -> Floats:
    """Return 1 / (1 + exp(−x)) without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x))


def fit_choice(rows: Floats) -> Choice:
    """Fit how the IoU of a candidate follows from SAM's score and the map's separation, by least squares.

    `quality` is the expected IoU from which a region's best candidate is right more often than not counts most: the
    value with the best F1 of "right".

    Args:
        rows: [R, K, 3], for each region and candidate: SAM's score, separation, true IoU.
    """
    flat = rows.reshape(-1, 3)
    design = np.column_stack([flat[:, :2], np.ones(len(flat))])
    sam, separation, constant = np.linalg.lstsq(design, flat[:, 2], rcond=None)[0]
    expected = rows[:, :, 0] * sam + rows[:, :, 1] * separation + constant
    best = expected.argmax(1)[:, None]
    quality = np.take_along_axis(expected, best, 1)[:, 0]
    right = np.take_along_axis(rows[:, :, 2], best, 1)[:, 0] >= RIGHT
    scores = [2 * (right & (quality >= at)).sum() / max((quality >= at).sum() + right.sum(), 1) for at in QUALITIES]
    return Choice(
        sam=round(float(sam), 4),
        separation=round(float(separation), 4),
        constant=round(float(constant), 4),
        quality=QUALITIES[int(np.argmax(scores))],
    )


def far_below(gaps: Floats, slope: float) -> float:
    """Return the ratio of odds by which a region may be below the best one of its query.

    Args:
        gaps: how far the logits of regions that show a thing are below the best of their query, before `slope`.
    """
    gap = float(np.quantile(gaps, KEPT_REGIONS)) if len(gaps) else 0.0
    return round(max(float(np.exp(min(slope * gap, 20.0))), 2.0), 1)


def single_quality(found: Sequence[Bools], true: Sequence[Bools]) -> float:
    """Return the sum of the IoUs of matched masks, over the mean number of found and true ones.

    Found and true masks with an IoU of 0.5 or more are matched, the highest IoU first. Source: panoptic quality
    (Kirillov et al., arXiv 1801.00868), for one category.
    """
    table = np.array([[iou(a, b) for b in true] for a in found], np.float64).reshape(len(found), len(true))
    total = 0.0
    while table.size and table.max() >= RIGHT:
        row, column = np.unravel_index(int(table.argmax()), table.shape)
        total += float(table[row, column])
        table[row], table[:, column] = 0, 0
    return total / max((len(found) + len(true)) / 2, 1)


def interval(rows: Sequence[Floats], value: Callable[[Floats], float], *, seed: int = 0) -> tuple[float, float]:
    """Return a 95 % interval of a value by bootstrap over images.

    Args:
        rows: for each image its rows; images without rows count as drawn.
        value: of all rows of the drawn images together, [N, columns]; NaN if it has none.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(RESAMPLES):
        chosen = rng.integers(0, len(rows), len(rows))
        drawn.append(value(np.concatenate([rows[k] for k in chosen])))
    known = np.array([each for each in drawn if np.isfinite(each)])
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)
