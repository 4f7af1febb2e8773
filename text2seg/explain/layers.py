"""Block by block: what CLIP's CLS attends to, what the score's gradient says of that attention, and how much of the
score is left when the image shows only that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from text2seg.clip.model import Clip, preprocess
from text2seg.errors import SettingsError
from text2seg.explain.backdrop import ground, named
from text2seg.explain.catalogue.saliency import TargetSettings
from text2seg.explain.saliency.targets import Target, score
from text2seg.explain.saliency.trace import gradients, trace_vit
from text2seg.explain.show_saliency import laid_over, targets_of
from text2seg.explain.tool import Cell, Panel, Progress, Result, Table
from text2seg.grids import Maps, minmax, resize
from text2seg.pipeline import Text2Seg
from text2seg.queries import CLIP_MEAN
from text2seg.records import Image
from text2seg.runtime import FULL, autocast

COLUMNS = 4


@dataclass(frozen=True, slots=True, eq=False)
class BlockMaps:
    """Of each block, float32 [blocks, gh, gw]: CLS's row of the attention, mean over heads, and of the gradient of the
    target's score by that attention, where it is positive."""

    attention: Maps
    gradient: Maps


def layers(models: Text2Seg, images: Sequence[Image], settings: TargetSettings, progress: Progress) -> Result:
    """A row for each block: its attention, the image masked by it, its gradient, the image masked by that; with the
    score of what is left. Masked parts have the mean colour of what CLIP was trained on.

    Raises:
        QueryError: no target, or one that is empty, too long or unknown to the models.
        SettingsError: this CLIP is a ResNet.
    """
    (image,) = images
    clip = models.clip
    if not clip.is_vit:
        raise SettingsError(
            "layers looks at attention, and this CLIP is a ResNet without blocks of it: use a ViT such as ViT-B/16, or "
            "the tool saliency with --layer"
        )
    panels: list[Panel] = []
    tables = []
    targets = targets_of(models, settings)
    for target in targets:
        found = block_maps(clip, image, target, settings.size)
        whole, *_ = masked_scores(clip, image, target, np.ones((1, 1, 1), np.float32), settings.size)
        rows: list[tuple[Cell, ...]] = [("the whole image", whole, whole)]
        for row, shown in _rows(clip, image, target, found, settings, progress):
            rows.append(row)
            panels += shown
        columns = ("block", "score, masked by its attention", "score, masked by its gradient")
        tables.append(Table(target.name, columns, tuple(rows)))
    return Result(
        f"{named(image)}: {', '.join(target.name for target in targets)}, block by block",
        tuple(panels),
        tuple(tables),
        columns=COLUMNS,
    )


def block_maps(clip: Clip, image: Image, target: Target, size: int | None = None) -> BlockMaps:
    """What every block of a vision transformer looks at; `size` is CLIP's input."""
    with torch.inference_mode(False), torch.enable_grad(), autocast(clip.device, FULL):
        trace = trace_vit(clip.model.visual, preprocess(image, clip.input_hw(size))[None].to(clip.device))
        value = target.score(F.normalize(trace.features[:, 0].float(), dim=-1))
        of_score = gradients(value, trace.attentions)
    attention, gradient = (
        torch.stack([each[0, :, 0, 1:].detach().float().mean(0) for each in blocks]).unflatten(1, trace.grid_hw)
        for blocks in (trace.attentions, of_score)
    )
    return BlockMaps(attention.cpu().numpy(), gradient.clamp(min=0).cpu().numpy())


def masked_scores(clip: Clip, image: Image, target: Target, maps: Maps, size: int | None = None) -> list[float]:
    """The scores of the image seen through each of the min-max maps float32 [M, gh, gw]; a map of ones hides
    nothing."""
    input_hw = clip.input_hw(size)
    pixels = preprocess(image, input_hw)  # 0 is CLIP's mean colour
    windows = torch.from_numpy(resize(maps, input_hw))[:, None]
    with torch.inference_mode():
        scores: list[float] = score(clip, pixels * windows, target).tolist()
    return scores


def _rows(
    clip: Clip, image: Image, target: Target, found: BlockMaps, settings: TargetSettings, progress: Progress
) -> Iterator[tuple[tuple[Cell, ...], list[Panel]]]:
    """Each block's row of the table and of the panels."""
    pixels = ground(image)
    for block in progress.each(range(len(found.attention)), target.name):
        both = np.stack([found.attention[block], found.gradient[block]])
        windows = minmax(both)
        scores = masked_scores(clip, image, target, windows, settings.size)
        name = f"block {block + 1}"
        panels = []
        for what, each, window, value in zip(("attention", "gradient"), both, windows, scores, strict=True):
            panels += [
                Panel(
                    f"{name}: {what} for {target.name}" if what == "gradient" else f"{name}: {what}",
                    laid_over(each, pixels, settings.alpha),
                ),
                Panel(f"masked by it: {value:.3f}", _through(window, pixels)),
            ]
        yield (name, *scores), panels


def _through(window: NDArray[np.float32], pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image uint8 [h, w, 3] where a map [gh, gw] is 1, CLIP's mean colour where it is 0."""
    height, width = pixels.shape[:2]
    share = cv2.resize(window, (width, height), interpolation=cv2.INTER_LINEAR)[:, :, None]
    mean = 255 * np.array(CLIP_MEAN, np.float32)
    return np.rint(mean + (pixels - mean) * share).astype(np.uint8)
