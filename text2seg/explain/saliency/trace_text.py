"""CLIP's text tower from token embeddings, so that a token need not be a word, with every block's attention kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from text2seg.explain.saliency.trace import trace_blocks


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
