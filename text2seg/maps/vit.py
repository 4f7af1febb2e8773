"""CLIP's vision transformer with one of the attention rules, as a pure function of the standard module.

The module is only read: nothing in it changes, so threads may share it, gradients flow, and any module with
OpenAI's block names fits (open_clip's has the same).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from text2seg.maps.attention import RULES, Attend, AttentionRule, Heads


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


def embed_patches(visual: Any, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """What the first block gets, float [B, 1 + h·w, width], CLS first, and the grid's rows and columns."""
    x = visual.conv1(pixels.to(visual.conv1.weight.dtype))
    grid_hw = (x.shape[2], x.shape[3])
    x = x.flatten(2).transpose(1, 2)
    cls = visual.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
    positions = resize_positions(visual.positional_embedding, grid_hw)
    return visual.ln_pre(torch.cat([cls, x], dim=1) + positions.to(x.dtype)), grid_hw


def encode_vit(
    visual: Any,
    pixels: Tensor,
    *,
    rule: AttentionRule = RULES["surgery"],
    blocks: int | None = None,
    attention: Attend = F.scaled_dot_product_attention,
) -> Tensor:
    """Image tokens in the joint space of CLIP, before normalisation.

    Args:
        visual: a CLIP `VisionTransformer`.
        pixels: float [B, 3, H, W], normalised; H and W multiples of the patch size.
        rule: how the patches attend; one of `RULES`.
        blocks: how many of the last blocks are changed; default: as the rule says.
        attention: softmax(query keyᵀ / √d) value; another implementation where that one is slow.

    Returns:
        float [B, 1 + h·w, embedding], CLS first; CLS always comes from the original path.
    """
    x, grid_hw = embed_patches(visual, pixels)
    layers = visual.transformer.resblocks
    first = len(layers) - (rule.changed(len(layers)) if blocks is None else blocks)
    patches = None
    for index, block in enumerate(layers):
        heads = Heads(*split_heads(block, x), grid_hw)
        if index >= first:
            start = x if index == first and rule.residual else patches
            patches = _patches(rule, block, heads, start, attention)
        x = x + join_heads(block.attn, attention(heads.query, heads.key, heads.value))
        x = x + block.mlp(block.ln_2(x))
    if patches is not None:
        x = torch.cat([x[:, :1], patches[:, 1:]], dim=1)
    return visual.ln_post(x) @ visual.proj


def _patches(rule: AttentionRule, block: Any, heads: Heads, path: Tensor | None, attention: Attend) -> Tensor:
    """The patches' path [B, N, width] after one more changed block; None is a path that starts from nothing."""
    mixed = join_heads(block.attn, rule.attention(heads, attention))
    path = mixed if path is None else path + mixed
    return path + block.mlp(block.ln_2(path)) if rule.ffn else path


def split_heads(block: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values of every head, [B, heads, N, width / heads] each, and what they are projected from,
    [B, N, width]; of a block of either of CLIP's transformers and its input [B, N, width]."""
    normed = block.ln_1(x)
    packed = F.linear(normed, block.attn.in_proj_weight, block.attn.in_proj_bias)
    query, key, value = packed.unflatten(-1, (3, block.attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
    return query, key, value, normed


def join_heads(attention: Any, heads: Tensor) -> Tensor:
    """Join the heads [B, heads, N, width / heads] and project them out: [B, N, width]."""
    return F.linear(heads.transpose(1, 2).flatten(2), attention.out_proj.weight, attention.out_proj.bias)
