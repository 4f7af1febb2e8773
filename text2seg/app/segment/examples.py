"""Pictures to begin with: some of the bundled scenes, with what there is to see in them."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cache
from importlib import resources

from text2seg.app.segment.pictures import preview
from text2seg.io.images import load_image
from text2seg.records import Image

SCENES = {
    "scene_0019.jpg": ("sheep", "fire engine", "koala"),
    "scene_0012.jpg": ("shirt", "frog", "horse"),
    "scene_0022.jpg": ("umbrella", "mouse+alarm clock"),
    "scene_0004.jpg": ("dog", "guitar", "elephant"),
    "scene_0009.jpg": ("helicopter", "sun", "penguin"),
    "scene_0015.jpg": ("rose", "pineapple"),
}
"""File names of scenes, and queries; some of them ask for what is not there, or for two things together."""
LONGEST = 200
"""The long side of the small pictures, in pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A picture, what to look for in it, and a small picture of it as a data URL."""

    image: Image
    texts: tuple[str, ...]
    thumbnail: str


@cache
def examples() -> tuple[Example, ...]:
    """All examples; read once."""
    return tuple(_example(name, texts) for name, texts in SCENES.items())


def _example(name: str, texts: tuple[str, ...]) -> Example:
    scene = resources.files("text2seg.demo") / "scenes" / "new-scenes" / "images" / name
    with resources.as_file(scene) as path:
        image = load_image(path)
    small = base64.b64encode(preview(image.pixels, longest=LONGEST)).decode()
    return Example(image, texts, f"data:image/jpeg;base64,{small}")
