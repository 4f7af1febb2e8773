"""Formats of Label Studio: brushes, labelling configurations and prompts."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from label_studio_builders import BRUSHES, POLYGONS, mask_of, point, rectangle

from text2seg.errors import SettingsError
from text2seg.integrations.label_studio import Asked, LabelConfig, brush_of


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_a_brush_is_read_by_label_studio_as_the_same_mask(height, width, seed, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    assert np.array_equal(mask_of({"rle": brush_of(mask)}, mask.shape), mask)


def test_a_brush_has_runs_longer_than_its_largest_field():
    mask = np.zeros((300, 400), np.bool_)
    mask[100:250] = True  # runs of 160,000, 240,000 and 80,000 values; the field has 16 bits
    assert np.array_equal(mask_of({"rle": brush_of(mask)}, mask.shape), mask)
    exact = np.zeros((2, 16384), np.bool_)
    exact[1] = True  # runs of exactly 65,536 values
    assert np.array_equal(mask_of({"rle": brush_of(exact)}, exact.shape), exact)


def test_the_configuration_gives_labels_with_their_wordings():
    config = LabelConfig.parse(BRUSHES)
    assert (config.image, config.key, config.kind, config.labels.name) == ("image", "picture", "brushlabels", "brush")
    assert [(query.name, query.parts) for query in config.labels.queries] == [
        ("sheep", (("sheep",),)),
        ("Engine", (("fire engine",),)),
    ]
    assert config.labels.of(" Fire Engine ") == config.labels.of("engine") == "Engine"
    assert config.labels.of("koala") is None
    assert LabelConfig.parse(POLYGONS).kind == "polygonlabels"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<View>", "is not XML"),
        ("<View><BrushLabels name='a' toName='b'><Label value='c'/></BrushLabels></View>", "has no <Image"),
        ("<View><Image name='image' value='$image'/></View>", "needs <BrushLabels"),
        (BRUSHES.replace("sheep", ""), "has no value"),
        ("<View>\ud800</View>", "is not XML"),
    ],
)
def test_bad_configurations_are_refused_with_the_reason(text, message):
    with pytest.raises(SettingsError, match=message):
        LabelConfig.parse(text)


def test_prompts_are_read_in_pixels():
    context = {"result": [point(50, 25), point(10, 20, positive=False), rectangle(10, 20, 30, 40)]}
    asked = Asked.parse(context, (200, 400))
    assert asked is not None
    assert asked.label == "sheep"
    assert asked.points.xy.tolist() == [[200, 50], [40, 40]]
    assert asked.points.labels.tolist() == [1, 0]
    assert asked.points.boxes_xyxy.tolist() == [[40, 40, 160, 120]]


def test_a_box_is_cut_off_at_the_edges_of_the_image():
    asked = Asked.parse({"result": [rectangle(-0.1, 20, 100.2, 80.01)]}, (200, 400))
    assert asked is not None
    assert asked.points.boxes_xyxy.tolist() == [[0, 40, 400, 200]]


def test_no_region_is_none_and_regions_without_a_prompt_ask_for_nothing():
    for context in (None, {}, {"result": []}):
        assert Asked.parse(context, (20, 40)) is None
    blank = {"type": "textarea", "value": {"text": [" "]}}
    for region in (point(1, 1, positive=False), blank, {"type": "choices", "value": {"choices": ["good"]}}):
        asked = Asked.parse({"result": [region]}, (20, 40))
        assert (asked.points, asked.texts) == (None, ())


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ([1], "the context of a request must be an object, got a list"),
        ({"result": "all"}, "must be a list of regions, got a text"),
        ({"result": ["one"]}, "a region of a context must be an object, got a text"),
        ({"result": [{"type": "keypointlabels", "value": 7}]}, "the value of a region must be an object, got 7"),
        ({"result": [point("left", 1)]}, "x of a region must be a number of percent, got 'left'"),
        ({"result": [point(1, float("nan"))]}, "y of a region must be a number of percent, got nan"),
        ({"result": [point(1, 10**400)]}, "y of a region must be a number of percent, got 1000"),
    ],
)
def test_contexts_of_another_form_are_refused_with_the_reason(context, message):
    with pytest.raises(SettingsError, match=re.escape(message)):
        Asked.parse(context, (20, 40))
