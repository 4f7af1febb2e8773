"""Tiny SAMs with random weights, images that are never square, and point sets of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import closeness
import numpy as np
import torch
from segment_anything import SamPredictor
from torch import Tensor

from text2seg.records import Image, PointPrompts
from text2seg.sam.sam import Sam, SamShape, build_sam, load_sam

TINY = SamShape(
    width=48,
    depth=3,
    heads=3,
    window=3,  # does not divide the grid of 5: windows are filled up, as 14 and 64 have it
    global_blocks=(1,),
    image_size=80,
    patch=16,
    embedding=32,
    mask_in_channels=4,
    decoder_depth=2,
    decoder_mlp=64,
    candidates=3,
    iou_depth=3,
    iou_width=24,
)
# The decoder and the frame of every published SAM, behind an encoder that costs nothing.
FULL_SIZE_DECODER = replace(TINY, image_size=1024, embedding=256, mask_in_channels=16, decoder_mlp=2048, iou_width=256)
LEARNT_TOKENS = (
    *("pos_embed", "pe_layer", "point_embeddings", "not_a_point_embed", "no_mask_embed"),
    *("iou_token", "mask_tokens"),
)


def random_weights(shape: SamShape = TINY, *, seed: int = 0) -> dict[str, Tensor]:
    """A state dict in which no tensor is zero or one throughout, as those of a fresh module are."""
    with torch.device("meta"):
        wanted = build_sam(shape).state_dict()
    generator = torch.Generator().manual_seed(seed)
    return {name: _random(name, tensor.shape, generator) for name, tensor in wanted.items()}


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if name.endswith(".bias"):
        return 0.1 * noise
    if len(shape) == 1:
        return 1 + 0.1 * noise  # the scale of a norm
    if name.split(".")[1] in LEARNT_TOKENS:
        return noise
    return noise * shape[1:].numel() ** -0.5


def sam_module(shape: SamShape = TINY, *, seed: int = 0) -> Any:
    return load_sam(shape, random_weights(shape, seed=seed))


def make_image(rows: int, columns: int, *, seed: int = 0) -> Image:
    """A smooth image, as SAM is made for."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :columns] / max(rows, columns)
    waves = [np.sin(a * x + b * y + c) for a, b, c in rng.uniform(-9, 9, (3, 3))]
    return Image(np.stack([127 + 120 * wave for wave in waves], axis=-1).astype(np.uint8), f"{seed}.png")


def points(image: Image, count: int, *, seed: int = 0) -> PointPrompts:
    """Points anywhere in the image, the first positive."""
    rng = np.random.default_rng(seed)
    rows, columns = image.hw
    labels = rng.integers(0, 2, count).astype(np.int8)
    labels[:1] = 1
    return PointPrompts(
        (rng.random((count, 2)) * [columns, rows]).astype(np.float32), labels, np.ones(count, np.float32)
    )


def assert_equals_stock(
    sam: Sam, images: Sequence[Image], sets: Sequence[tuple[int, PointPrompts]], *, terms: int = closeness.TINY_NETWORK
) -> None:
    """All sets (the place of their image, points) in one call give what the stock predictor gives one by one."""
    embeddings = sam.embed(images)
    found = sam.decode([(embeddings[place], prompts) for place, prompts in sets])
    stock = SamPredictor(sam.module)
    assert len(found) == len(sets)
    for (place, prompts), candidates in zip(sets, found, strict=True):
        stock.set_image(images[place].pixels)
        points_xy, labels = prompts.xy.copy(), prompts.labels.copy()  # the stock predictor wants to own them
        full_size, scores, logits = stock.predict(points_xy, labels, return_logits=True)
        assert logits.std() > 0.05, "the weights say nothing, so agreement would say nothing either"
        closeness.assert_close(candidates.logits, logits, terms=terms)
        closeness.assert_close(candidates.scores, scores, terms=terms, scale=1)
        for index, wanted in enumerate(full_size):
            mask = sam.mask(embeddings[place], candidates, index)
            clear = np.abs(wanted) > closeness.rounding(terms, scale=float(np.abs(wanted).max()))
            assert clear.mean() > 0.99
            np.testing.assert_array_equal(mask[clear], wanted[clear] > 0)
