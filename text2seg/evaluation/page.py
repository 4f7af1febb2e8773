"""An evaluation as one HTML page that needs nothing else: no scripts, fonts or images from elsewhere."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from text2seg._version import __version__
from text2seg.evaluation.instances import HEADLINES
from text2seg.evaluation.misses import CAUSES, RIGHT, Misses
from text2seg.evaluation.protocols import Semantic
from text2seg.evaluation.run import Evaluation
from text2seg.io.files import check_writable, write_atomically
from text2seg.render.html import render_template

MOST_LABELS = 24  # of the confusion matrix; the others are one row and column together
MOST_MISSED = 200
MOST_BARS = 30
BAR_WIDTH = 400


@dataclass(frozen=True, slots=True)
class Bar:
    """One stacked bar: [(cause, x, width, count)] in a drawing `BAR_WIDTH` wide."""

    name: str
    parts: tuple[tuple[str, float, float, int], ...]
    missed: int
    total: int


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of the confusion matrix: `share` of the pixels of its row."""

    pixels: int
    share: float


def write_page(
    evaluation: Evaluation,
    path: str | os.PathLike[str],
    *,
    truth: str = "",
    predicted: str = "",
    overwrite: bool = False,
) -> Path:
    """Write the page and return where. The same evaluation gives the same bytes.

    Args:
        truth, predicted: what the page calls the two files.

    Raises:
        OutputError: it is there and `overwrite` was not asked for, or it cannot be written.
    """
    check_writable(path, overwrite=overwrite, flag="--report", text=True)
    html = render_page(evaluation, truth=truth, predicted=predicted)
    return write_atomically(path, [html.encode("utf-8", "backslashreplace")])


def render_page(evaluation: Evaluation, *, truth: str = "", predicted: str = "") -> str:
    """The page as text."""
    misses = evaluation.misses
    return render_template(
        "text2seg.evaluation",
        {"number": _number},
        evaluation=evaluation,
        truth=truth,
        predicted=predicted,
        version=__version__,
        headline=headline(evaluation),
        columns=[name for name, _ in columns(evaluation)],
        rows=category_rows(evaluation),
        coco=[(name, getattr(evaluation.instances, name)) for name in HEADLINES] if evaluation.instances else [],
        causes={RIGHT: "an IoU of at least 0.5", **CAUSES},
        bar_width=BAR_WIDTH,
        bars=_bars(misses) if misses else [],
        most_missed=MOST_MISSED,
        confusion=_confusion(evaluation.semantic) if evaluation.semantic else None,
    )


def headline(evaluation: Evaluation) -> list[tuple[str, str, float | None]]:
    """(protocol, number, value): what a person looks at first."""
    rows: list[tuple[str, str, float | None]] = []
    if (instances := evaluation.instances) is not None:
        rows += [("instances", "AP", instances.ap), ("instances", "AP50", instances.ap_50)]
        rows += [("instances", "AP75", instances.ap_75), ("instances", "AR100", instances.ar_100)]
    if (semantic := evaluation.semantic) is not None:
        rows += [("semantic", "mIoU", semantic.miou), ("semantic", "pixel accuracy", semantic.pixel_accuracy)]
    if (given := evaluation.category_given) is not None:
        rows.append(("category-given", "mean IoU", given.mean_iou))
    if (multilabel := evaluation.multilabel) is not None:
        rows.append(("multilabel", f"mAP, images ranked by {multilabel.ranked_by}", multilabel.mean_ap))
    return rows


def columns(evaluation: Evaluation) -> list[tuple[str, dict[str, Any]]]:
    """(heading, value by category) of the table of categories."""
    found: list[tuple[str, dict[str, Any]]] = []
    if evaluation.instances is not None:
        found += [("AP", evaluation.instances.by_category), ("AP50", evaluation.instances.by_category_50)]
    if evaluation.semantic is not None:
        found.append(("semantic IoU", evaluation.semantic.by_category))
    if evaluation.category_given is not None:
        found.append(("given IoU", dict(evaluation.category_given.by_category)))
    if evaluation.multilabel is not None:
        found.append(("presence AP", evaluation.multilabel.by_category))
    if (misses := evaluation.misses) is not None:
        totals = {name: sum(counts.values()) for name, counts in misses.by_category.items()}
        right = {name: counts[RIGHT] for name, counts in misses.by_category.items()}
        found += [("present", totals), ("right", right), ("false", dict(misses.false_by_category))]
    return found


def category_rows(evaluation: Evaluation) -> list[tuple[str, list[Any]]]:
    """Category and its cells, in the order of names; without categories of which there is nothing to say."""
    table = columns(evaluation)
    names = sorted({name for _, values in table for name, value in values.items() if value is not None})
    return [(name, [values.get(name) for _, values in table]) for name in names]


def _bars(misses: Misses) -> list[Bar]:
    """All categories together, then those with most missed."""
    bars = [_bar(name, counts) for name, counts in misses.by_category.items()]
    worst = sorted((bar for bar in bars if bar.missed), key=lambda bar: (-bar.missed, bar.total, bar.name))
    return [_bar("all categories", misses.counts), *worst[:MOST_BARS]]


def _bar(name: str, counts: dict[str, int]) -> Bar:
    total, at, parts = sum(counts.values()), 0.0, []
    for cause, count in counts.items():
        width = BAR_WIDTH * count / total if total else 0.0
        if count:
            parts.append((cause, round(at, 2), round(width, 2), count))
        at += width
    return Bar(name, tuple(parts), total - counts[RIGHT], total)


def _confusion(semantic: Semantic) -> dict[str, Any]:
    """The background and the labels most confused, the rest folded into one; pixels and shares of each row."""
    matrix = semantic.confusion
    wrong = matrix.sum(0) + matrix.sum(1) - 2 * np.diag(matrix)
    used = np.flatnonzero(matrix.sum(0) + matrix.sum(1))
    ranked = sorted((place for place in used.tolist() if place), key=lambda place: (-wrong[place], place))
    kept = [0, *sorted(ranked[: MOST_LABELS - 1])]
    rest = sorted(ranked[MOST_LABELS - 1 :])
    groups = [[place] for place in kept] + ([rest] if rest else [])
    pixels = np.array([[matrix[np.ix_(one, other)].sum() for other in groups] for one in groups])
    shares = pixels / np.maximum(pixels.sum(1, keepdims=True), 1)
    names = [semantic.labels[place] for place in kept] + ([f"{len(rest)} others"] if rest else [])
    cells = [
        [Cell(int(count), float(share)) for count, share in zip(*both, strict=True)]
        for both in zip(pixels, shares, strict=True)
    ]
    return {"names": names, "rows": list(zip(names, cells, strict=True)), "rest": len(rest)}


def _number(value: Any) -> str:
    """Three digits after the point; whole numbers as they are; – where there is none."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
