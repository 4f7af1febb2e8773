"""Our side of the integrations, without the tools themselves; tests/integrations has those."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import builders
import numpy as np
import pytest
from PIL import Image

from text2seg.coco.dataset import segment_score
from text2seg.errors import QueryError, SettingsError
from text2seg.integrations.cvat import Function, create
from text2seg.integrations.fiftyone import detections_of, label_dataset, relative_side
from text2seg.ontology import ontology_of_queries

SCENE = Path(__file__).parents[1] / "text2seg/demo/scenes/new-scenes/images/scene_0019.jpg"

# ---- FiftyOne


@dataclass
class Sample:
    filepath: str
    fields: dict[str, Any] = field(default_factory=dict)

    def __setitem__(self, name: str, value: Any) -> None:
        self.fields[name] = value


@dataclass
class Samples:
    samples: list[Sample]

    def iter_samples(self, **options: bool):
        assert options["autosave"]
        yield from self.samples


@pytest.fixture
def fiftyone(monkeypatch):
    """Its two classes that we use; they keep what they are given."""
    module = SimpleNamespace(Detection=SimpleNamespace, Detections=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "fiftyone", module)


def test_detections_have_boxes_and_masks_of_the_box(fiftyone):
    empty = builders.segment("ball", np.zeros(builders.HW, np.bool_))
    result = builders.segmentation(builders.segment("ring", builders.ring_mask()), empty, queries=("ring", "ball"))
    (found,) = detections_of(result).detections
    height, width = result.image.hw
    x, y, columns, rows = (round(side) for side in np.array(found.bounding_box) * [width, height, width, height])
    whole = np.zeros(result.image.hw, np.bool_)
    whole[y : y + rows, x : x + columns] = found.mask
    assert np.array_equal(whole, builders.ring_mask())
    assert (found.label, found.sam_score, found.confidence) == ("ring", pytest.approx(0.9), pytest.approx(0.9))


def test_relative_boxes_give_our_pixels_again_if_they_are_rounded_down():
    rng = np.random.default_rng(0)
    short = 0
    for size in (*range(1, 400), 1080, 1920, 4096, 100_000):
        for _ in range(30):
            start = int(rng.integers(size))
            end = int(rng.integers(start + 1, size + 1))
            first, part = relative_side(start, end - start, size)
            assert [int(size * each) for each in (first, part, first + part)] == [start, end - start, end]
            assert first + part <= 1
            assert np.allclose([first * size, part * size], [start, end - start], rtol=0, atol=1e-9)
            short += int(size * (start / size)) < start or int(size * (start / size + (end - start) / size)) < end
    assert short > 100  # the plain quotients do not


def test_a_sample_that_cannot_be_read_keeps_its_field(fiftyone, demo, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    sample = Sample(str(tmp_path / "broken.png"), {"text2seg": "old"})
    (failure,) = label_dataset(Samples([sample]), demo, "sheep")
    assert "broken.png" in failure.message
    assert sample.fields == {"text2seg": "old"}
    with pytest.raises(QueryError, match="gryphon"):
        label_dataset(Samples([sample]), demo, "gryphon")


def test_without_fiftyone_the_error_says_what_to_install(demo, monkeypatch):
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(SettingsError, match="pip install fiftyone"):
        label_dataset(Samples([]), demo, "sheep")


# ---- CVAT


@dataclass
class Context:
    conf_threshold: float | None = None
    conv_mask_to_poly: bool = False
    frame_name: str = "scene.jpg"


@pytest.fixture
def cvat(monkeypatch):
    """The helpers of cvat-sdk that we use; they return what they are given."""
    module = SimpleNamespace(
        DetectionFunctionSpec=SimpleNamespace,
        label_spec=lambda name, number, type: (name, number, type),
        mask=lambda number, points: ("mask", number, points),
        polygon=lambda number, points: ("polygon", number, points),
    )
    monkeypatch.setitem(sys.modules, "cvat_sdk", SimpleNamespace(auto_annotation=module))
    monkeypatch.setitem(sys.modules, "cvat_sdk.auto_annotation", module)
    monkeypatch.setitem(sys.modules, "cvat_sdk.masks", SimpleNamespace(encode_mask=lambda mask: mask))


def test_a_function_of_cvat_has_the_labels_of_the_ontology(cvat, demo):
    ontology = ontology_of_queries(["sheep", "fire engine"])
    function = Function(demo, ontology)
    assert function.spec.labels == [("sheep", 1, "mask"), ("fire engine", 2, "mask")]
    expected = demo.segment(SCENE, ["sheep", "fire engine"])
    found = function.detect(Context(), Image.open(SCENE))
    assert [(kind, number) for kind, number, _ in found] == [("mask", 1), ("mask", 1), ("mask", 2)]
    assert all(np.array_equal(mask, each.mask) for (*_, mask), each in zip(found, expected.segments, strict=True))
    assert {kind for kind, *_ in function.detect(Context(conv_mask_to_poly=True), Image.open(SCENE))} == {"polygon"}
    scores = sorted(segment_score(segment, expected) for segment in expected.segments)
    assert len(function.detect(Context(conf_threshold=scores[1]), Image.open(SCENE))) == 2


def test_a_function_of_cvat_needs_an_ontology_or_queries_and_the_package(demo, monkeypatch):
    for given in ({}, {"ontology": "a.yaml", "queries": "dog"}):
        with pytest.raises(SettingsError, match="either an ontology"):
            create(**given)
    monkeypatch.setitem(sys.modules, "cvat_sdk", None)
    with pytest.raises(SettingsError, match="pip install cvat-sdk"):
        Function(demo, ontology_of_queries("sheep"))
