"""How one CLIP sees: what makes features of pixels, and what pixels it wants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL.Image import Resampling
from torch import Tensor

from text2seg.maps.attention import RULES
from text2seg.maps.build import RESNET_STRIDE
from text2seg.maps.resnet import encode_resnet
from text2seg.maps.vit import encode_vit
from text2seg.vocabulary import CLIP_MEAN, CLIP_STD


@dataclass(frozen=True, slots=True, eq=False)
class ImageTower:
    """The image encoder of a CLIP, and how pictures are made ready for it."""

    encode: Callable[[Tensor, str], Tensor]
    """From pixels float32 [B, 3, H, W] and the name of an attention rule to features [B, 1 + gh·gw, C], not
    normalised; the first is the picture's own."""
    is_vit: bool
    stride: int
    """Pixels of the input per cell of the grid."""
    trained_size: int
    """The side in pixels of the square input that the model was trained on."""
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    resampling: Resampling = Resampling.BICUBIC


def openai_images(visual: Any) -> ImageTower:
    """That of a CLIP of OpenAI's package."""
    size = int(visual.input_resolution)
    return vit_tower(visual, size) if hasattr(visual, "transformer") else resnet_tower(visual, size)


def vit_tower(visual: Any, size: int) -> ImageTower:
    """That of a module with the names of OpenAI's `VisionTransformer`, trained on this size."""

    def encode(pixels: Tensor, architecture: str) -> Tensor:
        return encode_vit(visual, pixels, rule=RULES[architecture])

    return ImageTower(encode, is_vit=True, stride=int(visual.conv1.kernel_size[0]), trained_size=size)


def resnet_tower(visual: Any, size: int) -> ImageTower:
    """That of a module with the names of OpenAI's `ModifiedResNet`, trained on this size."""

    def encode(pixels: Tensor, architecture: str) -> Tensor:
        return encode_resnet(visual, pixels, surgery=architecture == "surgery")

    return ImageTower(encode, is_vit=False, stride=RESNET_STRIDE, trained_size=size)
