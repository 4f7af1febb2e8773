"""Class activation maps of ResNets: the package gets the right layer, gradient and image, and the model does not
change."""

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
from text2seg.clip.shape import shape_of
from text2seg.errors import SettingsError
from text2seg.explain.layers import LayersSettings
from text2seg.explain.recognition import SemanticSettings
from text2seg.explain.run_all import RunAllSettings
from text2seg.explain.saliency.cams import layers
from text2seg.explain.saliency.methods import METHODS, methods_for, saliency
from text2seg.explain.saliency_maps import SaliencySettings

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
    """Activations of the last layer and the gradient of the logit by them, float64 [channels, 2, 2]."""
    return activations_and_gradient(clip, image, target, "logit")


def trunk(visual, pixels):
    """Activations of the last layer, float64 [1, channels, h, w], of an OpenAI ResNet in float64."""
    x = pixels
    for number in (1, 2, 3):
        conv, norm = getattr(visual, f"conv{number}"), getattr(visual, f"bn{number}")
        x = F.relu(norm(conv(x)))
    x = visual.avgpool(x)
    for number in (1, 2, 3, 4):
        x = getattr(visual, f"layer{number}")(x)
    return x


def score_of_activations(clip, visual, x, target, kind):
    """Score of the last layer's activations; the pool fits the size that the model was trained on."""
    features = visual.attnpool(x)
    if kind != "dot":
        features = F.normalize(features, dim=-1) * (scale_of(clip) if kind == "logit" else 1)
    return features[0] @ target.features.double()


def scale_of(clip):
    return float(clip.model.logit_scale.exp())


def activations_and_gradient(clip, image, target, kind):
    """Activations of the last layer and the gradient of a score by them, float64 [channels, 2, 2].

    Trunk and pool are CLIP's; the pool fits the size that the model was trained on.
    """
    visual = in_float64(clip.model.visual)
    x = trunk(visual, preprocess(image, (64, 64)).double()[None]).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(score_of_activations(clip, visual, x, target, kind), x)
    return x.detach()[0].numpy(), gradient[0].numpy()


def upsampled(channel, side):
    """Bilinear upsampling of a square [n, n] to [side, side]: pixel centres are aligned, edges are repeated."""
    n = len(channel)
    places = ((np.arange(side) + 0.5) * n / side - 0.5).clip(0, n - 1)
    weights = np.array([np.interp(places, np.arange(n), row) for row in np.eye(n)]).T
    return weights @ channel @ weights.T


def stretched(channel):
    low, high = channel.min(), channel.max()
    return (channel - low) / (high - low) if high > low else 0 * channel


NAIVE = {  # of one channel: activations and gradients [h, w]
    "gradcam": lambda a, g: g.mean() * a,
    "hirescam": lambda a, g: g * a,
    "layercam": lambda a, g: np.maximum(g, 0) * a,
    "gradcam-elementwise": lambda a, g: np.maximum(g * a, 0),
    "xgradcam": lambda a, g: (g * a).sum() / (a.sum() + 1e-7) * a,
}


@pytest.mark.parametrize("name", NAIVE)
def test_maps_equal_formulas(clip, image, target, by_hand, name):
    channels = [NAIVE[name](a, g) for a, g in zip(*by_hand, strict=True)]
    expected = np.maximum(np.sum(channels, 0), 0)
    found = saliency(clip, image, target, name, score="logit")
    assert_close(found, expected, terms=TINY_NETWORK, scale=float(np.abs(channels).sum(0).max()))
    assert float(expected.max()) > 0


def plus_plus(activations, gradient, epsilon=0.0):
    """Grad-CAM++ by equation 19 of arXiv 1710.11063, with a number added to its denominator."""
    total = np.zeros(activations.shape[1:])
    for a, g in zip(activations, gradient, strict=True):
        rising = g[g > 0]
        total += (rising**3 / (2 * rising**2 + a.sum() * rising**3 + epsilon)).sum() * a
    return total


@pytest.mark.parametrize("kind", ["cosine", "logit", "dot"])
def test_gradcam_plus_plus_equals_the_papers_equation_for_gradients_of_any_size(clip, image, target, kind):
    """The package alone adds 1e-6 to the denominator, which takes a tenth of this map away for the cosine."""
    activations, gradient = activations_and_gradient(clip, image, target, kind)
    expected = plus_plus(activations, gradient)
    found = saliency(clip, image, target, "gradcam++", score=kind)
    assert_close(found, expected, terms=TINY_NETWORK)
    if kind == "cosine":
        assert float(plus_plus(activations, gradient, 1e-6).max()) < 0.95 * float(expected.max())


def test_score_cam_equals_a_loop_over_the_channels(clip, image, target, by_hand):
    """Softmax of the logits of the masked images. An error of a logit is a relative error of its weight."""
    activations, _ = by_hand
    visual, pixels = in_float64(clip.model.visual), preprocess(image, (64, 64)).double()
    logits = []
    for channel in activations:
        masked = pixels * torch.from_numpy(stretched(upsampled(channel, 64)))
        if (
            channel.min() < channel.max()
        ):  # upsampling does not reach the corners' centres, so the ends are the channel's
            mask = (upsampled(channel, 64) - channel.min()) / (channel.max() - channel.min())
            masked = pixels * torch.from_numpy(mask)
        logits.append(float(score_of_activations(clip, visual, trunk(visual, masked[None]), target, "logit")))
    weights = np.exp(np.array(logits) - max(logits))
    expected = np.tensordot(weights / weights.sum(), activations, 1)
    found = saliency(clip, image, target, "scorecam")
    assert_close(found, expected, terms=TINY_NETWORK, scale=2 * scale_of(clip) * float(expected.max()))
    assert np.ptp(expected) > 0


@pytest.mark.parametrize("negative", [False, True])
def test_ablation_cam_equals_a_loop_over_the_channels(clip, image, target, by_hand, negative):
    """(y − y_k) / |y|. Only the size of y counts, so the map of the opposite target is the opposite map."""
    activations, _ = by_hand
    visual = in_float64(clip.model.visual)
    chosen = target.negated() if negative else target

    def logit(values):
        return float(score_of_activations(clip, visual, torch.from_numpy(values)[None], chosen, "logit"))

    whole, total = logit(activations), np.zeros(activations.shape[1:])
    for index, channel in enumerate(activations):
        without = activations.copy()
        without[index] = 0
        total += (whole - logit(without)) / abs(whole) * channel
    found = saliency(clip, image, target, "ablationcam", negative=negative)
    error = scale_of(clip) / abs(whole) * float(np.abs(activations).sum(0).max())
    assert_close(found, np.maximum(total, 0), terms=TINY_NETWORK, scale=error)
    assert bool((found > 0).any()) != negative  # here all places speak for the target


def test_full_grad_equals_a_loop_over_layers_and_channels(clip, image, target):
    visual, kept = in_float64(clip.model.visual), []
    norms = [module for module in visual.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.register_forward_hook(lambda _module, _inputs, output: kept.append(output) or output + 0)
    pixels = preprocess(image, (64, 64)).double()[None].requires_grad_()
    score = score_of_activations(clip, visual, trunk(visual, pixels), target, "logit")
    by_pixel, *gradients = (each[0].numpy() for each in torch.autograd.grad(score, [pixels, *kept]))
    expected = sum(stretched(np.abs(channel)) for channel in by_pixel * pixels.detach()[0].numpy())
    assert len(norms) == len(gradients) == 3 + 4 * 4
    for norm, gradient in zip(norms, gradients, strict=True):
        bias = norm.bias - norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt()
        for number, channel in zip(bias.tolist(), gradient, strict=True):
            expected = expected + upsampled(stretched(np.abs(number * channel)), 64)
    found = saliency(clip, image, target, "fullgrad")
    assert_close(found, expected, terms=TINY_NETWORK)


def test_full_grad_has_no_sign(clip, image, target):
    with pytest.raises(SettingsError, match="fullgrad has no sign, so it cannot show what lowers a score"):
        saliency(clip, image, target, "fullgrad", negative=True)
    with pytest.raises(SettingsError, match="fullgrad has no layer"):
        saliency(clip, image, target, "fullgrad", layer="layer4.0.relu3")


def test_sign_of_principal_components_follows_the_channels(clip, image, target, by_hand):
    activations, gradient = by_hand
    for name, channels in (("eigencam", activations), ("eigengradcam", activations * gradient)):
        centred = channels.reshape(len(channels), -1).T
        centred = centred - centred.mean(0)
        component = centred @ np.linalg.svd(centred)[2][0]
        if component @ channels.sum(0).ravel() < 0:
            component = -component
        found = saliency(clip, image, target, name).ravel()
        np.testing.assert_allclose(found, np.maximum(component, 0), rtol=0, atol=1e-3 * component.max())


def test_sign_that_the_decomposition_happens_to_give_does_not_count(clip, image, target, monkeypatch):
    """U S V and (−U) S (−V) are the same matrix, so the sign of a component is arbitrary."""
    usual = [saliency(clip, image, target, name) for name in ("eigencam", "eigengradcam")]
    decompose = np.linalg.svd

    def opposite(*args, **given):
        u, s, v = decompose(*args, **given)
        return -u, s, -v

    monkeypatch.setattr(np.linalg, "svd", opposite)
    for name, expected in zip(("eigencam", "eigengradcam"), usual, strict=True):
        np.testing.assert_array_equal(saliency(clip, image, target, name), expected)


@pytest.mark.parametrize("name", RESNET)
def test_model_is_unchanged(image, target, name):
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
    assert alone.shape == ((64, 96) if name == "fullgrad" else (2, 3))
    assert bool(np.isfinite(alone).all())
    with torch.inference_mode():
        np.testing.assert_array_equal(saliency(clip, image, target, name, size=(64, 96)), alone)
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda _: saliency(clip, image, target, name, size=(64, 96)), range(4))
        assert all(np.array_equal(each, alone) for each in found)


def test_layer_can_be_chosen(clip, image, target):
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
        positive, negative = (
            saliency(clip, image, target, name, negative=each, score="logit") for each in (False, True)
        )
        assert float((positive * negative).max()) == 0
        assert float(negative.max()) > 0
    with pytest.raises(SettingsError, match="eigencam ignores the target"):
        saliency(clip, image, target, "eigencam", negative=True)


def test_methods_of_transformers_raise(clip, image, target):
    assert methods_for(clip) == RESNET
    assert {"gradcam", "raw", "surgery"} < set(RESNET)
    assert set(RESNET) - set(methods_for(clip, slow=False)) == {"scorecam", "ablationcam"}
    with pytest.raises(SettingsError, match=r"legrad is for other kinds of CLIP; this ResNet supports gradcam, "):
        saliency(clip, image, target, "legrad")


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_the_shapes_in_a_file_tell_what_the_loaded_clip_does(kind, tmp_path):
    clip = tiny_clip(kind)
    torch.save(clip.model.state_dict(), tmp_path / "clip.pt")
    shape = shape_of(str(tmp_path / "clip.pt"))
    assert shape is not None
    assert shape.relus == layers(clip)
    for name in ("is_vit", "stride", "blocks", "text_blocks", "context_length"):
        assert getattr(shape, name) == getattr(clip, name)
    assert methods_for(shape) == methods_for(clip)


def test_a_setting_for_vits_is_refused_from_the_file_of_a_resnet(tmp_path):
    torch.save(tiny_clip("resnet").model.state_dict(), tmp_path / "clip.pt")
    shape = shape_of(str(tmp_path / "clip.pt"))
    assert shape is not None
    for settings in (
        LayersSettings(text=("sheep",)),
        SaliencySettings(method="legrad"),
        RunAllSettings(method="gem"),
        SemanticSettings(architecture="gem"),
    ):
        with pytest.raises(SettingsError, match="ResNet"):
            settings.check_clip(shape)
    SaliencySettings(method="gradcam", layer="layer4.0.relu2").check_clip(shape)
    (tmp_path / "notes.pt").write_text("no weights")
    assert shape_of(str(tmp_path / "notes.pt")) is None
    assert shape_of("openclip:ViT-B-16/laion2b_s34b_b88k") is None
