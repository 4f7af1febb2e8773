"""CLIP's own words: the search's parts against autograd and counting, and what the demo model says."""

from __future__ import annotations

import threading
from importlib import resources

import numpy as np
import pytest
import torch
from closeness import TINY_NETWORK, about, assert_close
from saliency_builders import state
from test_maps import CPU, image, tiny
from torch.nn import functional as F

from text2seg.clip.model import Clip
from text2seg.clip.text import encode_tokens, tokenize
from text2seg.errors import CheckpointError, QueryError, SettingsError
from text2seg.explain import TOOLS, Progress, run_tool
from text2seg.explain.catalogue.opinion import OpinionSettings
from text2seg.explain.opinion import (
    FREE,
    TEMPERATURE,
    copies,
    framed,
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


@pytest.fixture(scope="module")
def vit():
    return tiny("vit")


def for_ever(step, best):
    return True


def test_the_gradient_is_that_of_the_straight_through_trick():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 11, generator=generator, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(11, 5, generator=generator, dtype=torch.float64)
    towards = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    soft = (logits / TEMPERATURE).softmax(-1)
    hard = F.one_hot(soft.argmax(-1), 11).double()
    ((hard + soft - soft.detach()) @ rows * towards).sum().backward()
    assert_close(straight_through(soft.detach(), towards @ rows.T), logits.grad, terms=5 * 11, dtype=torch.float64)
    assert bool(logits.grad.any())


def test_tokens_are_drawn_as_often_as_the_logits_say():
    shares = torch.tensor([0.7, 0.2, 0.1, 0.0])
    chosen, soft = gumbel_choice(shares.log().expand(20_000, -1), torch.Generator().manual_seed(0))
    found = torch.bincount(chosen, minlength=4) / len(chosen)
    torch.testing.assert_close(found, shares, rtol=0, atol=0.015)  # four deviations of 20,000 drawings
    assert_close(soft.sum(-1), torch.ones(len(soft)), terms=4)


def test_the_texts_found_have_the_cosine_that_clip_gives_them(vit, monkeypatch):
    monkeypatch.setattr("text2seg.explain.opinion.decode", lambda tokens: " ".join(map(str, tokens)))
    sam_prompt = mean_features(vit, copies(image(), vit.trained_size, 0))
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


def test_free_tokens_are_read_at_the_end_of_the_text(vit):
    frame = framed(vit, "a photo of")
    tokens, _ = tokenize(["a photo of sheep sheep bus bus"], 77)
    sam_prompt = F.normalize(torch.randn(32, generator=torch.Generator().manual_seed(0)), dim=0)
    free = vit.model.token_embedding(tokens[:, 4 : 4 + FREE])
    expected = encode_tokens(vit.model, tokens) @ sam_prompt
    assert_close(frame.cosines(vit, free, sam_prompt), expected, terms=TINY_NETWORK, scale=1)


def test_the_mean_feature_gives_the_mean_cosine_and_copies_are_encoded_once(vit, monkeypatch):
    made = copies(image(), 64, seed=1)
    text = vit.encode_texts(["bus"], ("{}",))[0]
    each = [float(vit.encode_images([one], architecture="raw")[0].features[0] @ text) for one in made]
    assert float(mean_features(vit, made) @ text) == about(float(np.mean(each)), terms=TINY_NETWORK)
    seen = []
    encode = Clip.encode_images
    monkeypatch.setattr(Clip, "encode_images", lambda *args, **kwargs: seen.extend(args[1]) or encode(*args, **kwargs))
    opine(vit, image(), FEW, for_ever)
    assert len(seen) == 64


def test_copies_are_turned_and_shifted_mostly_and_never_enlarged():
    original = image(hw=(48, 72))
    made = copies(original, 1000, seed=0)
    assert {one.hw for one in made} == {(48, 72)}
    same = sum(np.array_equal(one.pixels, original.pixels) for one in made)
    assert 4 <= same <= 25  # a fifth of 64, more or less
    again, other = copies(original, 1000, seed=0), copies(original, 1000, seed=1)
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(made, again, strict=True))
    assert any(not np.array_equal(a.pixels, b.pixels) for a, b in zip(made, other, strict=True))
    assert copies(image(hw=(480, 720)), 48, seed=0)[0].hw == (48, 72)


def test_same_seed_same_words_and_nothing_global_changes(vit):
    before, random_state = state(vit.model), torch.random.get_rng_state()
    one, again = opine(vit, image(), FEW, for_ever), opine(vit, image(), FEW, for_ever)
    assert one == again
    assert opine(vit, image(), OpinionSettings(steps=3, candidates=2, seed=1), for_ever).texts != one.texts
    assert state(vit.model) == before
    assert torch.equal(torch.random.get_rng_state(), random_state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_all_is_finite(vit, dtype):
    half = Clip(vit.model, device=CPU, precision=Precision(dtype, "asked for"))
    with torch.inference_mode():
        found = opine(half, image(), FEW, for_ever)
    assert np.isfinite([cosine for _, cosine in found.texts]).all()
    assert found.steps == 3


def test_a_resnet_has_an_opinion_too():
    assert opine(tiny("resnet"), image(), FEW, for_ever).texts


def test_damaged_weights_are_noticed():
    clip = tiny("vit")
    clip.model.text_projection.data[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match="not finite"):
        opine(clip, image(), FEW, for_ever)


def test_a_stopped_search_shows_what_it_has(vit, demo):
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
    assert "After 2 of 50 steps" in shown.notes[0]
    nothing = run_tool(tool, models, [image()], None, Progress(stop=stop))
    assert not nothing.tables
    assert "Stopped" in nothing.notes[0]


def test_the_demo_model_says_words_that_fit_far_better_than_random_ones(demo):
    """The image shows a rocket, an anchor, a horse and a tomato. Few of the 49,408 tokens mean anything to this
    model, and yet what it finds fits better than a sentence on a thing that is not there."""
    scene = load_image(SCENES / "scene_0003.jpg")
    found = opine(demo.clip, scene, OpinionSettings(steps=12), for_ever)
    best = found.texts[0][1]
    assert -100 * best < -100 * found.start - 10
    (seen,) = demo.clip.encode_images([scene], architecture="raw")
    absent = float(demo.clip.encode_texts(["a photo of a pizza"], ("{}",))[0] @ seen.features[0])
    assert best > absent + 0.3


def test_words_are_counted_over_the_best_texts(vit, monkeypatch):
    """Free tokens only, without punctuation."""
    monkeypatch.setattr("text2seg.explain.opinion.decode", lambda tokens: f"bus ! tok{sum(tokens)} bus ")
    found = opine(vit, image(), OpinionSettings(prompt="a dog", steps=10, candidates=4), for_ever)
    assert found.words[0] == ("bus", 10)
    assert {count for _, count in found.words[1:]} == {1}
    assert len(found.words) == 6


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"candidates": 0}, {"seed": -1}, {"seed": 2**63}])
def test_settings_that_cannot_be(wrong):
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        OpinionSettings(**wrong)


def test_a_prompt_leaves_room_for_the_free_tokens(vit):
    longest = "bus " * (77 - 2 - FREE)
    assert opine(vit, image(), OpinionSettings(prompt=longest, steps=1, candidates=1), for_ever).steps == 1
    with pytest.raises(QueryError, match=r"too long.* by 1"):
        opine(vit, image(), OpinionSettings(prompt=longest + "bus", steps=1), for_ever)
