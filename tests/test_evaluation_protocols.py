"""The protocols of evaluation against naive loops and pycocotools, and properties of every protocol."""

from __future__ import annotations

import json

import builders
import evaluation_builders as build
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from text2seg.coco import polygon, rle
from text2seg.coco.dataset import results_of
from text2seg.coco.rle import mask_of
from text2seg.errors import DatasetError
from text2seg.evaluation import (
    align,
    as_json,
    average_precision,
    category_given,
    evaluate,
    score_instances,
    score_multilabel,
    score_pairs,
)
from text2seg.evaluation import score_semantic as semantic
from text2seg.evaluation.protocols import HEADLINES

HW = builders.HW


def naive_confusion(truth: dict, predicted: dict) -> np.ndarray:
    """Confusion matrix counted pixel by pixel from the definition."""
    places = {c["id"]: place for place, c in enumerate(sorted(truth["categories"], key=lambda c: c["id"]), start=1)}
    matrix = np.zeros((len(places) + 1, len(places) + 1), np.int64)
    for image in truth["images"]:
        hw = image["height"], image["width"]
        true = [(a, mask_of(a, hw)) for a in truth["annotations"] if a["image_id"] == image["id"]]
        found = [(a, mask_of(a, hw)) for a in predicted["annotations"] if a["image_id"] == image["id"]]
        for row, column in np.ndindex(*hw):
            here = [(mask.sum(), a) for a, mask in true if mask[row, column] and not a["iscrowd"]]
            there = [(a["score"], a) for a, mask in found if mask[row, column]]
            if not here and any(mask[row, column] for a, mask in true if a["iscrowd"]):
                continue
            label = places[min(here, key=lambda pair: pair[0])[1]["category_id"]] if here else 0
            guess = places[max(there, key=lambda pair: pair[0])[1]["category_id"]] if there else 0
            matrix[label, guess] += 1
    return matrix


@pytest.mark.parametrize("seed", range(4))
def test_semantic_confusion_equals_a_naive_count(seed):
    truth, predicted = build.random_pair(seed, images=3, hw=HW)
    ours, wanted = semantic(align(truth, predicted)), naive_confusion(truth, predicted)
    assert (ours.confusion == wanted).all()
    assert ours.ignored == 3 * HW[0] * HW[1] - wanted.sum()
    ious = {}
    for place, label in enumerate(ours.labels):
        both = wanted[place].sum() + wanted[:, place].sum() - wanted[place, place]
        ious[label] = wanted[place, place] / both if both else None
    assert ours.background == ious.pop("background")
    assert ours.by_category == ious
    known = [iou for iou in (ours.background, *ious.values()) if iou is not None]
    assert ours.miou == pytest.approx(np.mean(known))
    assert ours.pixel_accuracy == np.trace(wanted) / wanted.sum()


def test_semantic_scores_computed_by_hand():
    """A dog of 48 pixels, half of it found, and a cat where there is none."""
    truth = build.dataset([build.annotation("dog", build.LEFT)])
    half = builders.box_mask(left=2, width=4)
    found = build.dataset([build.annotation("dog", half, score=0.9), build.annotation("cat", build.RIGHT, score=0.1)])
    score = semantic(align(truth, found))
    assert score.by_category == {"dog": 0.5, "cat": 0, "red car": None}
    assert score.background == (768 - 96) / (768 - 24)
    assert score.miou == (0.5 + 0 + score.background) / 3


def test_overlaps_go_to_the_smaller_true_mask_and_the_higher_score():
    large, small = np.ones(HW, np.bool_), build.LEFT
    truth = build.dataset([build.annotation("dog", small), build.annotation("cat", large)])
    wanted = {"dog": 1, "cat": 1, "red car": None}
    found = build.dataset([build.annotation("dog", small, score=0.9), build.annotation("cat", large, score=0.2)])
    assert semantic(align(truth, found)).by_category == wanted
    found = build.dataset([build.annotation("dog", small, score=0.2), build.annotation("cat", large, score=0.9)])
    assert semantic(align(truth, found)).by_category == {"dog": 0, "cat": 1 - 48 / 768, "red car": None}


def test_crowds_are_ignored_in_pixels_and_in_pairs():
    crowd = build.annotation("dog", build.RIGHT, crowd=True)
    truth = build.dataset([build.annotation("dog", build.LEFT), crowd], [crowd, build.annotation("cat", build.LEFT)])
    both = build.annotation("dog", build.LEFT | build.RIGHT, score=0.7)
    found = build.dataset(
        [both], [build.annotation("dog", build.RIGHT, score=0.9), build.annotation("cat", build.LEFT)]
    )
    result = evaluate(truth, found)
    assert result.semantic.miou == 1
    assert result.semantic.ignored == 96
    assert result.category_given.mean_iou == 1
    assert result.category_given.pairs == 2
    assert result.multilabel.by_category == {"dog": 1, "cat": 1, "red car": None}
    assert result.misses.false == 0


def naive_average_precision(present: np.ndarray, scores: np.ndarray) -> float:
    recall, total = 0.0, 0.0
    for threshold in sorted({s for s in scores.tolist() if s > -np.inf}, reverse=True):
        chosen = scores >= threshold
        hits = (present & chosen).sum()
        total += (hits / present.sum() - recall) * hits / chosen.sum()
        recall = hits / present.sum()
    return total


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([-np.inf, 0.1, 0.2, 0.5, 0.9])), min_size=1))
def test_average_precision_equals_a_naive_loop(rows):
    present, scores = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    if present.any():
        assert average_precision(present, scores) == pytest.approx(naive_average_precision(present, scores))
    else:
        assert average_precision(present, scores) is None


def test_average_precision_equals_the_example_of_scikit_learn():
    """The example of scikit-learn's average_precision_score."""
    present = np.array([False, False, True, True])
    assert average_precision(present, np.array([0.1, 0.4, 0.35, 0.8])) == pytest.approx(0.8333, abs=1e-4)


def presence_pair() -> tuple[dict, dict]:
    truth = build.dataset([build.annotation("dog", build.LEFT)], [build.annotation("cat", build.LEFT)], [])
    found = [[build.annotation("dog", build.LEFT, score=score)] for score in (0.5, 0.9, 0.1)]
    return truth, build.dataset(*found)


def test_images_are_ranked_by_their_best_annotation():
    truth, predicted = presence_pair()
    score = score_multilabel(align(truth, predicted))
    assert score.by_category == {"dog": 0.5, "cat": 0, "red car": None}
    assert (score.mean_ap, score.ranked_by) == (0.25, "scores")


def test_images_are_ranked_by_recorded_presence_before_scores(caplog):
    truth, predicted = presence_pair()
    for entry, dog in zip(predicted["images"], (0.9, 0.2, 0.1), strict=True):
        entry["attributes"] = {"presence": {"dog": dog, "cat": 0.3, "what nobody annotated": 1.0}}
    score = score_multilabel(align(truth, predicted))
    assert score.by_category == {"dog": 1, "cat": pytest.approx(1 / 3), "red car": None}
    assert score.ranked_by == "presence"
    del predicted["images"][1]["attributes"]
    assert score_multilabel(align(truth, predicted)).ranked_by == "scores"
    assert "only some images" in caplog.text


@pytest.mark.parametrize("found", [[], build.dataset()], ids=["results", "dataset"])
def test_no_predictions_score_zero_in_every_protocol(found):
    truth, _ = build.random_pair(0, crowds=False)
    result = evaluate(truth, found)
    assert result.instances.ap == result.category_given.mean_iou == result.multilabel.mean_ap == 0
    assert result.semantic.miou_without_background == 0
    assert result.misses.counts["not found"] == result.category_given.pairs


@settings(max_examples=12, derandomize=True)
@given(st.integers(0, 10**6))
def test_a_perfect_prediction_scores_one(seed):
    truth, _ = build.random_pair(seed, images=3)
    result = evaluate(truth, build.perfect(truth))
    assert result.instances.ap == pytest.approx(1)
    assert result.semantic.miou == result.semantic.pixel_accuracy == 1
    assert result.category_given.mean_iou == 1
    assert result.multilabel.mean_ap == 1
    assert result.misses.missed == ()
    assert result.misses.false == 0


@settings(max_examples=12, derandomize=True)
@given(st.integers(0, 10**6))
def test_scores_do_not_depend_on_the_order_of_the_files(seed):
    truth, predicted = build.random_pair(seed, images=3)
    wanted = as_json(evaluate(truth, predicted))
    ours = as_json(evaluate(build.permuted(truth, seed), build.permuted(predicted, seed + 1)))
    assert ours == wanted


def test_a_category_with_only_an_empty_true_mask_is_absent():
    nothing = np.zeros(HW, np.bool_)
    truth = build.dataset([build.annotation("dog", nothing), build.annotation("cat", build.LEFT)])
    assert score_pairs(align(truth, build.dataset([build.annotation("cat", build.LEFT)]))).by_category == {"cat": 1}
    assert rle.area(truth["annotations"][0]["segmentation"]) == 0


def of_one_image(*annotations: tuple[str, object], names: tuple[str, ...] = ("dog", "cat")) -> dict:
    return {
        "images": [{"id": 7, "file_name": "a.png", "height": 24, "width": 32}],
        "annotations": [
            {"image_id": 7, "category_id": names.index(name) + 1, "segmentation": mask} for name, mask in annotations
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, start=1)],
    }


def test_a_perfect_prediction_scores_one_in_all_three_encodings():
    truth = of_one_image(("dog", rle.encode(build.LEFT)))
    runs = {"size": [24, 32], "counts": _runs(build.LEFT)}
    for segmentation in (rle.encode(build.LEFT), polygon.encode(build.LEFT), runs):
        assert category_given(truth, of_one_image(("dog", segmentation))).mean_iou == 1


def _runs(mask: np.ndarray) -> list[int]:
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    return np.diff([0, *edges, flat.size]).tolist()


def test_several_masks_of_a_category_are_scored_on_their_union():
    truth = of_one_image(("dog", rle.encode(build.LEFT)), ("dog", rle.encode(build.RIGHT)))
    score = category_given(truth, of_one_image(("dog", rle.encode(build.LEFT))))
    assert (score.mean_iou, score.pairs) == (0.5, 1)


def test_a_missed_category_scores_zero_and_an_absent_category_does_not_count():
    truth = of_one_image(("dog", rle.encode(build.LEFT)), ("cat", rle.encode(build.RIGHT)))
    score = category_given(truth, of_one_image(("dog", rle.encode(build.LEFT))))
    assert score.by_category == {"dog": 1, "cat": 0}
    assert score.mean_iou == 0.5
    only_dog = of_one_image(("dog", rle.encode(build.LEFT)))
    assert (
        category_given(
            only_dog, of_one_image(("dog", rle.encode(build.LEFT)), ("cat", rle.encode(build.RIGHT)))
        ).mean_iou
        == 1
    )


def test_categories_are_matched_by_name_not_by_id():
    truth = of_one_image(("dog", rle.encode(build.LEFT)))
    other = of_one_image(("dog", rle.encode(build.LEFT)), names=("cat", "dog"))
    assert category_given(truth, other).mean_iou == 1


def test_no_predictions_score_zero_and_an_empty_truth_raises():
    assert category_given(of_one_image(("dog", rle.encode(build.LEFT))), of_one_image()).mean_iou == 0
    with pytest.raises(DatasetError, match="no annotations"):
        category_given(of_one_image(), of_one_image())


def pycocotools_scores(truth: dict, predicted: dict, tmp_path) -> COCOeval:
    (tmp_path / "truth.json").write_text(json.dumps(truth), encoding="utf-8")
    (tmp_path / "found.json").write_text(json.dumps(results_of(predicted)), encoding="utf-8")
    coco = COCO(str(tmp_path / "truth.json"))
    evaluation = COCOeval(coco, coco.loadRes(str(tmp_path / "found.json")), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", range(8))
def test_instance_scores_equal_pycocotools(seed, tmp_path):
    truth, predicted = build.random_pair(seed)
    wanted = pycocotools_scores(truth, predicted, tmp_path)
    ours = score_instances(align(truth, predicted))
    assert [getattr(ours, name) for name in HEADLINES] == [None if x == -1 else x for x in wanted.stats.tolist()]
    precision = wanted.eval["precision"][:, :, :, 0, -1]
    for k, number in enumerate(wanted.params.catIds):
        name = next(c["name"] for c in truth["categories"] if c["id"] == number)
        known = precision[:, :, k][precision[:, :, k] > -1]
        assert ours.by_category[name] == (known.mean() if len(known) else None)
        assert ours.by_category_50[name] == (precision[0, :, k].mean() if len(known) else None)


def test_the_random_datasets_are_not_trivial():
    scores = [score_instances(align(*build.random_pair(seed))) for seed in range(8)]
    assert 0.1 < np.mean([score.ap for score in scores]) < 0.9
    assert {None} != {score.ap_large for score in scores}


def test_no_predictions_have_zero_instance_scores():
    truth, _ = build.random_pair(0)
    score = score_instances(align(truth, []))
    assert (score.ap, score.ap_50, score.ar_100) == (0, 0, 0)
    assert score.by_category["dog"] == 0


def test_predictions_inside_a_crowd_do_not_count():
    here = build.annotation("dog", build.LEFT)
    truth = build.dataset([here, build.annotation("dog", build.RIGHT, crowd=True)])
    found = [build.annotation("dog", build.LEFT, score=0.5), build.annotation("dog", build.RIGHT, score=0.9)]
    assert score_instances(align(truth, build.dataset(found))).ap == pytest.approx(1)
    truth["annotations"].pop()
    assert score_instances(align(truth, build.dataset(found))).ap == pytest.approx(0.5, abs=0.01)


def test_an_annotation_with_id_0_is_scored_like_any_other(caplog):
    truth = build.dataset([build.annotation("dog", build.LEFT)])
    truth["annotations"][0]["id"] = 0
    found = build.dataset([build.annotation("dog", build.LEFT, score=0.5)])
    assert score_instances(align(truth, found)).ap == pytest.approx(1)
    assert "id 0" in caplog.text
    assert truth["annotations"][0]["id"] == 0
