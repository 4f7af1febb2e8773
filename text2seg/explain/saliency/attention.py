"""Saliency methods that read a ViT's attention, and the similarity of patches by each attention rule.

Each takes a CLIP, normalised pixels float32 [1, 3, H, W], a target and the score to differentiate, and returns a map
float32 [gh, gw]. The command line reads the names of the methods, so this file imports torch inside its functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from text2seg.clip.model import Clip
    from text2seg.explain.saliency.methods import ScoreKind
    from text2seg.explain.saliency.targets import Target
    from text2seg.explain.saliency.trace import Trace


def attention(clip: Clip, pixels: Tensor, target: Target, score: ScoreKind) -> Tensor:
    """Attention of CLS in the last block, mean over heads. Does not depend on the target."""
    trace = _trace(clip, pixels, first=None)
    return _row_of_cls(trace.attentions[-1][0].float().mean(0), trace)


def rollout(clip: Clip, pixels: Tensor, target: Target, score: ScoreKind) -> Tensor:
    """Product over blocks of (mean over heads + I) / 2, row of CLS. Does not depend on the target."""
    trace = _trace(clip, pixels, first=None)
    identity = _identity(trace.attentions[0])
    mixed = identity
    for each in trace.attentions:
        mixed = (each[0].float().mean(0) + identity) / 2 @ mixed
    return _row_of_cls(mixed, trace)


def gradcam_heads(clip: Clip, pixels: Tensor, target: Target, score: ScoreKind) -> Tensor:
    """Grad-CAM with the heads of the last block as channels: the row of CLS in each head, weighted by the mean of its
    gradient over the patches; ReLU."""
    trace = _trace(clip, pixels, first=-1)
    (gradient,) = _gradients(clip, trace, target, score, trace.attentions[-1:])
    weights = gradient[0, :, 0, 1:].mean(-1)
    rows = trace.attentions[-1][0, :, 0].float()
    return _row_of_cls((weights @ rows / len(weights)).clamp(min=0)[None], trace)


def relevance(clip: Clip, pixels: Tensor, target: Target, score: ScoreKind, *, start: int = 0) -> Tensor:
    """R ← R + ĀR from block `start` on, Ā = mean over heads of ReLU(gradient ⊙ attention); row of CLS."""
    trace = _trace(clip, pixels, first=start)
    return _propagated(trace, _gradients(clip, trace, target, score, trace.attentions[start:]))


def relevance_last_grad(clip: Clip, pixels: Tensor, target: Target, score: ScoreKind, *, start: int = 0) -> Tensor:
    """`relevance` with the gradient of the last block as the weight of every block."""
    trace = _trace(clip, pixels, first=-1)
    (gradient,) = _gradients(clip, trace, target, score, trace.attentions[-1:])
    return _propagated(trace, (gradient,) * len(trace.attentions[start:]))


def propagate(attentions: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> Tensor:
    """Return the relevance of every token for every other, float32 [B, N, N]: R = I; R ← R + ĀR for each block.

    Args:
        attentions: float [B, heads, N, N] of the blocks, first to last.
        weights: their gradients, of the same shape.
    """
    identity = _identity(attentions[0])
    relevances = identity.expand(len(attentions[0]), -1, -1)
    for each, weight in zip(attentions, weights, strict=True):
        positive = (weight.float() * each.detach().float()).clamp(min=0).mean(1)
        relevances = relevances + positive @ relevances
    return relevances


LEGRAD_BLOCKS = 2
"""Number of last blocks that LeGrad sums over."""


def legrad(clip: Clip, pixels: Tensor, target: Target, score: ScoreKind) -> Tensor:
    """Sum over the last blocks of the gradient of a block's score by its attention; ReLU, mean over heads and rows.

    The score of a block is that of the mean of all its tokens, projected into CLIP's joint space.
    """
    import torch

    from text2seg.explain.saliency.trace import gradients, into_joint_space

    visual = clip.model.visual
    first = max(len(visual.transformer.resblocks) - LEGRAD_BLOCKS, 0)
    trace = _trace(clip, pixels, first=first)
    maps = []
    for block, tokens in zip(trace.attentions[first:], trace.tokens[first:], strict=True):
        features = into_joint_space(visual, tokens.mean(1))
        (gradient,) = gradients(target.objective(features, score, clip.logit_scale), [block])
        maps.append(gradient[0].clamp(min=0).mean((0, 1))[1:])
    return torch.stack(maps).sum(0).unflatten(0, trace.grid_hw)


def similarity(clip: Clip, pixels: Tensor, target: Target, score: ScoreKind, *, rule: str) -> Tensor:
    """Cosine of every patch with the target. `rule` is a key of `RULES`; ResNets support surgery and raw."""
    from torch.nn import functional as F

    from text2seg.clip.encoders import RULES, encode_resnet, encode_vit

    if clip.is_vit:
        tokens = encode_vit(clip.model.visual, pixels, rule=RULES[rule])
    else:
        tokens = encode_resnet(clip.model.visual, pixels, surgery=rule == "surgery")
    rows, columns = pixels.shape[2] // clip.stride, pixels.shape[3] // clip.stride
    return (F.normalize(tokens[0, 1:].float(), dim=-1) @ target.features).unflatten(0, (rows, columns))


def _trace(clip: Clip, pixels: Tensor, first: int | None = 0) -> Trace:
    from text2seg.explain.saliency.trace import trace_vit

    return trace_vit(clip.model.visual, pixels, first=first)


def _gradients(
    clip: Clip, trace: Trace, target: Target, score: ScoreKind, attentions: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Return the gradients of the target's score by the attentions."""
    from text2seg.explain.saliency.trace import gradients

    return gradients(target.objective(trace.features[:, 0], score, clip.logit_scale), attentions)


def _propagated(trace: Trace, weights: tuple[Tensor, ...]) -> Tensor:
    return _row_of_cls(propagate(trace.attentions[-len(weights) :], weights)[0], trace)


def _row_of_cls(matrix: Tensor, trace: Trace) -> Tensor:
    """Return the first row of a matrix [1 or N, N], without CLS itself, as a map [gh, gw]."""
    return matrix[0, 1:].unflatten(0, trace.grid_hw)


def _identity(attention: Tensor) -> Tensor:
    """Return the identity matrix float32 [N, N] for an attention [..., N, N]."""
    import torch

    return torch.eye(attention.shape[-1], dtype=torch.float32, device=attention.device)
