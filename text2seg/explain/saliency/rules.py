"""Similarity maps: the cosine of every patch with the target, the patches by one of the attention rules."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from text2seg.explain.saliency.targets import Target
from text2seg.maps.attention import RULES
from text2seg.maps.clip import Clip
from text2seg.maps.resnet import encode_resnet
from text2seg.maps.vit import encode_vit


def similarity(clip: Clip, pixels: Tensor, target: Target, *, rule: str) -> Tensor:
    """float32 [gh, gw]; `rule` is one of `RULES`, for ResNets surgery or raw."""
    if clip.is_vit:
        tokens = encode_vit(clip.model.visual, pixels, rule=RULES[rule])
    else:
        tokens = encode_resnet(clip.model.visual, pixels, surgery=rule == "surgery")
    rows, columns = pixels.shape[2] // clip.stride, pixels.shape[3] // clip.stride
    return (F.normalize(tokens[0, 1:].float(), dim=-1) @ target.features).unflatten(0, (rows, columns))
