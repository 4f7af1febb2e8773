"""MobileSAM: SAM with TinyViT as its image encoder, followed by a neck to SAM's embedding.

Tensors have the names of the published file.

Sources: Wu et al., "TinyViT: Fast Pretraining Distillation for Small Vision Transformers" (arXiv 2207.10666); Zhang et
al., "Faster Segment Anything: Towards Lightweight SAM for Mobile Applications" (arXiv 2306.14289). In MobileSAM the
fourth stage has the grid of the third, so that SAM's decoder gets its usual grid of 64 by 64.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from text2seg.sam.sam import Architecture, Sam, modeling, read_decoder
from text2seg.weights.architecture import count_numbered

IMAGE_SIZE = 1024  # not in the shape of any tensor, because positions are only encoded within windows
PATCH = 16  # two convolutions at the start and the first two merges halve the image four times
CLASSIFIER = ("norm_head.", "head.")
"""Tensors of the published file that only the training of TinyViT needed."""


@dataclass(frozen=True, slots=True)
class TinyViTShape:
    """Architecture of a TinyViT, with one number for each stage. `heads` and `windows` start at the second stage: the
    first has no attention."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    windows: tuple[int, ...]
    expansion: int
    embedding: int
    image_size: int = IMAGE_SIZE

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], prefix: str) -> TinyViTShape:
        """Read the architecture off tensors whose names start with `prefix`. Raises `KeyError` with the first missing
        name."""
        name = prefix + "layers.{}."
        stages = 1 + count_numbered(weights, f"{prefix}layers.{{}}.downsample.conv1.c.weight")
        biases = [weights[name.format(stage) + "blocks.0.attn.attention_biases"] for stage in range(1, stages)]
        first = weights[f"{prefix}layers.0.blocks.0.conv1.c.weight"]
        return cls(
            widths=(
                first.shape[1],
                *(weights[name.format(n) + "blocks.0.attn.norm.weight"].shape[0] for n in range(1, stages)),
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


class TinyViT(nn.Module):
    """Network from images float [B, 3, S, S] to features [B, C, S / 16, S / 16]."""

    def __init__(self, shape: TinyViTShape) -> None:
        super().__init__()
        layer_norm = modeling().common.LayerNorm2d
        self.img_size = shape.image_size
        self.patch_embed = nn.ModuleDict({"seq": _stem(shape.widths[0])})
        self.layers = nn.ModuleList(_Stage(shape, stage) for stage in range(len(shape.widths)))
        self.neck = nn.Sequential(
            nn.Conv2d(shape.widths[-1], shape.embedding, 1, bias=False),
            layer_norm(shape.embedding),
            nn.Conv2d(shape.embedding, shape.embedding, 3, padding=1, bias=False),
            layer_norm(shape.embedding),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed["seq"](pixels)
        for stage in self.layers:
            x = stage(x)
        squeeze, squeezed, mix, mixed = self.neck
        features: Tensor = mixed(mix(squeezed(squeeze(x).float())).float())
        return features


class _Norm(nn.Module):
    """Batch norm with the statistics of training. Unlike torch's, it has no count of batches, so all its weights are
    floats."""

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
    """Blocks on [B, C, h, w]; then, except in the last stage, a layer that changes to the width of the next stage."""

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
            # Source: MobileSAM. The grid is halved, except before the last stage.
            self.downsample = _Merge(width, shape.widths[stage + 1], stride=1 if stage == last - 1 else 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class _Merge(nn.Module):
    """Change from one width to the next, and to a grid that is smaller by `stride`."""

    def __init__(self, width: int, next_width: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(width, next_width)
        self.conv2 = _conv(next_width, next_width, 3, stride=stride, groups=next_width)
        self.conv3 = _conv(next_width, next_width)

    def forward(self, x: Tensor) -> Tensor:
        merged: Tensor = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))
        return merged


class _Convolutions(nn.Module):
    """MBConv: more channels, a convolution of each channel, and the first number of channels again."""

    def __init__(self, width: int, inner_width: int) -> None:
        super().__init__()
        self.conv1 = _conv(width, inner_width)
        self.conv2 = _conv(inner_width, inner_width, 3, groups=inner_width)
        self.conv3 = _conv(inner_width, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x))))))


class _Block(nn.Module):
    """Attention within windows, a convolution across their borders, and an MLP."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.attn = _Attention(width, heads, window)
        self.local_conv = _conv(width, width, 3, groups=width)
        self.mlp = _Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._across_windows(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.local_conv(x)
        output: Tensor = x + self.mlp(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return output

    def _across_windows(self, grid: Tensor) -> Tensor:
        """Attend within windows of a grid [B, h, w, C]. Windows at the border are padded with zeros. As in training,
        the padding is attended to, and the norm turns it into its bias."""
        side, (height, width) = self.window, grid.shape[1:3]
        grid = F.pad(grid, (0, 0, 0, -width % side, 0, -height % side))
        down, across, channels = grid.shape[1] // side, grid.shape[2] // side, grid.shape[3]
        windows = grid.view(-1, down, side, across, side, channels).transpose(2, 3).reshape(-1, side * side, channels)
        mixed = self.attn(windows).view(-1, down, across, side, side, channels)
        whole: Tensor = mixed.transpose(2, 3).reshape(-1, down * side, across * side, channels)
        return whole[:, :height, :width]


class _Attention(nn.Module):
    """Attention with a learned bias for each distance, in rows and columns, between two cells of a window."""

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
        """Return the index of the distance between each two cells, int64 [window², window²]."""
        cells = torch.arange(self.window * self.window, device=device)
        rows, columns = cells // self.window, cells % self.window
        return (rows[:, None] - rows).abs() * self.window + (columns[:, None] - columns).abs()


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fc2(F.gelu(self.fc1(self.norm(x))))
        return output


@dataclass(frozen=True, slots=True)
class MobileSamShape(Architecture):
    """Architecture of a MobileSAM."""

    encoder: TinyViTShape

    @property
    def description(self) -> str:
        return f"MobileSAM with stages of width {', '.join(map(str, self.encoder.widths))}"

    @classmethod
    def _read(cls, weights: Mapping[str, Tensor]) -> MobileSamShape:
        encoder = TinyViTShape.of(weights, "image_encoder.")
        return cls(image_size=encoder.image_size, patch=PATCH, encoder=encoder, **read_decoder(weights))

    def build_encoder(self) -> nn.Module:
        return TinyViT(self.encoder)

    def uses(self, name: str) -> bool:
        unused = tuple(f"image_encoder.{part}" for part in CLASSIFIER)
        return not name.startswith(unused) and not name.endswith((".num_batches_tracked", ".attention_bias_idxs"))


def encode_tiny_vit(encoder: nn.Module, pixels: Tensor) -> Tensor:
    """Encode images float [B, 3, S, S] into features [B, C, S / 16, S / 16]."""
    features: Tensor = encoder(pixels)
    return features


class MobileSam(Sam):
    """MobileSAM on one device. The module is a `segment_anything` Sam with a `TinyViT` as its image encoder."""

    family = "MobileSAM"
    formats: ClassVar = {"image_encoder.patch_embed.seq.0.c.weight": "a MobileSAM in the official format"}
    architecture = MobileSamShape

    @classmethod
    def _encoder_function(cls) -> Callable[..., Tensor]:
        return encode_tiny_vit
