"""LeGrad: how sensitive the last blocks' own answers are to their attention."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from text2seg.explain.saliency.targets import Target
from text2seg.explain.saliency.trace import gradients, into_joint_space, trace_vit
from text2seg.maps.clip import Clip

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
