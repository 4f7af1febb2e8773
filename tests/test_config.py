"""Settings check their values when they are created, and refuse unknown or impossible ones."""

from __future__ import annotations

import pytest

from text2seg.config import LARGEST_INPUT, MapSettings, OutputSettings, PointSettings
from text2seg.errors import SettingsError


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: MapSettings(redundancy="label_set"), "redundancy must be one of empty, label-set, none"),
        (lambda: MapSettings(architecture="Surgery"), "architecture must be one of surgery, raw"),
        (lambda: PointSettings(method="published"), "method must be one of"),
        (lambda: OutputSettings(segmentation="polygons"), "segmentation must be one of"),
        (lambda: MapSettings(labels="sky"), "labels must be a sequence of texts"),
        (lambda: MapSettings(templates="a photo of a {}."), "templates must be a sequence of texts"),
        (lambda: MapSettings(labels=("sky", " ")), "not empty"),
        (lambda: MapSettings(input_size=0), "positive"),
        (lambda: MapSettings(input_size=(256, -1)), "positive"),
        (lambda: MapSettings(input_size=LARGEST_INPUT + 1), f"at most {LARGEST_INPUT}"),
        (lambda: MapSettings(input_size=256.0), "whole number"),
        (lambda: MapSettings(input_size=(256,)), "one whole number or two"),
        (lambda: PointSettings(downsample=2.5), "whole number"),
    ],
)
def test_invalid_settings_are_refused(make, says):
    with pytest.raises(SettingsError, match=says):
        make()


def test_lists_become_tuples():
    settings = MapSettings(labels=["sky"], templates=["a {}.", "the {}."], input_size=[256, 128])
    assert settings == MapSettings(labels=("sky",), templates=("a {}.", "the {}."), input_size=(256, 128))
    assert hash(settings)
    assert MapSettings(labels=(label for label in "ab")).labels == ("a", "b")
