"""Exported graphs compared with torch: the difference for the same inputs, the time of both, and the masks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from text2seg import weights
from text2seg.config import Settings
from text2seg.errors import CheckpointError, SettingsError
from text2seg.grids import iou
from text2seg.io.files import is_file
from text2seg.io.images import load_image
from text2seg.onnx.manifest import GraphName, GraphPrecision
from text2seg.onnx.networks import Graph
from text2seg.pipeline import Text2Seg
from text2seg.records import Image, Segmentation

SCENES = Path(weights.__file__).parents[1] / "demo" / "scenes" / "new-scenes"
MOST_WORDS = 4  # of a scene


@dataclass(frozen=True, slots=True)
class Scene:
    """An image and what to look for in it."""

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
        raise SettingsError("the bundled scenes are not installed; give --images FOLDER and --queries to check with")
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


TOLERANCES: dict[GraphPrecision, float] = {"fp32": 1e-4, "fp16": 3e-2, "int8": 3e-1}
"""The largest difference from torch in float32 that a graph may have, by the largest value."""


@dataclass(slots=True)
class Compared:
    """One graph beside torch's network. Seconds for all calls that the scenes make of it, an entry each round."""

    name: GraphName
    precision: GraphPrecision
    bytes: int
    error: float
    tolerance: float
    torch_seconds: list[float] = field(default_factory=list)
    onnx_seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Agreement:
    """The masks of the whole pipeline beside torch's, of each scene and query the union of its segments.

    `ious` has one entry for every scene and query that either finds. `lost` and `added` are queries that only torch
    finds, only the graphs find; their IoU is 0.
    """

    ious: tuple[float, ...]
    lost: int
    added: int
    segments: tuple[int, int]
    """How many, of torch and of the graphs."""


def error_of(graph: Graph, calls: Sequence[Call]) -> float:
    """The largest difference from torch over all calls and outputs, by the largest value of that output."""
    worst = 0.0
    for call in calls:
        for found, wanted in zip(graph(*call.inputs), call.outputs, strict=True):
            if found.shape != wanted.shape:
                raise CheckpointError(
                    f"{call.graph} gives {tuple(found.shape)} where torch gives {tuple(wanted.shape)}"
                )
            apart = float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max().clamp(min=1e-12))
            worst = max(worst, apart if np.isfinite(apart) else np.inf)
    return worst


@torch.inference_mode()
def time_both(compared: Compared, graph: Graph, calls: Sequence[Call], rounds: int) -> None:
    """Run torch and the graph in turns, so that what else the machine does meets both; a first run of each is not
    counted."""
    for done in range(rounds + 1):
        theirs = _seconds(lambda call: call.torch(), calls)
        ours = _seconds(lambda call: graph(*call.inputs), calls)
        if done:
            compared.torch_seconds.append(theirs)
            compared.onnx_seconds.append(ours)


def _seconds(run: Callable[[Call], Any], calls: Sequence[Call]) -> float:
    began = time.perf_counter()
    for call in calls:
        run(call)
    return time.perf_counter() - began


def agreement(torch_results: Sequence[Segmentation], onnx_results: Sequence[Segmentation]) -> Agreement:
    """Compare results of the same scenes and queries."""
    ious, lost, added = [], 0, 0
    for theirs, ours in zip(torch_results, onnx_results, strict=True):
        wanted, found = _unions(theirs), _unions(ours)
        nothing = np.zeros(theirs.image.hw, bool)
        for query in wanted.keys() | found.keys():
            ious.append(iou(wanted.get(query, nothing), found.get(query, nothing)))
        lost += len(wanted.keys() - found.keys())
        added += len(found.keys() - wanted.keys())
    counts = sum(len(each.segments) for each in torch_results), sum(len(each.segments) for each in onnx_results)
    return Agreement(tuple(ious), lost, added, counts)


def _unions(result: Segmentation) -> dict[str, Any]:
    unions: dict[str, Any] = {}
    for segment in result.segments:
        unions[segment.query] = unions.get(segment.query, False) | segment.mask
    return unions
