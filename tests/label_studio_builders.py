"""A labelling configuration of Label Studio, prompts of its smart tools, and its reading of brushes, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from label_studio_sdk.converter.brush import decode_rle

SCENE = Path(__file__).parents[1] / "text2seg/demo/scenes/new-scenes/images/scene_0019.jpg"
BRUSHES = """<View>
  <Image name="image" value="$picture"/>
  <BrushLabels name="brush" toName="image">
    <Label value="sheep"/>
    <Label value="Engine" predicted_values="fire engine"/>
  </BrushLabels>
  <KeyPointLabels name="points" toName="image" smart="true"><Label value="sheep"/></KeyPointLabels>
  <TextArea name="words" toName="image" smart="true"/>
</View>"""
POLYGONS = BRUSHES.replace("BrushLabels", "PolygonLabels")


def mask_of(value: dict, hw: tuple[int, int]) -> np.ndarray:
    """The mask of a brush, as Label Studio's own converter reads it."""
    channels = decode_rle(value["rle"]).reshape(*hw, 4)
    assert (channels == channels[..., :1]).all()
    assert set(np.unique(channels)) <= {0, 255}
    return channels[..., 3] == 255


def point(x: float, y: float, *, positive: bool = True) -> dict:
    value = {"x": x, "y": y, "width": 0.4, "keypointlabels": ["sheep"]}
    return {
        "type": "keypointlabels",
        "from_name": "points",
        "to_name": "image",
        "is_positive": positive,
        "value": value,
    }


def rectangle(x: float, y: float, width: float, height: float) -> dict:
    value = {"x": x, "y": y, "width": width, "height": height, "rectanglelabels": ["sheep"]}
    return {"type": "rectanglelabels", "from_name": "box", "to_name": "image", "value": value}
