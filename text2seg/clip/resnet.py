"""CLIP's ResNets with architecture surgery, as a pure function of the standard module.

The trunk is CLIP's own. In the attention pool the patches attend value to value (arXiv 2304.05653, section
3.2); CLS is the model's true pooled feature. (The original overwrites q and k by v, so its CLS is not CLIP's.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from text2seg.clip.vit import resize_positions


def encode_resnet(visual: Any, pixels: Tensor, *, surgery: bool = True) -> Tensor:
    """Image tokens in the joint space of CLIP, before normalisation.

    Args:
        visual: a CLIP `ModifiedResNet`.
        pixels: float [B, 3, H, W], normalised; H and W multiples of 32.
        surgery: patches by value-value attention; otherwise by the pool's own queries and keys (raw CLIP).

    Returns:
        float [B, 1 + h·w, embedding], CLS first.
    """
    x = _trunk(visual, pixels.to(visual.conv1.weight.dtype))
    pool = visual.attnpool
    grid_hw = (x.shape[2], x.shape[3])
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
    x = x + resize_positions(pool.positional_embedding, grid_hw).to(x.dtype)

    query, key, value = (
        project(x).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
        for project in (pool.q_proj, pool.k_proj, pool.v_proj)
    )
    if surgery:
        cls = F.scaled_dot_product_attention(query[:, :, :1], key, value)
        patches = F.scaled_dot_product_attention(value[:, :, 1:], value, value)
        mixed = torch.cat([cls, patches], dim=2)
    else:
        mixed = F.scaled_dot_product_attention(query, key, value)
    return pool.c_proj(mixed.transpose(1, 2).flatten(2))


def _trunk(visual: Any, x: Tensor) -> Tensor:
    for conv, norm in ((visual.conv1, visual.bn1), (visual.conv2, visual.bn2), (visual.conv3, visual.bn3)):
        x = F.relu(norm(conv(x)))  # as a module it has another name in open_clip
    x = visual.avgpool(x)
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = layer(x)
    return x
