"""Every saliency method of vision transformers against naive float64 formulas, with gradients by finite differences, on
a tiny random CLIP and a grid of 2 × 3. No method changes the model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import builders
import numpy as np
import pytest
import torch
from closeness import TINY_NETWORK, assert_close
from saliency_builders import Naive, in_float64, random_target, state
from test_attention import ALONE, tiny_clip
from test_attention import naive as naive_rule

from text2seg.clip.encoders import encode_vit
from text2seg.clip.model import Clip, preprocess
from text2seg.clip.text import encode_tokens, tokenize
from text2seg.errors import CheckpointError, SettingsError
from text2seg.explain.saliency.methods import METHODS, MethodName, check_method, methods_for, saliency
from text2seg.explain.saliency.targets import image_target, score, words_target
from text2seg.explain.saliency.trace import trace_text, trace_vit
from text2seg.runtime import Precision

CPU = torch.device("cpu")
GRID, SIZE = (2, 3), (32, 48)
VIT = tuple(name for name, method in METHODS.items() if "vit" in method.kinds)
BY_GRADIENT = ("gradcam", "gradcam-heads", "relevance", "relevance-last-grad", "legrad")


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


@pytest.fixture(scope="module")
def image():
    return builders.image((40, 56))


@pytest.fixture(scope="module")
def naive(clip, image):
    return Naive(clip.model.visual, preprocess(image, SIZE), GRID)


@pytest.fixture(scope="module")
def target(clip):
    return random_target(clip)


@pytest.fixture(scope="module")
def by_cls(naive, target):
    """Gradients of the cosine of CLS by the attention of every block."""
    return [naive.gradient(index, lambda tokens: naive.cosine(tokens[-1][0], target)) for index in range(4)]


# --- the formulas once more, as slow and plain as can be ----------------------------------------------------------


def positive_mean(gradient, attention):
    heads, count, _ = attention.shape
    mean = np.zeros((count, count))
    for h, i, j in np.ndindex(attention.shape):
        mean[i, j] += max(gradient[h, i, j] * attention[h, i, j], 0) / heads
    return mean


def carried(gradients, attentions):
    relevance = np.eye(attentions[0].shape[1])
    for gradient, attention in zip(gradients, attentions, strict=True):
        relevance = relevance + positive_mean(gradient, attention) @ relevance
    return relevance[0, 1:]


def naive_gradcam(gradient, attention):
    heads, count, _ = attention.shape
    found = np.zeros(count - 1)
    for h in range(heads):
        weight = sum(gradient[h, 0, j] for j in range(1, count)) / (count - 1)
        for j in range(1, count):
            found[j - 1] += weight * attention[h, 0, j] / heads
    return np.maximum(found, 0)


def naive_rollout(attentions):
    mixed = np.eye(attentions[0].shape[1])
    for attention in attentions:
        mixed = (0.5 * attention.mean(0) + 0.5 * np.eye(len(mixed))) @ mixed
    return mixed[0, 1:]


def naive_legrad(score, naive, target, attentions):
    found = np.zeros(len(attentions[0][0]) - 1)
    for index in (2, 3):
        gradient = naive.gradient(index, lambda tokens, at=index: score(tokens[at].mean(0), target))
        heads, count, _ = gradient.shape
        for h, i, j in np.ndindex(gradient.shape):
            if j:
                found[j - 1] += max(gradient[h, i, j], 0) / (heads * count)
    return found


def near(found, expected):
    assert_close(found.ravel(), expected, terms=2 * TINY_NETWORK)
    assert float(np.ptp(expected)) > 0


# ------------------------------------------------------------------------------------------------------------------


def test_attention_methods_against_float64(clip, image, target, naive):
    attentions, _ = naive.run()
    near(saliency(clip, image, target, "attention", size=SIZE), attentions[-1].mean(0)[0, 1:])
    near(saliency(clip, image, target, "rollout", size=SIZE), naive_rollout(attentions))


@pytest.mark.parametrize("kind", ["cosine", "logit", "dot"])
def test_gradient_methods_against_float64(clip, image, target, naive, kind):
    attentions, _ = naive.run()
    scale = float(clip.model.logit_scale.exp()) if kind == "logit" else 1

    def score(token, target):
        return (naive.dot if kind == "dot" else naive.cosine)(token, target) * scale

    by_cls = [naive.gradient(index, lambda tokens: score(tokens[-1][0], target)) for index in range(4)]
    last = [by_cls[-1]]
    expected = {
        "gradcam": positive_mean(by_cls[-1], attentions[-1])[0, 1:],
        "gradcam-heads": naive_gradcam(by_cls[-1], attentions[-1]),
        "relevance": carried(by_cls, attentions),
        "relevance-last-grad": carried(last * 4, attentions),
        "legrad": naive_legrad(score, naive, target, attentions),
    }
    assert set(expected) == set(BY_GRADIENT)
    for name, values in expected.items():
        found = saliency(clip, image, target, name, size=SIZE, score=kind)
        assert (found.shape, found.dtype) == (GRID, np.float32)
        near(found, values)
        if METHODS[name].score["vit"] == kind:
            np.testing.assert_array_equal(saliency(clip, image, target, name, size=SIZE), found)
    for start in (0, 2, -1):
        found = saliency(clip, image, target, "relevance", size=SIZE, score=kind, start_block=start)
        near(found, carried(by_cls[start:], attentions[start:]))
        found = saliency(clip, image, target, "relevance-last-grad", size=SIZE, score=kind, start_block=start)
        near(found, carried((last * 4)[start:], attentions[start:]))


def test_authors_scores_are_the_defaults():
    """Chefer et al. differentiate the logit, LeGrad the cosine, Grad-CAM a score before any normalisation."""
    scores = {name: dict(METHODS[name].score) for name in ("gradcam", "relevance", "legrad", "gradcam++", "surgery")}
    assert scores == {
        "gradcam": {"vit": "logit", "resnet": "dot"},
        "relevance": {"vit": "logit"},
        "legrad": {"vit": "cosine"},
        "gradcam++": {"resnet": "logit"},
        "surgery": {},
    }


def test_alias_gives_the_same_method(clip, image, target):
    assert check_method(clip, "relevance-last") is METHODS["gradcam"]
    found = saliency(clip, image, target, "relevance-last", size=SIZE)
    np.testing.assert_array_equal(found, saliency(clip, image, target, "relevance", size=SIZE, start_block=-1))


@pytest.mark.parametrize("name", BY_GRADIENT[:-1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_image_against_itself_has_no_cosine_gradient_but_a_dot_gradient(clip, image, name, dtype):
    """The cosine is at its maximum, so its gradient would be rounding noise."""
    own = Clip(clip.model, device=CPU, precision=Precision(dtype, "test"))
    target = image_target(own, image, size=SIZE)
    for kind in ("cosine", "logit"):
        assert not saliency(own, image, target, name, size=SIZE, score=kind).any()
    dot = saliency(own, image, target, name, size=SIZE, score="dot")
    assert float(dot.max()) > 1e-3 * float(np.abs(saliency(own, image, random_target(clip), name, size=SIZE)).max())
    assert float(dot.max()) > 0


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("surgery", {"score": "dot"}, "surgery takes no gradient of a score"),
        ("attention", {"score": "cosine"}, "attention takes no gradient"),
        ("legrad", {"start_block": 1}, "legrad has no start block; .*: relevance, relevance-last-grad"),
        ("relevance", {"start_block": 4}, "start_block must be from -4 to 3 for this CLIP, got 4"),
        ("relevance", {"start_block": -5}, "start_block must be from -4 to 3"),
    ],
)
def test_unsuitable_score_or_block_is_refused(clip, image, target, method, options, message):
    with pytest.raises(SettingsError, match=message):
        saliency(clip, image, target, method, size=SIZE, **options)


def test_weighted_words_have_no_dot_product(clip, image):
    words = words_target(clip, {"joy": 0.7, "fear": 0.3}, ("{}",))
    with pytest.raises(SettingsError, match="weighted words have no dot product"):
        saliency(clip, image, words, "relevance", size=SIZE, score="dot")
    cosine, logit = (saliency(clip, image, words, "gradcam", size=SIZE, score=kind) for kind in ("cosine", "logit"))
    scale = float(clip.model.logit_scale.exp())
    assert_close(logit, cosine * scale, terms=TINY_NETWORK)


def test_negative_uses_the_gradient_of_one_minus_cosine(clip, image, target, naive, by_cls):
    attentions, _ = naive.run()
    against = [-gradient for gradient in by_cls]
    negative = saliency(clip, image, target, "relevance", size=SIZE, negative=True, score="cosine")
    near(negative, carried(against, attentions))
    surgery = saliency(clip, image, target, "surgery", size=SIZE)
    np.testing.assert_array_equal(saliency(clip, image, target, "surgery", size=SIZE, negative=True), -surgery)


@pytest.mark.parametrize("name", ALONE)
def test_similarity_maps_are_cosines_of_patches(clip, image, target, name):
    tokens = naive_rule(in_float64(clip.model.visual), preprocess(image, SIZE).double(), name)[1:]
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    near(saliency(clip, image, target, name, size=SIZE), unit @ target.features.double().numpy())


@pytest.mark.parametrize("name", VIT)
def test_model_is_unchanged(image, target, name):
    """This includes a model in training, between backward and step."""
    clip = tiny_clip()
    for training in (False, True):
        clip.model.requires_grad_(training)
        for parameter in clip.model.parameters():
            parameter.grad = torch.ones_like(parameter) if training else None
        before = state(clip.model)
        saliency(clip, image, target, name, size=SIZE)
        assert state(clip.model) == before


@pytest.mark.parametrize("name", VIT)
def test_bf16_is_finite_and_close(clip, image, target, name):
    half = Clip(clip.model, device=CPU, precision=Precision(torch.bfloat16, "test"))
    found, exact = (saliency(each, image, target, name, size=SIZE) for each in (half, clip))
    assert bool(np.isfinite(found).all())
    assert np.abs(found - exact).max() < 0.1 * np.abs(exact).max()


def test_fp16_computes_gradients_in_float32(clip, image, target):
    """The smallest fp16 number is 6e-8, and gradients of attention are often smaller."""
    half = Clip(clip.model, device=CPU, precision=Precision(torch.float16, "test"))
    for name in BY_GRADIENT:
        found, exact = (saliency(each, image, target, name, size=SIZE) for each in (half, clip))
        np.testing.assert_array_equal(found, exact)


@pytest.mark.parametrize("name", VIT)
def test_inference_mode_threads_and_other_sizes_change_nothing(clip, image, target, name):
    alone = saliency(clip, image, target, name, size=SIZE)
    assert saliency(clip, image, target, name).shape == (4, 4)  # as trained
    with torch.inference_mode():
        np.testing.assert_array_equal(saliency(clip, image, target, name, size=SIZE), alone)
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda _: saliency(clip, image, target, name, size=SIZE), range(4))
        assert all(np.array_equal(each, alone) for each in found)


def test_gradients_start_at_the_given_block_and_cost_nothing_before(clip, image):
    pixels = preprocess(image, SIZE)[None]
    trace = trace_vit(clip.model.visual, pixels, first=-2)
    assert [each.requires_grad for each in trace.attentions] == [False, False, True, True]
    assert not any(each.requires_grad for each in trace_vit(clip.model.visual, pixels, first=None).attentions)
    assert all(each.requires_grad for each in trace_vit(clip.model.visual, pixels).attentions)


def test_trace_equals_the_unchanged_forward(clip, image, target):
    pixels = preprocess(image, SIZE)[None]
    trace = trace_vit(clip.model.visual, pixels)
    assert_close(trace.features, encode_vit(clip.model.visual, pixels, blocks=0), terms=TINY_NETWORK)
    cosine = torch.nn.functional.normalize(trace.features[:, 0], dim=-1) @ target.features
    assert_close(cosine, score(clip, pixels, target), terms=TINY_NETWORK, scale=1)
    for attention in trace.attentions:
        assert_close(attention.sum(-1), torch.ones(1, 2, 7), terms=7)


def test_text_trace_equals_the_unchanged_forward_and_takes_any_embedding(clip):
    model = clip.model
    tokens, _ = tokenize(["a dog.", "a photo of a red fire engine."], 77)
    length = int(tokens.argmax(1).max()) + 1
    embeddings = model.token_embedding(tokens[:, :length]).detach().requires_grad_()
    before = state(model)
    trace = trace_text(model, embeddings, tokens.argmax(1))
    unit = torch.nn.functional.normalize(trace.features, dim=-1)
    assert_close(unit, encode_tokens(model, tokens), terms=TINY_NETWORK)
    assert all(not bool(attention.triu(1).any()) for attention in trace.attentions)
    (soft, last) = torch.autograd.grad(unit[:, 0].sum(), [embeddings, trace.attentions[-1]])
    assert float(soft.abs().max()) > 0
    assert float(last.abs().max()) > 0
    assert state(model) == before


def test_settings_list_every_method_and_every_method_has_a_source():
    assert get_args(MethodName) == (*METHODS, "relevance-last")
    for name, method in METHODS.items():
        assert method.name == name
        assert method.summary
        assert "arXiv" in method.source or "10." in method.source


def test_unsupported_method_or_layer_raises_and_lists_supported_ones(clip, image, target):
    assert methods_for(clip) == VIT
    with pytest.raises(
        SettingsError, match=r"layercam is for other kinds of CLIP; this ViT supports attention, .*, gem"
    ):
        saliency(clip, image, target, "layercam")
    with pytest.raises(SettingsError, match="there is no saliency method smoothgrad; this ViT supports attention"):
        check_method(clip, "smoothgrad")
    with pytest.raises(SettingsError, match=r"gradcam has no layer 'layer4.0.relu3'.*none with this CLIP"):
        saliency(clip, image, target, "gradcam", layer="layer4.0.relu3")
    for name in ("attention", "rollout"):
        with pytest.raises(SettingsError, match=f"{name} ignores the target"):
            saliency(clip, image, target, name, negative=True)


def test_negative_raises_for_methods_that_ignore_the_target(clip, image, target):
    other = random_target(clip, seed=1)
    for name in VIT:
        same = np.array_equal(*(saliency(clip, image, each, name, size=SIZE) for each in (target, other)))
        assert same != METHODS[name].targeted


def test_broken_weights_raise(image, target):
    clip = tiny_clip()
    with torch.no_grad():
        clip.model.visual.proj[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="surgery map is not finite in fp32"):
        saliency(clip, image, target, "surgery")
