"""The rules that choose a threshold from a curve. Nothing here knows a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

THRESHOLDS: tuple[float, ...] = tuple(round(0.3 + 0.05 * step, 2) for step in range(14))
"""0.3 to 0.95, what a sweep with ground truth tries."""

STABLE_THRESHOLDS = THRESHOLDS[6:]
"""0.6 to 0.95, what a sweep without it tries: below, masks grow until they cover the picture, stable and wrong. With
all of `THRESHOLDS` the mean IoU on the bundled scenes, one segment per kind, fell from 0.65 and 0.67 (at 0.8) to 0.59
and 0.54 (held-out, new scenes); with these it is 0.64 and 0.65."""

EQUAL = 0.005
"""Mean IoUs that differ by no more are the same."""

TOLERANCE = 0.05
"""A stretch of the stability curve that stays this close to its highest value counts as a plateau."""

LEAST_STABILITY = 0.5
"""Where no two neighbours agree better than this, there is nothing to choose from."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One category's scores: `scores[k]`, in [0, 1], belongs to the threshold `at[k]`. `images` were averaged; where
    there were none, there are no scores."""

    at: tuple[float, ...]
    scores: tuple[float, ...]
    images: int


def curve(at: Sequence[float], rows: Sequence[Sequence[float]]) -> Curve:
    """The mean of one row of scores per image."""
    means = tuple(sum(column) / len(rows) for column in zip(*rows, strict=True)) if rows else ()
    return Curve(tuple(at), means, len(rows))


def best(of: Curve, current: float) -> float | None:
    """The threshold that scores best; of several, the one nearest to the current one, and then the lower. Scores within
    `EQUAL` of the best count as equal, so that a few pixels do not move a threshold. `None` where all are 0.

    >>> best(Curve((0.3, 0.4, 0.5), (0.1, 0.8, 0.8), 2), current=0.9)
    0.5
    """
    if not of.scores or max(of.scores) == 0:
        return None
    highest = max(of.scores)
    equal = [at for at, score in zip(of.at, of.scores, strict=True) if highest - score <= EQUAL]
    return min(equal, key=lambda at: (round(abs(at - current), 9), at))


def most_stable(of: Curve, thresholds: Sequence[float]) -> float | None:
    """The middle of the longest plateau: where the mask changes least while the threshold moves.

    A plateau is a run of neighbours whose masks agree within `TOLERANCE` of the best agreement there is; of several
    of one length the one that agrees best, then the lowest. `None` where nothing agrees (`LEAST_STABILITY`).

    Args:
        of: `scores[k]` is how well the masks at `thresholds[k]` and `thresholds[k + 1]` agree.

    >>> most_stable(Curve((0.35, 0.45, 0.55, 0.65), (0.2, 0.9, 0.9, 0.3), 1), (0.3, 0.4, 0.5, 0.6, 0.7))
    0.5
    """
    if not of.scores or max(of.scores) < LEAST_STABILITY:
        return None
    level = max(of.scores) - TOLERANCE
    runs = [list(run) for stable, run in groupby(range(len(of.scores)), lambda k: of.scores[k] >= level) if stable]
    longest = max(runs, key=lambda run: (len(run), sum(of.scores[k] for k in run), -run[0]))
    return thresholds[(longest[0] + longest[-1] + 1) // 2]
