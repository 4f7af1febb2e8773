"""Targets of saliency maps, and the errors for bad ones."""

from __future__ import annotations

import math

import builders
import numpy as np
import pytest
import torch
from closeness import TINY_NETWORK, about, assert_close
from test_attention import tiny_clip
from torch.nn import functional as F

from text2seg.clip.model import preprocess
from text2seg.errors import QueryError
from text2seg.explain.saliency.methods import methods_for, saliency
from text2seg.explain.saliency.targets import image_target, score, text_target, words_target
from text2seg.templates import TEMPLATES
from text2seg.vocabulary import ClosedVocabulary

SHORT = ("a {}.",)


@pytest.fixture(scope="module", params=["vit", "resnet"])
def clip(request):
    return tiny_clip(request.param)


def test_text_target_is_the_mean_over_templates(clip):
    assert_close(text_target(clip, "dog").features, clip.encode_texts(["dog"], TEMPLATES)[0], terms=TINY_NETWORK)
    tokens = clip.model.encode_text(torch.tensor([[49406, *clip_tokens("dog"), 49407, *[0] * 74]]))
    expected = F.normalize(tokens, dim=-1)[0]
    assert_close(text_target(clip, "dog", ("{}",)).features, expected, terms=TINY_NETWORK)


def clip_tokens(text):
    from text2seg.clip.text import tokenize

    row = tokenize([text], 77)[0][0]
    return row[1 : int(row.argmax())].tolist()


def test_image_target_equals_clips_features_at_any_size(clip):
    image, other = builders.image((40, 56)), builders.image((90, 21), file_name="other.png")
    target = image_target(clip, other)
    expected = F.normalize(clip.model.encode_image(preprocess(other, (64, 64))[None]), dim=-1)[0]
    assert_close(target.features, expected, terms=TINY_NETWORK)
    assert target.name == "other.png"
    assert float(score(clip, preprocess(other, (64, 64))[None], target)) == about(1, terms=TINY_NETWORK)
    for name in methods_for(clip):
        assert bool(np.isfinite(saliency(clip, image, target, name)).all())


def test_score_is_the_cosine_and_gradients_reach_the_pixels(clip):
    target = text_target(clip, "dog", SHORT)
    images = (builders.image((40, 56)), builders.image((24, 32)))
    pixels = torch.stack([preprocess(each, (64, 64)) for each in images])
    expected = F.normalize(clip.model.encode_image(pixels), dim=-1) @ target.features
    assert_close(score(clip, pixels, target), expected, terms=TINY_NETWORK, scale=1)
    given = pixels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(clip, given, target).sum(), given)
    assert float(gradient.abs().max()) > 0
    assert score(clip, pixels[:, :, :32, :64], target).shape == (2,)
    assert_close(score(clip, pixels, target.negated()), -expected, terms=TINY_NETWORK, scale=1)


def test_weighted_words_are_scored_as_a_distribution(clip):
    weights = {"dog": 3.0, "red car": 1.0, "tree": 0.0}
    target = words_target(clip, weights, SHORT)
    assert target.name == "dog 75%, red car 25%, tree 0%"
    pixels = preprocess(builders.image((40, 56)), (64, 64))[None]
    features = F.normalize(clip.model.encode_image(pixels), dim=-1)[0].double()
    scale = float(clip.model.logit_scale.exp())
    logits = [scale * float(features @ text.double()) for text in clip.encode_texts(list(weights), SHORT)]
    said = [math.exp(logit) / sum(map(math.exp, logits)) for logit in logits]
    divergence = 0.75 * math.log(0.75 / said[0]) + 0.25 * math.log(0.25 / said[1])
    assert float(score(clip, pixels, target)) == about(-divergence, terms=TINY_NETWORK, scale=scale)
    assert float(score(clip, pixels, target.negated())) == about(divergence, terms=TINY_NETWORK, scale=scale)
    assert target.probabilities(features.float()).tolist() == about(said, terms=TINY_NETWORK, scale=scale)
    mean = F.normalize(0.75 * target.texts[0] + 0.25 * target.texts[1], dim=0)
    assert_close(target.features, mean, terms=32)
    same = words_target(clip, dict(zip(weights, (0.3, 0.1, 0.0), strict=True)), SHORT)
    assert_close(same.shares, target.shares, terms=3)
    for name in methods_for(clip):
        assert bool(np.isfinite(saliency(clip, builders.image((40, 56)), target, name)).all())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"dog": 1.0}, "needs two or more"),
        ({"dog": 1.0, "cat": -0.5}, "must be 0 or more"),
        ({"dog": 1.0, "cat": math.nan}, "must be 0 or more"),
        ({"dog": 0.0, "cat": 0.0}, "needs a weight above 0"),
        ({"dog": 1.0, " ": 1.0}, "must not be empty"),
    ],
)
def test_bad_weights_raise(weights, message):
    with pytest.raises(QueryError, match=message):
        words_target(tiny_clip(), weights, SHORT)


def test_unusable_texts_raise():
    clip = tiny_clip()
    for empty in ("", " \n"):
        with pytest.raises(QueryError, match="a text must not be empty"):
            text_target(clip, empty)
    long = "dog " * 75
    text_target(clip, long, ("{}",))
    with pytest.raises(QueryError, match=r"'dog dog .*…' is too long: CLIP reads 77 tokens; shorten it by 1"):
        text_target(clip, long + "dog", ("{}",))
    with pytest.raises(QueryError, match="too long"):
        text_target(clip, long, SHORT)
    with pytest.raises(QueryError, match=r"does not know 'dgo'\. Did you mean dog\?"):
        text_target(clip, "dgo", SHORT, closed_vocabulary=ClosedVocabulary({"dog": ["dog"]}))
    text_target(clip, "a big dog", SHORT, closed_vocabulary=ClosedVocabulary({"dog": ["dog"]}))
