"""CLIP's vision transformer with architecture surgery, as a pure function of the standard module.

Source: Li et al., "A Closer Look at the Explainability of Contrastive Language-Image Pre-training"
(arXiv 2304.05653), section 3.2. The module is only read: nothing in it changes, so threads may share it,
gradients flow, and any module with OpenAI's block names fits (open_clip's has the same).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_SURGICAL_BLOCKS = 6

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def surgical_blocks(depth: int) -> int:
    """How many of the last blocks are surgical: 6, whatever the depth; of fewer than 12 blocks, half.

    >>> [surgical_blocks(depth) for depth in (6, 8, 12, 24)]
    [3, 4, 6, 6]
    """
    return MAX_SURGICAL_BLOCKS if depth >= 2 * MAX_SURGICAL_BLOCKS else depth // 2


def resize_positions(embedding: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Position embeddings for another grid: bilinear, without antialiasing; the CLS position is kept.

    Args:
        embedding: float [1 + n·n, width], CLS first, trained on a square grid.
        grid_hw: rows and columns of the new grid, which need not be square.

    Returns:
        float [1 + rows·columns, width]; a new tensor unless the grid is already right.
    """
    side = round((embedding.shape[0] - 1) ** 0.5)
    if (side, side) == tuple(grid_hw):
        return embedding
    cls, patches = embedding[:1], embedding[1:]
    square = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(square.float(), size=grid_hw, mode="bilinear", align_corners=False)
    return torch.cat([cls, resized.permute(0, 2, 3, 1).flatten(1, 2)[0].to(embedding.dtype)])


def encode_vit(
    visual: Any,
    pixels: Tensor,
    *,
    surgery: bool = True,
    blocks: int | None = None,
    attention: Attention = F.scaled_dot_product_attention,
) -> Tensor:
    """Image tokens in the joint space of CLIP, before normalisation.

    Args:
        visual: a CLIP `VisionTransformer`.
        pixels: float [B, 3, H, W], normalised; H and W multiples of the patch size.
        surgery: take the patches from the value-value path; otherwise from the original path (raw CLIP).
        blocks: how many of the last blocks are surgical; default `surgical_blocks`.
        attention: softmax(query keyᵀ / √d) value; another implementation where that one is slow.

    Returns:
        float [B, 1 + h·w, embedding], CLS first; CLS always comes from the original path.
    """
    x = visual.conv1(pixels.to(visual.conv1.weight.dtype))
    grid_hw = (x.shape[2], x.shape[3])
    x = x.flatten(2).transpose(1, 2)
    cls = visual.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
    positions = resize_positions(visual.positional_embedding, grid_hw)
    x = visual.ln_pre(torch.cat([cls, x], dim=1) + positions.to(x.dtype))

    layers = visual.transformer.resblocks
    first = len(layers) - (surgical_blocks(len(layers)) if blocks is None else blocks)
    patches = None
    for index, block in enumerate(layers):
        query, key, value = _project(block.attn, block.ln_1(x))
        if surgery and index >= first:
            patches = (x if patches is None else patches) + _mix(block.attn, attention(value, value, value))
        x = x + _mix(block.attn, attention(query, key, value))
        x = x + block.mlp(block.ln_2(x))
    if patches is not None:
        x = torch.cat([x[:, :1], patches[:, 1:]], dim=1)
    return visual.ln_post(x) @ visual.proj


def _project(module: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of every head: three tensors [B, heads, N, width / heads]."""
    packed = F.linear(x, module.in_proj_weight, module.in_proj_bias)
    heads = packed.unflatten(-1, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return heads[0], heads[1], heads[2]


def _mix(module: Any, heads: Tensor) -> Tensor:
    """Join the heads [B, heads, N, width / heads] and project them out: [B, N, width]."""
    return F.linear(heads.transpose(1, 2).flatten(2), module.out_proj.weight, module.out_proj.bias)
