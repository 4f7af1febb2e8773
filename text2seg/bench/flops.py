"""Useful floating-point operations, by formula: two for each multiplication that the answer needs, none for padding,
for wider heads or for what is computed twice."""

from __future__ import annotations

import time

import torch

from text2seg.bench.stopwatch import wait
from text2seg.sam.build import SamShape

MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}


def encoder_flops(shape: SamShape) -> float:
    """Of SAM's image encoder, for one image.

    >>> from text2seg.bench.material import sam_shape
    >>> [round(encoder_flops(sam_shape(model)) / 1e9) for model in ("vit_b", "vit_l", "vit_h")]
    [938, 2837, 5642]
    """
    side = shape.image_size // shape.patch
    tokens, width = side * side, shape.width
    linear = 2 * tokens * 12 * width * width  # qkv, the projection out, two of the MLP
    total = 2.0 * tokens * 3 * shape.patch**2 * width
    for block in range(shape.depth):
        rows = side if block in shape.global_blocks or not shape.window else min(shape.window, side)
        pairs = tokens * rows * rows
        positions = 2 * tokens * 2 * rows * width
        total += linear + 2 * 2 * pairs * width + positions
    neck = 2 * tokens * (width * shape.embedding + 9 * shape.embedding**2)
    return total + neck


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the best of five large matrix products: what the machine can do, not what is promised."""
    side = MATRIX_SIDE.get(device.type, 2048)
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        wait(device)
        began = time.perf_counter()
        one @ other
        wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best
