"""text2points: where the points lie, how many there are, and the original's faults that are mended here."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from text2seg.config import PointSettings
from text2seg.errors import SettingsError
from text2seg.prompts import combined_points, text2points

HW = (24, 32)
PLAIN = PointSettings(downsample=1)
REFERENCE = PointSettings(method="reference", downsample=1)


def one(scores: list[list[float]], settings: PointSettings = PLAIN, hw: tuple[int, int] = HW):
    (prompts,) = text2points(np.array([scores], np.float32), hw, settings)
    return prompts


def test_peak_is_positive_and_lowest_cell_negative():
    prompts = one([[0.1, 0.2, 0.3, 0.2], [0.2, 0.9, 0.3, 0.0], [0.1, 0.2, 0.3, 0.2]])
    assert prompts.labels.tolist() == [1, 0]
    np.testing.assert_allclose(prompts.xy, [[12, 12], [28, 12]])  # x runs over 32 columns, y over 24 rows
    np.testing.assert_allclose(prompts.similarity, [1, 0])


def test_no_more_than_half_of_the_cells_are_positive():
    prompts = one([[1.0, 1.0, 1.0], [1.0, 0.9, 0.0]])
    assert prompts.labels.tolist() == [1, 1, 1, 0, 0, 0]


def test_reference_cuts_centres_down_to_whole_pixels_and_ours_does_not():
    scores = [[0.0, 0.1, 0.2], [0.3, 0.4, 1.0]]
    assert one(scores, REFERENCE, (25, 31)).xy[0].tolist() == [25, 18]
    np.testing.assert_allclose(one(scores, PLAIN, (25, 31)).xy[0], [2.5 * 31 / 3, 18.75])


@pytest.mark.parametrize("settings", [PLAIN, REFERENCE])
def test_constant_map_has_no_points(settings):
    """The original divides 0 by 0 and then takes every cell as a point, without labels."""
    assert len(one([[0.3, 0.3], [0.3, 0.3]], settings)) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_map_that_is_not_finite_has_no_points(bad):
    assert len(one([[0.3, bad], [0.1, 0.2]])) == 0


def test_grid_of_one_cell_has_no_points_and_says_so(caplog):
    assert len(one([[0.3]])) == 0
    assert "one cell only" in caplog.text


def test_fine_grids_are_halved_as_in_the_original_and_coarse_ones_are_not():
    scores = np.zeros((1, 32, 32), np.float32)
    scores[0, 10:12, 20:22] = 1
    (fine,) = text2points(scores, (320, 320), PointSettings())
    assert fine.xy[0].tolist() == [210, 110]  # the centre of cell (5, 10) of a 16 × 16 grid
    (coarse,) = text2points(scores[:, :16, :16], (320, 320), PointSettings())
    assert len(coarse) == 0


def test_queries_do_not_influence_one_another():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(3, 6, 8)).astype(np.float32)
    together = text2points(scores, HW, PLAIN)
    for query in range(3):
        (alone,) = text2points(scores[query : query + 1], HW, PLAIN)
        np.testing.assert_array_equal(alone.xy, together[query].xy)


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.just(1), st.integers(1, 9), st.integers(1, 9)),
        elements=st.floats(-1, 1, width=32),
    ),
    st.tuples(st.integers(1, 50), st.integers(1, 50)),
)
def test_points_lie_inside_and_no_cell_is_both(scores, hw):
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
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(SettingsError):
        PointSettings(**wrong)
