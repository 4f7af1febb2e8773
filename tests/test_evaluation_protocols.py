"""Semantic and multilabel against naive loops, and what holds for every protocol."""

from __future__ import annotations

import builders
import evaluation_builders as build
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from text2seg.coco import rle
from text2seg.coco.results import mask_of
from text2seg.evaluation import align, as_json, average_precision, evaluate, score_multilabel, score_pairs
from text2seg.evaluation import score_semantic as semantic

HW = builders.HW


def naive_confusion(truth: dict, predicted: dict) -> np.ndarray:
    """Pixel by pixel, as the words of the definition have it."""
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
def test_semantic_is_the_naive_count(seed):
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


def test_semantic_numbers_by_hand():
    """A dog of 48 pixels, half of it found, and a cat where there is none."""
    truth = build.dataset([build.thing("dog", build.LEFT)])
    half = builders.box_mask(left=2, width=4)
    found = build.dataset([build.thing("dog", half, score=0.9), build.thing("cat", build.RIGHT, score=0.1)])
    score = semantic(align(truth, found))
    assert score.by_category == {"dog": 0.5, "cat": 0, "red car": None}
    assert score.background == (768 - 96) / (768 - 24)
    assert score.miou == (0.5 + 0 + score.background) / 3


def test_where_masks_overlap_the_smaller_is_true_and_the_surer_predicted():
    large, small = np.ones(HW, np.bool_), build.LEFT
    truth = build.dataset([build.thing("dog", small), build.thing("cat", large)])
    wanted = {"dog": 1, "cat": 1, "red car": None}
    found = build.dataset([build.thing("dog", small, score=0.9), build.thing("cat", large, score=0.2)])
    assert semantic(align(truth, found)).by_category == wanted
    found = build.dataset([build.thing("dog", small, score=0.2), build.thing("cat", large, score=0.9)])
    assert semantic(align(truth, found)).by_category == {"dog": 0, "cat": 1 - 48 / 768, "red car": None}


def test_crowds_are_ignored_by_pixels_and_by_pairs():
    crowd = build.thing("dog", build.RIGHT, crowd=True)
    truth = build.dataset([build.thing("dog", build.LEFT), crowd], [crowd, build.thing("cat", build.LEFT)])
    both = build.thing("dog", build.LEFT | build.RIGHT, score=0.7)
    found = build.dataset([both], [build.thing("dog", build.RIGHT, score=0.9), build.thing("cat", build.LEFT)])
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
def test_average_precision_is_the_naive_loop(rows):
    present, scores = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    if present.any():
        assert average_precision(present, scores) == pytest.approx(naive_average_precision(present, scores))
    else:
        assert average_precision(present, scores) is None


def test_average_precision_as_scikit_learn_documents_it():
    """The example of scikit-learn's average_precision_score."""
    present = np.array([False, False, True, True])
    assert average_precision(present, np.array([0.1, 0.4, 0.35, 0.8])) == pytest.approx(0.8333, abs=1e-4)


def presence_pair() -> tuple[dict, dict]:
    truth = build.dataset([build.thing("dog", build.LEFT)], [build.thing("cat", build.LEFT)], [])
    found = [[build.thing("dog", build.LEFT, score=score)] for score in (0.5, 0.9, 0.1)]
    return truth, build.dataset(*found)


def test_images_are_ranked_by_their_best_annotation():
    truth, predicted = presence_pair()
    score = score_multilabel(align(truth, predicted))
    assert score.by_category == {"dog": 0.5, "cat": 0, "red car": None}
    assert (score.mean_ap, score.ranked_by) == (0.25, "scores")


def test_presence_of_the_images_goes_before_scores(caplog):
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
def test_nothing_predicted_scores_zero_everywhere(found):
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
def test_the_order_of_the_files_changes_nothing(seed):
    truth, predicted = build.random_pair(seed, images=3)
    wanted = as_json(evaluate(truth, predicted))
    ours = as_json(evaluate(build.permuted(truth, seed), build.permuted(predicted, seed + 1)))
    assert ours == wanted


def test_an_empty_true_mask_makes_nothing_present():
    nothing = np.zeros(HW, np.bool_)
    truth = build.dataset([build.thing("dog", nothing), build.thing("cat", build.LEFT)])
    assert score_pairs(align(truth, build.dataset([build.thing("cat", build.LEFT)]))).by_category == {"cat": 1}
    assert rle.area(truth["annotations"][0]["segmentation"]) == 0
