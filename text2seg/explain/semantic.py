"""Semantic segmentation without training: every pixel gets the label whose map is highest there.

Source: CLIP Surgery (arXiv 2304.05653): architecture surgery without feature surgery. What the latter takes off is the
same for all labels at a pixel, so it would only favour those that CLIP sees in the image as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from text2seg.clip.maps import cosines
from text2seg.clip.model import ImageTokens
from text2seg.errors import SettingsError
from text2seg.evaluation.protocols import BACKGROUND
from text2seg.explain.backdrop import ground, named
from text2seg.explain.catalogue.recognition import SemanticSettings
from text2seg.explain.multilabel import check_labels, labels_of
from text2seg.explain.tool import Panel, Progress, Result, Table
from text2seg.pipeline import Text2Seg
from text2seg.records import Image
from text2seg.render.bars import Bar, bars
from text2seg.render.colours import FAINT, blend, colour_of, outline

AT_ONCE = 16  # maps that are held at the image's size
SHOWN = 12
OPACITY = 0.55


def run(models: Text2Seg, images: Sequence[Image], settings: SemanticSettings, progress: Progress) -> Result:
    """The image with every label in its colour, their shares as a legend, and as a table.

    Raises:
        QueryError: there is but one label, or one is empty or unknown to the models.
        SettingsError: this CLIP cannot follow the attention rule, or a label is background as well.
    """
    (image,) = images
    labels = labels_of(models, settings.label)
    texts = label_texts(models, labels, settings.background)
    (tokens,) = models.clip.encode_images([image], size=settings.size, architecture=settings.architecture)
    found = label_map(tokens, texts, len(labels))
    shares = np.bincount(found.ravel(), minlength=len(labels) + 1) / found.size
    names = (*labels, BACKGROUND)
    order = [int(at) for at in np.argsort(-shares, kind="stable") if shares[at]]
    legend = [
        Bar(names[at], float(shares[at] / shares.max()), f"{shares[at]:.1%}", _colour(names[at]))
        for at in order[:SHOWN]
    ]
    rows = tuple((names[at], float(shares[at]), round(shares[at] * found.size)) for at in order)
    rest = len(order) - len(legend)
    return Result(
        f"{named(image)}: the highest of {len(labels)} labels at every pixel, {settings.architecture}",
        (
            Panel("every label in its colour", painted(image, found, names)),
            Panel("share of the image" + (f", {rest} more in the table" if rest else ""), bars(legend)),
        ),
        (Table("shares of the image", ("label", "share", "pixels"), rows),),
    )


def label_texts(models: Text2Seg, labels: Sequence[str], background: Sequence[str]) -> Tensor:
    """Unit features float32 [labels + backgrounds, C]; by default the background of the demo model is the empty text,
    and others have none.

    Raises:
        QueryError: a background is unknown to the models.
        SettingsError: a label is background as well.
    """
    background = tuple(text.strip() for text in background) or (("",) if models.things else ())
    both = set(labels) & set(background)
    if both:
        raise SettingsError(f"{', '.join(sorted(both))} cannot be a label and background at once")
    check_labels(models, [text for text in background if text])
    return models.clip.encode_texts((*labels, *background))


@torch.inference_mode()
def label_map(tokens: ImageTokens, texts: Tensor, count: int) -> NDArray[np.int64]:
    """The number of each pixel's label, int64 [H, W] of the image's size; all from `count` on are background, which is
    `count`. Cosines are brought to the image's size, bilinear, before they are compared.

    Args:
        texts: unit features [count + backgrounds, C].
    """
    maps = cosines(tokens.features[1:], texts).T.unflatten(-1, tokens.grid_hw).float()
    best = torch.full(tokens.image_hw, -torch.inf, dtype=torch.float32, device=maps.device)
    label = torch.zeros(tokens.image_hw, dtype=torch.int64, device=maps.device)
    for start in range(0, len(texts), AT_ONCE):
        part = F.interpolate(maps[None, start : start + AT_ONCE], size=tokens.image_hw, mode="bilinear")[0]
        highest, which = part.max(0)
        higher = highest > best
        best = torch.where(higher, highest, best)
        label = torch.where(higher, which + start, label)
    return np.asarray(label.clamp(max=count).cpu().numpy())


def painted(image: Image, found: NDArray[np.int64], names: Sequence[str]) -> NDArray[np.uint8]:
    """The image, no larger than a sheet shows it, with each label of `found` int64 [H, W] in the colour of its name;
    the background, the last name, stays as it is."""
    pixels = ground(image)
    rows, columns = (np.arange(side) * whole // side for side, whole in zip(pixels.shape[:2], image.hw, strict=True))
    small = found[rows][:, columns]
    width = max(1, max(pixels.shape[:2]) // 300)
    labels = [int(at) for at in np.unique(small) if at < len(names) - 1]
    coloured = pixels
    for at in labels:
        coloured = blend(coloured, small == at, colour_of(names[at]), OPACITY)
    coloured = np.ascontiguousarray(coloured)
    for at in labels:
        outline(coloured, small == at, colour_of(names[at]), width)
    return coloured


def _colour(name: str) -> tuple[int, int, int]:
    return FAINT if name == BACKGROUND else colour_of(name)
