"""Point prompts: position and number of points, corrected faults of the original, and regions of a similarity map."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from text2seg.config import PointSettings
from text2seg.errors import SettingsError
from text2seg.prompts import combined_points, regions, sam_prompts, text2points

HW = (24, 32)
PLAIN = PointSettings(downsample=1)
REFERENCE = PointSettings(method="reference", downsample=1)


def points_of(scores: list[list[float]], settings: PointSettings = PLAIN, hw: tuple[int, int] = HW):
    (prompts,) = text2points(np.array([scores], np.float32), hw, settings)
    return prompts


def test_peak_is_positive_and_lowest_cell_negative():
    prompts = points_of([[0.1, 0.2, 0.3, 0.2], [0.2, 0.9, 0.3, 0.0], [0.1, 0.2, 0.3, 0.2]])
    assert prompts.labels.tolist() == [1, 0]
    np.testing.assert_allclose(prompts.xy, [[12, 12], [28, 12]])  # x runs over 32 columns, y over 24 rows
    np.testing.assert_allclose(prompts.similarity, [1, 0])


def test_no_more_than_half_of_the_cells_are_positive():
    prompts = points_of([[1.0, 1.0, 1.0], [1.0, 0.9, 0.0]])
    assert prompts.labels.tolist() == [1, 1, 1, 0, 0, 0]


def test_reference_truncates_cell_centres_to_whole_pixels_and_the_default_does_not():
    scores = [[0.0, 0.1, 0.2], [0.3, 0.4, 1.0]]
    assert points_of(scores, REFERENCE, (25, 31)).xy[0].tolist() == [25, 18]
    np.testing.assert_allclose(points_of(scores, PLAIN, (25, 31)).xy[0], [2.5 * 31 / 3, 18.75])


@pytest.mark.parametrize("settings", [PLAIN, REFERENCE])
def test_constant_map_has_no_points(settings):
    """The original divides 0 by 0 and then takes every cell as a point, without labels."""
    assert len(points_of([[0.3, 0.3], [0.3, 0.3]], settings)) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_map_that_is_not_finite_has_no_points(bad):
    assert len(points_of([[0.3, bad], [0.1, 0.2]])) == 0


def test_grid_of_one_cell_has_no_points_and_logs_a_warning(caplog):
    assert len(points_of([[0.3]])) == 0
    assert "one cell only" in caplog.text


def test_fine_grids_are_halved_as_in_the_original_and_coarse_ones_are_not():
    scores = np.zeros((1, 32, 32), np.float32)
    scores[0, 10:12, 20:22] = 1
    (fine,) = text2points(scores, (320, 320), PointSettings())
    assert fine.xy[0].tolist() == [210, 110]  # the centre of cell (5, 10) of a 16 × 16 grid
    (coarse,) = text2points(scores[:, :16, :16], (320, 320), PointSettings())
    assert len(coarse) == 0


def test_points_of_a_query_do_not_depend_on_the_other_queries():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(3, 6, 8)).astype(np.float32)
    together = text2points(scores, HW, PLAIN)
    for query in range(3):
        (alone,) = text2points(scores[query : query + 1], HW, PLAIN)
        np.testing.assert_array_equal(alone.xy, together[query].xy)


@given(
    arrays(
        np.float32,
        st.tuples(st.just(1), st.integers(1, 9), st.integers(1, 9)),
        elements=st.floats(-1, 1, width=32),
    ),
    st.tuples(st.integers(1, 50), st.integers(1, 50)),
)
def test_points_are_inside_the_image_and_no_cell_is_positive_and_negative(scores, hw):
    (prompts,) = text2points(scores, hw, PLAIN)
    positive, negative = prompts.labels == 1, prompts.labels == 0
    assert positive.sum() == negative.sum()
    assert (prompts.xy >= 0).all()
    assert (prompts.xy <= [hw[1] - 1, hw[0] - 1]).all()
    if len(prompts):
        assert prompts.similarity[positive].min() >= prompts.similarity[negative].max()
        assert prompts.similarity[positive].min() >= PLAIN.threshold


def test_combined_takes_positives_of_each_map_and_negatives_of_the_mean():
    one_map = [[1.0, 0.5, 0.0, 0.4], [0.3, 0.4, 0.4, 0.3]]
    other = [[0.3, 0.4, 0.0, 1.0], [0.4, 0.3, 0.4, 0.3]]
    prompts = combined_points(np.array([one_map, other], np.float32), HW, PLAIN)
    positives = {tuple(xy) for xy in prompts.xy[prompts.labels == 1].tolist()}
    assert positives == {(4.0, 6.0), (28.0, 6.0)}
    assert (20.0, 6.0) in {tuple(xy) for xy in prompts.xy[prompts.labels == 0].tolist()}


def test_combined_counts_a_shared_cell_once_but_reference_twice():
    scores = np.array([[[1.0, 0.2, 0.0]]] * 2, np.float32)
    assert combined_points(scores, HW, PLAIN).labels.sum() == 1
    assert combined_points(scores, HW, REFERENCE).labels.sum() == 2


@pytest.mark.parametrize("wrong", [{"threshold": 0}, {"threshold": 1.1}, {"downsample": 0}])
def test_point_settings_out_of_range_are_refused(wrong):
    with pytest.raises(SettingsError):
        PointSettings(**wrong)


GRID = (5, 9)


def two_peaks(saddle: float) -> np.ndarray:
    """Map with a peak of 1.0 on the left, one of 0.9 on the right, and a saddle between them."""
    scores = np.zeros(GRID, np.float32)
    scores[1:4, 1:8] = saddle
    scores[2, 2], scores[2, 6] = 1.0, 0.9
    return scores


def region_settings(**changes) -> PointSettings:
    return PointSettings(**{"floor": 0.3, "prominence": 0.2, **changes})


def peaks(scores, **changes) -> list[tuple[int, int]]:
    return [divmod(int(cells[0]), scores.shape[1]) for cells in regions(scores, region_settings(**changes))]


def test_two_peaks_are_two_regions_the_higher_first():
    assert peaks(two_peaks(0.5)) == [(2, 2), (2, 6)]


def test_a_peak_of_low_prominence_belongs_to_the_higher_one():
    assert peaks(two_peaks(0.8)) == [(2, 2)]
    assert peaks(two_peaks(0.8), prominence=0.05) == [(2, 2), (2, 6)]


def test_cells_below_the_floor_are_in_no_region():
    found = regions(two_peaks(0.5), region_settings(floor=0.6))
    assert [cells.tolist() for cells in found] == [[2 * 9 + 2], [2 * 9 + 6]]


@pytest.mark.parametrize("flat", [np.zeros(GRID, np.float32), np.ones(GRID, np.float32), np.zeros((1, 1), np.float32)])
def test_a_constant_map_has_no_regions(flat):
    assert regions(flat, region_settings()) == []


maps = arrays(np.float32, (5, 7), elements=st.integers(0, 8).map(lambda level: level / 8))


@given(maps, st.sampled_from([0.0, 0.1, 0.3]))
def test_every_cell_above_the_floor_is_in_one_region_whose_first_cell_is_its_peak(scores, prominence):
    found = regions(scores, region_settings(prominence=prominence))
    cells = np.concatenate(found).tolist() if found else []
    above = np.flatnonzero(scores.ravel() >= 0.3).tolist() if np.ptp(scores) else []
    assert sorted(cells) == above
    for region in found:
        assert scores.ravel()[region].max() == scores.ravel()[region[0]]


@given(maps)
def test_a_higher_prominence_never_gives_more_regions(scores):
    counts = [len(regions(scores, region_settings(prominence=prominence))) for prominence in (0.0, 0.2, 0.5, 1.0)]
    assert counts == sorted(counts, reverse=True)


def test_each_region_has_a_prompt_with_its_points_and_the_map():
    patch_presence = np.ones(GRID, np.float32)
    left, right = sam_prompts(
        two_peaks(0.5)[None],
        patch_presence,
        (50, 90),
        region_settings(instances="regions", threshold=0.9),
        min_presence=0.5,
    )
    assert left.points.xy.tolist() == [[25, 25], [5, 5]]
    assert right.points.xy[0].tolist() == [65, 25]
    assert (left.points.labels.tolist(), right.points.labels.tolist()) == ([1, 0], [1, 0])
    np.testing.assert_array_equal(left.scores, two_peaks(0.5))


def test_a_region_without_presence_has_no_prompt():
    patch_presence = np.zeros(GRID, np.float32)
    patch_presence[2, 6] = 0.9
    (only,) = sam_prompts(
        two_peaks(0.5)[None], patch_presence, (50, 90), region_settings(instances="regions"), min_presence=0.5
    )
    assert only.points.xy[0].tolist() == [65, 25]
    assert sam_prompts(two_peaks(0.5)[None], patch_presence, (50, 90), region_settings(), min_presence=0.95) == ()


def test_union_and_combined_queries_have_one_prompt():
    patch_presence = np.ones(GRID, np.float32)
    for parts, instances in ((two_peaks(0.5)[None], "union"), (np.stack([two_peaks(0.5)] * 2), "regions")):
        assert (
            len(sam_prompts(parts, patch_presence, (50, 90), region_settings(instances=instances), min_presence=0.5))
            == 1
        )
