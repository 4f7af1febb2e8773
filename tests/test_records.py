"""The records check what they are built from and cannot be changed afterwards."""

from __future__ import annotations

import dataclasses

import builders
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from text2seg.records import Candidates, Failure, Image, PointPrompts, Segment, SimilarityMaps

MASKS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9))


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((24, 32), np.uint8),
        np.zeros((24, 32, 4), np.uint8),
        np.zeros((24, 32, 3), np.float32),
        np.zeros((0, 32, 3), np.uint8),
    ],
)
def test_an_image_is_rgb_uint8(pixels):
    with pytest.raises(ValueError, match="pixels must"):
        Image(pixels)


def test_a_message_says_what_was_wanted_and_what_came():
    with pytest.raises(ValueError, match=r"uint8\[H, W, 3\], got float64\[24, 32, 3\]"):
        Image(np.zeros((24, 32, 3)))


def test_hw_is_rows_and_columns():
    assert builders.image((24, 32)).hw == (24, 32)
    assert builders.maps(grid_hw=(3, 4)).grid_hw == (3, 4)


@pytest.mark.parametrize(
    "array",
    [
        builders.image().pixels,
        builders.maps().scores,
        builders.maps().presence,
        builders.points().xy,
        builders.points().labels,
        builders.candidates(builders.box_mask()).logits,
        builders.segment().mask,
    ],
)
def test_arrays_are_read_only_and_contiguous(array):
    assert array.flags.c_contiguous
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0


def test_the_callers_own_array_stays_writeable():
    pixels = builders.pixels()
    Image(pixels)
    pixels[0] = 0


def test_fields_cannot_be_set():
    with pytest.raises(dataclasses.FrozenInstanceError):
        builders.image().image_id = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        Failure("a.png", "masks", "out of memory").stage = "maps"


@pytest.mark.parametrize(
    ("scores", "presence"),
    [
        (np.zeros((1, 3, 4), np.float32), np.zeros(2, np.float32)),
        (np.zeros((2, 3), np.float32), np.zeros(2, np.float32)),
        (np.zeros((1, 3, 4), np.float32), np.zeros(1, np.float32)),
        (np.zeros((2, 3, 4)), np.zeros(2, np.float32)),
    ],
)
def test_maps_fit_their_queries(scores, presence):
    with pytest.raises(ValueError, match="must be float32"):
        SimilarityMaps(("cat", "dog"), scores, presence, builders.HW)


def test_there_may_be_no_points_and_no_queries():
    none = PointPrompts(np.zeros((0, 2), np.float32), np.zeros(0, np.int8), np.zeros(0, np.float32))
    assert len(none) == 0
    assert builders.maps(()).scores.shape == (0, 3, 4)


def test_points_have_a_label_each_of_0_or_1():
    xy, similarity = np.zeros((2, 2), np.float32), np.zeros(2, np.float32)
    with pytest.raises(ValueError, match=r"labels must be 0 or 1, got \[-1, 2\]"):
        PointPrompts(xy, np.array([2, -1], np.int8), similarity)
    with pytest.raises(ValueError, match=r"xy must be float32\[3, 2\]"):
        PointPrompts(xy, np.zeros(3, np.int8), similarity)


def test_candidates_have_a_score_each():
    with pytest.raises(ValueError, match=r"logits must be float32\[2, h, w\]"):
        Candidates(np.zeros((3, 4, 4), np.float32), np.zeros(2, np.float32))


@pytest.mark.parametrize("chosen", [-1, 3])
def test_the_chosen_candidate_exists(chosen):
    with pytest.raises(ValueError, match="chosen must be one of 3"):
        dataclasses.replace(builders.segment(), chosen=chosen)


def test_area_and_box():
    segment = builders.segment(mask=builders.box_mask(left=10, top=4, width=12, height=6))
    assert segment.area == 72
    assert segment.box_xywh == (10, 4, 12, 6)


@given(MASKS, st.integers(0, 3), st.integers(0, 3))
def test_the_box_is_tight_and_moves_with_the_mask(mask, down, right):
    def record(pixels: np.ndarray) -> Segment:
        return builders.segment(mask=pixels)

    x, y, width, height = record(mask).box_xywh
    assert record(mask).area == mask.sum() == mask[y : y + height, x : x + width].sum()
    moved = record(np.pad(mask, ((down, 0), (right, 0))))
    if mask.any():
        inside = mask[y : y + height, x : x + width]
        assert inside[0].any()
        assert inside[-1].any()
        assert inside[:, 0].any()
        assert inside[:, -1].any()
        assert moved.box_xywh == (x + right, y + down, width, height)
    else:
        assert moved.box_xywh == (0, 0, 0, 0)
    assert all(type(side) is int for side in moved.box_xywh)
