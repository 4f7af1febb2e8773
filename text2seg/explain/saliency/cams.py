"""Class activation maps of CLIP's ResNets, by the package grad-cam, with the target's score in place of a class.

The package hooks into the modules that it looks at. It gets modules of its own, which share the weights' memory with
the model's, so the model stays untouched and threads may share it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from text2seg.clip.model import Clip
from text2seg.clip.resnet import encode_resnet
from text2seg.errors import SettingsError
from text2seg.explain.saliency.targets import Target


@dataclass(frozen=True, slots=True)
class Cam:
    """One of grad-cam's methods, by the name of its class, at one of `layers`; default: the last."""

    kind: str
    layer: str | None = None

    def __call__(self, clip: Clip, pixels: Tensor, target: Target) -> Tensor:
        """float32 [h, w] on the layer's grid; what speaks against the target is 0."""
        visual = _twin(clip.model.visual)
        layer = visual.get_submodule(self.layer or layers(clip)[-1])
        pixels = pixels.clone().requires_grad_()
        with _class_of(self.kind)(model=_Cls(visual), target_layers=[layer]) as cam:
            features = cam.activations_and_grads(pixels)
            # The logit, not the cosine: Grad-CAM++ takes gradients below about 0.001 for none.
            logit = clip.model.logit_scale.exp() * target.score(F.normalize(features, dim=-1))
            torch.autograd.grad(logit.sum(), pixels)
            activations, gradients = (
                held[0].numpy() for held in (cam.activations_and_grads.activations, cam.activations_and_grads.gradients)
            )
            found = cam.get_cam_image(pixels, layer, [target.score], activations, gradients, False)[0]
        if self.kind.startswith("Eigen"):
            found = _oriented(found, (activations * gradients if "Grad" in self.kind else activations)[0].sum(0))
        return torch.from_numpy(np.maximum(found, 0).astype(np.float32))


def layers(clip: Clip) -> tuple[str, ...]:
    """The layers of a ResNet that a `Cam` can look at, first to last: the ReLUs of its blocks. None for a ViT."""
    if clip.is_vit:
        return ()
    modules = clip.model.visual.named_modules()
    return tuple(name for name, module in modules if name.startswith("layer") and isinstance(module, nn.ReLU))


class _Cls(nn.Module):
    """CLIP's own features of an image, as a module, which is what the package takes."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, pixels: Tensor) -> Tensor:
        return encode_resnet(self.visual, pixels, surgery=False)[:, 0]


def _twin(visual: nn.Module) -> nn.Module:
    """The same modules once more, on the same memory, without a gradient on any parameter."""
    shared: dict[int, Tensor] = {id(each): nn.Parameter(each.detach(), False) for each in visual.parameters()}
    shared |= {id(each): each for each in visual.buffers()}
    return copy.deepcopy(visual, shared)


def _oriented(component: np.ndarray, sum_of_channels: np.ndarray) -> np.ndarray:
    """A principal component has no sign of its own; this one goes the way that its channels do together."""
    along = float(((component - component.mean()) * (sum_of_channels - sum_of_channels.mean())).sum())
    return -component if along < 0 else component


def _class_of(kind: str) -> Any:
    try:
        import pytorch_grad_cam
    except ImportError as missing:
        raise SettingsError(
            'this needs the package grad-cam: pip install "text2seg[explain]" (or: pip install grad-cam scikit-learn)'
        ) from missing
    return getattr(pytorch_grad_cam, kind)
