"""The table of saliency methods and the one way to call them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from text2seg.clip.model import Clip, preprocess
from text2seg.errors import CheckpointError, SettingsError
from text2seg.explain.saliency import vit
from text2seg.explain.saliency.cams import Cam, layers
from text2seg.explain.saliency.targets import Target
from text2seg.explain.saliency.vit import legrad, similarity
from text2seg.records import Image
from text2seg.runtime import FULL, autocast

Kind = Literal["vit", "resnet"]
Compute = Callable[[Clip, Tensor, Target], Tensor]


@dataclass(frozen=True, slots=True)
class Method:
    """A saliency method: its name, what it shows in a line, the paper, and for each kind of CLIP that it can look into
    a function from the CLIP, normalised pixels float32 [1, 3, H, W] and a target to a map float32 [gh, gw]."""

    name: str
    summary: str
    source: str
    compute: Mapping[Kind, Compute]
    targeted: bool = True
    """Whether the map depends on the target at all."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return tuple(self.compute)


def _rule(name: str, summary: str, source: str, *kinds: Kind) -> Method:
    return Method(name, summary, source, dict.fromkeys(kinds or ("vit",), partial(similarity, rule=name)))


def _cam(name: str, summary: str, source: str, kind: str, *, targeted: bool = True) -> Method:
    return Method(name, summary, source, {"resnet": Cam(kind)}, targeted)


_TABLE = (
    Method(
        "attention",
        "what the last block's CLS attends to, whatever the target",
        "arXiv 2010.11929",
        {"vit": vit.attention},
        targeted=False,
    ),
    Method(
        "rollout",
        "the attention of all blocks multiplied, whatever the target",
        "arXiv 2005.00928",
        {"vit": vit.rollout},
        targeted=False,
    ),
    Method(
        "gradcam",
        "the last layer's channels (ViT: the last block's heads), weighted by their mean gradient",
        "arXiv 1610.02391",
        {"vit": vit.gradcam, "resnet": Cam("GradCAM")},
    ),
    Method(
        "relevance-last",
        "the last block's attention times its gradient, where positive",
        "arXiv 2103.15679",
        {"vit": vit.relevance_last},
    ),
    Method(
        "relevance",
        "attention times gradient, where positive, carried through all blocks",
        "arXiv 2103.15679",
        {"vit": vit.relevance},
    ),
    Method(
        "relevance-last-grad",
        "all blocks' attention, each weighted by the last block's gradient",
        "a variant of arXiv 2103.15679",
        {"vit": vit.relevance_last_grad},
    ),
    Method("legrad", "gradient of the last blocks' answers by their attention", "arXiv 2404.03214", {"vit": legrad}),
    _rule("raw", "cosine of CLIP's patches as they are", "arXiv 2103.00020", "vit", "resnet"),
    _rule("maskclip", "cosine of patches that do not look at one another", "arXiv 2112.01071"),
    _rule("surgery", "cosine of patches by CLIP Surgery's value-value attention", "arXiv 2304.05653", "vit", "resnet"),
    _rule("sclip", "cosine of patches by query-query and key-key attention", "arXiv 2312.01597"),
    _rule("clearclip", "cosine of patches by query-query attention alone", "arXiv 2407.12442"),
    _rule("naclip", "cosine of patches by key-key attention that prefers neighbours", "arXiv 2404.08181"),
    _rule("gem", "cosine of patches by an ensemble of self-self attention", "arXiv 2312.00878"),
    _cam("gradcam++", "Grad-CAM that weighs by positive gradients alone", "arXiv 1710.11063", "GradCAMPlusPlus"),
    _cam("xgradcam", "Grad-CAM that weighs gradients by activations", "arXiv 2008.02312", "XGradCAM"),
    _cam("hirescam", "gradient times activation in every cell", "arXiv 2011.08891", "HiResCAM"),
    _cam(
        "gradcam-elementwise",
        "gradient times activation in every cell, where positive",
        "a variant of arXiv 1610.02391",
        "GradCAMElementWise",
    ),
    _cam("layercam", "activation in every cell times its positive gradient", "10.1109/TIP.2021.3089943", "LayerCAM"),
    _cam(
        "eigencam",
        "the activations' first principal component, whatever the target",
        "arXiv 2008.00299",
        "EigenCAM",
        targeted=False,
    ),
    _cam(
        "eigengradcam",
        "the first principal component of gradient times activation",
        "a variant of arXiv 2008.00299",
        "EigenGradCAM",
    ),
)

METHODS: Mapping[str, Method] = {method.name: method for method in _TABLE}


def methods_for(clip: Clip) -> tuple[str, ...]:
    """The names of the methods that this CLIP can do, in the table's order."""
    return tuple(name for name, method in METHODS.items() if _kind(clip) in method.compute)


def check_method(clip: Clip, name: str, layer: str | None = None) -> Method:
    """The method of this name.

    Raises:
        SettingsError: there is none, this CLIP cannot do it, or not at that layer; names what it can.
    """
    if name not in methods_for(clip):
        what = (
            f"{name} is a saliency method for other CLIPs than this" if name in METHODS else f"{name}: no such method"
        )
        raise SettingsError(f"{what}; this {'ViT' if clip.is_vit else 'ResNet'} can do {', '.join(methods_for(clip))}")
    if layer is not None and layer not in _layers(clip, METHODS[name]):
        choices = ", ".join(_layers(clip, METHODS[name]))
        raise SettingsError(f"{name} has no layer {layer!r} to look at: {choices or 'with this CLIP it has no choice'}")
    return METHODS[name]


def saliency(
    clip: Clip,
    image: Image,
    target: Target,
    method: str,
    *,
    size: int | tuple[int, int] | None = None,
    negative: bool = False,
    layer: str | None = None,
) -> NDArray[np.float32]:
    """Where in the image the score of the target comes from. The model is only read; threads may share it.

    Args:
        size: CLIP's input; default: what it was trained on.
        negative: what speaks against the target instead.
        layer: which layer of a ResNet class activation maps look at, as `layer4.2.relu3`; default: the last.

    Returns:
        float32 [gh, gw] on the grid of the method, which covers the image; not normalised, the higher the more salient.

    Raises:
        SettingsError: the method is unknown, nothing for this CLIP, or does not depend on the target and so has no
            negative; the layer is none of it.
        CheckpointError: the map is not finite, so weights or precision are unfit.
    """
    chosen = check_method(clip, method, layer)
    if negative and not chosen.targeted:
        raise SettingsError(f"{method} shows the same for every target, so nothing against one: choose another method")
    compute = chosen.compute[_kind(clip)]
    if isinstance(compute, Cam):
        compute = replace(compute, layer=layer)
    # fp16 has too little range for gradients, and the CAMs' package computes with numpy, which has no bf16.
    full = isinstance(compute, Cam) or clip.precision.dtype == torch.float16
    # A caller may be in inference mode, in which no gradient can be taken of anything.
    with torch.inference_mode(False), torch.enable_grad(), autocast(clip.device, FULL if full else clip.precision):
        pixels = preprocess(image, clip.input_hw(size))[None].to(clip.device)
        found = compute(clip, pixels, target.negated() if negative else target)
    if not bool(found.isfinite().all()):
        raise CheckpointError(f"the {method} map is not finite in {clip.precision.name}; try precision fp32")
    return np.ascontiguousarray(found.detach().float().cpu().numpy())


def _kind(clip: Clip) -> Kind:
    return "vit" if clip.is_vit else "resnet"


def _layers(clip: Clip, method: Method) -> tuple[str, ...]:
    return layers(clip) if isinstance(method.compute[_kind(clip)], Cam) else ()
