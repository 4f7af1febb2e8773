"""Token relevance, token scores and keywords, on a tiny random CLIP against plain float64, and on the demo model
against the objects of a scene."""

from __future__ import annotations

from functools import cache
from importlib import resources

import numpy as np
import pytest
import torch
from closeness import TINY_NETWORK, about, assert_close
from saliency_builders import in_float64, random_target, state
from test_attention import feed_forward, layer_norm
from test_maps import CPU, image, tiny

from text2seg.clip.model import Clip
from text2seg.errors import QueryError, SettingsError
from text2seg.explain import TOOLS, run_tool
from text2seg.explain.keywords import KeywordsSettings, keywords
from text2seg.explain.text_visualisation import TextVisualisationSettings, score_tokens, token_features
from text2seg.explain.tokens import decode, joined, tokens_of, word_image, words_of
from text2seg.explain.words import TokenRelevanceSettings, token_relevance
from text2seg.io.images import load_image
from text2seg.pipeline import Text2Seg
from text2seg.runtime import Precision

TEXT = "a red bus"
SCENES = resources.files("text2seg.demo") / "scenes" / "new-scenes" / "images"


@pytest.fixture(scope="module")
def vit():
    clip = tiny("vit")
    with torch.no_grad():  # sharper than at the start of training, so that attention matters
        for block in clip.model.transformer.resblocks:
            block.attn.in_proj_weight.normal_(std=0.4)
    return clip


@cache
def scene():
    """A scene with sheep, a bomb, a trophy, a monkey and a fire engine."""
    return load_image(SCENES / "scene_0019.jpg")


class NaiveText:
    """Text tower in float64, computed head by head, with replaceable attention."""

    def __init__(self, clip, ids):
        self.model = in_float64(clip.model)
        self.start = (self.model.token_embedding(ids)[0] + self.model.positional_embedding[: ids.shape[1]]).numpy()
        self.blocks = list(self.model.transformer.resblocks)

    def run(self, replaced=None):
        """Return attentions [heads, N, N] of each block and features [N, C] of all tokens, not normalised."""
        x, attentions = self.start, []
        for index, block in enumerate(self.blocks):
            normed, attn = layer_norm(block.ln_1, x), block.attn
            q, k, v = np.split(normed @ attn.in_proj_weight.numpy().T + attn.in_proj_bias.numpy(), 3, axis=1)
            width = q.shape[1] // attn.num_heads
            parts = [slice(head * width, (head + 1) * width) for head in range(attn.num_heads)]
            attention = np.stack([self.causal(q[:, part] @ k[:, part].T / np.sqrt(width)) for part in parts])
            attention = (replaced or {}).get(index, attention)
            mixed = np.concatenate([one @ v[:, part] for one, part in zip(attention, parts, strict=True)], axis=1)
            x = x + mixed @ attn.out_proj.weight.numpy().T + attn.out_proj.bias.numpy()
            x = x + feed_forward(block, x)
            attentions.append(attention)
        return attentions, layer_norm(self.model.ln_final, x) @ self.model.text_projection.numpy()

    @staticmethod
    def causal(logits):
        weights = np.tril(np.exp(logits))
        return weights / weights.sum(1, keepdims=True)

    def dot(self, features, target):
        return float(features[-1] @ target.double().numpy())

    def cosine(self, features, target):
        last = features[-1]
        return float(last @ target.double().numpy() / np.sqrt(last @ last))


@pytest.mark.parametrize("kind", ["cosine", "logit", "dot"])
@pytest.mark.parametrize("start", [0, -1])
def test_token_relevance_against_central_differences(vit, start, kind):
    tokens, target = tokens_of(vit, TEXT), -random_target(vit).features  # for the other sign hardly a token speaks
    naive, step = NaiveText(vit, tokens.ids), 1e-5
    attentions, features = naive.run()
    relevance = np.eye(tokens.end + 1)
    scale = float(vit.model.logit_scale.exp()) if kind == "logit" else 1
    score = naive.dot if kind == "dot" else naive.cosine
    for index in range(start % len(attentions), len(attentions)):
        gradient = np.zeros_like(attentions[index])
        for place in np.ndindex(gradient.shape):
            both = []
            for move in (step, -step):
                moved = attentions[index].copy()
                moved[place] += move
                both.append(scale * score(naive.run({index: moved})[1], target))
            gradient[place] = (both[0] - both[1]) / (2 * step)
        relevance = relevance + np.maximum(gradient * attentions[index], 0).mean(0) @ relevance
    assert relevance[-1, 1:-1].sum() > 1e-3, "shares of nothing are shares of rounding errors"
    expected = relevance[-1, 1:-1] / relevance[-1, 1:-1].sum()
    cosine, shares = token_relevance(vit, tokens, target, score=kind, start_block=start)
    assert cosine == about(naive.cosine(features, target), terms=TINY_NETWORK)
    assert_close(shares, expected, terms=2 * TINY_NETWORK)
    assert shares.sum() == about(1, terms=len(shares))
    assert shares.std() > 0.01  # nothing would be shown by shares that are all alike


def test_token_features_against_float64_and_the_end_token_equals_clip(vit):
    tokens = tokens_of(vit, TEXT)
    expected = NaiveText(vit, tokens.ids).run()[1]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = token_features(vit, tokens)
    assert_close(found, expected, terms=TINY_NETWORK)
    assert_close(found[-1], vit.encode_texts([TEXT], ("{}",))[0], terms=TINY_NETWORK)


@pytest.mark.parametrize("redundancy", ["none", "empty", "label-set"])
def test_token_scores_against_loops(vit, redundancy):
    tokens = tokens_of(vit, TEXT)
    (seen,) = vit.encode_images([image()], size=(32, 64))
    texts = NaiveText(vit, tokens.ids).run()[1][1:]
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    scores = seen.features.double().numpy() @ texts.T
    if redundancy == "empty":
        scores -= (seen.features @ vit.encode_texts([""], ("{}",))[0]).double().numpy()[:, None]
    if redundancy == "label-set":
        weights = np.exp(2 * scores[0]) / np.exp(2 * scores[0]).mean()
        scores = scores * weights - (scores * weights).mean(1, keepdims=True)
    found = score_tokens(vit, seen, tokens, redundancy)
    assert_close(found.whole, scores[0], terms=TINY_NETWORK, scale=1)
    assert_close(found.places, scores[1:].T.reshape(-1, *seen.grid_hw), terms=TINY_NETWORK, scale=1)


def test_gradients_are_finite_in_half_precision_and_the_model_is_unchanged():
    clip = tiny("vit")
    before, target = state(clip.model), random_target(clip).features
    for dtype in (torch.bfloat16, torch.float16):
        half = Clip(clip.model, device=CPU, precision=Precision(dtype, "requested"))
        with torch.inference_mode():
            _, shares = token_relevance(half, tokens_of(half, TEXT), target)
        assert np.isfinite(shares).all()
        assert shares.any()
    (seen,) = clip.encode_images([image()])
    score_tokens(clip, seen, tokens_of(clip, TEXT))
    assert state(clip.model) == before


@pytest.mark.parametrize("name", ["token-relevance", "text-visualisation", "keywords"])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "nothing to compare"),
        (" \n", "nothing to compare"),
        ("sheep " * 80, "too long: CLIP reads 77"),
        ("a xylophone", "does not know"),
    ],
)
def test_unusable_texts_raise(demo, name, text, says):
    tool = TOOLS[name]
    with pytest.raises(QueryError, match=says):
        run_tool(tool, demo, [scene()], tool.settings(text=text))


def test_longest_text_is_read_and_one_token_more_raises(vit):
    tokens = tokens_of(vit, "bus " * 75)
    assert tokens.ids.shape == (1, 77)
    assert len(tokens.spelled) == 75
    with pytest.raises(QueryError, match="CLIP reads 77 tokens; shorten it by 1"):
        tokens_of(vit, "bus " * 76)
    with pytest.raises(QueryError, match="has no token"):
        tokens_of(vit, "")


def test_spelling_of_tokens_gives_the_text(vit):
    tokens = tokens_of(vit, "Anthropomorphization, ok")
    assert "".join(tokens.spelled) == "anthropomorphization , ok "
    assert decode(tokens.ids[0, 1:-1].tolist()) == "anthropomorphization , ok "
    assert {joined(tokens.spelled, number) for number in range(len(tokens.spelled))} == {
        "anthropomorphization",
        ",",
        "ok",
    }
    assert words_of("ok … , 't!' \ufffd") == ["ok", "t"]


@pytest.mark.parametrize("start", [0, -1])
def test_name_of_the_object_has_the_highest_relevance(demo, start):
    shown = run_tool(
        TOOLS["token-relevance"], demo, [scene()], TokenRelevanceSettings("a photo of a koala", start_block=start)
    )
    rows = {token: share for _, token, share in shown.tables[0].rows}
    assert rows.keys() == {"a", "photo", "of", "koala"}
    assert max(rows, key=rows.get) == "koala"
    assert rows["koala"] > 0.9


def test_present_objects_match_at_their_place_and_absent_ones_do_not(demo):
    settings = TextVisualisationSettings("a dog near a sheep beside the fire engine", point=(140, 247))
    shown = run_tool(TOOLS["text-visualisation"], demo, [scene()], settings)
    rows = {token: scores for token, *scores in shown.tables[0].rows}
    whole = {token: scores[0] for token, scores in rows.items()}
    assert min(whole["sheep"], whole["engine"]) > whole["dog"] + 0.05
    at_sheep = {token: scores[2] for token, scores in rows.items()}
    assert at_sheep["sheep"] > at_sheep["dog"]
    assert len(shown.panels) == 6 + settings.words
    assert np.ptp(shown.panels[3].pixels.astype(int) - scene().pixels) > 0


@pytest.mark.parametrize("wrong", [{"words": 0}, {"redundancy": "all"}])
def test_bad_settings_raise(wrong):
    with pytest.raises(SettingsError):
        TextVisualisationSettings("a sheep", **wrong)
    with pytest.raises(SettingsError):
        TokenRelevanceSettings("a sheep", score="softmax")


@pytest.mark.parametrize("point", [(-1, 0), (0, 100_000)])
def test_point_outside_the_image_raises(demo, point):
    with pytest.raises(SettingsError, match="outside the image"):
        run_tool(TOOLS["text-visualisation"], demo, [scene()], TextVisualisationSettings("a sheep", point=point))


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("A photo of a sheep.", ("sheep",)),
        ("sheep", ("sheep",)),
        ("The dog's bone lies behind the T-shirt", ("dog bone", "t-shirt")),
        ("a big, red fire engine and another fire engine", ("big", "red fire engine", "fire engine")),
        ("sheep and Sheep", ("sheep",)),
        ("one very old small brown wooden table", ("small brown wooden table",)),
        ("the of and!", ()),
        ("", ()),
        ("ein schönes Haus", ("ein schönes haus",)),
        ("a picture of a koala beside several pictures", ("koala",)),
    ],
)
def test_keywords(sentence, expected):
    assert keywords(sentence) == expected


def test_each_keyword_has_a_map_and_a_score(demo):
    settings = KeywordsSettings("Two sheep stand beside a fire engine, no pizza is there.")
    shown = run_tool(TOOLS["keywords"], demo, [scene()], settings)
    presence = {row[0]: row[1] for row in shown.tables[0].rows}
    assert list(presence) == [settings.text, "sheep", "fire engine", "pizza"]
    assert min(presence["sheep"], presence["fire engine"]) > 0.9
    assert presence["pizza"] < 0.5
    assert len(shown.panels) == 5


def test_unknown_keywords_are_left_out(demo):
    result = run_tool(TOOLS["keywords"], demo, [scene()], KeywordsSettings(text="a sheep near a big unicorn"))
    assert [row[0] for row in result.tables[0].rows] == ["a sheep near a big unicorn", "sheep"]
    assert len(result.panels) == 3
    (says,) = result.unknown
    assert "big unicorn" in says
    with pytest.raises(QueryError, match="unicorn"):
        run_tool(TOOLS["keywords"], demo, [scene()], KeywordsSettings(text="a unicorn"))


def test_sentence_without_keywords_raises(demo):
    knows_all = Text2Seg(demo.clip, demo.sam)
    with pytest.raises(QueryError, match="no keyword"):
        run_tool(TOOLS["keywords"], knows_all, [scene()], KeywordsSettings("it is what it is"))


def test_drawn_words_wrap_and_high_weights_are_coloured():
    small = word_image(["a ", "sheep "], np.array([0, 1], np.float32), ["0%", "100%"])
    large = word_image(["sheep "] * 30 + ["x" * 200 + " "], np.linspace(0, 1, 31, dtype=np.float32), ["1"] * 31)
    assert small.shape[1] == large.shape[1]
    assert large.shape[0] > 3 * small.shape[0]
    saturation = np.ptp(small.astype(int), axis=2)
    assert saturation[:, : small.shape[1] // 8].max() < saturation.max() / 4
