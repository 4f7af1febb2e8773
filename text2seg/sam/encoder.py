"""SAM's image encoder with fused attention, as a pure function of the stock module.

The module is only read, so threads may share it. The result equals the stock forward to rounding. Two things are saved:
the matrix of all attention weights with its position bias (1.6 GB per image at SAM's full size), and the projection of
the zeros that pad windows.

Source: Kirillov et al., "Segment Anything" (arXiv 2304.02643); its encoder is that of Li et al., "Exploring Plain
Vision Transformer Backbones for Object Detection" (arXiv 2203.16527), its decomposed relative positions those of
"MViTv2" (arXiv 2112.01526).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from text2seg.errors import SettingsError

Network = Callable[..., Tensor]
Fusion = Literal["fold", "mask"]

FOLDED_TO = 16  # fused kernels need a head width that is a multiple of this
WIDEST_FOLD_ON_CPU = 16  # rows of tokens; a window of SAM has 14, the whole grid 64
ROWS_PER_MASK = 8
"""Rows of queries whose position bias is in memory at once on a CPU, so that it fits into the caches."""


def encode(encoder: Any, pixels: Tensor, *, fusion: Fusion | None = None) -> Tensor:
    """Encode a batch of images.

    Args:
        encoder: the `image_encoder` of a `segment_anything` Sam.
        pixels: float [B, 3, S, S], normalised, S the side of the model's input frame.
        fusion: how the position bias enters fused attention; default: the faster way, see `fastest`.

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
    """Return the faster fusion for attention over `rows` by `rows` tokens (measured: docs/measurements/performance.md).

    `fold` makes heads wider by 2 · rows; `mask` reads a bias for each pair of tokens. Windows are small enough to fold
    on every device. The whole grid is too wide to fold on a CPU; on a GPU reading the bias from memory is slower.
    """
    return "mask" if device.type == "cpu" and rows > WIDEST_FOLD_ON_CPU else "fold"


def _attend(block: Any, x: Tensor, fusion: Fusion | None) -> Tensor:
    """Run the attention of one block on [B, h, w, width], within its windows or over the whole grid."""
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
    """Split projections [B, h, w, C] into windows [B · n, window, window, C], padded at the right and at the bottom.

    The stock encoder pads with zeros before the projection, so the padding here is exactly the projection's bias.
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
    """Join windows into the grid [B, h, w, C] and remove the padding."""
    down, across = (-(-side // window) for side in hw)
    apart = windows.view(-1, down, across, window, window, windows.shape[-1]).transpose(2, 3)
    return apart.reshape(-1, down * window, across * window, windows.shape[-1])[:, : hw[0], : hw[1]]


def _between(table: Tensor, side: int) -> Tensor:
    """Look up the embeddings [side, side, d] of the offset between each two positions in a table [2 · side - 1, d]."""
    places = torch.arange(side, device=table.device)
    return table[places[:, None] - places[None] + side - 1]


def _biases(query: Tensor, by_rows: Tensor, by_columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bias of each query [B, heads, h · w, d] on the keys of each row, [B, heads, h, w, rows], and of each
    column, [B, heads, h, w, columns]. `by_rows` has only the rows of the queries."""
    grid = query.unflatten(2, (len(by_rows), len(by_columns)))
    return torch.einsum("bnhwc,hkc->bnhwk", grid, by_rows), torch.einsum("bnhwc,wkc->bnhwk", grid, by_columns)


def _folded(query: Tensor, key: Tensor, value: Tensor, by_rows: Tensor, by_columns: Tensor) -> Tensor:
    """Attend with the biases as extra channels of the queries; the extra channels of a key are one-hot for its row and
    column.

    This is plain attention, exact in float32, and in bf16 closer to float32 than adding a rounded bias. Values get
    channels of zeros, because fused kernels need equal head widths.
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
    """Attend with the biases as an additive mask, a few rows of queries at a time."""
    columns = len(by_columns)
    step = ROWS_PER_MASK if query.device.type == "cpu" else len(by_rows)
    parts = []
    for start in range(0, len(by_rows), step):
        part = query[:, :, start * columns : (start + step) * columns]
        to_rows, to_columns = _biases(part, by_rows[start : start + step], by_columns)
        bias = (to_rows[..., :, None] + to_columns[..., None, :]).flatten(2, 3).flatten(3)
        parts.append(F.scaled_dot_product_attention(part, key, value, attn_mask=bias))
    return torch.cat(parts, dim=2)


_FUSIONS = {"fold": _folded, "mask": _masked}


def compiled(network: Network, device: torch.device) -> Network:
    """Wrap a function in `torch.compile`, which compiles it at its first call for each input shape.

    A small function is compiled at once, so that a missing compiler shows now and not in the middle of a job.

    Raises:
        SettingsError: nothing can be compiled for this device here; says what is missing.
    """
    try:
        _compile(_trial)(torch.ones(8, dtype=torch.float32, device=device))
    except Exception as error:  # torch raises its own errors, the compiler's, RuntimeError and OSError here
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SettingsError(
            f"cannot compile for {device} here, a C++ compiler such as g++ is needed (and Triton on a GPU): {reason}; "
            "leave --compile out"
        ) from error
    return _compile(network)


def _compile(network: Network) -> Network:
    # Dynamic shapes would make padding of batches unnecessary, but attention with position biases is slower with them
    # or fails to compile.
    function: Network = torch.compile(network, dynamic=False, fullgraph=True)
    return function


def _trial(numbers: Tensor) -> Tensor:
    return numbers.sin() + numbers.cos()
