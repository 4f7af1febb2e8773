"""Regions of maps drawn by hand, against a slow flood, and as invariants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from text2seg.config import PointSettings
from text2seg.prompts import regions, sam_prompts

HW = (5, 9)


def two_hills(saddle: float) -> np.ndarray:
    """A hill of 1.0 on the left, one of 0.9 on the right, a ridge between them."""
    scores = np.zeros(HW, np.float32)
    scores[1:4, 1:8] = saddle
    scores[2, 2], scores[2, 6] = 1.0, 0.9
    return scores


def settings(**changes) -> PointSettings:
    return PointSettings(**{"floor": 0.3, "prominence": 0.2, **changes})


def peaks(scores, **changes) -> list[tuple[int, int]]:
    return [divmod(int(cells[0]), scores.shape[1]) for cells in regions(scores, settings(**changes))]


def test_two_hills_are_two_regions_the_higher_first():
    assert peaks(two_hills(0.5)) == [(2, 2), (2, 6)]


def test_a_hill_that_hardly_rises_belongs_to_the_higher_one():
    assert peaks(two_hills(0.8)) == [(2, 2)]
    assert peaks(two_hills(0.8), prominence=0.05) == [(2, 2), (2, 6)]


def test_cells_below_the_floor_belong_to_none():
    found = regions(two_hills(0.5), settings(floor=0.6))
    assert [cells.tolist() for cells in found] == [[2 * 9 + 2], [2 * 9 + 6]]


@pytest.mark.parametrize("flat", [np.zeros(HW, np.float32), np.ones(HW, np.float32), np.zeros((1, 1), np.float32)])
def test_a_constant_map_has_no_regions(flat):
    assert regions(flat, settings()) == []


maps = arrays(np.float32, (5, 7), elements=st.integers(0, 8).map(lambda level: level / 8))


@given(maps, st.sampled_from([0.0, 0.1, 0.3]))
def test_every_cell_above_the_floor_is_in_one_region_whose_first_cell_is_its_peak(scores, prominence):
    found = regions(scores, settings(prominence=prominence))
    cells = np.concatenate(found).tolist() if found else []
    above = np.flatnonzero(scores.ravel() >= 0.3).tolist() if np.ptp(scores) else []
    assert sorted(cells) == above
    for region in found:
        assert scores.ravel()[region].max() == scores.ravel()[region[0]]


@given(maps)
def test_more_prominence_never_gives_more_regions(scores):
    counts = [len(regions(scores, settings(prominence=prominence))) for prominence in (0.0, 0.2, 0.5, 1.0)]
    assert counts == sorted(counts, reverse=True)


def test_each_region_is_an_aim_with_points_on_it_and_the_map():
    patch_presence = np.ones(HW, np.float32)
    left, right = sam_prompts(
        two_hills(0.5)[None], patch_presence, (50, 90), settings(instances="regions", threshold=0.9), least_presence=0.5
    )
    assert left.points.xy.tolist() == [[25, 25], [5, 5]]
    assert right.points.xy[0].tolist() == [65, 25]
    assert (left.points.labels.tolist(), right.points.labels.tolist()) == ([1, 0], [1, 0])
    np.testing.assert_array_equal(left.scores, two_hills(0.5))


def test_a_region_without_evidence_is_no_aim():
    patch_presence = np.zeros(HW, np.float32)
    patch_presence[2, 6] = 0.9
    (only,) = sam_prompts(
        two_hills(0.5)[None], patch_presence, (50, 90), settings(instances="regions"), least_presence=0.5
    )
    assert only.points.xy[0].tolist() == [65, 25]
    assert sam_prompts(two_hills(0.5)[None], patch_presence, (50, 90), settings(), least_presence=0.95) == ()


def test_union_and_combined_queries_are_one_aim():
    patch_presence = np.ones(HW, np.float32)
    for parts, instances in ((two_hills(0.5)[None], "union"), (np.stack([two_hills(0.5)] * 2), "regions")):
        assert len(sam_prompts(parts, patch_presence, (50, 90), settings(instances=instances), least_presence=0.5)) == 1
