"""Class activation maps of CLIP's ResNets, with the target's score instead of a class: by the package grad-cam, and
Score-CAM and Ablation-CAM by functions of this file.

Hooks are added to a copy of the modules that shares the memory of the weights, so the model does not change and threads
may share it.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from text2seg.clip.encoders import encode_resnet
from text2seg.clip.model import Clip
from text2seg.errors import SettingsError
from text2seg.explain.saliency.methods import ScoreKind
from text2seg.explain.saliency.targets import Target

BATCH = 16
"""Number of masked images, or of ablated channels, in one forward of Score-CAM and Ablation-CAM."""


def class_activation_map(
    clip: Clip, pixels: Tensor, target: Target, score: ScoreKind, *, kind: str, layer: str | None = None
) -> Tensor:
    """Compute a class activation map float32 [h, w] on the grid of the layer; negative values become 0.

    The package adds 1e-6 to the denominator of Grad-CAM++ (eq. 19 of arXiv 1710.11063), which is at least 2g² for a
    gradient g > 0. This treats gradients below 0.001 as zero. The equation does not change if the gradients are divided
    by a number and the activations multiplied by it, so the package gets both with a largest gradient of 1000.

    Args:
        score: what is differentiated.
        kind: class of the package grad-cam, such as `GradCAM`.
        layer: one of `layers`; default: the last.

    Raises:
        SettingsError: the package grad-cam is not installed.
    """
    visual, module = _twin(clip, layer)
    pixels = pixels.clone().requires_grad_()
    with _class_of(kind)(model=_Cls(visual), target_layers=[module]) as cam:
        features = cam.activations_and_grads(pixels)
        value = target.objective(features, score, clip.logit_scale)
        torch.autograd.grad(value.sum(), pixels)
        activations, gradients = (
            held[0].numpy() for held in (cam.activations_and_grads.activations, cam.activations_and_grads.gradients)
        )
        if kind == "GradCAMPlusPlus":
            largest = float(np.abs(gradients).max()) / 1000 or 1.0
            activations, gradients = activations * largest, gradients / largest
        found = cam.get_cam_image(pixels, module, [target.score], activations, gradients, False)[0]
    if kind.startswith("Eigen"):
        found = _oriented(found, (activations * gradients if "Grad" in kind else activations)[0].sum(0))
    return torch.from_numpy(np.maximum(found, 0).astype(np.float32))


def score_cam(clip: Clip, pixels: Tensor, target: Target, score: ScoreKind, *, layer: str | None = None) -> Tensor:
    """Compute Score-CAM float32 [h, w]: channels weighted by the softmax of their scores.

    Source: arXiv 1910.01279, algorithm 1. The score of a channel is that of the image masked by it: the channel is
    upsampled, stretched to [0, 1] and multiplied with the normalised pixels. That takes one forward for each channel.
    The class of the package grad-cam holds all masked images at once (1.2 GB for an RN50) and prints progress bars.
    """
    visual, module = _twin(clip, layer)
    with torch.no_grad():
        channels = _activations(visual, module, pixels)[0]
        lowest, highest = channels.amin((1, 2), keepdim=True), channels.amax((1, 2), keepdim=True)
        scores = []
        for some, low, high in zip(channels.split(BATCH), lowest.split(BATCH), highest.split(BATCH), strict=True):
            upsampled = F.interpolate(some[:, None], pixels.shape[2:], mode="bilinear")[:, 0]
            masks = (upsampled - low) / torch.where(high > low, high - low, 1)
            features = encode_resnet(visual, pixels * masks[:, None], surgery=False)[:, 0]
            scores.append(target.value(features, score, clip.logit_scale))
        return _weighted(torch.cat(scores).softmax(0), channels)


def ablation_cam(clip: Clip, pixels: Tensor, target: Target, score: ScoreKind, *, layer: str | None = None) -> Tensor:
    """Compute Ablation-CAM float32 [h, w]: channels weighted by the share of the score y lost without them.

    Source: 10.1109/WACV45572.2020.9093360. The weight of channel k is (y − y_k) / |y|. The paper divides by y, which is
    positive there. Scores of CLIP may be negative, and the sign of the map must not depend on that; the class of the
    package grad-cam divides by y. It takes one forward from the layer on for each channel.
    """
    visual, module = _twin(clip, layer)
    with torch.no_grad():
        activations = _activations(visual, module, pixels)
        changed = activations
        handle = module.register_forward_hook(lambda *_: changed)
        scores = []
        # The trunk before the layer sees one image; the hook replaces its activations by a batch of ablated ones.
        for some in torch.arange(activations.shape[1], device=pixels.device).split(BATCH):
            changed = activations.repeat(len(some), 1, 1, 1)
            changed[torch.arange(len(some), device=pixels.device), some] = 0
            features = encode_resnet(visual, pixels, surgery=False)[:, 0]
            scores.append(target.value(features, score, clip.logit_scale))
        handle.remove()
        whole = target.value(encode_resnet(visual, pixels, surgery=False)[:, 0], score, clip.logit_scale)
        drops = whole - torch.cat(scores)
        return _weighted(drops / torch.where(whole == 0, 1, whole.abs()), activations[0])


def full_grad(clip: Clip, pixels: Tensor, target: Target, score: ScoreKind) -> Tensor:
    """Compute FullGrad float32 [H, W] on the grid of the pixels.

    Source: arXiv 1905.00780. The maps are the absolute values of input times gradient and, for each channel of each
    convolution and batch norm, of bias times gradient. Each is stretched to [0, 1] and upsampled; all are summed.
    Biases of the attention pool belong to no place of the image and are left out. The package grad-cam gives biases
    and gradients; it upsamples every channel before it sums them, which needs much memory and gives the same.

    Raises:
        SettingsError: the package grad-cam is not installed.
    """
    visual, _ = _twin(clip, None)
    pixels = pixels.clone().requires_grad_()
    with _class_of("FullGrad")(model=_Cls(visual), target_layers=[]) as cam:
        features = cam.activations_and_grads(pixels)
        value = target.objective(features, score, clip.logit_scale)
        (by_pixel,) = torch.autograd.grad(value.sum(), pixels)
        found = _stretched((by_pixel * pixels.detach())[0]).sum(0)
        for bias, gradient in zip(cam.bias_data, cam.activations_and_grads.gradients, strict=True):
            summed = _stretched(torch.from_numpy(bias)[:, None, None] * gradient[0]).sum(0)
            found += F.interpolate(summed[None, None], pixels.shape[2:], mode="bilinear")[0, 0].to(found.device)
    return found


def layers(clip: Clip) -> tuple[str, ...]:
    """Return the layers of a ResNet for class activation maps: the ReLUs of its blocks, in order. Empty for a ViT."""
    if clip.is_vit:
        return ()
    modules = clip.model.visual.named_modules()
    return tuple(name for name, module in modules if name.startswith("layer") and isinstance(module, nn.ReLU))


class _Cls(nn.Module):
    """Module that returns CLIP's features of an image; the package needs a module."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, pixels: Tensor) -> Tensor:
        return encode_resnet(self.visual, pixels, surgery=False)[:, 0]


def _twin(clip: Clip, layer: str | None) -> tuple[nn.Module, nn.Module]:
    """Copy the modules without copying the weights; no parameter of the copy takes gradients. Return the copy, and the
    module of the layer (default: the last of `layers`) in it."""
    visual: nn.Module = clip.model.visual
    shared: dict[int, Tensor] = {id(each): nn.Parameter(each.detach(), False) for each in visual.parameters()}
    shared |= {id(each): each for each in visual.buffers()}
    twin = copy.deepcopy(visual, shared)
    return twin, twin.get_submodule(layer or layers(clip)[-1])


def _activations(visual: nn.Module, module: nn.Module, pixels: Tensor) -> Tensor:
    """Return the output float [1, C, h, w] of a module."""
    kept: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    encode_resnet(visual, pixels, surgery=False)
    handle.remove()
    return kept[0]


def _weighted(weights: Tensor, channels: Tensor) -> Tensor:
    """Return the sum of the channels float [C, h, w] times their weights [C]; negative values become 0."""
    return torch.einsum("c,chw->hw", weights, channels.float()).clamp(min=0)


def _stretched(channels: Tensor) -> Tensor:
    """Return the absolute values of channels float [C, h, w], each channel stretched to [0, 1]; a constant one is 0."""
    size = channels.abs()
    lowest, highest = size.amin((1, 2), keepdim=True), size.amax((1, 2), keepdim=True)
    return (size - lowest) / torch.where(highest > lowest, highest - lowest, 1)


def _oriented(component: np.ndarray, sum_of_channels: np.ndarray) -> np.ndarray:
    """Choose the sign of a principal component so that it correlates with the sum of the channels."""
    along = float(((component - component.mean()) * (sum_of_channels - sum_of_channels.mean())).sum())
    return -component if along < 0 else component


def _class_of(kind: str) -> Any:
    try:
        import pytorch_grad_cam
    except ImportError as missing:
        raise SettingsError(
            'class activation maps need the package grad-cam: pip install "text2seg[explain]" (or: pip install '
            "grad-cam scikit-learn)"
        ) from missing
    return getattr(pytorch_grad_cam, kind)
