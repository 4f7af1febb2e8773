"""CLIP layer by layer: what CLS attends to in each block, the gradient of that attention, and the score of the image
when only those parts are visible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from text2seg.clip.shape import ClipKind
from text2seg.errors import SettingsError
from text2seg.explain.saliency_maps import TargetSettings, overlay_map, targets_of
from text2seg.explain.tool import Cell, Panel, Pixels, Progress, Result, Table, Tool, backdrop, image_name
from text2seg.records import Image

if TYPE_CHECKING:
    from text2seg.clip.model import Clip
    from text2seg.explain.saliency.targets import Target
    from text2seg.grids import Maps
    from text2seg.pipeline import Text2Seg


@dataclass(frozen=True, slots=True, eq=False)
class BlockMaps:
    """Maps float32 [blocks, gh, gw] of all blocks: the attention of CLS, mean over heads, and the positive part of the
    gradient of the target's score by that attention."""

    attention: Maps
    gradient: Maps


@dataclass(frozen=True, slots=True)
class LayersSettings(TargetSettings):
    """The targets that an image is compared with, and how the maps are drawn."""

    def check_clip(self, clip: ClipKind) -> None:
        TargetSettings.check_clip(self, clip)
        _check_vit(clip)


def _check_vit(clip: ClipKind) -> None:
    """Raise `SettingsError` if the CLIP is a ResNet."""
    if not clip.is_vit:
        raise SettingsError(
            "layers needs the attention blocks of a ViT, but this CLIP is a ResNet: use a ViT such as ViT-B/16, or the "
            "tool saliency with --layer",
            on_page="This tool needs the attention blocks of a ViT, but this CLIP is a ResNet. Choose another model, "
            "or the tool “Saliency map” with a “Layer”.",
        )


def layers(models: Text2Seg, images: Sequence[Image], settings: TargetSettings, progress: Progress) -> Result:
    """Show a row for each block: attention, image masked by it, gradient, image masked by it, with the masked scores.

    Masked parts get the mean colour of CLIP's training images.

    Raises:
        QueryError: there is no target, or one is empty, too long or unknown to the models.
        SettingsError: this CLIP is a ResNet.
    """
    (image,) = images
    clip = models.clip
    _check_vit(clip)
    panels: list[Panel] = []
    tables = []
    targets = targets_of(models, settings)
    for target in targets:
        found = block_maps(clip, image, target)
        whole, *_ = masked_scores(clip, image, target, np.ones((1, 1, 1), np.float32))
        rows: list[tuple[Cell, ...]] = [("the whole image", whole, whole)]
        for row, shown in _rows(clip, image, target, found, settings, progress):
            rows.append(row)
            panels += shown
        columns = ("block", "score, masked by attention", "score, masked by gradient")
        tables.append(Table(target.name, columns, tuple(rows)))
    return Result(
        f"{image_name(image)}: {', '.join(target.name for target in targets)}, layer by layer",
        tuple(panels),
        tuple(tables),
        columns=4,
    )


LAYERS = Tool(
    "layers",
    "Layer by layer",
    "For each block: the attention of CLS, its gradient, and the score of the image masked by each.",
    LayersSettings,
    layers,
)


def block_maps(clip: Clip, image: Image, target: Target, size: int | None = None) -> BlockMaps:
    """Compute the maps of every block of a vision transformer; `size` is CLIP's input in pixels."""
    import torch

    from text2seg.explain.saliency.trace import gradients, trace_vit
    from text2seg.runtime import FULL, autocast

    with torch.inference_mode(False), torch.enable_grad(), autocast(clip.device, FULL):
        trace = trace_vit(clip.model.visual, clip.preprocess(image, size)[None].to(clip.device))
        value = target.objective(trace.features[:, 0], "cosine", clip.logit_scale)
        slopes = gradients(value, trace.attentions)
    attention, gradient = (
        torch.stack([each[0, :, 0, 1:].detach().float().mean(0) for each in blocks]).unflatten(1, trace.grid_hw)
        for blocks in (trace.attentions, slopes)
    )
    return BlockMaps(attention.cpu().numpy(), gradient.clamp(min=0).cpu().numpy())


def masked_scores(clip: Clip, image: Image, target: Target, maps: Maps, size: int | None = None) -> list[float]:
    """Return the scores of the image masked by each of the maps float32 [M, gh, gw]: 1 shows a place, 0 hides it."""
    import torch

    from text2seg.explain.saliency.targets import score
    from text2seg.grids import resize

    input_hw = clip.input_hw(size)
    pixels = clip.preprocess(image, input_hw)  # 0 is CLIP's mean colour
    windows = torch.from_numpy(resize(maps, input_hw))[:, None]
    with torch.inference_mode():
        scores: list[float] = score(clip, pixels * windows, target).tolist()
    return scores


def _rows(
    clip: Clip, image: Image, target: Target, found: BlockMaps, settings: TargetSettings, progress: Progress
) -> Iterator[tuple[tuple[Cell, ...], list[Panel]]]:
    """Yield the table row and the panels of each block."""
    from text2seg.grids import minmax

    pixels = backdrop(image)
    for block in progress.each(range(len(found.attention)), target.name):
        both = np.stack([found.attention[block], found.gradient[block]])
        windows = minmax(both)
        scores = masked_scores(clip, image, target, windows)
        name = f"block {block + 1}"
        panels = []
        for what, each, window, value in zip(("attention", "gradient"), both, windows, scores, strict=True):
            panels += [
                Panel(
                    f"{name}: {what} for {target.name}" if what == "gradient" else f"{name}: {what}",
                    overlay_map(each, pixels, settings.alpha),
                ),
                Panel(f"masked by it: score {value:.3f}", _masked(window, pixels)),
            ]
        yield (name, *scores), panels


def _masked(window: NDArray[np.float32], pixels: Pixels) -> Pixels:
    """Fade an image uint8 [h, w, 3] to CLIP's mean colour where a map [gh, gw] is 0; where it is 1, keep the image."""
    import cv2

    from text2seg.clip.model import CLIP_MEAN

    height, width = pixels.shape[:2]
    share = cv2.resize(window, (width, height), interpolation=cv2.INTER_LINEAR)[:, :, None]
    mean = 255 * np.array(CLIP_MEAN, np.float32)
    return np.rint(mean + (pixels - mean) * share).astype(np.uint8)
