"""SAM's image encoder with fused attention, as a pure function of the stock module.

The module is only read, so threads may share it. Equal to the stock forward to rounding, with two things left out: the
matrix of all attention weights with the position bias on it (1.6 GB an image at SAM's full size), and the projections
of the zeros that windows are filled up with.

Source: Kirillov et al., "Segment Anything" (arXiv 2304.02643); its encoder is that of Li et al., "Exploring Plain
Vision Transformer Backbones for Object Detection" (arXiv 2203.16527), its decomposed relative positions those of
"MViTv2" (arXiv 2112.01526).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Fusion = Literal["fold", "mask"]

FOLDED_TO = 16  # fused kernels want heads of a whole multiple of this
WIDEST_FOLD_ON_CPU = 16  # rows of tokens; SAM's windows have 14, the whole grid 64
ROWS_PER_MASK = 8
"""Rows of queries whose position bias is held at once on a CPU: memory stays flat, and caches hold what is used."""


def encode(encoder: Any, pixels: Tensor, *, fusion: Fusion | None = None) -> Tensor:
    """Features of a batch of images.

    Args:
        encoder: the `image_encoder` of a `segment_anything` Sam.
        pixels: float [B, 3, S, S], normalised, S the side of the model's input frame.
        fusion: how positions get into fused attention; default: the faster way, see `fastest`.

    Returns:
        float32 [B, C, S / patch, S / patch]. Norms and the residual path are float32 whatever the caller's autocast.
    """
    x = encoder.patch_embed(pixels) + encoder.pos_embed
    for block in encoder.blocks:
        x = x + _attend(block, block.norm1(x.float()), fusion)
        x = x + block.mlp(block.norm2(x.float()))
    squeeze, squeezed, mix, mixed = encoder.neck
    features: Tensor = mixed(mix(squeezed(squeeze(x.permute(0, 3, 1, 2)).float())).float())
    return features


def fastest(device: torch.device, rows: int) -> Fusion:
    """The faster way for attention within `rows` by `rows` tokens, by measurement (docs/measurements/performance.md).

    `fold` makes heads wider by 2 · rows, `mask` reads a bias for every two tokens. Windows are small enough for folding
    everywhere. All of the grid is too wide for it on a CPU; a GPU would have to read the bias from its main memory.
    """
    return "mask" if device.type == "cpu" and rows > WIDEST_FOLD_ON_CPU else "fold"


def _attend(block: Any, x: Tensor, fusion: Fusion | None) -> Tensor:
    """One block's attention [B, h, w, width], within its windows or over all of the grid."""
    module, window, (height, width) = block.attn, block.window_size, x.shape[1:3]
    packed = module.qkv(x)
    if window:
        packed = _to_windows(packed, window, module.qkv.bias)
    parts, rows, columns, _ = packed.shape
    heads = packed.view(parts, rows * columns, 3, module.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = heads.unbind()
    by_rows = _between(module.rel_pos_h, rows).to(query.dtype)
    by_columns = _between(module.rel_pos_w, columns).to(query.dtype)
    way = _FUSIONS[fusion or fastest(x.device, rows)]
    mixed = way(query, key, value, by_rows, by_columns).transpose(1, 2).reshape(parts, rows, columns, -1)
    if window:
        mixed = _from_windows(mixed, window, (height, width))
    attended: Tensor = module.proj(mixed)
    return attended


def _to_windows(packed: Tensor, window: int, filling: Tensor) -> Tensor:
    """Windows [B · n, window, window, C] of projections [B, h, w, C], filled up at the right and below.

    The stock encoder fills up with zeros and projects them, of which the bias is left, exactly.
    """
    batch, height, width, channels = packed.shape
    down, across = -(-height // window), -(-width // window)
    if (down * window, across * window) != (height, width):
        filled = filling.to(packed.dtype).expand(batch, down * window, across * window, channels).clone()
        filled[:, :height, :width] = packed
        packed = filled
    apart = packed.view(batch, down, window, across, window, channels).transpose(2, 3)
    return apart.reshape(-1, window, window, channels)


def _from_windows(windows: Tensor, window: int, hw: tuple[int, int]) -> Tensor:
    """The grid [B, h, w, C] of windows, without what they were filled up with."""
    down, across = (-(-side // window) for side in hw)
    apart = windows.view(-1, down, across, window, window, windows.shape[-1]).transpose(2, 3)
    return apart.reshape(-1, down * window, across * window, windows.shape[-1])[:, : hw[0], : hw[1]]


def _between(table: Tensor, side: int) -> Tensor:
    """Embeddings [side, side, d] of the way from each place to each other on one axis, of a table [2 · side - 1, d]."""
    places = torch.arange(side, device=table.device)
    return table[places[:, None] - places[None] + side - 1]


def _biases(query: Tensor, by_rows: Tensor, by_columns: Tensor) -> tuple[Tensor, Tensor]:
    """What each query [B, heads, h · w, d] adds to the logits of keys in each row, [B, heads, h, w, rows], and in each
    column, [B, heads, h, w, columns]. Of `by_rows` only those of the query's rows are given."""
    grid = query.unflatten(2, (len(by_rows), len(by_columns)))
    return torch.einsum("bnhwc,hkc->bnhwk", grid, by_rows), torch.einsum("bnhwc,wkc->bnhwk", grid, by_columns)


def _folded(query: Tensor, key: Tensor, value: Tensor, by_rows: Tensor, by_columns: Tensor) -> Tensor:
    """The biases as further channels of the queries; the keys' further channels say in which row and column they are.

    Plain attention then, exact in float32; in bf16 nearer to float32 than adding a rounded bias. Values get channels
    of zeros, because fused kernels want heads of one width.
    """
    depth, (rows, columns) = query.shape[-1], (len(by_rows), len(by_columns))
    scale = depth**-0.5
    to_rows, to_columns = (bias.flatten(2, 3) / scale for bias in _biases(query, by_rows, by_columns))
    spare = -(depth + rows + columns) % FOLDED_TO
    place = torch.arange(rows * columns, device=key.device)
    one_hot = torch.cat([F.one_hot(place // columns, rows), F.one_hot(place % columns, columns)], dim=1).to(key.dtype)
    query = F.pad(torch.cat([query, to_rows, to_columns], dim=-1), (0, spare))
    key = F.pad(torch.cat([key, one_hot.expand(*key.shape[:2], -1, -1)], dim=-1), (0, spare))
    value = F.pad(value, (0, rows + columns + spare))
    return F.scaled_dot_product_attention(query, key, value, scale=scale)[..., :depth]


def _masked(query: Tensor, key: Tensor, value: Tensor, by_rows: Tensor, by_columns: Tensor) -> Tensor:
    """The biases as an additive mask, some rows of queries at a time."""
    columns = len(by_columns)
    step = ROWS_PER_MASK if query.device.type == "cpu" else len(by_rows)
    parts = []
    for start in range(0, len(by_rows), step):
        some = query[:, :, start * columns : (start + step) * columns]
        to_rows, to_columns = _biases(some, by_rows[start : start + step], by_columns)
        bias = (to_rows[..., :, None] + to_columns[..., None, :]).flatten(2, 3).flatten(3)
        parts.append(F.scaled_dot_product_attention(some, key, value, attn_mask=bias))
    return torch.cat(parts, dim=2)


_FUSIONS = {"fold": _folded, "mask": _masked}
