"""The similarity board, the prefix comparison and the typographic attack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from closeness import DEMO_NETWORK, about, assert_close
from saliency_builders import state
from test_attention import tiny_clip

import text2seg
from text2seg.errors import QueryError, SettingsError
from text2seg.explain import TOOLS, Progress, run_tool
from text2seg.explain.board import AttackSettings, BoardSettings, with_label
from text2seg.io.images import load_image
from text2seg.pipeline import Text2Seg

SCENE = Path(text2seg.__file__).parent / "demo/scenes/new-scenes/images/scene_0019.jpg"  # sheep, fire engine, bomb
THREE = "sheep; fire engine; koala"


@pytest.fixture(scope="module")
def image():
    return load_image(SCENE)


@pytest.fixture(scope="module")
def resnet():
    return Text2Seg(tiny_clip("resnet"), sam=None)


def shown(models, image, settings, name="board", progress=None):
    return run_tool(TOOLS[name], models, [image], settings, progress)


def cells(result):
    (table,) = result.tables
    return {row[0]: dict(zip(table.columns[1:], row[1:], strict=True)) for row in table.rows}


def test_present_objects_score_higher_and_each_score_follows_its_formula(demo, image):
    before = state(demo.clip.model)
    result = shown(demo, image, BoardSettings(text=("koala",), texts=" sheep ;fire engine; "))
    found = cells(result)
    assert list(found) == ["koala", "sheep", "fire engine"]
    assert min(found["sheep"]["cosine"], found["fire engine"]["cosine"]) > found["koala"]["cosine"] + 0.1
    logits = np.array([row["logit"] for row in found.values()])
    scale = float(demo.clip.model.logit_scale.exp())
    assert_close(logits, [scale * row["cosine"] for row in found.values()], terms=4)
    expected = np.exp(logits - logits.max())
    assert_close(
        [row["softmax"] for row in found.values()], expected / expected.sum(), terms=4, scale=float(logits.max())
    )
    assert [panel.caption for panel in result.panels][:2] == ["the image", "map of the image itself"]
    assert "sheep" in result.panels[3].caption
    assert f"{found['sheep']['cosine']:.3f}" in result.panels[3].caption
    assert state(demo.clip.model) == before


def test_every_description_has_its_own_map_over_the_image(demo, image):
    result = shown(demo, image, BoardSettings(texts=THREE, method="surgery"))
    maps = [panel.pixels for panel in result.panels[1:]]
    assert len(maps) == 4
    assert all(pixels.shape == image.pixels.shape for pixels in maps)
    assert len({pixels.tobytes() for pixels in maps}) == 4


def test_alpha_is_the_opacity_of_the_map(demo, image):
    nothing = shown(demo, image, BoardSettings(texts="sheep", alpha=0.0)).panels[-1].pixels
    assert np.array_equal(nothing, image.pixels)


def test_prefix_comparison_shows_both_and_the_change_of_the_scores(demo, image):
    settings = BoardSettings(texts="a sheep; a koala", prefix="a photo of", prefix_comparison=True, score="softmax")
    result = shown(demo, image, settings)
    for row in cells(result).values():
        assert row["change"] == about(row["with “a photo of”"] - row["without prefix"], terms=2)
    assert result.columns == 3
    assert [panel.caption for panel in result.panels[::3]] == ["without prefix", "with “a photo of”"]
    assert result.panels[1].caption.endswith("%  a sheep")
    plain = cells(shown(demo, image, BoardSettings(texts="a sheep; a koala", prefix="")))
    assert cells(result)["a sheep"]["without prefix"] == about(plain["a sheep"]["softmax"], terms=DEMO_NETWORK)
    assert any("first word" in note for note in result.notes)


def test_many_descriptions_get_rows_instead_of_columns(demo, image):
    many = ("sheep", "koala", "bomb", "monkey", "trophy", "fire engine", "banana")
    result = shown(demo, image, BoardSettings(text=many, prefix_comparison=True, method="surgery"))
    assert result.columns == 2
    captions = [panel.caption.split("  ")[-1] for panel in result.panels]
    assert captions[:4] == ["without prefix", "with “an image of”", "sheep", "sheep"]


def test_stopped_run_shows_partial_results(demo, image):
    progress = Progress()
    progress.step = lambda done, total, note="": done == 2 and progress._stop.set()
    result = shown(demo, image, BoardSettings(texts=THREE), progress=progress)
    assert len(result.panels) == 3  # the image, and those that were done before the stop
    assert len(result.tables[0].rows) == 3


class TestAttack:
    def test_default_word_fits_least_and_letters_are_separated_from_label(self, demo, image):
        result = shown(demo, image, AttackSettings(texts=THREE), "typographic-attack")
        found = cells(result)
        assert min(found, key=lambda text: found[text]["unchanged"]) == "koala"
        assert tuple(found["koala"]) == ("unchanged", "empty label", "“koala” on the label", "effect of the letters")
        for row in found.values():
            assert row["effect of the letters"] == about(row["“koala” on the label"] - row["empty label"], terms=2)
        plain, covered, written = (panel.pixels for panel in result.panels[:: result.columns])
        assert np.array_equal(plain, image.pixels)
        changed = (covered != written).any(2)
        assert changed.any()
        assert ((covered[changed] == 255).all(1)).all()  # letters stand on the label only
        assert any("cannot read" in note for note in result.notes)

    def test_word_outside_the_descriptions_is_added_to_them(self, demo, image):
        settings = AttackSettings(texts="sheep", word="bomb")
        found = cells(shown(demo, image, settings, "typographic-attack"))
        assert list(found) == ["sheep", "bomb"]

    @pytest.mark.parametrize("word", ["hi", "an extraordinarily long inscription that cannot fit in large letters"])
    def test_letters_are_large_and_inside_the_image(self, image, word):
        label, written = with_label(image, word, letters=False).pixels, with_label(image, word).pixels
        height, width = image.hw
        ink = np.argwhere((label != written).any(2))
        (top, left), (bottom, right) = ink.min(0), ink.max(0)
        assert right - left > 0.6 * width or bottom - top > 0.1 * height
        assert left > 0.04 * width
        assert right < 0.96 * width
        assert np.array_equal(image.pixels[: height // 2], written[: height // 2])


class TestResnet:
    def test_default_method_is_grad_cam_and_the_layer_can_be_chosen(self, resnet, image):
        usual = shown(resnet, image, BoardSettings(texts="a sheep; a koala"))
        assert "gradcam" in usual.title
        earlier = shown(resnet, image, BoardSettings(texts="a sheep; a koala", layer="layer2.0.relu3"))
        assert usual.tables[0] == earlier.tables[0]
        assert not np.array_equal(usual.panels[2].pixels, earlier.panels[2].pixels)

    def test_unknown_layer_raises_and_lists_the_layers(self, resnet, image):
        with pytest.raises(SettingsError, match=r"layer9.*layer4\.0\.relu3"):
            shown(resnet, image, BoardSettings(texts="a sheep", layer="layer9"))


@pytest.mark.parametrize("name", ["board", "typographic-attack"])
@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({}, QueryError, "nothing to compare"),
        ({"texts": " ; ;"}, QueryError, "nothing to compare"),
        ({"text": ("sheep", " ")}, QueryError, "must not be empty"),
        ({"text": ("sheep " * 80,)}, QueryError, "too long: CLIP reads 77"),
        ({"text": ("xylophone",)}, QueryError, "does not know 'xylophone'"),
        ({"texts": "sheep", "method": "layercam"}, SettingsError, "supports .*surgery"),
        ({"texts": "sheep", "method": "nonsense"}, SettingsError, "supports .*surgery"),
        ({"texts": "sheep", "layer": "layer4.0.relu3"}, SettingsError, "none with this CLIP"),
    ],
)
def test_bad_input_raises_with_the_reason(demo, image, name, given, error, says):
    with pytest.raises(error, match=says):
        shown(demo, image, TOOLS[name].settings(**given), name)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"alpha": 1.5}, "alpha"),
        ({"score": "dot"}, "score must be one of cosine, logit, softmax"),
        ({"text": "sheep"}, "sequence of texts"),
        ({"prefix": " ", "prefix_comparison": True}, "give one"),
    ],
)
def test_bad_settings_raise(given, says):
    with pytest.raises(SettingsError, match=says):
        BoardSettings(**given)
