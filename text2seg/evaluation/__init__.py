"""Score predictions against a ground truth, both COCO files, and find out why things were missed."""

from text2seg.coco.truth import Region
from text2seg.evaluation.alignment import Aligned, Scene, align
from text2seg.evaluation.evaluate import Evaluation, as_json, evaluate, evaluate_files, read_predictions
from text2seg.evaluation.misses import Missed, Misses, find_misses
from text2seg.evaluation.protocols import (
    CategoryGiven,
    Instances,
    Multilabel,
    Semantic,
    average_precision,
    category_given,
    score_instances,
    score_multilabel,
    score_pairs,
    score_semantic,
)

__all__ = [
    "Aligned",
    "CategoryGiven",
    "Evaluation",
    "Instances",
    "Missed",
    "Misses",
    "Multilabel",
    "Region",
    "Scene",
    "Semantic",
    "align",
    "as_json",
    "average_precision",
    "category_given",
    "evaluate",
    "evaluate_files",
    "find_misses",
    "read_predictions",
    "score_instances",
    "score_multilabel",
    "score_pairs",
    "score_semantic",
]
