"""CLIP's image encoders with one of the attention rules, as pure functions of the standard modules.

CLIP's own attention mixes every patch with a few patches that describe the whole image, so patch features do not
localise objects. The rules, of CLIP Surgery and later methods, correct that in the last blocks without training, all in
the same way: a second path for the patches branches off at the first changed block. Each changed block adds the output
of the rule's `attention`, computed from the block's queries, keys and values on the original path. The original path is
not changed, and gives the CLS feature. Rules that attend within regions get the weights of the attention from the
caller, because CLIP knows no regions (`text2seg.regions.weights_within_regions`). To add a rule, write its function,
add a row to `RULES`, and add its name to `text2seg.config.Architecture`.

The modules are only read: nothing in them changes, so threads may share them, and gradients flow. A vision transformer
fits if its blocks have OpenAI's names: OpenAI's own, open_clip's, and others behind a `Vit`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

# ---- attention rules

PRIOR_SIGMA = 5.0
"""Standard deviation of NACLIP's neighbour prior, in patches."""
MIDDLE_WEIGHT, CLS_WEIGHT = 1.0, 0.5
"""Weights of CorrCLIP's branches: the mean output of the middle blocks, attending in the last block as its input does,
and a CLS for each region, which sees only the patches of the region."""


class Attend(Protocol):
    """softmax(query keyᵀ / √d + attn_mask) value, for tensors [B, heads, N, d]; the mask is optional."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor: ...


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """Inputs of one block's attention: `query`, `key` and `value` float [B, heads, N, d], and the output of LN1 that
    they are projected from, `normed` [B, N, width]. The first `prefix` tokens are CLS (0 or 1), the others the
    patches."""

    query: Tensor
    key: Tensor
    value: Tensor
    normed: Tensor
    grid_hw: tuple[int, int]
    prefix: int = 1
    weights: Tensor | None = None
    """For rules that attend within regions: float [B, h·w, h·w], how much each patch (row) takes from each other."""


@dataclass(frozen=True, slots=True)
class AttentionRule:
    """Configuration of the patch path. The last `blocks` blocks are changed, at most half of the model's blocks."""

    attention: Callable[[Heads, Attend], Tensor]
    """Function from a block's heads to the update [B, heads, N, d], before the heads are joined and projected."""
    blocks: int = 1
    """Number of changed blocks; 0 leaves the model as published."""
    residual: bool = True
    """Whether the path starts with the input of the first changed block; otherwise it starts at zero."""
    ffn: bool = True
    """Whether the feed-forward network of every changed block is applied to the path."""
    regions: bool = False
    """Whether patches attend within regions, by weights that the caller gives. Such a rule changes the last block only
    and adds two branches; see `MIDDLE_WEIGHT` and `CLS_WEIGHT`."""
    sharpness: float = 0.0
    """With `regions`: factor of the similarity in the softmax over a region; 0 gives its patches equal weights."""

    def changed(self, depth: int) -> int:
        """Return the number of changed blocks in a model with `depth` blocks.

        >>> [RULES["surgery"].changed(depth) for depth in (1, 6, 8, 12, 24)]
        [1, 3, 4, 6, 6]
        """
        return min(self.blocks, max(depth // 2, 1))


def query_key(heads: Heads, attend: Attend) -> Tensor:
    """softmax(QKᵀ/√d) V, CLIP's own attention."""
    return attend(heads.query, heads.key, heads.value)


def value_alone(heads: Heads, attend: Attend) -> Tensor:
    """V, without attention between patches."""
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
    """softmax(KKᵀ/√d + G) V with the Gaussian prior G for neighbours."""
    prior = neighbour_prior(heads.grid_hw, PRIOR_SIGMA, prefix=heads.prefix).to(heads.key)
    return attend(heads.key, heads.key, heads.value, attn_mask=prior)


def self_self_ensemble(heads: Heads, attend: Attend) -> Tensor:
    """Return the mean over X = Q, K, V of self-self attention: normalise X, attend X to itself, normalise the result,
    and use it as queries and keys to attend to V. The logits are cosines times the mean norm of LN1's output over
    √d."""
    strength = heads.normed.norm(dim=-1).mean(dim=1)[:, None, None, None]
    mixed = []
    for x in (heads.query, heads.key, heads.value):
        unit = F.normalize(x, dim=-1)
        unit = F.normalize(attend(unit * strength, unit, unit), dim=-1)
        mixed.append(attend(unit * strength, unit, heads.value))
    return torch.stack(mixed).mean(0)


def within_regions(heads: Heads, attend: Attend) -> Tensor:
    """W V for the patches, with the weights W of the regions; 0 for the prefix tokens."""
    assert heads.weights is not None, "run_vit checks it"
    mixed = heads.weights.to(heads.value)[:, None] @ heads.value[:, :, heads.prefix :]
    return F.pad(mixed, (0, 0, heads.prefix, 0))


def neighbour_prior(grid_hw: tuple[int, int], sigma: float, *, prefix: int = 1) -> Tensor:
    """Return exp(−distance² / 2σ²) between the cells of a grid, float64 [prefix + h·w, prefix + h·w]; 0 for the prefix
    tokens."""
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
    # CorrCLIP, "Reconstructing Correlations in CLIP", arXiv 2411.10086, with SAM alone: equal weights, or those of
    # SAM's features in place of DINO's.
    "corrclip": AttentionRule(within_regions, residual=False, ffn=False, regions=True),
    "corrclip-sam": AttentionRule(within_regions, residual=False, ffn=False, regions=True, sharpness=4.0),
}


# ---- vision transformers


class Vit(Protocol):
    """Interface of vision transformers for `run_vit`."""

    @property
    def prefix(self) -> int:
        """Number of tokens before the patches: 1 with a CLS token, else 0."""
        ...

    @property
    def pools_cls(self) -> bool:
        """Whether the pooled feature is that of the CLS token."""
        ...

    @property
    def blocks(self) -> Sequence[Any]:
        """Blocks with OpenAI's names: ln_1, attn.in_proj_weight, attn.in_proj_bias, attn.num_heads, attn.out_proj,
        ln_2, mlp; ls_1 and ls_2 if there is layer scale."""
        ...

    def embed(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the input of the first block, float [B, prefix + h·w, width], and the rows and columns of the grid."""
        ...

    def features(self, tokens: Tensor, patches: Tensor) -> Tensor:
        """Return features [B, 1 + h·w, embedding], not normalised: the model's pooled feature of the last block's
        output `tokens` [B, prefix + h·w, width], then one feature per patch, from `patches` [B, h·w, width]."""
        ...


class PlainVit:
    """A `VisionTransformer` of OpenAI's package or of open_clip."""

    prefix = 1

    def __init__(self, visual: Any) -> None:
        self._visual = visual
        self.blocks: Sequence[Any] = visual.transformer.resblocks
        # CLIPA's pooled feature is the mean of its patches, although it has a CLS token.
        self.pools_cls = getattr(visual, "pool_type", "tok") != "avg"

    def embed(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        return embed_patches(self._visual, pixels)

    def features(self, tokens: Tensor, patches: Tensor) -> Tensor:
        pooled = tokens[:, :1] if self.pools_cls else tokens[:, 1:].mean(dim=1, keepdim=True)
        joined: Tensor = self._visual.ln_post(torch.cat([pooled, patches], dim=1)) @ self._visual.proj
        return joined


def resize_positions(embedding: Tensor, grid_hw: tuple[int, int], *, prefix: int = 1) -> Tensor:
    """Resize position embeddings to another grid, bilinearly, without antialiasing. The CLS position is kept.

    Args:
        embedding: float [prefix + n·n, width], trained on a square grid.
        grid_hw: rows and columns of the new grid.
        prefix: number of positions before the grid; default 1, for CLS.

    Returns:
        float [prefix + rows·columns, width]; the same tensor if the grid already fits.
    """
    side = round((embedding.shape[0] - prefix) ** 0.5)
    if (side, side) == tuple(grid_hw):
        return embedding
    cls, patches = embedding[:prefix], embedding[prefix:]
    square = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(square.float(), size=grid_hw, mode="bilinear", align_corners=False)
    return torch.cat([cls, resized.permute(0, 2, 3, 1).flatten(1, 2)[0].to(embedding.dtype)])


def embed_patches(visual: Any, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Return the input of the first block, float [B, 1 + h·w, width], CLS first, and the rows and columns of the
    grid."""
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
    weights: Tensor | None = None,
) -> Tensor:
    """Return image tokens in the joint space of CLIP, not normalised.

    Args:
        visual: a CLIP `VisionTransformer`.
        pixels: float [B, 3, H, W], normalised; H and W multiples of the patch size.
        rule: attention rule, one of `RULES`.
        blocks: number of last blocks to change; default: that of the rule.
        attention: implementation of softmax(query keyᵀ / √d) value.
        weights: float [B, h·w, h·w], for rules that attend within regions; see `Heads`.

    Returns:
        float [B, 1 + h·w, embedding], CLS first; CLS always comes from the original path.

    Raises:
        ValueError: the rule attends within regions, and there are no weights.
    """
    return run_vit(PlainVit(visual), pixels, rule=rule, blocks=blocks, attention=attention, weights=weights)


def run_vit(
    vit: Vit,
    pixels: Tensor,
    *,
    rule: AttentionRule = RULES["surgery"],
    blocks: int | None = None,
    attention: Attend = F.scaled_dot_product_attention,
    weights: Tensor | None = None,
) -> Tensor:
    """Do the same as `encode_vit` for any `Vit`. The first token of the result is the pooled feature."""
    x, grid_hw = vit.embed(pixels)
    if rule.regions:
        if weights is None:
            raise ValueError("the attention rule attends within regions, and their weights are missing")
        return _run_within_regions(vit, x, grid_hw, rule, weights, attention)
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


def _run_within_regions(
    vit: Vit, x: Tensor, grid_hw: tuple[int, int], rule: AttentionRule, weights: Tensor, attention: Attend
) -> Tensor:
    """Return the features of `run_vit` for a rule that attends within regions, from the input of the first block."""
    *blocks, last = vit.blocks
    middle = []
    for index, block in enumerate(blocks):
        x = run_block(block, x, attention)
        if index in middle_blocks(len(vit.blocks)):
            middle.append(x)
    heads = Heads(*split_heads(last, x), grid_hw, vit.prefix, weights)
    patches = _patches(rule, last, heads, None, attention)
    if middle:
        mean = Heads(*split_heads(last, torch.stack(middle).mean(0)), grid_hw, vit.prefix, weights)
        patches = patches + MIDDLE_WEIGHT * _patches(rule, last, mean, None, attention)
    tokens = run_block(last, x, attention)
    features = vit.features(tokens, patches[:, vit.prefix :])
    if not vit.pools_cls:
        return features
    of_regions = vit.features(tokens, _region_cls(last, x, heads, weights, attention))[:, 1:]
    joined = F.normalize(features[:, 1:], dim=-1) + CLS_WEIGHT * F.normalize(of_regions, dim=-1)
    return torch.cat([features[:, :1], joined], dim=1)


def middle_blocks(depth: int) -> range:
    """Return the numbers of the middle blocks, from 0: the second half without the last block.

    >>> middle_blocks(12), middle_blocks(2)
    (range(6, 11), range(1, 1))
    """
    return range(depth // 2, depth - 1)


def _region_cls(block: Any, x: Tensor, heads: Heads, weights: Tensor, attention: Attend) -> Tensor:
    """Return the CLS of each patch's region after the last block, float [B, h·w, width].

    It has the input of CLS, attends only to the patches with a weight for the patch, and goes on as CLS does.

    Args:
        x: the input of the block [B, 1 + h·w, width].
        heads: those of the block.
    """
    hidden = torch.zeros_like(weights, dtype=heads.key.dtype).masked_fill(weights <= 0, -torch.inf)
    query = heads.query[:, :, :1].expand(-1, -1, weights.shape[1], -1)
    mixed = attention(query, heads.key[:, :, 1:], heads.value[:, :, 1:], attn_mask=hidden[:, None])
    return _add_mlp(_add_attention(x[:, :1], block, mixed), block)


def run_block(block: Any, x: Tensor, attention: Attend = F.scaled_dot_product_attention) -> Tensor:
    """Return the output of one unchanged block for its input [B, N, width]."""
    query, key, value, _ = split_heads(block, x)
    return _add_mlp(_add_attention(x, block, attention(query, key, value)), block)


def _patches(rule: AttentionRule, block: Any, heads: Heads, path: Tensor | None, attention: Attend) -> Tensor:
    """Return the patch path [B, N, width] after one more changed block. A `path` of None starts at zero."""
    path = _add_attention(path, block, rule.attention(heads, attention))
    return _add_mlp(path, block) if rule.ffn else path


def _add_attention(x: Tensor | None, block: Any, mixed: Tensor) -> Tensor:
    added = scaled(block, "ls_1", join_heads(block.attn, mixed))
    return added if x is None else x + added


def _add_mlp(x: Tensor, block: Any) -> Tensor:
    return x + scaled(block, "ls_2", block.mlp(block.ln_2(x)))


def scaled(block: Any, name: str, x: Tensor) -> Tensor:
    """Apply the block's layer scale of this name, if it has one; OpenAI's blocks have none."""
    scale = getattr(block, name, None)
    return x if scale is None else scale(x)


def split_heads(block: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return queries, keys and values of a block, [B, heads, N, width / heads] each, and the normalised input
    [B, N, width] that they are projected from. `x` [B, N, width] is the input of the block."""
    normed = block.ln_1(x)
    packed = F.linear(normed, block.attn.in_proj_weight, block.attn.in_proj_bias)
    query, key, value = packed.unflatten(-1, (3, block.attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
    return query, key, value, normed


def join_heads(attention: Any, heads: Tensor) -> Tensor:
    """Join the heads [B, heads, N, width / heads] and project them out: [B, N, width]."""
    return F.linear(heads.transpose(1, 2).flatten(2), attention.out_proj.weight, attention.out_proj.bias)


# ---- ResNets
# The trunk is unchanged. In the attention pool the patches use value-value attention (arXiv 2304.05653, section 3.2).
# CLS is the model's own pooled feature. (The original code overwrites q and k by v, so its CLS differs from CLIP's.)


def encode_resnet(visual: Any, pixels: Tensor, *, surgery: bool = True) -> Tensor:
    """Return image tokens in the joint space of CLIP, not normalised.

    Args:
        visual: a CLIP `ModifiedResNet`.
        pixels: float [B, 3, H, W], normalised; H and W multiples of 32.
        surgery: use value-value attention for patches; otherwise the pool's own queries and keys (raw CLIP).

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
