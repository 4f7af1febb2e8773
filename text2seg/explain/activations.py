"""Activations of CLIP, block by block, for blends of noise and the image: their mean size, and the inactive share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from text2seg.explain.experiments import squashed
from text2seg.explain.tool import InputSettings, Panel, Pixels, Progress, Result, Table, Tool, image_name
from text2seg.records import Image
from text2seg.settings_fields import check_count, check_seed

if TYPE_CHECKING:
    from torch import Tensor

    from text2seg.clip.model import Clip
    from text2seg.pipeline import Text2Seg

    Report = Callable[[Tensor], None]


@dataclass(frozen=True, slots=True)
class ActivationSettings(InputSettings):
    """The steps from noise to image."""

    seed: int = 0
    """Random seed; the same seed gives the same noise."""
    steps: int = 4
    """Number of steps from noise to image."""

    def __post_init__(self) -> None:
        InputSettings.__post_init__(self)
        check_seed(self.seed)
        check_count("steps", self.steps)


MOST_SHOWN = 6
"""Largest number of images side by side."""
INACTIVE, SIZE = "share of inactive activations (0 or below)", "mean size of an activation"


def experiment_activations(
    models: Text2Seg, images: Sequence[Image], settings: ActivationSettings, progress: Progress
) -> Result:
    """Show the mean size of activations and the inactive share, for each block and each blend of noise and image."""
    (image,) = images
    clip = models.clip
    pixels = squashed(clip, image)
    noise = np.random.default_rng(settings.seed).integers(0, 256, pixels.shape).astype(np.float64)
    shares = np.linspace(0, 1, settings.steps + 1)
    blends = [np.rint(noise * (1 - share) + pixels * share).astype(np.uint8) for share in shares]
    measured = [measure(clip, blend) for blend in progress.each(blends, "blends")]
    if not measured:
        return Result("nothing was measured", notes=("Stopped before the first blend.",))
    table = np.stack(measured)  # [blends, blocks, inactive share and size]
    cells = [(f"{share:.0%} image", blend) for share, blend in zip(shares, blends, strict=True)]
    names = block_names(clip)
    columns = ("block", *(name for name, _ in cells[: len(table)]))
    return Result(
        f"{image_name(image)}: activations from noise to image",
        (Panel("for each block", _drawn(cells, table)),),
        tuple(
            Table(
                title, columns, tuple((name, *row) for name, row in zip(names, table[:, :, at].T.tolist(), strict=True))
            )
            for at, title in enumerate((INACTIVE, SIZE))
        ),
        (
            "Activations are measured in the MLP, after its GELU."
            if clip.is_vit
            else "Activations are measured at the end of a block, after its ReLU.",
        ),
    )


EXPERIMENT_ACTIVATIONS = Tool(
    "experiment-activations",
    "Activations by block",
    "Size and sparsity of CLIP's activations, block by block, from noise to image.",
    ActivationSettings,
    experiment_activations,
)


def block_names(clip: Clip) -> list[str]:
    """Return the names of the blocks that `measure` measures, in order."""
    visual = clip.model.visual
    if clip.is_vit:
        return [f"block {number}" for number in range(1, len(visual.transformer.resblocks) + 1)]
    return [f"layer{number}.{at}" for number in range(1, 5) for at in range(len(getattr(visual, f"layer{number}")))]


def measure(clip: Clip, pixels: Pixels) -> NDArray[np.float64]:
    """Measure the share of activations that are 0 or below, and their mean size, in each block: float64 [blocks, 2].

    Args:
        pixels: uint8 [h, w, 3] of CLIP's input size.
    """
    import torch

    from text2seg.clip.encoders import RULES, encode_resnet, encode_vit
    from text2seg.runtime import autocast

    found: list[tuple[float, float]] = []

    def report(activations: Tensor) -> None:
        found.append((float((activations <= 0).float().mean()), float(activations.float().abs().mean())))

    image = Image(pixels)
    inputs = clip.preprocess(image, image.hw)[None].to(clip.device)
    with torch.inference_mode(), autocast(clip.device, clip.precision):
        if clip.is_vit:
            encode_vit(_reporting_vit(clip.model.visual, report), inputs, rule=RULES["raw"])
        else:
            encode_resnet(_reporting_resnet(clip.model.visual, report), inputs, surgery=False)
    return np.array(found)


def _reporting_vit(visual: Any, report: Report) -> SimpleNamespace:
    """Return a stand-in for a vision transformer with the same modules, which reports the activations of its MLPs.

    Hooks would also report the activations of other threads that share the model.
    """

    def reporting(block: Any) -> SimpleNamespace:
        def mlp(x: Tensor) -> Tensor:
            hidden = block.mlp.gelu(block.mlp.c_fc(x))
            report(hidden)
            return block.mlp.c_proj(hidden)

        return _stand_in(block, mlp=mlp)

    return _stand_in(
        visual, transformer=SimpleNamespace(resblocks=[reporting(b) for b in visual.transformer.resblocks])
    )


def _reporting_resnet(visual: Any, report: Report) -> SimpleNamespace:
    """Return a stand-in for a ResNet, which reports the activations at the end of its blocks."""

    def reporting(layer: Any) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            for block in layer:
                x = block(x)
                report(x)
            return x

        return forward

    names = [f"layer{number}" for number in range(1, 5)]
    return _stand_in(visual, **{name: reporting(getattr(visual, name)) for name in names})


def _stand_in(module: Any, **others: Any) -> SimpleNamespace:
    parts = {**dict(module.named_children()), **dict(module.named_parameters(recurse=False))}
    return SimpleNamespace(**{**parts, **others})


def _drawn(cells: Sequence[tuple[str, Pixels]], table: NDArray[np.float64]) -> Pixels:
    from matplotlib import colormaps

    from text2seg.render.charts import draw_legend, pixels_of, strip_and_panels

    figure, panels = strip_and_panels(cells[:: -(-len(cells) // MOST_SHOWN)], 2)
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(cells)))
    blocks = np.arange(1, table.shape[1] + 1)
    for at, (axes, title) in enumerate(zip(panels, (INACTIVE, SIZE), strict=True)):
        for (name, _), colour, values in zip(cells, colours, table[:, :, at], strict=False):
            axes.plot(blocks, values, color=colour, marker=".", linewidth=1.6, label=name)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("block")
        axes.xaxis.get_major_locator().set_params(integer=True)
    draw_legend(panels[0])
    return pixels_of(figure)
