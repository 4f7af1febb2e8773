"""What graphs are checked with: pictures, words, and every call that the pipeline makes of its networks for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from text2seg import checkpoints
from text2seg.config import Settings
from text2seg.errors import SettingsError
from text2seg.files import is_file
from text2seg.graphs.manifest import GraphName
from text2seg.images import load_image
from text2seg.pipeline import Text2Seg
from text2seg.records import Image, Segmentation

SCENES = Path(checkpoints.__file__).parents[1] / "demo" / "scenes" / "new-scenes"
MOST_WORDS = 4  # of a scene


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture and what to look for in it."""

    image: Image
    queries: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call of a network by the pipeline: what went in, and what torch made of it."""

    graph: GraphName
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    torch: Callable[[], Any]
    """The same call once more."""


def bundled_scenes(count: int) -> list[Scene]:
    """The first scenes of the project, each with the names of things in it.

    Raises:
        SettingsError: they are not part of this installation.
    """
    path = SCENES / "dataset.json"
    if not is_file(path, SettingsError):
        raise SettingsError("the bundled scenes are not installed; give --pictures FOLDER and --queries to check with")
    dataset = json.loads(path.read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in dataset["categories"]}
    scenes = []
    for entry in dataset["images"][:count]:
        there = [names[each["category_id"]] for each in dataset["annotations"] if each["image_id"] == entry["id"]]
        image = load_image(SCENES / entry["file_name"])
        scenes.append(Scene(image, tuple(dict.fromkeys(there))[:MOST_WORDS]))
    return scenes


def record(models: Text2Seg, scenes: Sequence[Scene]) -> tuple[list[Call], list[Segmentation]]:
    """What the pipeline asks its networks for these scenes, and what comes out; of the first scene also what it asks
    with rough masks as prompts."""
    calls: list[Call] = []
    with _listening(models, calls):
        results = [models.segment(scene.image, scene.queries) for scene in scenes]
        seen = len(calls)
        masks = replace(models.settings.masks, prompt="box-mask")
        masked: Settings = replace(models.settings, masks=masks)
        models.segment(scenes[0].image, scenes[0].queries, masked)
    return calls[:seen] + [call for call in calls[seen:] if call.graph == "sam_decoder_masked"], results


@contextmanager
def _listening(models: Text2Seg, calls: list[Call]) -> Iterator[None]:
    clip, sam = models.clip, models.sam
    places: list[tuple[Any, str, GraphName]] = [
        (clip, "image_network", "clip_image"),
        (clip.text, "network", "clip_text"),
        (sam, "encoder_network", "sam_encoder"),
        (sam, "decoder_network", "sam_decoder"),
    ]
    usual = [getattr(owner, attribute) for owner, attribute, _ in places]
    for (owner, attribute, name), function in zip(places, usual, strict=True):
        setattr(owner, attribute, _heard(name, function, calls))
    try:
        yield
    finally:
        for (owner, attribute, _), function in zip(places, usual, strict=True):
            setattr(owner, attribute, function)


def _heard(name: GraphName, function: Callable[..., Any], calls: list[Call]) -> Callable[..., Any]:
    def call(*given: Any) -> Any:
        answer = function(*given)
        inputs = tuple(each.clone() for each in given if isinstance(each, torch.Tensor))
        outputs = answer if isinstance(answer, tuple) else (answer,)
        graph: GraphName = "sam_decoder_masked" if name == "sam_decoder" and len(inputs) > 4 else name
        calls.append(Call(graph, inputs, tuple(each.clone() for each in outputs), lambda: function(*given)))
        return answer

    return call
