"""MobileSAM's image encoder: TinyViT, with a neck to SAM's embedding. Tensors have the names of the published file.

Sources: Wu et al., "TinyViT: Fast Pretraining Distillation for Small Vision Transformers" (arXiv 2207.10666); Zhang et
al., "Faster Segment Anything: Towards Lightweight SAM for Mobile Applications" (arXiv 2306.14289), which keeps the grid
of the third stage in the fourth, so that SAM's decoder gets the 64 by 64 that it is used to.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from text2seg.packages import opened
from text2seg.weights.tensors import count_numbered

IMAGE_SIZE = 1024  # no tensor tells it: there are no positions but those within windows
PATCH = 16  # the two convolutions at the start and the first two merges halve the image four times in all
CLASSIFIER = ("norm_head.", "head.")
"""Tensors of the published file that TinyViT was trained with and MobileSAM does not use."""


@dataclass(frozen=True, slots=True)
class TinyViTShape:
    """The architecture, one number for each stage; heads and windows are of the stages after the first, which has no
    attention."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    windows: tuple[int, ...]
    expansion: int
    embedding: int
    image_size: int = IMAGE_SIZE

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], prefix: str) -> TinyViTShape:
        """Read off tensors whose names start with `prefix`. Raises `KeyError` with the first name that is missing."""
        name = prefix + "layers.{}."
        stages = 1 + count_numbered(weights, f"{prefix}layers.{{}}.downsample.conv1.c.weight")
        biases = [weights[name.format(stage) + "blocks.0.attn.attention_biases"] for stage in range(1, stages)]
        first = weights[f"{prefix}layers.0.blocks.0.conv1.c.weight"]
        return cls(
            widths=(
                first.shape[1],
                *(weights[name.format(n) + "blocks.0.attn.norm.weight"].shape[0] for n in _to(stages)),
            ),
            depths=tuple(
                count_numbered(
                    weights, name.format(stage) + "blocks.{}." + ("attn.qkv.weight" if stage else "conv1.c.weight")
                )
                for stage in range(stages)
            ),
            heads=tuple(table.shape[0] for table in biases),
            windows=tuple(isqrt(table.shape[1]) for table in biases),
            expansion=first.shape[0] // first.shape[1],
            embedding=weights[f"{prefix}neck.0.weight"].shape[0],
        )


def _to(stages: int) -> range:
    return range(1, stages)


class TinyViT(nn.Module):
    """Images float [B, 3, S, S] to features [B, C, S / 16, S / 16]."""

    def __init__(self, shape: TinyViTShape) -> None:
        opened("segment_anything")
        from segment_anything.modeling.common import LayerNorm2d

        super().__init__()
        self.img_size = shape.image_size
        self.patch_embed = nn.ModuleDict({"seq": _stem(shape.widths[0])})
        self.layers = nn.ModuleList(_Stage(shape, stage) for stage in range(len(shape.widths)))
        self.neck = nn.Sequential(
            nn.Conv2d(shape.widths[-1], shape.embedding, 1, bias=False),
            LayerNorm2d(shape.embedding),
            nn.Conv2d(shape.embedding, shape.embedding, 3, padding=1, bias=False),
            LayerNorm2d(shape.embedding),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed["seq"](pixels)
        for stage in self.layers:
            x = stage(x)
        squeeze, squeezed, mix, mixed = self.neck
        features: Tensor = mixed(mix(squeezed(squeeze(x).float())).float())
        return features


def encode(encoder: nn.Module, pixels: Tensor) -> Tensor:
    """Features of a batch of images, as `encoder.encode` makes them of SAM's own encoder."""
    features: Tensor = encoder(pixels)
    return features


class _Norm(nn.Module):
    """Batch norm with the statistics of training. It does not count batches, as torch's does, so there is no integer
    among the weights."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


def _conv(inside: int, outside: int, side: int = 1, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inside, outside, side, stride, side // 2, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(c=conv, bn=_Norm(outside)))


def _stem(width: int) -> nn.Sequential:
    return nn.Sequential(_conv(3, width // 2, 3, stride=2), nn.GELU(), _conv(width // 2, width, 3, stride=2))


class _Stage(nn.Module):
    """Blocks on [B, C, h, w], and after all but the last stage a step to the next one's width."""

    def __init__(self, shape: TinyViTShape, stage: int) -> None:
        super().__init__()
        width, last = shape.widths[stage], len(shape.widths) - 1
        self.blocks = nn.ModuleList(
            _Block(width, shape.heads[stage - 1], shape.windows[stage - 1])
            if stage
            else _Convolutions(width, shape.expansion * width)
            for _ in range(shape.depths[stage])
        )
        self.downsample = None
        if stage < last:
            # Source: MobileSAM. The grid is halved but before the last stage.
            self.downsample = _Merge(width, shape.widths[stage + 1], stride=1 if stage == last - 1 else 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class _Merge(nn.Module):
    def __init__(self, width: int, after: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(width, after)
        self.conv2 = _conv(after, after, 3, stride=stride, groups=after)
        self.conv3 = _conv(after, after)

    def forward(self, x: Tensor) -> Tensor:
        merged: Tensor = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))
        return merged


class _Convolutions(nn.Module):
    """MBConv: wide, across the image channel by channel, narrow again."""

    def __init__(self, width: int, wide: int) -> None:
        super().__init__()
        self.conv1 = _conv(width, wide)
        self.conv2 = _conv(wide, wide, 3, groups=wide)
        self.conv3 = _conv(wide, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x))))))


class _Block(nn.Module):
    """Attention within windows, a convolution across their borders, and a perceptron."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.attn = _Attention(width, heads, window)
        self.local_conv = _conv(width, width, 3, groups=width)
        self.mlp = _Perceptron(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._across_windows(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.local_conv(x)
        told: Tensor = x + self.mlp(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return told

    def _across_windows(self, grid: Tensor) -> Tensor:
        """Attention [B, h, w, C] within windows. Those at the border are filled up with zeros, which the norm makes
        into its bias, and which are attended to: so the weights were trained."""
        side, (height, width) = self.window, grid.shape[1:3]
        grid = F.pad(grid, (0, 0, 0, -width % side, 0, -height % side))
        down, across, channels = grid.shape[1] // side, grid.shape[2] // side, grid.shape[3]
        windows = grid.view(-1, down, side, across, side, channels).transpose(2, 3).reshape(-1, side * side, channels)
        mixed = self.attn(windows).view(-1, down, across, side, side, channels)
        whole: Tensor = mixed.transpose(2, 3).reshape(-1, down * side, across * side, channels)
        return whole[:, :height, :width]


class _Attention(nn.Module):
    """Attention with a learnt bias for each distance between two places of the window, by rows and by columns."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))

    def forward(self, windows: Tensor) -> Tensor:
        heads = self.qkv(self.norm(windows)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        query, key, value = heads.chunk(3, dim=-1)
        bias = self.attention_biases[:, self._distances(windows.device)].to(query.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        attended: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return attended

    def _distances(self, device: torch.device) -> Tensor:
        """The number of the distance between each two places, int64 [window², window²]."""
        place = torch.arange(self.window * self.window, device=device)
        rows, columns = place // self.window, place % self.window
        return (rows[:, None] - rows).abs() * self.window + (columns[:, None] - columns).abs()


class _Perceptron(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        told: Tensor = self.fc2(F.gelu(self.fc1(self.norm(x))))
        return told
