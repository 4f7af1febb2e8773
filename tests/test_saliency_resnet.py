"""Class activation maps of ResNets: the package gets the right layer, gradient and image, and the
model is only read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import builders
import numpy as np
import pytest
import torch
from closeness import TINY_NETWORK, assert_close
from saliency_builders import in_float64, random_target, state
from test_attention import tiny_clip
from torch.nn import functional as F

from text2seg.clip.model import preprocess
from text2seg.errors import SettingsError
from text2seg.explain.saliency.cams import layers
from text2seg.explain.saliency.methods import METHODS, methods_for, saliency

RESNET = tuple(name for name, method in METHODS.items() if "resnet" in method.kinds)
CAMS = tuple(name for name in RESNET if name not in ("raw", "surgery"))


@pytest.fixture(scope="module")
def clip():
    return tiny_clip("resnet")


@pytest.fixture(scope="module")
def image():
    return builders.image((40, 56))


@pytest.fixture(scope="module")
def target(clip):
    return random_target(clip)


@pytest.fixture(scope="module")
def by_hand(clip, image, target):
    """Activations of the last layer and the logit's gradient by them, float64 [channels, 2, 2]: the trunk is CLIP's,
    and so is the pool, which fits the size that the model was trained on."""
    visual = in_float64(clip.model.visual)
    x = preprocess(image, (64, 64)).double()[None]
    for number in (1, 2, 3):
        conv, norm = getattr(visual, f"conv{number}"), getattr(visual, f"bn{number}")
        x = F.relu(norm(conv(x)))
    x = visual.avgpool(x)
    for number in (1, 2, 3, 4):
        x = getattr(visual, f"layer{number}")(x)
    x = x.detach().requires_grad_()
    cosine = F.normalize(visual.attnpool(x), dim=-1)[0] @ target.features.double()
    (gradient,) = torch.autograd.grad(clip.model.logit_scale.exp().double() * cosine, x)
    return x.detach()[0].numpy(), gradient[0].numpy()


NAIVE = {  # of one channel: activations and gradients [h, w]
    "gradcam": lambda a, g: g.mean() * a,
    "hirescam": lambda a, g: g * a,
    "layercam": lambda a, g: np.maximum(g, 0) * a,
    "gradcam-elementwise": lambda a, g: np.maximum(g * a, 0),
    "xgradcam": lambda a, g: (g * a).sum() / (a.sum() + 1e-7) * a,
}


@pytest.mark.parametrize("name", NAIVE)
def test_maps_by_hand(clip, image, target, by_hand, name):
    channels = [NAIVE[name](a, g) for a, g in zip(*by_hand, strict=True)]
    expected = np.maximum(np.sum(channels, 0), 0)
    found = saliency(clip, image, target, name)
    assert_close(found, expected, terms=TINY_NETWORK, scale=float(np.abs(channels).sum(0).max()))
    assert float(expected.max()) > 0


def test_principal_components_go_the_way_of_their_channels(clip, image, target, by_hand):
    activations, gradient = by_hand
    for name, channels in (("eigencam", activations), ("eigengradcam", activations * gradient)):
        centred = channels.reshape(len(channels), -1).T
        centred = centred - centred.mean(0)
        component = centred @ np.linalg.svd(centred)[2][0]
        if component @ channels.sum(0).ravel() < 0:
            component = -component
        found = saliency(clip, image, target, name).ravel()
        np.testing.assert_allclose(found, np.maximum(component, 0), rtol=0, atol=1e-3 * component.max())


@pytest.mark.parametrize("name", RESNET)
def test_the_model_is_only_read(image, target, name):
    clip = tiny_clip("resnet")
    for training in (False, True):
        clip.model.requires_grad_(training)
        for parameter in clip.model.parameters():
            parameter.grad = torch.ones_like(parameter) if training else None
        before = state(clip.model)
        saliency(clip, image, target, name, size=(96, 64))
        assert state(clip.model) == before


@pytest.mark.parametrize("name", RESNET)
def test_rectangles_threads_and_inference_mode(clip, image, target, name):
    alone = saliency(clip, image, target, name, size=(64, 96))
    assert alone.shape == (2, 3)
    assert bool(np.isfinite(alone).all())
    with torch.inference_mode():
        np.testing.assert_array_equal(saliency(clip, image, target, name, size=(64, 96)), alone)
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda _: saliency(clip, image, target, name, size=(64, 96)), range(4))
        assert all(np.array_equal(each, alone) for each in found)


def test_layers_can_be_chosen(clip, image, target):
    assert layers(clip)[-3:] == ("layer4.0.relu1", "layer4.0.relu2", "layer4.0.relu3")
    last = saliency(clip, image, target, "gradcam")
    np.testing.assert_array_equal(saliency(clip, image, target, "gradcam", layer="layer4.0.relu3"), last)
    assert saliency(clip, image, target, "gradcam", layer="layer3.0.relu3").shape == (4, 4)
    with pytest.raises(SettingsError, match=r"gradcam has no layer 'layer9'.*layer1.0.relu1, .*layer4.0.relu3"):
        saliency(clip, image, target, "gradcam", layer="layer9")
    with pytest.raises(SettingsError, match=r"surgery has no layer"):
        saliency(clip, image, target, "surgery", layer="layer4.0.relu3")


def test_negative_shows_other_places(clip, image, target):
    for name in ("gradcam", "hirescam"):
        positive, negative = (saliency(clip, image, target, name, negative=each) for each in (False, True))
        assert float((positive * negative).max()) == 0
        assert float(negative.max()) > 0
    with pytest.raises(SettingsError, match="eigencam shows the same for every target"):
        saliency(clip, image, target, "eigencam", negative=True)


def test_transformers_methods_are_refused(clip, image, target):
    assert methods_for(clip) == RESNET
    assert {"gradcam", "raw", "surgery"} < set(RESNET)
    with pytest.raises(SettingsError, match=r"legrad is .* for other CLIPs than this; this ResNet can do gradcam, "):
        saliency(clip, image, target, "legrad")
