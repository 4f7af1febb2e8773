from __future__ import annotations

import builders
import numpy as np
import pytest

from text2seg.coco import polygon, rle
from text2seg.errors import DatasetError
from text2seg.evaluation import category_given


def dataset(*annotations: tuple[str, object], names: tuple[str, ...] = ("dog", "cat")) -> dict:
    return {
        "images": [{"id": 7, "file_name": "a.png", "height": 24, "width": 32}],
        "annotations": [
            {"image_id": 7, "category_id": names.index(name) + 1, "segmentation": mask} for name, mask in annotations
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, start=1)],
    }


LEFT, RIGHT = builders.box_mask(left=2, width=8), builders.box_mask(left=12, width=8)


def test_perfect_is_one_in_all_three_encodings():
    truth = dataset(("dog", rle.encode(LEFT)))
    runs = {"size": [24, 32], "counts": _runs(LEFT)}
    for segmentation in (rle.encode(LEFT), polygon.encode(LEFT), runs):
        assert category_given(truth, dataset(("dog", segmentation))).mean_iou == 1


def _runs(mask: np.ndarray) -> list[int]:
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    return np.diff([0, *edges, flat.size]).tolist()


def test_several_of_a_kind_are_scored_on_their_union():
    truth = dataset(("dog", rle.encode(LEFT)), ("dog", rle.encode(RIGHT)))
    score = category_given(truth, dataset(("dog", rle.encode(LEFT))))
    assert (score.mean_iou, score.pairs) == (0.5, 1)


def test_what_was_not_found_counts_as_zero_and_what_is_not_there_does_not_count():
    truth = dataset(("dog", rle.encode(LEFT)), ("cat", rle.encode(RIGHT)))
    score = category_given(truth, dataset(("dog", rle.encode(LEFT))))
    assert score.by_category == {"dog": 1, "cat": 0}
    assert score.mean_iou == 0.5
    only_dog = dataset(("dog", rle.encode(LEFT)))
    assert category_given(only_dog, dataset(("dog", rle.encode(LEFT)), ("cat", rle.encode(RIGHT)))).mean_iou == 1


def test_categories_are_matched_by_name_not_by_id():
    truth = dataset(("dog", rle.encode(LEFT)))
    other = dataset(("dog", rle.encode(LEFT)), names=("cat", "dog"))
    assert category_given(truth, other).mean_iou == 1


def test_no_predictions_score_zero_and_no_truth_is_an_error():
    assert category_given(dataset(("dog", rle.encode(LEFT))), dataset()).mean_iou == 0
    with pytest.raises(DatasetError, match="no annotations"):
        category_given(dataset(), dataset())
