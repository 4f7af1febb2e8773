"""The records check their arguments and are immutable."""

from __future__ import annotations

import dataclasses

import builders
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from text2seg.errors import QueryError
from text2seg.explain import Panel, Result
from text2seg.records import (
    Candidates,
    Failure,
    Image,
    PointPrompts,
    SamPrompt,
    Segment,
    Segmentation,
    SimilarityMaps,
)
from text2seg.sam.automatic import Region
from text2seg.sam.refinement import Refined
from text2seg.tracking import TrackedFrame, TrackedObject

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
def test_an_image_that_is_not_rgb_uint8_is_refused(pixels):
    with pytest.raises(ValueError, match="pixels must"):
        Image(pixels)


def test_an_error_names_the_expected_and_the_given_shape_and_dtype():
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


def test_the_array_of_the_caller_stays_writeable():
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
def test_maps_of_the_wrong_shape_or_dtype_are_refused(scores, presence):
    with pytest.raises(ValueError, match="must be float32"):
        SimilarityMaps(("cat", "dog"), scores, presence, builders.HW)


def test_empty_points_and_empty_maps_are_allowed():
    none = PointPrompts(np.zeros((0, 2), np.float32), np.zeros(0, np.int8), np.zeros(0, np.float32))
    assert len(none) == 0
    assert builders.maps(()).scores.shape == (0, 3, 4)


def test_point_labels_must_be_0_or_1_and_one_for_each_point():
    xy, similarity = np.zeros((2, 2), np.float32), np.zeros(2, np.float32)
    with pytest.raises(ValueError, match=r"labels must be 0 or 1, got \[-1, 2\]"):
        PointPrompts(xy, np.array([2, -1], np.int8), similarity)
    with pytest.raises(ValueError, match=r"xy must be float32\[3, 2\]"):
        PointPrompts(xy, np.zeros(3, np.int8), similarity)


def test_candidates_need_one_score_each():
    with pytest.raises(ValueError, match=r"logits must be float32\[2, h, w\]"):
        Candidates(np.zeros((3, 4, 4), np.float32), np.zeros(2, np.float32))


@pytest.mark.parametrize("chosen", [-1, 3])
def test_a_chosen_index_out_of_range_is_refused(chosen):
    with pytest.raises(ValueError, match="chosen must be one of 3"):
        dataclasses.replace(builders.segment(), chosen=chosen)


def test_area_and_box_of_a_rectangle():
    segment = builders.segment(mask=builders.box_mask(left=10, top=4, width=12, height=6))
    assert segment.area == 72
    assert segment.box_xywh == (10, 4, 12, 6)


@given(MASKS, st.integers(0, 3), st.integers(0, 3))
def test_the_box_is_tight_and_shifts_with_the_mask(mask, down, right):
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


def test_every_record_has_a_short_repr_on_one_line():
    names = [f"query number {number} with a long name" for number in range(1000)]
    many = Segmentation(builders.image(), (builders.segment(names[0]),), builders.maps(names))
    segment = builders.segment("ball " * 100)
    prompt = SamPrompt(builders.points((1, 2, 1, 0.5), (3, 4, 0, 0.1)), np.zeros((4, 4), np.float32))
    for record in (many, many.maps, many.image, segment, segment.points, segment.candidates, prompt):
        assert len(repr(record)) < 300
        assert "\n" not in repr(record)
        assert repr(record).startswith(f"{type(record).__name__}(")


def test_results_of_tools_tracks_and_refined_masks_have_a_repr_without_pixels():
    mask = np.zeros((300, 400), np.bool_)
    result = Result("Maps", (Panel("one", np.zeros((300, 400, 3), np.uint8)),))
    tracked = TrackedFrame(3, builders.image(), (TrackedObject(1, "dog", mask, 0.5),))
    points = builders.points((1, 2, 1, 0.5))
    refined, region = (
        Refined(mask, False, 0.9, 0.8, points, builders.segment().candidates),
        Region(mask, (0, 0, 1, 1), points, 0, 0.9, 0.9),
    )
    for record in (result, tracked, refined, region):
        assert "array" not in repr(record)
        assert len(repr(record)) < 300


def test_the_verdict_of_what_was_not_searched_for_is_an_error():
    result = Segmentation(builders.image(), (), builders.maps(["ball", "cat"]))
    with pytest.raises(QueryError, match="'dog' was not searched for; the queries are 'ball', 'cat'"):
        result.verdict("dog")


def test_the_repr_of_a_segmentation_says_what_was_found():
    segments = (builders.segment("ball", sam_score=0.9), builders.segment("ball", sam_score=0.8))
    result = Segmentation(builders.image(), segments, builders.maps(["ball", "cat"]))
    height, width = builders.HW
    assert (
        repr(result)
        == f"Segmentation(Image('one.png', {width} x {height} pixels): ball 2 found, best 0.90, cat not found)"
    )
    assert f"'ball', {segments[0].area:,} pixels, box_xywh {segments[0].box_xywh}, SAM 0.90" in repr(segments[0])
    assert repr(builders.points((1, 2, 1, 0.5), (3, 4, 0, 0.1))) == "PointPrompts(1 positive, 1 negative)"
