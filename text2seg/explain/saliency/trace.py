"""A forward pass through CLIP's image or text transformer that keeps the attention and tokens of every block.

Gradients of the attention are possible. As in `clip.encoders`, the modules do not change: no hooks, and no gradients of
parameters, so threads may share a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from text2seg.clip.encoders import embed_patches, join_heads, split_heads


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """One forward pass of a vision transformer.

    Attributes:
        attentions: for each block float [B, heads, N, N]; rows attend to columns and sum to 1; CLS is first.
        tokens: float [B, N, width] after each block.
        features: float [B, N, C], the last tokens in CLIP's joint space, not normalised.
        grid_hw: rows and columns of the patches.
    """

    attentions: tuple[Tensor, ...]
    tokens: tuple[Tensor, ...]
    features: Tensor
    grid_hw: tuple[int, int]


def trace_vit(visual: Any, pixels: Tensor, *, first: int | None = 0) -> Trace:
    """Run CLIP's unchanged forward and keep the attention and tokens of all blocks.

    Args:
        visual: a CLIP `VisionTransformer`.
        pixels: float [B, 3, H, W], normalised; H and W multiples of the patch size.
        first: the attention of this block and of later blocks allows gradients; a negative number counts from the
            end, None means no block. A later block needs less work and memory.
    """
    x, grid_hw = embed_patches(visual, pixels)
    attentions, tokens = trace_blocks(visual.transformer.resblocks, x, first=first)
    return Trace(attentions, tokens, into_joint_space(visual, tokens[-1]), grid_hw)


def into_joint_space(visual: Any, tokens: Tensor) -> Tensor:
    """Project tokens [..., width] of a vision transformer to features [..., C], not normalised."""
    features: Tensor = visual.ln_post(tokens) @ visual.proj
    return features


def trace_blocks(
    blocks: Sequence[Any], x: Tensor, *, mask: Tensor | None = None, first: int | None = 0
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Run the blocks of a transformer on [B, N, width] and return attentions and tokens as in `Trace`.

    Args:
        mask: [N, N], added to the logits of the attention.
        first: as in `trace_vit`.
    """
    start = len(blocks) if first is None else first % len(blocks)
    attentions, tokens = [], []
    for index, block in enumerate(blocks):
        query, key, value, _ = split_heads(block, x)
        logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        attention = (logits if mask is None else logits + mask.to(logits)).softmax(-1)
        if index >= start and not attention.requires_grad:
            attention.requires_grad_()  # the graph starts here, so earlier blocks store nothing
        x = x + join_heads(block.attn, attention.to(value.dtype) @ value)
        x = x + block.mlp(block.ln_2(x))
        attentions.append(attention)
        tokens.append(x)
    return tuple(attentions), tuple(tokens)


def gradients(score: Tensor, of: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the gradients of the sum of the scores by each tensor, in float32, without changing `.grad`."""
    return tuple(gradient.float() for gradient in torch.autograd.grad(score.sum(), list(of)))


@dataclass(frozen=True, slots=True, eq=False)
class TextTrace:
    """One forward pass of the text tower: `attentions` and `tokens` as in `Trace`, without CLS; `features` float [T, C]
    of the end tokens in CLIP's joint space, not normalised."""

    attentions: tuple[Tensor, ...]
    tokens: tuple[Tensor, ...]
    features: Tensor


def trace_text(model: Any, embeddings: Tensor, ends: Tensor, *, first: int | None = 0) -> TextTrace:
    """Run CLIP's unchanged text tower and keep the attention and tokens of all blocks.

    Args:
        model: a CLIP.
        embeddings: float [T, L, width] of tokens, before positions are added; `model.token_embedding(tokens)` for
            words. Positions after the longest text may be omitted: no token attends to them.
        ends: int64 [T], the position of each text's end token.
        first: as in `trace_vit`.
    """
    length = embeddings.shape[1]
    x = embeddings + model.positional_embedding[:length]
    mask = torch.full((length, length), float("-inf"), dtype=torch.float32, device=x.device).triu(1)
    attentions, tokens = trace_blocks(model.transformer.resblocks, x, mask=mask, first=first)
    last = model.ln_final(tokens[-1])[torch.arange(len(x), device=x.device), ends]
    return TextTrace(attentions, tokens, last @ model.text_projection)
