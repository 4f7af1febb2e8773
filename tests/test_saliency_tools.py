"""The tools `saliency` and `compare` on the demo model; the methods find the objects of a scene."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import builders
import numpy as np
import pytest
from closeness import DEMO_NETWORK, about
from test_attention import ALONE, tiny_clip

import text2seg
from text2seg import Text2Seg
from text2seg.coco.dataset import read_dataset
from text2seg.coco.rle import decode
from text2seg.errors import ImageError, QueryError, SettingsError
from text2seg.explain import TOOLS, Progress, run_tool
from text2seg.explain.saliency.methods import METHODS, methods_for, saliency
from text2seg.explain.saliency.targets import text_target
from text2seg.explain.saliency_maps import CompareSettings, SaliencySettings, parse_weights
from text2seg.grids import minmax
from text2seg.io.images import load_image

SCENES = Path(text2seg.__file__).parent / "demo" / "scenes" / "new-scenes"
SHORT = ("a photo of a {}.",)
CLEAR = (
    "relevance-last",
    "relevance",
    "relevance-last-grad",
    "legrad",
    *(name for name in ALONE if name not in ("raw", "gem")),
)


@pytest.fixture(scope="module")
def truth():
    return read_dataset(SCENES / "dataset.json")


def load(number):
    return load_image(SCENES / "images" / f"scene_{number:04}.jpg")


def mask_of(truth, number, thing):
    """Return the mask bool [H, W] of all objects of a category in the scene."""
    image_id = next(each["id"] for each in truth["images"] if each["file_name"].endswith(f"scene_{number:04}.jpg"))
    category = next(each["id"] for each in truth["categories"] if each["name"] == thing)
    pairs = ((each["image_id"], each["category_id"], each["segmentation"]) for each in truth["annotations"])
    return np.any([decode(rle) for image, kind, rle in pairs if (image, kind) == (image_id, category)], axis=0)


def touched(mask, grid_hw):
    """Return the cells bool [gh, gw] of a grid that contain a part of the mask."""
    rows, columns = np.nonzero(mask)
    cells = np.zeros(grid_hw, bool)
    cells[rows * grid_hw[0] // mask.shape[0], columns * grid_hw[1] // mask.shape[1]] = True
    return cells


# The methods left out would fail: attention and rollout do not know the target, and with this small CLIP gradcam, raw
# and gem point at the thing in a quarter of all cases only.
@pytest.mark.parametrize(("number", "thing"), [(4, "elephant"), (8, "pig"), (9, "sun"), (11, "monkey"), (19, "sheep")])
@pytest.mark.parametrize("name", CLEAR)
def test_peak_is_on_the_object_by_a_margin(demo, truth, number, thing, name):
    found = minmax(saliency(demo.clip, load(number), text_target(demo.clip, thing), name))
    inside = touched(mask_of(truth, number, thing), found.shape)
    assert inside.mean() < 0.2
    assert found[inside].max() == 1
    assert found[~inside].max() < 0.9


def test_saliency_shows_every_target(demo):
    settings = SaliencySettings(
        text=("sheep", "fire engine"),
        target_image=SCENES / "images" / "scene_0003.jpg",
        word=("sheep=7", "koala = 3", "bomb=0"),
        templates=SHORT,
        method="legrad",
    )
    result = run_tool(TOOLS["saliency"], demo, [load(19)], settings)
    words = "sheep 70%, koala 30%, bomb 0%"
    scores, shares = result.tables
    assert [row[0] for row in scores.rows] == ["sheep", "fire engine", "scene_0003.jpg", words]
    assert [panel.caption for panel in result.panels] == [
        "the image",
        *(f"{name} · score {score:.3f}" for name, score in scores.rows),
    ]
    assert scores.rows[0][1] == about(
        float(demo.clip.encode_images([load(19)])[0].features[0] @ demo.clip.encode_texts(["sheep"], SHORT)[0]),
        terms=DEMO_NETWORK,
    )
    assert [row[:2] for row in shares.rows] == [
        ("sheep", about(0.7, terms=3)),
        ("koala", about(0.3, terms=3)),
        ("bomb", 0.0),
    ]
    assert sum(row[2] for row in shares.rows) == about(1, terms=3)
    assert all(panel.pixels.shape == result.panels[0].pixels.shape for panel in result.panels)
    assert "arXiv" in result.notes[0]
    assert result.image() is not None


def test_alpha_negative_and_size_change_the_image(demo):
    def shown(**settings):
        run = run_tool(TOOLS["saliency"], demo, [load(19)], SaliencySettings(("sheep",), templates=SHORT, **settings))
        return run.panels[1]

    usual = shown()
    assert np.array_equal(shown(alpha=0).pixels, load(19).pixels)
    assert not np.array_equal(shown(alpha=0.5).pixels, usual.pixels)
    assert not np.array_equal(shown(size=256).pixels, usual.pixels)
    against = shown(negative=True)
    assert against.caption.startswith("against sheep · score 0.")
    assert not np.array_equal(against.pixels, usual.pixels)


def test_compare_shows_every_method_and_can_be_stopped(demo):
    settings, stop, seen = CompareSettings(("sheep",), templates=SHORT), threading.Event(), []
    result = run_tool(TOOLS["compare"], demo, [load(19)], settings)
    assert [panel.caption for panel in result.panels] == ["the image", *methods_for(demo.clip)]
    few = CompareSettings(("sheep",), templates=SHORT, method=("surgery", "relevance-last"))
    named = run_tool(TOOLS["compare"], demo, [load(19)], few)
    assert [panel.caption for panel in named.panels] == ["the image", "surgery", "gradcam"]
    assert result.title.startswith("scene_0019.jpg: sheep · score 0.")

    def report(done, total, note):
        seen.append((done, total, note))
        if done == 2:
            stop.set()

    stopped = run_tool(TOOLS["compare"], demo, [load(19)], settings, Progress(report, stop))
    assert seen[0] == (0, len(methods_for(demo.clip)), "sheep")
    assert len(stopped.panels) == 1 + 2


def test_compare_on_a_resnet():
    models = Text2Seg(tiny_clip("resnet"), sam=None)
    image, settings = builders.image((40, 56)), CompareSettings(("dog",), templates=SHORT)
    result = run_tool(TOOLS["compare"], models, [image], settings)
    names = [name for name, method in METHODS.items() if "resnet" in method.kinds and not method.slow]
    assert [panel.caption for panel in result.panels] == ["the image", *names]
    slow = replace(settings, method=("scorecam", "ablationcam"))
    result = run_tool(TOOLS["compare"], models, [image], slow)
    assert [panel.caption for panel in result.panels] == ["the image", "scorecam", "ablationcam"]
    assert all("slow: one forward for each channel" in note for note in result.notes)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (SaliencySettings(), QueryError, "no target"),
        (SaliencySettings(("",)), QueryError, "a text must not be empty"),
        (SaliencySettings(("dgo",)), QueryError, "does not know 'dgo'"),
        (SaliencySettings(("dog " * 80,)), QueryError, "too long"),
        (SaliencySettings(("dog",), method="layercam"), SettingsError, "this ViT supports attention"),
        (SaliencySettings(("dog",), method="gradcam", layer="x"), SettingsError, "gradcam has no layer 'x'"),
        (SaliencySettings(target_image=Path("nowhere.png")), ImageError, r"nowhere\.png"),
        (SaliencySettings(word=("dog",)), QueryError, "has the form \"word=number\", got 'dog'"),
    ],
)
def test_bad_input_raises_before_drawing(demo, settings, error, message):
    with pytest.raises(error, match=message):
        run_tool(TOOLS["saliency"], demo, [builders.image()], settings)


def test_compare_takes_one_target(demo):
    with pytest.raises(QueryError, match="compared on one target, got 2: dog, cat"):
        run_tool(TOOLS["compare"], demo, [builders.image()], CompareSettings(("dog", "cat"), templates=SHORT))


def test_bad_settings_raise():
    for settings, message in (
        ({"alpha": 1.5}, "alpha must be from 0 to 1"),
        ({"size": 0}, "input size must be positive"),
        ({"templates": ("a photo",)}, "needs a {}"),
    ):
        with pytest.raises(SettingsError, match=message):
            SaliencySettings(("dog",), **settings)


def test_weights_are_parsed():
    assert parse_weights(["a=b=2", "dog = .5"]) == {"a=b": 2.0, "dog": 0.5}
    for bad, message in ((["dog=x"], "word=number"), (["dog=1", "dog =2"], "'dog' has two weights")):
        with pytest.raises(QueryError, match=message):
            parse_weights(bad)
