"""One evaluation: files in, all the protocols' numbers out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from text2seg.coco.reader import Dataset, check_dataset, check_results, read_dataset, read_json
from text2seg.errors import DatasetError, SettingsError
from text2seg.evaluation.alignment import Match, align
from text2seg.evaluation.instances import Instances, score_instances
from text2seg.evaluation.misses import Misses, find_misses
from text2seg.evaluation.protocols import (
    CategoryGiven,
    Multilabel,
    Semantic,
    score_multilabel,
    score_pairs,
    score_semantic,
)

Json = Mapping[str, Any]
Protocol = Literal["instances", "semantic", "category-given", "multilabel", "all"]


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What was asked for; `None` for protocols that were not. `misses` belong to category-given."""

    images: int
    true_annotations: int
    predicted_annotations: int
    instances: Instances | None = None
    semantic: Semantic | None = None
    category_given: CategoryGiven | None = None
    multilabel: Multilabel | None = None
    misses: Misses | None = None


def evaluate(
    truth: Json, predicted: Json | Sequence[Json], *, protocol: Protocol = "all", match: Match = "id"
) -> Evaluation:
    """Score predictions against a ground truth, both as in their files. Nothing of them is changed.

    Args:
        truth: a COCO dataset.
        predicted: a COCO dataset or a flat list of results.
        protocol: which numbers.
        match: see `align`.

    Raises:
        DatasetError: the files are damaged or do not fit.
        SettingsError: there is no such protocol.
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
    )


def evaluate_files(
    truth: str | os.PathLike[str],
    predicted: str | os.PathLike[str],
    *,
    protocol: Protocol = "all",
    match: Match = "id",
) -> Evaluation:
    """`evaluate` for files. Raises `DatasetError` also where one cannot be read."""
    return evaluate(read_dataset(truth), read_predictions(predicted), protocol=protocol, match=match)


def read_predictions(path: str | os.PathLike[str]) -> Dataset | list[Json]:
    """A COCO dataset file or one that holds a flat list of results, checked. Raises `DatasetError`, naming the file."""
    content = read_json(path)
    if isinstance(content, list):
        return check_results(content, str(path))
    if not isinstance(content, dict):
        raise DatasetError(f"{path} holds neither a COCO dataset nor a list of results")
    return check_dataset(content, str(path))


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """All numbers as plain JSON, protocols by their names on the command line. The confusion matrix, mostly zeros, is a
    list of [row, column, pixels], counted from 0 in the order of `labels`."""
    numbers: dict[str, Any] = {
        "images": evaluation.images,
        "true_annotations": evaluation.true_annotations,
        "predicted_annotations": evaluation.predicted_annotations,
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
