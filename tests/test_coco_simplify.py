"""Polygons with few corners: how near they are to their masks, holes, and polygons that never cross themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from text2seg.coco import polygon, simplify
from text2seg.coco.dataset import read_dataset
from text2seg.coco.rle import mask_of

SCENES = Path(__file__).parents[1] / "text2seg" / "demo" / "scenes"
noise = hnp.arrays(np.bool_, st.tuples(st.integers(1, 24), st.integers(1, 24)))


def disc(hw, centre, radius):
    rows, columns = np.mgrid[: hw[0], : hw[1]]
    return np.hypot(rows - centre[0], columns - centre[1]) < radius


def iou(mask, polygons):
    back = polygon.decode(polygons, mask.shape)
    return np.count_nonzero(mask & back) / np.count_nonzero(mask | back)


def corners(polygons):
    return sum(map(len, polygons)) // 2


def loops(polygons):
    return [np.rint(np.multiply(each, 2)).astype(np.int64).reshape(-1, 2) for each in polygons]


def test_rendered_masks_keep_an_iou_of_098_with_an_eighth_of_the_corners():
    """The masks of the bundled scenes, drawn at twice their size, so that they are as large as those of photographs."""
    exact = few = 0
    for split in ("new-scenes", "held-out"):
        dataset = read_dataset(SCENES / split / "dataset.json")
        sizes = {image["id"]: (image["height"], image["width"]) for image in dataset["images"]}
        for annotation in dataset["annotations"]:
            small = mask_of(annotation, sizes[annotation["image_id"]], "it")
            grown = polygon.decode(
                [np.multiply(each, 2).tolist() for each in simplify.encode(small, 1)], tuple(2 * n for n in small.shape)
            )
            found = simplify.encode(grown, 1)
            assert iou(grown, found) >= 0.98
            assert all(map(simplify.is_simple, loops(found)))
            exact, few = exact + corners(polygon.encode(grown)), few + corners(found)
    assert few <= exact / 8


@pytest.mark.parametrize("tolerance", [0.3, 1, 3, 20])
@given(mask=noise)
@settings(deadline=None, max_examples=60)
def test_polygons_of_any_mask_are_simple_and_near_it(mask, tolerance):
    found = simplify.encode(mask, tolerance)
    assert all(map(simplify.is_simple, loops(found)))
    assert corners(found) <= corners(polygon.encode(mask))
    if mask.any():
        assert iou(mask, found) >= 0.95  # each region has 0.98; where two touch, both may cover a pixel
    else:
        assert found == []


@given(mask=noise)
@settings(deadline=None)
def test_a_tolerance_of_0_is_exact(mask):
    assert simplify.encode(mask, 0) == polygon.encode(mask)
    assert (polygon.decode(simplify.encode(mask, 0), mask.shape) == mask).all()


def test_holes_stay_open():
    mask = disc((200, 260), (100, 130), 80)
    for row, column, side in ((60, 100, 1), (70, 140, 2), (120, 90, 3), (130, 150, 20)):
        mask[row : row + side, column : column + side] = False
    back = polygon.decode(simplify.encode(mask, 2), mask.shape)
    for row, column, side in ((60, 100, 1), (70, 140, 2), (120, 90, 3), (130, 150, 20)):
        assert not back[row : row + side, column : column + side].all()
    assert not back[135:145, 155:165].any()


def test_a_large_blob_has_few_corners_and_a_rectangle_four():
    mask = disc((768, 1024), (380, 500), 300) | disc((768, 1024), (300, 700), 200)
    found = simplify.encode(mask, 1)
    assert corners(found) < 80 < 1000 < corners(polygon.encode(mask))
    assert iou(mask, found) > 0.995
    rectangle = np.zeros((50, 70), bool)
    rectangle[10:30, 5:60] = True
    assert simplify.encode(rectangle, 5) == [[5, 10, 60, 10, 60, 30, 5, 30]]


@pytest.mark.parametrize(
    ("corners", "simple"),
    [
        ([(0, 0), (4, 0), (4, 4), (0, 4)], True),
        ([(0, 0), (4, 4), (4, 0), (0, 4)], False),  # crosses itself
        ([(0, 0), (4, 0), (2, 0), (2, 4)], False),  # turns back along an edge
        ([(0, 0), (8, 0), (8, 8), (4, 0), (0, 8)], False),  # a corner on another edge
        ([(0, 0), (4, 0), (4, 4), (4, 0), (0, 4)], False),  # a corner twice
        ([(0, 0), (4, 4)], False),
        ([(0, 0), (2, 0), (4, 0), (4, 4)], True),  # three corners on one line
    ],
)
def test_polygons_that_cross_or_touch_themselves_are_known(corners, simple):
    assert simplify.is_simple(np.array(corners)) is simple


def test_a_region_of_noise_keeps_its_corners(monkeypatch):
    monkeypatch.setattr(simplify, "MOST_CHECKED", 8)
    mask = disc((60, 80), (30, 40), 25)
    assert simplify.encode(mask, 1.0) == simplify.encode(mask, 0.0)
