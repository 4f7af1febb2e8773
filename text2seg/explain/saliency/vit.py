"""Saliency methods of vision transformers: attention, rollout, relevance, LeGrad, and the attention rules."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from text2seg.clip.attention import RULES
from text2seg.clip.model import Clip
from text2seg.clip.resnet import encode_resnet
from text2seg.clip.vit import encode_vit
from text2seg.explain.saliency.targets import Target
from text2seg.explain.saliency.trace import Trace, gradients, into_joint_space, trace_vit


def attention(clip: Clip, pixels: Tensor, target: Target) -> Tensor:
    """What CLS attends to in the last block, mean over heads. The target plays no part."""
    trace = trace_vit(clip.model.visual, pixels, first=None)
    return _of_cls(trace.attentions[-1][0].float().mean(0), trace)


def rollout(clip: Clip, pixels: Tensor, target: Target) -> Tensor:
    """The product over blocks of (mean over heads + I) / 2, row of CLS. The target plays no part."""
    trace = trace_vit(clip.model.visual, pixels, first=None)
    mixed = _identity(trace)
    for each in trace.attentions:
        mixed = (each[0].float().mean(0) + _identity(trace)) / 2 @ mixed
    return _of_cls(mixed, trace)


def gradcam(clip: Clip, pixels: Tensor, target: Target) -> Tensor:
    """Grad-CAM with the heads of the last block as channels: CLS's row of each head, weighted by the mean of its
    gradient over the patches; ReLU."""
    trace = trace_vit(clip.model.visual, pixels, first=-1)
    (gradient,) = gradients(_score(trace, target), trace.attentions[-1:])
    weights = gradient[0, :, 0, 1:].mean(-1)
    rows = trace.attentions[-1][0, :, 0].float()
    return _of_cls((weights @ rows / len(weights)).clamp(min=0)[None], trace)


def relevance(clip: Clip, pixels: Tensor, target: Target) -> Tensor:
    """R ← R + ĀR over all blocks, Ā = mean over heads of ReLU(gradient ⊙ attention); row of CLS."""
    trace = trace_vit(clip.model.visual, pixels)
    return _propagate(trace, gradients(_score(trace, target), trace.attentions))


def relevance_last(clip: Clip, pixels: Tensor, target: Target) -> Tensor:
    """As `relevance`, the last block alone."""
    trace = trace_vit(clip.model.visual, pixels, first=-1)
    return _propagate(trace, gradients(_score(trace, target), trace.attentions[-1:]))


def relevance_last_grad(clip: Clip, pixels: Tensor, target: Target) -> Tensor:
    """As `relevance`, every block's attention weighted by the gradient of the last block's."""
    trace = trace_vit(clip.model.visual, pixels, first=-1)
    (gradient,) = gradients(_score(trace, target), trace.attentions[-1:])
    return _propagate(trace, (gradient,) * len(trace.attentions))


def propagate(attentions: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> Tensor:
    """Relevance of every token for every other, float32 [B, N, N]: R = I; R ← R + ĀR for each block.

    Args:
        attentions: float [B, heads, N, N] of the blocks, first to last.
        weights: their gradients, of the same shape.
    """
    identity = torch.eye(attentions[0].shape[-1], dtype=torch.float32, device=attentions[0].device)
    relevances = identity.expand(len(attentions[0]), -1, -1)
    for each, weight in zip(attentions, weights, strict=True):
        positive = (weight.float() * each.detach().float()).clamp(min=0).mean(1)
        relevances = relevances + positive @ relevances
    return relevances


def _propagate(trace: Trace, weights: tuple[Tensor, ...]) -> Tensor:
    return _of_cls(propagate(trace.attentions[-len(weights) :], weights)[0], trace)


def _score(trace: Trace, target: Target) -> Tensor:
    return target.score(F.normalize(trace.features[:, 0].float(), dim=-1))


def _of_cls(matrix: Tensor, trace: Trace) -> Tensor:
    """CLS's row of [N, N], or what is of its shape, on the grid."""
    return matrix[0, 1:].unflatten(0, trace.grid_hw)


def _identity(trace: Trace) -> Tensor:
    one = trace.attentions[0]
    return torch.eye(one.shape[-1], dtype=torch.float32, device=one.device)


LAST_BLOCKS = 2


def legrad(clip: Clip, pixels: Tensor, target: Target) -> Tensor:
    """Each of the last blocks answers by the mean of all its tokens; the gradient of that answer's score by the
    block's attention, ReLU, mean over heads and rows; the sum over blocks, float32 [gh, gw]."""
    visual = clip.model.visual
    first = max(len(visual.transformer.resblocks) - LAST_BLOCKS, 0)
    trace = trace_vit(visual, pixels, first=first)
    maps = []
    for attention, tokens in zip(trace.attentions[first:], trace.tokens[first:], strict=True):
        answer = into_joint_space(visual, tokens.mean(1))
        (gradient,) = gradients(target.score(F.normalize(answer.float(), dim=-1)), [attention])
        maps.append(gradient[0].clamp(min=0).mean((0, 1))[1:])
    return torch.stack(maps).sum(0).unflatten(0, trace.grid_hw)


def similarity(clip: Clip, pixels: Tensor, target: Target, *, rule: str) -> Tensor:
    """float32 [gh, gw]; `rule` is one of `RULES`, for ResNets surgery or raw."""
    if clip.is_vit:
        tokens = encode_vit(clip.model.visual, pixels, rule=RULES[rule])
    else:
        tokens = encode_resnet(clip.model.visual, pixels, surgery=rule == "surgery")
    rows, columns = pixels.shape[2] // clip.stride, pixels.shape[3] // clip.stride
    return (F.normalize(tokens[0, 1:].float(), dim=-1) @ target.features).unflatten(0, (rows, columns))
