"""Our instances are pycocotools' own, to the last digit."""

from __future__ import annotations

import json

import evaluation_builders as build
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from text2seg.coco.results import results_of
from text2seg.evaluation import align, score_instances
from text2seg.evaluation.instances import HEADLINES


def by_hand(truth: dict, predicted: dict, tmp_path) -> COCOeval:
    (tmp_path / "truth.json").write_text(json.dumps(truth), encoding="utf-8")
    (tmp_path / "found.json").write_text(json.dumps(results_of(predicted)), encoding="utf-8")
    coco = COCO(str(tmp_path / "truth.json"))
    evaluation = COCOeval(coco, coco.loadRes(str(tmp_path / "found.json")), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", range(8))
def test_equal_to_pycocotools_by_hand(seed, tmp_path):
    truth, predicted = build.random_pair(seed)
    wanted = by_hand(truth, predicted, tmp_path)
    ours = score_instances(align(truth, predicted))
    assert [getattr(ours, name) for name in HEADLINES] == [None if x == -1 else x for x in wanted.stats.tolist()]
    precision = wanted.eval["precision"][:, :, :, 0, -1]
    for k, number in enumerate(wanted.params.catIds):
        name = next(c["name"] for c in truth["categories"] if c["id"] == number)
        known = precision[:, :, k][precision[:, :, k] > -1]
        assert ours.by_category[name] == (known.mean() if len(known) else None)
        assert ours.by_category_50[name] == (precision[0, :, k].mean() if len(known) else None)


def test_the_random_datasets_are_no_trivial_ones():
    scores = [score_instances(align(*build.random_pair(seed))) for seed in range(8)]
    assert 0.1 < np.mean([score.ap for score in scores]) < 0.9
    assert {None} != {score.ap_large for score in scores}


def test_nothing_predicted_is_zero_not_a_crash():
    truth, _ = build.random_pair(0)
    score = score_instances(align(truth, []))
    assert (score.ap, score.ap_50, score.ar_100) == (0, 0, 0)
    assert score.by_category["dog"] == 0


def test_what_lies_in_a_crowd_is_neither_right_nor_wrong():
    here = build.thing("dog", build.LEFT)
    truth = build.dataset([here, build.thing("dog", build.RIGHT, crowd=True)])
    found = [build.thing("dog", build.LEFT, score=0.5), build.thing("dog", build.RIGHT, score=0.9)]
    assert score_instances(align(truth, build.dataset(found))).ap == pytest.approx(1)
    truth["annotations"].pop()
    assert score_instances(align(truth, build.dataset(found))).ap == pytest.approx(0.5, abs=0.01)


def test_an_annotation_with_the_id_0_is_scored_as_any_other(caplog):
    truth = build.dataset([build.thing("dog", build.LEFT)])
    truth["annotations"][0]["id"] = 0
    found = build.dataset([build.thing("dog", build.LEFT, score=0.5)])
    assert score_instances(align(truth, found)).ap == pytest.approx(1)
    assert "id 0" in caplog.text
    assert truth["annotations"][0]["id"] == 0
