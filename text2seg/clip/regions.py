"""Features of regions of an image: which word a mask shows, instead of where a word is; and attention within regions.

`patches` is the mean feature of the patches inside a region, with the attention rule of the maps. `values` is
TextRegion's feature: the values of the last block, without attention between patches, are summed over the region before
the rest of the block is applied, so that a region is one token. It needs a vision transformer.

Sources: `values`: Xiao et al., "TextRegion: Text-Aligned Region Tokens from Frozen Image-Text Models" (arXiv
2505.23769). Attention: Zhang et al., "CorrCLIP" (arXiv 2411.10086), with SAM's features in place of DINO's.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from text2seg.clip.encoders import Vit, run_block, scaled, split_heads
from text2seg.clip.model import Clip, ImageTokens, preprocess
from text2seg.errors import SettingsError
from text2seg.records import Image
from text2seg.runtime import FULL, autocast

REGISTER_GAP = 0.07
"""A patch counts only if its cosine with the regions that hold it is this much above that with the other regions."""
MOST_CROPS = 3
"""Crops of the image along each side, at most."""
INSIDE = 0.5
"""Share of a patch inside a mask from which it belongs to it."""


def soft_masks(masks: Iterable[NDArray[np.bool_]], grid_hw: tuple[int, int]) -> Tensor:
    """Return the share of each cell of a grid that each mask bool[H, W] covers, float32 [R, h, w] in [0, 1].

    The masks are taken one by one, so that they need not be in memory together.
    """
    pooled = [F.adaptive_avg_pool2d(torch.from_numpy(mask.astype(np.float32))[None], grid_hw) for mask in masks]
    return torch.cat([torch.zeros(0, *grid_hw, dtype=torch.float32, device="cpu"), *pooled])


def patch_features(tokens: ImageTokens, masks: Iterable[NDArray[np.bool_]]) -> Tensor:
    """Return the mean feature of the patches that belong to each mask bool[H, W], unit float32 [R, C].

    A mask without a patch of its own has the mean of all that it touches.
    """
    with autocast(tokens.features.device, FULL):
        shares = soft_masks(masks, tokens.grid_hw).flatten(1).to(tokens.features.device)
        inside = torch.where(shares >= INSIDE, shares, torch.zeros_like(shares))
        weights = torch.where(inside.any(1, keepdim=True), inside, shares)
        return F.normalize(weights @ tokens.features[1:], dim=-1)


@torch.inference_mode()
def value_features(clip: Clip, image: Image, masks: Iterable[NDArray[np.bool_]]) -> Tensor:
    """Return TextRegion's feature of each mask bool[H, W] of the image, unit float32 [R, C].

    Raises:
        SettingsError: this CLIP has no values of patches that torch computes.
    """
    vit = vit_of(clip)
    with autocast(clip.device, clip.precision):
        values = image_values(clip, vit, image)
        shares = soft_masks(masks, (values.shape[0], values.shape[1])).flatten(1).to(values)
        features = region_tokens(vit, values.flatten(0, 1), shares)
    return F.normalize(features.float(), dim=-1)


def vit_of(clip: Clip) -> Vit:
    """Return the vision transformer of a CLIP.

    Raises:
        SettingsError: it has none, or torch does not run it.
    """
    vit = clip.images.vit
    if vit is None:
        raise SettingsError("the features “values” are for vision transformers, and this CLIP is a ResNet; use patches")
    if clip.image_network != clip.images.encode:
        raise SettingsError("the features “values” run with torch only; use patches, or leave --runtime out")
    return vit


def has_values(clip: Clip) -> bool:
    """Return whether a CLIP has `value_features`."""
    return clip.images.vit is not None and clip.image_network == clip.images.encode


def image_values(clip: Clip, vit: Vit, image: Image) -> Tensor:
    """Return the values of the last block for each patch, float [rows, columns, width].

    The image is enlarged to whole crops of CLIP's trained input size. The values of each crop are added to those of the
    whole image, enlarged to the same grid.
    """
    side = clip.trained_size
    down, across = (min(max(round(length / side), 1), MOST_CROPS) for length in image.hw)
    enlarged = preprocess(image, (down * side, across * side), clip.images)
    crops = enlarged.unflatten(2, (across, side)).unflatten(1, (down, side)).permute(1, 3, 0, 2, 4).flatten(0, 1)
    pixels = torch.cat([crops, preprocess(image, (side, side), clip.images)[None]]).to(clip.device)
    values = last_values(vit, pixels)
    rows, columns = values.shape[1:3]
    of_crops = values[:-1].unflatten(0, (down, across)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
    whole = values[-1:].permute(0, 3, 1, 2)
    stretched = F.interpolate(whole, (down * rows, across * columns), mode="bilinear", align_corners=False)
    return of_crops + stretched[0].permute(1, 2, 0)


def last_values(vit: Vit, pixels: Tensor) -> Tensor:
    """Return the values of the last block for the patches, heads joined, float [B, h, w, width]."""
    x, grid_hw = vit.embed(pixels)
    *blocks, last = vit.blocks
    for block in blocks:
        x = run_block(block, x)
    value = split_heads(last, x)[2]
    return value.transpose(1, 2).flatten(2)[:, vit.prefix :].unflatten(1, grid_hw)


def region_tokens(vit: Vit, values: Tensor, shares: Tensor) -> Tensor:
    """Return the feature of each region in the space of texts, float [R, C], not normalised.

    Args:
        values: float [P, width], the values of the patches with joined heads; summing them joined or apart is the same.
        shares: float [R, P] in [0, 1], how much of each patch each region holds.
    """
    last = vit.blocks[-1]
    summed = (shares * ~registers(values, shares)) @ values
    projected = F.linear(summed, last.attn.out_proj.weight, last.attn.out_proj.bias)
    y = scaled(last, "ls_1", projected)[None]
    y = y + scaled(last, "ls_2", last.mlp(last.ln_2(y)))
    return vit.features(y, y)[0, 1:]


def registers(values: Tensor, shares: Tensor) -> Tensor:
    """Return which patches CLIP uses for something else than what they show, bool [P].

    The affinity of a patch with a region is the mean cosine of its values with those of the region's patches. A patch
    is left out if its mean affinity with the regions that hold a part of it is less than `REGISTER_GAP` above that with
    the others. Patches that all regions or none hold are kept.
    """
    unit = F.normalize(values.float(), dim=-1)
    shares = shares.float()
    means = (shares @ unit) / shares.sum(1, keepdim=True).clamp(min=1e-9)
    affinity = unit @ means.T
    holds = (shares > 0).T.float()
    count = holds.sum(1)
    inside = (affinity * holds).sum(1) / count.clamp(min=1)
    outside = (affinity * (1 - holds)).sum(1) / (holds.shape[1] - count).clamp(min=1)
    return (count > 0) & (count < holds.shape[1]) & (inside - outside < REGISTER_GAP)


# ---- attention within regions


def owners_of_patches(owner: NDArray[np.int32], grid_hw: tuple[int, int]) -> NDArray[np.int32]:
    """Return the region that has most pixels of each cell of a grid, int32 [h, w]; -1 where most are outside all.

    Args:
        owner: the region of each pixel, int32 [H, W]; see `sam.automatic.owners`.
    """
    numbers = np.unique(owner)
    shares = soft_masks((owner == number for number in numbers), grid_hw).numpy()
    found: NDArray[np.int32] = numbers[shares.argmax(0)]
    return found


def attention_weights(owner: NDArray[np.int32], features: Tensor, sharpness: float) -> Tensor:
    """Return how much each patch takes from each other, float32 [P, P], rows with a sum of 1.

    A patch takes from the patches of its region. One outside all regions takes from those that are at least as similar
    to it as the mean of all.

    Args:
        owner: the region of each patch, int32 [h, w] with P cells; -1 outside all.
        features: unit features [P, C], whose cosines are the similarity.
        sharpness: factor of the similarity in the softmax; 0 gives equal weights.
    """
    similarity = features @ features.T
    numbers = torch.from_numpy(owner).flatten().to(similarity.device)
    together = (numbers[:, None] == numbers) & (numbers >= 0)
    alike = similarity >= similarity.mean(1, keepdim=True)
    scope = torch.where((numbers < 0)[:, None], alike, together)
    scope.fill_diagonal_(True)
    return (sharpness * similarity).masked_fill(~scope, -torch.inf).softmax(1)
