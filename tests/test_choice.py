"""Choice of a candidate and suppression of duplicate masks, by hand and with the demo model."""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import pytest
from closeness import assert_close
from hypothesis import given
from hypothesis import strategies as st

from text2seg import MaskSettings, PointSettings, PresenceSettings, Settings
from text2seg.errors import SettingsError
from text2seg.records import Candidates
from text2seg.sam.candidates import CONTAINED, by_map, by_sam, separation, suppress

HW = (6, 8)
SCENES = Path(__file__).parents[1] / "text2seg" / "demo" / "scenes"


def boxes(*each: tuple[int, int, int, int]) -> np.ndarray:
    return np.stack([builders.box_mask(HW, left=x, top=y, width=w, height=h) for x, y, w, h in each])


def scored(*scores: float) -> Candidates:
    return Candidates(np.zeros((len(scores), *HW), np.float32), np.array(scores, np.float32))


OBJECT = (1, 1, 3, 3)
PART, WHOLE, ALL = (2, 2, 1, 1), OBJECT, (0, 0, 8, 6)


def test_the_map_prefers_the_whole_object_to_its_part_and_to_the_whole_image():
    scores = boxes(OBJECT)[0].astype(np.float32)
    quality = by_map(boxes(PART, WHOLE, ALL), scored(0.9, 0.8, 0.85), scores)
    assert quality.argmax() == 1
    assert by_sam(scored(0.9, 0.8, 0.85)).argmax() == 0


def test_separation_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    scores, masks = rng.random(HW, np.float32), rng.random((3, *HW)) > 0.5
    wanted = [scores[mask].mean() - scores[~mask].mean() for mask in masks]
    assert_close(separation(masks, scores), wanted, terms=scores.size, scale=1)


def test_empty_and_full_masks_and_flat_maps_have_finite_quality():
    masks = np.stack([np.zeros(HW, bool), np.ones(HW, bool)])
    for scores in (np.zeros(HW, np.float32), np.ones(HW, np.float32)):
        assert np.isfinite(by_map(masks, scored(0.5, 0.5), scores)).all()


def test_suppress_keeps_the_best_of_duplicate_masks():
    masks = boxes((1, 1, 4, 4), (1, 1, 4, 3), (6, 0, 2, 2))
    assert suppress(masks, np.array([0.5, 0.9, 0.7]), 0.6) == [1, 2]


def test_suppress_removes_the_worse_of_part_and_whole():
    masks = boxes(PART, WHOLE)
    assert suppress(masks, np.array([0.5, 0.9]), 0.9) == [1]
    assert suppress(masks, np.array([0.9, 0.5]), 0.9) == [0]


def test_suppress_removes_empty_masks():
    assert suppress(np.zeros((2, *HW), bool), np.array([1.0, 2.0]), 0.6) == []


masks_and_scores = st.lists(st.tuples(st.integers(0, 2**12 - 1), st.integers(0, 5)), min_size=1, max_size=6).map(
    lambda rows: (np.array([[bits >> k & 1 for k in range(12)] for bits, _ in rows], bool).reshape(-1, 3, 4), rows)
)


@given(masks_and_scores)
def test_kept_masks_differ_and_each_removed_mask_resembles_a_better_one(given_masks):
    masks, rows = given_masks
    scores = np.array([score for _, score in rows], float)
    kept = suppress(masks, scores, 0.5)

    def alike(a, b):
        both = (masks[a] & masks[b]).sum()
        return both > 0.5 * (masks[a] | masks[b]).sum() or both >= CONTAINED * min(masks[a].sum(), masks[b].sum())

    for place, index in enumerate(kept):
        assert masks[index].any()
        assert not any(alike(index, other) for other in kept[:place])
    for index in set(range(len(masks))) - set(kept):
        assert not masks[index].any() or any(alike(index, k) and scores[k] >= scores[index] for k in kept)


def test_the_reference_method_uses_union_choice_of_sam_and_no_presence():
    settings = Settings(points=PointSettings(method="reference"))
    assert (settings.points.instances, settings.masks.choice, settings.presence.presence) == ("union", "sam", 0)


def test_an_unknown_choice_is_refused():
    with pytest.raises(SettingsError, match="map, sam"):
        MaskSettings(choice="best")
    with pytest.raises(SettingsError, match="overlap"):
        MaskSettings(overlap=0)


def test_the_demo_model_separates_instances_without_overlap(demo):
    session = demo.open(SCENES / "new-scenes" / "images" / "scene_0019.jpg")
    union = session.segment("sheep", Settings(points=PointSettings(instances="union"), presence=PresenceSettings(0)))
    apart = session.segment("sheep")
    assert (len(union.segments), len(apart.segments)) == (1, 2)
    assert not (apart.segments[0].mask & apart.segments[1].mask).any()
