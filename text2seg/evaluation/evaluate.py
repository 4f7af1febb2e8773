"""Evaluate predictions against a ground truth, and write the scores as JSON or as an HTML page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from text2seg._version import __version__
from text2seg.coco.json_file import read_json
from text2seg.coco.provenance import models_in
from text2seg.coco.reader import Dataset, check_dataset, check_results, read_dataset
from text2seg.errors import DatasetError, SettingsError
from text2seg.evaluation.alignment import Match, align
from text2seg.evaluation.misses import CAUSES, RIGHT, Misses, find_misses
from text2seg.evaluation.protocols import (
    HEADLINES,
    CategoryGiven,
    Instances,
    Multilabel,
    Semantic,
    score_instances,
    score_multilabel,
    score_pairs,
    score_semantic,
)
from text2seg.io.names import listed
from text2seg.io.writing import check_writable, write_atomically
from text2seg.render.saving import render_template

Json = Mapping[str, Any]
Protocol = Literal["instances", "semantic", "category-given", "multilabel", "all"]


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """The scores of one evaluation; None for protocols that were not computed. `misses` belong to category-given.

    `not_predicted` are the categories present in the ground truth that the dataset of predictions does not list; what
    they show counts as not found.
    """

    images: int
    true_annotations: int
    predicted_annotations: int
    instances: Instances | None = None
    semantic: Semantic | None = None
    category_given: CategoryGiven | None = None
    multilabel: Multilabel | None = None
    misses: Misses | None = None
    models: str = ""
    """The models that made the predictions, as far as their file says."""
    not_predicted: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """A sentence about the categories that the predictions do not list; empty if there are none."""
        if not (names := self.not_predicted):
            return ""
        which = listed(names)
        return f"not among the categories of the predictions, so counted as not found: {which}"


def evaluate(
    truth: Json, predicted: Json | Sequence[Json], *, protocol: Protocol = "all", match: Match = "id"
) -> Evaluation:
    """Score predictions against a ground truth. Neither is changed.

    Args:
        truth: A COCO dataset.
        predicted: A COCO dataset or a flat list of results.
        protocol: Which scores to compute.
        match: See `align`.

    Raises:
        DatasetError: The files are damaged or do not match.
        SettingsError: The protocol is unknown.
    """
    if protocol not in get_args(Protocol):
        raise SettingsError(f"there is no protocol {protocol!r}; choose from {', '.join(get_args(Protocol))}")
    aligned = align(truth, predicted, match=match)

    def asked(name: str) -> bool:
        return protocol in (name, "all")

    return Evaluation(
        images=len(aligned.scenes),
        true_annotations=sum(len(scene.truth) for scene in aligned.scenes),
        predicted_annotations=sum(len(scene.predicted) for scene in aligned.scenes),
        instances=score_instances(aligned) if asked("instances") else None,
        semantic=score_semantic(aligned) if asked("semantic") else None,
        category_given=score_pairs(aligned) if asked("category-given") else None,
        multilabel=score_multilabel(aligned) if asked("multilabel") else None,
        misses=find_misses(aligned) if asked("category-given") else None,
        not_predicted=aligned.not_predicted,
    )


def evaluate_files(
    truth: str | os.PathLike[str],
    predicted: str | os.PathLike[str],
    *,
    protocol: Protocol = "all",
    match: Match = "id",
) -> Evaluation:
    """Score files; see `evaluate`. Raises `DatasetError` also if a file cannot be read."""
    predictions = read_predictions(predicted)
    found = evaluate(read_dataset(truth), predictions, protocol=protocol, match=match)
    return found if isinstance(predictions, list) else replace(found, models=models_in(predictions))


def read_predictions(path: str | os.PathLike[str]) -> Dataset | list[Json]:
    """Read and check a COCO dataset or a flat list of results. Raises `DatasetError` with the name of the file."""
    content = read_json(path)
    if isinstance(content, list):
        return check_results(content, str(path))
    if not isinstance(content, dict):
        raise DatasetError(f"{path} holds neither a COCO dataset nor a list of results")
    return check_dataset(content, str(path))


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return all scores as plain JSON, under the names that the command line uses.

    The confusion matrix is mostly zero, so it is a list of [row, column, pixels], with indices into `labels`.
    """
    numbers: dict[str, Any] = {
        "images": evaluation.images,
        "true_annotations": evaluation.true_annotations,
        "predicted_annotations": evaluation.predicted_annotations,
        **({"models": evaluation.models} if evaluation.models else {}),
        **({"not_predicted": list(evaluation.not_predicted)} if evaluation.not_predicted else {}),
    }
    for name in ("instances", "semantic", "category_given", "multilabel", "misses"):
        score = getattr(evaluation, name)
        if score is not None:
            numbers[name.replace("_", "-")] = asdict(score)
    if evaluation.semantic is not None:
        confusion = evaluation.semantic.confusion
        rows, columns = np.nonzero(confusion)
        cells = np.stack([rows, columns, confusion[rows, columns]], axis=1)
        numbers["semantic"]["confusion"] = cells.tolist()
    return numbers


MOST_LABELS = 24  # labels shown in the confusion matrix; the others share one row and column
MOST_MISSED = 200  # missed pairs listed on the page
MOST_BARS = 30  # categories with a bar of causes
BAR_WIDTH = 400  # in SVG units


@dataclass(frozen=True, slots=True)
class Bar:
    """A stacked bar: [(cause, x, width, count)] in a drawing that is `BAR_WIDTH` wide."""

    name: str
    parts: tuple[tuple[str, float, float, int], ...]
    missed: int
    total: int


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of the confusion matrix; `share` is its share of the pixels of its row."""

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
    """Write the HTML page and return its path. The same evaluation gives the same bytes.

    Args:
        truth, predicted: What the page calls the two files.

    Raises:
        OutputError: The file exists and `overwrite` is false, or it cannot be written.
    """
    check_writable(path, overwrite=overwrite, flag="--report", text=True)
    html = render_page(evaluation, truth=truth, predicted=predicted)
    return write_atomically(path, [html.encode("utf-8", "backslashreplace")])


def render_page(evaluation: Evaluation, *, truth: str = "", predicted: str = "") -> str:
    """Return the HTML page, which needs no scripts, fonts or images from elsewhere."""
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
    """Return (protocol, name, value) of the most important scores."""
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
    """Return (heading, value by category) for each column of the table of categories."""
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
    """Return each category with its cells, in alphabetical order; categories without any score are left out."""
    table = columns(evaluation)
    names = sorted({name for _, values in table for name, value in values.items() if value is not None})
    return [(name, [values.get(name) for _, values in table]) for name in names]


def _bars(misses: Misses) -> list[Bar]:
    """Return the bar of all categories together, then those of the categories with most misses."""
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
    """Return the confusion matrix of the background and the most confused labels; the others are one row and column."""
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
    """Format a number for the page: three decimals, whole numbers with commas, – for None."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
