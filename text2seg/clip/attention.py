"""How the patches of a CLIP vision transformer attend in its last blocks: CLIP Surgery and the rules that came later.

CLIP's own attention mixes every patch with a few that stand for the whole image, so its patches do not show what is
where. All rules mend that without training, in one way: a second path for the patches branches off at the first
changed block. There every changed block adds what `attention` makes of the queries, keys and values that the block
has on the original path, which runs on as it was, and which CLS comes from.

A new rule is one entry in `RULES`, and its name in `MapSettings.architecture`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from text2seg.errors import SettingsError

PRIOR_SIGMA = 5.0  # of NACLIP's prior, in patches
RESNET_RULES = ("surgery", "raw")


class Attend(Protocol):
    """softmax(query keyᵀ / √d + attn_mask) value, for tensors [B, heads, N, d]; the mask may be left out."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor: ...


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """One block's attention, before it attends: `query`, `key` and `value` float [B, heads, N, d], first CLS where
    there is one (`prefix` 1), then the patches; `normed` [B, N, width], what they come from (LN1's output)."""

    query: Tensor
    key: Tensor
    value: Tensor
    normed: Tensor
    grid_hw: tuple[int, int]
    prefix: int = 1


@dataclass(frozen=True, slots=True)
class AttentionRule:
    """What the patches' own path does. The changed blocks are the last `blocks`, but at most half of all."""

    attention: Callable[[Heads, Attend], Tensor]
    """From a block's heads to what it adds, [B, heads, N, d], before the heads are joined and projected out."""
    blocks: int = 1
    """0 changes nothing."""
    residual: bool = True
    """The path starts as the input of the first changed block, otherwise from nothing."""
    ffn: bool = True
    """Every changed block's feed-forward network is applied to the path as well."""

    def changed(self, depth: int) -> int:
        """How many of a model's blocks are changed.

        >>> [RULES["surgery"].changed(depth) for depth in (1, 6, 8, 12, 24)]
        [1, 3, 4, 6, 6]
        """
        return min(self.blocks, max(depth // 2, 1))


def query_key(heads: Heads, attend: Attend) -> Tensor:
    """CLIP's own."""
    return attend(heads.query, heads.key, heads.value)


def value_alone(heads: Heads, attend: Attend) -> Tensor:
    """No patch looks at another."""
    return heads.value


def value_value(heads: Heads, attend: Attend) -> Tensor:
    """softmax(VVᵀ/√d) V."""
    return attend(heads.value, heads.value, heads.value)


def query_query(heads: Heads, attend: Attend) -> Tensor:
    """softmax(QQᵀ/√d) V."""
    return attend(heads.query, heads.query, heads.value)


def query_query_and_key_key(heads: Heads, attend: Attend) -> Tensor:
    """(softmax(QQᵀ/√d) + softmax(KKᵀ/√d)) V."""
    return attend(heads.query, heads.query, heads.value) + attend(heads.key, heads.key, heads.value)


def near_keys(heads: Heads, attend: Attend) -> Tensor:
    """softmax(KKᵀ/√d + G) V, where G prefers neighbours."""
    prior = neighbour_prior(heads.grid_hw, PRIOR_SIGMA, prefix=heads.prefix).to(heads.key)
    return attend(heads.key, heads.key, heads.value, attn_mask=prior)


def self_self_ensemble(heads: Heads, attend: Attend) -> Tensor:
    """The mean over X = Q, K, V of: X to unit length, mixed by attention to itself, to unit length again, and by
    that attending to V. The logits are cosines times the mean norm of LN1's output over √d."""
    strength = heads.normed.norm(dim=-1).mean(dim=1)[:, None, None, None]
    mixed = []
    for x in (heads.query, heads.key, heads.value):
        unit = F.normalize(x, dim=-1)
        unit = F.normalize(attend(unit * strength, unit, unit), dim=-1)
        mixed.append(attend(unit * strength, unit, heads.value))
    return torch.stack(mixed).mean(0)


def neighbour_prior(grid_hw: tuple[int, int], sigma: float, *, prefix: int = 1) -> Tensor:
    """exp(−distance² / 2σ²) between the cells of a grid: float64 [prefix + h·w, prefix + h·w], 0 for CLS, which comes
    first."""
    rows, columns = grid_hw
    cells = (
        torch.cartesian_prod(torch.arange(rows, device="cpu"), torch.arange(columns, device="cpu"))
        .double()
        .reshape(-1, 2)
    )
    squared = (cells[:, None] - cells[None]).square().sum(-1)
    return F.pad(torch.exp(-squared / (2 * sigma**2)), (prefix, 0, prefix, 0))


RULES: Mapping[str, AttentionRule] = {
    # CLIP Surgery, arXiv 2304.05653: the consistent attention of several blocks, summed.
    "surgery": AttentionRule(value_value, blocks=6, ffn=False),
    "raw": AttentionRule(query_key, blocks=0),
    # MaskCLIP, "Extract Free Dense Labels from CLIP", arXiv 2112.01071.
    "maskclip": AttentionRule(value_alone),
    # SCLIP, "Rethinking Self-Attention for Dense Vision-Language Inference", arXiv 2312.01597.
    "sclip": AttentionRule(query_query_and_key_key),
    # ClearCLIP, "Decomposing CLIP Representations for Dense Vision-Language Inference", arXiv 2407.12442.
    "clearclip": AttentionRule(query_query, residual=False, ffn=False),
    # NACLIP, "Pay Attention to Your Neighbours", arXiv 2404.08181.
    "naclip": AttentionRule(near_keys, residual=False, ffn=False),
    # GEM, "Grounding Everything", arXiv 2312.00878; one iteration, as its authors use it.
    "gem": AttentionRule(self_self_ensemble, blocks=6, ffn=False),
}


def check_resnet(architecture: str) -> None:
    """Raise where a ResNet cannot follow the rule: it has one attention, the pool, and no blocks.

    Raises:
        SettingsError: the rule is for vision transformers only.
    """
    if architecture not in RESNET_RULES:
        names = " or ".join(RESNET_RULES)
        raise SettingsError(
            f"architecture {architecture} is for CLIP's vision transformers, and this CLIP is a ResNet: "
            f"use {names}, or a ViT such as ViT-B/16"
        )
