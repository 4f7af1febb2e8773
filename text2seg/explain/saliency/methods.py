"""Saliency methods: one row of `METHODS` each, and `saliency`, which runs them. Their functions are in attention.py and
cams.py.

The command line and the app read the names of the methods from this file, so it imports torch inside its functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from numpy.typing import NDArray

from text2seg.clip.shape import ClipKind, ClipShape
from text2seg.errors import CheckpointError, QueryError, SettingsError
from text2seg.explain.saliency.attention import (
    attention,
    gradcam_heads,
    legrad,
    relevance,
    relevance_last_grad,
    rollout,
    similarity,
)

if TYPE_CHECKING:
    from torch import Tensor

    from text2seg.clip.model import Clip
    from text2seg.explain.saliency.targets import Target
    from text2seg.records import Image

    Compute = Callable[[Clip, Tensor, Target, "ScoreKind"], Tensor]

Kind = Literal["vit", "resnet"]
ScoreKind = Literal["cosine", "logit", "dot"]
"""Score that a method differentiates, or compares for changed images: the cosine, the cosine times CLIP's scale, or the
product without normalisation."""


@dataclass(frozen=True, slots=True)
class Method:
    """A saliency method.

    Attributes:
        name: its name on the command line.
        summary: what the map shows, in one line.
        source: the paper.
        compute: for each supported kind of CLIP, a function from the CLIP, normalised pixels float32 [1, 3, H, W], a
            target and the score to differentiate to a map float32 [gh, gw].
        targeted: whether the map depends on the target.
        score: for each kind of CLIP, the score that the method's authors use; empty if the method needs no score.
        aliases: other names of the method.
        has_start_block: whether the method can begin at a later block.
        absolute: whether the map does not tell what raises the score from what lowers it.
        slow: whether it runs the network once for each channel of a layer; then tools use it only if it is named.
    """

    name: str
    summary: str
    source: str
    compute: Mapping[Kind, Compute]
    targeted: bool = True
    score: Mapping[Kind, ScoreKind] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    has_start_block: bool = False
    absolute: bool = False
    slow: bool = False

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return tuple(self.compute)


@dataclass(frozen=True, slots=True)
class Cam:
    """A class activation map of a ResNet, by one class of the package grad-cam, at `layer`; None means the last."""

    kind: str
    layer: str | None = None

    def __call__(self, clip: Clip, pixels: Tensor, target: Target, score: ScoreKind) -> Tensor:
        from text2seg.explain.saliency import cams

        by_forwards = {"ScoreCAM": cams.score_cam, "AblationCAM": cams.ablation_cam}.get(self.kind)
        if by_forwards is not None:
            return by_forwards(clip, pixels, target, score, layer=self.layer)
        return cams.class_activation_map(clip, pixels, target, score, kind=self.kind, layer=self.layer)


def full_grad(clip: Clip, pixels: Tensor, target: Target, score: ScoreKind) -> Tensor:
    """FullGrad of a ResNet, on the grid of CLIP's input, in float32: see `cams.full_grad`."""
    from text2seg.explain.saliency import cams
    from text2seg.runtime import FULL, autocast

    with autocast(clip.device, FULL):
        return cams.full_grad(clip, pixels, target, score)


def _rule(name: str, summary: str, source: str, *kinds: Kind) -> Method:
    return Method(name, summary, source, dict.fromkeys(kinds or ("vit",), partial(similarity, rule=name)))


def _cam(name: str, summary: str, source: str, kind: str, *, targeted: bool = True, slow: bool = False) -> Method:
    score: dict[Kind, ScoreKind] = {"resnet": "logit"} if targeted else {}
    return Method(name, summary, source, {"resnet": Cam(kind)}, targeted, score, slow=slow)


_TABLE = (
    Method(
        "attention",
        "attention of CLS in the last block; ignores the target",
        "arXiv 2010.11929",
        {"vit": attention},
        targeted=False,
    ),
    Method(
        "rollout",
        "product of the attention of all blocks; ignores the target",
        "arXiv 2005.00928",
        {"vit": rollout},
        targeted=False,
    ),
    Method(
        "gradcam",
        "channels of the last layer weighted by their mean gradient; ViT: attention times gradient in the last block",
        "arXiv 1610.02391; ViT: arXiv 2103.15679, last block",
        {"vit": partial(relevance, start=-1), "resnet": Cam("GradCAM")},
        score={"vit": "logit", "resnet": "dot"},
        aliases=("relevance-last",),
    ),
    Method(
        "gradcam-heads",
        "heads of the last block as channels, weighted by their mean gradient",
        "a variant of arXiv 1610.02391",
        {"vit": gradcam_heads},
        score={"vit": "logit"},
    ),
    Method(
        "relevance",
        "attention times gradient, positive part, propagated through all blocks",
        "arXiv 2103.15679",
        {"vit": relevance},
        score={"vit": "logit"},
        has_start_block=True,
    ),
    Method(
        "relevance-last-grad",
        "attention of all blocks, each weighted by the gradient of the last block",
        "a variant of arXiv 2103.15679",
        {"vit": relevance_last_grad},
        score={"vit": "logit"},
        has_start_block=True,
    ),
    Method(
        "legrad",
        "gradient of the score by the attention of the last blocks",
        "arXiv 2404.03214",
        {"vit": legrad},
        score={"vit": "cosine"},
    ),
    _rule("raw", "cosine of CLIP's unchanged patches", "arXiv 2103.00020", "vit", "resnet"),
    _rule("maskclip", "cosine of patches that attend only to themselves", "arXiv 2112.01071"),
    _rule("surgery", "cosine of patches by CLIP Surgery's value-value attention", "arXiv 2304.05653", "vit", "resnet"),
    _rule("sclip", "cosine of patches by query-query and key-key attention", "arXiv 2312.01597"),
    _rule("clearclip", "cosine of patches by query-query attention alone", "arXiv 2407.12442"),
    _rule("naclip", "cosine of patches by key-key attention that prefers neighbours", "arXiv 2404.08181"),
    _rule("gem", "cosine of patches by an ensemble of self-self attention", "arXiv 2312.00878"),
    _cam(
        "gradcam++",
        "Grad-CAM weighted by positive gradients only, by the paper's equation 19, for gradients of any size",
        "arXiv 1710.11063",
        "GradCAMPlusPlus",
    ),
    _cam("xgradcam", "Grad-CAM with gradients weighted by activations", "arXiv 2008.02312", "XGradCAM"),
    _cam("hirescam", "gradient times activation in every cell", "arXiv 2011.08891", "HiResCAM"),
    _cam(
        "gradcam-elementwise",
        "gradient times activation in every cell, positive part",
        "a variant of arXiv 1610.02391",
        "GradCAMElementWise",
    ),
    _cam("layercam", "activation in every cell times its positive gradient", "10.1109/TIP.2021.3089943", "LayerCAM"),
    _cam(
        "eigencam",
        "first principal component of the centred activations, with the sign of their sum; ignores the target",
        "arXiv 2008.00299",
        "EigenCAM",
        targeted=False,
    ),
    _cam(
        "eigengradcam",
        "first principal component of centred gradient times activation, with the sign of their sum",
        "a variant of arXiv 2008.00299",
        "EigenGradCAM",
    ),
    Method(
        "fullgrad",
        "input times gradient, and bias times gradient in all layers, without sign; as fine as CLIP's input",
        "arXiv 1905.00780",
        {"resnet": full_grad},
        score={"resnet": "logit"},
        absolute=True,
    ),
    _cam(
        "scorecam",
        "channels weighted by the score of the image masked by them; slow: one forward for each channel",
        "arXiv 1910.01279",
        "ScoreCAM",
        slow=True,
    ),
    _cam(
        "ablationcam",
        "channels weighted by the share of the score lost without them; slow: one forward for each channel",
        "10.1109/WACV45572.2020.9093360",
        "AblationCAM",
        slow=True,
    ),
)

METHODS: Mapping[str, Method] = {method.name: method for method in _TABLE}
ALIASES: Mapping[str, str] = {alias: method.name for method in _TABLE for alias in method.aliases}

if TYPE_CHECKING:
    MethodName = str
else:
    # the choices of the flag --method and of its field in the app
    MethodName = Literal[tuple(METHODS) + tuple(ALIASES)]


def methods_for(clip: ClipKind, *, slow: bool = True) -> tuple[str, ...]:
    """Return the names of the methods that this CLIP supports, with or without slow ones, in the order of the table."""
    return tuple(
        name for name, method in METHODS.items() if _kind(clip) in method.compute and (slow or not method.slow)
    )


def check_method(clip: ClipKind, name: str, layer: str | None = None) -> Method:
    """Return the method of this name or alias.

    Raises:
        SettingsError: there is no such method, or this CLIP does not support it or that layer; lists what it supports.
    """
    name = ALIASES.get(name, name)
    if name not in methods_for(clip):
        problem = f"{name} is for other kinds of CLIP" if name in METHODS else f"there is no saliency method {name}"
        kind = "ViT" if clip.is_vit else "ResNet"
        raise SettingsError(f"{problem}; this {kind} supports {', '.join(methods_for(clip))}")
    if layer is not None and layer not in _layers(clip, METHODS[name]):
        choices = ", ".join(_layers(clip, METHODS[name]))
        raise SettingsError(f"{name} has no layer {layer!r}; its layers: {choices or 'none with this CLIP'}")
    return METHODS[name]


def method_or_default(clip: ClipKind, name: str | None, layer: str | None = None) -> str:
    """Check the name of a method and return it. The default is LeGrad, and Grad-CAM for ResNets.

    Both follow the score of the whole image and are faithful (docs/measurements/explain.md).

    Raises:
        SettingsError: as `check_method`.
    """
    return check_method(clip, name or ("legrad" if clip.is_vit else "gradcam"), layer).name


def check_map(
    clip: ClipKind,
    method: str,
    *,
    layer: str | None = None,
    negative: bool = False,
    start_block: int | None = None,
) -> Method:
    """Return a method after checking what is asked of it; the arguments are those of `saliency`.

    Raises:
        SettingsError: as `saliency`, except for the score.
    """
    chosen = check_method(clip, method, layer)
    if negative and not chosen.targeted:
        raise SettingsError(f"{method} ignores the target, so it cannot show what lowers a score; use another method")
    if negative and chosen.absolute:
        raise SettingsError(f"{method} has no sign, so it cannot show what lowers a score; use another method")
    if start_block is not None:
        _check_start_block(clip, chosen, start_block)
    return chosen


def saliency(
    clip: Clip,
    image: Image,
    target: Target,
    method: str,
    *,
    size: int | tuple[int, int] | None = None,
    negative: bool = False,
    layer: str | None = None,
    score: ScoreKind | None = None,
    start_block: int | None = None,
) -> NDArray[np.float32]:
    """Compute where in the image the target's score comes from. Threads may share the model: nothing in it changes.

    Args:
        size: CLIP's input in pixels; default: the size it was trained on.
        negative: show what lowers the score instead.
        layer: layer of a ResNet for class activation maps, such as `layer4.2.relu3`; default: the last.
        score: what is differentiated or compared; default: what the method's authors use.
        start_block: first block of `relevance` and `relevance-last-grad`, from 0; negative numbers count from the end.

    Returns:
        float32 [gh, gw]: a grid that covers the image, not normalised; a higher value is more salient. All 0 if the
        score has no gradient.

    Raises:
        SettingsError: the CLIP does not support the method, the layer, the score or the block, or `negative` is set
            for a method that does not depend on the target or has no sign.
        CheckpointError: the map is not finite, so the weights or the precision are unfit.
    """
    import torch

    from text2seg.runtime import FULL, autocast

    chosen = check_map(clip, method, layer=layer, negative=negative, start_block=start_block)
    differentiated = score_of(clip, chosen, target, score)
    compute = chosen.compute[_kind(clip)]
    if isinstance(compute, Cam):
        compute = replace(compute, layer=layer)
    if start_block is not None:
        compute = partial(compute, start=start_block)  # type: ignore[call-arg]
    # fp16 has too little range for gradients, and the package grad-cam computes with numpy, which has no bf16.
    full = isinstance(compute, Cam) or clip.precision.dtype == torch.float16
    # The caller may be in inference mode, which allows no gradients.
    with torch.inference_mode(False), torch.enable_grad(), autocast(clip.device, FULL if full else clip.precision):
        pixels = clip.preprocess(image, size)[None].to(clip.device)
        found = compute(clip, pixels, target.negated() if negative else target, differentiated)
    if not bool(found.isfinite().all()):
        raise CheckpointError(f"the {method} map is not finite in {clip.precision.name}; try precision fp32")
    return np.ascontiguousarray(found.detach().float().cpu().numpy())


def score_of(clip: Clip, method: Method, target: Target, score: ScoreKind | None) -> ScoreKind:
    """Return the score that a method differentiates for a target; `score` is the user's choice, if any.

    Raises:
        SettingsError: the method has no gradient, or the target has no such score.
    """
    from text2seg.explain.saliency.targets import WordsTarget

    default, of_words = method.score.get(_kind(clip)), isinstance(target, WordsTarget)
    if score is None:
        return "cosine" if default is None or (default == "dot" and of_words) else default
    check_score(clip, method, score, of_words=of_words)
    return score


def check_score(clip: ClipKind, method: Method, score: ScoreKind, *, of_words: bool) -> None:
    """Raise `SettingsError` if a method has no gradient, or weighted words, if there are any, have no such score."""
    if method.score.get(_kind(clip)) is None:
        raise SettingsError(f"{method.name} takes no gradient of a score; leave the score out")
    if score == "dot" and of_words:
        raise SettingsError("weighted words have no dot product with an image; use the score cosine or logit")


def check_weights(weights: Mapping[str, float]) -> None:
    """Raise `QueryError` if there are fewer than two words, a weight is negative, or all weights are 0."""
    if len(weights) < 2:
        raise QueryError(f"a set of words needs two or more, got {list(weights)}; for one word use a text")
    if not all(isfinite(weight) and weight >= 0 for weight in weights.values()):
        raise QueryError(f"weights of words must be 0 or more, got {dict(weights)}")
    if not any(weights.values()):
        raise QueryError(f"one of the words {', '.join(weights)} needs a weight above 0")


def _check_start_block(clip: ClipKind, method: Method, block: int) -> None:
    if not method.has_start_block:
        able = ", ".join(name for name, each in METHODS.items() if each.has_start_block)
        raise SettingsError(f"{method.name} has no start block; these methods have one: {able}")
    check_block(clip.blocks, block)


def check_block(count: int, block: int) -> None:
    """Raise `SettingsError` if a tower of `count` blocks has no such first block."""
    if not -count <= block < count:
        raise SettingsError(f"start_block must be from {-count} to {count - 1} for this CLIP, got {block}")


def _kind(clip: ClipKind) -> Kind:
    return "vit" if clip.is_vit else "resnet"


def _layers(clip: ClipKind, method: Method) -> tuple[str, ...]:
    """Return the layers that the method can be applied to, or none if it has no choice."""
    if not isinstance(method.compute[_kind(clip)], Cam):
        return ()
    if isinstance(clip, ClipShape):
        return clip.relus
    from text2seg.explain.saliency.cams import layers

    return layers(cast("Clip", clip))
