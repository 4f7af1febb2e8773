"""The search for the text that fits an image best: its parts against autograd and counts, and its result on the demo
model."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from functools import partial
from importlib import resources

import numpy as np
import pytest
import torch
from closeness import DEMO_NETWORK, TINY_NETWORK, about, assert_close, rounding
from saliency_builders import state
from test_maps import CPU, image, tiny
from torch.nn import functional as F

from text2seg.clip.model import Clip
from text2seg.clip.text import encode_tokens, tokenize
from text2seg.errors import CheckpointError, QueryError, SettingsError
from text2seg.explain import TOOLS, Progress, run_tool
from text2seg.explain.opinion import (
    RATE,
    TEMPERATURE,
    OpinionSettings,
    copies,
    frame_of,
    gumbel_choice,
    mean_features,
    opine,
    straight_through,
)
from text2seg.io.images import load_image
from text2seg.pipeline import Text2Seg
from text2seg.runtime import Precision

SCENES = resources.files("text2seg.demo") / "scenes" / "new-scenes" / "images"
FEW = OpinionSettings(steps=3, candidates=2)
FREE = OpinionSettings().tokens


@pytest.fixture(scope="module")
def vit():
    return tiny("vit")


def for_ever(step, best):
    return True


def test_straight_through_gradient_equals_autograd():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 11, generator=generator, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(11, 5, generator=generator, dtype=torch.float64)
    towards = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    soft = (logits / TEMPERATURE).softmax(-1)
    hard = F.one_hot(soft.argmax(-1), 11).double()
    ((hard + soft - soft.detach()) @ rows * towards).sum().backward()
    assert_close(straight_through(soft.detach(), towards @ rows.T), logits.grad, terms=5 * 11, dtype=torch.float64)
    assert bool(logits.grad.any())


def test_tokens_are_sampled_with_the_probabilities_of_the_logits():
    shares = torch.tensor([0.7, 0.2, 0.1, 0.0])
    chosen, soft = gumbel_choice(shares.log().expand(20_000, -1), torch.Generator().manual_seed(0))
    found = torch.bincount(chosen, minlength=4) / len(chosen)
    torch.testing.assert_close(found, shares, rtol=0, atol=0.015)  # four deviations of 20,000 drawings
    assert_close(soft.sum(-1), torch.ones(len(soft)), terms=4)


def test_reported_cosines_equal_those_of_clip(vit, monkeypatch):
    monkeypatch.setattr("text2seg.explain.tokens.decode", lambda tokens: " ".join(map(str, tokens)))
    sam_prompt = mean_features(vit, copies(image(), vit.trained_size, 0), 16)
    found = opine(vit, image(), OpinionSettings(prompt="a photo of", steps=10, candidates=4), for_ever)
    assert len(found.texts) == 5
    for text, cosine in found.texts:
        assert text.startswith("a photo of ")
        tokens, _ = tokenize(["a photo of" + FREE * " bus"], 77)
        tokens[0, 4 : 4 + FREE] = torch.tensor([int(token) for token in text.split()[3:]])
        assert float(encode_tokens(vit.model, tokens)[0] @ sam_prompt) == about(cosine, terms=TINY_NETWORK)
    scores = [cosine for _, cosine in found.texts]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > found.start
    assert found.steps == 10


def test_features_are_taken_at_the_end_token(vit):
    frame = frame_of(vit, "a photo of", FREE)
    tokens, _ = tokenize(["a photo of sheep sheep bus bus"], 77)
    sam_prompt = F.normalize(torch.randn(32, generator=torch.Generator().manual_seed(0)), dim=0)
    free = vit.model.token_embedding(tokens[:, 4 : 4 + FREE])
    expected = encode_tokens(vit.model, tokens) @ sam_prompt
    assert_close(frame.cosines(vit, free, sam_prompt), expected, terms=TINY_NETWORK, scale=1)


def test_mean_feature_gives_the_mean_cosine_and_copies_are_encoded_once(vit, monkeypatch):
    made = copies(image(), 64, seed=1)
    text = vit.encode_texts(["bus"], ("{}",))[0]
    each = [float(vit.encode_images([one], architecture="raw")[0].features[0] @ text) for one in made]
    for batch_size in (16, 7):
        assert float(mean_features(vit, made, batch_size) @ text) == about(float(np.mean(each)), terms=TINY_NETWORK)
    seen = []
    encode = Clip.encode_images
    monkeypatch.setattr(Clip, "encode_images", lambda *args, **kwargs: seen.extend(args[1]) or encode(*args, **kwargs))
    opine(vit, image(), FEW, for_ever)
    assert len(seen) == 64


def test_most_copies_are_turned_and_shifted_and_none_is_enlarged():
    original = image(hw=(48, 72))
    made = copies(original, 1000, seed=0)
    assert {one.hw for one in made} == {(48, 72)}
    same = sum(np.array_equal(one.pixels, original.pixels) for one in made)
    assert 4 <= same <= 25  # a fifth of 64, more or less
    again, other = copies(original, 1000, seed=0), copies(original, 1000, seed=1)
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(made, again, strict=True))
    assert any(not np.array_equal(a.pixels, b.pixels) for a, b in zip(made, other, strict=True))
    assert copies(image(hw=(480, 720)), 48, seed=0)[0].hw == (48, 72)


def test_same_seed_gives_same_words_and_global_state_is_unchanged(vit):
    before, random_state = state(vit.model), torch.random.get_rng_state()
    one, again = opine(vit, image(), FEW, for_ever), opine(vit, image(), FEW, for_ever)
    assert one == again
    assert opine(vit, image(), OpinionSettings(steps=3, candidates=2, seed=1), for_ever).texts != one.texts
    assert state(vit.model) == before
    assert torch.equal(torch.random.get_rng_state(), random_state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_results_are_finite(vit, dtype):
    half = Clip(vit.model, device=CPU, precision=Precision(dtype, "requested"))
    with torch.inference_mode():
        found = opine(half, image(), FEW, for_ever)
    assert np.isfinite([cosine for _, cosine in found.texts]).all()
    assert found.steps == 3


def test_resnet_works():
    assert opine(tiny("resnet"), image(), FEW, for_ever).texts


def test_damaged_weights_raise():
    clip = tiny("vit")
    clip.model.text_projection.data[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match="not finite"):
        opine(clip, image(), FEW, for_ever)


def test_stopped_search_shows_partial_results(vit, demo):
    models, stop, reports = Text2Seg(vit, demo.sam), threading.Event(), []

    def report(done, total, note):
        reports.append((done, total, note))
        if done == 2:
            stop.set()

    tool = TOOLS["opinion"]
    shown = run_tool(tool, models, [image()], OpinionSettings(steps=50, candidates=2), Progress(report, stop))
    assert [report[:2] for report in reports] == [(0, 50), (1, 50), (2, 50)]
    assert reports[0][2] == ""
    assert reports[2][2] == shown.tables[0].rows[0][0]  # the best text until then
    assert 1 <= len(shown.tables[0].rows) <= 4
    assert "after 2 of 50 steps" in shown.notes[0]
    nothing = run_tool(tool, models, [image()], None, Progress(stop=stop))
    assert not nothing.tables
    assert "Stopped" in nothing.notes[0]


def test_words_of_the_demo_model_fit_far_better_than_random_ones(demo):
    """The image shows a rocket, an anchor, a horse and a tomato. Few of the 49,408 tokens mean anything to this
    model, and yet what it finds fits better than a sentence on a thing that is not there."""
    scene = load_image(SCENES / "scene_0003.jpg")
    found = opine(demo.clip, scene, OpinionSettings(steps=12), for_ever)
    best = found.texts[0][1]
    assert -100 * best < -100 * found.start - 10
    (seen,) = demo.clip.encode_images([scene], architecture="raw")
    absent = float(demo.clip.encode_texts(["a photo of a pizza"], ("{}",))[0] @ seen.features[0])
    assert best > absent + 0.3


def test_words_are_counted_in_all_texts_of_the_last_steps(vit, monkeypatch):
    """Count every occurrence of a word among the free tokens, without punctuation."""
    monkeypatch.setattr("text2seg.explain.tokens.decode", lambda tokens: f"bus ! tok{sum(tokens)} bus ")
    settings = OpinionSettings(prompt="a dog", steps=10, candidates=4, last_steps=3)
    found = opine(vit, image(), settings, for_ever)
    assert found.counted == 4 * 3
    assert found.words[0] == ("bus", 24)
    assert sum(count for _, count in found.words[1:]) == 12
    often = opine(vit, image(), replace(settings, min_count=13), for_ever)
    assert often.words == (("bus", 24),)
    assert opine(vit, image(), replace(settings, min_count=25), for_ever).words == ()
    few = opine(vit, image(), replace(settings, steps=2), for_ever)
    assert (few.counted, few.words[0]) == (8, ("bus", 16))


def test_counts_equal_those_of_the_sampled_tokens(vit, monkeypatch):
    """Compare with a plain count over what `gumbel_choice` drew; among equal counts the better text comes first."""
    monkeypatch.setattr("text2seg.explain.tokens.decode", lambda tokens: " ".join(f"w{token % 7}" for token in tokens))
    drawn = []

    def noted(logits, generator):
        chosen, soft = gumbel_choice(logits, generator)
        drawn.append(chosen.tolist())
        return chosen, soft

    monkeypatch.setattr("text2seg.explain.opinion.gumbel_choice", noted)
    settings = OpinionSettings(steps=4, candidates=5, tokens=3, last_steps=2)
    found = opine(vit, image(), settings, for_ever)
    plain = Counter(f"w{token % 7}" for of_step in drawn[-2:] for text in of_step for token in text)
    assert dict(found.words) == plain
    assert [count for _, count in found.words] == sorted(plain.values(), reverse=True)
    assert len(drawn[0][0]) == 3


def test_words_are_limited_by_number(vit, demo):
    tool, models = TOOLS["opinion"], Text2Seg(vit, demo.sam)
    whole = run_tool(tool, models, [image()], FEW)
    assert whole.tables[1].title == "Words in the 2 texts of the last step"
    shown = run_tool(tool, models, [image()], replace(FEW, words=1, last_steps=2))
    assert shown.tables[1].title == "Words in the 4 texts of the last 2 steps"
    assert len(shown.tables[1].rows) == 1
    assert shown.panels[1].caption == "the 1 most frequent words"


def test_batch_size_changes_results_by_rounding_only(vit):
    settings = OpinionSettings(steps=3, candidates=5)
    whole, parts = (opine(vit, image(), replace(settings, batch_size=size), for_ever) for size in (64, 2))
    assert [text for text, _ in parts.texts] == [text for text, _ in whole.texts]
    assert [cosine for _, cosine in parts.texts] == about([cosine for _, cosine in whole.texts], terms=TINY_NETWORK)
    assert parts.words == whole.words


def test_same_seed_gives_same_words_on_the_demo_model(demo, monkeypatch):
    """Two runs are equal. Another batch size changes rounding: cosines differ by that, and words cannot differ while no
    two tokens are nearly equal, which is asserted too: a step changes a logit by at most the learning rate, times the
    relative error of the gradient."""
    gaps = []

    def noted(logits, generator):
        again = torch.Generator(logits.device)
        again.set_state(generator.get_state())
        noise = torch.rand(logits.shape, generator=again)
        two = (logits - (-noise.log()).log()).topk(2).values
        gaps.append(float((two[..., 0] - two[..., 1]).min()))
        return gumbel_choice(logits, generator)

    monkeypatch.setattr("text2seg.explain.opinion.gumbel_choice", noted)
    monkeypatch.setattr("text2seg.explain.opinion.copies", partial(copies, count=7))  # fewer, to save time
    tool, scene = TOOLS["opinion"], load_image(SCENES / "scene_0003.jpg")
    settings = OpinionSettings(steps=2, candidates=3)
    one, again = (run_tool(tool, demo, [scene], settings) for _ in range(2))
    assert again.tables == one.tables
    assert min(gaps) > settings.steps * RATE * rounding(DEMO_NETWORK)
    other = run_tool(tool, demo, [scene], replace(settings, batch_size=2))
    assert other.tables[1] == one.tables[1]
    assert [row[0] for row in other.tables[0].rows] == [row[0] for row in one.tables[0].rows]
    expected = [row[1] for row in one.tables[0].rows]
    assert [row[1] for row in other.tables[0].rows] == about(expected, terms=DEMO_NETWORK)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"candidates": 0},
        {"tokens": 0},
        {"words": 0},
        {"min_count": 0},
        {"last_steps": 0},
        {"batch_size": 0},
        {"seed": -1},
        {"seed": 2**63},
    ],
)
def test_bad_settings_raise(wrong):
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        OpinionSettings(**wrong)


def test_prompt_must_leave_room_for_the_free_tokens(vit):
    longest = "bus " * (77 - 2 - FREE)
    assert opine(vit, image(), OpinionSettings(prompt=longest, steps=1, candidates=1), for_ever).steps == 1
    with pytest.raises(QueryError, match=r"too long.* by 1"):
        opine(vit, image(), OpinionSettings(prompt=longest + "bus", steps=1), for_ever)


def test_number_of_free_tokens_has_the_limits_of_the_context(vit):
    settings = OpinionSettings(steps=1, candidates=1)
    for tokens in (1, 75):
        assert opine(vit, image(), replace(settings, tokens=tokens), for_ever).steps == 1
    with pytest.raises(SettingsError, match="tokens must be from 1 to 75, got 76"):
        opine(vit, image(), replace(settings, tokens=76), for_ever)
    with pytest.raises(QueryError, match=r"too long.*74 of them are free.* by 2, or search for fewer tokens"):
        opine(vit, image(), replace(settings, tokens=74, prompt="bus bus bus"), for_ever)
