"""How large and how sparse activations are, block by block, while noise becomes the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from torch import Tensor

from text2seg.clip.attention import RULES
from text2seg.clip.model import Clip, preprocess
from text2seg.clip.resnet import encode_resnet
from text2seg.clip.vit import encode_vit
from text2seg.explain.backdrop import named
from text2seg.explain.catalogue.experiments import ActivationSettings
from text2seg.explain.experiments.common import Pixels, squashed
from text2seg.explain.tool import Panel, Progress, Result, Table
from text2seg.pipeline import Text2Seg
from text2seg.records import Image
from text2seg.render.plot import draw_legend, pixels_of, strip_and_panels
from text2seg.runtime import autocast

Tell = Callable[[Tensor], None]

MOST_SHOWN = 6  # images side by side
OFF, SIZE = "share of activations that are off (0 or below)", "mean size of an activation"


def run(models: Text2Seg, images: Sequence[Image], settings: ActivationSettings, progress: Progress) -> Result:
    """The mean size of activations and the share of them that are off, for each block and each mixture."""
    (image,) = images
    clip = models.clip
    pixels = squashed(clip, image, settings.size)
    noise = np.random.default_rng(settings.seed).integers(0, 256, pixels.shape).astype(np.float64)
    shares = np.linspace(0, 1, settings.steps + 1)
    mixtures = [np.rint(noise * (1 - share) + pixels * share).astype(np.uint8) for share in shares]
    measured = [measure(clip, mixture) for mixture in progress.each(mixtures, "mixtures")]
    if not measured:
        return Result("nothing was measured", notes=("stopped before the first mixture",))
    table = np.stack(measured)  # [mixtures, blocks, off and size]
    cells = [(f"{share:.0%} image", mixture) for share, mixture in zip(shares, mixtures, strict=True)]
    names = block_names(clip)
    columns = ("block", *(name for name, _ in cells[: len(table)]))
    return Result(
        f"{named(image)}: activations from noise to image",
        (Panel("for each block", _drawn(cells, table)),),
        tuple(
            Table(
                title, columns, tuple((name, *row) for name, row in zip(names, table[:, :, at].T.tolist(), strict=True))
            )
            for at, title in enumerate((OFF, SIZE))
        ),
        (
            "Activations are those of the MLP after its GELU."
            if clip.is_vit
            else "Activations are a block's, after its ReLU.",
        ),
    )


def block_names(clip: Clip) -> list[str]:
    """What the blocks are called that `measure` looks into, in their order."""
    visual = clip.model.visual
    if clip.is_vit:
        return [f"block {number}" for number in range(1, len(visual.transformer.resblocks) + 1)]
    return [f"layer{number}.{at}" for number in range(1, 5) for at in range(len(getattr(visual, f"layer{number}")))]


@torch.inference_mode()
def measure(clip: Clip, pixels: Pixels) -> NDArray[np.float64]:
    """For each block the share of its activations that are 0 or below, and their mean size, float64 [blocks, 2].

    Args:
        pixels: uint8 [h, w, 3], of CLIP's input size.
    """
    found: list[tuple[float, float]] = []

    def tell(activations: Tensor) -> None:
        found.append((float((activations <= 0).float().mean()), float(activations.float().abs().mean())))

    image = Image(pixels)
    inputs = preprocess(image, image.hw)[None].to(clip.device)
    with autocast(clip.device, clip.precision):
        if clip.is_vit:
            encode_vit(_telling_vit(clip.model.visual, tell), inputs, rule=RULES["raw"])
        else:
            encode_resnet(_telling_resnet(clip.model.visual, tell), inputs, surgery=False)
    return np.array(found)


def _telling_vit(visual: Any, tell: Tell) -> SimpleNamespace:
    """A stand-in with the tower's own parts, whose MLPs tell their activations. Hooks would hear the other threads that
    share the model as well."""

    def telling(block: Any) -> SimpleNamespace:
        def mlp(x: Tensor) -> Tensor:
            hidden = block.mlp.gelu(block.mlp.c_fc(x))
            tell(hidden)
            return block.mlp.c_proj(hidden)

        return _stand_in(block, mlp=mlp)

    return _stand_in(visual, transformer=SimpleNamespace(resblocks=[telling(b) for b in visual.transformer.resblocks]))


def _telling_resnet(visual: Any, tell: Tell) -> SimpleNamespace:
    """The same for a ResNet, whose blocks end in a ReLU."""

    def telling(layer: Any) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            for block in layer:
                x = block(x)
                tell(x)
            return x

        return forward

    names = [f"layer{number}" for number in range(1, 5)]
    return _stand_in(visual, **{name: telling(getattr(visual, name)) for name in names})


def _stand_in(module: Any, **others: Any) -> SimpleNamespace:
    parts = {**dict(module.named_children()), **dict(module.named_parameters(recurse=False))}
    return SimpleNamespace(**{**parts, **others})


def _drawn(cells: Sequence[tuple[str, Pixels]], table: NDArray[np.float64]) -> Pixels:
    figure, panels = strip_and_panels(cells[:: -(-len(cells) // MOST_SHOWN)], 2)
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(cells)))
    blocks = np.arange(1, table.shape[1] + 1)
    for at, (axes, title) in enumerate(zip(panels, (OFF, SIZE), strict=True)):
        for (name, _), colour, values in zip(cells, colours, table[:, :, at], strict=False):
            axes.plot(blocks, values, color=colour, marker=".", linewidth=1.6, label=name)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("block")
        axes.xaxis.get_major_locator().set_params(integer=True)
    draw_legend(panels[0])
    return pixels_of(figure)
