"""Multilabel: is the thing in the image at all? Average precision of that, by category."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from text2seg.evaluation.datasets import Aligned, Scene


@dataclass(frozen=True, slots=True)
class Multilabel:
    """`mean_ap` is the mean over the categories that are in any image, `by_category` their average precision (`None`:
    in no image); `ranked_by` says whether images were ranked by their own presence or by the scores of annotations."""

    mean_ap: float
    by_category: dict[str, float | None]
    ranked_by: Literal["presence", "scores"]


def score_multilabel(aligned: Aligned) -> Multilabel:
    """Rank the images for each category by presence, where the predictions say it, else by its best annotation.

    Images without a score for a category are never retrieved, so nothing predicted scores 0. An image in which the
    category is only a crowd is left out of that category's ranking.
    """
    by_presence = any(scene.presence is not None for scene in aligned.scenes)
    present = [set(scene.present()) for scene in aligned.scenes]
    scores = [_scores(scene, by_presence=by_presence) for scene in aligned.scenes]
    crowded = [
        {each.category for each in scene.truth if each.crowd} - has
        for scene, has in zip(aligned.scenes, present, strict=True)
    ]
    by_category: dict[str, float | None] = {}
    for number, name in aligned.categories.items():
        kept = [place for place, crowds in enumerate(crowded) if number not in crowds]
        by_category[name] = average_precision(
            np.array([number in present[place] for place in kept], np.bool_),
            np.array([scores[place].get(number, -np.inf) for place in kept], np.float64),
        )
    known = [ap for ap in by_category.values() if ap is not None]
    mean = sum(known) / len(known) if known else 0.0
    return Multilabel(mean, by_category, "presence" if by_presence else "scores")


def average_precision(present: NDArray[np.bool_], scores: NDArray[np.float64]) -> float | None:
    """The sum over thresholds of (recall gained) × precision, no interpolation: what scikit-learn calls average
    precision.

    Args:
        present: bool [N], the truth.
        scores: float64 [N]; equal ones share a threshold; -inf: never retrieved.

    Returns:
        `None` where nothing is present.
    """
    positives = int(present.sum())
    if not positives:
        return None
    ranked = scores > -np.inf
    present, scores = present[ranked], scores[ranked]
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(present[order])
    last = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # the last image of each threshold
    gained = np.diff(hits[last], prepend=0) / positives
    return float((gained * (hits[last] / (last + 1))).sum())


def _scores(scene: Scene, *, by_presence: bool) -> dict[int, float]:
    if by_presence:
        return dict(scene.presence or {})
    best: dict[int, float] = {}
    for each in scene.predicted:
        best[each.category] = max(each.score, best.get(each.category, -np.inf))
    return best
