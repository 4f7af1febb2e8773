"""CLIP's vision transformer with one of the attention rules, as a pure function of the standard module.

The module is only read: nothing in it changes, so threads may share it, gradients flow, and any module with
OpenAI's block names fits: OpenAI's own, open_clip's, and others behind a `Vit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from text2seg.clip.attention import RULES, Attend, AttentionRule, Heads


class Vit(Protocol):
    """A vision transformer as `run_vit` reads it."""

    @property
    def prefix(self) -> int:
        """Tokens before the patches: 1 where there is a CLS token, else 0."""
        ...

    @property
    def blocks(self) -> Sequence[Any]:
        """With OpenAI's names: ln_1, attn.in_proj_weight, attn.in_proj_bias, attn.num_heads, attn.out_proj, ln_2, mlp;
        ls_1 and ls_2 where there is layer scale."""
        ...

    def embed(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """What the first block gets, float [B, prefix + h·w, width], and the grid's rows and columns."""
        ...

    def features(self, tokens: Tensor, patches: Tensor) -> Tensor:
        """The model's own pooled feature of the tokens [B, prefix + h·w, width] that come out of the last block, then
        a feature for every one of the patches [B, h·w, width]: [B, 1 + h·w, embedding], before normalisation."""
        ...


class PlainVit:
    """A `VisionTransformer` of OpenAI's package or of open_clip."""

    prefix = 1

    def __init__(self, visual: Any) -> None:
        self._visual = visual
        self.blocks: Sequence[Any] = visual.transformer.resblocks

    def embed(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        return embed_patches(self._visual, pixels)

    def features(self, tokens: Tensor, patches: Tensor) -> Tensor:
        # CLIPA's pooled feature is the mean of its patches, although it has a CLS token.
        is_mean = getattr(self._visual, "pool_type", "tok") == "avg"
        pooled = tokens[:, 1:].mean(dim=1, keepdim=True) if is_mean else tokens[:, :1]
        joined: Tensor = self._visual.ln_post(torch.cat([pooled, patches], dim=1)) @ self._visual.proj
        return joined


def resize_positions(embedding: Tensor, grid_hw: tuple[int, int], *, prefix: int = 1) -> Tensor:
    """Position embeddings for another grid: bilinear, without antialiasing; the CLS position is kept.

    Args:
        embedding: float [prefix + n·n, width], trained on a square grid.
        grid_hw: rows and columns of the new grid, which need not be square.
        prefix: how many positions come before the grid's; by default that of CLS.

    Returns:
        float [prefix + rows·columns, width]; a new tensor unless the grid is already right.
    """
    side = round((embedding.shape[0] - prefix) ** 0.5)
    if (side, side) == tuple(grid_hw):
        return embedding
    cls, patches = embedding[:prefix], embedding[prefix:]
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
    return run_vit(PlainVit(visual), pixels, rule=rule, blocks=blocks, attention=attention)


def run_vit(
    vit: Vit,
    pixels: Tensor,
    *,
    rule: AttentionRule = RULES["surgery"],
    blocks: int | None = None,
    attention: Attend = F.scaled_dot_product_attention,
) -> Tensor:
    """As `encode_vit`, for any transformer that can be read as a `Vit`; where it has no CLS, the first token of what
    comes out is its pooled feature."""
    x, grid_hw = vit.embed(pixels)
    layers = vit.blocks
    first = len(layers) - (rule.changed(len(layers)) if blocks is None else blocks)
    patches = None
    for index, block in enumerate(layers):
        heads = Heads(*split_heads(block, x), grid_hw, vit.prefix)
        if index >= first:
            start = x if index == first and rule.residual else patches
            patches = _patches(rule, block, heads, start, attention)
        x = _add_attention(x, block, attention(heads.query, heads.key, heads.value))
        x = _add_mlp(x, block)
    return vit.features(x, (x if patches is None else patches)[:, vit.prefix :])


def _patches(rule: AttentionRule, block: Any, heads: Heads, path: Tensor | None, attention: Attend) -> Tensor:
    """The patches' path [B, N, width] after one more changed block; None is a path that starts from nothing."""
    path = _add_attention(path, block, rule.attention(heads, attention))
    return _add_mlp(path, block) if rule.ffn else path


def _add_attention(x: Tensor | None, block: Any, mixed: Tensor) -> Tensor:
    added = scaled(block, "ls_1", join_heads(block.attn, mixed))
    return added if x is None else x + added


def _add_mlp(x: Tensor, block: Any) -> Tensor:
    return x + scaled(block, "ls_2", block.mlp(block.ln_2(x)))


def scaled(block: Any, name: str, x: Tensor) -> Tensor:
    """By the block's layer scale of this name, where it has one; OpenAI's blocks have none."""
    scale = getattr(block, name, None)
    return x if scale is None else scale(x)


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
