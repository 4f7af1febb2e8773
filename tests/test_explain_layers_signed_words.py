"""The tools `layers`, `signed` and `words`."""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import pytest
import torch
from closeness import TINY_NETWORK, about, assert_close
from saliency_builders import Naive, random_target, state
from test_attention import tiny_clip

import text2seg
from text2seg.clip.model import preprocess
from text2seg.clip.text import tokenize
from text2seg.errors import QueryError, SettingsError
from text2seg.explain import TOOLS, run_tool
from text2seg.explain.layers import block_maps, masked_scores
from text2seg.explain.saliency.targets import image_target, score
from text2seg.explain.saliency_maps import SignedSettings, TargetSettings
from text2seg.explain.words import WordsSettings, leave_out
from text2seg.io.images import load_image
from text2seg.pipeline import Text2Seg
from text2seg.render.drawing import signed_heat

SCENE = Path(text2seg.__file__).parent / "demo/scenes/new-scenes/images/scene_0019.jpg"  # sheep, fire engine, bomb


@pytest.fixture(scope="module")
def image():
    return load_image(SCENE)


@pytest.fixture(scope="module")
def tiny():
    return tiny_clip()


@pytest.fixture(scope="module")
def small():
    return builders.image((32, 48))


class TestLayers:
    def test_attention_and_gradient_of_every_block_against_float64(self, tiny, small):
        """Compare with a float64 transformer and finite differences."""
        target, size = random_target(tiny), (32, 48)
        found = block_maps(tiny, small, target, size)
        naive = Naive(tiny.model.visual, preprocess(small, size), (2, 3))
        attentions, _ = naive.run()
        assert found.attention.shape == found.gradient.shape == (4, 2, 3)
        for index, attention in enumerate(attentions):
            assert_close(found.attention[index].ravel(), attention[:, 0, 1:].mean(0), terms=TINY_NETWORK)
        for index in (0, 3):
            gradient = naive.gradient(index, lambda tokens: naive.cosine(tokens[-1][0], target))
            expected = np.maximum(gradient[:, 0, 1:].mean(0), 0)
            assert_close(
                found.gradient[index].ravel(), expected, terms=TINY_NETWORK, scale=float(np.abs(gradient).max())
            )

    def test_image_against_itself_has_no_gradient(self, tiny, small):
        """The cosine is at its maximum; its gradient would be rounding noise."""
        found = block_maps(tiny, small, image_target(tiny, small, size=(32, 48)), (32, 48))
        assert not found.gradient.any()
        assert found.attention.any()

    def test_mask_hides_where_it_is_zero(self, tiny, small):
        target = random_target(tiny)
        left = np.zeros((1, 2, 4), np.float32)
        left[:, :, :2] = 1
        pixels = preprocess(small, (64, 64))
        pixels[:, :, 40:] = 0
        pixels[:, :, 24:40] *= torch.linspace(1, 0, 33)[1::2]  # half-way between two middles of cells
        scores = masked_scores(tiny, small, target, np.concatenate([np.ones_like(left), left]))
        assert scores[0] == about(float(score(tiny, preprocess(small, (64, 64))[None], target)), terms=TINY_NETWORK)
        assert scores[1] == about(float(score(tiny, pixels[None], target)), terms=TINY_NETWORK)

    def test_image_masked_by_the_last_gradient_scores_higher_than_the_whole(self, demo, image):
        before = state(demo.clip.model)
        result = run_tool(TOOLS["layers"], demo, [image], TargetSettings(text=("fire engine",)))
        blocks = len(demo.clip.model.visual.transformer.resblocks)
        (table,) = result.tables
        assert [row[0] for row in table.rows] == ["the whole image", *(f"block {n + 1}" for n in range(blocks))]
        assert table.rows[-1][2] > table.rows[0][2] + 0.1
        assert len(result.panels) == blocks * result.columns
        assert result.panels[-1].caption == f"masked by it: score {table.rows[-1][2]:.3f}"
        assert state(demo.clip.model) == before

    def test_resnet_raises(self, image):
        with pytest.raises(SettingsError, match=r"ResNet.*ViT-B/16"):
            run_tool(TOOLS["layers"], Text2Seg(tiny_clip("resnet"), sam=None), [image], TargetSettings(text=("a",)))


class TestSigned:
    def test_positive_part_is_on_the_target_and_negative_part_elsewhere(self, demo, image):
        result = run_tool(TOOLS["signed"], demo, [image], SignedSettings(text=("sheep", "fire engine")))
        assert len(result.panels) == 8
        assert [row[0] for row in result.tables[0].rows] == ["sheep", "fire engine"]
        assert all(0 < row[2] < 1 for row in result.tables[0].rows)
        both = result.panels[3].pixels.astype(int)
        redder = both[:, :, 0] - both[:, :, 2]
        assert redder[215:270, 100:160].mean() > 20  # the lower sheep
        assert redder[125:205, 15:90].mean() < -20  # the bomb

    @pytest.mark.parametrize("method", ["gradcam", "surgery", "legrad"])
    def test_every_targeted_method_works(self, demo, image, method):
        result = run_tool(TOOLS["signed"], demo, [image], SignedSettings(text=("sheep",), method=method))
        assert not np.array_equal(result.panels[1].pixels, result.panels[2].pixels)

    def test_method_that_ignores_the_target_raises(self, demo, image):
        with pytest.raises(SettingsError, match="ignores the target"):
            run_tool(TOOLS["signed"], demo, [image], SignedSettings(text=("sheep",), method="rollout"))

    def test_overlay_is_orange_for_blue_against_and_grey_elsewhere(self):
        speaks_for, against = np.zeros((1, 3), np.float32), np.zeros((1, 3), np.float32)
        speaks_for[0, 0], against[0, 2] = 1, 1
        pixels = signed_heat(speaks_for, against, np.full((30, 90, 3), 120, np.uint8)).astype(int)
        left, middle, right = pixels[15, 5], pixels[15, 45], pixels[15, 85]
        assert left[0] > left[2] + 100
        assert right[2] > right[0] + 100
        assert np.ptp(middle) < 30


class TestWords:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("a cat", {"a": "cat", "cat": "a"}),
            ("a cat and a caravan", {"and": "a cat a caravan", "caravan": "a cat and a"}),
            ("Look, a big-eyed cat!", {"look": ", a big-eyed cat!", "cat": "look, a big-eyed !"}),
            ("an uncharacteristically small xylophone", {"xylophone": "an uncharacteristically small"}),
        ],
    )
    def test_whole_words_are_left_out(self, tiny, text, words):
        found = {each.word: each.rest for each in leave_out(tiny, text)}
        for word, rest in words.items():
            expected = tokenize([rest], 77)[0][0]
            assert found[word][0].tolist() == expected[: int(expected.argmax()) + 1].tolist()

    def test_repeated_words_count_each_time_and_punctuation_never(self, tiny):
        assert [each.word for each in leave_out(tiny, "a cat, a dog !!")] == ["a", "cat", "a", "dog"]

    def test_leaving_out_the_only_word_gives_the_empty_text(self, tiny):
        (only,) = leave_out(tiny, "cat")
        assert only.rest.shape == (1, 2)

    def test_name_of_the_object_adds_most(self, demo, image):
        before = state(demo.clip.model)
        result = run_tool(TOOLS["words"], demo, [image], WordsSettings(text="a photo of the sheep"))
        rows = {row[0]: row[1:] for row in result.tables[0].rows}
        assert list(rows) == ["a", "photo", "of", "the", "sheep"]
        assert max(rows, key=lambda word: rows[word][1]) == "sheep"  # adds most to the score
        assert rows["sheep"][2] > 10 * max(turned for word, (_, _, turned) in rows.items() if word != "sheep")
        whole = rows["sheep"][0] + rows["sheep"][1]
        assert f"{whole:.3f}" in result.tables[0].title
        assert len(result.panels) == 3 + len(rows)
        assert result.panels[-1].caption == f"sheep · {rows['sheep'][1]:+.3f}"
        assert state(demo.clip.model) == before


@pytest.mark.parametrize("name", ["layers", "signed", "words"])
@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        (None, QueryError, "nothing to compare|no target"),
        (" ", QueryError, "must not be empty|nothing to compare"),
        ("sheep " * 80, QueryError, "too long: CLIP reads 77"),
        ("xylophone", QueryError, "does not know"),
    ],
)
def test_unusable_text_raises(demo, image, name, text, error, says):
    settings = TOOLS[name].settings
    given = {} if text is None else {"text": text if name == "words" else (text,)}
    with pytest.raises(error, match=says):
        run_tool(TOOLS[name], demo, [image], settings(**given))


@pytest.mark.parametrize("settings", [SignedSettings, WordsSettings])
def test_method_for_other_clips_raises_and_lists_supported_methods(demo, image, settings):
    name = "signed" if settings is SignedSettings else "words"
    text = ("sheep",) if name == "signed" else "sheep"
    with pytest.raises(SettingsError, match=r"layercam.*supports .*relevance"):
        run_tool(TOOLS[name], demo, [image], settings(text=text, method="layercam"))
    with pytest.raises(SettingsError, match="alpha"):
        settings(text=text, alpha=2)
