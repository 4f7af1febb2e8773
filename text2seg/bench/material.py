"""What is measured on: weights of real size, images of real size, words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PilImage
from torch import Tensor

from text2seg import weights
from text2seg.clip.build import import_clip
from text2seg.queries import Things
from text2seg.sam.build import SamShape, build_sam
from text2seg.weights.tensors import load_clip_weights, load_sam_weights

Model = Literal["demo", "vit_b", "vit_l", "vit_h"]
Size = Literal["small", "vga", "1080p", "12mp"]

SIZES_HW: Mapping[Size, tuple[int, int]] = {
    "small": (240, 320),
    "vga": (480, 640),
    "1080p": (1080, 1920),
    "12mp": (3000, 4000),
}
_ENCODERS = {  # width, depth, heads, global blocks
    "vit_b": (768, 12, 12, (2, 5, 8, 11)),
    "vit_l": (1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": (1280, 32, 16, (7, 15, 23, 31)),
}
CLIP_B16 = (512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)
_LEARNT = ("pos_embed", "positional", "point_embed", "not_a_point", "no_mask", "iou_token", "mask_tokens", "class_emb")


def sam_shape(model: Model) -> SamShape:
    """The architecture of a published SAM. Raises `KeyError` for the demo, whose weights tell it."""
    width, depth, heads, global_blocks = _ENCODERS[model]
    return SamShape(
        width=width,
        depth=depth,
        heads=heads,
        window=14,
        global_blocks=global_blocks,
        image_size=1024,
        patch=16,
        embedding=256,
        mask_in_channels=16,
        decoder_depth=2,
        decoder_mlp=2048,
        candidates=3,
        iou_depth=3,
        iou_width=256,
    )


def weights_of(model: Model) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """CLIP's and SAM's: the bundled ones of the demo; otherwise random ones for CLIP ViT-B/16 and the SAM, which cost
    as much to run as the published ones and need no download."""
    if model == "demo":
        return (
            load_clip_weights(weights.fetch("demo", "clip")),
            load_sam_weights(weights.fetch("demo", "sam")),
        )
    with torch.device("meta"):
        sam = build_sam(sam_shape(model)).state_dict()
        clip = import_clip().model.CLIP(*CLIP_B16).state_dict()
    return _random(clip), _random(sam)


def _random(wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under which activations neither vanish nor grow."""
    generator = torch.Generator().manual_seed(0)
    return {name: _drawn(name, tensor.shape, generator) for name, tensor in wanted.items()}


def _drawn(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    if not shape:
        return torch.tensor(np.log(100.0), dtype=torch.float32, device="cpu")  # CLIP's logit scale
    if name.endswith("bias"):
        return 0.1 * noise
    if len(shape) == 1:
        return 1 + 0.1 * noise  # the scale of a norm
    if any(part in name for part in _LEARNT):
        return noise
    return noise * shape[1:].numel() ** -0.5


def words(count: int) -> tuple[str, ...]:
    """So many queries that the demo model knows; where it knows fewer, with numbers behind them."""
    names = Things.of_demo().names
    return tuple(names[n % len(names)] + (f" {n // len(names)}" if n >= len(names) else "") for n in range(count))


def write_images(folder: Path, hw: tuple[int, int], count: int) -> None:
    """So many JPEG files of this size: bundled scenes, stretched, where they are installed, otherwise smooth waves."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = sorted((Path(weights.__file__).parents[1] / "demo" / "scenes" / "new-scenes" / "images").glob("*.jpg"))
    for number in range(count):
        if scenes:
            with PilImage.open(scenes[number % len(scenes)]) as scene:
                image = scene.convert("RGB").resize(hw[::-1], PilImage.Resampling.BICUBIC)
        else:
            image = PilImage.fromarray(_waves(hw, seed=number))
        image.save(folder / f"{number:05}.jpg", quality=90)


def _waves(hw: tuple[int, int], *, seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: hw[0], : hw[1]].astype(np.float32) / max(hw)
    waves = [np.sin(a * x + b * y + c) for a, b, c in rng.uniform(-30, 30, (3, 3)).astype(np.float32)]
    pixels: NDArray[np.uint8] = np.stack([127 + 120 * wave for wave in waves], axis=-1).astype(np.uint8)
    return pixels
