from __future__ import annotations

import builders
import evaluation_builders as build
import pytest

from text2seg.coco import rle
from text2seg.errors import DatasetError
from text2seg.evaluation import align, find_misses

ON, OFF, NEGATIVE = [3.5, 5.9, 1, 0.9], [25.0, 20.0, 1, 0.9], [3.0, 5.0, 0, 0.1]
ALL = builders.box_mask(left=0, top=0, width=32, height=24)


def misses(*found: dict, mask=build.LEFT, name: str = "dog"):
    return find_misses(align(build.dataset([build.annotation(name, mask)]), build.dataset(list(found))))


def cause(*found: dict) -> str:
    (missed,) = misses(*found).missed
    return missed.cause


def test_every_cause_of_a_miss_has_its_condition():
    wrong = build.RIGHT
    assert cause() == "not found"
    assert cause(build.annotation("cat", build.LEFT)) == "not found"
    assert cause(build.annotation("dog", wrong)) == "no provenance"
    assert cause(build.annotation("dog", wrong, points=[NEGATIVE])) == "no provenance"
    assert cause(build.annotation("dog", wrong, points="as text")) == "no provenance"
    assert cause(build.annotation("dog", wrong, points=[OFF, OFF, ON, NEGATIVE])) == "points off"
    assert cause(build.annotation("dog", wrong, points=[OFF, ON, NEGATIVE])) == "mask wrong"
    good, bad = rle.encode(build.LEFT), rle.encode(ALL)
    assert cause(build.annotation("dog", wrong, points=[ON], candidates=[bad])) == "mask wrong"
    assert cause(build.annotation("dog", wrong, points=[ON], candidates=[bad, good])) == "wrong candidate"
    assert cause(build.annotation("dog", wrong, points=[OFF], candidates=[good])) == "points off"


def test_points_are_x_y_and_may_be_outside_the_image():
    """The mask covers columns 2 to 9 and rows 4 to 9: x 9, y 4 is on it, x 4, y 12 is not."""
    (missed,) = misses(
        build.annotation("dog", build.RIGHT, points=[[9.9, 4.0, 1, 1.0], [4, 12, 1, 1.0], [-3, 90, 1, 1.0]])
    ).missed
    assert missed.points_on == pytest.approx(1 / 3)


def test_candidates_of_several_annotations_are_chosen_jointly():
    both = build.LEFT | build.RIGHT
    left = build.annotation("dog", ALL, points=[ON], candidates=[rle.encode(build.LEFT)])
    right = build.annotation("dog", build.RIGHT, points=[ON], candidates=[rle.encode(ALL)])
    (missed,) = misses(left, right, mask=both).missed
    assert (missed.cause, missed.best_iou) == ("wrong candidate", 1)


def test_an_iou_of_one_half_is_right_and_an_absent_category_is_false():
    result = misses(build.annotation("dog", builders.box_mask(left=2, width=4)), build.annotation("cat", build.LEFT))
    assert result.counts["right"] == 1
    assert (result.false, result.false_by_category) == (1, {"cat": 1})
    assert not result.candidates_kept


def test_counts_sum_up_over_categories():
    truth, predicted = build.random_pair(4)
    result = find_misses(align(truth, predicted))
    for outcome, count in result.counts.items():
        assert count == sum(counts[outcome] for counts in result.by_category.values())
    assert sum(result.counts.values()) - result.counts["right"] == len(result.missed) > 0
    assert [each.iou for each in result.missed] == sorted(each.iou for each in result.missed)


def test_a_damaged_candidate_is_named():
    found = build.annotation("dog", build.RIGHT, points=[ON], candidates=[{"size": [1, 1], "counts": "1"}])
    with pytest.raises(DatasetError, match=r"candidate of an annotation of '1.png'.*\[1, 1\]"):
        misses(found)
