"""One forward through CLIP's transformers, image and text, that keeps every block's attention and tokens as tensors
with gradients.

The modules are only read, as in `clip.vit`: no hooks, no gradients on parameters, so threads may share a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from text2seg.clip.vit import embed_patches, join_heads, split_heads


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """One run of a vision transformer.

    `attentions` float [B, heads, N, N] of each block, rows attend to columns and sum to 1, CLS first; `tokens` float
    [B, N, width] after each block; `features` float [B, N, C], the last tokens in CLIP's joint space, not normalised.
    """

    attentions: tuple[Tensor, ...]
    tokens: tuple[Tensor, ...]
    features: Tensor
    grid_hw: tuple[int, int]


def trace_vit(visual: Any, pixels: Tensor, *, first: int | None = 0) -> Trace:
    """Run CLIP's own forward, unchanged, and keep what happens on the way.

    Args:
        visual: a CLIP `VisionTransformer`.
        pixels: float [B, 3, H, W], normalised; H and W multiples of the patch size.
        first: gradients can be taken of the attention of this block and of those after it; negative counts from
            the end, and None is none at all. The later, the less work and memory.
    """
    x, grid_hw = embed_patches(visual, pixels)
    attentions, tokens = trace_blocks(visual.transformer.resblocks, x, first=first)
    return Trace(attentions, tokens, into_joint_space(visual, tokens[-1]), grid_hw)


def into_joint_space(visual: Any, tokens: Tensor) -> Tensor:
    """Tokens [..., width] of a vision transformer as features [..., C], not normalised."""
    features: Tensor = visual.ln_post(tokens) @ visual.proj
    return features


def trace_blocks(
    blocks: Sequence[Any], x: Tensor, *, mask: Tensor | None = None, first: int | None = 0
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Attentions and tokens of a transformer's blocks, as in `Trace`, from its input [B, N, width].

    Args:
        mask: [N, N], added to the logits of the attention.
        first: as for `trace_vit`.
    """
    start = len(blocks) if first is None else first % len(blocks)
    attentions, tokens = [], []
    for index, block in enumerate(blocks):
        query, key, value, _ = split_heads(block, x)
        logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        attention = (logits if mask is None else logits + mask.to(logits)).softmax(-1)
        if index >= start and not attention.requires_grad:
            attention.requires_grad_()  # here the graph begins, so blocks before it keep nothing
        x = x + join_heads(block.attn, attention.to(value.dtype) @ value)
        x = x + block.mlp(block.ln_2(x))
        attentions.append(attention)
        tokens.append(x)
    return tuple(attentions), tuple(tokens)


def gradients(score: Tensor, of: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """How the sum of the scores changes with each tensor, in float32; nothing is written to any tensor."""
    return tuple(gradient.float() for gradient in torch.autograd.grad(score.sum(), list(of)))


@dataclass(frozen=True, slots=True, eq=False)
class TextTrace:
    """One run of the text tower: `attentions` and `tokens` as in `Trace`, without CLS; `features` float [T, C], what
    CLIP reads off each text's end, in its joint space, not normalised."""

    attentions: tuple[Tensor, ...]
    tokens: tuple[Tensor, ...]
    features: Tensor


def trace_text(model: Any, embeddings: Tensor, ends: Tensor, *, first: int | None = 0) -> TextTrace:
    """Run CLIP's text tower, unchanged, and keep what happens on the way.

    Args:
        model: a CLIP.
        embeddings: float [T, L, width] of tokens, before positions are added; `model.token_embedding(tokens)` for
            words. Positions after the longest text may be left off: nothing looks at them.
        ends: int64 [T], where each text ends: the place of its end token.
        first: as for `trace_vit`.
    """
    length = embeddings.shape[1]
    x = embeddings + model.positional_embedding[:length]
    mask = torch.full((length, length), float("-inf"), dtype=torch.float32, device=x.device).triu(1)
    attentions, tokens = trace_blocks(model.transformer.resblocks, x, mask=mask, first=first)
    last = model.ln_final(tokens[-1])[torch.arange(len(x), device=x.device), ends]
    return TextTrace(attentions, tokens, last @ model.text_projection)
